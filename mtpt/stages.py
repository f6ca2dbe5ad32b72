"""The stages of a run: which mixture, lengths, optimizer and schedule hold at which steps.

A run without stages is one leg. All legs share the folder, the vocabulary, the table of tasks and
the row groups with their counters, so that a task goes on in a later leg where an earlier one left
it, and a checkpoint of any step says which leg it belongs to.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtpt.config import UserError, as_dict
from mtpt.config import read as read_config
from mtpt.settings import Run, Stage

SHARED = ('mixture', 'vocabulary', 'mode', 'cache', 'row_groups')  # by all stages of a run


class Leg(NamedTuple):
    """A stretch of a run: `run` holds its settings, `first` and `last` count steps of the run, the
    steps after `first` up to `last` are its own."""

    name: str
    run: Run
    first: int
    last: int
    fresh_optimizer: bool = False


def legs(run: Run) -> list[Leg]:
    """The run cut into its stages.

    Raises:
      UserError: a setting that a stage cannot have or does not know, or a stage without a mixture.
    """
    if not run.stages:
        return [Leg('', run, 0, run.train.steps)]
    found, first = [], 0
    for stage in run.stages:
        last = first + stage.steps
        found.append(
            Leg(stage.name, _settings(run, stage, last), first, last, stage.fresh_optimizer)
        )
        first = last
    return found


def leg_of(found: list[Leg], step: int) -> Leg:
    """The leg that a checkpoint of `step` steps was saved in."""
    last = found[-1] if step > found[-1].last else found[0]
    return next((leg for leg in found if leg.first < step <= leg.last), last)


def parts(run: Run) -> dict[str, float]:
    """The mixtures of a run and the part of its steps that each has."""
    found: dict[str, float] = {}
    for leg in legs(run):
        begin, name = leg.first, leg.run.data.mixture
        for change in sorted(leg.run.data.rates, key=lambda c: c.step):
            if change.mixture and leg.first <= change.step < leg.last:
                found[name] = found.get(name, 0.0) + change.step - begin
                begin, name = change.step, change.mixture
        found[name] = found.get(name, 0.0) + leg.last - begin
    return found


def mixtures(leg: Leg) -> list[str]:
    """The mixtures whose rates a leg comes to draw at, beside its own."""
    return [change.mixture for change in leg.run.data.rates if change.mixture]


def ended(run: Run) -> Run:
    """The run as it is after its last stage: with that one's lengths, and all of its mixtures."""
    if not run.stages:
        return run
    last = legs(run)[-1].run.data
    return dataclasses.replace(
        run, data=dataclasses.replace(last, mixture=run.data.mixture, rates=run.data.rates)
    )


def check_goes_on(old: Run, new: Run, step: int, where: Any) -> None:
    """A run may grow at its end, by steps or by stages; what was trained stays as it was.

    Raises:
      UserError: a stage that was begun differs from the one that the run had, or is over sooner
        than the run has come.
    """
    before, now = legs(old), legs(new)
    for i, leg in enumerate(leg for leg in before if leg.first < step or not leg.first):
        other = now[i] if i < len(now) else None
        grows = i == len(before) - 1 and other is not None and other.last >= step
        same = other is not None and _trains(leg) == _trains(other)
        if not same or (other.last != leg.last and not grows):
            what = f'stage {leg.name!r}' if leg.name else 'training'
            raise UserError(
                f'{where} holds a run whose {what} (to step {leg.last}) is not that of the config; '
                'a run may be made longer or given more stages, else choose another --workdir'
            )


def _trains(leg: Leg) -> tuple[Any, ...]:
    """What of a leg's settings its training follows from."""
    sections = [as_dict(getattr(leg.run, name)) for name in ('data', 'optimizer', 'train')]
    free = ('cache', 'steps', 'validate_every', 'prefetch', 'max_skipped', 'replays')
    told = [{k: v for k, v in section.items() if k not in free} for section in sections]
    return (leg.first, leg.fresh_optimizer, *told)


def _settings(run: Run, stage: Stage, last: int) -> Run:
    for name in stage.data:
        if name in SHARED:
            cure = 'name it as the mixture of the stage' if name == 'mixture' else 'leave it out'
            raise UserError(f'stage {stage.name!r} cannot have a data.{name} of its own; {cure}')
    if 'steps' in stage.train or 'seed' in stage.train:
        raise UserError(f'stage {stage.name!r}: train.steps and train.seed belong to the whole run')
    where = f'stage {stage.name!r}'
    mixture = stage.mixture or run.data.mixture
    if not mixture:
        raise UserError(f'{where} has no mixture; give it one, or set data.mixture')
    optimizer = _laid_over(as_dict(run.optimizer), stage.optimizer)
    return dataclasses.replace(
        run,
        stages=(),
        data=_read(run.data, as_dict(run.data) | stage.data | dict(mixture=mixture), where, 'data'),
        optimizer=_read(run.optimizer, optimizer, where, 'optimizer'),
        train=_read(run.train, as_dict(run.train) | stage.train | dict(steps=last), where, 'train'),
    )


def _read(like: Any, values: Mapping[str, Any], where: str, section: str) -> Any:
    return read_config(type(like), values, f'{where}: {section}')


def _laid_over(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over settings; what belongs to a method goes with it when another is named."""
    if 'name' in above and above['name'] != below['name']:
        kept = {k: v for k, v in below.items() if k in ('schedule', 'clip', 'weight_decay', 'rate')}
        below = kept
    schedule = above.get('schedule')
    if schedule is not None and 'schedule' in below:
        above = {**above, 'schedule': _laid_over(below['schedule'], schedule)}
    return below | dict(above)
