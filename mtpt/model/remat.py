"""What a layer keeps for its backward pass, and where; the rest is computed again.

Kept values lie on the device, or wait in the host's memory, from which they are fetched while the
backward pass is at the layers after them.
"""

from collections.abc import Callable
from typing import Any

import jax

from mtpt.config import UserError, choose

LAYER = 'layer'  # what a layer, or the first of a pattern, is given
ATTENTION = ('queries', 'keys', 'values', 'attended')
HOST = 'pinned_host'

Policy = Callable[..., Any]
known = jax.checkpoint_policies


def remat(body: Callable, name: str) -> Callable:
    """Wraps the body of a scan so that its backward pass keeps what the policy says."""
    policy = choose('remat policy', name, POLICIES)
    if policy is None:
        return body
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def check_remat(name: str, platform: str, devices: int) -> None:
    """Checks that a machine ('gpu', 'cpu', 'tpu') can keep what a policy says where it says.

    Raises:
      UserError: a policy that offloads, on a CPU mesh.
    """
    if name.startswith('offload') and platform == 'cpu':
        raise UserError(
            f"model.remat={name!r} moves what layers keep from an accelerator's memory to the "
            "host's, and this run is on a CPU, where both are one; set model.remat='full'"
        )


def _with_fused_attention(policy: Policy) -> Policy:
    """cuDNN's attention is no product to JAX; what keeps products keeps it too."""
    return known.save_from_both_policies(policy, _is_fused_attention)


def _is_fused_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name.startswith('dot_product_attention_fwd')


# From all to nothing, and then to the host's memory. 'attention' keeps queries, keys, values and
# what they gather, four widths of the heads, and computes the wider hidden layers again. On a CPU
# 'full' is also the fastest: to compute again costs less than to store and fetch.
POLICIES = dict(
    none=None,
    dots=_with_fused_attention(known.dots_saveable),
    dots_with_no_batch_dims=_with_fused_attention(known.dots_with_no_batch_dims_saveable),
    attention=_with_fused_attention(known.save_only_these_names(*ATTENTION)),
    full=known.nothing_saveable,
    offload_dots=known.offload_dot_with_no_batch_dims('device', HOST),
    offload_layers=known.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER],
        offload_src='device',
        offload_dst=HOST,
    ),
)
