"""One matrix product a group of rows, each group with a matrix of its own, by platform.

`jax.lax.ragged_dot` says just this, but on a CPU and on NVIDIA GPUs (jaxlib 0.10) it multiplies
every row by every matrix, and on TPUs its gradient for the matrices does. So each platform gets
what is flat in the number of groups there: on a CPU a loop over blocks of rows, on NVIDIA GPUs all
blocks at once with the matrices that they need, on TPUs Megablox's kernels (2211.15841), elsewhere
`ragged_dot`.

P rows, sorted by group  E groups (experts)  D, F widths  Q rows of a block  L blocks
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOOP_ROWS = 64  # of a block on a CPU: large enough for its caches, small beside most groups
BATCH_ROWS = (64, 512)  # least and most rows of a block on a GPU
TILE = 512  # of Megablox


@jax.custom_vjp
def grouped_matmul(x_PD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """PF: rows times the matrix of their group; zeros for rows after the last group's.

    sizes_E: rows of each group, int32; they may add up to less than P.
    """
    return _forward(x_PD, w_EDF, sizes_E)


def _keep(x_PD, w_EDF, sizes_E):
    return _forward(x_PD, w_EDF, sizes_E), (x_PD, w_EDF, sizes_E)


def _backward(kept, g_PF):
    x_PD, w_EDF, sizes_E = kept
    g_PD = _forward(g_PF, jnp.swapaxes(w_EDF, 1, 2), sizes_E)
    return g_PD, _outer(x_PD, g_PF, sizes_E).astype(w_EDF.dtype), None


grouped_matmul.defvjp(_keep, _backward)


def _forward(x_PD, w_EDF, sizes_E):
    by = {name: method.forward for name, method in METHODS.items()}
    y_PF = jax.lax.platform_dependent(x_PD, w_EDF, sizes_E, **by)
    real_P1 = jnp.arange(len(y_PF))[:, None] < jnp.sum(sizes_E)
    return jnp.where(real_P1, y_PF, 0)


def _outer(x_PD, g_PF, sizes_E):
    by = {name: method.outer for name, method in METHODS.items()}
    return jax.lax.platform_dependent(x_PD, g_PF, sizes_E, **by)


class Blocks(NamedTuple):
    """Groups cut into blocks of at most Q rows; block l of a group starts at a multiple of Q in it.

    ends_E: blocks of this group and those before it; `count` of them hold rows.
    """

    start_E: jax.Array
    sizes_E: jax.Array
    ends_E: jax.Array
    Q: int

    def at(self, block: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The group of a block, its first row, and how many of its rows are the group's."""
        E = len(self.sizes_E)
        group = jnp.minimum(jnp.sum(block[..., None] >= self.ends_E, -1), E - 1)
        size = self.sizes_E[group]
        before = self.ends_E[group] - (size + self.Q - 1) // self.Q
        done = (block - before) * self.Q
        return group, self.start_E[group] + done, jnp.clip(size - done, 0, self.Q)


