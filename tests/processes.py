"""`mtpt train` as processes of their own, one or several of one run, for tests that end them."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATIENCE = int(os.environ.get('MTPT_TEST_PATIENCE', 240))  # seconds; against hanging only


def free_port():
    with socket.socket() as found:
        found.bind(('localhost', 0))
        return found.getsockname()[1]


def command(config, workdir, *more):
    return ['train', f'--config={config}', f'--workdir={workdir}', *more]


@contextlib.contextmanager
def started(words, number=1, devices=1, program=('-m', 'mtpt'), **environment):
    """The processes of a run, with `.said` (a file of all they print); killed when left."""
    port = free_port()
    env = os.environ | dict(
        XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}', **environment
    )
    found = []
    try:
        for i in range(number):
            together = [f'--coordinator=localhost:{port}', f'--processes={number}']
            line = [sys.executable, *program, *words]
            line += [*together, f'--process={i}'] if number > 1 else []
            read, write = os.pipe()
            process = subprocess.Popen(line, cwd=ROOT, env=env, stdout=write, stderr=write)
            os.close(write)
            process.said = Said(read)
            found.append(process)
        yield found
    finally:
        for process in found:
            if process.poll() is None:
                process.kill()
            process.wait()


class Said:
    """Reads a pipe to its end in a thread."""

    def __init__(self, read):
        self._text, self._file = [], os.fdopen(read, 'r', errors='replace')
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self._file:
            self._text.append(line)

    def __str__(self):
        return ''.join(self._text)


def until(happened, processes):
    """Waits for something while processes run."""
    late = time.monotonic() + PATIENCE
    while not happened():
        for process in processes:
            assert process.poll() is None, str(process.said)
        assert time.monotonic() < late, [str(process.said) for process in processes]
        time.sleep(0.05)


def ended(processes):
    """The exit statuses, once all have ended."""
    late = time.monotonic() + PATIENCE
    statuses = []
    for process in processes:
        try:
            statuses.append(process.wait(max(1, late - time.monotonic())))
        except subprocess.TimeoutExpired:
            raise AssertionError([str(p.said) for p in processes]) from None
    time.sleep(0.1)
    return statuses


def steps(workdir):
    """The steps of the checkpoints on disk."""
    folder = pathlib.Path(workdir) / 'checkpoints'
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())
