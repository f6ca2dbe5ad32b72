"""Which checkpoints of a folder are damaged, and how the newest whole one comes to be the last.

A checkpoint that carries checksums is held against them. One of mtpt before there were any says so
itself and is taken as it is; a folder that says neither is foreign. All processes of a run ask
together, and each reads its part of the files.
"""

import itertools
import json
import pathlib
from collections.abc import Sequence

from mtpt import hosts
from mtpt.checkpoint import checksums
from mtpt.config import UserError

METADATA = '_CHECKPOINT_METADATA'
UNSEALED = (METADATA, 'commit_success.txt')  # Orbax writes them after all other files
_counted = itertools.count()  # of exchanges between processes, which each have a name


def steps_in(folder: pathlib.Path) -> list[int]:
    """The steps of the checkpoints on disk, ascending."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def set_aside(folder: pathlib.Path) -> tuple[int | None, list[str]]:
    """Renames the checkpoints after the last whole one; gives its step, and what was done.

    Raises:
      UserError: there are checkpoints, and none is whole.
    """
    steps = [int(step) for step in of_all(' '.join(map(str, steps_in(folder))))[0].split()]
    whole, found = None, dict[int, str]()
    for step in reversed(steps):
        if not (wrong := to_all(folder / str(step))):
            whole = step
            break
        found[step] = wrong
    if whole is None and (steps or any(folder.glob('*.damaged*'))):
        said = '; '.join(f'{step}: {wrong}' for step, wrong in sorted(found.items()))
        raise UserError(
            f'all checkpoints in {folder} are damaged ({said or "and set aside"}), and nothing is '
            'begun anew over them; put back a whole one, or choose another --workdir'
        )
    notes = []
    for step, wrong in found.items():
        aside = of_all(_rename(folder, step) if hosts.index() == 0 else '')[0]
        notes.append(
            f'WARNING: checkpoint {step} in {folder} is damaged: {wrong}; it is kept as {aside}, '
            f'and checkpoint {whole} is used'
        )
    return whole, notes


def to_all(folder: pathlib.Path, items: Sequence[str] = ()) -> str:
    """What is wrong with the checkpoint in a folder, or ''; each process reads a part.

    items: of which the content is read; all by default.
    """
    share = hosts.index(), hosts.number()
    return next(filter(None, of_all(damage(folder, items, share))), '')


def damage(folder: pathlib.Path, items: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> str:
    """What is wrong with the checkpoint in a folder, as far as a process reads it; or ''."""
    try:
        told = json.loads((folder / METADATA).read_text())
        known = told['item_handlers'].keys()
        sealed = (told.get('custom_metadata') or {}).get('sealed')
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f'{METADATA}, which every checkpoint has, is missing or cannot be read'
    if not (folder / checksums.NAME).exists():  # as in runs of mtpt before there were any
        return f'{checksums.NAME} is missing' if sealed else ''
    if 'params' not in known:
        return f'{METADATA} does not know its params'
    return checksums.fault(folder, UNSEALED, items, share)


def _rename(folder: pathlib.Path, step: int) -> str:
    names = (f'{step}.damaged' + f'.{n}' * bool(n) for n in itertools.count())
    aside = next(name for name in names if not (folder / name).exists())
    try:
        (folder / str(step)).rename(folder / aside)
    except OSError as error:
        raise UserError(
            f'checkpoint {step} in {folder} is damaged and cannot be renamed '
            f'({error.strerror or error}); make the folder writable'
        ) from error
    return aside


def of_all(text: str) -> list[str]:
    """What each process says at this point."""
    if hosts.number() == 1:
        return [text]
    turn = next(_counted)
    key = f'checkpoints/{turn}'
    hosts.tell(key, text)
    hosts.forget(f'checkpoints/{turn - 2}/{hosts.index()}')  # all have read it
    return [hosts.heard(key, i, hosts.HOUR) for i in range(hosts.number())]
