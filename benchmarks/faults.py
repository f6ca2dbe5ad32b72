"""Whether work is ever lost: runs are disturbed over and over, and end as if nothing had been.

    python benchmarks/faults.py [--times=50] [--processes-times=20] [--only=NAME,...] [--minutes=M]
                                [--out=FILE.jsonl] [--work=DIR] [--seed=0]

Real `mtpt train` processes of a micro model are killed, terminated, starved, damaged and confused
as `tests/disturbances.py` does it, each time from another seed: `times` times what takes one
process, `processes-times` times what takes several. A kill is one of up to five of the same run.
After each the run must end with the weights of one that was never disturbed, bit for bit, or stop
with a sentence that names the cause and a status other than 0; whatever else happens is a failure,
and its folder is kept.

Every result is a JSON line in --out as soon as it is there. The same command goes on where it was
stopped; --minutes ends it after the disturbance under way.

`undisturbed` and `undisturbed_on_two` are starts of a new run: the seconds to its first step.
`natural_instructions` (only by --only; it needs the data pack, MTPT_DATA) is a run of a shrunk
model on real tasks, on two processes, killed ten times.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import random
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import disturbances  # noqa: E402
from disturbances import DISTURBANCES, Outcome, hanging_lab, killed  # noqa: E402
from labs import ONE, TWO, Lab, check_same, micro  # noqa: E402

CHAIN = 5  # kills of one run, at most
STEPS = 40
KILLS = 10  # of the run on real tasks

SHRUNK = """
from mtpt.configs import natural_instructions


def get_config():
    config = natural_instructions.get_config()
    config.exams = {{}}
    config.model = dict(size='micro')
    config.data.cache = {cache!r}
    config.data.batch_size = 8
    config.train.steps = {steps}
    config.train.validate_every = 0
    config.optimizer.schedule.warmup = 20
    config.checkpoint.every = 10
    config.log = dict(every=1, tensorboard=False)
    return config
