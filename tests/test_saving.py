"""No work is lost: checkpoints that are damaged, disks that are full, processes that are ended."""

import contextlib
import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
import types
from typing import Any, NamedTuple

import numpy as np
import processes
import pytest
import tiny
from rich.console import Console

from mtpt import checkpoint, statuses
from mtpt.__main__ import main
from mtpt.checkpoint import CheckpointConfig, Checkpoints, SaveFailed, checksums, damaged
from mtpt.config import UserError
from mtpt.hosts import ending, maintenance
from mtpt.log import LogConfig, Writer, read_metrics
from mtpt.train import host, loop
from mtpt.train.host import Signals
from mtpt.train.loop import Interrupted
from mtpt.train.saving import Saving
from mtpt.trees import flatten


class State(NamedTuple):
    params: Any
    moments: Any
    step: Any


def state(step, size=30):
    x = np.random.default_rng(step).normal(size=(size, size))
    return State(dict(a=x, b=dict(c=x[0])), dict(a=x * 2), np.int32(step))


def save(folder, *steps, **cfg):
    checkpoints = Checkpoints(folder, CheckpointConfig(keep=9, **cfg))
    for step in steps:
        checkpoints.save(step, state(step), dict(drawn=[step]), dict(seed=7))
    checkpoints.close()
    return folder / 'checkpoints'


def same(params, step):
    for path, x in flatten(state(step).params).items():
        np.testing.assert_array_equal(x, flatten(params)[path])


def shard(folder, item='params'):
    """The largest file of an item."""
    return max((folder / item).rglob('*'), key=lambda p: p.is_file() * p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = dict(
    cut=lambda at: cut(shard(at)),
    emptied=lambda at: os.truncate(shard(at), 0),
    flipped=lambda at: flip(shard(at)),
    missing=lambda at: shard(at).unlink(),
    foreign=lambda at: (at / 'params' / 'more').write_text('not mine'),
    flipped_optimizer=lambda at: flip(shard(at, 'optimizer')),
    flipped_position=lambda at: flip(at / 'position' / 'metadata'),
    no_list=lambda at: (at / checksums.NAME).unlink(),
    flipped_list=lambda at: flip(at / checksums.NAME),
    cut_list=lambda at: cut(at / checksums.NAME),
    cut_metadata=lambda at: cut(at / damaged.METADATA),
    no_item=lambda at: shutil.rmtree(at / 'optimizer'),
    another_folder=lambda at: (
        shutil.rmtree(at),
        at.mkdir(),
        (at / 'holiday.txt').write_text('not a checkpoint'),
    ),
)


def test_a_checkpoint_appears_with_the_checksums_of_all_its_files(tmp_path):
    folder = save(tmp_path, 1) / '1'
    told = json.loads((folder / checksums.NAME).read_text())['files']
    present = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}
    assert told.keys() == present - {checksums.NAME, *damaged.UNSEALED}
    assert damaged.damage(folder) == ''


@pytest.mark.parametrize('kind', DAMAGE)
def test_what_is_damaged_is_named_and_the_checkpoint_before_it_is_used(tmp_path, kind):
    folder = save(tmp_path, 1, 2)
    DAMAGE[kind](folder / '2')
    if kind not in ('flipped_optimizer', 'flipped_position'):  # of which this reads nothing
        with pytest.raises(UserError, match=r'checkpoint 2 in .*damaged or .*other steps: 1'):
            Checkpoints(tmp_path, read_only=True).load_params(2)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=9))
    assert checkpoints.steps() == [1] and checkpoints.latest() == 1
    assert 'checkpoint 2' in checkpoints.notes[0] and '2.damaged' in checkpoints.notes[0]
    assert (folder / '2.damaged').is_dir()
    same(checkpoints.load_params(), 1)
    checkpoints.save(2, state(2), {}, {})  # the run comes by again
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.steps() == [1, 2] and not again.notes
    same(again.load_params(2), 2)


def test_an_expected_and_a_found_size_are_said(tmp_path):
    folder = save(tmp_path, 1) / '1'
    path = shard(folder)
    name, size = path.relative_to(folder).as_posix(), path.stat().st_size
    cut(path)
    assert damaged.damage(folder) == f'{name} has {size // 2:,} bytes where {size:,} were written'


def test_a_run_whose_checkpoints_are_all_damaged_is_never_begun_anew(tmp_path):
    folder = save(tmp_path, 1, 2)
    for step in (1, 2):
        cut(shard(folder / str(step)))
    for _ in range(2):
        with pytest.raises(UserError, match=r'all checkpoints in .* are damaged \(1: .*; 2: '):
            Checkpoints(tmp_path)
    assert sorted(os.listdir(folder)) == ['1', '2']


