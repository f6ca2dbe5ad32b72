"""A run's folder -> one HTML file that can be mailed: curves, scores, tasks, configuration.

Everything that the page says is computed here, in `scores` and in `charts`; `report.html.j2` only
sets it. Names and texts in a run are not trusted: they reach the page through the template's
escaping and in no other way. Missing pieces of a run become a sentence; only a folder without any
metrics is an error.
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jinja2
import numpy as np

from mtpt import files, log, specialisation
from mtpt.config import UserError
from mtpt.report import charts, running, scores
from mtpt.report.task_tables import extremes, overlap_table, task_table

OPEN_TASKS = 150  # of more tasks than this families are shown, and the tasks that stand out
ABOUT = ('name', 'command', 'config', 'versions', 'parameters', 'devices', 'started')
SMALL = 60  # points of a small curve


@dataclasses.dataclass(frozen=True)
class Run:
    """What was found in a run's folder; every part but `curves` may be empty."""

    folder: pathlib.Path
    about: dict[str, Any]
    curves: dict[str, charts.Curve]
    tasks: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    routing: dict[str, Any]
    overlap: dict[str, Any]
    unread: list[str]


def write(workdir: str | pathlib.Path) -> pathlib.Path:
    """Writes `workdir/report.html` and returns its path.

    Raises:
      UserError: there is no such folder, or it holds no metrics, or it cannot be written to.
    """
    run = read(workdir)
    path = run.folder / 'report.html'
    files.write(path, page(run))
    return path


def read(workdir: str | pathlib.Path) -> Run:
    """Reads what a run left behind, also when it was killed in the middle of a line."""
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        raise UserError(f'no folder {str(folder)!r}; --workdir takes the folder of a run')
    unread: list[str] = []
    curves = _curves(log.read_metrics(folder))
    about = _json(folder / 'config.json', dict, unread)
    if not curves and 'extracted' not in about:
        path = folder / 'metrics.jsonl'
        raise UserError(f'{path} holds no metrics yet; a report needs a run that has logged a step')
    tasks = [t for t in _json(folder / 'tasks.json', list, unread) if isinstance(t, dict)]
    evaluations = []
    for path in sorted(folder.glob('eval/*.json')):
        found = _json(path, dict, unread)
        rows = [r for r in found.get('rows') or () if isinstance(r, dict) and 'task' in r]
        rows = [r for r in rows if charts.number(r.get('value')) is not None]
        for row in rows:
            if row.get('method') == 'greedy decoding':
                row['chance'] = None  # nothing is chosen from, so no score comes by chance
        if rows:
            evaluations.append(dict(found, step=int(found.get('step') or 0), rows=rows))
        elif found:
            unread.append(f'{path.name} holds no rows')
    routing = _json(folder / specialisation.FILE, dict, unread)
    overlap = _json(folder / 'overlap.json', dict, unread)
    return Run(folder, about, curves, tasks, evaluations, routing, overlap, unread)