"""


def started(lab: Lab, place: pathlib.Path, rng: random.Random, layout=ONE) -> Outcome:
    """A new run, to the end: how long it takes to its first step, beside the bits it ends with."""
    with lab.start(place, layout) as group:
        group.until(lambda: group.step() > 0)
        seconds = time.perf_counter() - group.started
        assert set(group.wait()) == {0}, group.said()
    check_same(place, lab.undisturbed(layout), lab.steps)
    return Outcome('same', 1, back=(seconds,))


ALL = dict(
    undisturbed=(started, 1),
    undisturbed_on_two=(partial(started, layout=TWO), 2),
    **DISTURBANCES,
)
REAL = 'natural_instructions'


def real_lab(work: pathlib.Path, steps: int = 200) -> Lab:
    """Super-NaturalInstructions for a micro model."""
    folder = work / REAL
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / 'config.py'
    config.write_text(SHRUNK.format(cache=str(folder / 'cache'), steps=steps))
    return Lab(folder, config, steps, 'natural_instructions_train')


def lab_of(name: str, work: pathlib.Path) -> Lab:
    if name == REAL:
        return real_lab(work)
    if name == 'hanging_source':
        return hanging_lab(work / 'hanging')
    return micro(work / 'micro', train__steps=STEPS)


def trial(name: str, seed: int, times: int, work: pathlib.Path) -> dict[str, Any]:
    """One run, disturbed up to so many times; what became of it, as a JSON-ready dict."""
    does, _ = ALL.get(name) or (partial(killed, layout=TWO, all_of_them=None), 2)
    chained = getattr(does, 'func', does) in disturbances.CHAINS
    place = work / 'runs' / f'{name}-{seed}' / 'run'
    shutil.rmtree(place.parent, ignore_errors=True)
    place.parent.mkdir(parents=True)
    lab, began = lab_of(name, work), time.perf_counter()
    more = dict(times=times) if chained else {}
    try:
        found = does(lab, place, random.Random(f'{name} {seed}'), **more)._asdict()
    except PermissionError as error:
        found = Outcome('skipped', times, str(error))._asdict()
    except Exception as error:
        found = Outcome('failed', 1, f'{type(error).__name__}: {error}'[:2000])._asdict()
    else:
        shutil.rmtree(place.parent)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    return dict(name=name, seed=seed, date=now, seconds=time.perf_counter() - began, **found)


def table(results: list[dict[str, Any]]) -> str:
    """A row a disturbance: how often, how it ended, and the seconds until a new step was done."""
    rows = collections.defaultdict(list)
    for result in results:
        rows[result['name']].append(result)
    told = [
        '| disturbance | times | ended the same | stopped with a sentence | failed '
        '| seconds to a new step: median (most) |',
        '|---|---|---|---|---|---|',
    ]
    for name in [n for n in (*ALL, REAL) if n in rows]:
        count = collections.Counter()
        for result in rows[name]:
            count[result['ended']] += result['times']
        back = [seconds for result in rows[name] for seconds in result['back']]
        shown = f'{statistics.median(back):.1f} ({max(back):.1f})' if back else ''
        if count['skipped']:
            shown = f'skipped: {rows[name][-1]["said"]}'
        times = sum(count.values()) - count['skipped']
        cells = [name, times, count['same'], count['sentence'], count['failed'], shown]
        told.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(told)


def read(out: pathlib.Path) -> list[dict[str, Any]]:
    """The results so far; a line that was cut short is none."""
    found = []
    for line in out.read_text().splitlines() if out.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def add(out: pathlib.Path, result: dict[str, Any]) -> None:
    """Adds a line, and ends one that was cut short."""
    whole = not out.exists() or out.read_text()[-1:] in ('', '\n')
    with open(out, 'a', encoding='utf-8') as file:
        file.write(('' if whole else '\n') + json.dumps(result) + '\n')


def main() -> int:
    args = parsed()
    names = args.only or list(ALL)
    end = time.monotonic() + 60 * args.minutes if args.minutes else float('inf')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    left = {name: wanted(name, args) for name in names}
    for result in (results := read(args.out)):
        if result['name'] in left:
            left[result['name']] -= result['times']
    while any(n > 0 for n in left.values()) and time.monotonic() < end:
        for name in [
            name for name in names if left[name] > 0
        ]:  # all in turn, so that each has some
            if time.monotonic() > end:
                break
            seed = args.seed + sum(result['name'] == name for result in results)
            most = KILLS if name == REAL else CHAIN
            results.append(trial(name, seed, min(most, left[name]), args.work))
            left[name] -= max(results[-1]['times'], 1)
            add(args.out, results[-1])
            print(_line(results[-1]), flush=True)
    print(table(results))
    return any(result['ended'] == 'failed' for result in results if result['name'] in names)


def wanted(name: str, args: argparse.Namespace) -> int:
    if name == REAL:
        return KILLS
    return args.times if ALL[name][1] == 1 else args.processes_times


def _line(result: dict[str, Any]) -> str:
    said = result['said'][:160].replace('\n', ' ')
    return (
        f'{result["name"]} (seed {result["seed"]}): {result["ended"]} after {result["times"]}, '
        f'{result["seconds"]:.0f} s. {said}'
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    temporary = pathlib.Path(tempfile.gettempdir()) / 'mtpt-faults'
    parser.add_argument('--times', type=int, default=50, help='of what takes one process')
    parser.add_argument('--processes-times', type=int, default=20, help='of what takes several')
    parser.add_argument('--only', type=lambda text: text.split(','), help='names')
    parser.add_argument('--minutes', type=float, default=0, help='after which no more is begun')
    parser.add_argument('--out', type=pathlib.Path, default=temporary / 'results.jsonl')
    parser.add_argument('--work', type=pathlib.Path, default=temporary / 'work')
    parser.add_argument('--seed', type=int, default=0, help='the first')
    args = parser.parse_args()
    if unknown := set(args.only or ()) - {*ALL, REAL}:
        parser.error(f'no {", ".join(sorted(unknown))}; there are: {", ".join([*ALL, REAL])}')
    return args


if __name__ == '__main__':
    sys.exit(main())
