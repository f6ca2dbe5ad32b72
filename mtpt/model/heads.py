"""Heads on the encoder: classes, sets of labels, a label a word, and embeddings of whole segments.

Each head reads the states after one layer (HMTL, 1811.06031: simple tasks teach low layers), makes
vectors of them, and is taught by the labels in the batch. What is taught at depth d moves nothing
above layer d.

B row  S input position  T target position  G segments of a row  Q queries of a segment  O labels
D model width  N layers of the encoder
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import P

from mtpt.mesh import BATCH, act, einsum
from mtpt.model.blocks import Block, Kind, Memory, Shared, View
from mtpt.model.config import HeadConfig, ModelConfig
from mtpt.model.layers import Aux, RMSNorm, param, whole
from mtpt.model.positions import same_segment
from mtpt.model.routing import Routing
from mtpt.model.task_routing import of_tokens

NOT_OURS = -1  # in the labels: a segment that is none of the head's; below: one without a label


class Layers(NamedTuple):
    """What the encoder makes of its inputs: the top after the last norm, and after each layer."""

    top_BSD: jax.Array
    states_NBSD: jax.Array | None

    def at(self, depth: int) -> jax.Array:
        return whole(self.states_NBSD[depth - 1] if depth else self.top_BSD)


class Judged(NamedTuple):
    """The loss of each segment in nats, what is right and what there is to tell, as sums."""

    nll_BG: jax.Array
    correct_BG: jax.Array
    count_BG: jax.Array


# Reading: functions of (states, their segments, G) giving vectors [B, G, Q, D].


class Query(nnx.Module):
    """One decoder layer over learnt queries, which see each other and their segment (EncT5)."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, queries: int = 1):
        self.query = param(rngs, 'OD', cfg, 1.0, O=queries)
        self.layer = Block(cfg, rngs, cross=True, kind=Kind())
        self.norm = RMSNorm(cfg)

    def __call__(self, x_BSD, segments_BS, G, key=None) -> tuple[jax.Array, Aux]:
        query_QD = jax.reshard(self.query[...], P()).astype(x_BSD.dtype)
        B, (Q, D) = len(x_BSD), query_QD.shape
        queries_BPD = jnp.broadcast_to(jnp.tile(query_QD, (G, 1)), (B, G * Q, D))
        queries_BPD = jax.reshard(queries_BPD, act('BTD'))
        segments_BP = jnp.zeros_like(segments_BS[:, :1]) + np.repeat(np.arange(1, G + 1), Q)
        y_BPD, aux = self.answer(queries_BPD, segments_BP, x_BSD, segments_BS, key)
        return y_BPD.reshape(B, G, Q, D), aux

    def answer(self, queries_BPD, segments_BP, x_BSD, segments_BS, key=None):
        """What the queries, each of its segment, find among the states."""
        mask_B1PS = same_segment(segments_BP, segments_BS)
        real_BP = jnp.any(mask_B1PS[:, 0], -1)
        view = View(None, same_segment(segments_BP, segments_BP), None, Routing(real_BP))
        memory = Memory(x_BSD, mask_B1PS)
        y_BPD, _, aux = self.layer(queries_BPD, view, memory, Shared(), key)
        return self.norm(y_BPD), aux


class Attention(nnx.Module):
    """A softmax over the positions of a segment, scored by one learnt query."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, queries: int = 1):
        del queries  # of one vector all labels are told
        self.query = param(rngs, 'D', cfg, cfg.D**-0.5)

    def __call__(self, x_BSD, segments_BS, G, key=None) -> tuple[jax.Array, Aux]:
        query_D = jax.reshard(self.query[...], P())
        scores_BS = jnp.einsum('BSD,D->BS', x_BSD.astype(jnp.float32), query_D)
        return pooled(x_BSD, scores_BS, segments_BS, G), {}


class Mean(nnx.Module):
    """The mean over the positions of a segment."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs, queries: int = 1):
        del cfg, rngs, queries

    def __call__(self, x_BSD, segments_BS, G, key=None) -> tuple[jax.Array, Aux]:
        return pooled(x_BSD, jnp.zeros(()), segments_BS, G), {}


def pooled(x_BSD, scores_BS, segments_BS, G: int) -> jax.Array:
    """The states of each segment weighed by the softmax of their scores, [B, G, 1, D], float32."""
    mine_BGS = members(segments_BS, G)
    scores_BGS = jnp.where(mine_BGS, scores_BS[..., None, :] if scores_BS.ndim else 0.0, -1e9)
    p_BGS = jnp.where(mine_BGS, jax.nn.softmax(scores_BGS, -1), 0.0)
    return einsum('BGS,BSD->BGD', p_BGS, x_BSD.astype(jnp.float32))[:, :, None]


