"""Mixture-of-head attention (MoH, 2410.11842): a position uses some of its heads, weighted.

The first H - R heads are shared by all positions; of the last R, each position uses the k that a
router scores highest. Every head is computed and then multiplied by its gate, zero for those not
chosen: this is the model of the paper, not its saving of time.

B row  T position  D model width  H heads  K head width  Q heads that are scored (the shared or the
routed ones)  k choices
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mtpt.mesh import act, einsum
from mtpt.model.config import AttentionConfig, ModelConfig
from mtpt.model.layers import Aux, param

STD = 0.02  # small scores: at first all heads that are used count about equally


class LearntGates(nnx.Module):
    """Gates from three projections of the position's state (section 3.2), in float32.

    The paper multiplies softmaxes: over the shared heads, over the routed ones, and between the two
    kinds. As in the authors' code, each is scaled by the number of what it shares out, and that of
    the routed heads is over the chosen ones, so that with even scores every gate is 1, as in
    multi-head attention.
    """

    def __init__(self, cfg: ModelConfig, own: AttentionConfig, rngs: nnx.Rngs):
        self.shared_heads, self.top = cfg.H - own.routed_heads, own.top_heads
        self.routed = param(rngs, 'DQ', cfg, STD, Q=own.routed_heads)
        if self.shared_heads:
            self.kinds = param(rngs, 'DQ', cfg, STD, Q=2)
        if self.shared_heads > 1:
            self.shared = param(rngs, 'DQ', cfg, STD, Q=self.shared_heads)

    def __call__(self, x_BTD: jax.Array, q_BTHK: jax.Array) -> tuple[jax.Array, ...]:
        """Gates of all heads [B, T, H], and of the routed ones the scores and which are chosen."""
        x_BTD = x_BTD.astype(jnp.float32)

        def softmax(w_DQ):
            with jax.default_matmul_precision('highest'):
                return jax.nn.softmax(einsum('BTD,DQ->BTQ', x_BTD, w_DQ))

        probs_BTQ = softmax(self.routed)
        chosen_BTQ = highest(probs_BTQ, self.top)
        gates_BTQ = probs_BTQ * chosen_BTQ
        gates_BTQ = self.top * gates_BTQ / jnp.sum(gates_BTQ, -1, keepdims=True)
        if not self.shared_heads:
            return gates_BTQ, probs_BTQ, chosen_BTQ
        shared_BTQ = jnp.ones_like(gates_BTQ[..., :1])
        if self.shared_heads > 1:
            shared_BTQ = softmax(self.shared)
        kinds_BTQ = 2 * softmax(self.kinds)
        shared_BTQ = self.shared_heads * shared_BTQ * kinds_BTQ[..., :1]
        gates_BTH = jnp.concatenate([shared_BTQ, gates_BTQ * kinds_BTQ[..., 1:]], axis=-1)
        return gates_BTH, probs_BTQ, chosen_BTQ


class QueryGates(nnx.Module):
    """Gates of 0 or 1 without weights (section 4.3): a head's score is the norm of its query.

    For going on from a multi-head checkpoint: with all heads chosen this is multi-head attention.
    The scores are norms over their deviation within the position, as in the authors' code; a chosen
    head's gate is 1, with the gradient of its probability (straight-through).
    """

    def __init__(self, cfg: ModelConfig, own: AttentionConfig, rngs: nnx.Rngs):
        self.shared_heads, self.top = cfg.H - own.routed_heads, own.top_heads

    def __call__(self, x_BTD: jax.Array, q_BTHK: jax.Array) -> tuple[jax.Array, ...]:
        """As of `LearntGates`."""
        square_BTH = jnp.sum(jnp.square(q_BTHK.astype(jnp.float32)), -1)
        norm_BTH = jnp.sqrt(jax.reshard(square_BTH, act('BTQ')) + 1e-12)
        norm_BTQ = norm_BTH[..., self.shared_heads :]
        deviation = jnp.sqrt(
            jnp.var(norm_BTQ, -1, keepdims=True, ddof=norm_BTQ.shape[-1] > 1) + 1e-6
        )
        probs_BTQ = jax.nn.softmax(norm_BTQ / deviation)
        chosen_BTQ = highest(probs_BTQ, self.top)
        gates_BTQ = chosen_BTQ * (1 + (probs_BTQ - jax.lax.stop_gradient(probs_BTQ)))
        ones_BTQ = jnp.ones_like(norm_BTH[..., : self.shared_heads])
        return jnp.concatenate([ones_BTQ, gates_BTQ], axis=-1), probs_BTQ, chosen_BTQ


def highest(scores_BTQ: jax.Array, k: int) -> jax.Array:
    """1 for the k highest scores of each position, of equal ones the first, and 0 for the rest."""
    _, chosen_BTk = jax.lax.top_k(scores_BTQ, k)
    return jnp.sum(jax.nn.one_hot(chosen_BTk, scores_BTQ.shape[-1], dtype=jnp.float32), -2)


def report(probs_BTQ: jax.Array, chosen_BTQ: jax.Array, real_BT: jax.Array, weight: float) -> Aux:
    """The load-balance loss of the routed heads (section 3.2), and how evenly they are used.

    The loss is Q times the sum over heads of the mean probability times the share of positions that
    choose the head, over positions that are not padding; `heads/load_max` is the load of the most
    used head as a multiple of an even one.
    """
    real_BTQ = real_BT[..., None].astype(jnp.float32)
    count = jnp.maximum(jnp.sum(real_BTQ), 1)
    probs_Q, load_Q = (jnp.sum(x * real_BTQ, (0, 1)) / count for x in (probs_BTQ, chosen_BTQ))
    Q = probs_Q.shape[0]
    even = jnp.maximum(jnp.mean(load_Q), 1e-9)
    return {
        'loss/head_balance': weight * Q * jnp.sum(probs_Q * load_Q),
        'heads/load_max': jnp.max(load_Q) / even,
    }


GATES = dict(learnt=LearntGates, query=QueryGates)
