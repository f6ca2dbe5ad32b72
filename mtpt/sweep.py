"""Runs of one config over values and seeds, and one table with intervals to compare them.

Each run is a `mtpt train` of its own in a folder of its own, so a sweep that was killed goes on
where it stopped: finished runs are not redone, an unfinished one resumes.
"""

import hashlib
import itertools
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import rich.table

from mtpt import flags
from mtpt.config import UserError
from mtpt.evaluate.intervals import across_seeds
from mtpt.files import write
from mtpt.log import table_console

COLUMNS = (
    *('setting', 'mixture', 'step', 'metric', 'score'),
    *('95 % interval', 'chance', 'above chance', 'tasks', 'seeds'),
)


def sweep(config: str, overrides: list[str], over: list[str], seeds: int, workdir: str) -> dict:
    """Runs `config` for every combination of the values in `over` and `seeds` seeds, then compares.

    Args:
      config: what --config takes.
      overrides: `--config.key=value` strings that hold for every run.
      over: `section.key=a,b,c` strings; several make a grid.
      seeds: seeds 0 .. seeds - 1 for each setting.
      workdir: runs go to `workdir/SETTING/seed=N`, the table to `sweep.json` and `sweep.md`.

    Raises:
      UserError: `over` cannot be read, or a run failed (its own sentence stands above).
    """
    root = pathlib.Path(workdir)
    grid = list(itertools.product(*map(_values, over)))
    if seeds < 1:
        raise UserError(f'--seeds={seeds} makes no run; choose 1 or more')
    for setting, seed in itertools.product(grid, range(seeds)):
        words = [*overrides, *(f'--config.{key}={value}' for key, value in setting)]
        words.append(f'--config.train.seed={seed}')
        run = flags.load(config, words)  # a mistyped key ends the sweep before the first run
        folder = _folder(root, setting, seed)
        if not finished(folder, run.train.steps):
            _run(config, words, folder, shared=root / 'cache' / _read_from(run), run=run)
    result = compare(root, grid, seeds)
    write(root / 'sweep.json', json.dumps(result, indent=1))
    write(root / 'sweep.md', markdown(result))
    table_console().print(_table(result))
    return result


def finished(folder: pathlib.Path, steps: int) -> bool:
    """Whether a run reached its last step and its last evaluation."""
    return (folder / 'report.html').is_file() and any(
        json.loads(path.read_text()).get('step') == steps for path in folder.glob('eval/*.json')
    )


def compare(root: pathlib.Path, grid: list, seeds: int) -> dict[str, Any]:
    """Macro scores of each setting, mixture and step with intervals over tasks and seeds.

    The rows of step 0, where they were written, are those of the untrained model.
    """
    rows = []
    for setting in grid:
        scores: dict[tuple, dict[int, dict[str, list[float]]]] = {}
        for seed in range(seeds):
            for path in sorted(_folder(root, setting, seed).glob('eval/*.json')):
                if '@' in path.name:  # asked for by hand, on other terms
                    continue
                result = json.loads(path.read_text())
                for row in result['rows']:
                    key = (result['mixture'], result['step'], row['metric'])
                    tasks = scores.setdefault(key, {}).setdefault(seed, {})
                    tasks.setdefault(row['task'], []).append((row['value'], row['chance']))
        for (mixture, step, metric), by_seed in sorted(scores.items()):
            about = dict(setting=dict(setting), mixture=mixture, step=step, metric=metric)
            rows.append(about | across_seeds(by_seed))
    return dict(seeds=seeds, rows=rows)


def markdown(result: dict[str, Any]) -> str:
    """The table of `compare` for a document."""
    lines = [
        '| ' + ' | '.join(COLUMNS) + ' |',
        '|' + '---|' * len(COLUMNS),
    ]
    lines += ['| ' + ' | '.join(_cells(row)) + ' |' for row in result['rows']]
    return '\n'.join(lines) + '\n'


def _table(result):
    table = rich.table.Table(*COLUMNS)
    for row in result['rows']:
        table.add_row(*_cells(row))
    return table


def _cells(row):
    setting = ', '.join(f'{k}={v}' for k, v in row['setting'].items()) or 'as the config says'
    interval = f'[{row["low"]:.3f}, {row["high"]:.3f}]'
    numbers = (row['metric'], f'{row["value"]:.3f}', interval, f'{row["chance"]:.3f}')
    gain = f'{row["gain"]:+.3f} [{row["gain_low"]:+.3f}, {row["gain_high"]:+.3f}]'
    counts = (str(row['tasks']), str(row['seeds']))
    return [setting, row['mixture'], str(row['step']), *numbers, gain, *counts]


def _values(over: str) -> list[tuple[str, str]]:
    key, equals, values = over.partition('=')
    if not equals or not all(values.split(',')):
        raise UserError(f'--over={over} is not of the form section.key=a,b,c')
    return [(key.removeprefix('config.'), value) for value in values.split(',')]


def _folder(root, setting, seed):
    name = ','.join(f'{key}={value}' for key, value in setting)
    return root / re.sub(r'[^\w.,=+-]', '_', name) / f'seed={seed}'


def _read_from(run):
    """A name for what a run reads, so that settings which change it do not share a cache."""
    told = repr((run.tasks, run.data.mixture, run.data.vocabulary, run.held_out, run.data.mode))
    return f'{run.data.mixture}-{hashlib.sha256(told.encode()).hexdigest()[:8]}'


def _run(config, words, folder, shared, run):
    if not run.data.cache:
        words = [*words, f'--config.data.cache={shared}']
    command = [sys.executable, '-m', 'mtpt', 'train', f'--config={config}', *words]
    print(f'{folder}: {" ".join(words)}', flush=True)
    child = subprocess.Popen([*command, f'--workdir={folder}'])
    try:
        status = child.wait()
    except KeyboardInterrupt:
        child.wait()  # it has heard the Ctrl-C too, and is saving
        raise
    if status:
        raise UserError(f'the run in {folder} ended with status {status}; mend it and sweep again')
