"""Checkpoints on Orbax: saved in the background, kept by age and by score, loaded onto any mesh.

A checkpoint becomes visible whole, with the checksums of all its files, which are verified before
they are read: what is damaged is never trained on. A checkpoint holds the named items `params`,
`optimizer` (the rest of the state), `position` of the data and `provenance` (both JSON), and the
metric that it is judged by. Arrays stand under their paths, so that what a checkpoint holds is
compared with what is wanted before anything is read.
"""

import contextlib
import logging
import math
import pathlib
import re
import shutil
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.futures import future, signaling_client

from mtpt import hosts
from mtpt.checkpoint import checksums, damaged
from mtpt.checkpoint.items import joined, plain, rest_of, restoring
from mtpt.checkpoint.keeping import CheckpointConfig, options_of
from mtpt.checkpoint.writing import Together
from mtpt.config import UserError
from mtpt.hosts import meeting
from mtpt.statuses import NOT_SAVED
from mtpt.trees import flatten

LEFTOVER = '.orbax-checkpoint-tmp'  # how Orbax names what is not whole yet

# Orbax asks the wall's clock how long it has waited, and gives a save up when that is set ahead.
for _module in (future, signaling_client):
    _module.time = types.SimpleNamespace(**vars(time) | dict(time=time.monotonic))


class SaveFailed(UserError):
    """A checkpoint could not be written; those before it are whole, and training may go on."""

    status = NOT_SAVED


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """No: the loop asks JAX, at every step; a late answer here would mislead the others."""
        return False

    def abandon(self) -> None:
        """Ends a save that has failed, also where it waits for another process, and closes."""
        self._checkpointer.cancel()
        self.close()


