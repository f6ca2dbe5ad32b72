"""A layer, and a stack of them, scanned over as a repeating pattern of blocks.

Layers differ: every second one may be sparse, every third may have keys and values of its own.
`kinds` says what each layer is; the shortest stretch of them that repeats is compiled once.

B row  T position  S encoder position  D model width  H heads  N layers of a stack
R repeats of the pattern  M tasks  E experts
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mtpt.mesh import act
from mtpt.model import probe
from mtpt.model.attention import Attention, KeysValues
from mtpt.model.config import ModelConfig
from mtpt.model.layers import Aux, Mlp, RMSNorm, dropout, split_of, stack, whole
from mtpt.model.moe import Moe
from mtpt.model.parts import sparse_layers
from mtpt.model.positions import bias_table, causal, relative_bias, same_segment
from mtpt.model.remat import LAYER, remat
from mtpt.model.routing import Routing


class Kind(NamedTuple):
    """What a layer has: experts, and keys and values of its own in self- and cross-attention."""

    sparse: bool = False
    keys: bool = True
    cross_keys: bool = True


def kinds(cfg: ModelConfig, cross: bool) -> tuple[Kind, ...]:
    """The kind of each layer of the decoder (`cross`) or the encoder."""
    count = cfg.decoder_layers if cross else cfg.encoder_layers
    own = cfg.decoder_attention if cross else cfg.encoder_attention
    sparse = sparse_layers(cfg, 'decoder' if cross else 'encoder')
    return tuple(
        Kind(i in sparse, i % own.kv_layers == 0, i % cfg.cross_attention.kv_layers == 0)
        for i in range(count)
    )


def period(of: tuple[Kind, ...]) -> int:
    """The length of the shortest pattern that, repeated, gives the layers."""
    N = len(of)
    return next(p for p in range(1, N + 1) if N % p == 0 and of == of[:p] * (N // p))


class View(NamedTuple):
    """What all layers of a stack are given of their row: biases, masks, positions, routing."""

    bias_1HTT: jax.Array | None
    mask_B1TT: jax.Array
    positions: jax.Array | None  # [T] or [B, T], for rotation only
    routing: Routing


class Memory(NamedTuple):
    """What a decoder sees of the encoder: its states, or their keys and values, and a mask."""

    x_BSD: jax.Array | None
    mask_B1TS: jax.Array


class Shared(NamedTuple):
    """Keys and values that a layer hands to the next ones."""

    own: KeysValues | None = None
    cross: KeysValues | None = None


class Block(nnx.Module):
    """A layer: self-attention, cross-attention in the decoder, the MLP; each normed and added.

    Its states may come split by position, and go so; the parts see whole rows.
    """

    def __init__(
        self, cfg: ModelConfig, rngs: nnx.Rngs, cross: bool, kind: Kind, alone: bool = False
    ):
        self.rate, self.kind = cfg.dropout, kind
        own = cfg.decoder_attention if cross else cfg.encoder_attention
        self.attention_norm = RMSNorm(cfg)
        self.attention = Attention(cfg, own, rngs, kind.keys)
        if cross and not alone:
            self.cross_norm = RMSNorm(cfg)
            self.cross = Attention(cfg, cfg.cross_attention, rngs, kind.cross_keys)
        self.mlp_norm = RMSNorm(cfg)
        if kind.sparse:
            self.moe = Moe(cfg, rngs, decoder=cross)
        else:
            self.mlp = Mlp(cfg, rngs)

    def __call__(
        self, x_BTD, view: View, memory: Memory | None, shared: Shared, key=None
    ) -> tuple[jax.Array, Shared, Aux]:
        keys = [None] * 6 if key is None else list(jax.random.split(key, 6))
        split = split_of(x_BTD)
        h_BTD = whole(self.attention_norm(x_BTD))
        if self.kind.keys:
            shared = shared._replace(own=self.attention.keys_values(h_BTD, view.positions))
        real_BT = view.routing.real_BT
        h_BTD, aux = self.attention(
            h_BTD, shared.own, view.bias_1HTT, view.mask_B1TT, view.positions, keys[0], real_BT,
            split,
        )  # fmt: skip
        x_BTD = x_BTD + dropout(h_BTD, 'BTD', self.rate, keys[1])
        aux = aux | probe.finite(attention=x_BTD)
        if memory is not None:
            if self.kind.cross_keys:
                shared = shared._replace(cross=self.cross.keys_values(whole(memory.x_BSD)))
            h_BTD, more = self.cross(
                whole(self.cross_norm(x_BTD)), shared.cross, None, memory.mask_B1TS, None, keys[2],
                real_BT, split,
            )  # fmt: skip
            x_BTD = x_BTD + dropout(h_BTD, 'BTD', self.rate, keys[3])
            aux = _joined(aux, more) | probe.finite(cross=x_BTD)
        h_BTD, more = self.hidden(whole(self.mlp_norm(x_BTD)), view.routing, keys[4], split)
        x_BTD = x_BTD + dropout(h_BTD, 'BTD', self.rate, keys[5])
        return x_BTD, shared, _joined(aux, more) | probe.finite(hidden=x_BTD)

    def hidden(
        self, h_BTD, routing: Routing, key, split=None, decoding=False
    ) -> tuple[jax.Array, Aux]:
        """The MLP, or the experts in its place."""
        if self.kind.sparse:
            y_BTD, aux = self.moe(h_BTD, routing, key, decoding)
            return (y_BTD if split is None else jax.reshard(y_BTD, split)), aux
        return self.mlp(h_BTD, key, split), {}

    def step(self, x_B1D, view: View, own, place, cross, cross_mask_B11S):
        """One position, given the keys and values of those before it and of the encoder.

        `own` is (k_BTJK, v_BTJK), which a layer with keys of its own writes at `place`; `cross` the
        encoder's keys and values, or None. Gives the new x_B1D and the new `own`.
        """
        h_B1D = self.attention_norm(x_B1D)
        if self.kind.keys:
            own = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new, place, 1)
                for old, new in zip(own, self.attention.keys_values(h_B1D, view.positions))
            )
        h_B1D, _ = self.attention(h_B1D, own, view.bias_1HTT, view.mask_B1TT, view.positions)
        x_B1D = x_B1D + h_B1D
        if cross is not None:
            h_B1D, _ = self.cross(self.cross_norm(x_B1D), cross, None, cross_mask_B11S)
            x_B1D = x_B1D + h_B1D
        h_B1D, _ = self.hidden(self.mlp_norm(x_B1D), view.routing, None, decoding=True)
        return x_B1D + h_B1D, own


def _joined(aux: Aux, more: Aux) -> Aux:
    """The reports of two parts of a layer; of what both have, losses are added, others averaged."""

    def both(name, x):
        return x + aux[name] if name.startswith('loss/') else (x + aux[name]) / 2

    return aux | {name: both(name, x) if name in aux else x for name, x in more.items()}


class Pattern(nnx.Module):
    """The blocks '0', '1', ... of a pattern, each with a leading axis for its repeats."""

    def __init__(self, blocks: list[nnx.Module]):
        for j, block in enumerate(blocks):
            setattr(self, str(j), block)


class Stack(nnx.Module):
    """Layers between the embedded tokens and the last norm.

    cross: whether it has the decoder's settings; alone: a decoder without an encoder to look at.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        rngs: nnx.Rngs,
        cross: bool,
        both_ways: bool | None = None,
        alone: bool = False,
    ):
        self.cfg, self.cross = cfg, cross
        self.both_ways = not cross if both_ways is None else both_ways
        self.kinds = kinds(cfg, cross)
        self.period = period(self.kinds)
        if cfg.positions == 'relative':
            self.relative_bias = bias_table(cfg, rngs)
        repeats = len(self.kinds) // self.period
        blocks = [
            stack(lambda rngs, kind=kind: Block(cfg, rngs, cross, kind, alone), repeats, rngs)
            for kind in self.kinds[: self.period]
        ]
        self.layers = blocks[0] if self.period == 1 else Pattern(blocks)
        self.norm = RMSNorm(cfg)

    @property
    def blocks(self) -> list[Block]:
        """The blocks of the pattern, each stacked over its repeats."""
        if self.period == 1:
            return [self.layers]
        return [getattr(self.layers, str(j)) for j in range(self.period)]

    def bias(self, T: int) -> jax.Array | None:
        """What the relative positions of a row of T add to the scores."""
        if self.cfg.positions != 'relative':
            return None
        return relative_bias(self.cfg, self.relative_bias, T, T, self.both_ways)

    def view(self, segments_BT: jax.Array, routing: Routing) -> View:
        """What the layers see of rows whose positions are counted from their start."""
        T = segments_BT.shape[1]
        mask_B1TT = same_segment(segments_BT, segments_BT)
        if self.cross:
            mask_B1TT = mask_B1TT & causal(T)
        positions = jnp.arange(T) if self.cfg.positions == 'rope' else None
        return View(self.bias(T), mask_B1TT, positions, routing)

    def __call__(
        self, x_BTD, view: View, memory: Memory | None = None, key=None, all_layers: bool = False
    ) -> tuple[jax.Array, Aux]:
        """The normed states, split as they come, and what the layers report: a leading axis N.

        With `all_layers` the report holds 'states' [N, B, T, D], what each layer gives.
        """
        rate, R = self.cfg.dropout, len(self.kinds) // self.period
        first, last, rest = (None,) * 3 if key is None else jax.random.split(key, 3)
        keys = None if key is None else jax.random.split(rest, (R, self.period))

        def body(x_BTD, blocks_and_keys):
            blocks, keys = blocks_and_keys
            x_BTD = checkpoint_name(x_BTD, LAYER)
            shared, reports = Shared(), []
            for j, block in enumerate(blocks):
                own_key = None if keys is None else keys[j]
                x_BTD, shared, aux = block(x_BTD, view, memory, shared, own_key)
                reports.append(aux | ({'states': x_BTD} if all_layers else {}))
            return x_BTD, reports

        body = remat(body, self.cfg.remat)
        seen = probe.finite(embedding=x_BTD)
        x_BTD = dropout(x_BTD, 'BTD', rate, first)
        if self.cfg.scan:
            x_BTD, reports = jax.lax.scan(body, x_BTD, (self.blocks, keys))
        else:
            reports = []
            for r in range(R):
                one = jax.tree.map(lambda x, r=r: x[r], (self.blocks, keys))
                x_BTD, report = body(x_BTD, one)
                reports.append(report)
            reports = jax.tree.map(lambda *x: jnp.stack(x), *reports)
        x_BTD = self.norm(x_BTD)
        seen = seen | probe.finite(norm=x_BTD)
        return dropout(x_BTD, 'BTD', rate, last), interleaved(reports) | seen

    def cross_keys(self, x_BSD: jax.Array) -> list[KeysValues | None]:
        """The encoder's keys and values [R, B, S, J, K], for the blocks that make their own."""

        def make(block):
            _, made = jax.lax.scan(lambda _, b: (None, b.cross.keys_values(x_BSD)), None, block)
            return made

        return [make(block) if block.kind.cross_keys else None for block in self.blocks]

    def step(self, x_B1D, view: View, own, place, cross, cross_mask_B11S):
        """One position through all layers; `own` and `cross` are lists as `cross_keys` gives."""

        def body(x_B1D, scanned):
            blocks, own, cross = scanned
            kept, mine, theirs = [], None, None
            for block, kv, encoder_kv in zip(blocks, own, cross):
                mine = kv if block.kind.keys else mine
                theirs = encoder_kv if encoder_kv is not None else theirs
                x_B1D, mine = block.step(x_B1D, view, mine, place, theirs, cross_mask_B11S)
                kept.append(mine if block.kind.keys else None)
            return x_B1D, kept

        x_B1D, own = jax.lax.scan(body, x_B1D, (self.blocks, own, cross))
        return self.norm(x_B1D), own


def empty_keys(of: Stack, like_BSD: jax.Array, T: int) -> list[KeysValues | None]:
    """Room for the keys and values of T positions, for the blocks that make their own."""

    def room(block):
        R, J, K = block.attention.k.shape[0], *block.attention.k.shape[2:]
        heads = 'H' if J == of.cfg.H else 'J'
        shape = (R, like_BSD.shape[0], T, J, K)
        empty = jnp.zeros(shape, like_BSD.dtype, out_sharding=act(f'NBT{heads}K'))
        return empty, empty

    return [room(block) if block.kind.keys else None for block in of.blocks]


def interleaved(reports: list[Aux]) -> Aux:
    """The reports of the blocks of a pattern [R, ...] as those of the layers in order [N, ...]."""
    names = dict.fromkeys(name for report in reports for name in report)
    columns = {name: [r[name] for r in reports if name in r] for name in names}
    return {name: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]) for name, x in columns.items()}
