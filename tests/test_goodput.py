"""Laws of the account of a run's time: every second counts once, over all lives, or is unknown."""

import json
import pathlib
import time

import numpy as np
import pytest

from mtpt import report
from mtpt import run as runs
from mtpt.config import UserError
from mtpt.log import LogConfig, TaskSums, Writer, read_metrics
from mtpt.settings import Run
from mtpt.watch import boards, goodput, memory
from mtpt.watch.goodput import Goodput, lives, summed
from mtpt.watch.speed import Cost, Speed

START = 1_000_000.0  # seconds of some wall clock


class Clock:
    """A machine's clocks, that tests turn."""

    def __init__(self, monkeypatch):
        self.now, self.wall, self.up, self.boot = 100.0, START, 5_000.0, 'boot-1'
        monkeypatch.setattr(goodput.time, 'perf_counter', lambda: self.now)
        monkeypatch.setattr(goodput.time, 'time', lambda: self.wall)
        monkeypatch.setattr(goodput, '_boottime', lambda: self.up)
        monkeypatch.setattr(goodput, '_boot', lambda: self.boot)

    def pass_(self, seconds):
        self.now, self.wall, self.up = self.now + seconds, self.wall + seconds, self.up + seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def live(clock, folder, began, until, saved=(), each=2.0):
    """A life that starts in 5 s and takes steps of `each` seconds, told of every tenth."""
    life = Goodput(folder, began)
    clock.pass_(5)
    for step in range(began + 1, until + 1):
        with life.spent('steps'):
            clock.pass_(each)
        if step % 10 == 0 or step in saved:
            life.log(step)
    return life


def test_time_inside_counts_once_and_for_what_is_innermost(clock):
    life = Goodput()
    clock.pass_(3)
    with life.spent('steps'):
        clock.pass_(2)
        with life.spent('saving'):
            clock.pass_(7)
        clock.pass_(1)
    clock.pass_(4)
    with life.spent('data'):
        clock.pass_(0.5)
    told = life.log(1)
    assert life.seconds == dict(starting=3, steps=3, saving=7, other=4, data=0.5)
    assert sum(v for k, v in told.items() if k != 'goodput/run') == pytest.approx(1)
    assert told['goodput/run'] == pytest.approx(3 / 17.5)


def test_a_line_within_a_context_counts_up_to_now(clock):
    life = Goodput()
    with life.spent('steps'):
        clock.pass_(2)
        assert life.log(1) == {'goodput/steps': 1.0, 'goodput/run': 1.0}
        clock.pass_(3)
    assert life.seconds['steps'] == 5


def test_work_after_the_last_checkpoint_and_the_pause_are_lost_to_the_restart(clock, tmp_path):
    live(clock, tmp_path, 0, 100, saved=(60,))
    clock.pass_(30)  # it is killed, and started again after half a minute
    live(clock, tmp_path, 60, 100)
    found = summed(lives(tmp_path))
    assert found.restarts == 1 and found.unknown == 0
    assert found.seconds == dict(starting=10, other=0, steps=2 * (60 + 40))
    assert found.lost == 2 * 40 and found.down == 30
    assert found.total == pytest.approx(clock.wall - START)  # nothing is forgotten
    assert found.steps == pytest.approx(200 / found.total)


def test_a_life_that_saved_nothing_is_lost_but_for_its_start(clock, tmp_path):
    live(clock, tmp_path, 0, 20, saved=(20,))
    live(clock, tmp_path, 20, 40)
    live(clock, tmp_path, 20, 40)
    found = summed(lives(tmp_path))
    assert found.lost == 40 and found.seconds['steps'] == 80 and found.seconds['starting'] == 15


@pytest.mark.parametrize('jump', [-7200, 7200, 400 * 86400])
def test_on_one_machine_a_clock_that_jumps_changes_nothing(clock, tmp_path, jump):
    live(clock, tmp_path, 0, 10)
    clock.pass_(30)
    clock.wall += jump
    live(clock, tmp_path, 10, 20)
    found = summed(lives(tmp_path))
    assert found.down == 30 and found.unknown == 0


@pytest.mark.parametrize(
    'jump, known', [(0, True), (-7200, False), (400 * 86400, False), (90, True)]
)
def test_between_machines_an_absurd_pause_is_unknown_and_never_a_number(
    clock, tmp_path, jump, known
):
    live(clock, tmp_path, 0, 10)
    clock.pass_(30)
    clock.wall, clock.boot, clock.up = clock.wall + jump, 'boot-2', 10.0
    live(clock, tmp_path, 10, 20)
    found = summed(lives(tmp_path))
    assert found.unknown == (not known)
    assert found.down == pytest.approx(30 + jump if known else 0)


def test_a_clock_that_jumped_within_a_life_is_not_believed_elsewhere(clock, tmp_path):
    life = Goodput(tmp_path)
    clock.wall += 3600
    clock.pass_(10)
    life.log(10)
    clock.pass_(30)
    clock.boot, clock.up = 'boot-2', 10.0
    live(clock, tmp_path, 10, 20)
    assert summed(lives(tmp_path)).unknown == 1


