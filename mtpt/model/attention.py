"""Attention as T5 has it, with no division by the root of the head width, in all its variants.

B row  T query position  S key position  D model width  H heads  J key/value heads
I query heads that share a key/value head  K head width
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mtpt.config import UserError
from mtpt.mesh import act, axis_size, einsum
from mtpt.model.config import AttentionConfig, ModelConfig
from mtpt.model.layers import Aux, dropout, param
from mtpt.model.mixture_of_heads import GATES, report
from mtpt.model.positions import rotate

MASKED = -1e9

KeysValues = tuple[jax.Array, jax.Array]  # [B, S, J, K] each


class Attention(nnx.Module):
    """Multi-head attention, or with fewer heads of keys and values, or with routed heads.

    The query's initialiser holds the division that the scores lack. With `keys=False` it has no
    keys and values of its own: a layer before it hands over its own (CLA).
    """

    def __init__(self, cfg: ModelConfig, own: AttentionConfig, rngs: nnx.Rngs, keys: bool = True):
        self.cfg, self.own = cfg, own
        self.q = param(rngs, 'DHK', cfg, (cfg.D * cfg.K) ** -0.5)
        if keys:
            J = own.kv_heads or cfg.H
            dims = 'DHK' if J == cfg.H else 'DJK'
            self.k = param(rngs, dims, cfg, cfg.D**-0.5, J=J)
            self.v = param(rngs, dims, cfg, cfg.D**-0.5, J=J)
        self.o = param(rngs, 'HKD', cfg, (cfg.H * cfg.K) ** -0.5)
        if own.routed_heads:
            self.gates = GATES[own.head_router](cfg, own, rngs)

    def keys_values(self, y_BSD: jax.Array, positions: jax.Array | None = None) -> KeysValues:
        """Keys and values of the positions that are attended to, rotated where positions are."""
        H = 'H' if self.k.shape[1] == self.cfg.H else 'J'
        k_BSJK = einsum(f'BSD,D{H}K->BS{H}K', y_BSD, self.k)
        v_BSJK = einsum(f'BSD,D{H}K->BS{H}K', y_BSD, self.v)
        k_BSJK = k_BSJK if positions is None else rotate(k_BSJK, positions)
        return checkpoint_name(k_BSJK, 'keys'), checkpoint_name(v_BSJK, 'values')

    def __call__(
        self, x_BTD, keys_values, bias_1HTS, mask_B1TS, positions=None, key=None, real_BT=None,
        split=None,
    ) -> tuple[jax.Array, Aux]:  # fmt: skip
        """What each position gathers, and figures about those that `real_BT` says.

        split: how what it gives is split; by rows only, unless it says.
        """
        q_BTHK = einsum('BTD,DHK->BTHK', x_BTD, self.q)
        q_BTHK = checkpoint_name(q_BTHK, 'queries')
        turned_BTHK = q_BTHK if positions is None else rotate(q_BTHK, positions)
        # One position at a time, as in decoding, is nothing that a fused kernel is made for.
        if self.cfg.kernel == 'cudnn' and x_BTD.shape[1] > 1:
            y_BTHK = _fused(turned_BTHK, *keys_values, bias_1HTS, mask_B1TS)
        else:
            y_BTHK = _attend(turned_BTHK, *keys_values, bias_1HTS, mask_B1TS, self.cfg.dropout, key)
        y_BTHK = checkpoint_name(y_BTHK, 'attended')
        aux = {}
        if self.own.routed_heads:
            gates_BTH, probs_BTQ, chosen_BTQ = self.gates(x_BTD, q_BTHK)
            y_BTHK = y_BTHK * jax.reshard(gates_BTH, act('BTH'))[..., None].astype(y_BTHK.dtype)
            if real_BT is not None:
                aux = report(probs_BTQ, chosen_BTQ, real_BT, self.own.head_balance)
        return einsum('BTHK,HKD->BTD', y_BTHK, self.o, split), aux


def check_kernel(cfg: ModelConfig, platform: str, lengths: Mapping[str, int]) -> None:
    """Checks that the attention kernel can train on a machine ('gpu', 'cpu', 'tpu').

    lengths: those of the rows, by the setting that gives them.

    Raises:
      UserError: another machine than a GPU, or an odd length, for cuDNN.
    """
    if cfg.kernel != 'cudnn':
        return
    if platform != 'gpu':
        raise UserError(
            f"model.kernel='cudnn' needs a GPU, and this run is on a {platform.upper()}; set "
            "model.kernel='xla'"
        )
    for name, length in lengths.items():
        if length % 2:
            raise UserError(f"{name}={length} must be even for model.kernel='cudnn'")


def _attend(q_BTHK, k_BSJK, v_BSJK, bias_1HTS, mask_B1TS, rate, key):
    H, J = q_BTHK.shape[2], k_BSJK.shape[2]
    if J < H and axis_size('tensor') > 1:  # heads are split and keys are not: each takes its copy
        k_BSJK, v_BSJK = (_spread(x, H // J) for x in (k_BSJK, v_BSJK))
        J = H
    if J == H:
        scores_BHTS = einsum('BTHK,BSHK->BHTS', q_BTHK, k_BSJK).astype(jnp.float32)
    else:
        q_BTJIK = q_BTHK.reshape(*q_BTHK.shape[:2], J, H // J, -1)
        scores_BJITS = einsum('BTJIK,BSJK->BJITS', q_BTJIK, k_BSJK).astype(jnp.float32)
        scores_BHTS = scores_BJITS.reshape(-1, H, *scores_BJITS.shape[3:])
    if bias_1HTS is not None:
        scores_BHTS = scores_BHTS + bias_1HTS
    scores_BHTS = jnp.where(mask_B1TS, scores_BHTS, MASKED)
    p_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(q_BTHK.dtype)
    p_BHTS = dropout(p_BHTS, 'BHTS', rate, key)
    if J == H:
        return einsum('BHTS,BSHK->BTHK', p_BHTS, v_BSJK)
    p_BJITS = p_BHTS.reshape(-1, J, H // J, *p_BHTS.shape[2:])
    return einsum('BJITS,BSJK->BTJIK', p_BJITS, v_BSJK).reshape(q_BTHK.shape)


def _spread(x_BSJK: jax.Array, I: int) -> jax.Array:
    return jax.reshard(jnp.repeat(x_BSJK, I, axis=2), act('BSHK'))


def _fused(q_BTHK, k_BSJK, v_BSJK, bias_1HTS, mask_B1TS):
    """cuDNN's attention: one kernel, which keeps no scores; bfloat16 on a GPU."""
    H, J = q_BTHK.shape[2], k_BSJK.shape[2]
    if J < H and axis_size('tensor') > 1:
        k_BSJK, v_BSJK = (_spread(x, H // J) for x in (k_BSJK, v_BSJK))
        J = H
    keys = act('BSHK' if J == H else 'BSJK')
    bias = None if bias_1HTS is None else act('1HTS' if len(bias_1HTS) == 1 else 'BHTS')
    specs = (act('BTHK'), keys, keys, bias, act('B1TS'))
    arrays = (q_BTHK, k_BSJK, v_BSJK, bias_1HTS, mask_B1TS)

    # The kernel knows nothing of meshes: each device calls it on its own rows and heads.
    @partial(jax.shard_map, in_specs=specs, out_specs=act('BTHK'), check_vma=False)
    def kernel(q, k, v, bias, mask):
        bias = None if bias is None else bias.astype(q.dtype)
        return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=1.0, implementation='cudnn')

    return kernel(*(None if x is None else jax.reshard(x, s) for x, s in zip(arrays, specs)))
