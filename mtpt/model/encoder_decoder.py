"""T5 1.1: two stacks of layers and a head, as functions of a plain tree of parameters.

`init` makes the tree, `apply` gives logits, `encode` and `decode` are its halves, `dims` tells what
the axes of every leaf mean. All but `dims` run under a mesh that the caller has set.

B row  S encoder position  T decoder position  D model width  V vocabulary  N layers of a stack
"""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtpt.mesh import AXES, require_mesh, rows
from mtpt.model.attention import Attention, bias_table, causal, relative_bias, same_segment
from mtpt.model.config import REMAT, ModelConfig
from mtpt.model.layers import Logits, Mlp, RMSNorm, dropout, lookup, param, stack, tied_logits

Params = dict[str, Any]


class Block(nnx.Module):
    """A layer: self-attention, cross-attention in the decoder, the MLP; each normed and added."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, cross: bool):
        self.rate = cfg.dropout
        self.attention_norm, self.attention = RMSNorm(cfg), Attention(cfg, rngs)
        if cross:
            self.cross_norm, self.cross = RMSNorm(cfg), Attention(cfg, rngs)
        self.mlp_norm, self.mlp = RMSNorm(cfg), Mlp(cfg, rngs)

    def __call__(self, x_BTD, bias_1HTT, mask_B1TT, memory=None, key=None):
        """`memory` is (x_BSD, mask_B1TS) of the encoder."""
        keys = [None] * 6 if key is None else list(jax.random.split(key, 6))
        h_BTD = self.attention_norm(x_BTD)
        h_BTD = self.attention(
            h_BTD, self.attention.keys_values(h_BTD), bias_1HTT, mask_B1TT, keys[0]
        )
        x_BTD = x_BTD + dropout(h_BTD, 'BTD', self.rate, keys[1])
        if memory is not None:
            keys_values = self.cross.keys_values(memory[0])
            h_BTD = self.cross(self.cross_norm(x_BTD), keys_values, None, memory[1], keys[2])
            x_BTD = x_BTD + dropout(h_BTD, 'BTD', self.rate, keys[3])
        h_BTD = self.mlp(self.mlp_norm(x_BTD), keys[4])
        return x_BTD + dropout(h_BTD, 'BTD', self.rate, keys[5])

    def step(self, x_B1D, bias_1H1T, mask_B11T, own, place, memory):
        """One position, given the keys and values of those before it and of the encoder.

        `own` is (k_BTHK, v_BTHK), written at `place`; `memory` is ((k_BSHK, v_BSHK), mask_B11S).
        Gives the new x_B1D and the new `own`.
        """
        h_B1D = self.attention_norm(x_B1D)
        own = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new, place, 1)
            for old, new in zip(own, self.attention.keys_values(h_B1D))
        )
        x_B1D = x_B1D + self.attention(h_B1D, own, bias_1H1T, mask_B11T)
        x_B1D = x_B1D + self.cross(self.cross_norm(x_B1D), memory[0], None, memory[1])
        return x_B1D + self.mlp(self.mlp_norm(x_B1D)), own


class Stack(nnx.Module):
    """Layers scanned over, between the embedded tokens and the last norm."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, cross: bool):
        self.cfg, self.cross = cfg, cross
        self.count = cfg.decoder_layers if cross else cfg.encoder_layers
        self.relative_bias = bias_table(cfg, rngs)
        self.layers = stack(lambda rngs: Block(cfg, rngs, cross), self.count, rngs)
        self.norm = RMSNorm(cfg)

    def bias(self, T: int) -> jax.Array:
        """What the relative positions of a row of T add to the scores."""
        return relative_bias(self.cfg, self.relative_bias, T, T, both_ways=not self.cross)

    def __call__(self, x_BTD, segments_BT, memory=None, key=None):
        T = x_BTD.shape[1]
        bias_1HTT, mask_B1TT = self.bias(T), same_segment(segments_BT, segments_BT)
        if self.cross:
            mask_B1TT = mask_B1TT & causal(T)
        first, last, rest = (None,) * 3 if key is None else jax.random.split(key, 3)
        layer_keys = None if key is None else jax.random.split(rest, self.count)

        def body(x_BTD, layer_and_key):
            layer, key = layer_and_key
            return layer(x_BTD, bias_1HTT, mask_B1TT, memory, key), None

        x_BTD = dropout(x_BTD, 'BTD', self.cfg.dropout, first)
        x_BTD, _ = jax.lax.scan(remat(body, self.cfg.remat), x_BTD, (self.layers, layer_keys))
        return dropout(self.norm(x_BTD), 'BTD', self.cfg.dropout, last)