def members(segments_BS: jax.Array, G: int) -> jax.Array:
    """Which positions are whose: a mask [B, G, S]."""
    return segments_BS[:, None, :] == jnp.arange(1, G + 1)[:, None]


# Heads: `read` gives what a head tells of inputs, `judge` how far that is from what it should.


class Reader(nnx.Module):
    """A segment as vectors: from the states of one layer, in one of the ways of `POOLINGS`."""

    def __init__(self, cfg: ModelConfig, own: HeadConfig, rngs: nnx.Rngs):
        self.depth = own.depth
        if own.depth:
            self.norm = RMSNorm(cfg)
        default = 'mean' if own.kind == 'contrastive' else 'query'
        queries = len(own.labels) if own.kind == 'multi_label' else 1
        self.pool = POOLINGS[own.pooling or default](cfg, rngs, queries)

    def states(self, layers: Layers) -> jax.Array:
        x_BSD = layers.at(self.depth)
        return self.norm(x_BSD) if self.depth else x_BSD

    def __call__(self, layers, segments_BS, G, key=None) -> tuple[jax.Array, Aux]:
        return self.pool(self.states(layers), segments_BS, G, key)


class Classification(nnx.Module):
    """One of several labels for a segment; tells logits_BGO."""

    def __init__(self, cfg: ModelConfig, own: HeadConfig, rngs: nnx.Rngs):
        self.reader = Reader(cfg, own, rngs)
        self.kernel = param(rngs, 'DO', cfg, cfg.D**-0.5, O=len(own.labels))
        self.bias = param(rngs, 'O', cfg, 0.0, O=len(own.labels))

    def read(self, layers, segments_BS, G, key=None) -> tuple[jax.Array, Aux]:
        x_BGQD, aux = self.reader(layers, segments_BS, G, key)
        return linear(x_BGQD[:, :, 0], self.kernel, self.bias), aux

    def judge(self, logits_BGO, labels: 'Labels') -> Judged:
        label_BG = labels.columns_BGO[..., 0]
        return judged(*cross_entropy(logits_BGO, label_BG), label_BG >= 0)


class MultiLabel(nnx.Module):
    """Any of several labels for a segment, each with a query and a sigmoid; tells logits_BGO."""

    def __init__(self, cfg: ModelConfig, own: HeadConfig, rngs: nnx.Rngs):
        self.reader = Reader(cfg, own, rngs)
        self.kernel = param(rngs, 'OD', cfg, cfg.D**-0.5, O=len(own.labels))
        self.bias = param(rngs, 'O', cfg, 0.0, O=len(own.labels))

    def read(self, layers, segments_BS, G, key=None) -> tuple[jax.Array, Aux]:
        x_BGQD, aux = self.reader(layers, segments_BS, G, key)
        kernel_OD, bias_O = (jax.reshard(w[...], P()) for w in (self.kernel, self.bias))
        return jnp.sum(x_BGQD.astype(jnp.float32) * kernel_OD, -1) + bias_O, aux

    def judge(self, logits_BGO, labels: 'Labels') -> Judged:
        """The mean over labels of the binary cross entropy; right is the whole set."""
        wanted_BGO = labels.columns_BGO > 0
        nll_BGO = jax.nn.softplus(jnp.where(wanted_BGO, -logits_BGO, logits_BGO))
        correct_BG = jnp.all((logits_BGO > 0) == wanted_BGO, -1)
        return judged(jnp.mean(nll_BGO, -1), correct_BG, labels.columns_BGO[..., 0] >= 0)


class TokenLabels(nnx.Module):
    """A label for each word, told at its first token; a query for each position: its own state.

    Tells logits_BSO.
    """

    def __init__(self, cfg: ModelConfig, own: HeadConfig, rngs: nnx.Rngs):
        self.reader = Reader(cfg, own, rngs)
        self.kernel = param(rngs, 'DO', cfg, cfg.D**-0.5, O=len(own.labels))
        self.bias = param(rngs, 'O', cfg, 0.0, O=len(own.labels))

    def read(self, layers, segments_BS, G, key=None) -> tuple[jax.Array, Aux]:
        x_BSD, pool = self.reader.states(layers), self.reader.pool
        queries_BSD = x_BSD + jax.reshard(pool.query[...], P()).astype(x_BSD.dtype)
        y_BSD, aux = pool.answer(queries_BSD, segments_BS, x_BSD, segments_BS, key)
        return linear(y_BSD, self.kernel, self.bias), aux

    def judge(self, logits_BSO, labels: 'Labels') -> Judged:
        G = labels.columns_BGO.shape[1]
        nll_BS, correct_BS = cross_entropy(logits_BSO, labels.words_BS)
        told_BS = labels.words_BS >= 0
        mine_BGS = members(labels.segments_BS, G)
        return Judged(
            *(
                jnp.sum(jnp.where(mine_BGS & told_BS[:, None], x_BS[:, None], 0.0), -1)
                for x_BS in (nll_BS, correct_BS, jnp.ones_like(nll_BS))
            )
        )


