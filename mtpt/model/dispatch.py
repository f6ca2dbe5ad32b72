"""Tokens to their experts and back, with a bounded number of slots or with none dropped.

A position's (token, choice) pairs are laid into slots, the slots of an expert side by side. With
capacity every expert has as many; dropless they are as many as it is given. `spread` fills the
slots, `collect` adds up what comes out of them; both are gathers, and so are their gradients.

B row  T position  D model width  F hidden width  E experts  C slots of an expert in a group
R groups of tokens that share slots  n tokens of a device  k choices of a token  P slots in all
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P

from mtpt.config import UserError
from mtpt.mesh import BATCH
from mtpt.model.routing import Choice

LEAST = 4  # slots of an expert, however few the tokens
HELD = ('data', 'fsdp')  # what splits the tokens once they lie with their experts


class Slots(NamedTuple):
    """Which pair fills each slot, and which slot each pair has.

    pair_P: token * k + choice, n * k where the slot is empty; slot_nk: P where the pair is dropped.
    """

    pair_P: jax.Array
    slot_nk: jax.Array


def _rows(x: jax.Array, at: jax.Array) -> jax.Array:
    """Rows of x; zeros where `at` is past its end."""
    return x.at[at].get(mode='fill', fill_value=0)


@jax.custom_vjp
def spread(x_nD: jax.Array, slots: Slots) -> jax.Array:
    """The token of each slot, zeros in empty ones: PD."""
    return _rows(x_nD, slots.pair_P // slots.slot_nk.shape[1])


def _spread_forward(x_nD, slots):
    return spread(x_nD, slots), slots


def _spread_backward(slots, g_PD):
    g_nkD = _rows(g_PD, slots.slot_nk)
    return jnp.sum(g_nkD, 1, dtype=jnp.float32).astype(g_PD.dtype), None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def collect(h_PD: jax.Array, gate_nk: jax.Array, slots: Slots) -> jax.Array:
    """What the experts made of each token, weighted by the gates: nD; zeros where all dropped."""
    h_nkD = _rows(h_PD, slots.slot_nk)
    return jnp.sum(h_nkD * gate_nk[..., None], 1).astype(h_PD.dtype)


def _collect_forward(h_PD, gate_nk, slots):
    return collect(h_PD, gate_nk, slots), (h_PD, gate_nk, slots)


def _collect_backward(kept, g_nD):
    h_PD, gate_nk, slots = kept
    gate_P = _rows(gate_nk.reshape(-1), slots.pair_P)
    g_PD = _rows(g_nD, slots.pair_P // gate_nk.shape[1]) * gate_P[:, None]
    h_nkD = _rows(h_PD, slots.slot_nk).astype(jnp.float32)
    g_nk = jnp.sum(h_nkD * g_nD[:, None].astype(jnp.float32), -1)
    return g_PD.astype(h_PD.dtype), g_nk, None


collect.defvjp(_collect_forward, _collect_backward)


def places(expert_RL: jax.Array, E: int) -> tuple[jax.Array, jax.Array]:
    """How many before it in its group chose the same expert, and how many chose each.

    By a stable sort, whose time does not grow with the experts as that of a cumulative sum does.

    expert_RL: E stands for none. Returns [R, L] and counts [R, E].
    """
    R, L = expert_RL.shape
    size_RE = jnp.sum(expert_RL[..., None] == jnp.arange(E), 1, dtype=jnp.int32)
    start_RE = jnp.cumsum(size_RE, 1) - size_RE
    order_RL = jnp.argsort(expert_RL, axis=1, stable=True)
    rows_R1 = jnp.arange(R)[:, None]
    rank_RL = jnp.zeros_like(order_RL).at[rows_R1, order_RL].set(jnp.arange(L)[None])
    return rank_RL - start_RE.at[rows_R1, expert_RL].get(mode='fill', fill_value=0), size_RE


def capacity_slots(
    expert_nk: jax.Array, sure_n: jax.Array, E: int, C: int, R: int, order: str
) -> Slots:
    """Lays pairs into C slots of each expert and group; those that come late are dropped.

    expert_nk: E where the token is padding; the tokens are cut into R groups, and where R does not
      divide n the last is the smaller.
    order: who comes first. 'choice': all first choices before all second ones, each in the order
      of positions. 'gate': the same with the tokens in the order of their largest probability
      (batch-prioritised routing: 2106.05974, section 4). 'position': all choices of a token before
      those of the token after it, so that no position takes a slot from an earlier one of its row;
      with first choices first a later token would take the slot of an earlier one's second choice.
    """
    n, k = expert_nk.shape
    g = -(-n // R)
    expert_Rgk = jnp.pad(expert_nk, ((0, R * g - n), (0, 0)), constant_values=E).reshape(R, g, k)
    if order == 'position':
        place_nk = places(expert_Rgk.reshape(R, g * k), E)[0].reshape(R * g, k)[:n]
    else:
        rank_Rg = jnp.broadcast_to(jnp.arange(g), (R, g))
        if order == 'gate':
            best_n = jnp.where(expert_nk[:, 0] < E, jax.lax.stop_gradient(sure_n), -1)
            best_Rg = jnp.pad(best_n, (0, R * g - n), constant_values=-1).reshape(R, g)
            rank_Rg = jnp.argsort(jnp.argsort(-best_Rg, axis=1, stable=True), axis=1)
        at_Rgk = jnp.arange(k) * g + rank_Rg[..., None]  # where in line each pair stands
        rows_R1 = jnp.arange(R)[:, None]
        line_RL = jnp.zeros((R, k * g), expert_nk.dtype)
        line_RL = line_RL.at[rows_R1, at_Rgk.reshape(R, -1)].set(expert_Rgk.reshape(R, -1))
        place_RL = places(line_RL, E)[0][rows_R1, at_Rgk.reshape(R, -1)]
        place_nk = place_RL.reshape(R * g, k)[:n]
    group_n1 = (jnp.arange(n) // g)[:, None]
    slot_nk = (expert_nk * R + group_n1) * C + place_nk
    slot_nk = jnp.where((expert_nk < E) & (place_nk < C), slot_nk, E * R * C)
    return Slots(_inverse(slot_nk, E * R * C), slot_nk)


def _inverse(slot_nk: jax.Array, slots: int) -> jax.Array:
    pairs = slot_nk.size
    empty_P = jnp.full((slots,), pairs, jnp.int32)
    return empty_P.at[slot_nk.reshape(-1)].set(jnp.arange(pairs, dtype=jnp.int32), mode='drop')


def sorted_slots(expert_nk: jax.Array, E: int) -> tuple[Slots, jax.Array]:
    """Lays all pairs one after the other by expert; and how many each expert has, [E]."""
    place_1L, size_1E = places(expert_nk.reshape(1, -1), E)
    start_E = jnp.cumsum(size_1E[0]) - size_1E[0]
    slot_nk = _rows(start_E, expert_nk) + place_1L.reshape(expert_nk.shape)
    slot_nk = jnp.where(expert_nk < E, slot_nk, expert_nk.size)
    return Slots(_inverse(slot_nk, expert_nk.size), slot_nk), size_1E[0]


class Sharing(NamedTuple):
    """Who shares slots with whom.

    E experts; `factor`: the slots of an expert as a multiple of an even share; `group`: tokens that
    share them, 0 for all of a device; `strict`: whether groups must come out even; `order`: who
    comes first (`capacity_slots`).
    """

    E: int
    factor: float
    group: int
    strict: bool
    order: str

    def cut(self, B: int, T: int) -> tuple[int, int, int]:
        """Tokens of a device, its groups, and the slots that each expert has for a group."""
        shape = dict(jax.sharding.get_abstract_mesh().shape)
        n = B * T // math.prod(shape[axis] for axis in BATCH)
        if self.strict and self.group and n % self.group:
            raise UserError(
                f'model.moe.group={self.group} does not divide the {n} tokens of a device '
                f'({n // T} rows of {T}); choose a divisor of {n}, or 0 for all of them'
            )
        R = -(-n // (self.group or n))
        g = -(-n // R)
        return n, R, min(g, max(LEAST, math.ceil(self.factor * g / self.E)))


def capacity(
    x_BTD: jax.Array,
    choice: Choice,
    real_BT: jax.Array,
    sharing: Sharing,
    experts: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """What the experts make of the tokens that find a slot, and which pairs did.

    Returns:
      y_BTD, zeros for padding and for tokens of which all choices were dropped; kept_BTk.

    Raises:
      UserError: the group does not divide the tokens of a device.
    """
    (B, T, D), E = x_BTD.shape, sharing.E
    n, R, C = sharing.cut(B, T)

    @partial(jax.shard_map, in_specs=P(BATCH), out_specs=(P(None, BATCH), P(BATCH), P(BATCH)))
    def send(x_BTD, expert_BTk, sure_BT, real_BT):
        expert_nk = jnp.where(real_BT[..., None], expert_BTk, E).reshape(n, -1)
        slots = capacity_slots(expert_nk, sure_BT.reshape(n), E, C, R, sharing.order)
        h_ERCD = spread(x_BTD.reshape(n, D), slots).reshape(E, R, C, D)
        return h_ERCD, *slots

    @partial(jax.shard_map, in_specs=(P(None, BATCH), *[P(BATCH)] * 3), out_specs=P(BATCH))
    def bring(h_ERCD, gate_BTk, pair_P, slot_nk):
        h_PD = h_ERCD.reshape(-1, D)
        y_nD = collect(h_PD, gate_BTk.reshape(slot_nk.shape), Slots(pair_P, slot_nk))
        return y_nD.reshape(-1, T, D), (slot_nk < len(h_PD)).reshape(gate_BTk.shape)

    # Normalised gates do not tell how sure the router is.
    sure_BT = jnp.max(choice.probs_BTE, -1)
    h_ERCD, *slots = send(x_BTD, choice.expert_BTk, sure_BT, real_BT)
    return bring(_exchanged(experts, h_ERCD), choice.gate_BTk, *slots)


def _exchanged(experts: Callable[[jax.Array], jax.Array], h_ERCD: jax.Array) -> jax.Array:
    """Sends slots to where their experts lie, has them computed, and brings them back."""
    E, R, C, D = h_ERCD.shape
    h_ERCD = jax.reshard(h_ERCD, P('expert', HELD))  # all-to-all
    h_EPD = jax.lax.reshape(h_ERCD, (E, R * C, D), out_sharding=P('expert', HELD, None))
    split = P('expert', HELD, None, None)
    h_ERCD = jax.lax.reshape(experts(h_EPD), (E, R, C, D), out_sharding=split)
    return jax.reshard(h_ERCD, P(None, BATCH))  # all-to-all back


def chosen(
    x_BTD: jax.Array,
    probs_BTE: jax.Array,
    real_BT: jax.Array,
    sharing: Sharing,
    normalise: bool,
    experts: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Expert choice: each expert takes the tokens of a group that score it highest (2202.09368).

    An expert's slots are all filled as long as there are real tokens. The gate is the token's
    probability; `normalise` scales the gates of those who took a token to sum to 1.

    Returns:
      y_BTD, zeros for tokens that none took; taken_BTE.
    """
    (B, T, D), E = x_BTD.shape, sharing.E
    n, R, C = sharing.cut(B, T)
    g = -(-n // R)

    @partial(jax.shard_map, in_specs=P(BATCH), out_specs=(P(None, BATCH), P(BATCH), P(BATCH)))
    def send(x_BTD, probs_BTE, real_BT):
        score_nE = jnp.where(real_BT[..., None], jax.lax.stop_gradient(probs_BTE), -1)
        score_nE = jnp.pad(score_nE.reshape(n, E), ((0, R * g - n), (0, 0)), constant_values=-1)
        score_ERg = jnp.moveaxis(score_nE.reshape(R, g, E), 2, 0)
        best_ERC, token_ERC = jax.lax.top_k(score_ERg, C)
        token_ERC = jnp.where(best_ERC < 0, n, token_ERC + jnp.arange(R)[:, None] * g)
        return _rows(x_BTD.reshape(n, D), token_ERC), token_ERC.reshape(-1), _taken(token_ERC, n)

    @partial(jax.shard_map, in_specs=(P(None, BATCH), P(BATCH), P(BATCH)), out_specs=P(BATCH))
    def bring(h_ERCD, probs_BTE, token_P):
        token_ERC = token_P.reshape(E, R, C)
        probs_nE = probs_BTE.reshape(n, E)
        gate_nE = jnp.where(_taken(token_ERC, n), probs_nE, 0.0)
        if normalise:
            gate_nE = gate_nE / (jnp.sum(gate_nE, -1, keepdims=True) + 1e-9)
        gate_ERC = gate_nE.at[token_ERC, jnp.arange(E)[:, None, None]].get(
            mode='fill', fill_value=0
        )
        y_nD = jnp.zeros_like(h_ERCD, jnp.float32, shape=(n, D))
        y_nD = y_nD.at[token_ERC].add(h_ERCD * gate_ERC[..., None], mode='drop')
        return y_nD.astype(h_ERCD.dtype).reshape(-1, T, D)

    h_ERCD, token_P, taken_nE = send(x_BTD, probs_BTE, real_BT)
    y_BTD = bring(_exchanged(experts, h_ERCD), probs_BTE, token_P)
    return y_BTD, taken_nE.reshape(B, T, E)


def _taken(token_ERC: jax.Array, n: int) -> jax.Array:
    """Whether an expert took a token, [n, E]."""
    E = len(token_ERC)
    none_nE = jnp.zeros((n, E), bool)
    return none_nE.at[token_ERC, jnp.arange(E)[:, None, None]].set(True, mode='drop')


def dropless(
    x_BTD: jax.Array,
    choice: Choice,
    real_BT: jax.Array,
    E: int,
    weights: Sequence[jax.Array],
    letters: Sequence[str],
    hidden: Callable[..., jax.Array],
    local: bool = False,
) -> jax.Array:
    """What the experts make of all tokens; zeros for padding.

    Where experts are split, every device sees the tokens of those that it shares experts with, has
    its own experts work on theirs, and the parts are added up where the tokens came from.

    Args:
      weights: of the experts, with letters such as 'EDF'.
      hidden: (x_PD, weights, sizes_E) -> PD, rows by expert; rows after the last expert's are free.
      local: whether rows lie on the device of their expert: nothing is then exchanged, and tokens
        whose expert is elsewhere are dropped (`lies_with_expert`).
    """
    T, D = x_BTD.shape[1:]
    specs = [P(*(dict(E='expert', F='tensor').get(d) for d in dims)) for dims in letters]
    weights = [jax.reshard(w, spec) for w, spec in zip(weights, specs)]

    # Unchecked: the kernels inside do not tell over which axes what they give varies.
    @partial(jax.shard_map, in_specs=(*[P(BATCH)] * 4, specs), out_specs=P(BATCH), check_vma=False)
    def run(x_BTD, expert_BTk, gate_BTk, real_BT, weights):
        expert_nk = jnp.where(real_BT[..., None], expert_BTk, E).reshape(-1, expert_BTk.shape[-1])
        x_nD, gate_nk = x_BTD.reshape(-1, D), gate_BTk.reshape(expert_nk.shape)
        own = len(weights[0])
        if own < E:
            if not local:
                x_nD, expert_nk, gate_nk = (
                    jax.lax.all_gather(x, 'expert', tiled=True) for x in (x_nD, expert_nk, gate_nk)
                )
            expert_nk = expert_nk - jax.lax.axis_index('expert') * own
            expert_nk = jnp.where((expert_nk >= 0) & (expert_nk < own), expert_nk, own)
        slots, sizes_E = sorted_slots(expert_nk, own)
        y_nD = collect(hidden(spread(x_nD, slots), weights, sizes_E), gate_nk, slots)
        if own < E and not local:
            y_nD = jax.lax.psum_scatter(y_nD, 'expert', tiled=True)
        return jax.lax.psum(y_nD, 'tensor').reshape(-1, T, D)

    return run(x_BTD, choice.expert_BTk, choice.gate_BTk, real_BT, weights)


def lies_with_expert(expert_BTk: jax.Array, E: int) -> jax.Array:
    """Whether a pair's expert is on the device that its row lies on: BTk."""

    @partial(jax.shard_map, in_specs=P(BATCH), out_specs=P(BATCH))
    def here(expert_BTk):
        own = E // jax.lax.axis_size('expert')
        return expert_BTk // own == jax.lax.axis_index('expert')

    return here(expert_BTk)


def beside_experts(expert_B: np.ndarray, E: int, mesh: Any) -> np.ndarray:
    """An order of rows in which each lies on the device of its expert, as far as there is room.

    Args:
      expert_B: the expert of each row of the global batch.
      E: experts.
      mesh: what the batch will be split over.

    Returns:
      order_B: row `order_B[i]` goes to place i. Each device has room for as many rows as any other;
      those that find none with their expert take what is left.
    """
    sizes = dict(mesh.shape)
    ways, apart = math.prod(sizes[axis] for axis in BATCH), sizes['expert']
    each = len(expert_B) // ways
    place_of = np.arange(len(expert_B)) // each % apart  # where along `expert` a place lies
    wanted = expert_B // (E // apart)
    order_B = np.full(len(expert_B), -1)
    for group in range(apart):
        rows, places = np.flatnonzero(wanted == group), np.flatnonzero(place_of == group)
        n = min(len(rows), len(places))
        order_B[places[:n]] = rows[:n]
    left = np.setdiff1d(np.arange(len(expert_B)), order_B)
    order_B[order_B < 0] = left
    return order_B
