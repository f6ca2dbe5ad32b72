"""Validation on the way: when it is due, and the losses of all tasks."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtpt import hosts
from mtpt.config import UserError
from mtpt.mesh import BATCH_DIMS, place
from mtpt.model.config import ModelConfig
from mtpt.train.step import make_validation_step


@dataclasses.dataclass(frozen=True)
class Judges:
    """What a model is judged by while it trains.

    Attributes:
      validation: makes the validation batches anew each time, every `validate_every` steps, at the
        last, and where a checkpoint is judged by it (0: only then).
      evaluate: gives flat metrics for (step, params), every `evaluate_every` steps (0: never).
      routed: gives flat metrics for (step, counts) after a validation of a model with experts; the
        counts are those of `make_validation_step`, 'routing/*'.
    """

    validation: Callable[[], Iterable[dict[str, np.ndarray]]] | None = None
    validate_every: int = 0
    evaluate: Callable[[int, Any], Mapping[str, float]] | None = None
    evaluate_every: int = 0
    routed: Callable[[int, Mapping[str, np.ndarray]], Mapping[str, float]] | None = None

    def due(self, step: int, last: bool, judges_checkpoint: bool) -> list[str]:
        """What is to be done after a step: 'validate', 'evaluate', both or nothing."""
        validated = last or judges_checkpoint or _due(self.validate_every, step)
        wanted = dict(
            validate=self.validation and validated,
            evaluate=self.evaluate and _due(self.evaluate_every, step),
        )
        return [name for name, is_due in wanted.items() if is_due]

    def judging(
        self,
        model_cfg: ModelConfig,
        tasks: Sequence[str],
        mesh: jax.sharding.Mesh,
        alive: Callable[..., None],
    ) -> Callable[[int, Any, Sequence[str]], dict[str, float]]:
        """Gives what judges: flat metrics for (step, params, what is due); see `validate`."""
        sums = self.validation and make_validation_step(model_cfg, len(tasks))

        def judge(step, params, due):
            figures = {}
            if 'validate' in due:
                told = partial(self.routed, step) if self.routed else None
                figures |= validate(sums, params, self.validation(), tasks, mesh, told, alive)
            if 'evaluate' in due:
                figures |= self.evaluate(step, params)
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
        if hosts.one_at_a_time():
            jax.block_until_ready(total)
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
