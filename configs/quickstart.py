"""The first run: the built-in suite and span corruption, from nothing to a zero-shot table in minutes.

mtpt train --config=quickstart --workdir=runs/quickstart

Hardware: 2 CPU cores, under 3 GB of memory; no network, no download.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 2_000
    config.tasks = dict(module='mtpt.mixtures.builtin')
    config.model = dict(size='mini')
    config.data = dict(
        mixture='builtin',
        vocabulary='builtin',
        batch_size=16,
        inputs_length=64,
        targets_length=32,
        segments=8,
        row_groups=4,
    )
    config.optimizer = dict(name='adamw', b2=0.98, weight_decay=0.01, clip=1.0)
    config.schedule = dict(name='wsd', peak=7e-4, warmup=60, decay=0.3)
    config.held_out = dict(
        families=('builtin_new_tasks',),
    )
    config.evaluate = dict(
        mixtures=('builtin_new_tasks', 'builtin_new_wordings', 'builtin_trained'),
    )
    config.checkpoint = dict(every=500)
    return config