class Checkpoints:
    """The checkpoints of one folder, by step; one counts only once it is whole.

    Opened to write (the default), it removes what interrupted saves have left behind, and sets
    damaged checkpoints aside that are newer than the last whole one: `STEP.damaged`. `notes` says
    so. All processes of a run open it together.

    Raises:
      UserError: with read_only, a folder without checkpoints; else one whose are all damaged.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        cfg: CheckpointConfig = CheckpointConfig(),
        *,
        read_only: bool = False,
        regular: int = 0,
    ):
        self.cfg, self.notes, self._regular = cfg, list[str](), regular
        self.folder = pathlib.Path(workdir).absolute() / 'checkpoints'
        if read_only and not self.folder.is_dir():
            raise UserError(
                f'no checkpoints in {self.folder}; train there first or name another folder'
            )
        # What goes wrong in Orbax is raised and said in one sentence: its own log adds nothing.
        logging.getLogger('absl').addFilter(_unless_orbax)
        logging.getLogger('asyncio').addFilter(_unless_left)
        self._read_only, self._known_whole = read_only, set()
        self._saving, self._saved_at = None, time.monotonic()
        self._failure = ''
        if not read_only:
            self._clear_leftovers()
            whole, self.notes = damaged.set_aside(self.folder)
            self._known_whole |= {whole} - {None}
        self._open()

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best metric, or the last where none was measured, or None."""
        return self._manager.best_step()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps; asked at every step, by all processes."""
        return self._time_is_up(step) or self._due_by_steps(step)

    def judged(self, step: int) -> bool:
        """Whether a checkpoint is due whose validation decides if it is among the best."""
        wanted = self.cfg.keep_best and self.cfg.metric.startswith('valid/')
        return bool(wanted) and self._due_by_steps(step)

    def save(
        self,
        step: int,
        state: Any,
        position: Mapping[str, Any],
        provenance: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the state off the devices and writes it in the background.

        Waits for a save in flight; a step that is there already is left alone. `state` is a named
        tuple with a field `params`; position and provenance may hold numpy arrays, which become
        lists.

        Raises:
          SaveFailed: this save, or the one before, could not be written; earlier checkpoints are
            whole.
        """
        self.wait()
        if any(damaged.of_all(self._failure)):
            self._open_again()
        if damaged.of_all('there' if step in self.steps() else '')[0]:  # who commits knows
            return
        value = (metrics or {}).get(self.cfg.metric)
        known = value is not None and math.isfinite(value)
        judged = {self.cfg.metric: float(value)} if known else {}
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(state.params),
            optimizer=ocp.args.PyTreeSave(rest_of(state)),
            position=ocp.args.JsonSave(plain(position)),
            provenance=ocp.args.JsonSave(plain(provenance)),
        )
        self._saving, self._saved_at = step, time.monotonic()
        with self._written(), self._together.saving():
            self._manager.save(
                step, args=items, metrics=judged, force=True, custom_metadata=dict(sealed=True)
            )

    def check(self) -> None:
        """Says what has become of the save in flight, without waiting for it.

        Raises:
          SaveFailed: it could not be written.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the save in flight is whole.

        Raises:
          SaveFailed: it could not be written.
        """
        if self._saving is None:
            return
        with self._written():
            self._manager.wait_until_finished()
            if hosts.index() == 0 and not (self.folder / str(self._saving)).is_dir():
                raise OSError('it was not finished')
            self._saving = None

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self.wait()
        self._manager.close()

    def load(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint: the state, laid out as `abstract` says, position and provenance.

        Raises:
          UserError: no such step, a damaged or foreign checkpoint, or one of another model (naming
            the first path that differs and both shapes).
        """
        abstract_rest = rest_of(abstract)
        self._check_whole(self._present(step))
        self._check(step, 'params', abstract.params)
        self._check(step, 'optimizer', abstract_rest)
        items = dict(
            params=restoring(abstract.params),
            optimizer=restoring(abstract_rest),
            position=ocp.args.JsonRestore(),
            provenance=ocp.args.JsonRestore(),
        )
        with self._explained(f'{step} cannot be read'):
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
        rest = joined(read['optimizer'], abstract)
        return rest._replace(params=read['params']), read['position'], read['provenance']

    def load_params(self, step: int | None = None, abstract: Any = None) -> dict[str, Any]:
        """Reads the parameters only, of the last step by default.

        They come laid out as `abstract` says, or without it as numpy arrays.

        Raises:
          UserError: as `load` does.
        """
        step = self._present(step)
        self._check_whole(step, ('params',))
        if abstract is None:
            sizes = self._stored(step, 'params')
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), sizes)
            wanted = ocp.args.PyTreeRestore(restore_args=args)
        else:
            self._check(step, 'params', abstract)
            wanted = restoring(abstract)
        with self._explained(f'{step} cannot be read'):
            return self._manager.restore(step, args=ocp.args.Composite(params=wanted))['params']

    def load_provenance(self, step: int | None = None) -> dict[str, Any]:
        """Reads what a checkpoint was made of."""
        step = self._present(step)
        if damage := damaged.damage(self.folder / str(step), ('provenance',)):
            raise self._damaged(step, damage)
        with self._explained(f'{step} cannot be read'):
            wanted = ocp.args.Composite(provenance=ocp.args.JsonRestore())
            return self._manager.restore(step, args=wanted)['provenance']

    def _present(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(
                f'no checkpoints in {self.folder}; train there first or name another folder'
            )
        if step is None:
            return steps[-1]
        if step not in steps:
            raise UserError(f'no checkpoint {step} in {self.folder}; there are: {_listed(steps)}')
        return step

    def _stored(self, step: int, item: str) -> dict[str, Any]:
        """The shapes that a checkpoint holds, as a nested dict."""
        with self._explained(f'{self._present(step)} cannot be read'):
            found = self._manager.item_metadata(step)[item]
        if found is None:
            raise UserError(
                f'{self.folder / str(step)} is no checkpoint of mtpt: it has no {item!r}'
            )
        return getattr(found, 'tree', found)

    def _check(self, step: int, item: str, wanted: Any) -> None:
        """Compares paths and shapes, so that a mismatch is named and not merely met."""
        stored = {path: tuple(x.shape) for path, x in flatten(self._stored(step, item)).items()}
        shapes = {path: tuple(x.shape) for path, x in flatten(wanted).items()}
        for path in sorted(stored.keys() | shapes.keys()):
            old, new = stored.get(path, 'absent'), shapes.get(path, 'absent')
            if old != new:
                what = 'model' if item == 'params' else 'optimizer'
                raise UserError(
                    f'checkpoint {step} in {self.folder} is of another {what}: {path} is {old} '
                    f'there and {new} here; use the config it was trained with or another folder'
                )

    def _time_is_up(self, step: int) -> bool:
        """Whether the minutes are over, by the clock of process 0 that nothing can set."""
        if not self.cfg.minutes:
            return False
        up = time.monotonic() - self._saved_at >= 60 * self.cfg.minutes
        if hosts.number() == 1:
            return up
        wish = meeting.called('save')
        if up and hosts.index() == 0:
            wish.ask('minutes')
        return wish.reached(step) is not None

    def _due_by_steps(self, step: int) -> bool:
        return bool(self.cfg.every) and step % self.cfg.every == 0

    def _open(self) -> None:
        arrays, json_items = ocp.PyTreeCheckpointHandler, ocp.JsonCheckpointHandler
        handlers = dict(
            params=arrays(),
            optimizer=arrays(),
            position=json_items(),
            provenance=json_items(),
        )
        self._together = Together()
        writing = ocp.options.AsyncOptions(
            post_finalization_callback=self._seal,
            barrier_sync_fn=self._together.meet,
            # Else the others wait for a folder that process 0 could not make.
            create_directories_asynchronously=hosts.number() == 1,
        )
        options = options_of(self.cfg, self._read_only, writing, self._regular)
        while True:
            before = damaged.steps_in(self.folder)
            try:
                with self._explained('cannot be opened'):
                    self._manager = _Manager(self.folder, options=options, item_handlers=handlers)
                return
            except UserError:  # under a reader's hands the run may have removed one
                if not self._read_only or damaged.steps_in(self.folder) == before:
                    raise

    def _open_again(self) -> None:
        """Forgets a save that failed, with what it has left."""
        with contextlib.suppress(Exception):
            self._manager.abandon()
        self._clear_leftovers()
        damaged.of_all('')
        self._failure = ''
        self._open()

    def _seal(self) -> None:
        """Writes the checksums of a save whose files are all there, before it becomes visible."""
        for folder in self.folder.glob(f'{self._saving}{LEFTOVER}*'):
            checksums.write(folder, damaged.UNSEALED)

    def _clear_leftovers(self) -> None:
        """Removes what saves have left that never became whole."""
        if hosts.index() == 0:
            for left in self.folder.glob(f'*{LEFTOVER}*'):
                shutil.rmtree(left, ignore_errors=True)

    def _check_whole(self, step: int, items: Sequence[str] = ()) -> None:
        if step not in self._known_whole and (
            damage := damaged.to_all(self.folder / str(step), items)
        ):
            raise self._damaged(step, damage)

    def _damaged(self, step: int, damage: str) -> UserError:
        others = _listed([other for other in damaged.steps_in(self.folder) if other != step])
        return UserError(
            f'checkpoint {step} in {self.folder} is damaged or foreign: {damage}; choose another '
            f'--step or folder (other steps: {others})'
        )

    @contextlib.contextmanager
    def _explained(self, failure: str) -> Iterator[None]:
        """Turns whatever Orbax raises into one sentence; what is already saved stays."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f'checkpoint {failure} ({self.folder}; {_short(error)}); it may be damaged or '
                'foreign; choose another step or folder'
            ) from error

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Says of a save that failed why, and leaves everything ready for the next."""
        try:
            yield
        except Exception as error:
            step, self._saving, self._failure = self._saving, None, _short(error)
            self._together.failed(self._failure)
            if hosts.number() == 1:  # several do it together, before they save again
                self._open_again()
            raise SaveFailed(
                f'checkpoint {step} cannot be written ({self.folder}; {_short(error)}; '
                f'{_free(self.folder)}); free some space; whole checkpoints: '
                f'{_listed(damaged.steps_in(self.folder))}'
            ) from error


def _unless_orbax(record: logging.LogRecord) -> bool:
    return '/orbax/' not in record.pathname


def _unless_left(record: logging.LogRecord) -> bool:
    """Of writes that fail together Orbax raises one, and asyncio would print all others."""
    return 'was never retrieved' not in record.getMessage()


def _short(error: Exception) -> str:
    """The beginning and the end of a long message: what failed, and why."""
    said = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
    reason = re.split(r' \[(?!Errno)', said.strip().splitlines()[0])[0]
    return reason if len(reason) < 200 else f'{reason[:60]} ... {reason[-120:]}'


def _listed(steps: list[int]) -> str:
    return ', '.join(map(str, steps)) or 'none'


def _free(folder: pathlib.Path) -> str:
    try:
        return f'{shutil.disk_usage(folder).free:,} bytes are free'
    except OSError as error:
        return f'its free space cannot be asked for: {error.strerror or error}'
