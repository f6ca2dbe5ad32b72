"""`mtpt plan`: what a run needs and how long it takes, on a machine that need not be here.

A plan that was made before is read from a folder of JSON files, each named by the hash of all that
it depends on; only a new one needs JAX.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import Any

from mtpt import chips, files, flags, statuses
from mtpt.config import UserError
from mtpt.plan import compiled, show

FORMAT = 2
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
COMPILERS = ('libtpu', 'jax-cuda12-plugin', 'jax-cuda13-plugin')


@dataclasses.dataclass(frozen=True)
class Asked:
    """The flags of the verb; None is what was not said.

    price: dollars a chip-hour, as clouds tell it.
    """

    topology: str | None = None
    slices: int = 1
    mfu: float = 0.4
    price: float | None = None
    tasks: int | None = None
    search: bool | None = None
    compile: bool | None = None
    out: str | None = None
    cache: str | None = None

    def __post_init__(self):
        if not 0 < self.mfu <= 1:
            raise UserError(f'--mfu={self.mfu} must be above 0 and at most 1')
        if self.price is not None and not (0 <= self.price < math.inf):
            raise UserError(
                f'--price={self.price} must be a number of dollars a chip-hour, at least 0'
            )
        if self.tasks is not None and self.tasks < 1:
            raise UserError(f'--tasks={self.tasks} must be at least 1')


class NotCompiled(UserError):
    """A compile was asked for and gave no answer."""

    status = statuses.FAULT


def main(argument: str, overrides: list[str], asked: Asked) -> None:
    """Plans, prints the plan, and writes it where `asked.out` says.

    Raises:
      UserError: whatever is wrong with the config or the topology, or that they do not go together.
      NotCompiled: the compiler failed or was stopped; the rest of the plan has been printed.
    """
    if 'jax' not in sys.modules:  # a plan is arithmetic: an accelerator is left to who trains on it
        os.environ['JAX_PLATFORMS'] = 'cpu'
    config, declared = flags.written(argument)
    if asked.topology is None:
        if declared is None:
            raise UserError(
                f'--topology is missing, and the config {argument} declares none; add '
                '--topology=v5e:4x4, or --topology=cpu for this machine'
            )
        asked = dataclasses.replace(asked, topology=declared)
    target = chips.topology(asked.topology, asked.slices)
    if asked.compile:
        compiled.package(target)  # said before there is any work
    folder = _folder(asked.cache)
    place = folder / f'{key(config, overrides, asked)}.json'
    figures = _remembered(place)
    if figures is None:
        figures = _plan(argument, overrides, asked)
        if figures.get('compiled', {}).get('status') not in compiled.AGAIN:
            _remember(place, figures, asked.cache is not None)
    figures = priced(figures, asked.price)
    show.show(figures)
    if asked.out:
        files.write(asked.out, json.dumps(figures, indent=1) + '\n')
        print(f'all figures: {asked.out}')
    _compiled(figures.get('compiled', {}))


def _compiled(told: dict[str, Any]) -> None:
    """Raises where a compile that was asked for gave no answer."""
    if told.get('status') in compiled.AGAIN:
        raise NotCompiled(f'--compile gave no answer: {told["why"]}; the same command tries again')
    if told.get('status') == 'refused':
        raise UserError(told['why'])


def _plan(argument: str, overrides: list[str], asked: Asked) -> dict[str, Any]:
    from mtpt.plan import planned

    run = flags.load(argument, overrides)
    return planned.plan(run, argument, asked)


def priced(figures: dict[str, Any], price: float | None) -> dict[str, Any]:
    """The figures with chip-hours, and with what they cost at a price for one."""
    if 'run' not in figures:
        return figures
    run = dict(figures['run'])
    for name in ('', 'expected_'):
        run[f'{name}chip_hours'] = run[f'{name}days'] * 24 * figures['topology']['chips']
        if price is not None:
            run[f'{name}dollars'] = run[f'{name}chip_hours'] * price
    return figures | dict(price=price, run=run)


def _folder(told: str | None) -> pathlib.Path:
    if told:
        return pathlib.Path(told).expanduser()
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(base) / 'mtpt' / 'plans'


def key(config: dict[str, Any], overrides: list[str], asked: Asked) -> str:
    """The hash of all that a plan depends on: the config and what it names, the flags, the code."""
    options = dataclasses.asdict(asked) | dict(out=None, cache=None, price=None)
    compilers = [(name, _version(name)) for name in COMPILERS if asked.compile]
    told = dict(
        format=FORMAT,
        config=config,
        overrides=overrides,
        options=options,
        files=sorted(_stamps([config, overrides])),
        python=platform.python_version(),
        libraries=[(name, _version(name)) for name in LIBRARIES] + compilers,
        code=_code(),
    )
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _stamps(value: Any) -> Iterator[tuple[str, int, int]]:
    """Files (a vocabulary) and caches that a config names, with their times and sizes."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _stamps(inner)
    elif isinstance(value, str) and value:
        path = pathlib.Path(value.rpartition('=')[2]).expanduser()
        for file in (path, path / 'manifest.json', path / 'vocabulary.json'):
            try:
                stat = file.stat()
            except (OSError, ValueError):
                continue
            yield str(file.absolute()), stat.st_mtime_ns, stat.st_size


@functools.cache
def _code() -> str:
    """A hash of this package's own text."""
    root, told = pathlib.Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob('*.py')):
        told.update(str(path.relative_to(root)).encode() + b'\0' + path.read_bytes())
    return told.hexdigest()


def _remembered(place: pathlib.Path) -> dict[str, Any] | None:
    """A plan made before; None where there is none, or what is there is not what was written."""
    try:
        kept = json.loads(place.read_text())
        whole = kept['sha256'] == _sum(kept['figures'])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept['figures'] if whole else None


def _remember(place: pathlib.Path, figures: dict[str, Any], told: bool) -> None:
    """Keeps a plan; a folder of our own choosing that cannot be written to is done without."""
    try:
        files.write(place, json.dumps(dict(sha256=_sum(figures), figures=figures)))
    except UserError:
        if told:
            raise


def _sum(figures: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(figures).encode()).hexdigest()
