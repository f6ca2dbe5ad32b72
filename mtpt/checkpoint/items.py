"""What of a state stands in a checkpoint: nested dicts of arrays, and values that JSON has."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mtpt.trees import flatten, unflatten


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_data(x: Any) -> Any:
    """The numbers of a random key, abstract or not."""
    if isinstance(x, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)
    return jax.random.key_data(x)


def _paths(state: Any) -> tuple[dict[str, Any], Any]:
    leaves, tree = jax.tree_util.tree_flatten_with_path(state._replace(params=None))
    return {jax.tree_util.keystr(p, simple=True, separator='/'): x for p, x in leaves}, tree


def rest_of(state: Any) -> dict[str, Any]:
    """All of the state but the parameters, as a nested dict; random keys as their numbers."""
    flat, _ = _paths(state)
    return unflatten({path: _key_data(x) if _is_key(x) else x for path, x in flat.items()})


def joined(stored: Mapping[str, Any], abstract: Any) -> Any:
    """The inverse of `rest_of`."""
    flat, tree = _paths(abstract)
    found = flatten(stored)
    leaves = [
        jax.random.wrap_key_data(found[path]) if _is_key(x) else found[path]
        for path, x in flat.items()
    ]
    return jax.tree.unflatten(tree, leaves)


def restoring(abstract: Any) -> Any:
    """How Orbax is asked for arrays as `abstract` lays them out."""
    args = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=args)


def plain(value: Any) -> Any:
    """A JSON-ready copy: numpy arrays become lists and numpy numbers Python's."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    return value
