"""The prefix language model: one stack that reads a segment's inputs, both ways, then its targets.

It takes the same batches as the encoder-decoder: the positions of a row are those of its inputs and
then those of its targets (L = S + T). Masks go by segment, so packed rows are left as they lie, and
targets count on from their own inputs.

B row  S input position  T target position  L position of either  G segments of a row
D model width  V vocabulary  H heads  J key/value heads  K head width  R repeats of the pattern
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtpt.mesh import act, einsum
from mtpt.model.blocks import Stack, View, empty_keys
from mtpt.model.config import ModelConfig
from mtpt.model.encoder_decoder import Cache, EncoderDecoder
from mtpt.model.layers import Aux, Logits, param, whole
from mtpt.model.positions import bucket, causal, relative_bias, same_segment
from mtpt.model.task_routing import TaskRepresentation, knows_tasks, of_tokens


class Read(NamedTuple):
    """What decoding needs of inputs that were read; every array has a row for each of the batch.

    kept: for each block of the pattern its keys and values [B, R, S, J, K], or None where it uses
    those of another: inputs see no targets, so they are read once for all of theirs.
    """

    kept: list
    segments_BS: jax.Array
    tasks_BG: jax.Array
    task_BGX: jax.Array | None


class PrefixLM(nnx.Module):
    """The whole model; `functional` calls its methods with a plain tree of parameters."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.token_embedding = param(rngs, 'VD', cfg, 1.0)
        self.decoder = Stack(cfg, rngs, cross=True, both_ways=True, alone=True)
        if not cfg.tied:
            self.logits = Logits(cfg, rngs)
        if knows_tasks(cfg):
            self.tasks = TaskRepresentation(cfg, rngs)

    embed = EncoderDecoder.embed
    embeds = EncoderDecoder.embeds
    head = EncoderDecoder.head
    represented = EncoderDecoder.represented

    def __call__(
        self, batch: Mapping[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, Aux]]:
        """Logits_BTV of the targets, and what the layers report."""
        keys = [None] * 2 if key is None else jax.random.split(key)
        segments_BS, segments_BT = batch['encoder_segment_ids'], batch['decoder_segment_ids']
        tasks_BG, S = batch.get('segment_task_ids'), segments_BS.shape[1]
        tokens = [batch['encoder_input_tokens'], batch['decoder_input_tokens']]
        [x_BLD] = self.embeds(jnp.concatenate(tokens, axis=1))
        task_BGX = self.represented(whole(x_BLD)[:, :S], segments_BS, tasks_BG, keys[1])
        segments_BL = jnp.concatenate([segments_BS, segments_BT], axis=1)
        after_BT = follows(segments_BT, segments_BS)
        view = View(
            self._bias(segments_BS, segments_BT, after_BT),
            same_segment(segments_BL, segments_BL) & prefix_causal(S, segments_BT.shape[1]),
            self._positions(S, after_BT),
            of_tokens(segments_BL, tasks_BG, task_BGX),
        )
        x_BLD, aux = self.decoder(x_BLD, view, key=keys[0])
        return self.head(whole(x_BLD)[:, S:]), dict(decoder=aux)

    def encode(self, tokens_BS, segments_BS, tasks_BG) -> Read:
        """The inputs read, without dropout."""
        x_BSD, S = self.embed(tokens_BS), tokens_BS.shape[1]
        task_BGX = self.represented(x_BSD, segments_BS, tasks_BG)
        positions = jnp.arange(S) if self.cfg.positions == 'rope' else None
        routing = of_tokens(segments_BS, tasks_BG, task_BGX)
        mask_B1SS = same_segment(segments_BS, segments_BS)
        view = View(self.decoder.bias(S), mask_B1SS, positions, routing)
        own = empty_keys(self.decoder, x_BSD, S)
        _, own = self.decoder.step(x_BSD, view, own, 0, self._no_cross(), None)
        kept = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), own)
        kept = jax.tree.map(lambda x: jax.reshard(x, act('BNSJK')), kept)  # heads are not split
        return Read(kept, segments_BS, tasks_BG, task_BGX)

    def decode(self, read: Read, tokens_BT, segments_BT) -> jax.Array:
        """Logits_BTV of given targets, without dropout."""
        segments_BS, T = read.segments_BS, tokens_BT.shape[1]
        after_BT = follows(segments_BT, segments_BS)
        mask_B1TT = same_segment(segments_BT, segments_BT) & causal(T)
        mask_B1TL = jnp.concatenate([same_segment(segments_BT, segments_BS), mask_B1TT], axis=-1)
        positions = after_BT + jnp.arange(T) if self.cfg.positions == 'rope' else None
        view = View(
            self._target_bias(segments_BS.shape[1], after_BT),
            mask_B1TL,
            positions,
            of_tokens(segments_BT, read.tasks_BG, read.task_BGX),
        )
        x_BTD = self.embed(tokens_BT)
        own, S = self._room(read, x_BTD, T), segments_BS.shape[1]
        x_BTD, _ = self.decoder.step(x_BTD, view, own, S, self._no_cross(), None)
        return self.head(x_BTD)

    def start(self, read: Read, T: int) -> Cache:
        """A cache with the inputs' keys and values and room for T positions of targets.

        One example a row. Its `own` has S + T positions; its bias is made anew for each position.
        """
        ones_B1 = jnp.ones_like(read.segments_BS[:, :1])
        return Cache(
            own=self._room(read, self.embed(ones_B1), T),
            cross=self._no_cross(),
            mask_B11S=same_segment(ones_B1, read.segments_BS),
            bias_1HTT=None,
            routing=of_tokens(ones_B1, read.tasks_BG, read.task_BGX),
            place=jnp.int32(0),
            length=T,
        )

    def step(self, cache: Cache, tokens_B: jax.Array) -> tuple[jax.Array, Cache]:
        """Feeds one token a row; gives the logits_BV of the next and the cache with it."""
        S, T = cache.mask_B11S.shape[-1], cache.length
        end_B1 = jnp.max(jnp.where(cache.mask_B11S, jnp.arange(1, S + 1), 0), -1)[:, 0]
        after_B1, bias_BH1L = end_B1 + cache.place, None
        if self.cfg.positions == 'relative':
            table_UH, here_B1 = self.decoder.relative_bias, jnp.zeros_like(end_B1) + cache.place
            inputs_BH1S = shifted_bias(self.cfg, table_UH, S, T, after_B1)
            own_BH1T = shifted_bias(self.cfg, table_UH, T, T, here_B1)
            bias_BH1L = jnp.concatenate([inputs_BH1S, own_BH1T], axis=-1)
        past_B11T = (jnp.arange(T) <= cache.place) & jnp.ones_like(cache.mask_B11S[..., :1])
        mask_B11L = jnp.concatenate([cache.mask_B11S, past_B11T], axis=-1)
        positions = after_B1 if self.cfg.positions == 'rope' else None
        view = View(bias_BH1L, mask_B11L, positions, cache.routing)
        x_B1D, own = self.decoder.step(
            self.embed(tokens_B[:, None]), view, cache.own, S + cache.place, cache.cross, None
        )
        logits_BV = self.head(x_B1D)[:, 0]
        return logits_BV, dataclasses.replace(cache, own=own, place=cache.place + 1)

    def _no_cross(self) -> list[None]:
        return [None] * self.decoder.period

    def _room(self, read: Read, like_BTD: jax.Array, T: int) -> list:
        """The inputs' keys and values with room for T more positions, [R, B, S + T, J, K]."""
        room = empty_keys(self.decoder, like_BTD, T)

        def join(kept, empty):
            kept = jax.reshard(jnp.moveaxis(kept, 0, 1), jax.typeof(empty).sharding.spec)
            return jnp.concatenate([kept, empty], axis=2)

        return jax.tree.map(join, read.kept, room)

    def _positions(self, S: int, after_BT: jax.Array) -> jax.Array | None:
        """Positions [B, L] for rotation; within a segment only differences count."""
        if self.cfg.positions != 'rope':
            return None
        before_BS = jnp.zeros_like(after_BT[:, :1]) + jnp.arange(S)
        after_BT = after_BT + jnp.arange(after_BT.shape[1])
        return jnp.concatenate([before_BS, after_BT], axis=1)

    def _bias(self, segments_BS, segments_BT, after_BT) -> jax.Array | None:
        """What relative positions add to all scores, [B, H, L, L] in float32.

        As large as the scores of one layer, and kept for all of them. Inputs never see targets.
        """
        if self.cfg.positions != 'relative':
            return None
        S, T = segments_BS.shape[1], segments_BT.shape[1]
        below_BHTL = self._target_bias(S, after_BT)
        above_1HSL = jnp.pad(self.decoder.bias(S), ((0, 0), (0, 0), (0, 0), (0, T)))
        above_BHSL = jnp.broadcast_to(above_1HSL, (len(below_BHTL), *above_1HSL.shape[1:]))
        above_BHSL = jax.reshard(above_BHSL, act('BHSL'))
        return jnp.concatenate([above_BHSL, below_BHTL], axis=2)

    def _target_bias(self, S: int, after_BT: jax.Array) -> jax.Array | None:
        """What relative positions add to the scores of targets, [B, H, T, S + T]."""
        if self.cfg.positions != 'relative':
            return None
        T, table_UH = after_BT.shape[1], self.decoder.relative_bias
        own_1HTT = relative_bias(self.cfg, table_UH, T, T, both_ways=True)
        own_BHTT = jnp.broadcast_to(own_1HTT, (len(after_BT), *own_1HTT.shape[1:]))
        inputs_BHTS = shifted_bias(self.cfg, table_UH, S, T, after_BT + jnp.arange(T))
        return jnp.concatenate([inputs_BHTS, jax.reshard(own_BHTT, act('BHTT'))], axis=-1)


