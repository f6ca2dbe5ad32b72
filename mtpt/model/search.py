"""Beam search: the n best answers found by keeping the n best beginnings, freely or among choices.

It follows the beam search of Hugging Face's `generate`: at each place the 2 n best continuations
of the n hypotheses of a row are looked at; those among the best n that end are entered into the
list of ended ones if their log-probability, divided by length ** length_penalty, is among the n
best of that list; the best n that do not end go on.

B row  S encoder position  T decoder position  V vocabulary  O answer choices  G segments of a row
n hypotheses of a row  c continuations looked at (2 n)  a answers returned for a row
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtpt.config import UserError
from mtpt.mesh import act, rows
from mtpt.model.config import ModelConfig
from mtpt.model.decode import begun
from mtpt.model.functional import Params, step

LOST = -1e9  # added to the score of what may not be taken; below any sum of log-probabilities


class Beams(NamedTuple):
    """The hypotheses of each row, the best first.

    Those that go on: their tokens, the sum of their log-probabilities, and, among choices, which
    of them each may still become. Those that have ended: tokens, the sum over the length raised to
    the penalty, and whether the place is taken at all. hopeful_B1: one that goes on may yet surpass
    one that has ended.
    """

    tokens_BnT: jax.Array
    score_Bn: jax.Array
    fits_BnO: jax.Array | None
    ended_tokens_BnT: jax.Array
    ended_score_Bn: jax.Array
    ended_Bn: jax.Array
    hopeful_B1: jax.Array


@partial(jax.jit, static_argnames=('cfg', 'max_length', 'beams', 'answers', 'eos'))
def beam_search(
    cfg: ModelConfig,
    params: Params,
    tokens_BS: jax.Array,
    max_length: int,
    beams: int,
    length_penalty: jax.Array | float = 1.0,
    early_stopping: jax.Array | bool = False,
    choices_BOT: jax.Array | None = None,
    answers: int = 1,
    eos: int = 1,
    tasks_BG: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The best answers of each row: tokens_BaT with T = `max_length`, and their scores_Ba.

    What reaches T without `eos` ends there. One compilation serves all penalties. With choices
    nothing else can come out; at a length penalty of 0 and with as many beams as choices the best
    is the argmax of rank classification, and with one beam the likeliest token that some choice
    has is taken at every place.

    Args:
      length_penalty: the score of an answer is its log-probability, `eos` included, divided by its
        number of tokens raised to this: above 0 longer ones gain, at 0 it is the sum.
      early_stopping: a row is done when n hypotheses have ended; else not before none that goes on
        could, at its present length, surpass the worst of them.
      choices_BOT: for each row the only answers allowed, each with its `eos`, 0 behind; an empty
        choice is none.
      answers: how many of the ended hypotheses to return; where fewer were found (of few choices)
        their tokens are 0 and their score is minus infinity.

    Raises:
      UserError: more beams than the vocabulary can begin with, more answers than beams.
    """
    _check(cfg, beams, answers, choices_BOT is not None)
    cache = begun(cfg, params, tokens_BS, max_length, tasks_BG).repeat(beams)
    choices_BOT = None if choices_BOT is None else rows(choices_BOT)
    penalty = jnp.asarray(length_penalty, jnp.float32)
    early = jnp.asarray(early_stopping, bool)

    @partial(jax.shard_map, out_specs=act('B'))
    def begin(tokens_BS, choices_BOT):
        return _begin(tokens_BS, beams, max_length, choices_BOT)

    @partial(jax.shard_map, out_specs=act('B'))
    def advance(found, logits_BV, choices_BOT, place, penalty, early):
        return _advance(found, logits_BV, choices_BOT, place, penalty, early, eos)

    def going(state):
        _, place, _, found = state
        open_ = ~(jnp.all(found.ended_Bn) & early)
        return (place < max_length) & jnp.any(found.hopeful_B1) & open_

    def body(state):
        cache, place, tokens_B, found = state
        logits_BV, cache = step(cfg, params, cache, tokens_B)
        logits_BV = jax.reshard(logits_BV, act('B1'))
        tokens_B, row_B, found = advance(found, logits_BV, choices_BOT, place, penalty, early)
        return cache.reorder(row_B), place + 1, tokens_B, found

    tokens_B, found = begin(rows(tokens_BS), choices_BOT)
    found = jax.lax.while_loop(going, body, (cache, jnp.int32(0), tokens_B, found))[-1]
    taken_Ba = found.ended_Bn[:, :answers]
    tokens_BaT = jnp.where(taken_Ba[..., None], found.ended_tokens_BnT[:, :answers], 0)
    return tokens_BaT, jnp.where(taken_Ba, found.ended_score_Bn[:, :answers], -jnp.inf)


def _check(cfg: ModelConfig, beams: int, answers: int, bound: bool) -> None:
    if beams < 1 or (2 * beams > cfg.V and not bound):
        raise UserError(
            f'beams={beams} must be from 1 to {cfg.V // 2}, half of the vocabulary of {cfg.V}'
        )
    if not 1 <= answers <= beams:
        raise UserError(f'{answers} answers cannot come out of beams={beams}; set beams={answers}')