def blocks(sizes_E: jax.Array, Q: int) -> Blocks:
    start_E = jnp.cumsum(sizes_E) - sizes_E
    return Blocks(start_E, sizes_E, jnp.cumsum((sizes_E + Q - 1) // Q), Q)


# On a CPU: block after block. A block may run into the rows of the next group, whose own block
# comes later and writes over it.


def _loop(x_PD, w_EDF, sizes_E):
    P, F = len(x_PD), w_EDF.shape[2]
    Q = min(LOOP_ROWS, P)
    cut = blocks(sizes_E, Q)
    x_PD = jnp.pad(x_PD, ((0, Q), (0, 0)))

    def block(i, y_PF):
        group, row, _ = cut.at(i)
        y_QF = jax.lax.dynamic_slice_in_dim(x_PD, row, Q) @ w_EDF[group]
        return jax.lax.dynamic_update_slice_in_dim(y_PF, y_QF, row, 0)

    y_PF = jnp.zeros((P + Q, F), x_PD.dtype)
    return jax.lax.fori_loop(0, cut.ends_E[-1], block, y_PF)[:P]


def _loop_outer(x_PD, g_PF, sizes_E):
    (P, D), F = x_PD.shape, g_PF.shape[1]
    Q = min(2 * LOOP_ROWS, P)
    cut = blocks(sizes_E, Q)
    x_PD, g_PF = (jnp.pad(x, ((0, Q), (0, 0))) for x in (x_PD, g_PF))

    def block(i, w_EDF):
        group, row, rows = cut.at(i)
        x_QD = jax.lax.dynamic_slice_in_dim(x_PD, row, Q)
        x_QD = jnp.where(jnp.arange(Q)[:, None] < rows, x_QD, 0)
        g_QF = jax.lax.dynamic_slice_in_dim(g_PF, row, Q)
        w_DF = jnp.einsum('qd,qf->df', x_QD, g_QF, preferred_element_type=jnp.float32)
        return w_EDF.at[group].add(w_DF)

    w_EDF = jnp.zeros((len(sizes_E), D, F), jnp.float32)
    return jax.lax.fori_loop(0, cut.ends_E[-1], block, w_EDF)


# On an NVIDIA GPU: all blocks at once. Rows of a block that are not its group's are zeros.


def _spread_blocks(P: int, sizes_E: jax.Array) -> tuple[Blocks, jax.Array, jax.Array]:
    """The cut, the group of each block [L], and the row at each place of a block [L, Q]."""
    E = len(sizes_E)
    least, most = BATCH_ROWS
    Q = least
    while Q < most and Q * 4 * E <= P:
        Q *= 2
    cut = blocks(sizes_E, Q)
    group_L, row_L, rows_L = cut.at(jnp.arange(P // Q + E))
    place_Q = jnp.arange(Q)
    row_LQ = jnp.where(place_Q < rows_L[:, None], row_L[:, None] + place_Q, P)
    return cut, group_L, row_LQ


def _batched(x_PD, w_EDF, sizes_E):
    P, E = len(x_PD), len(sizes_E)
    cut, group_L, row_LQ = _spread_blocks(P, sizes_E)
    x_LQD = x_PD.at[row_LQ].get(mode='fill', fill_value=0)
    y_LQF = jnp.einsum('lqd,ldf->lqf', x_LQD, w_EDF[group_L])
    row_P = jnp.arange(P)
    group_P = jnp.minimum(jnp.sum(row_P[:, None] >= jnp.cumsum(sizes_E), -1), E - 1)
    blocks_E = (sizes_E + cut.Q - 1) // cut.Q
    first_P = (cut.ends_E - blocks_E)[group_P] * cut.Q
    y_PF = y_LQF.reshape(-1, y_LQF.shape[-1])
    return y_PF.at[first_P + row_P - cut.start_E[group_P]].get(mode='fill', fill_value=0)


def _batched_outer(x_PD, g_PF, sizes_E):
    _, group_L, row_LQ = _spread_blocks(len(x_PD), sizes_E)
    x_LQD, g_LQF = (x.at[row_LQ].get(mode='fill', fill_value=0) for x in (x_PD, g_PF))
    w_LDF = jnp.einsum('lqd,lqf->ldf', x_LQD, g_LQF, preferred_element_type=jnp.float32)
    return jax.ops.segment_sum(w_LDF, group_L, len(sizes_E), indices_are_sorted=True)


# On a TPU.


def _tiles(P: int, D: int, F: int) -> tuple[int, tuple[int, int, int]]:
    """Rows to add, and the sizes of tiles; rows must be a multiple of the first."""
    rows = min(TILE, -(-P // 128) * 128)
    return -P % rows, (rows, min(TILE, D), min(TILE, F))


def _megablox(x_PD, w_EDF, sizes_E, interpret=False):
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    (P, D), F = x_PD.shape, w_EDF.shape[2]
    more, tiles = _tiles(P, D, F)
    x_PD = jnp.pad(x_PD, ((0, more), (0, 0)))
    return gmm(x_PD, w_EDF, sizes_E, x_PD.dtype, tiles, interpret=interpret)[:P]


def _megablox_outer(x_PD, g_PF, sizes_E, interpret=False):
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    (P, D), F = x_PD.shape, g_PF.shape[1]
    more, tiles = _tiles(P, D, F)
    x_PD, g_PF = (jnp.pad(x, ((0, more), (0, 0))) for x in (x_PD, g_PF))
    return tgmm(x_PD.T, g_PF, sizes_E, jnp.float32, tiles, interpret=interpret)


# Elsewhere.


def _ragged_outer(x_PD, g_PF, sizes_E):
    like_EDF = jnp.zeros((len(sizes_E), x_PD.shape[1], g_PF.shape[1]), x_PD.dtype)
    _, back = jax.vjp(lambda w_EDF: jax.lax.ragged_dot(x_PD, w_EDF, sizes_E), like_EDF)
    return back(g_PF)[0].astype(jnp.float32)


class Method(NamedTuple):
    forward: object  # (x_PD, w_EDF, sizes_E) -> PF, anything in rows of no group
    outer: object  # (x_PD, g_PF, sizes_E) -> EDF in float32


METHODS = dict(
    cpu=Method(_loop, _loop_outer),
    cuda=Method(_batched, _batched_outer),
    tpu=Method(_megablox, _megablox_outer),
    default=Method(jax.lax.ragged_dot, _ragged_outer),
)
