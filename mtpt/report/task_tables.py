"""The tables of a report that are about tasks: what each had, those that stand out, and what exams
share with training."""

from collections.abc import Callable, Mapping
from typing import Any

from mtpt.report import charts, scores

STANDING_OUT = 8  # tasks of each list of those that stand out
SLACK = 0.1  # by which a share may miss what was asked for
OVERLAPS = 40  # evaluation sets that are shown
NUMBERS = ('asked', 'available', 'drawn', 'truncated', 'dropped', 'epochs', 'all_tokens')


def task_table(told: list[dict[str, Any]], curves: Mapping[str, charts.Curve]) -> list[dict]:
    """Families with their tasks and shares: what was asked for beside what was drawn.

    Where a run has told nothing of its tasks, they are those that were logged.
    """
    told = [t for t in told if t.get('status') != 'unused']
    told = told or [{'name': name} for name in _logged_tasks(curves)]
    rows = [_row(task, curves) for task in told]
    for key, counted in (('examples', 'examples'), ('tokens', 'laid')):
        total = sum(row[counted] or 0 for row in rows)
        for row in rows:
            row[f'{key}_share'] = (row[counted] or 0) / total if total else None
    widest = max((row[k] or 0 for row in rows for k in ('asked', 'examples_share')), default=0)
    for row in rows:
        row['bar'] = _bar(row, widest)
    families = [
        dict(name=family, tasks=sorted(found, key=lambda r: r['name']), **_totals(found))
        for family, found in sorted(scores.by(rows, 'family').items())
    ]
    widest = max((f[k] or 0 for f in families for k in ('asked', 'examples_share')), default=0)
    for family in families:
        family['bar'] = _bar(family, widest)
    return families


def _row(task: Mapping[str, Any], curves: Mapping[str, charts.Curve]) -> dict[str, Any]:
    name = str(task.get('name', ''))
    row = {key: task.get(key) for key in ('dataset', 'kind', 'reason')}
    row.update({key: charts.number(task.get(key)) for key in NUMBERS})
    for key in ('examples', 'tokens'):
        row[key] = charts.number(task.get(key))
        if row[key] is None and f'task/{name}/{key}' in curves:
            row[key] = sum(v for _, v in curves[f'task/{name}/{key}'])
    row.update(name=name, family=str(task.get('family') or 'no family'))
    row['status'] = 'skipped' if task.get('status') == 'skipped' else 'ok'
    seen, size = row['examples'], row['available']
    if row['epochs'] is None and 'epochs' not in task:
        row['epochs'] = seen / size if seen is not None and size else None
    row['laid'] = row['tokens'] if row['all_tokens'] is None else row['all_tokens']
    return row


def _bar(row: Mapping[str, Any], widest: float) -> dict[str, float | None]:
    return {
        k: 100 * row[k] / widest if row[k] is not None and widest else None
        for k in ('asked', 'examples_share')
    }


def _logged_tasks(curves: Mapping[str, charts.Curve]) -> list[str]:
    keys = (k.removeprefix('task/') for k in curves if k.startswith('task/'))
    return sorted({k.removesuffix('/loss') for k in keys if k.endswith('/loss')})


def _totals(rows: list[dict]) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    summed = ('asked', 'examples', 'tokens', 'laid', 'truncated', 'dropped', 'available')
    for key in (*summed, 'examples_share', 'tokens_share'):
        present = [row[key] for row in rows if row[key] is not None]
        totals[key] = sum(present) if present else None
    epochs = [row['epochs'] for row in rows if row['epochs'] is not None]
    return totals | dict(epochs=(min(epochs), max(epochs)) if epochs else None)


def extremes(families: list[dict]) -> list[dict[str, Any]]:
    """The tasks of a large mixture that a person should look at: a few at either end of each
    measure; lists with nothing to tell are left out."""
    rows = [t for family in families for t in family['tasks'] if t['status'] != 'skipped']

    def times(row: dict) -> float | None:
        asked, got = row['asked'], row['examples_share']
        return got / asked if asked and got is not None else None

    def lost(row: dict) -> float | None:
        gone = (row['truncated'] or 0) + (row['dropped'] or 0)
        drawn = row['drawn'] or row['examples']
        return gone / drawn if gone and drawn else None

    found = []
    for title, measure, largest, worth, written in (
        ('Drawn more than asked for', times, True, lambda v: v > 1 + SLACK, 'times'),
        ('Drawn less than asked for', times, False, lambda v: v < 1 - SLACK, 'times'),
        ('Most often gone through', lambda r: r['epochs'], True, lambda v: v > 0, 'epochs'),
        ('Largest part of the tokens', lambda r: r['tokens_share'], True, bool, 'share'),
        ('Most often cut or dropped', lost, True, bool, 'share'),
    ):
        picked = _picked(rows, measure, largest, worth)
        if picked:
            found.append(dict(title=title, written=written, tasks=picked))
    return found


def _picked(
    rows: list[dict], measure: Callable[[dict], float | None], largest: bool, worth: Callable
) -> list[tuple[dict, float]]:
    valued = [(row, measure(row)) for row in rows]
    valued = [(row, value) for row, value in valued if value is not None and worth(value)]
    return sorted(valued, key=lambda pair: (-pair[1] if largest else pair[1], pair[0]['name']))[
        :STANDING_OUT
    ]


def overlap_table(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `overlap.json` says of exams and training, the largest share first; None without it."""
    exams = [e for e in told.get('exams') or () if isinstance(e, dict) and 'name' in e]
    rows = []
    for exam in exams:
        row = {k: charts.number(exam.get(k)) for k in ('examples', 'short', 'seen', 'share')}
        row |= {k: str(exam.get(k) or '') for k in ('name', 'split', 'kind', 'dataset')}
        worst = [w for w in exam.get('worst') or () if isinstance(w, dict)]
        row['worst'] = {k: worst[0].get(k) for k in _PLACE} if worst else None
        if worst:
            row['worst']['share'] = charts.number(worst[0].get('share'))
        rows.append(row)
    if not rows:
        return None
    rows.sort(key=lambda r: (-(r['share'] or 0), r['name'], r['split']))
    return dict(
        rows=rows[:OVERLAPS],
        left=len(rows[OVERLAPS:]),
        clean=sum(row['share'] == 0 for row in rows),
        unjudged=sum(row['share'] is None for row in rows),
        count=len(rows),
        n=told.get('n'),
        source=told.get('source'),
    )


_PLACE = ('example', 'share', 'task', 'shard', 'place', 'words')