def _begin(tokens_BS, n, T, choices_BOT) -> tuple[jax.Array, Beams]:
    """One hypothesis that counts: n equal ones would stay equal. The first tokens fed are 0."""
    B = len(tokens_BS)
    zero_Bn = jnp.zeros_like(tokens_BS, shape=(B, n)) + 0 * tokens_BS[:, :1]
    tokens_BnT = jnp.broadcast_to(zero_Bn[..., None], (B, n, T))
    lost_Bn = LOST + zero_Bn.astype(jnp.float32)
    score_Bn = jnp.where(jnp.arange(n) == 0, 0.0, lost_Bn)
    fits_BnO = None
    if choices_BOT is not None:
        fits_BnO = (choices_BOT[:, None, :, 0] > 0) & (jnp.arange(n) == 0)[:, None]
    hopeful_B1 = zero_Bn[:, :1] == 0
    found = Beams(tokens_BnT, score_Bn, fits_BnO, tokens_BnT, lost_Bn, zero_Bn != 0, hopeful_B1)
    return zero_Bn.reshape(-1), found


def _advance(found: Beams, logits_BV, choices_BOT, place, penalty, early, eos):
    """One more token: what to feed next, the rows that the cache goes on from, and the beams."""
    B, n, T = found.tokens_BnT.shape
    log_p_BnV = jax.nn.log_softmax(logits_BV.reshape(B, n, -1).astype(jnp.float32), -1)
    next_BO = None if choices_BOT is None else choices_BOT[:, :, place]
    if next_BO is not None:
        log_p_BnV = jnp.where(_allowed(found.fits_BnO, next_BO, log_p_BnV), log_p_BnV, -jnp.inf)
    total_BnV = log_p_BnV + found.score_Bn[..., None]
    score_Bc, at_Bc = jax.lax.top_k(total_BnV.reshape(B, -1), 2 * n)
    V = log_p_BnV.shape[-1]
    from_Bc, token_Bc = at_Bc // V, (at_Bc % V).astype(found.tokens_BnT.dtype)
    tokens_BcT = _taken(found.tokens_BnT, from_Bc)
    tokens_BcT = jnp.where(jnp.arange(T) == place, token_Bc[..., None], tokens_BcT)
    stops_Bc = (token_Bc == eos) | (place + 1 == T)

    score_Bn, pick_Bn = jax.lax.top_k(score_Bc + jnp.where(stops_Bc, LOST, 0.0), n)
    from_Bn, token_Bn = _taken(from_Bc, pick_Bn), _taken(token_Bc, pick_Bn)
    fits_BnO = None
    if next_BO is not None:
        same_BnO = token_Bn[..., None] == next_BO[:, None]
        fits_BnO = _taken(found.fits_BnO, from_Bn) & same_BnO & (token_Bn != eos)[..., None]

    length = (place + 1).astype(jnp.float32) ** penalty
    ends_Bc = stops_Bc & (jnp.arange(2 * n) < n)
    full_B1 = jnp.all(found.ended_Bn, -1, keepdims=True) & early
    barred_Bc = ~ends_Bc | full_B1 | ~found.hopeful_B1
    final_Bc = score_Bc / length + jnp.where(barred_Bc, LOST, 0.0)
    ended_score_Bn, best_Bn = jax.lax.top_k(_with(found.ended_score_Bn, final_Bc), n)
    ended_Bn = _taken(_with(found.ended_Bn, ends_Bc), best_Bn)
    worst_Bn = jnp.where(ended_Bn, ended_score_Bn[:, -1:], LOST)
    better_B1 = jnp.any(score_Bn[:, :1] / length > worst_Bn, -1, keepdims=True)

    row_Bn = from_Bn + n * jnp.arange(B)[:, None]
    return (
        token_Bn.reshape(-1),
        row_Bn.reshape(-1),
        Beams(
            tokens_BnT=_taken(tokens_BcT, pick_Bn),
            score_Bn=score_Bn,
            fits_BnO=fits_BnO,
            ended_tokens_BnT=_taken(_with(found.ended_tokens_BnT, tokens_BcT), best_Bn),
            ended_score_Bn=ended_score_Bn,
            ended_Bn=ended_Bn,
            hopeful_B1=found.hopeful_B1 & better_B1,
        ),
    )


def _allowed(fits_BnO, next_BO, like_BnV) -> jax.Array:
    """Whether a token is the next one of a choice that the hypothesis may still become."""
    B, n, _ = like_BnV.shape
    at = jnp.arange(B)[:, None, None], jnp.arange(n)[:, None], next_BO[:, None]
    return jnp.zeros_like(like_BnV, bool).at[at].max(fits_BnO)


def _with(ended_Bn, more_Bc) -> jax.Array:
    return jnp.concatenate([ended_Bn, more_Bc], 1)


def _taken(x_Bn, at_Bn) -> jax.Array:
    """x[b, at[b, i]] for each row b."""
    return jnp.take_along_axis(x_Bn, at_Bn.reshape(*at_Bn.shape, *[1] * (x_Bn.ndim - 2)), 1)
