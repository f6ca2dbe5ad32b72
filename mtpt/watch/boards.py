"""Where else the figures of a run go than to metrics.jsonl: TensorBoard, Weights & Biases.

A board has two methods, `write(step, values)` and `close()`. What goes wrong with one is told once
and never ends a run: metrics.jsonl holds the same figures.
"""

import json
import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from mtpt import files
from mtpt.config import UserError

FILE = 'wandb.json'  # the id under which a run goes on there
MODES = ('online', 'offline')


class TensorBoard:
    """Summaries in `tensorboard/`; those past `step` are dropped."""

    def __init__(self, workdir: pathlib.Path, step: int):
        from tensorboardX import SummaryWriter  # slow to import, and one process needs it

        self._writer = SummaryWriter(
            str(workdir / 'tensorboard'), purge_step=step + 1 if step else None
        )
        self._disk = _Tolerant.put_into(self._writer)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._disk.failed:
            raise self._disk.failed
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Tolerant:
    """Writes a file of events for a thread that would end with the first error and be waited for.

    Attributes:
      failed: the first error.
    """

    def __init__(self, writer: Any):
        self._writer, self.failed = writer, None

    @classmethod
    def put_into(cls, summaries: Any) -> '_Tolerant':
        events = summaries._get_file_writer().event_writer  # tensorboardX has no public name for it
        events._ev_writer = events._worker._record_writer = cls(events._ev_writer)
        return events._ev_writer

    def write_event(self, event: Any) -> None:
        self._tried(self._writer.write_event, event)

    def flush(self) -> None:
        self._tried(self._writer.flush)

    def close(self) -> None:
        self._tried(self._writer.close)

    def _tried(self, does: Callable[..., Any], *args: Any) -> None:
        try:
            does(*args)
        except OSError as error:
            self.failed = self.failed or error


class WandB:
    """A run at Weights & Biases, which goes on under the id kept in the folder.

    Raises:
      UserError: the package is not installed, or the run cannot be begun there.
    """

    def __init__(self, workdir: pathlib.Path, project: str, mode: str):
        wandb = imported()
        kept = _json(workdir / FILE)
        told = _json(workdir / 'config.json')
        if kept.get('project') != project or not isinstance(kept.get('id'), str):
            kept = dict(id=uuid.uuid4().hex[:8], project=project)
            files.write(workdir / FILE, json.dumps(kept))
        try:
            self._run = wandb.init(
                project=project,
                id=kept['id'],
                name=told.get('name') or workdir.name,
                config=told.get('config') or {},
                dir=str(workdir),
                resume='allow',
                mode=mode,
            )
            # Steps that a restart takes again come twice, so that they are a figure like others.
            self._run.define_metric('step')
            self._run.define_metric('*', step_metric='step')
        except Exception as error:
            raise UserError(
                f'Weights & Biases cannot be begun ({_first_line(error)}); log in with `wandb '
                "login`, set log.wandb_mode='offline', or leave log.wandb out"
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values, step=step))

    def close(self) -> None:
        self._run.finish()


def imported() -> Any:
    """The package wandb.

    Raises:
      UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UserError(
            "log.wandb=True needs the package wandb; pip install 'mtpt[wandb]', or leave "
            'log.wandb out'
        ) from None
    return wandb


class Boards:
    """All boards of a run; one that fails is told of and left out from then on."""

    def __init__(self, boards: Mapping[str, Any], say: Callable[[str], None]):
        self._boards, self._say = dict(boards), say

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._each('write', step, values)

    def close(self) -> None:
        self._each('close')
        self._boards.clear()

    def _each(self, method: str, *args: Any) -> None:
        for name, board in list(self._boards.items()):
            try:
                getattr(board, method)(*args)
            except Exception as error:
                del self._boards[name]
                self._say(
                    f'{name} has failed ({_first_line(error)}) and is left out from here on; '
                    'metrics.jsonl goes on'
                )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
