"""When checkpoints are due and which are kept: what a config says of it, and what Orbax is told."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mtpt.config import UserError, nearest
from mtpt.hosts import maintenance


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep.

    every counts steps (0: at the end only); minutes, beside it, the time since the save before (0:
    never). keep and keep_best are numbers of checkpoints, best by `metric`, of which lower is
    better unless higher_is_better: valid/loss, valid/accuracy, valid/task/NAME/..., or
    eval/MIXTURE/METRIC of exams that are taken at the steps of checkpoints. notices: where the
    machine says that it ends, upon which one is saved (see `maintenance.server`).
    """

    every: int = 500
    minutes: float = 0.0
    keep: int = 2
    keep_best: int = 1
    metric: str = 'valid/loss'
    higher_is_better: bool = False
    notices: str = 'auto'

    def __post_init__(self):
        for name in ('every', 'minutes', 'keep', 'keep_best'):
            if getattr(self, name) < 0:
                raise UserError(f'checkpoint.{name}={getattr(self, name)} must be at least 0')
        maintenance.server(self.notices)
        known = ('valid/loss', 'valid/accuracy')
        if self.metric not in known and not self.metric.startswith(('valid/task/', 'eval/')):
            raise UserError(
                f'checkpoint.metric={self.metric!r} is measured by nothing; '
                f'{nearest(self.metric, known)}, valid/task/NAME/loss, eval/MIXTURE/METRIC'
            )


@dataclasses.dataclass
class _LatestRegular(policies.PreservationPolicy):
    """Keeps the last n of those that were due by steps, whatever was saved between them."""

    every: int
    n: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        regular = [c.step for c in checkpoints if c.step % self.every == 0][-self.n :]
        return [c.step in regular for c in checkpoints]


def options_of(
    cfg: CheckpointConfig, read_only: bool, writing: Any, regular: int = 0
) -> ocp.CheckpointManagerOptions:
    """What Orbax is told of it.

    regular: how many of those that were due by steps are kept beside, whatever was saved between.
    """

    def score(metrics):
        return metrics.get(cfg.metric, -math.inf if cfg.higher_is_better else math.inf)

    kept = [policies.LatestN(max(cfg.keep, 1))]
    if regular and cfg.every:
        kept.append(_LatestRegular(cfg.every, regular))
    if cfg.keep_best:
        kept.append(
            policies.BestN(
                get_metric_fn=score,
                reverse=not cfg.higher_is_better,
                n=cfg.keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return ocp.CheckpointManagerOptions(
        best_fn=score,
        best_mode='max' if cfg.higher_is_better else 'min',
        preservation_policy=policies.AnyPreservationPolicy(kept),
        # Ours, before the manager opens: its own runs beside the first save, and gets in its way.
        cleanup_tmp_directories=False,
        read_only=read_only,
        create=not read_only,
        async_options=writing,
    )
