"""The encoder-decoder: two stacks of layers that share the token embedding, and a head.

B row  S encoder position  T decoder position  G segments of a row  D model width  V vocabulary
H heads  X width of a task's representation
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mtpt.mesh import act
from mtpt.model import heads
from mtpt.model.blocks import Memory, Stack, View, empty_keys
from mtpt.model.config import ModelConfig
from mtpt.model.layers import Aux, Logits, lookup, param, stream, tied_logits, whole
from mtpt.model.positions import same_segment
from mtpt.model.routing import Routing
from mtpt.model.task_routing import TaskRepresentation, knows_tasks, of_tokens


class Encoded(NamedTuple):
    """What decoding needs of the inputs; every array has a row for each row of the batch."""

    x_BSD: jax.Array
    segments_BS: jax.Array
    tasks_BG: jax.Array  # ids; 0 for none, or a task that is not known
    task_BGX: jax.Array | None  # their representations, for routers that know the task


@partial(
    jax.tree_util.register_dataclass,
    data_fields=['own', 'cross', 'mask_B11S', 'bias_1HTT', 'routing', 'place'],
    meta_fields=['length'],
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """What decoding one more position needs of the positions before it and of the encoder.

    `own` and `cross` hold, for each block of the decoder's pattern, pairs of keys and values
    [R, B, T, J, K] and [R, B, S, J, K], or None where a block uses those of another; `length` is T;
    `place` is how many positions have been decoded.
    """

    own: list
    cross: list
    mask_B11S: jax.Array
    bias_1HTT: jax.Array | None
    routing: Routing
    place: jax.Array
    length: int

    def repeat(self, n: int) -> 'Cache':
        """The cache of n hypotheses a row, which lie side by side: rows n i to n i + n - 1."""
        found = {
            name: _by_device(lambda x, axis=axis: jnp.repeat(x, n, axis), getattr(self, name))
            for name, axis in ROWS_AXIS.items()
        }
        return dataclasses.replace(self, **found)

    def reorder(self, row_B: jax.Array) -> 'Cache':
        """Each row goes on from what the row that `row_B` names has decoded.

        Rows are counted within their device, and may only take from rows of the same input: what
        the hypotheses of an input share is left where it is.
        """
        axis = ROWS_AXIS['own']
        own = _by_device(lambda x, row_B: jnp.take(x, row_B, axis, mode='clip'), self.own, row_B)
        return dataclasses.replace(self, own=own)


ROWS_AXIS = dict(own=1, cross=1, mask_B11S=0, routing=0)  # where the fields of a cache have rows


def _by_device(f: Any, tree: Any, *others: jax.Array) -> Any:
    """Maps `f` over the arrays of a tree, on each device's own part of them."""

    def local(x):
        return jax.shard_map(f, out_specs=jax.typeof(x).sharding.spec)(x, *others)

    return jax.tree.map(local, tree)


