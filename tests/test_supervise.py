"""A run that crashes is started again; one that was stopped, or cannot go on, is not."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mtpt import supervise
from mtpt.config import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]

RUN = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / 'checkpoints').mkdir(exist_ok=True)
tries = len(list(folder.glob('try*')))
(folder / f'try{tries}').touch()
def end(how):
    if how == 'save':
        (folder / 'checkpoints' / str(tries)).mkdir()
    elif how == 'wait':
        heard = []
        signal.signal(signal.SIGTERM, lambda n, f: heard.append(n))
        signal.signal(signal.SIGINT, lambda n, f: heard.append(n))
        print('waiting', flush=True)
        time.sleep(2)
        while not heard:
            time.sleep(0.05)
        time.sleep(0.5)
        print('heard', heard, flush=True)
        os._exit(75 if heard[0] == signal.SIGTERM else 130)
    elif how.startswith('sig'):
        os.kill(os.getpid(), int(how[3:]))
    else:
        os._exit(int(how))
for how in sys.argv[2:][tries].split('+'):
    end(how)
"""


def supervised(tmp_path, restarts, *ends):
    """The status of a run that ends each time as told, how often it began, and the pauses."""
    script = tmp_path / 'run.py'
    script.write_text(RUN)
    slept = []
    start = (sys.executable, str(script), str(tmp_path), *ends)
    status = supervise.supervise([f'--workdir={tmp_path}'], restarts, start, slept.append)
    return status, len(list(tmp_path.glob('try*'))), slept


@pytest.mark.parametrize('crash', ['sig9', 'sig6', '134', '75', '1'])
def test_a_crash_is_followed_by_another_start(tmp_path, crash, capfd):
    assert supervised(tmp_path, 3, crash, '0')[:2] == (0, 2)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and 'starting it again from the beginning' in said[0]


@pytest.mark.parametrize('end', ['0', '2', '74', '130'])
def test_what_would_end_the_same_way_is_left(tmp_path, end, capfd):
    assert supervised(tmp_path, 3, end, '0')[:2] == (int(end), 1)
    assert capfd.readouterr().err == ''


def test_restarts_that_bring_no_checkpoint_come_to_an_end(tmp_path, capfd):
    status, began, slept = supervised(tmp_path, 2, *['sig9'] * 9)
    assert (status, began) == (137, 3)
    assert len(slept) == 2 and slept[0] <= slept[1]
    assert '3 times now without a new checkpoint' in capfd.readouterr().err.splitlines()[-1]


def test_a_checkpoint_counts_the_restarts_anew(tmp_path, capfd):
    ends = ['sig9', 'save+sig9', 'sig9', 'save+75', 'sig9', '0']
    assert supervised(tmp_path, 2, *ends)[:2] == (0, 6)
    assert 'from checkpoint 3' in capfd.readouterr().err


@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_run_once_and_ends_both(tmp_path, number, status):
    """Also where a terminal sends it to all processes of its group."""
    script = tmp_path / 'run.py'
    script.write_text(RUN)
    code = (
        'import sys; from mtpt import supervise;'
        'sys.exit(supervise.supervise([f"--workdir={sys.argv[3]}"], 3, sys.argv[1:]))'
    )
    parent = subprocess.Popen(
        [sys.executable, '-c', code, sys.executable, script, tmp_path, 'wait', '0'],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert parent.stdout.readline() == 'waiting\n'
        os.killpg(parent.pid, number)
        out, _ = parent.communicate(timeout=60)
    finally:
        parent.kill()
    assert out == f'heard [{int(number)}]\n' and parent.returncode == status
    assert len(list(tmp_path.glob('try*'))) == 1


def test_a_run_does_not_outlive_a_parent_that_is_killed(tmp_path):
    if not sys.platform.startswith('linux'):
        pytest.skip('asked of Linux only')
    script = tmp_path / 'run.py'
    script.write_text(RUN)
    code = (
        'import sys; from mtpt import supervise;'
        'supervise.supervise([f"--workdir={sys.argv[3]}"], 3, sys.argv[1:])'
    )
    with open(tmp_path / 'out', 'w+') as out:
        parent = subprocess.Popen(
            [sys.executable, '-c', code, sys.executable, script, tmp_path, 'wait', '0'],
            cwd=ROOT, stdout=out,
        )  # fmt: skip
        late = time.monotonic() + 60
        while 'waiting' not in (tmp_path / 'out').read_text():
            assert time.monotonic() < late
            time.sleep(0.05)
        parent.kill()
        parent.wait()
        while 'heard [15]' not in (tmp_path / 'out').read_text():
            assert time.monotonic() < late
            time.sleep(0.05)


def test_the_words_of_the_supervisor_are_its_own():
    asked = supervise.asked
    assert asked(['--a=1', '--restarts=3', '--b']) == (3, ['--a=1', '--b'])
    assert asked(['--restarts', '2', '--a']) == (2, ['--a'])
    assert asked(['--a']) == (0, ['--a'])
    with pytest.raises(UserError, match='must be a number'):
        asked(['--restarts=often'])
    with pytest.raises(UserError, match='--workdir is missing'):
        supervise.supervise([], 1)


def test_the_supervisor_imports_nothing_heavy():
    code = (
        'import sys, mtpt.__main__, mtpt.supervise;'
        "bad = {'jax', 'numpy', 'absl'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
