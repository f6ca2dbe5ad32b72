"""The published sizes, one line each.

V vocabulary  D model width  H heads  K head width  F hidden width  E experts
"""

from typing import Any


def _size(D: int, H: int, K: int, F: int, layers: tuple[int, int], **others: Any) -> dict[str, Any]:
    filled = dict(mlp='geglu', tied=False) | others
    return dict(D=D, H=H, K=K, F=F, encoder_layers=layers[0], decoder_layers=layers[1], **filled)


# T5 1.0 and the smaller Switch models: no gate, and the head is the embedding.
PLAIN = dict(mlp='relu', tied=True)


def _switch(E: int, **others: Any) -> dict[str, Any]:
    """Top-1 routing in every second layer (2101.03961), with the noise that the paper adds."""
    moe = dict(E=E, top_k=1, encoder=2, decoder=2, capacity=1.25, eval_capacity=2.0)
    return moe | dict(balance=1e-2, z_loss=0.0, jitter=1e-2) | others


def _st_moe(E: int, **others: Any) -> dict[str, Any]:
    """Top-2 routing in every fourth layer, and a dense hidden layer with the experts (2202.08906).

    Theirs comes after the experts, ours beside them, as wide as one of them.
    """
    moe = dict(E=E, top_k=2, encoder=4, decoder=4, normalise=True, shared=1)
    return moe | dict(capacity=1.25, eval_capacity=2.0, balance=1e-2, z_loss=1e-3) | others


SIZES = dict(
    micro=_size(32, 2, 16, 64, (1, 1), tied=True),
    tiny=_size(64, 4, 16, 128, (2, 2), tied=True),
    mini=_size(128, 4, 32, 256, (3, 2), tied=True),
    midi=_size(256, 4, 64, 512, (4, 4), tied=True),
    # T5 1.0 (1910.10683; t5-small to t5-11b).
    t5_small=_size(512, 8, 64, 2048, (6, 6), V=32128, **PLAIN),
    t5_base=_size(768, 12, 64, 3072, (12, 12), V=32128, **PLAIN),
    t5_large=_size(1024, 16, 64, 4096, (24, 24), V=32128, **PLAIN),
    t5_3b=_size(1024, 32, 128, 16384, (24, 24), V=32128, **PLAIN),
    t5_11b=_size(1024, 128, 128, 65536, (24, 24), V=32128, **PLAIN),
    # T5 1.1 (google/t5-v1_1-*), and with it Flan-T5 (2210.11416, all five) and T0 (2110.08207: xl
    # is T0 3B, xxl is T0 11B).
    small=_size(512, 6, 64, 1024, (8, 8), V=32128),
    base=_size(768, 12, 64, 2048, (12, 12), V=32128),
    large=_size(1024, 16, 64, 2816, (24, 24), V=32128),
    xl=_size(2048, 32, 64, 5120, (24, 24), V=32128),
    xxl=_size(4096, 64, 64, 10240, (24, 24), V=32128),
    # mT5 (2010.11934): the same bodies, and words of 101 languages.
    mt5_small=_size(512, 6, 64, 1024, (8, 8), V=250112),
    mt5_base=_size(768, 12, 64, 2048, (12, 12), V=250112),
    mt5_large=_size(1024, 16, 64, 2816, (24, 24), V=250112),
    mt5_xl=_size(2048, 32, 64, 5120, (24, 24), V=250112),
    mt5_xxl=_size(4096, 64, 64, 10240, (24, 24), V=250112),
    # ByT5 (2105.13626): bytes, and an encoder three times as deep as the decoder.
    byt5_small=_size(1472, 6, 64, 3584, (12, 4), V=384),
    byt5_base=_size(1536, 12, 64, 3968, (18, 6), V=384),
    byt5_large=_size(1536, 16, 64, 3840, (36, 12), V=384),
    byt5_xl=_size(2560, 32, 64, 6720, (36, 12), V=384),
    byt5_xxl=_size(4672, 64, 64, 12352, (36, 12), V=384),
    # UL2 and Flan-UL2 (2205.05131), tied as their published configs have it.
    ul2_20b=_size(4096, 16, 256, 16384, (32, 32), V=32128, mlp='swiglu', tied=True),
    # Switch (2101.03961; google/switch-*). The largest two have heads of their own.
    switch_base_8=_size(768, 12, 64, 3072, (12, 12), V=32128, moe=_switch(8), **PLAIN),
    switch_base_16=_size(768, 12, 64, 3072, (12, 12), V=32128, moe=_switch(16), **PLAIN),
    switch_base_32=_size(768, 12, 64, 3072, (12, 12), V=32128, moe=_switch(32), **PLAIN),
    switch_base_64=_size(768, 12, 64, 3072, (12, 12), V=32128, moe=_switch(64), **PLAIN),
    switch_base_128=_size(768, 12, 64, 3072, (12, 12), V=32128, moe=_switch(128), **PLAIN),
    switch_base_256=_size(768, 12, 64, 3072, (12, 12), V=32128, moe=_switch(256), **PLAIN),
    switch_large_128=_size(1024, 16, 64, 4096, (24, 24), V=32128, moe=_switch(128), **PLAIN),
    switch_xxl_128=_size(
        4096, 64, 64, 10240, (24, 24), V=32128, moe=_switch(128, eval_capacity=4.0)
    ),
    switch_c_2048=_size(
        2080, 30, 64, 6144, (15, 15), V=32128, mlp='relu',
        moe=_switch(2048, encoder=1, decoder=1, capacity=1.0),
    ),
    # ST-MoE (2202.08906), as Flaxformer's configs have it.
    st_moe_base=_size(768, 12, 64, 2048, (12, 12), V=32128, moe=_st_moe(16, z_loss=1e-4)),
    st_moe_xl=_size(
        2048, 32, 64, 5120, (24, 24), V=32128,
        moe=_st_moe(16, z_loss=1e-4, capacity=2.0, eval_capacity=4.0),
    ),
    st_moe_32b=_size(5120, 64, 128, 20480, (24, 24), V=32128, moe=_st_moe(64)),
)  # fmt: skip