class Contrastive(nnx.Module):
    """The embedding of a segment, of length 1 [B, G, D]: near that of its targets.

    The loss is that of multiple negatives (1705.00652, 4.4): of the targets of all segments of the
    batch, on all devices, the inputs are to find their own. A target of the same text is no
    negative.
    """

    def __init__(self, cfg: ModelConfig, own: HeadConfig, rngs: nnx.Rngs):
        self.own = own
        self.reader = Reader(cfg, own, rngs)

    def read(self, layers, segments_BS, G, key=None) -> tuple[jax.Array, Aux]:
        x_BGQD, aux = self.reader(layers, segments_BS, G, key)
        x_BGD = x_BGQD[:, :, 0].astype(jnp.float32)
        length_BG1 = jnp.sqrt(jnp.sum(jnp.square(x_BGD), -1, keepdims=True) + 1e-12)
        return x_BGD / length_BG1, aux

    def judge(self, embedded_BGD, labels: 'Labels') -> Judged:
        text_BG = labels.columns_BGO[..., 0]
        shared = labels.tasks_BG if self.own.negatives == 'task' else jnp.zeros_like(text_BG)
        temperature = self.own.temperature
        nll_BG, right_BG = multiple_negatives(
            embedded_BGD, labels.targets_BGD, text_BG, shared, temperature
        )
        return judged(nll_BG, right_BG, text_BG >= 0)