def test_twice_damaged_at_one_step_keeps_both(tmp_path):
    folder = save(tmp_path, 1, 2)
    for name in ('2.damaged', '2.damaged.1'):
        cut(shard(folder / '2'))
        Checkpoints(tmp_path)
        assert (folder / name).is_dir()
        save(tmp_path, 2)


def test_a_checkpoint_of_before_there_were_checksums_is_taken_as_it_is(tmp_path):
    folder = save(tmp_path, 1) / '1'
    (folder / checksums.NAME).unlink()
    told = json.loads((folder / damaged.METADATA).read_text())
    (folder / damaged.METADATA).write_text(json.dumps(told | dict(custom_metadata={})))
    checkpoints = Checkpoints(tmp_path)
    same(checkpoints.load_params(), 1)
    assert not checkpoints.notes


def test_only_what_is_read_is_verified(tmp_path):
    """A model is evaluated although the state of its optimizer is damaged; it is not trained."""
    folder = save(tmp_path, 1)
    flip(shard(folder / '1', 'optimizer'))
    same(Checkpoints(tmp_path, read_only=True).load_params(), 1)
    with pytest.raises(UserError, match=r'1: optimizer/.* has SHA-256'):
        Checkpoints(tmp_path)


def test_minutes_pass_by_a_clock_that_nothing_sets(tmp_path, monkeypatch):
    now = [1e6]
    monkeypatch.setattr(checkpoint, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(time, 'time', lambda: 4e9)  # the wall clock has jumped
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=100, minutes=2))
    due = []
    for step in range(1, 11):
        now[0] += 30
        if checkpoints.due(step):
            due.append(step)
            checkpoints.save(step, state(step), {}, {})
    assert due == [4, 8]
    assert checkpoints.due(100) and not checkpoints.judged(4)
    checkpoints.close()