class EncoderDecoder(nnx.Module):
    """The whole model; `functional` calls its methods with a plain tree of parameters."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.token_embedding = param(rngs, 'VD', cfg, 1.0)
        self.encoder = Stack(cfg, rngs, cross=False)
        self.decoder = Stack(cfg, rngs, cross=True)
        if not cfg.tied:
            self.logits = Logits(cfg, rngs)
        if knows_tasks(cfg):
            self.tasks = TaskRepresentation(cfg, rngs)
        if cfg.heads:
            self.heads = heads.Heads(cfg, rngs)

    look = heads.look
    told = heads.told

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """States with all positions of their rows."""
        return lookup(self.token_embedding, [tokens_BT], self.cfg.dtype, [act('BTD')])[0]

    def embeds(self, *tokens: jax.Array) -> list[jax.Array]:
        """States of texts, split as layers are to have them."""
        splits = [stream(self.cfg, ids_BT.shape[1]) for ids_BT in tokens]
        return lookup(self.token_embedding, tokens, self.cfg.dtype, splits)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = whole(x_BTD)
        if self.cfg.tied:
            return tied_logits(x_BTD, self.token_embedding)
        return self.logits(x_BTD)

    def represented(self, x_BSD, segments_BS, tasks_BG, key=None) -> jax.Array | None:
        """The representation of the task of each segment, from the embedded inputs and its id."""
        if not knows_tasks(self.cfg):
            return None
        return self.tasks(whole(x_BSD), segments_BS, tasks_BG, key)

    def __call__(
        self, batch: Mapping[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Aux]]:
        """Logits_BTV, and what the layers of each stack report."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        segments_BS, segments_BT = batch['encoder_segment_ids'], batch['decoder_segment_ids']
        tasks_BG = batch.get('segment_task_ids')
        x_BSD, y_BTD = self.embeds(batch['encoder_input_tokens'], batch['decoder_input_tokens'])
        task_BGX = self.represented(x_BSD, segments_BS, tasks_BG, keys[2])
        view = self.encoder.view(segments_BS, of_tokens(segments_BS, tasks_BG, task_BGX))
        deep = heads.needs_layers(self.cfg)
        read = self.encoder(x_BSD, view, key=keys[0], all_layers=deep)
        layers, encoder_aux = heads.layers_of(*read)
        x_BSD = layers.top_BSD
        view = self.decoder.view(segments_BT, of_tokens(segments_BT, tasks_BG, task_BGX))
        memory = Memory(x_BSD, same_segment(segments_BT, segments_BS))
        y_BTD, decoder_aux = self.decoder(y_BTD, view, memory, keys[1])
        reports = dict(encoder=encoder_aux, decoder=decoder_aux)
        if self.cfg.heads and 'segment_labels' in batch:
            key = None if key is None else jax.random.fold_in(key, len(keys))
            reports |= heads.teach(self, layers, batch, key)
        return self.head(y_BTD), reports

    def encode(self, tokens_BS, segments_BS, tasks_BG) -> Encoded:
        """The inputs read, without dropout."""
        x_BSD = self.embed(tokens_BS)
        task_BGX = self.represented(x_BSD, segments_BS, tasks_BG)
        view = self.encoder.view(
            segments_BS, of_tokens(segments_BS, tasks_BG, task_BGX, alone=True)
        )
        return Encoded(self.encoder(x_BSD, view)[0], segments_BS, tasks_BG, task_BGX)

    def decode(self, encoded: Encoded, tokens_BT, segments_BT) -> jax.Array:
        """Logits_BTV of given decoder inputs, without dropout."""
        routing = of_tokens(segments_BT, encoded.tasks_BG, encoded.task_BGX, alone=True)
        memory = Memory(encoded.x_BSD, same_segment(segments_BT, encoded.segments_BS))
        view = self.decoder.view(segments_BT, routing)
        return self.head(self.decoder(self.embed(tokens_BT), view, memory)[0])

    def start(self, encoded: Encoded, T: int) -> Cache:
        """An empty cache for T positions of decoding from these inputs, one example a row."""
        ones_B1 = jnp.ones_like(encoded.segments_BS[:, :1])
        return Cache(
            own=empty_keys(self.decoder, encoded.x_BSD, T),
            cross=self.decoder.cross_keys(encoded.x_BSD),
            mask_B11S=same_segment(ones_B1, encoded.segments_BS),
            bias_1HTT=self.decoder.bias(T),
            routing=of_tokens(ones_B1, encoded.tasks_BG, encoded.task_BGX),
            place=jnp.int32(0),
            length=T,
        )

    def step(self, cache: Cache, tokens_B: jax.Array) -> tuple[jax.Array, Cache]:
        """Feeds one token a row; gives the logits_BV of the next and the cache with it."""
        bias_1H1T = cache.bias_1HTT
        if bias_1H1T is not None:
            bias_1H1T = jax.lax.dynamic_slice_in_dim(bias_1H1T, cache.place, 1, 2)
        mask_111T = (jnp.arange(cache.length) <= cache.place)[None, None, None]
        positions = cache.place[None] if self.cfg.positions == 'rope' else None
        view = View(bias_1H1T, mask_111T, positions, cache.routing)
        x_B1D = self.embed(tokens_B[:, None])
        x_B1D, own = self.decoder.step(
            x_B1D, view, cache.own, cache.place, cache.cross, cache.mask_B11S
        )
        logits_BV = self.head(x_B1D)[:, 0]
        return logits_BV, dataclasses.replace(cache, own=own, place=cache.place + 1)
