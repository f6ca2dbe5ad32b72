"""Checkpoints on Orbax: saved in the background, kept by age and by score, loaded onto any mesh.

A checkpoint holds the named items `params`, `optimizer` (the rest of the state), `position` of the
data and `provenance` (both JSON), and the metric that it is judged by. Arrays stand under their
paths, so that what a checkpoint holds is compared with what is wanted before anything is read.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mtpt.config import UserError, nearest
from mtpt.trees import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and what to keep.

    every counts steps (0: at the end only); keep and keep_best are numbers of checkpoints, best by
    `metric`, of which lower is better unless higher_is_better: valid/loss, valid/accuracy,
    valid/task/NAME/..., or eval/MIXTURE/METRIC of exams that are taken at the steps of checkpoints.
    """

    every: int = 500
    keep: int = 2
    keep_best: int = 1
    metric: str = 'valid/loss'
    higher_is_better: bool = False

    def __post_init__(self):
        for name in ('every', 'keep', 'keep_best'):
            if getattr(self, name) < 0:
                raise UserError(f'checkpoint.{name}={getattr(self, name)} must be at least 0')
        known = ('valid/loss', 'valid/accuracy')
        if self.metric not in known and not self.metric.startswith(('valid/task/', 'eval/')):
            raise UserError(
                f'checkpoint.metric={self.metric!r} is measured by nothing; '
                f'{nearest(self.metric, known)}, valid/task/NAME/loss, eval/MIXTURE/METRIC'
            )


