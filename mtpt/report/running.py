"""How a run went, for its report: where its time went, how fast it was, its memory, its profiles.

Numbers come from `lives.jsonl`, the metrics and `profile/*.json`, none of which is trusted.
"""

import json
import math
import pathlib
import statistics
from typing import Any

from mtpt.report import charts
from mtpt.watch import goodput

TITLES = dict(
    steps='steps',
    compiling='compiling',
    data='waiting for data',
    saving='saving',
    evaluating='evaluating',
    profiling='profiling',
    starting='starting',
    other='other',
    lost='lost to restarts: work done again',
    down='lost to restarts: between processes',
)
REPLAYS = 3  # of updates that were not finite, that are told of
SHOWN = 20  # processes of a run that are listed, the last ones
EVENTS = {
    'train/skipped': 'steps left out, not finite',
    'train/spikes': 'loss spikes',
    'train/passed_over': 'updates passed over after a spike',
}


def time_spent(folder: pathlib.Path) -> dict[str, Any] | None:
    """The whole life of a run in parts with their shares; None where nobody counted."""
    lives = goodput.lives(folder)
    account = goodput.summed(lives)
    if not account.total:
        return None
    seconds = account.seconds | dict(lost=account.lost, down=account.down)
    parts = [
        dict(
            kind=kind, title=title, seconds=span(seconds[kind]), share=seconds[kind] / account.total
        )
        for kind, title in TITLES.items()
        if seconds.get(kind)
    ]
    return dict(
        parts=parts,
        total=span(account.total),
        steps=account.steps,
        restarts=account.restarts,
        unknown=account.unknown,
        lives=_processes(lives)[-SHOWN:] if len(lives) > 1 else [],
    )


def _processes(lives: list[goodput.Life]) -> list[dict[str, Any]]:
    """The processes of a run: from which step to which, what of it was lost, the pause before."""
    found, before = [], None
    for i, life in enumerate(lives):
        _, lost = life.split(min((later.began for later in lives[i + 1 :]), default=math.inf))
        pause = goodput.gap(before, life) if before else 0.0
        found.append(
            dict(
                number=i + 1,
                began=life.began,
                reached=life.marks[-1][0],
                alive=span(life.alive),
                lost=span(lost) if lost else '',
                pause='unknown' if pause is None else span(pause) if before else '',
            )
        )
        before = life
    return found


def causes(folder: pathlib.Path) -> list[str]:
    """What was found behind updates that were not finite, of the first steps that were replayed."""
    found = []
    for path in sorted(folder.glob('nonfinite/*.json'))[:REPLAYS]:
        try:
            told = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError):
            continue
        if isinstance(told, dict) and isinstance(told.get('sentence'), str):
            found.append(told['sentence'])
    return found


def span(seconds: float) -> str:
    """A time as a person says it: 4.2 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    for small, large, of, names in ((1, 60, 60, 'min s'), (60, 3600, 24, 'h min')):
        units = round(seconds / small)
        if units < large // small * of:
            high, low = divmod(units, large // small)
            first, second = names.split()
            return f'{high} {first} {low} {second}'
    days, hours = divmod(round(seconds / 3600), 24)
    return f'{days} d {hours} h'


def figures(curves: dict[str, charts.Curve]) -> list[tuple[str, str]]:
    """Speed and memory as (number, what it is)."""
    found = []
    usual = {
        name: statistics.median(v for _, v in curve) for name, curve in curves.items() if curve
    }
    if 'time/mfu' in usual:
        found.append((f'{usual["time/mfu"]:.1%}'.replace('%', ' %'), 'MFU'))
    if 'time/flops_per_s' in usual:
        found.append((charts.short(usual['time/flops_per_s'] / 1e9), 'GFLOP/s of the model'))
    if 'time/tokens_per_s' in usual:
        found.append((charts.short(usual['time/tokens_per_s']), 'tokens a second'))
    if 'time/step' in usual:
        found.append((span(usual['time/step']) if usual['time/step'] >= 1 else
                      f'{1e3 * usual["time/step"]:.0f} ms', 'a step'))  # fmt: skip
    for name, what in (
        ('memory/peak_gb', 'GB of a device at most'),
        ('memory/host_gb', 'GB of the process at most'),
    ):
        if name in curves:
            found.append((f'{max(v for _, v in curves[name]):.3g}', what))
    counts = {name: sum(v for _, v in curves.get(name, ())) for name in EVENTS}
    if counts['train/passed_over'] == counts['train/spikes']:
        counts['train/passed_over'] = 0  # each spike was, and it alone
    found += [(f'{count:.0f}', EVENTS[name]) for name, count in counts.items() if count]
    if back := len(curves.get('spikes/back_to', ())):
        found.append((f'{back}', 'times taken back to a checkpoint'))
    return found


def speed_charts(curves: dict[str, charts.Curve]) -> list[dict]:
    """Charts of speed, goodput and memory over steps; what was not logged is left out."""
    memory = 'memory/in_use_gb' if 'memory/in_use_gb' in curves else 'memory/host_gb'
    flops = [(step, value / 1e9) for step, value in curves.get('time/flops_per_s', ())]
    curves = curves | {'time/gflops_per_s': flops}
    wanted = [
        ('MFU', dict(train='time/mfu'), {}),
        ('GFLOP/s of the model', dict(train='time/gflops_per_s'), {}),
        ('Tokens per second', dict(train='time/tokens_per_s'), {}),
        ('Time in steps that were kept', dict(train='goodput/run'), dict(top=1.0)),
        (
            f'GB in use, {"fullest device" if "in_use" in memory else "process"}',
            dict(train=memory),
            {},
        ),
    ]
    made = (
        charts.chart(title, {n: curves[k] for n, k in keys.items() if k in curves}, **how)
        for title, keys, how in wanted
    )
    return [chart for chart in made if chart]


def profiles(folder: pathlib.Path, unread: list[str]) -> list[dict[str, Any]]:
    """What the traces of a run say, oldest first; a file that is none is named in `unread`."""
    found = []
    for path in sorted(folder.glob('profile/*.json')):
        try:
            told = json.loads(path.read_text(encoding='utf-8'))
            count = int(told['last']) - int(told['first']) + 1
            busy, seconds = float(told['busy']), float(told['seconds'])
            shares = sorted(
                ((str(k), float(v)) for k, v in told['kinds'].items()), key=lambda p: -p[1]
            )
            found.append(
                dict(
                    title=f'Step {told["first"]}' if count == 1 else
                          f'Steps {told["first"]} to {told["last"]}',
                    busy=busy,
                    idle=1 - busy,
                    devices=int(told['devices']),
                    milliseconds=1e3 * seconds / count,
                    kinds=shares,
                    operations=[
                        (str(name), str(kind), 1e3 * float(each), float(calls))
                        for name, kind, each, calls in told['operations']
                    ],
                )
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            unread.append(f'profile/{path.name}')
    return found
