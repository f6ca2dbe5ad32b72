"""What a model is: its letters, and a field for every way in which its layers can differ.

V vocabulary  D model width  H heads  J key/value heads  K head width  F hidden width
N layers of a stack  E experts  M tasks  X width of a task's representation
"""

import dataclasses
from typing import Any

from mtpt.config import choose
from mtpt.model.checks import check
from mtpt.model.parts import AttentionConfig, HeadConfig, MoeConfig
from mtpt.model.sizes import SIZES


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model of the T5 family, dense or sparse.

    `size` names a line of `SIZES`; a field that is 0, '' or None, and a field of `moe` that has its
    default, is taken from that line, any other overrides it; with `moe.encoder` and `moe.decoder`
    both 0 a sparse size is dense. `V` comes from the vocabulary, `M` from the table of tasks.
    `resolve` fills them in.

    kind: 'encoder_decoder'; 'prefix_lm', one stack (the decoder's layers) that reads inputs and
      then targets; or 'encoder', for heads alone.
    heads: what else than text the encoder is to give.
    mlp: the hidden layer's activation (`layers.MLPS`).
    positions: 'relative' (T5's learnt bias), 'rope' (2104.09864) or 'none'.
    sequence_split: whether states between the parts of layers are split by position over the mesh's
      `tensor` axis (2205.05198, section 4.2.2), so that a long row takes as much less memory.
    remat: what layers keep for the backward pass, and where (`remat.POLICIES`).
    kernel: how attention is computed: 'xla', or 'cudnn' (GPU, bfloat16).
    scan: whether the layers of a stack are compiled once and scanned over, or one by one.
    """

    size: str = 'mini'
    kind: str = 'encoder_decoder'
    V: int = 0
    M: int = 0
    D: int = 0
    H: int = 0
    K: int = 0
    F: int = 0
    encoder_layers: int = 0
    decoder_layers: int = 0
    mlp: str = ''
    positions: str = 'relative'
    buckets: int = 32
    max_distance: int = 128
    encoder_attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    decoder_attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    cross_attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    moe: MoeConfig = dataclasses.field(default_factory=MoeConfig)
    dropout: float = 0.0
    tied: bool | None = None
    dtype: str = 'float32'
    remat: str = 'full'
    sequence_split: bool = False
    kernel: str = 'xla'
    scan: bool = True
    heads: tuple[HeadConfig, ...] = ()

    @property
    def letters(self) -> dict[str, int]:
        """The sizes of the dimensions that weights have, by letter."""
        own = dict(V=self.V, D=self.D, H=self.H, K=self.K, F=self.F, U=self.buckets)
        return own | dict(E=self.moe.E, Y=self.moe.E, M=self.M + 1, X=self.moe.X)


def resolve(cfg: ModelConfig, V: int = 0, M: int = 0) -> ModelConfig:
    """Fills in what the size, the vocabulary and the tasks determine, and checks the rest.

    Args:
      cfg: a config, resolved or not.
      V: ids of the vocabulary, sentinels and padding included.
      M: tasks of the run's table; their ids are 1 to M.

    Raises:
      UserError: an unknown name, a missing vocabulary, a value out of range, fields that do not go
        together.
    """
    line = choose('model size', cfg.size, SIZES)
    filled: dict[str, Any] = {k: v for k, v in line.items() if not getattr(cfg, k)}
    if cfg.tied is not None:
        filled.pop('tied', None)
    filled['V'] = cfg.V or V or line.get('V', 0)
    if 'moe' in line and (cfg.moe.encoder, cfg.moe.decoder) != (0, 0):
        said = {f.name: getattr(cfg.moe, f.name) for f in dataclasses.fields(MoeConfig)}
        said = {name: x for name, x in said.items() if x != getattr(MoeConfig, name)}
        filled['moe'] = MoeConfig(**line['moe'] | said)
    cfg = dataclasses.replace(cfg, **filled, M=cfg.M or M)
    if cfg.moe.E and not cfg.moe.F:
        cfg = dataclasses.replace(cfg, moe=dataclasses.replace(cfg.moe, F=cfg.F))
    check(cfg)
    return cfg
