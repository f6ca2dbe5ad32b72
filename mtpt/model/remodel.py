"""Parameters of one model turned into those of another: fewer key/value heads, experts, MoH.

A stack's parameters lie as its repeating pattern has them (`blocks.period`). `unstack` gives the
tree of each layer, `restack` lays such trees out again.

N layers of a stack  R repeats of the pattern  D model width  H heads  J key/value heads
K head width  F hidden width  E experts
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtpt.config import UserError
from mtpt.model import functional
from mtpt.model.blocks import kinds, period
from mtpt.model.config import ModelConfig
from mtpt.model.parts import routers
from mtpt.trees import flatten, unflatten

Params = dict[str, Any]


def unstack(cfg: ModelConfig, layers: Mapping[str, Any], cross: bool) -> list[Params]:
    """The parameters of each layer, in order, from a stack's subtree `layers`.

    Args:
      cfg: the resolved config of the model.
      layers: `params['decoder']['layers']` (`cross`) or `params['encoder']['layers']`: a tree of
        arrays [N, ...] where all layers are alike, else trees '0', '1', ... of arrays [R, ...].

    Returns:
      N nested dicts such as dict(attention=dict(q=...), mlp=dict(up=...)); of NumPy arrays they are
      views, nothing is copied.
    """
    of = kinds(cfg, cross)
    p = period(of)
    blocks = [layers] if p == 1 else [layers[str(j)] for j in range(p)]
    return [jax.tree.map(lambda x, i=i: x[i // p], blocks[i % p]) for i in range(len(of))]


def restack(cfg: ModelConfig, layers: Sequence[Mapping[str, Any]], cross: bool) -> Params:
    """The inverse of `unstack`: the subtree `layers` of a model of `cfg`, from its layers' trees.

    Raises:
      ValueError: not as many layers as the config has, or layers at the same place of the pattern
        that differ in what they hold.
    """
    of = kinds(cfg, cross)
    p = period(of)
    if len(layers) != len(of):
        raise ValueError(f'{len(layers)} layers do not make a stack of {len(of)}')
    blocks = [jax.tree.map(_stacked, *map(dict, layers[j::p])) for j in range(p)]
    return blocks[0] if p == 1 else {str(j): block for j, block in enumerate(blocks)}


def _stacked(*arrays: Any) -> Any:
    return np.stack(arrays) if isinstance(arrays[0], np.ndarray) else jnp.stack(arrays)


def remodel(
    params: Mapping[str, Any], old: ModelConfig, new: ModelConfig, key: jax.Array
) -> tuple[Params, list[str]]:
    """The parameters of a model of `old` as those of one of `new`, ready to go on training.

    What `carried` cannot make of the old ones is fresh, drawn with `key`. Runs under the mesh that
    is set.

    Raises:
      UserError: the models differ in more than `carried` can bridge.
    """
    for letter, size in new.letters.items():
        if letter in 'VDHKFU' and size != old.letters[letter]:
            raise UserError(
                f'the old model has {letter}={old.letters[letter]} and the new one '
                f'{letter}={size}; give the models the same sizes'
            )
    fresh = jax.jit(functional.init, static_argnums=0)(new, key)
    found, notes = carried(jax.device_get(params), old, new, fresh)
    flat, taken = flatten(fresh), flatten(found)
    for path in taken.keys() & flat.keys():
        flat[path] = jax.device_put(taken[path].reshape(flat[path].shape), flat[path].sharding)
    return unflatten(flat), notes


def carried(
    params: Mapping[str, Any], old: ModelConfig, new: ModelConfig, fresh: Mapping[str, Any]
) -> tuple[Params, list[str]]:
    """The parameters of a model of `new` that follow from those of one of `old`.

    - fewer key/value heads: the mean over the heads that become one (GQA, 2305.13245, 2.1); more:
      copies, which changes nothing that the model says;
    - keys and values for several layers (CLA): the mean over those layers', as MLKV (2406.09297)
      merges them; fewer layers: copies, which in cross-attention changes nothing;
    - routed heads (MoH): the same heads; the router is fresh, or has no weights ('query');
    - experts where the old layer is dense (sparse upcycling, 2212.05055): each is a copy of its
      MLP, the router is fresh. With shared experts s, every expert is divided by 1 + s, so that
      all together are the old MLP where gates sum to 1.

    Args:
      params: NumPy arrays; what is not in a stack of layers is passed on.
      old, new: resolved configs.
      fresh: parameters of a model of `new`, of which values are only taken for layers that have
        none, in a leaf where others have.

    Returns:
      A tree that lacks the leaves that are to stay fresh, and sentences on what became of what.

    Raises:
      UserError: key/value heads that cannot become the new ones, experts of another width.
    """
    if (old.D, old.H, old.K, old.F) != (new.D, new.H, new.K, new.F):
        return dict(params), []  # another size: shapes will tell
    tree, notes = dict(params), []
    for stack, cross in dict(encoder=False, decoder=True).items():
        count = f'{stack}_layers'
        if stack not in params or stack not in fresh or getattr(old, count) != getattr(new, count):
            continue
        if _signature(old, cross) != _signature(new, cross):
            layers = unstack(old, params[stack]['layers'], cross)
            layers = _converted(layers, old, new, cross, notes)
            laid = _completed(new, layers, fresh[stack]['layers'], cross)
            tree[stack] = dict(params[stack]) | dict(layers=laid)
    return tree, list(dict.fromkeys(notes))


def _signature(cfg: ModelConfig, cross: bool) -> Any:
    """All that the parameters of a stack's layers depend on, besides sizes."""
    places = ('decoder', 'cross') if cross else ('encoder',)
    own = [getattr(cfg, f'{place}_attention') for place in places]
    experts = (cfg.moe.E, cfg.moe.F, cfg.moe.shared, _router(cfg, cross)) if cfg.moe.E else ()
    return kinds(cfg, cross), own, experts


