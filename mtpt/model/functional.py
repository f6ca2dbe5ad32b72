"""A model as functions of a plain tree of parameters, whatever its kind.

`init` makes the tree, `apply` gives logits, `encode` and `decode` are its halves, `start` and
`step` decode position by position, `dims` tells what the axes of every leaf mean. All but `dims`
run under a mesh that the caller has set.

B row  S encoder position  T decoder position  G segments of a row  D model width  V vocabulary
N layers of a stack
"""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mtpt.mesh import AXES, require_mesh, rows
from mtpt.model.config import ModelConfig
from mtpt.model.encoder_decoder import Cache, Encoded, EncoderDecoder
from mtpt.model.encoder_only import EncoderOnly
from mtpt.model.layers import Aux
from mtpt.model.prefix_lm import PrefixLM

Params = dict[str, Any]

KINDS = dict(encoder_decoder=EncoderDecoder, prefix_lm=PrefixLM, encoder=EncoderOnly)


def init(cfg: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters, split over the mesh that is set; the same numbers on every mesh."""
    require_mesh()
    return nnx.to_pure_dict(nnx.split(KINDS[cfg.kind](cfg, nnx.Rngs(params=key)))[1])


@functools.lru_cache(maxsize=64)
def _declared(cfg: ModelConfig) -> tuple[nnx.GraphDef, Params]:
    """The module without its arrays, and the letters of its leaves; needs no memory, no device."""
    current = jax.sharding.get_abstract_mesh()
    one = jax.sharding.AbstractMesh(
        (1,) * len(AXES), AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES)
    )
    with jax.sharding.use_abstract_mesh(one) if current.empty else contextlib.nullcontext():
        graph, state = jax.eval_shape(
            lambda: nnx.split(KINDS[cfg.kind](cfg, nnx.Rngs(params=jax.random.key(0))))
        )

    def letters(leaf):
        return 'N' * (leaf.ndim - len(leaf.dims)) + leaf.dims

    dims = jax.tree.map(letters, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return graph, nnx.to_pure_dict(dims)


def dims(cfg: ModelConfig) -> Params:
    """A tree like the parameters whose leaves are the letters of their axes: 'NDHK'."""
    return jax.tree.map(lambda x: x, _declared(cfg)[1])


def module(cfg: ModelConfig, params: Params) -> nnx.Module:
    """The model that holds these parameters."""
    require_mesh()
    return nnx.merge(_declared(cfg)[0], params)


def encode(
    cfg: ModelConfig,
    params: Params,
    tokens_BS: jax.Array,
    segments_BS: jax.Array,
    tasks_BG: jax.Array | None = None,
) -> Encoded:
    """The inputs read, without dropout.

    tasks_BG: the task of each segment; without it, or where 0, a task that is not known.
    """
    tokens_BS, segments_BS = rows(tokens_BS), rows(segments_BS)
    tasks_BG = jnp.zeros_like(segments_BS[:, :1]) if tasks_BG is None else rows(tasks_BG)
    return module(cfg, params).encode(tokens_BS, segments_BS, tasks_BG)


def decode(
    cfg: ModelConfig,
    params: Params,
    encoded: Encoded,
    decoder_input_tokens_BT: jax.Array,
    decoder_segments_BT: jax.Array,
) -> jax.Array:
    """Logits_BTV in float32 for inputs that were read, without dropout."""
    encoded = jax.tree.map(rows, encoded)
    tokens_BT, segments_BT = rows(decoder_input_tokens_BT), rows(decoder_segments_BT)
    return module(cfg, params).decode(encoded, tokens_BT, segments_BT)


def start(cfg: ModelConfig, params: Params, encoded: Encoded, T: int) -> Cache:
    """An empty cache for T positions of decoding from these inputs, one example a row."""
    return module(cfg, params).start(encoded, T)


def step(
    cfg: ModelConfig, params: Params, cache: Cache, tokens_B: jax.Array
) -> tuple[jax.Array, Cache]:
    """Feeds one token a row; gives the logits_BV of the next and the cache that remembers it."""
    return module(cfg, params).step(cache, rows(tokens_B))


def apply(
    cfg: ModelConfig,
    params: Params,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
) -> tuple[jax.Array, Aux]:
    """Logits_BTV in float32 for a batch, and a dict of what else the layers report.

    Args:
      cfg: a resolved config.
      params: the tree that `init` made.
      batch: at least the tokens and segment ids of both sides; `segment_task_ids` for models that
        route by task.
      key: for dropout and routing noise; None means evaluation.

    A model with heads teaches them where the batch holds 'segment_labels'. Without a decoder its
    logits are None, and 'segments' [B, G, 3] are the sums of its heads: losses, right, labels.

    Returns:
      Beside the logits, means over the layers that report; entries 'loss/*' are terms of the
      objective, 'routing/*' are not averaged: [N, M + 1, E] tokens by layer, task and expert.
    """
    batch = {name: rows(x) for name, x in batch.items()}
    logits_BTV, reports = module(cfg, params)(batch, key)
    return logits_BTV, averaged(reports)


def told(
    cfg: ModelConfig,
    params: Params,
    tokens_BS: jax.Array,
    segments_BS: jax.Array,
    tasks_BG: jax.Array | None = None,
    segments: int = 1,
) -> dict[str, jax.Array]:
    """What each head tells of inputs, without dropout, by the head's name.

    Logits in float32 [B, G, O] of 'classification' and 'multi_label', [B, S, O] of 'token_labels';
    of 'contrastive' embeddings of length 1 [B, G, D]. G is `segments`: how many a row has at most.
    """
    tokens_BS, segments_BS = rows(tokens_BS), rows(segments_BS)
    tasks_BG = jnp.zeros_like(segments_BS[:, :segments]) if tasks_BG is None else rows(tasks_BG)
    return module(cfg, params).told(tokens_BS, segments_BS, tasks_BG, segments)


def averaged(reports: Mapping[str, Aux]) -> Aux:
    """One dict of the reports of all stacks: means over layers, and routing by stack."""
    found: dict[str, list[jax.Array]] = {}
    routing = {}
    for stack, report in reports.items():
        for name, x in report.items():
            if name == 'routing':
                routing[f'routing/{stack}'] = x
            elif name.startswith('finite/'):
                routing[f'finite/{stack}/{name.removeprefix("finite/")}'] = x
            elif name == 'segments':
                routing[name] = x
            else:
                found.setdefault(name, []).append(x)
    return {name: jnp.mean(jnp.concatenate(x), axis=0) for name, x in found.items()} | routing