def test_a_file_cut_at_any_byte_is_read_and_gone_on_with(clock, tmp_path):
    live(clock, tmp_path, 0, 30)
    path = tmp_path / goodput.FILE
    whole = path.read_bytes()
    lines = [json.loads(text) for text in whole.splitlines()]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = whole[:cut].count(b'\n') + whole[:cut].endswith(b'}}')
        Goodput(tmp_path, 0).log(0)
        marks = [mark for life in lives(tmp_path) for mark in life.marks if mark[0]]
        assert len(marks) == kept
        assert [m[0] for m in marks] == [line['step'] for line in lines[: len(marks)]]
        assert lives(tmp_path)[-1].marks[-1][0] == 0  # the new line stands by itself


def test_lines_that_are_no_lives_are_left_out(tmp_path):
    nasty = ['[]', '{"life": 3}', '{"life": "a"}', '{"life": "a", "step": NaN}', 'x' * 50]
    (tmp_path / goodput.FILE).write_text('\n'.join(nasty))
    assert lives(tmp_path) == [] and summed([]).total == 0


def test_a_full_disk_costs_lines_and_no_run(clock, tmp_path, monkeypatch):
    life = Goodput(tmp_path)
    with life.spent('steps'):
        clock.pass_(5)

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patched:
        patched.setattr('builtins.open', full)
        life.log(1)
    clock.pass_(1)
    life.log(2)
    assert [m[0] for m in lives(tmp_path)[0].marks] == [2]


def test_the_age_of_this_process_is_known():
    assert 0 < goodput.process_age() < 86400
    goodput.from_the_start()
    assert time.perf_counter() - goodput.begun() >= 0.01
    assert abs(time.perf_counter() - goodput.begun()) < 1


def test_the_host_is_measured_where_devices_are_not():
    assert 0.05 < memory.figures()['memory/host_gb'] < 100


# What the log makes of it.


def step_metrics(M, seen, rng):
    tokens = np.zeros(M + 1)
    tokens[seen] = rng.integers(5, 50, len(seen))
    return {
        'train/loss': 2.0,
        'train/tokens': tokens.sum(),
        'task/loss_sum': 2.3456789 * tokens,
        'task/correct': tokens / 3,
        'task/tokens': tokens,
        'task/segments': (tokens > 0).astype(int),
    }


def write(folder, M, steps, cfg, seed=0, batch=64):
    rng = np.random.default_rng(seed)
    names = [f'task_{i:04d}_of_many' for i in range(1, M + 1)]
    with Writer(folder, names, steps, cfg) as writer:
        writer.cost = Cost(1e9, 1e12)
        for step in range(1, steps + 1):
            writer.add(step, step_metrics(M, 1 + rng.permutation(M)[: min(batch, M)], rng))
    return read_metrics(folder)


def test_with_two_thousand_tasks_the_log_stays_small(tmp_path):
    cfg = LogConfig(every=10, tensorboard=True)
    lines = write(tmp_path, 2000, 400, cfg, batch=1000)
    size = (tmp_path / 'metrics.jsonl').stat().st_size
    intervals = 40
    assert size / intervals < 100 * 4 * 60  # of 100 tasks an interval, four figures each
    boards = sum(p.stat().st_size for p in (tmp_path / 'tensorboard').iterdir())
    assert boards / intervals < 2000
    told = sum(v for line in lines for k, v in line.items() if k.endswith('/examples'))
    assert told == 400 * 1000  # summed, and not thinned


def test_figures_of_tasks_are_summed_whatever_the_intervals(tmp_path):
    totals = []
    for name, cfg in dict(often=LogConfig(every=2), rarely=LogConfig(every=2, tasks=3)).items():
        lines = write(tmp_path / name, 10, 20, LogConfig(**vars(cfg) | dict(tensorboard=False)))
        tokens = {}
        for line in lines:
            for key, value in line.items():
                if key.startswith('task/') and key.endswith('/tokens'):
                    tokens[key] = tokens.get(key, 0) + value
        totals.append(tokens)
        assert len([x for x in lines if 'task/task_0001_of_many/loss' in x]) <= len(lines)
    assert totals[0] == totals[1] and len(totals[0]) == 10


def test_a_mean_over_an_interval_leaves_out_what_was_not_finite():
    sums = TaskSums()
    for loss in (4.0, np.nan):
        told = dict(loss_sum=[0, loss], correct=[0, 1], tokens=[0, 2], segments=[0, 1])
        sums.add({f'task/{k}': np.array(v, float) for k, v in told.items()})
    assert sums.figures(['a']) == {
        'task/a/loss': 2.0, 'task/a/accuracy': 0.5, 'task/a/tokens': 4, 'task/a/examples': 2,
    }  # fmt: skip


def test_mfu_is_what_was_asked_of_the_chips_over_what_they_can_do(tmp_path, monkeypatch):
    now = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr('mtpt.watch.speed.time.perf_counter', lambda: float(next(now)))
    lines = write(tmp_path, 3, 4, LogConfig(every=4, tensorboard=False))
    assert lines[-1]['time/mfu'] == pytest.approx(1e9 / 0.5 / 1e12)
    assert 'time/flops_per_s' not in lines[-1]


