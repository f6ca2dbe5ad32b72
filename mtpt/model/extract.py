"""The part of a model that one task uses, as a dense model of its own.

Where a task goes to one expert in every sparse layer, the other experts do nothing for it: what is
left is dense, and gives for that task what the whole gives (M3ViT, 2210.14793, loads only that part
to serve a task; MoCE, 2402.05382, hands each downstream task the sub-model of its cluster).

S position  D model width  F hidden width  E experts  M tasks  X width of a task's representation
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtpt.config import UserError
from mtpt.mesh import BATCH, axis_size, rows
from mtpt.model.blocks import kinds
from mtpt.model.config import ModelConfig, MoeConfig, resolve
from mtpt.model.functional import Params, module
from mtpt.model.remodel import restack, unstack
from mtpt.model.task_routing import TASK_CHOICES, knows_tasks


class Used(NamedTuple):
    """The expert that a task uses in a sparse layer, and what its output is multiplied by."""

    stack: str
    layer: int
    expert: int
    gate: float


def representation(
    cfg: ModelConfig, params: Params, task: int = 0, inputs: Sequence[int] = ()
) -> np.ndarray | None:
    """What the routers know of a task [X]; None where they look at no representation.

    Args:
      cfg: the model's.
      params: the model's, under the mesh that is set.
      task: its id; 0 where it is not known.
      inputs: token ids of an example, for representations made from the prompt.

    Raises:
      UserError: the model needs an example, and there is none.
    """
    if not knows_tasks(cfg):
        return None
    if cfg.moe.task_from != 'id' and not len(inputs):
        raise UserError(
            f'model.moe.task_from={cfg.moe.task_from!r} makes the representation of a task from '
            'its inputs; give an example of them'
        )

    @jax.jit
    def represented(params, tokens_BS, tasks_BG):
        model, tokens_BS = module(cfg, params), rows(tokens_BS)
        segments_BS = jnp.ones_like(tokens_BS)
        found = model.represented(model.embed(tokens_BS), segments_BS, rows(tasks_BG))
        return jax.reshard(found, jax.P())

    B = int(np.prod([axis_size(axis) for axis in BATCH]))
    tokens_BS = np.tile(np.asarray(inputs if len(inputs) else [0], np.int32), (B, 1))
    return np.asarray(represented(params, tokens_BS, np.full((B, 1), task, np.int32)))[0, 0]


def uses(
    cfg: ModelConfig, params: Params, task: int, task_X: np.ndarray | None = None
) -> list[Used]:
    """The expert of a task in every sparse layer.

    Args:
      cfg: the model's.
      params: the model's.
      task: its id, for enforced routing.
      task_X: its representation, for routing by a router over it.

    Raises:
      UserError: a task of this model goes to more than one expert, or there are no experts.
    """
    found = []
    for stack in _stacks(params):
        sparse = [i for i, kind in enumerate(kinds(cfg, stack == 'decoder')) if kind.sparse]
        router = getattr(cfg.moe, f'{stack}_router')
        if sparse:
            _check_one_expert(cfg, stack, router)
        layers = unstack(cfg, params[stack]['layers'], stack == 'decoder') if sparse else []
        for i in sparse:
            if router == 'enforced':
                table = cfg.moe.expert_of_task
                expert, gate = table[task if task < len(table) else 0], 1.0
            else:
                expert, gate = _chosen(cfg, layers[i]['moe']['router']['kernel'], task_X)
            found.append(Used(stack, i, expert, gate))
    if not found:
        raise UserError('the model has no sparse layers; there is nothing to extract')
    return found


def extracted(cfg: ModelConfig, params: Params, used: Sequence[Used]) -> tuple[ModelConfig, Params]:
    """The dense model of the experts that are used: its config, and parameters as NumPy arrays.

    Gates that are not 1 go into the experts' last weights, and shared experts lie beside the routed
    one in a wider hidden layer: both are exact.

    Raises:
      UserError: the layers that come out differ in their hidden width.
    """
    experts = {(u.stack, u.layer): u for u in used}
    params = jax.tree.map(np.asarray, params)
    layers = {
        stack: [
            _dense(layer, experts[stack, i]) if (stack, i) in experts else layer
            for i, layer in enumerate(unstack(cfg, params[stack]['layers'], stack == 'decoder'))
        ]
        for stack in _stacks(params)
    }
    widths = {layer['mlp']['up'].shape[1] for stack in layers.values() for layer in stack}
    if len(widths) > 1:
        raise UserError(
            f'the hidden layers of the extracted model would be {sorted(widths)} wide, and a dense '
            'model has one width; train with experts (and shared experts beside them) that are '
            'together as wide as model.F, or with experts in every layer'
        )
    # Experts in no layer: a size that comes with experts must not bring them back.
    moe = MoeConfig(encoder=0, decoder=0)
    dense = resolve(dataclasses.replace(cfg, F=widths.pop(), moe=moe))
    kept = {name: x for name, x in params.items() if name != 'tasks'}
    for stack, trees in layers.items():
        kept[stack] = kept[stack] | dict(layers=restack(dense, trees, stack == 'decoder'))
    return dense, kept


def _stacks(params: Params) -> list[str]:
    return [stack for stack in ('encoder', 'decoder') if stack in params]


def _check_one_expert(cfg: ModelConfig, stack: str, router: str) -> None:
    if router not in ('task', 'enforced'):
        raise UserError(
            f'model.moe.{stack}_router={router!r} routes each token by itself, so a task uses all '
            "experts; only models routed by 'task' or 'enforced' have a part for each task"
        )
    if router == 'task' and cfg.moe.task_choice == 'soft':
        raise UserError(
            "model.moe.task_choice='soft' sums all experts for every task; only 'gumbel' and "
            "'hard' leave a task one"
        )


def _chosen(cfg: ModelConfig, kernel_XE: Any, task_X: np.ndarray | None) -> tuple[int, float]:
    if task_X is None:
        raise UserError('the model routes by a representation of the task, and there is none')
    with jax.default_matmul_precision('highest'):
        logits_E = jnp.asarray(task_X) @ jnp.asarray(np.asarray(kernel_XE))
    choose = TASK_CHOICES[cfg.moe.task_choice]
    choice = choose(logits_E[None, None], None, cfg.moe.temperature)
    return int(choice.expert_BTk[0, 0, 0]), float(choice.gate_BTk[0, 0, 0])


def _dense(layer: Params, used: Used) -> Params:
    moe = layer['moe']
    mlp = {name: moe[name][used.expert] for name in ('gate', 'up', 'down') if name in moe}
    mlp['down'] = mlp['down'] * np.float32(used.gate)
    for name, shared in moe.get('shared', {}).items():
        mlp[name] = np.concatenate([mlp[name], shared], axis=0 if name == 'down' else 1)
    return {name: x for name, x in layer.items() if name != 'moe'} | dict(mlp=mlp)
