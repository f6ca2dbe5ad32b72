"""Routing that knows the task. (Written next.)

B row  T position  G segments of a row  D model width  X width of a task's representation
"""

import jax.numpy as jnp
from flax import nnx

from mtpt.mesh import einsum
from mtpt.model.config import ModelConfig
from mtpt.model.routing import Routing


def knows_tasks(cfg: ModelConfig) -> bool:
    """Whether a router of the model looks at a representation of the task."""
    routers = {cfg.moe.encoder_router, cfg.moe.decoder_router}
    return bool(cfg.moe.E) and bool(routers & {'task_aware', 'task'})


def of_tokens(segments_BT, tasks_BG, task_BGX=None) -> Routing:
    """What routing knows of each position: from its segment (1 .. G) to the segment's task."""
    real_BT = segments_BT > 0
    if tasks_BG is None:
        return Routing(real_BT)
    member_BTG = segments_BT[..., None] == jnp.arange(1, tasks_BG.shape[1] + 1)
    tasks_BT = jnp.sum(jnp.where(member_BTG, tasks_BG[:, None], 0), -1)
    if task_BGX is None:
        return Routing(real_BT, tasks_BT)
    member_BTG = member_BTG.astype(task_BGX.dtype)
    return Routing(real_BT, tasks_BT, einsum('BTG,BGX->BTX', member_BTG, task_BGX))


class TaskRepresentation(nnx.Module):
    def __init__(self, cfg, rngs):
        raise NotImplementedError

    def __call__(self, x_BSD, segments_BS, tasks_BG, key=None):
        raise NotImplementedError
