"""What a model costs: its parameters, the FLOPs of a training step, the bytes of its KV cache.

Arithmetic on a resolved config. Parameters are counted on the shapes that `init` would make, which
needs no memory and no device; the rest are formulas, each written out beside the layer it counts.

B rows  S encoder positions  T decoder positions  D model width  H heads  J key/value heads
K head width  F hidden width  V vocabulary  E experts
"""

import contextlib
import dataclasses
import math

import jax
import jax.numpy as jnp

from mtpt import trees
from mtpt.mesh import AXES
from mtpt.model import functional
from mtpt.model.blocks import Kind, kinds
from mtpt.model.config import AttentionConfig, ModelConfig
from mtpt.model.layers import MLPS


@dataclasses.dataclass(frozen=True)
class Parameters:
    """How many numbers a model holds.

    active: those that a token passes: all but the experts it is not sent to. Of a tied model the
      token embedding counts once, as embedding. Routed heads are all computed, so all are active.
    encoder, decoder: their stacks without routed experts; shared experts and routers are in.
    experts: all routed experts of all layers; expert: one of them.
    heads: the projection to the vocabulary unless tied, and whatever else stands outside.
    """

    total: int
    active: int
    embedding: int
    encoder: int
    decoder: int
    experts: int
    heads: int
    expert: int


def parameters(cfg: ModelConfig) -> Parameters:
    """Counts the parameters of a resolved config, in all, by part, and on a token's path."""
    leaves, letters = trees.flatten(shapes(cfg)), trees.flatten(functional.dims(cfg))
    parts = dict.fromkeys(('embedding', 'encoder', 'decoder', 'experts', 'heads'), 0)
    active = 0.0
    for path, leaf in leaves.items():
        size = math.prod(leaf.shape)
        routed = 'E' in letters[path] and path.split('/')[-2] == 'moe'
        stack = path.split('/')[0]
        part = dict(token_embedding='embedding', encoder='encoder', decoder='decoder')
        parts['experts' if routed else part.get(stack, 'heads')] += size
        active += size * experts_of_a_token(cfg, stack) / cfg.moe.E if routed else size
    one = _matrices(cfg) * cfg.D * cfg.moe.F if cfg.moe.E else 0
    return Parameters(sum(parts.values()), round(active), **parts, expert=one)


def shapes(cfg: ModelConfig) -> functional.Params:
    """The parameters as shapes and types: what `init` would make, with nothing computed."""
    explicit = (jax.sharding.AxisType.Explicit,) * len(AXES)
    one = jax.sharding.AbstractMesh((1,) * len(AXES), AXES, axis_types=explicit)
    unset = jax.sharding.get_abstract_mesh().empty
    with jax.sharding.use_abstract_mesh(one) if unset else contextlib.nullcontext():
        return jax.eval_shape(lambda: functional.init(cfg, jax.random.key(0)))


def experts_of_a_token(cfg: ModelConfig, stack: str) -> float:
    """How many routed experts a token of the 'encoder' or 'decoder' goes to.

    With expert choice the mean over tokens; by 'soft' task routing, all of them.
    """
    moe, router = cfg.moe, _router(cfg, stack)
    if router == 'expert_choice':
        return min(moe.capacity, moe.E)
    if router == 'task' and moe.task_choice == 'soft':
        return moe.E
    return 1 if router in ('task', 'enforced') else moe.top_k


def _router(cfg: ModelConfig, stack: str) -> str:
    return cfg.moe.decoder_router if stack == 'decoder' else cfg.moe.encoder_router


def _matrices(cfg: ModelConfig) -> int:
    """The matrices of a hidden layer: 3 when gated, else 2."""
    return 3 if MLPS[cfg.mlp].gated else 2


