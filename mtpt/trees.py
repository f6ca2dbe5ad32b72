"""Nested dicts of arrays by path: 'encoder/layers/attention/q'."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtpt.config import UserError, nearest


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """From a nested dict to {path: leaf}, in the order of the tree; empty dicts vanish."""
    flat = {}
    for name, value in tree.items():
        path = f'{prefix}{name}'
        if isinstance(value, Mapping):
            flat.update(flatten(value, path + '/'))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split('/')
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def select(tree: Mapping[str, Any], patterns: str | Iterable[str]) -> dict[str, Any]:
    """The nested dict of those leaves whose path matches any of the globs; `*` crosses slashes.

    Raises:
      UserError: a pattern that matches nothing.
    """
    flat = flatten(tree)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in flat):
            raise UserError(f'pattern {pattern!r} matches no parameter; {nearest(pattern, flat)}')
    return unflatten(
        {p: x for p, x in flat.items() if any(fnmatch.fnmatchcase(p, g) for g in patterns)}
    )


def map_with_path(
    fn: Callable[..., Any], tree: Mapping[str, Any], *rest: Mapping[str, Any]
) -> dict:
    """`fn(path, leaf, *leaves of the rest)` over every leaf."""
    others = [flatten(other) for other in rest]
    return unflatten({p: fn(p, x, *[o[p] for o in others]) for p, x in flatten(tree).items()})


def count(tree: Any) -> int:
    """How many numbers the leaves hold; abstract leaves count too."""
    return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(tree))


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm over all leaves, in float32."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.float32(0)))
