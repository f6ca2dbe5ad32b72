"""Rows of evaluations -> scores of tasks, families and kinds, with what they must be read against.

`evaluate` writes a row a prompt and metric. Here the prompts of a task become its score, tasks a
macro score with its interval, and evaluations of the same thing at different steps a course.
"""

import statistics
from typing import Any

from mtpt.evaluate.intervals import over_tasks
from mtpt.report import charts

KINDS = ('new tasks', 'new wordings', 'trained')
FEWEST = 3  # tasks without which an interval over tasks would say too little


def grouped(evaluations: list[dict]) -> list[list[dict]]:
    """Evaluations of the same thing at different steps, oldest first; unseen kinds come first."""

    def name(found):
        keys = ('mixture', 'split', 'normalisation')
        return tuple(str(found.get(key) or '') for key in keys)

    def rank(group):
        kinds = [KINDS.index(k) if k in KINDS else 1 for k in {_kind(r) for r in group[-1]['rows']}]
        return min(kinds), -group[-1]['step'], name(group[-1])

    groups: dict[tuple, dict[int, dict]] = {}
    for found in evaluations:
        groups.setdefault(name(found), {})[found['step']] = found
    return sorted(([g[step] for step in sorted(g)] for g in groups.values()), key=rank)


def scored(group: list[dict]) -> dict[str, Any]:
    """The newest evaluation of a group, judged, and the course of its macro scores."""
    newest = group[-1]
    sections = judge(newest['rows'])
    course = []
    like = [found for found in group if _asked(found) == _asked(newest)]
    if len(like) > 1:
        history = [(found['step'], judge(found['rows'])) for found in like]
        for section in sections:
            same = [
                (step, s)
                for step, found in history
                for s in found
                if (s['kind'], s['metric']) == (section['kind'], section['metric'])
            ]
            course.append(charts.course(section['title'], same))
    return dict(
        mixture=newest.get('mixture') or 'unnamed mixture',
        split=newest.get('split'),
        normalisation=newest.get('normalisation'),
        step=newest['step'],
        sections=sections,
        course=[chart for chart in course if chart],
        unlike=len(group) - len(like),
    )


def _asked(found: dict) -> dict[tuple, Any]:
    """On how many examples each score of an evaluation is; others cannot be compared with it."""
    keys = ('task', 'prompt', 'kind', 'metric')
    return {tuple(str(r.get(key)) for key in keys): r.get('examples') for r in found['rows']}


def judge(rows: list[dict]) -> list[dict]:
    """Scores by kind and metric, then family, then task, whose score is the mean over its prompts.

    The interval of a task is over its examples, which its prompts share, so that their bounds are
    averaged; the interval of a macro score is a bootstrap over tasks.
    """
    sections = []
    for (kind, metric), found in by(
        rows, lambda r: (_kind(r), str(r.get('metric') or '?'))
    ).items():
        tasks = [_task(task, of) for task, of in sorted(by(found, 'task').items())]
        scale = 100.0 if max(t['value'] for t in tasks) > 1 else 1.0
        for task in tasks:
            task['strip'] = charts.strip(task, scale, [p['value'] for p in task['prompts']])
        families = []
        for family, of in sorted(by(tasks, 'family').items()):
            families.append(dict(macro(of), name=family, tasks=of))
            families[-1]['strip'] = charts.strip(families[-1], scale)
        section = dict(macro(tasks), kind=kind, metric=metric, families=families, scale=scale)
        section['strip'] = charts.strip(section, scale)
        section['title'] = f'{kind[:1].upper()}{kind[1:]}, {metric.replace("_", " ")}'
        sections.append(section)
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(sections, key=lambda s: (order.get(s['kind'], 1.5), s['kind'], s['metric']))


def _task(name, rows):
    values = [row['value'] for row in rows]
    low = [v if charts.number(r.get('low')) is None else r['low'] for r, v in zip(rows, values)]
    high = [v if charts.number(r.get('high')) is None else r['high'] for r, v in zip(rows, values)]
    found = dict(
        name=str(name),
        family=str(rows[0].get('family') or 'no family'),
        dataset=rows[0].get('dataset'),
        value=statistics.fmean(values),
        median=statistics.median(values),
        spread=max(values) - min(values),
        low=statistics.fmean(low),
        high=statistics.fmean(high),
        has_interval=any(h > l for l, h in zip(low, high)),
        examples=max(int(charts.number(r.get('examples')) or 0) for r in rows),
        cut=any(r.get('cut') is True for r in rows),
        prompts=sorted(({**_PROMPT, **row} for row in rows), key=lambda r: str(r['prompt'])),
    )
    for key in ('chance', 'majority', 'empty'):
        found[key] = _mean(row.get(key) for row in rows)
    for prompt in found['prompts']:
        right = _shares(prompt['answer_shares'])
        given = sorted(_shares(prompt['label_shares']).items(), key=lambda pair: -pair[1])
        prompt['labels'] = [(k, v, right.get(k, 0.0) if right else None) for k, v in given]
    return found


_PROMPT = dict.fromkeys(
    'prompt low high chance majority empty examples label_shares answer_shares'.split()
)


def _shares(found):
    found = found if isinstance(found, dict) else {}
    return {str(k): v for k, v in found.items() if charts.number(v) is not None}


def macro(tasks: list[dict]) -> dict[str, Any]:
    """Mean over tasks and its gain over chance, with intervals that say how much tasks differ."""
    values = [t['value'] for t in tasks]
    low, high = over_tasks(values) if len(tasks) > 1 else (tasks[0]['low'], tasks[0]['high'])
    found = dict(value=statistics.fmean(values), low=low, high=high, count=len(tasks))
    found['has_interval'] = high > low
    found['cut'] = any(t['cut'] for t in tasks)
    found['examples'] = sum(t['examples'] for t in tasks)
    for key in ('chance', 'majority', 'empty', 'median', 'spread'):
        found[key] = _mean(t[key] for t in tasks)
    gains = [t['value'] - t['chance'] for t in tasks if t['chance'] is not None]
    found['gain'] = statistics.fmean(gains) if gains else None
    enough = len(gains) >= FEWEST
    found['gain_low'], found['gain_high'] = over_tasks(gains) if enough else (None, None)
    return found


def _kind(row):
    return str(row.get('kind') or 'of no kind')


def _mean(values):
    present = [v for v in map(charts.number, values) if v is not None]
    return statistics.fmean(present) if present else None


def by(rows: list[dict], key: Any) -> dict[Any, list[dict]]:
    """Rows in groups that share a key, or the value of a function of a row, in order of coming."""
    groups = {}
    for row in rows:
        groups.setdefault(key(row) if callable(key) else row[key], []).append(row)
    return groups
