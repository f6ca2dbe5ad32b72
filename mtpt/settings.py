"""All that a config can say, and how it is read."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from mtpt.checkpoint import CheckpointConfig
from mtpt.config import UserError, as_dict
from mtpt.config import read as read_config
from mtpt.data.config import DataConfig
from mtpt.evaluate.run import EvaluateConfig
from mtpt.log import LogConfig
from mtpt.mesh import MeshConfig
from mtpt.model.config import ModelConfig
from mtpt.prepare import ExamPlan, HeldOut, TasksConfig
from mtpt.train.config import TrainConfig
from mtpt.train.optimizer import OptimizerConfig
from mtpt.train.state import InitFromConfig
from mtpt.watch.watchdog import WatchdogConfig

DEFAULT_STEPS = 1000  # of a run that names no number and has no stages


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run with a mixture, a schedule and a budget of its own.

    mixture is data.mixture unless it is named; data, optimizer and train are settings of these
    sections that differ in the stage. The schedule counts from the stage's first step. The
    optimizer's moments go on from the stage before unless fresh_optimizer says, or the optimizer
    is another.
    """

    name: str
    steps: int
    mixture: str = ''
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    fresh_optimizer: bool = False

    def __post_init__(self):
        if not self.name or self.steps < 1:
            raise UserError(
                f'a stage needs a name and at least one step, got {self.name!r} and {self.steps}'
            )


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a config can say, a section for each room; `exams` are by name of their mixture.

    With `stages`, the run is as long as these are together.
    """

    name: str = 'run'
    tasks: TasksConfig = dataclasses.field(default_factory=TasksConfig)
    held_out: HeldOut = dataclasses.field(default_factory=HeldOut)
    exams: dict[str, ExamPlan] = dataclasses.field(default_factory=dict)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    init_from: InitFromConfig = dataclasses.field(default_factory=InitFromConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    watchdog: WatchdogConfig = dataclasses.field(default_factory=WatchdogConfig)
    stages: tuple[Stage, ...] = ()

    def __post_init__(self):
        steps = sum(stage.steps for stage in self.stages) or self.train.steps or DEFAULT_STEPS
        if self.train.steps not in (0, steps):
            raise UserError(
                f'train.steps={self.train.steps} and the stages make {steps} steps; leave '
                'train.steps out, or change the steps of a stage'
            )
        names = [stage.name for stage in self.stages]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f'two stages are named {twice[0]!r}; give each a name of its own')
        object.__setattr__(self, 'train', dataclasses.replace(self.train, steps=steps))


def overridden(cfg: EvaluateConfig, overrides: Iterable[str]) -> EvaluateConfig:
    """The evaluation settings with 'key=value' strings laid over them."""
    values = as_dict(cfg)
    for override in overrides:
        key, equals, text = override.partition('=')
        if not equals:
            raise UserError(f'--set={override} is not of the form key=value')
        values[key] = _typed(text, values.get(key))
    return read_config(EvaluateConfig, values, 'evaluate')


def _typed(text: str, like: Any) -> Any:
    try:
        return text if isinstance(like, str) or like is None else json.loads(text.lower())
    except ValueError:
        return text
