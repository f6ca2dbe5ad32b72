"""One run a folder: held by one, free when its process is gone, whatever the clocks say."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from mtpt import lock
from mtpt.config import UserError
from mtpt.lock import Lock, held


def file_of(folder):
    return folder / lock.NAME


@pytest.fixture
def another(tmp_path):
    """A process that holds the lock of a folder."""
    code = (
        'import sys, time; from mtpt.lock import Lock;'
        'Lock(sys.argv[1]).take(); print("taken", flush=True); time.sleep(600)'
    )
    process = subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_told_who_has_the_folder_and_it_keeps_it(tmp_path, another):
    before = file_of(tmp_path).read_bytes()
    with pytest.raises(UserError, match=rf'is being trained in by process {another.pid} on '):
        Lock(tmp_path).take()
    assert file_of(tmp_path).read_bytes() == before


@pytest.mark.parametrize('reaped', [True, False])
def test_what_a_kill_has_left_is_taken_over_at_once(tmp_path, another, reaped):
    another.kill()
    if reaped:
        another.wait()
    else:
        os.waitid(os.P_PID, another.pid, os.WEXITED | os.WNOWAIT)
    began = time.monotonic()
    with held(tmp_path):
        assert json.loads(file_of(tmp_path).read_text())['pid'] == os.getpid()
    assert time.monotonic() - began < lock.PATIENCE / 2
    assert file_of(tmp_path).read_text() == ''


def test_a_number_that_another_process_has_now_is_not_the_owner(tmp_path):
    left = lock._me() | dict(pid=os.getppid(), born='1')
    file_of(tmp_path).write_text(json.dumps(left))
    with held(tmp_path):
        pass


def elsewhere(tmp_path):
    """A lock as a machine far away has left it, by a clock that is years ahead."""
    left = lock._me() | dict(host='far', machine='another boot', start='2031-01-01 00:00:00')
    file_of(tmp_path).write_text(json.dumps(left))
    os.utime(file_of(tmp_path), (1.9e9, 1.9e9))


def test_a_machine_that_gives_no_sign_of_life_has_gone(tmp_path, capsys):
    elsewhere(tmp_path)
    with held(tmp_path, patience=0.5):
        assert json.loads(file_of(tmp_path).read_text())['pid'] == os.getpid()
    assert 'on far' in capsys.readouterr().err


def test_a_machine_that_touches_the_file_lives_whatever_its_clock_shows(tmp_path):
    elsewhere(tmp_path)
    done = threading.Event()

    def beat():
        at = 1.9e9
        while not done.wait(0.1):
            at -= 1000  # its clock is set back again and again
            os.utime(file_of(tmp_path), (at, at))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match='on far, since 2031'):
            Lock(tmp_path, patience=20).take()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize('content', ['', 'cut{', '[]', '{"pid": 1}'])
def test_a_file_that_names_nobody_holds_nobody_up(tmp_path, content):
    file_of(tmp_path).write_text(content)
    with held(tmp_path):
        pass


def test_a_run_that_stood_still_and_was_replaced_ends_itself(tmp_path):
    code = (
        'import sys, time; from mtpt import lock; lock.BEAT = 0.1;'
        'lock.Lock(sys.argv[1]).take(); print("taken", flush=True); time.sleep(600)'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code, tmp_path],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        process.stdout.readline()
        elsewhere(tmp_path)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2 and 'on far has taken over' in said


def test_of_many_that_begin_together_one_trains(tmp_path):
    code = (
        'import sys, time; from mtpt.lock import Lock; from mtpt.config import UserError\n'
        'try: Lock(sys.argv[1]).take()\n'
        'except UserError: sys.exit(2)\n'
        'time.sleep(600)'
    )
    many = [subprocess.Popen([sys.executable, '-c', code, tmp_path]) for _ in range(4)]
    try:
        late = time.monotonic() + 120
        while sum(p.poll() is None for p in many) > 1:
            assert time.monotonic() < late
            time.sleep(0.1)
        time.sleep(1)
        assert sorted(str(p.poll()) for p in many) == ['2', '2', '2', 'None']
    finally:
        for process in many:
            process.kill()
            process.wait()
