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
from mtpt.train.loop import TrainConfig
from mtpt.train.optimizer import OptimizerConfig
from mtpt.train.state import InitFromConfig


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a config can say, a section for each room; `exams` are by name of their mixture."""

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