def train_flops(cfg: ModelConfig, S: int, T: int, rows: int = 1, slots: bool = False) -> float:
    """FLOPs of a training step on full rows: forward and backward, with nothing recomputed.

    A product of m x k by k x n is 2 m k n; its backward pass is two such products, so a step is
    three times its forward pass. Counted are the products of weights with positions, and scores and
    values of attention, as whole squares (a causal half is not taken off, as is usual for MFU:
    2204.02311, appendix B). Left out are look-ups, norms, softmax, gates, the optimizer and what
    the heads of `cfg.heads` do to the states: below 1 % from `small` on.

    Of routed experts it counts those that a token is sent to, which is what the model asks for;
    with `slots`, what the dispatch computes: every slot of a bounded capacity, filled or not.
    """
    slack = cfg.moe.capacity if slots and cfg.moe.dispatch == 'capacity' else 1.0
    own, of = cfg.decoder_attention, kinds(cfg, cross=True)
    vocabulary = 2 * T * cfg.D * cfg.V
    if cfg.kind == 'prefix_lm':
        return 3.0 * rows * (_stack(cfg, S + T, of, own, 'decoder', slack) + vocabulary)
    flops = 0.0
    # A contrastive head has the targets encoded too.
    encoded = [S, T] if any(head.kind == 'contrastive' for head in cfg.heads) else [S]
    for length in encoded:
        of_encoder = kinds(cfg, cross=False)
        flops += _stack(cfg, length, of_encoder, cfg.encoder_attention, 'encoder', slack)
    if cfg.kind == 'encoder':
        return 3.0 * rows * flops
    flops += _stack(cfg, T, of, own, 'decoder', slack) + vocabulary
    for kind in of:
        flops += _attention(cfg, cfg.cross_attention, T, S, kind.cross_keys)
    return 3.0 * rows * flops


def _stack(
    cfg: ModelConfig,
    T: int,
    of: tuple[Kind, ...],
    own: AttentionConfig,
    stack: str,
    slack: float,
) -> float:
    """FLOPs of self-attention and hidden layers over a row of T positions."""
    flops = sum(_attention(cfg, own, T, T, kind.keys) for kind in of)
    return flops + sum(_hidden(cfg, T, kind.sparse, stack, slack) for kind in of)


def _attention(cfg: ModelConfig, own: AttentionConfig, T: int, S: int, keys: bool) -> float:
    """FLOPs of T positions that attend to S: q and o, k and v unless borrowed, scores, values."""
    heads, kv_heads = cfg.H * cfg.K, (own.kv_heads or cfg.H) * cfg.K
    projections = 2 * T * cfg.D * heads * 2 + keys * 2 * S * cfg.D * kv_heads * 2
    return projections + 2 * T * S * heads * 2


def _hidden(cfg: ModelConfig, T: int, sparse: bool, stack: str, slack: float) -> float:
    """FLOPs of the hidden layer on T positions, or of the experts they go to and the router."""
    if not sparse:
        return _matrices(cfg) * 2 * T * cfg.D * cfg.F
    moe, router = cfg.moe, _router(cfg, stack)
    experts = experts_of_a_token(cfg, stack)
    if router == 'top_k':  # the others keep to what they choose, or drop nothing
        experts *= slack
    seen = 0 if router in ('task', 'enforced') else moe.E  # those look at the task alone
    return 2 * T * cfg.D * (_matrices(cfg) * moe.F * (experts + moe.shared) + seen)


@dataclasses.dataclass(frozen=True)
class CacheBytes:
    """What decoding keeps: keys and values of decoded positions (own) and of the inputs (cross)."""

    own: int
    cross: int

    @property
    def total(self) -> int:
        return self.own + self.cross


def cache_bytes(cfg: ModelConfig, B: int, S: int, T: int) -> CacheBytes:
    """Bytes of the keys and values that decode T positions of B rows with inputs of S positions.

    A layer keeps 2 x B x positions x J x K numbers of the compute dtype: J is H, or `kv_heads`
    (grouped, multi-query); layers that borrow the keys of another (`kv_layers`) keep none. A prefix
    LM keeps the inputs as positions of its own.
    """
    of = kinds(cfg, cross=True)
    number = jnp.dtype(cfg.dtype).itemsize

    def kept(own: AttentionConfig, positions: int, layers: int) -> int:
        return 2 * layers * B * positions * (own.kv_heads or cfg.H) * cfg.K * number

    if cfg.kind == 'prefix_lm':
        return CacheBytes(kept(cfg.decoder_attention, S + T, sum(k.keys for k in of)), 0)
    own = kept(cfg.decoder_attention, T, sum(k.keys for k in of))
    return CacheBytes(own, kept(cfg.cross_attention, S, sum(k.cross_keys for k in of)))
