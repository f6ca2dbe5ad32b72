"""Runs made of real processes on one machine: started, watched, disturbed, compared.

A `Lab` is a folder with the tasks, the config and the cache of a small run, prepared once, so that
each start costs seconds and imports neither SeqIO nor TensorFlow. Each process of a run has its own
file for what it says; whatever is still alive when a test is through is killed.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tiny

from mtpt.checkpoint import Checkpoints
from mtpt.log import read_metrics
from mtpt.trees import flatten

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATIENCE = 1800.0  # seconds; against hanging only: other work may share the machine


class Layout(NamedTuple):
    """How a run is laid out: processes, devices of each, sizes of the mesh's axes."""

    processes: int = 1
    devices: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def flags(self) -> list[str]:
        return [
            f'--config.mesh.{axis}={getattr(self, axis)}' for axis in ('data', 'fsdp', 'tensor')
        ]

    def __str__(self) -> str:
        return f'{self.processes} x {self.devices}, data={self.data}, fsdp={self.fsdp}, ' + (
            f'tensor={self.tensor}'
        )


ONE, TWO = Layout(), Layout(2, data=2)


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """What a process of a run is given: so many devices, and shared compilations and bytecode."""
    temporary = pathlib.Path(tempfile.gettempdir())
    known = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    ours = dict(
        JAX_PLATFORMS='cpu',
        XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}',
        JAX_COMPILATION_CACHE_DIR=os.environ.get(
            'JAX_COMPILATION_CACHE_DIR', str(temporary / 'mtpt-test-compilations')
        ),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
        PYTHONPYCACHEPREFIX=str(temporary / 'mtpt-test-bytecode'),
        PYTHONUNBUFFERED='1',
        TF_CPP_MIN_LOG_LEVEL='3',
    )
    return known | ours | more


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet seen end."""
    with contextlib.suppress(OSError):
        return [
            int(x) for x in pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
        ]
    return []


class Group:
    """The processes of one start of a run; `said` reads what each wrote so far."""

    def __init__(self, commands: Sequence[Sequence[str]], logs: Sequence[pathlib.Path], env):
        self.logs, self.started = list(logs), time.perf_counter()
        self.processes = []
        for command, log in zip(commands, logs):
            with open(log, 'wb') as out:
                self.processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                        env=env, cwd=ROOT, start_new_session=True,
                    )
                )  # fmt: skip

    @property
    def alive(self) -> list[int]:
        return [i for i, process in enumerate(self.processes) if process.poll() is None]

    @property
    def statuses(self) -> list[int | None]:
        return [process.poll() for process in self.processes]

    def said(self, process: int = 0) -> str:
        return self.logs[process].read_text(errors='replace')

    def sentence(self, process: int = 0) -> str:
        """What a process ended with: its last line that begins with `mtpt:`, or ''."""
        found = [s for s in self.said(process).splitlines() if s.startswith('mtpt: ')]
        return found[-1] if found else ''

    def step(self) -> int:
        """The last step that the first process told of; 0 before any."""
        return (self.steps() or [0])[-1]

    def steps(self) -> list[int]:
        """All steps that the first process told of, some again after a restart.

        Also behind what a library's thread was writing on the same line.
        """
        return [int(step) for step in re.findall(r'step (\d+)/\d+  loss', self.said())]

    def send(self, number: int, which: Sequence[int] | None = None) -> None:
        """Signals some of the processes, or all of them."""
        for i in range(len(self.processes)) if which is None else which:
            if self.processes[i].poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    self.processes[i].send_signal(number)

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
        """Waits until something holds (True), or a process has ended (False)."""
        end = time.perf_counter() + seconds
        while len(self.alive) == len(self.processes):
            if condition():
                return True
            if time.perf_counter() > end:
                self._give_up(f'it did not come in {seconds:.0f} s')
            time.sleep(0.005)
        return bool(condition())

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Waits until all have ended; returns their exit statuses (-9: killed)."""
        end = time.perf_counter() + seconds
        for process in self.processes:
            try:
                process.wait(max(end - time.perf_counter(), 0.01))
            except subprocess.TimeoutExpired:
                self._give_up(f'process {self.alive} did not end in {seconds:.0f} s')
        return self.statuses

    def kill(self) -> None:
        """Kills what is left, with what `--restarts` has started."""
        for process in self.processes:
            for pid in (*children(process.pid), process.pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def _give_up(self, why: str) -> None:
        tails = [f'-- process {i}\n{self.said(i)[-2000:]}' for i in range(len(self.logs))]
        self.kill()
        raise AssertionError('\n'.join([why, *tails]))


class Lab:
    """A place where runs are made by one config, whose cache is written once.

    folder: where all of it lies; what is there already is used.
    steps: how long its runs are.
    mixture: what the cache is of, in `folder/cache`; without one each run makes its own.
    """

    def __init__(self, folder: pathlib.Path, config: pathlib.Path, steps: int, mixture: str = ''):
        self.folder, self.config, self.steps = folder, config, steps
        if mixture and not (folder / 'cache' / 'manifest.json').exists():
            words = [f'--config={config}', f'--mixture={mixture}', f'--out={folder / "cache"}']
            done = subprocess.run(
                [sys.executable, '-m', 'mtpt', 'cache', *words],
                env=environment(), cwd=ROOT, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def start(
        self,
        workdir: pathlib.Path,
        layout: Layout = ONE,
        *flags: str,
        present: Sequence[int] | None = None,
        env: Mapping[str, str] = {},
        said: pathlib.Path | None = None,
    ) -> Iterator[Group]:
        """Starts a run in a folder, or some (`present`) of its processes; logs go to `said`."""
        workdir.mkdir(parents=True, exist_ok=True)
        said = said or workdir.parent / f'{workdir.name}.said'
        said.mkdir(exist_ok=True)
        nth, port = len(list(said.iterdir())), free_port()
        words = [f'--config={self.config}', f'--workdir={workdir}', *layout.flags, *flags]
        commands, logs = [], []
        for i in range(layout.processes) if present is None else present:
            place = [f'--coordinator=localhost:{port}', f'--processes={layout.processes}']
            place = [*place, f'--process={i}'] if layout.processes > 1 else []
            commands.append([sys.executable, '-m', 'mtpt', 'train', *words, *place])
            logs.append(said / f'{nth:04d}.{i}.txt')
        group = Group(commands, logs, environment(layout.devices) | dict(env))
        try:
            yield group
        finally:
            group.kill()

    def finish(self, workdir: pathlib.Path, layout: Layout = ONE, *flags: str, **more: Any) -> None:
        """Starts a run, or goes on with it, and lets it end well."""
        with self.start(workdir, layout, *flags, **more) as group:
            statuses = group.wait()
            said = '\n'.join(group.said(i)[-2000:] for i in range(len(statuses)))
            assert set(statuses) == {0}, f'ended with {statuses}\n{said}'

    def undisturbed(self, layout: Layout = ONE) -> pathlib.Path:
        """The folder of a run that nothing disturbed, made when first asked for."""
        name = 'undisturbed-' + '-'.join(map(str, layout))
        workdir = self.folder / name
        if not (self.folder / f'{name}.done').exists():
            shutil.rmtree(workdir, ignore_errors=True)
            self.finish(workdir, layout)
            (self.folder / f'{name}.done').touch()
        return workdir


def micro(folder: pathlib.Path, cached: bool = True, **changes: Any) -> Lab:
    """A lab for runs of a micro model; changes as of `tiny.write`."""
    folder.mkdir(parents=True, exist_ok=True)
    settled = dict(
        data__cache=str(folder / 'cache') if cached else '', exams={}, train__steps=12,
        train__validate_every=0, checkpoint__every=3, checkpoint__keep=3, log__every=1,
    ) | changes  # fmt: skip
    config = tiny.write(folder, **settled)
    return Lab(folder, config, settled['train__steps'], 'tiny' if cached else '')


def weights(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """The weights of a run after its last step, by path."""
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return flatten(checkpoints.load_params(step))
    finally:
        checkpoints.close()


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """The training loss of each step."""
    told = read_metrics(workdir)
    return {line['step']: line['train/loss'] for line in told if 'train/loss' in line}


def check_same(workdir: pathlib.Path, other: pathlib.Path, step: int, rounding: float = 0) -> None:
    """Holds that two runs have the same weights after a step.

    rounding: how far an element may be off, in parts of the largest of its leaf (0: not a bit).
    """
    ours, theirs = weights(workdir, step), weights(other, step)
    assert ours.keys() == theirs.keys()
    for path, x in ours.items():
        if not rounding:
            np.testing.assert_array_equal(x, theirs[path], err_msg=path)
        else:
            scale = rounding * np.abs(theirs[path]).max()
            np.testing.assert_allclose(x, theirs[path], rtol=0, atol=scale, err_msg=path)