@contextlib.contextmanager
def no_file_over(size):
    """Stands for a disk that is full: small files are written, large ones are not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_save_that_fails_is_said_and_the_next_one_is_written(tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=9))
    saving = Saving(checkpoints, said.append)
    saving.save(1, state(1), {}, {})
    saving.wait()
    with no_file_over(2_000):
        saving.save(2, state(2), {}, {})
        late = time.monotonic() + 60
        while not said and time.monotonic() < late:
            saving.look()
    assert 'checkpoint 2 cannot be written' in said[0] and 'bytes are free' in said[0]
    assert 'whole checkpoints: 1' in said[0] and isinstance(saving.failed, SaveFailed)
    assert saving.failed.status == statuses.NOT_SAVED
    assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['1']
    saving.save(3, state(3), {}, {})
    saving.save(2, state(2), {}, {})
    saving.wait()
    assert saving.failed is None and len(said) == 1
    assert Checkpoints(tmp_path).steps() == [1, 2, 3]
    same(checkpoints.load_params(3), 3)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_small_disk_that_fills_keeps_what_was_whole_and_goes_on_when_there_is_space(tmp_path):
    disk = tmp_path / 'disk'
    disk.mkdir()
    mounting = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'mtpt-test', str(disk)]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('no tmpfs can be mounted here')
    try:
        said, cfg = [], CheckpointConfig(keep=9)
        saving = Saving(Checkpoints(disk, cfg), said.append)
        (disk / 'other').write_bytes(bytes(400_000))
        for step in range(1, 9):
            saving.save(step, state(step, 120), {}, {})
        saving.wait()
        whole = Checkpoints(disk, read_only=True).steps()
        assert 'No space left' in said[0], said[0]
        assert saving.failed and 0 < len(whole) < 8
        (disk / 'other').unlink()
        saving.save(9, state(9, 120), {}, {})
        saving.wait()
        assert saving.failed is None
        assert Checkpoints(disk, cfg).steps() == [*whole, 9]
    finally:
        subprocess.run(['umount', '-l', str(disk)], check=True)


def test_lines_of_metrics_wait_while_the_disk_is_full(tmp_path, monkeypatch):
    log = LogConfig(tensorboard=False)
    with open(os.devnull, 'w') as nowhere:
        writer = Writer(tmp_path, ['a'], 9, log, console=Console(file=nowhere))
    said = []
    monkeypatch.setattr(writer, 'say', said.append)
    writer.write(1, dict(x=1.0))
    with no_file_over(writer.path.stat().st_size + 5):
        writer.write(2, dict(x=2.0))
        writer.write(3, dict(x=3.0))
    writer.write(4, dict(x=4.0))
    writer.close()
    assert [line['x'] for line in read_metrics(tmp_path)] == [1.0, 2.0, 3.0, 4.0]
    assert len(said) == 2 and 'training goes on' in said[0]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """The folder of a whole run, whose cache others use."""
    folder = tmp_path_factory.mktemp('undisturbed')
    config = tiny.write(folder, exams={}, checkpoint__keep=9)
    assert main(processes.command(config, folder / 'run')) == 0
    return folder


def _words(undisturbed, workdir, *more):
    cache = f'--config.data.cache={undisturbed / "run" / "cache"}'
    return processes.command(undisturbed / 'config.py', workdir, cache, *more)


def _equal(one, two, exact=True):
    a, b = (flatten(Checkpoints(f, read_only=True).load_params()) for f in (one, two))
    assert a.keys() == b.keys()
    for path in a:
        if exact:
            np.testing.assert_array_equal(a[path], b[path], err_msg=path)
        else:
            np.testing.assert_allclose(a[path], b[path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_training_goes_on_past_a_save_that_fails_and_the_last_one_decides(
    undisturbed, tmp_path, monkeypatch, capsys
):
    write, full = checksums.write, [3]

    def limited(folder, *args):
        if int(folder.name.partition('.')[0]) in full:
            raise OSError(28, 'No space left on device')
        write(folder, *args)

    monkeypatch.setattr(checksums, 'write', limited)
    words = _words(undisturbed, tmp_path / 'run')
    assert main(words) == 0
    told = capsys.readouterr().err
    assert 'checkpoint 3 cannot be written' in told and 'training goes on' in told
    assert processes.steps(tmp_path / 'run') == [6]
    _equal(undisturbed / 'run', tmp_path / 'run')
    full.append(8)
    assert main([*words, '--config.train.steps=8']) == statuses.NOT_SAVED
    assert 'checkpoint 8 cannot be written' in capsys.readouterr().err
    assert processes.steps(tmp_path / 'run') == [6]


def test_a_damaged_checkpoint_is_trained_past_and_changes_nothing(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed / 'run', tmp_path / 'run')
    flip(shard(tmp_path / 'run' / 'checkpoints' / '6'))
    evaluate = ['generate', f'--workdir={tmp_path / "run"}', '--input=a', '--step=6']
    assert main(evaluate) == statuses.BAD_INPUT
    assert 'checkpoint 6' in capsys.readouterr().err
    assert main(_words(undisturbed, tmp_path / 'run')) == 0
    told = capsys.readouterr().err
    assert 'WARNING: checkpoint 6' in told and 'going on from step 3' in told
    _equal(undisturbed / 'run', tmp_path / 'run')


@pytest.fixture
def metadata():
    """A server like that of a machine of Google's: its address, and what it says by name."""
    said = {'maintenance-event': 'NONE', 'preempted': 'FALSE'}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            right = self.headers.get('Metadata-Flavor') == 'Google'
            text = said.get(self.path.rpartition('/')[2]) if right else None
            self.send_response(200 if text else 404)
            self.end_headers()
            self.wfile.write((text or '').encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/instance', said
    server.shutdown()
    server.server_close()


def test_a_notice_of_the_machine_is_a_wish_to_stop(metadata, monkeypatch):
    address, said = metadata
    monkeypatch.setattr(maintenance, 'PERIOD', 0.05)
    listen = maintenance.listen
    monkeypatch.setattr(maintenance, 'listen', lambda a, tell: listen(a, tell, 0.05))
    for name, text, why in (
        ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE', 'a maintenance notice'),
        ('preempted', 'TRUE', 'a preemption notice'),
    ):
        with Signals(lambda text: None, address) as signals:
            time.sleep(0.2)
            assert not signals.agreed(1)
            before, said[name] = said[name], text
            late = time.monotonic() + 60
            while not signals.agreed(1):
                assert time.monotonic() < late
                time.sleep(0.01)
            assert signals.asked == why
            said[name] = before


def test_a_machine_that_is_moved_trains_on_and_elsewhere_nobody_is_asked(metadata, monkeypatch):
    address, said = metadata
    said['maintenance-event'] = 'MIGRATE_ON_HOST_MAINTENANCE'
    assert maintenance.notice(address) == ''
    assert maintenance.notice('http://127.0.0.1:9/nothing') == ''
    monkeypatch.setattr(maintenance, 'PRODUCT', checkpoint.pathlib.Path('/nowhere'))
    assert maintenance.server('auto') == '' == maintenance.server('off')
    with pytest.raises(UserError, match="'auto', 'off' or an address"):
        CheckpointConfig(notices='perhaps')


def test_what_a_stop_is_asked_by_is_its_exit_status():
    with Signals(lambda text: None) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat themselves
        assert signals.agreed(1) and signals.asked == 'SIGTERM'
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert Interrupted('stopped').status == statuses.REQUEUE == 75


def test_a_validation_is_left_when_a_process_that_is_alone_should_stop():
    with Signals(lambda text: None) as signals:
        with signals.breakable():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            raise AssertionError('the validation went on')
        assert signals.agreed(1)


@contextlib.contextmanager
def a_library():
    """Makes an error of its own of whatever is raised in its midst, as JAX's caches do."""
    try:
        yield
    except BaseException as error:
        raise ValueError('comparing went wrong') from error


def test_a_stop_in_the_midst_of_a_library_is_a_stop():
    with Signals(lambda text: None) as signals:
        with signals.breakable(), a_library():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        assert signals.agreed(1)
        with pytest.raises(ValueError, match='of its own'), signals.breakable():
            raise ValueError('of its own')
    with pytest.raises(KeyboardInterrupt), Signals(lambda text: None), a_library():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)