def prefix_causal(S: int, T: int) -> np.ndarray:
    """A mask [1, 1, L, L]: inputs see inputs, targets see inputs and the targets before them."""
    mask_LL = np.tril(np.ones((S + T, S + T), bool))
    mask_LL[:S, :S] = True
    return mask_LL[None, None]


def follows(segments_BT: jax.Array, segments_BS: jax.Array) -> jax.Array:
    """What is added to a target's place to count on from the end of its segment's inputs, [B, T].

    Target t of a row stands at `follows + t`, where inputs stand at their own places: within a
    segment, whose parts lie side by side, only differences count.
    """
    S, T = segments_BS.shape[1], segments_BT.shape[1]
    same_BTS = segments_BT[:, :, None] == segments_BS[:, None]
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None]
    end_BT = jnp.max(jnp.where(same_BTS, jnp.arange(1, S + 1), 0), -1)
    return end_BT - jnp.min(jnp.where(same_BTT, jnp.arange(T), T), -1)


def shifted_bias(cfg: ModelConfig, table_UH, S: int, T: int, place_BT: jax.Array) -> jax.Array:
    """The bias [B, H, T', S] towards places 0 .. S - 1, from places that differ by row.

    T: places go from -T to S + T. Cut from the bias by distance, a stretch for each query.
    """
    longest = S + T
    buckets = bucket(np.arange(-longest, longest + 1), True, cfg.buckets, cfg.max_distance)
    hot_LU = jnp.asarray(np.eye(cfg.buckets, dtype=np.float32)[buckets])
    bias_HL = einsum('LU,UH->HL', hot_LU, table_UH)

    @partial(jax.shard_map, in_specs=(act('HL'), act('BT')), out_specs=act('BHTS'))
    def cut(bias_HL, place_BT):
        def stretch(place):
            return jax.lax.dynamic_slice_in_dim(bias_HL, longest - place, S, axis=1)

        return jnp.moveaxis(jax.vmap(jax.vmap(stretch))(place_BT), 2, 1)

    return cut(bias_HL, place_BT)
