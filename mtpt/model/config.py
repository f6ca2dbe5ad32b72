"""What a model is: its letters, its sizes by name, its precision.

V vocabulary  D model width  H heads  K head width  F hidden width
"""

import dataclasses
from typing import Any

from mtpt.config import UserError, choose

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A T5 1.1 encoder-decoder.

    `size` names a line of `SIZES`; a letter that is 0 (and `tied` that is None) is taken from that
    line, any other overrides it. `V` comes from the vocabulary. `resolve` fills them in.
    """

    size: str = 'mini'
    V: int = 0
    D: int = 0
    H: int = 0
    K: int = 0
    F: int = 0
    encoder_layers: int = 0
    decoder_layers: int = 0
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.0
    tied: bool | None = None
    dtype: str = 'float32'
    remat: str = 'full'

    @property
    def letters(self) -> dict[str, int]:
        """The sizes of the dimensions that weights have, by letter."""
        return dict(V=self.V, D=self.D, H=self.H, K=self.K, F=self.F, U=self.buckets)


def resolve(cfg: ModelConfig, V: int = 0) -> ModelConfig:
    """Fills in what the size and the vocabulary determine, and checks the rest.

    Raises:
      UserError: an unknown size, dtype or remat policy, a missing vocabulary, a value out of range.
    """
    line = choose('model size', cfg.size, SIZES)
    filled: dict[str, Any] = {k: v for k, v in line.items() if not getattr(cfg, k)}
    if cfg.tied is not None:
        filled.pop('tied', None)
    cfg = dataclasses.replace(cfg, V=cfg.V or V, **filled)
    _check(cfg)
    return cfg


def _check(cfg: ModelConfig) -> None:
    for name in ('V', 'D', 'H', 'K', 'F', 'encoder_layers', 'decoder_layers'):
        if getattr(cfg, name) < 1:
            raise UserError(f'model.{name}={getattr(cfg, name)} must be at least 1')
    if cfg.buckets < 4 or cfg.buckets % 4:
        raise UserError(f'model.buckets={cfg.buckets} must be a multiple of 4, at least 4')
    if cfg.max_distance <= cfg.buckets // 2:
        raise UserError(
            f'model.max_distance={cfg.max_distance} must be above half of '
            f'model.buckets={cfg.buckets}'
        )
    if not 0 <= cfg.dropout < 1:
        raise UserError(f'model.dropout={cfg.dropout} must be at least 0 and below 1')
    if cfg.dtype == 'float16':
        raise UserError("model.dtype='float16' overflows in T5; use 'bfloat16' or 'float32'")
    choose('compute dtype', cfg.dtype, dict.fromkeys(DTYPES))
    choose('remat policy', cfg.remat, REMAT)


def _size(
    D: int, H: int, K: int, F: int, layers: tuple[int, int], tied: bool = False
) -> dict[str, Any]:
    return dict(D=D, H=H, K=K, F=F, encoder_layers=layers[0], decoder_layers=layers[1], tied=tied)


SIZES = dict(
    micro=_size(32, 2, 16, 64, (1, 1), tied=True),
    tiny=_size(64, 4, 16, 128, (2, 2), tied=True),
    mini=_size(128, 4, 32, 256, (3, 2), tied=True),
    midi=_size(256, 4, 64, 512, (4, 4), tied=True),
    small=_size(512, 6, 64, 1024, (8, 8)),
    base=_size(768, 12, 64, 2048, (12, 12)),
    large=_size(1024, 16, 64, 2816, (24, 24)),
    xl=_size(2048, 32, 64, 5120, (24, 24)),
    xxl=_size(4096, 64, 64, 10240, (24, 24)),
)

# What a layer keeps for its backward pass, from all to nothing (`jax.checkpoint_policies`). On a
# CPU 'full' is also the fastest: to compute again costs less than to store and fetch.
REMAT = dict(
    none=None,
    dots='dots_saveable',
    dots_with_no_batch_dims='dots_with_no_batch_dims_saveable',
    full='nothing_saveable',
)
