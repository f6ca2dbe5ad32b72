"""The laws of the watchdog: what hangs is told of and ended, what is slow and sound is not."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny

from mtpt.config import UserError
from mtpt.statuses import REQUEUE
from mtpt.watch.watchdog import WatchdogConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]

BEGIN = """
import sys, threading, time
from mtpt.watch import watchdog
watchdog.PATIENCE = 1.0
def stuck_here():
    time.sleep(100)
dog = watchdog.Watchdog(watchdog.WatchdogConfig(seconds=0.4, slow={slow}), sys.argv[1], process=3)
dog.reading, dog.tasks = lambda: 'copy', lambda step: [f'task{{step}}', 'sort']
dog.beat('step 7', 7)
dog.beat('step 8', 8)
"""


def ended(tmp_path, code, slow=30.0, **how):
    """The exit status and the standard error of a process that watches itself."""
    words = [sys.executable, '-c', BEGIN.format(slow=slow) + code, str(tmp_path / 'run')]
    said = subprocess.run(words, cwd=ROOT, timeout=60, stderr=subprocess.PIPE, text=True, **how)
    return said.returncode, said.stderr


def report(folder):
    (path,) = (folder / 'watchdog').glob('*.txt')
    return path.name, path.read_text()


def test_what_hangs_is_ended_with_the_stacks_the_step_and_its_tasks(tmp_path):
    code = "threading.Thread(target=stuck_here, name='reader').start(); time.sleep(100)"
    status, said = ended(tmp_path, code)
    name, text = report(tmp_path / 'run')
    assert status == REQUEUE
    assert re.fullmatch(r'8-.+-3\.txt', name)
    for told in ('"step 8"', 'step: 8', 'task being read: copy', 'task8, sort', 'thread reader:'):
        assert told in text
    assert 'in stuck_here' in text and 'thread MainThread:' in text
    assert 'process 3' in said and name in said


def test_a_disk_that_takes_nothing_leaves_the_terminal_and_the_same_status(tmp_path):
    (tmp_path / 'run').write_text('no folder')
    status, said = ended(tmp_path, 'stuck_here()')
    assert status == REQUEUE
    assert 'no report was written' in said and 'in stuck_here' in said


def test_nobody_who_reads_the_terminal_and_a_lock_that_is_held_hold_nothing_up(tmp_path):
    code = """
def fill():  # the pipe, and the lock of the stream with it
    while True:
        sys.stderr.write('x' * 65536)
threading.Thread(target=fill, daemon=True).start()
stuck_here()
"""
    words = [sys.executable, '-c', BEGIN.format(slow=30.0) + code, str(tmp_path / 'run')]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=60) == REQUEUE
    assert 'in stuck_here' in report(tmp_path / 'run')[1]


def test_what_keeps_python_itself_from_running_is_ended_too(tmp_path):
    code = 'import ctypes; ctypes.PyDLL(None).sleep(100)'  # and holds the lock of the interpreter
    status, said = ended(tmp_path, code, slow=0.5)
    assert status == 1 and 'Timeout' in said and 'line' in said


def test_a_process_that_was_put_to_sleep_has_not_hung(tmp_path):
    code = """
print('on', flush=True)
for i in range(20):
    time.sleep(0.1)
    dog.beat(f'step {i}', i)
dog.close()
time.sleep(1)
print('done')
"""
    begin = BEGIN.format(slow=30).replace('seconds=0.4', 'seconds=2')
    words = [sys.executable, '-c', begin + code, str(tmp_path / 'run')]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'on\n'
        process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == 'done\n' and process.wait(timeout=60) == 0


def test_the_first_of_a_kind_may_take_as_long_as_compiling(tmp_path):
    code = "dog.beat('validating batch 1'); time.sleep(1.5); dog.beat('step 9', 9); stuck_here()"
    status, _ = ended(tmp_path, code)
    assert status == REQUEUE and '"step 9"' in report(tmp_path / 'run')[1]


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r'watchdog\.slow=1\.0'):
        WatchdogConfig(seconds=2.0, slow=1.0)
    with pytest.raises(UserError, match='at least 0'):
        WatchdogConfig(seconds=-1.0)


HANGS = """
import pathlib, time

HERE = pathlib.Path(__file__).parent


def slow(split):
    for row in draw(split):
        if (HERE / 'hang').exists() and (HERE / 'run' / 'checkpoints' / '10').exists():
            time.sleep(1000)
        yield row


def register():
    register_others()
    ask = Prompt('ask', 'First of {{ a }} {{ b }} ({{ n }})?', '{{ a }}')
    task('tiny_hangs', function(slow, ('train', 'validation')), [ask], family='hanging')
    mixture('tiny_both', ['tiny_first', 'tiny_hangs'], rule='equal')
"""


def test_a_source_that_hangs_is_named_and_the_run_goes_on_once_it_answers(tmp_path):
    config = tiny.write(
        tmp_path, data__mixture='tiny_both', data__mode='stream', train__steps=60, exams={},
        checkpoint__every=10, train__validate_every=0, train__prefetch=1,
        watchdog=dict(seconds=6.0, slow=300.0),
    )  # fmt: skip
    tasks = tmp_path / 'tasks.py'
    tasks.write_text(tasks.read_text().replace('def register()', 'def register_others()') + HANGS)

    def train(folder):
        words = [sys.executable, '-m', 'mtpt', 'train', f'--config={config}']
        words.append(f'--workdir={tmp_path / folder}')
        environment = os.environ | dict(XLA_FLAGS='')
        return subprocess.run(
            words, cwd=ROOT, env=environment, timeout=300, stderr=subprocess.PIPE, text=True
        )

    (tmp_path / 'hang').write_text('')
    first = train('run')
    assert first.returncode == REQUEUE, first.stderr
    _, text = report(tmp_path / 'run')
    assert 'task being read: tiny_hangs' in text and ' in slow' in text
    assert '"batch of step' in text and 'tiny_first' in text
    (tmp_path / 'hang').unlink()
    assert train('run').returncode == 0
    assert (tmp_path / 'run' / 'checkpoints' / '60').is_dir()
