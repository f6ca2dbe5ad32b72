"""ST-MoE 32B on C4: 64 experts in every fourth layer, two for a token (Zoph et al. 2022).

mtpt train --config=st_moe_32b --workdir=gs://BUCKET/st_moe_32b

MTPT_VOCABULARY and TFDS_DATA_DIR as for `t5_base_c4`. 269 billion parameters, as in the paper, that
speaks of 27 layers. This is Flaxformer's public config, with 24 a side and every fourth of them
sparse. Batches of 2^20 tokens, Adafactor. The paper's mixture of C4 with other texts is not
public: here it is C4 alone.

Hardware: TOPOLOGY, 512 chips; each holds a 64th of eight experts of every sparse layer.
Reported after tuning: SuperGLUE 91.2. Not run by us.
"""

from ml_collections import ConfigDict

from mtpt.configs import t5_base_c4

TOPOLOGY = 'v4:8x8x8'


def get_config() -> ConfigDict:
    config = t5_base_c4.get_config()
    config.model.size = 'st_moe_32b'
    config.model.remat = 'full'
    config.mesh = dict(fsdp=64, expert=8)
    config.data.update(batch_size=2048, row_groups=128)
    config.train.steps = 500_000
    return config
