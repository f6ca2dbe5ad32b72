"""Log-probabilities that a run gives to targets, for anyone to compare: JSON lines in and out.

Each line has `inputs` and `targets`, texts in which `<extra_id_0>` and `[NLU]` stand for their
tokens, and may name its `task`. It comes back with `log_probability` (natural logarithm of the
probability of the targets and the end of sequence behind them), `token_log_probabilities` and
`tokens`, the pieces that those are of. Nothing is written before all lines have been read and
scored. Inputs and targets of a line together are at most the run's `evaluate.batch_tokens` long.
"""

import json
import math
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

from mtpt import task_ids
from mtpt.config import UserError, nearest
from mtpt.evaluate.likelihood import by_token
from mtpt.files import write
from mtpt.opened import opened

NEEDED = ('inputs', 'targets')


def score(
    workdir: str | pathlib.Path, lines: Iterable[str], *, step: int | None = None
) -> list[dict[str, Any]]:
    """The lines, read from JSON, each with its log-probability in all and by token.

    Args:
      workdir: the folder of a run.
      lines: JSON objects with `inputs` and `targets`; empty lines are passed over.
      step: a checkpoint's step; the last one by default.

    Raises:
      UserError: a line that is no such object or too long, named by its number; no lines; figures
        that are not finite.
    """
    records = list(read(lines))
    model = opened(workdir, step)
    most, pairs, tasks = model.run.evaluate.batch_tokens, [], []
    for number, record in records:
        try:
            pair = model.inputs(record['inputs']), model.targets(record['targets'])
            if sum(map(len, pair)) > most:
                raise UserError(
                    f'inputs and targets have {sum(map(len, pair))} tokens and a batch of the run '
                    f'(evaluate.batch_tokens) {most}; shorten them'
                )
            pairs.append(pair)
            name = record.get('task')
            if not (name is None or isinstance(name, str)):
                raise UserError(f'the task must be a name, got {name!r}')
            task_ids.check_asked(model.cfg, name)
            tasks.append(0 if name is None else task_ids.id_of(model.tasks, name))
        except UserError as error:
            raise UserError(f'line {number}: {error}') from error
    found = by_token(model.cfg, model.params, pairs, most, tasks)
    out = []
    for (number, record), (_, targets), log_p_T in zip(records, pairs, found):
        total = math.fsum(log_p_T.tolist())
        if not math.isfinite(total):
            raise UserError(
                f'line {number}: its log-probability is not finite: the parameters hold NaN or '
                'infinite numbers; score an earlier checkpoint'
            )
        told = dict(
            log_probability=total,
            token_log_probabilities=log_p_T.tolist(),
            tokens=[model.vocabulary.name(i) for i in targets],
        )
        out.append(record | told)
    return out


def read(lines: Iterable[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    """The objects on the lines, with the numbers of their lines, counted from 1.

    Raises:
      UserError: a line that is not JSON, is no object, or lacks what is needed; no lines at all.
    """
    number = None
    for at, line in enumerate(lines, 1):
        line = line.removeprefix('\ufeff')  # the mark that some editors put before a file
        if not line.strip():
            continue
        number = at
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f'line {at} is not JSON: {error}') from error
        if not isinstance(record, dict):
            raise UserError(
                f'line {at} must be an object with inputs and targets, got {line[:40]!r}'
            )
        for name in NEEDED:
            if name not in record:
                raise UserError(f'line {at} has no {name!r}; {nearest(name, record)}')
            if not isinstance(record[name], str):
                raise UserError(f'line {at}: {name!r} must be a text, got {record[name]!r}')
        yield at, record
    if number is None:
        raise UserError(
            'there is nothing to score: give lines such as {"inputs": "2 + 2 =", "targets": "4"}'
        )


def main(workdir: str, source: str | None, out: str | None, step: int | None) -> None:
    """Scores a file or standard input; writes a whole file, or to standard output."""
    try:
        if source is None:
            lines = sys.stdin.readlines()
        else:
            lines = pathlib.Path(source).read_text(encoding='utf-8').split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'cannot read {source or "standard input"}: {error}; give JSON lines in UTF-8'
        ) from error
    records = score(workdir, lines, step=step)
    # In ASCII, so that any terminal takes it, and half a surrogate pair comes back as it came.
    text = ''.join(json.dumps(record) + '\n' for record in records)
    if out is None:
        sys.stdout.write(text)
    else:
        write(out, text)
