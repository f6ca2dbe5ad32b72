"""The quickstart ten times as long: what longer training gives the same model on the same tasks.

mtpt train --config=mini_long --workdir=runs/mini_long

Hardware: 2 CPU cores, under 3 GB of memory; no network, no download. About half an hour.
Reached with seed 0: trained tasks 1.000, new wordings 0.996, new tasks 0.909 (chance 0.407).
"""

from ml_collections import ConfigDict

from mtpt.configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.train.steps = 20_000
    config.train.validate_every = 2_000
    config.checkpoint.every = 2_000
    config.exams.builtin_new_tasks.every = 5_000
    config.exams.builtin_new_wordings.every = 5_000
    return config
