"""The published sizes, one line each.

V vocabulary  D model width  H heads  K head width  F hidden width  E experts
"""

from typing import Any


def _size(D: int, H: int, K: int, F: int, layers: tuple[int, int], **others: Any) -> dict[str, Any]:
    filled = dict(mlp='geglu', tied=False) | others
    return dict(D=D, H=H, K=K, F=F, encoder_layers=layers[0], decoder_layers=layers[1], **filled)


SIZES = dict(
    micro=_size(32, 2, 16, 64, (1, 1), tied=True),
    tiny=_size(64, 4, 16, 128, (2, 2), tied=True),
    mini=_size(128, 4, 32, 256, (3, 2), tied=True),
    midi=_size(256, 4, 64, 512, (4, 4), tied=True),
    # T5 1.1, which Flan-T5 and T0 go on from (google/t5-v1_1-*).
    small=_size(512, 6, 64, 1024, (8, 8)),
    base=_size(768, 12, 64, 2048, (12, 12)),
    large=_size(1024, 16, 64, 2816, (24, 24)),
    xl=_size(2048, 32, 64, 5120, (24, 24)),
    xxl=_size(4096, 64, 64, 10240, (24, 24)),
)
