"""Tables of evaluation rows: prompts within tasks, tasks within kinds, averages below."""

import statistics
from collections.abc import Sequence
from typing import Any

import rich.table

from mtpt.evaluate.answers import Row
from mtpt.evaluate.intervals import across_seeds

COLUMNS = (
    *('task', 'prompt', 'metric', 'value', '95 % interval'),
    *('chance', 'majority', 'empty', 'n', 'says most'),
)
NUMBERS = COLUMNS[3:9]


def summarise(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Prompts to tasks, and tasks to macro averages.

    Returns:
      tasks: a dict for each task, kind and metric: `value` is the mean over prompts, beside it
        `median`, `std`, `min` and `max` over prompts; `low` and `high` are the means of the
        prompts' bounds, as prompts share their examples; chance, majority and empty are means.
      macro: a dict for each metric over all tasks, each kind and each family (`over` and `name`):
        the mean over tasks as `value`, `low` and `high` from a bootstrap over tasks (of one task:
        its own), `gain` = value - chance with gain_low and gain_high, and the means of chance,
        majority and empty.
    """
    grouped: dict[tuple, list[Row]] = {}
    for row in rows:
        grouped.setdefault((row['task'], row['kind'], row['metric']), []).append(row)
    tasks = [_task(group) for group in grouped.values()]
    groups: dict[tuple, list[dict]] = {}
    for over in ('all', 'kind', 'family'):
        for task in tasks:
            name = 'all' if over == 'all' else task[over]
            groups.setdefault((over, name, task['metric']), []).append(task)
    return dict(tasks=tasks, macro=[_macro(key, group) for key, group in groups.items()])


def _task(group):
    values = [row['value'] for row in group]
    shared = ('task', 'kind', 'family', 'dataset', 'metric', 'normalisation')
    return dict(
        **{name: group[0][name] for name in shared},
        prompts=len(group),
        value=statistics.fmean(values),
        median=statistics.median(values),
        std=statistics.stdev(values) if len(values) > 1 else 0.0,
        min=min(values),
        max=max(values),
        **_means(group, 'low', 'high', 'chance', 'majority', 'empty'),
        examples=max(row['examples'] for row in group),
        cut=any(row.get('cut') for row in group),
    )


def _macro(key, tasks):
    over, name, metric = key
    pairs = {f'{t["task"]} {t["kind"]}': [(t['value'], t['chance'])] for t in tasks}
    result = across_seeds({0: pairs}) | dict(cut=any(task['cut'] for task in tasks))
    del result['seeds']
    if len(tasks) == 1:  # of one task there is nothing to draw but its examples
        low, high, chance = (tasks[0][bound] for bound in ('low', 'high', 'chance'))
        result |= dict(low=low, high=high, gain_low=low - chance, gain_high=high - chance)
    return dict(over=over, name=name, metric=metric, **result, **_means(tasks, 'majority', 'empty'))


def _means(group, *names):
    """The mean of each column; None where a row lacks it."""
    columns = {name: [row[name] for row in group] for name in names}
    return {
        name: None if None in column else statistics.fmean(column)
        for name, column in columns.items()
    }


def table(rows: Sequence[Row], prompts: bool = True, tasks: bool = True) -> rich.table.Table:
    """The table for a terminal: a line a prompt and a task (unless they are False), and an average.

    What the model says most is left to `markdown` and the report, for want of room.
    """
    out = rich.table.Table(caption=_caption(rows), show_edge=False, pad_edge=False)
    for column in COLUMNS[:-1]:
        number = column in NUMBERS
        out.add_column(column, justify='right' if number else 'left', no_wrap=number)
    for section, lines in _lines(rows, prompts):
        if section == 'task' and not tasks:
            continue
        for cells in lines:
            out.add_row(*cells[:-1], style='bold' if section == 'macro' else None)
        out.add_section()
    return out


def markdown(rows: Sequence[Row], prompts: bool = True) -> str:
    """The same table for a document."""
    bars = ['---:' if column in NUMBERS else '---' for column in COLUMNS]
    lines = [COLUMNS, bars]
    for _, more in _lines(rows, prompts):
        lines += [[cell.replace('|', '\\|').replace('\n', ' ') for cell in cells] for cells in more]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines) + f'\n\n{_caption(rows)}\n'


def _caption(rows):
    rules = sorted({row['normalisation'] for row in rows if row['normalisation']})
    ranked = f'Choices ranked by log-likelihood ({", ".join(rules)}). ' if rules else ''
    if any(row.get('cut') for row in rows):
        ranked = f'* Time was up before all examples were judged. {ranked}'
    return f'{ranked}Intervals: over examples in a prompt, over tasks in an average.'


def _lines(rows, prompts):
    """Sections of lines of cells: one a task, then the averages."""
    summary = summarise(rows)
    by_task: dict[tuple, list] = {}
    for task in summary['tasks']:
        key = (task['kind'], task['task'])
        own = [r for r in rows if (r['kind'], r['task'], r['metric']) == (*key, task['metric'])]
        lines = by_task.setdefault(key, [])
        if prompts:
            lines += [_cells(row, row['task'], row['prompt'], _said(row)) for row in own]
        if not prompts or len(own) > 1:
            spread = f'{_number(task["min"])} to {_number(task["max"])}'
            words = f'mean of {len(own)}: {spread}, median {_number(task["median"])}'
            said = '' if prompts else _said(max(own, key=lambda r: max(r['label_shares'].values())))
            lines.append(_cells(task, task['task'], words, said))
    yield from (('task', lines) for lines in by_task.values())
    lines = []
    for macro in summary['macro']:
        count = f'{macro["tasks"]} tasks' if macro['tasks'] > 1 else '1 task'
        gain = f'{macro["gain"]:+.3f} [{macro["gain_low"]:+.3f}, {macro["gain_high"]:+.3f}]'
        what = 'all' if macro['over'] == 'all' else f'{macro["over"]} {macro["name"]}'
        lines.append(_cells(macro, what, f'{count}; above chance {gain}', ''))
    yield 'macro', lines


def _cells(row, task, prompt, said):
    interval = f'[{_number(row["low"])}, {_number(row["high"])}]'
    numbers = [_number(row[name]) for name in ('chance', 'majority', 'empty')]
    examples = str(row.get('examples', '')) + ('*' if row.get('cut') else '')
    return [
        *(task, prompt, row['metric'], _number(row['value']), interval),
        *(*numbers, examples, said),
    ]


def _number(value):
    return '-' if value is None else f'{value:.3f}'


def _said(row):
    """The most frequent answer of the model: a collapse reads 'yes 97 %'."""
    label, share = next(iter(row['label_shares'].items()))
    label = label if len(label) <= 20 else label[:19] + '…'
    return f'{label or "(nothing)"} {share:.0%}'
