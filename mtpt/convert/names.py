"""What other libraries call the parameters of a model, and how they lay them out.

A leaf of ours holds the layers of a stack, and in sparse ones the experts, along leading axes;
elsewhere a layer's weight, or an expert's, is a tensor of its own. `places` lists those parts;
`hugging_face` and `t5x` say what each is called there.

V vocabulary  D model width  H heads  K head width  F hidden width  U buckets  E experts
N layers of a stack
"""

import functools
import itertools
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mtpt.config import UserError
from mtpt.mesh import AXES
from mtpt.model import functional
from mtpt.model.blocks import kinds, period
from mtpt.model.config import ModelConfig
from mtpt.trees import flatten, unflatten


class Place(NamedTuple):
    """A part of a leaf of ours that is a tensor of its own elsewhere.

    path, index: the leaf, and where along its leading axes; shape: of the part; inputs: how many
    of its axes are those that a kernel sums over, 0 where it is no kernel.
    stack: 'encoder', 'decoder' or '' outside of the layers; layer, expert: their numbers; inner:
    the path inside the layer, or the whole path.
    """

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    inputs: int
    stack: str
    layer: int
    expert: int
    inner: str


@functools.lru_cache(maxsize=16)
def shapes(cfg: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter of a model, by path; nothing is computed."""
    explicit = (jax.sharding.AxisType.Explicit,) * len(AXES)
    mesh = jax.sharding.AbstractMesh((1,) * len(AXES), AXES, axis_types=explicit)
    with jax.sharding.use_abstract_mesh(mesh):
        tree = jax.eval_shape(lambda: functional.init(cfg, jax.random.key(0)))
    return types.MappingProxyType({path: tuple(x.shape) for path, x in flatten(tree).items()})


@functools.lru_cache(maxsize=16)
def places(cfg: ModelConfig) -> tuple[Place, ...]:
    """The parts of every leaf of a model, leaf by leaf."""
    letters = flatten(functional.dims(cfg))
    parts = (_parts(cfg, path, size, letters[path]) for path, size in shapes(cfg).items())
    return tuple(itertools.chain.from_iterable(parts))


def _parts(cfg: ModelConfig, path: str, shape: tuple[int, ...], dims: str) -> Iterator[Place]:
    found = re.fullmatch(r'(encoder|decoder)/layers/(?:(\d+)/)?(.+)', path)
    stack, block, inner = found.groups() if found else ('', None, path)
    # Experts lie one by one; in the router's kernel [D, E] they are outputs.
    lead = len(re.match('N?E?', dims)[0])
    dims, inputs = dims[lead:], 0
    if len(dims) > 1 and 'embedding' not in inner and 'bias' not in inner:
        inputs = len(dims) - 1 if dims[-1] == 'D' else 1
    stride = period(kinds(cfg, stack == 'decoder')) if found else 1
    for index in np.ndindex(*shape[:lead]):
        layer = index[0] * stride + int(block or 0) if found else -1
        expert = index[1] if lead == 2 else -1
        yield Place(path, index, shape[lead:], inputs, stack, layer, expert, inner)


def hugging_face(cfg: ModelConfig, place: Place) -> str:
    """What Hugging Face's T5, mT5 and Switch models call a tensor.

    Raises:
      UserError: they have nothing of the kind.
    """
    last = 2 if place.stack == 'decoder' else 1
    mlp = f'layer.{last}.' + ('mlp' if cfg.moe.E else 'DenseReluDense')
    inside = {
        'attention_norm/scale': 'layer.0.layer_norm',
        'cross_norm/scale': 'layer.1.layer_norm',
        'mlp_norm/scale': f'layer.{last}.layer_norm',
        'mlp/gate': f'{mlp}.wi_0',
        'mlp/up': f'{mlp}.wi_1' if _gated(cfg) else f'{mlp}.wi',
        'mlp/down': f'{mlp}.wo',
        'moe/router/kernel': f'{mlp}.router.classifier',
        'moe/up': f'{mlp}.experts.expert_{place.expert}.wi',
        'moe/down': f'{mlp}.experts.expert_{place.expert}.wo',
        **{f'attention/{x}': f'layer.0.SelfAttention.{x}' for x in 'qkvo'},
        **{f'cross/{x}': f'layer.1.EncDecAttention.{x}' for x in 'qkvo'},
    }
    bias = 'block.0.layer.0.SelfAttention.relative_attention_bias'
    outside = {'token_embedding': 'shared', 'logits/kernel': 'lm_head'}
    for stack in ('encoder', 'decoder'):
        outside |= {f'{stack}/relative_bias': f'{stack}.{bias}'}
        outside |= {f'{stack}/norm/scale': f'{stack}.final_layer_norm'}
    name = (inside if place.stack else outside).get(place.inner)
    if name is None:
        raise UserError(f'Hugging Face has no place for {place.path} in a model of this kind')
    return f'{place.stack}.block.{place.layer}.{name}.weight' if place.stack else f'{name}.weight'


def t5x(cfg: ModelConfig, place: Place, scanned: bool) -> tuple[str, tuple[Any, ...]]:
    """What T5X's and Flaxformer's checkpoints call a tensor, and where in it the part is.

    scanned: whether the layers of a stack lie along axis 1 of one tensor.

    Raises:
      UserError: they have nothing of the kind.
    """
    own = 'self_attention' if place.stack == 'decoder' else 'attention'
    words = dict(q='query', k='key', v='value', o='out')
    inside = {
        'attention_norm/scale': f'pre_{own}_layer_norm/scale',
        'cross_norm/scale': 'pre_cross_attention_layer_norm/scale',
        'mlp_norm/scale': 'pre_mlp_layer_norm/scale',
        'mlp/gate': 'mlp/wi_0/kernel',
        'mlp/up': 'mlp/wi_1/kernel' if _gated(cfg) else 'mlp/wi/kernel',
        'mlp/down': 'mlp/wo/kernel',
        'moe/router/kernel': 'mlp/router/router_weights/w/kernel',
        'moe/gate': 'mlp/expert/wi_0/kernel',
        'moe/up': 'mlp/expert/wi_1/kernel' if _gated(cfg) else 'mlp/expert/wi/kernel',
        'moe/down': 'mlp/expert/wo/kernel',
        **{f'attention/{x}': f'{own}/{word}/kernel' for x, word in words.items()},
        **{f'cross/{x}': f'encoder_decoder_attention/{w}/kernel' for x, w in words.items()},
    }
    outside = {
        'token_embedding': 'token_embedder/embedding',
        'logits/kernel': 'decoder/logits_dense/kernel',
    }
    for stack in ('encoder', 'decoder'):
        outside |= {f'{stack}/relative_bias': f'{stack}/relpos_bias/rel_embedding'}
        outside |= {f'{stack}/norm/scale': f'{stack}/{stack}_norm/scale'}
    name = (inside if place.stack else outside).get(place.inner)
    if name is None:
        raise UserError(f'T5X has no place for {place.path} in a model of this kind')
    if not place.stack:
        return name, ()
    if scanned:
        return f'{place.stack}/{place.stack}/{name}', (slice(None), place.layer)
    index = () if place.expert < 0 else (place.expert,)
    return f'{place.stack}/layers_{place.layer}/{name}', index


def _gated(cfg: ModelConfig) -> bool:
    return cfg.mlp.endswith('glu')


def linear_shape(place: Place) -> tuple[int, ...]:
    """The shape in which PyTorch holds a part: [outputs, inputs] of a kernel, else as it is."""
    if not place.inputs:
        return place.shape
    size = [
        int(np.prod(part)) for part in (place.shape[place.inputs :], place.shape[: place.inputs])
    ]
    return tuple(size)


def from_linear(place: Place, x: Any) -> Any:
    """Our layout of what PyTorch holds; a view of it."""
    if not place.inputs:
        return x
    ins, outs = place.shape[: place.inputs], place.shape[place.inputs :]
    axes = [*range(len(outs), len(place.shape)), *range(len(outs))]
    return x.reshape(*outs, *ins).transpose(axes)


def to_linear(place: Place, x: Any) -> Any:
    """The inverse of `from_linear`; a view where it can be one."""
    return x.reshape(linear_shape(place)[::-1]).T if place.inputs else x


def from_t5x(place: Place, x: Any) -> Any:
    """Our layout of what T5X holds: heads may be joined there, and bias tables are transposed."""
    x = x.T if place.inner.endswith('relative_bias') else x
    return x.reshape(place.shape)


def tree_of(cfg: ModelConfig, read: Callable[[str], np.ndarray]) -> dict[str, Any]:
    """The parameters of a model, as NumPy arrays, from Hugging Face's by name.

    For models that fit into memory; what is like parameters (gradients, say) converts alike.
    """
    found: dict[str, np.ndarray] = {}
    for path, size in shapes(cfg).items():
        found[path] = np.empty(size, np.float32)
    for place in places(cfg):
        found[place.path][place.index] = from_linear(
            place, np.asarray(read(hugging_face(cfg, place)))
        )
    return unflatten(found)


def from_hugging_face(state: Mapping[str, np.ndarray], cfg: ModelConfig) -> dict[str, Any]:
    """The parameters of a model from the state dict of a small one of Hugging Face's."""
    return tree_of(cfg, state.__getitem__)
