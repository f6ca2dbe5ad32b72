"""Validation on the way: when it is due, and the losses of all tasks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtpt.config import UserError
from mtpt.mesh import BATCH_DIMS, place
from mtpt.train.step import make_validation_step


def judging(
    every, steps, model_cfg, tasks, mesh, validation, evaluate, judges_checkpoint, routed, alive
) -> Callable[..., dict[str, float]]:
    """Gives what is due after a step: validation, evaluation, both or nothing.

    every: steps between validations, and between evaluations (0: none on the way); the rest is as
    `loop.fit` and `validate` have it.
    """
    validate_every, evaluate_every = every
    sums = validation and make_validation_step(model_cfg, len(tasks))

    def judge(step, params, settle):
        figures = {}
        due = _due(validate_every, step) or step == steps
        if validation and (due or judges_checkpoint(step)):
            settle()
            told = partial(routed, step) if routed else None
            figures |= validate(sums, params, validation(), tasks, mesh, told, alive)
        if evaluate and _due(evaluate_every, step):
            settle()
            figures |= evaluate(step, params)
        return figures

    return judge


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def validate(
    sums: Callable,
    params: Any,
    batches: Iterable[dict],
    tasks: Sequence[str],
    mesh: Any,
    routed: Callable[[Mapping[str, np.ndarray]], Mapping[str, float]] | None = None,
    alive: Callable[..., None] = lambda *what, **how: None,
) -> dict[str, float]:
    """The mean loss and accuracy over the tokens of all batches, and of those of each task.

    sums: what `make_validation_step` made; routed: gives more figures for its 'routing/*', where
    there are any; alive: told of every batch before it is looked at.
    """
    total = None
    for i, batch in enumerate(batches, 1):
        alive(f'validating batch {i}')
        part = sums(params, place(_flat(batch), mesh))
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    if total is None:
        raise UserError('validation has no batches; check its split, or set validation off')
    alive('validation, all batches', slow=True)
    losses, correct, tokens = (
        np.asarray(total[f'task/{name}'], np.float64) for name in ('loss_sum', 'correct', 'tokens')
    )
    all_tokens = max(tokens.sum(), 1.0)
    figures = {
        'valid/loss': losses.sum() / all_tokens,
        'valid/accuracy': correct.sum() / all_tokens,
    }
    for i, name in enumerate(tasks, start=1):
        if tokens[i]:
            figures[f'valid/task/{name}/loss'] = losses[i] / tokens[i]
            figures[f'valid/task/{name}/accuracy'] = correct[i] / tokens[i]
    counts = {name: np.asarray(x) for name, x in total.items() if name.startswith('routing/')}
    if counts and routed:
        figures |= routed(counts)
    return {name: float(value) for name, value in figures.items()}


def _flat(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch without the axis of accumulation."""
    return {
        name: x.reshape(-1, *x.shape[2:]) if np.ndim(x) > len(BATCH_DIMS[name]) else x
        for name, x in batch.items()
    }