def remat(body, policy: str):
    """Wraps the body of a scan so that its backward pass keeps what the policy says."""
    if REMAT[policy] is None:
        return body
    saved = getattr(jax.checkpoint_policies, REMAT[policy])
    return jax.checkpoint(body, policy=saved, prevent_cse=False)


class EncoderDecoder(nnx.Module):
    """The whole model; the two stacks share the token embedding."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.token_embedding = param(rngs, 'VD', cfg, 1.0)
        self.encoder = Stack(cfg, rngs, cross=False)
        self.decoder = Stack(cfg, rngs, cross=True)
        if not cfg.tied:
            self.logits = Logits(cfg, rngs)

    def embed(self, tokens_BT):
        return lookup(self.token_embedding, tokens_BT, self.cfg.dtype)

    def head(self, x_BTD):
        if self.cfg.tied:
            return tied_logits(x_BTD, self.token_embedding)
        return self.logits(x_BTD)


def init(cfg: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters, split over the mesh that is set; the same numbers on every mesh."""
    require_mesh()
    return nnx.to_pure_dict(nnx.split(EncoderDecoder(cfg, nnx.Rngs(params=key)))[1])


@functools.lru_cache(maxsize=64)
def _declared(cfg: ModelConfig) -> tuple[nnx.GraphDef, Params]:
    """The module without its arrays, and the letters of its leaves; needs no memory, no device."""
    current = jax.sharding.get_abstract_mesh()
    one = jax.sharding.AbstractMesh(
        (1,) * len(AXES), AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES)
    )
    with jax.sharding.use_abstract_mesh(one) if current.empty else contextlib.nullcontext():
        graph, state = jax.eval_shape(
            lambda: nnx.split(EncoderDecoder(cfg, nnx.Rngs(params=jax.random.key(0))))
        )

    def letters(leaf):
        return 'N' * (leaf.ndim - len(leaf.dims)) + leaf.dims

    dims = jax.tree.map(letters, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return graph, nnx.to_pure_dict(dims)


def dims(cfg: ModelConfig) -> Params:
    """A tree like the parameters whose leaves are the letters of their axes: 'NDHK'."""
    return jax.tree.map(lambda x: x, _declared(cfg)[1])


def module(cfg: ModelConfig, params: Params) -> EncoderDecoder:
    """The model that holds these parameters."""
    require_mesh()
    return nnx.merge(_declared(cfg)[0], params)


def encode(
    cfg: ModelConfig, params: Params, tokens_BS: jax.Array, segments_BS: jax.Array
) -> jax.Array:
    """The encoder's states x_BSD, without dropout."""
    model = module(cfg, params)
    return model.encoder(model.embed(rows(tokens_BS)), rows(segments_BS))


def decode(
    cfg: ModelConfig,
    params: Params,
    x_BSD: jax.Array,
    encoder_segments_BS: jax.Array,
    decoder_input_tokens_BT: jax.Array,
    decoder_segments_BT: jax.Array,
) -> jax.Array:
    """Logits_BTV in float32 for given encoder states, without dropout."""
    model = module(cfg, params)
    segments_BS, segments_BT = rows(encoder_segments_BS), rows(decoder_segments_BT)
    memory = rows(x_BSD), same_segment(segments_BT, segments_BS)
    y_BTD = model.embed(rows(decoder_input_tokens_BT))
    return model.head(model.decoder(y_BTD, segments_BT, memory))


def apply(
    cfg: ModelConfig,
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits_BTV in float32 for a batch, and a dict of what else the layers report.

    Args:
      cfg: a resolved config.
      params: the tree that `init` made.
      batch: at least the tokens and segment ids of both sides.
      key: for dropout; None means evaluation.
    """
    model = module(cfg, params)
    keys = [None] * 2 if key is None else jax.random.split(key)
    segments_BS, segments_BT = (
        rows(batch['encoder_segment_ids']),
        rows(batch['decoder_segment_ids']),
    )
    S = segments_BS.shape[1]
    tokens = [rows(batch['encoder_input_tokens']), rows(batch['decoder_input_tokens'])]
    # One look-up for both sides: its gradient is as large as the table, and is made once.
    both = model.embed(jnp.concatenate(tokens, axis=1))
    x_BSD = model.encoder(both[:, :S], segments_BS, key=keys[0])
    memory = x_BSD, same_segment(segments_BT, segments_BS)
    y_BTD = model.decoder(both[:, S:], segments_BT, memory, keys[1])
    return model.head(y_BTD), {}
