"""Switch-C: 2,048 experts in every layer, 1,571 billion parameters, on C4 (Fedus et al. 2022).

mtpt train --config=switch_c --workdir=gs://BUCKET/switch_c

MTPT_VOCABULARY and TFDS_DATA_DIR as for `t5_base_c4`. 15 layers a side, each of which sends a token
to one expert, with capacity 1.0. Batches of 2^20 tokens, Adafactor.

Hardware: TOPOLOGY, 512 chips, each with four experts of every layer; the rest is on every chip.
Reported: the loss of T5 XXL in a quarter of the time (abstract). Not run by us.
"""

from ml_collections import ConfigDict

from mtpt.configs import t5_base_c4

TOPOLOGY = 'v5p:8x8x8'


def get_config() -> ConfigDict:
    config = t5_base_c4.get_config()
    config.model.size = 'switch_c_2048'
    config.model.remat = 'full'
    config.mesh = dict(expert=512)
    config.data.update(batch_size=2048, row_groups=128)
    config.train.steps = 500_000
    return config
