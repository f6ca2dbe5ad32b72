"""What was behind an update that was not finite, in words and in `nonfinite/STEP.json`.

The last batches are kept as they were drawn, with the examples in them; a step that was left out
is taken again with its own batch and key (`train.replay`), and what fails is written down.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from mtpt.config import UserError
from mtpt.data.loader import Loader
from mtpt.data.packing import Batch, Example
from mtpt.files import write
from mtpt.mesh import MeshConfig
from mtpt.settings import Run
from mtpt.train.config import TrainConfig
from mtpt.train.replay import NAMED, Found, Replay, gathered
from mtpt.train.state import TrainState
from mtpt.vocabulary import Vocabulary
from mtpt.watch.watchdog import WatchdogConfig

DEBUGGING = (
    'one device, batches drawn step by step, no watchdog; the first update that is not finite ends '
    'the run with a traceback'
)
SHOWN = 300  # characters of an example's inputs and targets
LARGE = 1e6  # a parameter beyond is told of: no model that learns has one


class Recent:
    """The last batches that were drawn, by the step that they are for, and what lies in them."""

    def __init__(self, kept: int, loader: Loader, step: int):
        self.kept, self.loader, self.step = kept, loader, step
        self._batches: dict[int, tuple[Batch, list[list[Example]]]] = {}

    def watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches as they come; the first is for the step after `step`."""
        for step, (batch, position) in enumerate(batches, self.step + 1):
            self._batches[step] = batch, self.loader.laid
            self._batches.pop(step - self.kept, None)
            yield batch, position

    def of(self, step: int) -> tuple[Batch, list[list[Example]]] | None:
        """The batch of a step and the examples of each of its rows, None if it is forgotten."""
        return self._batches.get(step)

    def tasks(self, step: int) -> list[str]:
        """The names of the tasks in the batch of a step, or in the last one that was drawn."""
        found = self.of(step) or self.of(max(self._batches, default=0))
        ids = np.unique(found[0]['segment_task_ids']).tolist() if found else []
        return [self.loader.manifest.names[i] for i in ids if i]