class Checkpoints:
    """The checkpoints of one folder, by step; one counts only once it is whole.

    Opened to write (the default), it removes what interrupted saves have left behind.

    Raises:
      UserError: with read_only, a folder without checkpoints.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        cfg: CheckpointConfig = CheckpointConfig(),
        *,
        read_only: bool = False,
    ):
        self.cfg = cfg
        self.folder = pathlib.Path(workdir).absolute() / 'checkpoints'
        if read_only and not self.folder.is_dir():
            raise UserError(
                f'no checkpoints in {self.folder}; train there first or name another folder'
            )
        arrays, json = ocp.PyTreeCheckpointHandler, ocp.JsonCheckpointHandler
        # What goes wrong in Orbax is raised and said in one sentence: its own log adds nothing.
        logging.getLogger('absl').addFilter(_unless_orbax)
        handlers = dict(params=arrays(), optimizer=arrays(), position=json(), provenance=json())
        if not read_only and jax.process_index() == 0:
            for left in self.folder.glob('*.orbax-checkpoint-tmp*'):
                shutil.rmtree(left, ignore_errors=True)
        with self._explained('cannot be opened'):
            options = _options(cfg, read_only)
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers
            )

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
        """Whether a checkpoint is due after `step` steps."""
        return bool(self.cfg.every) and step % self.cfg.every == 0

    def judged(self, step: int) -> bool:
        """Whether a checkpoint is due whose validation decides if it is among the best."""
        wanted = self.cfg.keep_best and self.cfg.metric.startswith('valid/')
        return bool(wanted) and self.due(step)

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
          UserError: this save, or the one before, could not be written; earlier checkpoints are
            whole.
        """
        if step in self.steps():
            return
        value = (metrics or {}).get(self.cfg.metric)
        known = value is not None and math.isfinite(value)
        judged = {self.cfg.metric: float(value)} if known else {}
        items = ocp.args.Composite(
            params=ocp.args.PyTreeSave(state.params),
            optimizer=ocp.args.PyTreeSave(_rest(state)),
            position=ocp.args.JsonSave(plain(position)),
            provenance=ocp.args.JsonSave(plain(provenance)),
        )
        with self._explained(f'{step} cannot be written', writing=True):
            self._manager.save(step, args=items, metrics=judged, force=True)

    def wait(self) -> None:
        """Waits until the save in flight is whole.

        Raises:
          UserError: it could not be written.
        """
        with self._explained('cannot be written', writing=True):
            self._manager.wait_until_finished()

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
        abstract_rest = _rest(abstract)
        self._check(step, 'params', abstract.params)
        self._check(step, 'optimizer', abstract_rest)
        items = dict(
            params=_restore(abstract.params),
            optimizer=_restore(abstract_rest),
            position=ocp.args.JsonRestore(),
            provenance=ocp.args.JsonRestore(),
        )
        with self._explained(f'{step} cannot be read'):
            read = self._manager.restore(step, args=ocp.args.Composite(**items))
        rest = _joined(read['optimizer'], abstract)
        return rest._replace(params=read['params']), read['position'], read['provenance']

    def load_params(self, step: int | None = None, abstract: Any = None) -> dict[str, Any]:
        """Reads the parameters only, of the last step by default.

        They come laid out as `abstract` says, or without it as numpy arrays.

        Raises:
          UserError: as `load` does.
        """
        step = self._present(step)
        if abstract is None:
            sizes = self._stored(step, 'params')
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), sizes)
            wanted = ocp.args.PyTreeRestore(restore_args=args)
        else:
            self._check(step, 'params', abstract)
            wanted = _restore(abstract)
        with self._explained(f'{step} cannot be read'):
            return self._manager.restore(step, args=ocp.args.Composite(params=wanted))['params']

    def load_provenance(self, step: int | None = None) -> dict[str, Any]:
        """Reads what a checkpoint was made of."""
        step = self._present(step)
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

    @contextlib.contextmanager
    def _explained(self, failure: str, writing: bool = False):
        """Turns whatever Orbax raises into one sentence; what is already saved stays."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = _short(f'{type(error).__name__}: {error}')
            cure = 'it may be damaged or foreign; choose another step or folder'
            if writing:
                steps = _listed(self._whole())
                cure = f'free some space and run again; whole checkpoints: {steps}'
            raise UserError(f'checkpoint {failure} ({self.folder}; {reason}); {cure}') from error

    def _whole(self) -> list[int]:
        """The steps on disk, whatever the manager believes after a failure."""
        names = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())


def _options(cfg: CheckpointConfig, read_only: bool) -> ocp.CheckpointManagerOptions:
    def score(metrics):
        return metrics.get(cfg.metric, -math.inf if cfg.higher_is_better else math.inf)

    kept = [policies.LatestN(max(cfg.keep, 1))]
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
    )


def _unless_orbax(record: logging.LogRecord) -> bool:
    return '/orbax/' not in record.pathname


def _short(reason: str) -> str:
    """The beginning and the end of a long message: what failed, and why."""
    reason = reason.strip().splitlines()[0].split(' [', 1)[0]
    return reason if len(reason) < 200 else f'{reason[:60]} ... {reason[-120:]}'


def _listed(steps: list[int]) -> str:
    return ', '.join(map(str, steps)) or 'none'


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_data(x: Any) -> Any:
    """The numbers of a random key, abstract or not."""
    if isinstance(x, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=x.sharding)
    return jax.random.key_data(x)


def _paths(state: Any) -> tuple[dict[str, Any], Any]:
    leaves, tree = jax.tree_util.tree_flatten_with_path(state._replace(params=None))
    return {jax.tree_util.keystr(p, simple=True, separator='/'): x for p, x in leaves}, tree


def _rest(state: Any) -> dict[str, Any]:
    """All of the state but the parameters, as a nested dict; random keys as their numbers."""
    flat, _ = _paths(state)
    return unflatten({path: _key_data(x) if _is_key(x) else x for path, x in flat.items()})


def _joined(stored: Mapping[str, Any], abstract: Any) -> Any:
    """The inverse of `_rest`."""
    flat, tree = _paths(abstract)
    found = flatten(stored)
    leaves = [
        jax.random.wrap_key_data(found[path]) if _is_key(x) else found[path]
        for path, x in flat.items()
    ]
    return jax.tree.unflatten(tree, leaves)


def _restore(abstract: Any) -> Any:
    args = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(item=abstract, restore_args=args)


def plain(value: Any) -> Any:
    """A JSON-ready copy: numpy arrays become lists and numpy numbers Python's."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    return value