def multiple_negatives(
    inputs_BGD: jax.Array,
    targets_BGD: jax.Array,
    text_BG: jax.Array,
    group_BG: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """The loss [B, G] of finding the own targets among those of the batch, and what found them.

    Args:
      inputs_BGD, targets_BGD: embeddings of length 1.
      text_BG: a number for the text of each target, below 0 where there is none.
      group_BG: only targets of the same group are set against each other.
    """
    B, G = text_BG.shape
    row_BG = jax.lax.broadcasted_iota(jnp.int32, (B, G), 0, out_sharding=P(BATCH))
    place_BG = row_BG * G + jnp.arange(G)
    # Every device has the targets of all, in axes b and g, and its own rows of inputs.
    targets_bgD, text_bg, group_bg, place_bg = (
        jax.reshard(x, P()) for x in (targets_BGD, text_BG, group_BG, place_BG)
    )
    scores_BGbg = jnp.einsum('BGD,bgD->BGbg', inputs_BGD, targets_bgD) / temperature

    def pairs(of_BG, of_bg):
        return of_BG[..., None, None] == of_bg

    own_BGbg = pairs(place_BG, place_bg)
    against_BGbg = (text_bg >= 0) & pairs(group_BG, group_bg) & ~pairs(text_BG, text_bg)
    own_BG = jnp.sum(inputs_BGD * targets_BGD, -1) / temperature
    others_BGbg = jnp.where(against_BGbg & ~own_BGbg, scores_BGbg, -jnp.inf)
    best_BG = jnp.max(others_BGbg, (-2, -1))
    scores_BGbg = jnp.where(own_BGbg, own_BG[..., None, None], others_BGbg)
    return jax.nn.logsumexp(scores_BGbg, (-2, -1)) - own_BG, own_BG > best_BG


def linear(x_BTD: jax.Array, kernel_DO: Any, bias_O: Any) -> jax.Array:
    """Logits in float32."""
    y_BTO = einsum('BTD,DO->BTO', x_BTD.astype(jnp.float32), kernel_DO)
    return y_BTO + jax.reshard(bias_O[...], P())


def cross_entropy(logits_BTO: jax.Array, label_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss of each label in nats, and whether it has the highest logit."""
    hot_BTO = label_BT[..., None] == jnp.arange(logits_BTO.shape[-1])
    picked_BT = jnp.sum(jnp.where(hot_BTO, logits_BTO, 0.0), -1)
    nll_BT = jax.nn.logsumexp(logits_BTO, -1) - picked_BT
    return nll_BT, (picked_BT >= jnp.max(logits_BTO, -1)).astype(jnp.float32)


def judged(nll_BG, correct_BG, there_BG) -> Judged:
    return Judged(
        *(jnp.where(there_BG, x.astype(jnp.float32), 0.0) for x in (nll_BG, correct_BG, there_BG))
    )


class Labels(NamedTuple):
    """What a head is taught by: its columns of the batch, and what else its kind needs."""

    columns_BGO: jax.Array
    words_BS: jax.Array | None
    segments_BS: jax.Array
    tasks_BG: jax.Array
    targets_BGD: jax.Array | None = None


class Heads(nnx.Module):
    """The heads of a model by name."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        for own in cfg.heads:
            setattr(self, own.name, HEADS[own.kind](cfg, own, rngs))


def needs_layers(cfg: ModelConfig) -> bool:
    """Whether a head reads below the top, so that the encoder must show its layers."""
    return any(own.depth for own in cfg.heads)


def layers_of(top_BSD: jax.Array, aux: Aux) -> tuple[Layers, Aux]:
    """What the encoder gave, apart from what it reports."""
    aux = dict(aux)
    return Layers(top_BSD, aux.pop('states', None)), aux


def teach(
    model: Any, layers: Layers, batch: Mapping[str, jax.Array], key: jax.Array | None
) -> dict[str, Aux]:
    """The losses and figures of a model's heads on a batch, as reports of one layer each.

    model: has `cfg`, `heads`, and `look(tokens, segments, tasks, key)` -> (Layers, Aux).
    batch: holds 'segment_labels' [B, G, O], the columns of all heads one after the other, and with
      a head that labels words 'token_labels' [B, S, heads of that kind].
    """
    heads = model.cfg.heads
    columns_BGO, segments_BS = batch['segment_labels'], batch['encoder_segment_ids']
    tasks_BG, G = batch['segment_task_ids'], columns_BGO.shape[1]
    keys = [None] * (len(heads) + 1) if key is None else jax.random.split(key, len(heads) + 1)
    reports, sums, first, word = {}, 0.0, 0, 0
    if any(own.kind == 'contrastive' for own in heads):
        segments_BT = batch['decoder_segment_ids']
        targets, more = model.look(batch['decoder_target_tokens'], segments_BT, tasks_BG, keys[-1])
        reports['targets'] = {name: x for name, x in more.items() if name != 'routing'}
    for own, key in zip(heads, keys):
        head, words_BS, targets_BGD = getattr(model.heads, own.name), None, None
        told, aux = head.read(layers, segments_BS, G, key)
        mine_BGO = columns_BGO[..., first : first + own.columns]
        first += own.columns
        if own.kind == 'token_labels':
            words_BS, word = batch['token_labels'][..., word], word + 1
        if own.kind == 'contrastive':
            targets_BGD, _ = head.read(targets, segments_BT, G, key)
        labels = Labels(mine_BGO, words_BS, segments_BS, tasks_BG, targets_BGD)
        found = head.judge(told, labels)
        reports[f'heads/{own.name}'] = _report(own, found, mine_BGO[..., 0]) | {
            name: x[None] for name, x in aux.items()
        }
        sums = sums + jnp.stack(found, -1)
    if model.cfg.kind == 'encoder':
        reports['heads'] = dict(segments=sums)
    return reports


def _report(own: HeadConfig, found: Judged, told_BG: jax.Array) -> Aux:
    nll, correct, count = (jnp.sum(x) for x in found)
    most = jnp.maximum(count, 1.0)
    ours = jnp.sum(told_BG != NOT_OURS)
    labelled = jnp.sum(told_BG >= 0) / jnp.maximum(ours, 1)
    return {
        f'loss/heads/{own.name}': own.weight * nll[None] / most,
        f'heads/{own.name}/accuracy': correct[None] / most,
        f'heads/{own.name}/labelled': labelled[None].astype(jnp.float32),
    }


def told(model: Any, tokens_BS, segments_BS, tasks_BG, G: int) -> dict[str, jax.Array]:
    """What each head tells of inputs, without dropout."""
    layers, _ = look(model, tokens_BS, segments_BS, tasks_BG, None, alone=True)
    return {
        own.name: getattr(model.heads, own.name).read(layers, segments_BS, G)[0]
        for own in model.cfg.heads
    }


def look(
    model: Any, tokens_BS, segments_BS, tasks_BG, key, alone: bool | None = None
) -> tuple[Layers, Aux]:
    """Reads a text with a model's encoder, for heads."""
    [x_BSD] = model.embeds(tokens_BS)
    keys = [None] * 2 if key is None else jax.random.split(key)
    task_BGX = model.represented(x_BSD, segments_BS, tasks_BG, keys[1])
    routing = of_tokens(segments_BS, tasks_BG, task_BGX, alone)
    view = model.encoder.view(segments_BS, routing)
    deep = needs_layers(model.cfg)
    return layers_of(*model.encoder(x_BSD, view, key=keys[0], all_layers=deep))


POOLINGS = dict(query=Query, attention=Attention, mean=Mean)
HEADS = dict(
    classification=Classification,
    multi_label=MultiLabel,
    token_labels=TokenLabels,
    contrastive=Contrastive,
)