class Diagnosis:
    """Tells of updates that were left out; takes at most `cfg.replays` steps of a stage again.

    strict: whether the first of them ends the run, with a traceback of the model's own line.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        replay: Replay,
        recent: Recent,
        vocabulary: Vocabulary,
        workdir: pathlib.Path,
        strict: bool = False,
    ):
        self.strict = strict
        self.replay, self.recent, self.left = replay, recent, cfg.replays
        self.vocabulary, self.folder = vocabulary, workdir / 'nonfinite'
        self.found: Found | None = None

    def __call__(self, step: int, state: TrainState) -> str | None:
        """A sentence on step `step`, whose update was left out; None where no more are replayed.

        All processes of a run ask alike. `state` is that of now, a step or so later: its parameters
        are those of the step as long as no update came between.
        """
        kept = self.recent.of(step)
        if kept is None or self.left < 1:
            return None
        self.left -= 1
        jax.block_until_ready(state)
        exact = int(state.skipped) > int(state.step) - step
        key = jax.random.fold_in(state.key, step - 1)
        found = self.found = self.replay(state.params, key, kept[0])
        told = dict(step=step, same_parameters=exact) | found._asdict()
        told['segments'] = self._examples(found, *kept)
        said = self._written(step, told)
        if self.strict:
            self._traced(said, state, key, kept[0], found)
        return said

    def _written(self, step: int, told: dict[str, Any]) -> str:
        said = sentence(told)
        path = self.folder / f'{step:08d}.json'
        if jax.process_index() == 0:
            try:
                write(path, json.dumps(told | dict(sentence=said), indent=1, ensure_ascii=False))
            except UserError as error:
                return f'{said} ({error})'
        return f'{said}; see {path}'

    def _traced(self, said: str, state: TrainState, key: Any, batch: Batch, found: Found) -> None:
        try:
            self.replay.at_the_line(state.params, key, batch, found.part)
        except FloatingPointError as error:
            raise FloatingPointError(said) from error
        raise FloatingPointError(said)

    def _examples(
        self, found: Found, batch: Batch, laid: list[list[Example]]
    ) -> list[dict[str, Any]]:
        """What the guilty segments hold, told by the process that read them."""
        S, T = (batch[f'{side}_segment_ids'].shape[-1] for side in ('encoder', 'decoder'))
        about, inputs = np.zeros((NAMED, 6), np.int64), np.zeros((NAMED, S), np.int32)
        targets = np.zeros((NAMED, T), np.int32)
        accumulated = batch['segment_task_ids'].ndim == 3
        rows = len(laid) // len(batch['segment_task_ids']) if accumulated else len(laid)
        for i, (process, row, segment) in enumerate(found.segments):
            if process != jax.process_index():
                continue
            example = laid[found.part * rows + row][segment]
            epoch, number = self.recent.loader.source.number(example.task, example.counter)
            sizes = len(example.inputs), len(example.targets)
            about[i] = example.task, example.counter, epoch, number, *sizes
            inputs[i, : sizes[0]], targets[i, : sizes[1]] = example.inputs, example.targets
        told = gathered(dict(about=about, inputs=inputs, targets=targets))
        return [self._example(i, found.segments[i], told) for i in range(len(found.segments))]

    def _example(self, i: int, where: Any, told: dict[str, np.ndarray]) -> dict[str, Any]:
        task, counter, epoch, number, *ends = told['about'][where.process, i].tolist()
        manifest = self.recent.loader.manifest
        ids = {n: told[n][where.process, i, :end] for n, end in zip(('inputs', 'targets'), ends)}
        texts = {name: self.vocabulary.decode(x.tolist())[:SHOWN] for name, x in ids.items()}
        return dict(
            task=manifest.names[task], example=number, epoch=epoch, draw=counter, **texts,
            **where._asdict(),
        )  # fmt: skip


def for_debugging(run: Run) -> Run:
    """The run on the first device, step by step: no thread draws batches, no step is dispatched
    before the one before it was looked at, and nothing ends a process that stands at a breakpoint.

    Raises:
      UserError: several processes.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'--debug runs on one device, and this run has {jax.process_count()} processes; start '
            'one alone, without --coordinator or what a scheduler sets'
        )
    train = dataclasses.replace(run.train, prefetch=0, replays=max(run.train.replays, 1))
    off = WatchdogConfig(seconds=0)
    return dataclasses.replace(run, mesh=MeshConfig(), train=train, watchdog=off)


LOOKS = {
    'parameters': 'parameters were no numbers before the step: {parameters}; the first part that '
    'fails with them is {place}',
    'forward': 'forward, the first part that fails is {place}',
    'loss': 'all layers give numbers, and the loss of these tokens is none',
    'backward': 'forward all is finite; backward, the first gradient that fails is {gradients}',
    '': 'taken again, the step is finite',
}


def sentence(told: dict[str, Any]) -> str:
    """What is known of a step in a sentence for the terminal."""
    said = LOOKS[told['look']].format(
        place=told['place'],
        parameters=_some(told['parameters']),
        gradients=_some(told['gradients'], 1),
    )
    if told['segments']:
        said += ', for ' + _some([f'{e["task"]} example {e["example"]}' for e in told['segments']])
        said += f' ("{" ".join(told["segments"][0]["inputs"].split())[:60]}")'
    elif told['every']:
        said += ', for all examples alike'
    path, size = told['largest']
    if size > LARGE:
        said += f'; parameters have grown to {size:.2g} ({path}), whatever the data: lower the rate'
    if not told['same_parameters']:
        said += ' (with the parameters of a step later, as those of the step are gone)'
    return f'the update of step {told["step"]} was left out: {said}'


def _some(names: Any, most: int = 3) -> str:
    names = list(names)
    more = f' and {len(names) - most} more' if len(names) > most else ''
    more = ' and others' if len(names) >= NAMED else more  # of which not all were counted
    return ', '.join(names[:most]) + more