class Failing(RuntimeError):
    pass


def failing(*args, **kept):
    raise Failing('out of memory')


def test_a_fault_of_the_first_step_is_told_and_has_its_status(tmp_path, monkeypatch, capsys):
    """The report of a run that logged nothing does not stand before it."""
    monkeypatch.setattr(loop, 'make_train_step', lambda *args, **kept: failing)
    config = tiny.write(tmp_path, exams={})
    words = ['train', f'--config={config}', f'--workdir={tmp_path / "run"}']
    assert main(words) == statuses.FAULT
    assert 'Failing: out of memory' in capsys.readouterr().err


def test_sigterm_while_a_cache_is_built_is_no_fault_of_a_task(tmp_path, capsys):
    left_out = dict(held_out=dict(families=('ended_unseen',)), data__on_broken='skip')
    config = tiny.write(tmp_path, exams={}, data__mixture='ended', **left_out)
    tasks, again = tmp_path / 'tasks.py', tmp_path / 'again'
    yields = '        yield dict(a=a'
    text = tasks.read_text().replace('tiny', 'ended')
    assert yields in text
    stop = f'        pathlib.Path({str(again)!r}).exists() or os.kill(os.getpid(), signal.SIGTERM)'
    tasks.write_text('import os, pathlib, signal\n' + text.replace(yields, f'{stop}\n{yields}'))
    words = ['train', f'--config={config}', f'--workdir={tmp_path / "run"}']
    assert main(words) == statuses.REQUEUE
    assert 'stopped by SIGTERM' in capsys.readouterr().err
    assert not list(tmp_path.rglob('manifest.json'))
    again.touch()
    assert main([*words, '--config.train.steps=1']) == 0
    assert 'left out' not in str(capsys.readouterr())


@pytest.mark.parametrize('agreed', [True, False])
def test_a_stop_that_all_agreed_on_is_no_news_and_any_other_is_told(monkeypatch, agreed):
    said = []
    monkeypatch.setattr(ending, '_broken', False)
    monkeypatch.setattr(ending, 'tell', lambda key, text: said.append((key, json.loads(text))))
    monkeypatch.setattr(ending, 'wait_for_all', lambda name, seconds: said.append(seconds))
    for error, status in ((KeyboardInterrupt(), 130), (statuses.Ended('by SIGTERM'), 75)):
        said.clear()
        assert ending.ended(Interrupted('stopped') if agreed else error)
        told, waits = said[:-1], said[-1]
        assert (waits == ending.HOUR) == agreed and bool(told) != agreed
        assert agreed or told[0][1][0] == status