def page(run: Run) -> str:
    """The whole page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        short=charts.short, score=score, percent=percent, whole=whole, plain=plain, moment=moment
    )
    families = task_table(run.tasks, run.curves)
    judged = [scores.scored(group) for group in scores.grouped(run.evaluations)]
    ran = dict(
        figures=running.figures(run.curves),
        charts=running.speed_charts(run.curves),
        time=running.time_spent(run.folder),
        profiles=running.profiles(run.folder, run.unread),
        causes=running.causes(run.folder),
    )
    return environment.get_template('report.html.j2').render(
        run=run,
        about=dict.fromkeys(ABOUT) | run.about,
        name=run.about.get('name') or run.folder.resolve().name,
        facts=facts(run, families),
        learning=learning_curves(run.curves),
        ran=ran,
        families=families,
        skipped=[t for f in families for t in f['tasks'] if t['status'] == 'skipped'],
        task_count=sum(len(f['tasks']) for f in families),
        extremes=extremes(families),
        overlap=overlap_table(run.overlap),
        multiples=multiples(run, families),
        heat_maps=heat_maps(run.routing),
        extracted=extracted(run.about),
        scores=judged,
        lost=sum(value for _, value in run.curves.get('train/skipped', ())),
        open_tasks=OPEN_TASKS,
    )


# What the files say.


def _curves(lines: Iterable[dict]) -> dict[str, charts.Curve]:
    """The points of each metric by step; what was not finite is no point."""
    curves: dict[str, charts.Curve] = {}
    for line in lines:
        for key, value in line.items():
            if key != 'step' and charts.number(value) is not None:
                curves.setdefault(key, []).append((line['step'], float(value)))
    return curves


def seconds(curves: dict[str, charts.Curve]) -> float:
    """How long the steps of a run took, those not timed as long as those after them."""
    spent, before = 0.0, 0
    for step, each in curves.get('time/step', ()):
        spent += (step - before) * each
        before = step
    return spent


def _json(path, kind, unread):
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError):
        found = None
    if not isinstance(found, kind):
        unread.append(path.name)
        return kind()
    return found


# The run as a whole.


def facts(run: Run, families: list[dict]) -> list[tuple[str, str]]:
    """The few numbers under the title: (number, what it is)."""
    steps = max((curve[-1][0] for curve in run.curves.values()), default=None)
    found = [] if steps is None else [(whole(steps), 'steps')]
    sides = [run.curves.get(f'train/{side}', ()) for side in ('tokens', 'encoder_tokens')]
    tokens = sum(value for side in sides for _, value in side)
    if not all(sides):
        tokens = sum(t['tokens'] or 0 for family in families for t in family['tasks'])
    if tokens:
        found.append((charts.short(tokens), 'tokens seen'))
    if spent := seconds(run.curves):
        number, unit = duration(spent)
        found.append((number, f'{unit} in steps'))
    if charts.number(run.about.get('parameters')):
        found.append((charts.short(run.about['parameters']), 'parameters'))
    trained = sum(t['status'] != 'skipped' for family in families for t in family['tasks'])
    if trained:
        found.append((whole(trained), 'task' if trained == 1 else 'tasks'))
    return found


def duration(seconds: float) -> tuple[str, str]:
    for size, unit in ((86400, 'days'), (3600, 'hours'), (60, 'minutes')):
        if seconds >= 2 * size:
            return f'{seconds / size:.1f}', unit
    return f'{seconds:.0f}', 'seconds'


def learning_curves(curves: dict[str, charts.Curve]) -> list[dict]:
    """The large charts; one whose metric was not logged is left out."""
    wanted = [
        ('Loss', dict(train='train/loss', valid='valid/loss'), dict()),
        ('Token accuracy', dict(train='train/accuracy', valid='valid/accuracy'), dict(top=1.0)),
        ('Learning rate', dict(train='train/learning_rate'), dict()),
        ('Gradient norm', dict(train='train/grad_norm'), dict(log=True)),
    ]
    found = []
    for title, keys, how in wanted:
        present = {name: curves[key] for name, key in keys.items() if key in curves}
        chart = charts.chart(title, present, **how)
        if chart:
            found.append(chart)
    return found


def multiples(run: Run, families: list[dict]) -> list[dict]:
    """A small loss chart a task, all on one scale so that they can be compared at a glance."""
    pairs, highest = {}, []
    for task in (t for family in families for t in family['tasks']):
        keys = (f'task/{task["name"]}/loss', f'valid/task/{task["name"]}/loss')
        pairs[task['name']] = [charts.thin(run.curves.get(key, []), SMALL) for key in keys]
        highest += [v for curve in pairs[task['name']] for _, v, _, _ in curve]
    if not highest:
        return []
    top = charts.nice_above(float(np.quantile(highest, 0.98)))
    last = max(curve[-1][0] for curve in run.curves.values())
    found = []
    for family in families:
        cells = []
        for task in family['tasks']:
            lines = charts.small(pairs[task['name']], last, top)
            if lines:
                label = task['name'].removeprefix(f'{family["name"]}_')
                cells.append(dict(lines, name=task['name'], label=label or task['name']))
        if cells:
            found.append(dict(name=family['name'], cells=cells, top=top, steps=last))
    return found


def heat_maps(routing: dict) -> list[dict]:
    """A heat map of families and experts for each sparse layer, and what an expert tells."""
    found = []
    layers = routing.get('layers')
    for layer in layers if isinstance(layers, list) else ():
        try:
            chart = charts.heat(layer['families'], layer['counts'])
            told = {k: charts.number(layer[k]) for k in ('information', 'family_entropy', 'share')}
            title = f'{layer["stack"]}, layer {layer["layer"]}'
        except (KeyError, TypeError):
            continue
        if chart and told['information'] is not None:
            found.append(dict(chart, title=title, **told))
    return found


def extracted(about: dict) -> str:
    """Where a model came from that is the part of another which one task uses; '' for others."""
    told = about.get('extracted')
    if not isinstance(told, dict):
        return ''
    used = [u for u in told.get('experts') or () if isinstance(u, dict)]
    experts = ', '.join(f'{u.get("stack")} {u.get("layer")}: {u.get("expert")}' for u in used)
    task = told.get('task') or 'a task that is not known'
    where = f'{told.get("run")}, step {told.get("step")}'
    return f'What {task} uses of {where}; the expert of each sparse layer: {experts}.'


# How numbers are written.


def score(value: float | None, signed: bool = False) -> str:
    if charts.number(value) is None:
        return '–'
    sign = ('+' if value >= 0 else '−') if signed else ('−' if value < 0 else '')
    return f'{sign}{abs(value):.3f}' if abs(value) < 2 else f'{sign}{abs(value):.1f}'


def percent(value: float | None) -> str:
    return '–' if charts.number(value) is None else f'{100 * value:.2f}'


def whole(value: float | None) -> str:
    return '–' if charts.number(value) is None else f'{value:,.0f}'.replace(',', '\u202f')


def plain(value: Any) -> str:
    """A setting as a person would write it in a config file."""
    if isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value):
        return ', '.join(map(plain, value)) or 'none'
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def moment(text: Any) -> str:
    """An ISO time as a person writes it; anything else as it stands."""
    try:
        at = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return plain(text)
    return f'{at.day} {at:%B %Y, %H:%M} {at:%Z}'.rstrip()