@pytest.fixture
def ticking(monkeypatch):
    """A clock for `Speed`, in seconds, that tests set."""
    now = [0.0]
    monkeypatch.setattr('mtpt.watch.speed.time.perf_counter', lambda: now[0])
    return now


def test_after_a_pause_steps_take_as_long_as_before_whoever_waits_for_them(ticking):
    """Two steps of 1 s between pauses of 50 s; their figures are read when they end, as on a
    device that runs beside, or both at the end of the second, as where dispatching waits."""
    for reads in ((1.0, 2.0), (2.0, 2.0)):
        speed = Speed()
        for stretch in range(3):
            start, step = ticking[0] + 50, 2 * stretch
            ticking[0] = start
            speed.resume(step)
            for i, at in enumerate(reads, 1):
                ticking[0] = start + at
                speed.read(step + i, 100.0, seen=i == 1 or at > reads[0])
            assert speed.figures(Cost(5.0)) == {
                'time/step': 1.0, 'time/tokens_per_s': 100.0, 'time/flops_per_s': 5.0,
            }  # fmt: skip
            speed.clear()
            speed.pause()


def test_a_step_whose_time_nobody_saw_has_no_speed_of_its_own(ticking):
    speed = Speed()
    speed.resume(0)
    ticking[0] = 2.0
    speed.read(1, 100.0)
    speed.clear()  # an interval of one step ends between the two
    ticking[0] = 2.001
    speed.read(2, 100.0, seen=False)
    assert speed.figures(Cost(5.0)) == {}


def test_a_step_that_was_under_way_in_a_pause_is_not_timed(ticking):
    speed = Speed()
    speed.resume(0)
    ticking[0] = 1.0
    speed.read(1, 100.0)
    speed.pause()  # step 2 has been dispatched, and ends in it
    ticking[0] = 60.0
    speed.resume(2)
    ticking[0] = 60.001
    speed.read(2, 100.0)
    ticking[0] = 61.0
    speed.read(3, 100.0)
    assert speed.figures(Cost(0.0)) == {'time/step': 1.0, 'time/tokens_per_s': 100.0}


# Boards.


class FakeWandB:
    """What of the package is used, and what it was told."""

    def __init__(self, fails=False):
        self.begun, self.logged, self.fails, self.ended = [], [], fails, 0

    def init(self, **told):
        self.begun.append(told)
        return self

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, values):
        if self.fails:
            raise ConnectionError('the network is unreachable\nand more')
        self.logged.append(values)

    def finish(self):
        self.ended += 1


def test_a_run_goes_on_at_weights_and_biases_under_its_id(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(__import__('sys').modules, 'wandb', fake)
    (tmp_path / 'config.json').write_text(json.dumps(dict(name='mine', config=dict(a=1))))
    cfg = LogConfig(every=2, tensorboard=False, wandb=True, wandb_mode='offline')
    write(tmp_path, 3, 4, cfg)
    write(tmp_path, 3, 4, cfg)
    one, two = fake.begun
    assert one['id'] == two['id'] and one['resume'] == 'allow' and one['mode'] == 'offline'
    assert one['name'] == 'mine' and one['config'] == dict(a=1) and fake.ended == 2
    assert [v['step'] for v in fake.logged] == [2, 4, 2, 4] and 'train/loss' in fake.logged[0]


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'wandb', None)
    with pytest.raises(UserError, match=r"pip install 'mtpt\[wandb\]'"):
        boards.WandB(pathlib.Path(tmp_path), 'mtpt', 'online')
    with pytest.raises(UserError, match=r"pip install 'mtpt\[wandb\]'"):
        runs.train(Run(log=LogConfig(wandb=True)), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()  # it was said before any work was done


def test_a_board_that_fails_ends_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__('sys').modules, 'wandb', FakeWandB(fails=True))
    lines = write(tmp_path, 3, 6, LogConfig(every=2, tensorboard=False, wandb=True))
    assert len(lines) == 3
    said = capsys.readouterr().err
    assert said.count('Weights & Biases has failed') == 1 and 'unreachable' in said


@pytest.mark.parametrize(
    'wrong', [dict(wandb_mode='on'), dict(tasks=0), dict(profile=(0, 1)), dict(every=0)]
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        LogConfig(**wrong)


# The report.


def test_the_report_shows_the_life_of_a_run_over_its_restarts(clock, tmp_path):
    live(clock, tmp_path, 0, 100, saved=(60,))
    clock.pass_(30)
    live(clock, tmp_path, 60, 100)
    line = {'step': 100, 'train/loss': 1.0, 'time/mfu': 0.41, 'memory/peak_gb': 12.3}
    (tmp_path / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    page = report.write(tmp_path).read_text()
    assert 'Where the time went' in page and 'lost to restarts' in page
    assert '1 restart' in page and '62.5 %' in page
    assert '<td>60</td><td>100</td><td>1 min 25 s</td><td></td><td>30.0 s</td>' in page
    assert '<td>0</td><td>100</td><td>3 min 25 s</td><td>1 min 20 s</td><td></td>' in page
    assert '41.0 %' in page and '12.3' in page