def test_jax_is_asked_for_its_sync_point_where_it_has_one(monkeypatch):
    asked = []
    meeting = types.SimpleNamespace(reached=lambda step: None, ask=asked.append)
    monkeypatch.setattr(host.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(host.meeting, 'called', lambda name: meeting)
    monkeypatch.setattr(
        host.multihost_utils, 'reached_preemption_sync_point', lambda step: step == 3
    )
    with Signals(lambda text: None) as signals:
        assert not signals.agreed(3)  # JAX's service is off
        monkeypatch.setattr(host.hosts, 'synced', lambda: True)
        assert not signals.agreed(2) and signals.agreed(3)
        assert signals.asked == 'a preemption notice'


def test_a_supervised_run_that_is_killed_ends_where_an_undisturbed_one_does(
    undisturbed, tmp_path, capsys
):
    """And nobody else trains in its folder meanwhile."""
    run, last = tmp_path / 'run', '--config.train.steps=200'
    often = ['--config.checkpoint.keep=2', '--config.train.validate_every=0', last]
    words = _words(undisturbed, run, *often, '--restarts=2')
    with processes.started(words, devices=8) as supervised:  # the layout of this process
        processes.until(lambda: processes.steps(run), supervised)
        child = json.loads((run / '.lock').read_text())['pid']
        os.kill(child, signal.SIGSTOP)  # so that the run does not end meanwhile
        assert main(_words(undisturbed, run, *often)) == statuses.BAD_INPUT
        assert f'is being trained in by process {child} on' in capsys.readouterr().err
        os.kill(child, signal.SIGKILL)
        assert processes.ended(supervised) == [0], str(supervised[0].said)
    said = str(supervised[0].said)
    assert 'by signal 9 (SIGKILL); starting it again from checkpoint' in said
    assert 'going on from step' in said
    whole = _words(undisturbed, tmp_path / 'whole', *often, '--config.checkpoint.every=0')
    assert main(whole) == 0
    _equal(tmp_path / 'whole', run)


def test_one_of_two_is_told_to_end_both_save_and_one_goes_on_alone(undisturbed, tmp_path):
    """Saved by minutes and at a step on which both agree, on another number of processes."""
    run = tmp_path / 'run'
    steps, one_device = '--config.train.steps=3', dict(devices=1)
    with processes.started(_words(undisturbed, run, steps, '--config.mesh.data=1')) as alone:
        assert processes.ended(alone) == [0], str(alone[0].said)
    more = [
        '--config.train.steps=100000', '--config.mesh.data=2', '--config.checkpoint.every=0',
        '--config.checkpoint.minutes=0.02', '--config.train.validate_every=0',
    ]  # fmt: skip
    with processes.started(_words(undisturbed, run, *more), 2, **one_device) as both:
        processes.until(lambda: max(processes.steps(run)) > 4, both)
        both[1].send_signal(signal.SIGTERM)
        assert processes.ended(both) == [75, 75], [str(p.said) for p in both]
    assert 'stopped by SIGTERM' in str(both[0].said)
    reached = max(processes.steps(run))
    last = f'--config.train.steps={reached + 2}'
    assert main(_words(undisturbed, run, last, '--config.mesh.data=1')) == 0
    whole = tmp_path / 'whole'
    assert main(_words(undisturbed, whole, last, '--config.checkpoint.every=0')) == 0
    _equal(whole, run, exact=False)


FAILS = """
import asyncio
import sys

import orbax.checkpoint as ocp
from orbax.checkpoint._src.futures import future
from orbax.checkpoint._src.path import atomicity

FULL = OSError(28, 'No space left on device')
process = int(sys.argv[-1].removeprefix('--process='))
write, create = ocp.PyTreeCheckpointHandler.async_save, atomicity.AtomicRenameTemporaryPath.create


async def failing(self, directory, *args, **kwargs):
    step = next((int(p.partition('.')[0]) for p in directory.parts if '.orbax' in p), 0)
    if (step, process) in ((3, 1), (12, 0)):
        raise FULL
    found = await write(self, directory, *args, **kwargs) or []

    async def late():
        await asyncio.sleep(0.5)
        raise FULL

    return [*found, future.CommitFuture(late())] if (step, process) in ((6, 1), (9, 0)) else found


async def uncreated(self):
    if self.get_final().name == '15':
        raise FULL
    return await create(self)


ocp.PyTreeCheckpointHandler.async_save = failing
atomicity.AtomicRenameTemporaryPath.create = uncreated
from mtpt.__main__ import entry

entry()
"""


def test_when_one_of_two_cannot_write_both_train_on_and_save_when_it_can(undisturbed, tmp_path):
    """At once or in the background, in the process that commits or in the other one."""
    (tmp_path / 'fails.py').write_text(FAILS)
    more = ['--config.train.steps=18', '--config.mesh.data=2', '--config.train.validate_every=0']
    words = _words(undisturbed, tmp_path / 'run', *more)
    with processes.started(words, 2, program=(str(tmp_path / 'fails.py'),)) as both:
        assert processes.ended(both) == [0, 0], [str(p.said) for p in both]
    said = str(both[0].said)
    for step in (3, 6, 9, 12, 15):
        assert said.count(f'WARNING: checkpoint {step} cannot be written') == 1, said
    assert said.count('process 1 on') == 2 and said.count('No space left on device') == 5
    assert processes.steps(tmp_path / 'run') == [18]
    assert Checkpoints(tmp_path / 'run', read_only=True).load_params()
