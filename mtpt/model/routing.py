"""What routers are given and what they give; the routers that look at tokens alone.

B row  T position  D model width  E experts  k choices  X width of a task's representation
"""

from typing import NamedTuple

import jax


class Routing(NamedTuple):
    """What routing may know of a position besides its state.

    real_BT: false on padding, which takes no slot and counts in no figure; tasks_BT: the id of the
    task that it belongs to, 0 where unknown; task_BTX: that task's representation.
    """

    real_BT: jax.Array
    tasks_BT: jax.Array | None = None
    task_BTX: jax.Array | None = None


class Choice(NamedTuple):
    """Which experts a position goes to.

    expert_BTk: their numbers; gate_BTk: what their outputs are multiplied by, float32; logits_BTE
    and probs_BTE: the router's, float32, None where nothing was computed (enforced routing).
    """

    expert_BTk: jax.Array
    gate_BTk: jax.Array
    logits_BTE: jax.Array | None = None
    probs_BTE: jax.Array | None = None
