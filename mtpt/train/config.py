"""What a config says of training."""

import dataclasses
from typing import Any

from mtpt.config import UserError
from mtpt.train.spikes import SpikesConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run's length and its loss.

    steps: 0 for as many as the stages make together, or 1,000 without any.
    loss_normalizing_factor: 'tokens', 'positions' or a number (see `train.loss.normalizer`);
    loss_scaling: 'none', or 'labels' to divide the loss of a task by the logarithm of the number of
    its answers, of the vocabulary where they are free (Muppet, 2101.11038, section 3.2);
    max_skipped: how many updates in a row may be left out for not being finite before the run
    stops; replays: how many of those steps are taken again to find what was behind them;
    spikes: what is done about losses that stand out;
    validate_every counts steps (0: at the end only); prefetch: batches made ahead, in a thread (0:
    each when it is asked for, and every step is waited for).
    """

    steps: int = 0
    seed: int = 0
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: str | float = 'tokens'
    loss_scaling: str = 'none'
    max_skipped: int = 10
    replays: int = 3
    spikes: SpikesConfig = dataclasses.field(default_factory=SpikesConfig)
    validate_every: int = 500
    prefetch: int = 2

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f'train.label_smoothing={self.label_smoothing} must be in [0, 1)')
        if self.loss_scaling not in ('none', 'labels'):
            raise UserError(f"train.loss_scaling={self.loss_scaling!r} must be 'none' or 'labels'")
        least_of = dict(steps=0, seed=0, max_skipped=1, replays=0, validate_every=0, prefetch=0)
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise UserError(f'train.{name}={getattr(self, name)} must be at least {least}')


def loss_settings(cfg: TrainConfig) -> dict[str, Any]:
    """Those settings of a run that its loss depends on."""
    names = ('z_loss', 'label_smoothing', 'loss_normalizing_factor')
    return {name: getattr(cfg, name) for name in names}