def _router(cfg: ModelConfig, cross: bool) -> str:
    return routers(cfg).get('decoder' if cross else 'encoder', '')


def _converted(layers, old, new, cross, notes):
    """Each layer's tree as the new model has it."""
    stack = 'decoder' if cross else 'encoder'
    found = [dict(layer) for layer in layers]
    for name, place in dict(attention=stack, cross='cross').items():
        if name in layers[0]:
            for i, layer in enumerate(found):
                layer[name] = _attention(layers, i, name, place, old, new, notes)
    sparse = [i for i, kind in enumerate(kinds(new, cross)) if kind.sparse and 'mlp' in layers[i]]
    for i in sparse:
        found[i]['moe'] = _upcycled(found[i].pop('mlp'), new)
    was, now = _router(old, cross), _router(new, cross)
    kept = [i for i, kind in enumerate(kinds(new, cross)) if kind.sparse and 'moe' in layers[i]]
    if was != now and kept:
        for i in kept:
            found[i]['moe'] = {n: x for n, x in found[i]['moe'].items() if n != 'router'}
        notes.append(f'{stack}: the router {now!r} is fresh; {was!r} was another')
    if sparse:
        numbers = ', '.join(map(str, sparse))
        notes.append(
            f'the MLP of layer {numbers} of the {stack} becomes {new.moe.E} experts that are '
            f'copies of it, with the router {now!r}'
        )
        if not new.moe.normalise and now in ('top_k', 'task_aware', 'expert_choice'):
            notes.append(
                'the gates of the copies sum to less than 1, so the model does not begin where the '
                'dense one ended; model.moe.normalise=True would have it so'
            )
    return found


def _attention(layers, i, name, place, old, new, notes):
    """An attention of layer i: the same heads, and the keys and values that the new one has."""
    was, now = (getattr(cfg, f'{place}_attention') for cfg in (old, new))
    found = {part: x for part, x in layers[i][name].items() if part not in 'kv'}
    routed = [(a.routed_heads, a.routed_heads and a.head_router) for a in (was, now)]
    if routed[0] != routed[1]:
        found.pop('gates', None)
        router = 'a fresh router' if now.head_router == 'learnt' else 'the norms of their queries'
        kept = f'are chosen by {router}' if now.routed_heads else 'are always all used'
        notes.append(f'{place}_attention: {now.routed_heads or new.H} of {new.H} heads {kept}')
    if i % now.kv_layers:
        return found
    sharing = range(i, min(i + now.kv_layers, len(layers)))
    makers = [j - j % was.kv_layers for j in sharing]
    if len(set(makers)) > 1:
        notes.append(
            f'{place}_attention: keys and values are the mean of those of {now.kv_layers} layers'
        )
    if i % was.kv_layers and len(set(makers)) == 1:
        notes.append(f'{place}_attention: layers without keys and values get those they used')
    J = now.kv_heads or new.H
    for part in 'kv':
        each = [layers[j][name][part] for j in makers]
        x_DJK = each[0] if len(set(makers)) == 1 else sum(each) / np.float32(len(each))
        if x_DJK.shape[1] != J:
            notes.append(f'{place}_attention: {x_DJK.shape[1]} key/value heads become {J}')
        found[part] = _regrouped(x_DJK, J, place)
    return found


def _regrouped(x_DJK: Any, J: int, place: str) -> Any:
    """Keys' or values' weights for J heads: means over neighbours, or copies of each."""
    D, was, K = x_DJK.shape
    if was % J == 0:
        return x_DJK.reshape(D, J, was // J, K).mean(2) if was != J else x_DJK
    if J % was == 0:
        return x_DJK.repeat(J // was, axis=1)
    raise UserError(
        f'{was} key/value heads of model.{place}_attention do not become kv_heads={J}; choose a '
        f'divisor or a multiple of {was}'
    )


def _upcycled(mlp: Mapping[str, Any], cfg: ModelConfig) -> Params:
    """Experts that are copies of an MLP: with a leading axis E, the shared ones side by side."""
    E, F, shared = cfg.moe.E, cfg.moe.F, cfg.moe.shared
    if mlp['up'].shape[1] != F:
        raise UserError(
            f'an MLP of width {mlp["up"].shape[1]} does not become experts of model.moe.F={F}; set '
            f'model.moe.F={mlp["up"].shape[1]}'
        )
    mlp = dict(mlp) | dict(down=mlp['down'] / np.float32(1 + shared))
    found = {part: np.repeat(x[None], E, axis=0) for part, x in mlp.items()}
    if shared:
        side_by_side = dict(down=(shared, 1))
        found['shared'] = {p: np.tile(x, side_by_side.get(p, (1, shared))) for p, x in mlp.items()}
    return found


def _completed(cfg, layers, fresh, cross):
    """The layers laid out as the model has them, without the leaves that none of them has.

    Where only some of a stacked leaf's layers have it, the others' values are fresh.
    """
    p, flat = period(kinds(cfg, cross)), [flatten(x) for x in layers]
    for j in range(p):
        news = flatten(fresh if p == 1 else fresh[str(j)])
        some = {path for layer in flat[j::p] for path in layer} & news.keys()
        for i in range(j, len(flat), p):
            missing = {path: np.asarray(news[path])[i // p] for path in some - flat[i].keys()}
            flat[i] = {path: x for path, x in flat[i].items() if path in some} | missing
    return restack(cfg, [unflatten(x) for x in flat], cross)
