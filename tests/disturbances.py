"""What can happen to a run, done to a micro run: each disturbance once, as a seed says.

A disturbance is given a lab, a folder of its own and a random generator. It makes a run there,
disturbs it, and holds that the run either ended, perhaps started again, with the weights of one
that was never disturbed, or stopped with a status other than 0 and a sentence that names the cause.
Anything else is an AssertionError.
"""

import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from labs import ONE, TWO, Group, Lab, Layout, check_same, children, micro

from mtpt.statuses import BAD_INPUT, NOT_SAVED, REQUEUE

# A task whose source stops answering while a file is there.
HANGS = """
import pathlib
import time


def unless_hung():
    while pathlib.Path({file!r}).exists():
        time.sleep(0.1)

"""

# Found first by every Python of a run: a clock that jumps ahead by a day and back by three.
CLOCK = """
import datetime, os, time

began, real = time.monotonic(), dict(vars(time))
AT, AHEAD, BACK = 2.0, 86400.0, -2 * 86400.0


def offset():
    turn = int((time.monotonic() - began) / AT)
    return (0.0, AHEAD, BACK)[turn % 3]


class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)


time.time = lambda: real['time']() + offset()
time.time_ns = lambda: real['time_ns']() + int(offset() * 1e9)
time.localtime = lambda s=None: real['localtime'](time.time() if s is None else s)
time.gmtime = lambda s=None: real['gmtime'](time.time() if s is None else s)
datetime.datetime = Jumping
"""


# What a process says whose partner has gone: its own words, or of the library that ends it.
LEFT_ALONE = 'is gone|another task died|did not answer|did not start'


class Outcome(NamedTuple):
    """How it ended.

    ended: 'same', or 'sentence' where the run stopped and has to be mended by a person.
    times: how often the run was disturbed before that.
    said: the sentence, where there was one.
    back: for each start after a disturbance the seconds until a step was done that was new.
    """

    ended: str
    times: int = 1
    said: str = ''
    back: tuple[float, ...] = ()


def killed(
    lab: Lab,
    place: pathlib.Path,
    rng: random.Random,
    layout: Layout = ONE,
    all_of_them: bool | None = True,
    in_a_save: bool = False,
    times: int = 1,
) -> Outcome:
    """kill -9 at random moments or while a checkpoint is written.

    all_of_them: whether all processes are killed, or one; None for now this, now that.
    """
    done, back, said = 0, [], ''
    for _ in range(4 * times):
        if done == times:
            break
        with lab.start(place, layout, '--join_seconds=90') as group:
            reach = max(1, round(1.6 * lab.steps / (times + 1)))
            seconds = _strike(lab, place, rng, group, in_a_save, reach)
            if len(group.alive) < layout.processes:  # it came to its end before
                assert set(group.wait()) == {0}, group.said()[-2000:]
                break
            every = rng.random() < 0.5 if all_of_them is None else all_of_them
            which = None if every else [rng.randrange(layout.processes)]
            group.send(signal.SIGKILL, which)
            statuses = group.wait()
            assert 0 not in statuses, f'a process ended well without another: {statuses}'
            left = [i for i in range(layout.processes) if which and i not in which]
            for i in left:
                assert re.search(LEFT_ALONE, group.said(i)), group.said(i)[-2000:]
                said = group.sentence(i)
        done += 1
        back += [seconds] * (done > 1 and seconds is not None)
    back.append(_goes_on(lab, place, layout))
    return Outcome('same', done, said, tuple(s for s in back if s is not None))


def restarted(
    lab: Lab, place: pathlib.Path, rng: random.Random, layout: Layout = ONE, times: int = 1
) -> Outcome:
    """kill -9 of one process, over which `--restarts` watches: nobody has to start it again."""
    back = []
    with lab.start(place, layout, f'--restarts={times + 1}') as group:
        while len(back) < times and group.until(lambda: group.step() > last_saved(place)):
            if (seconds := _kill_a_child(lab, place, rng, group)) is None:
                break
            back.append(seconds)
        statuses = group.wait()
        assert set(statuses) == {0}, f'{statuses}: {group.said()[-2000:]}'
        said = next((s for s in group.said().splitlines() if 'starting it again' in s), '')
    check_same(place, lab.undisturbed(layout), lab.steps)
    return Outcome('same', len(back), said, tuple(back))


def terminated(
    lab: Lab, place: pathlib.Path, rng: random.Random, layout: Layout = ONE, times: int = 1
) -> Outcome:
    """SIGTERM to one process: all save, and end with a status at which schedulers start again."""
    done, back, said = 0, [], ''
    while done < times:
        with lab.start(place, layout) as group:
            seconds = _step_after(group, rng.randint(1, 3), rng)
            group.send(signal.SIGTERM, [rng.randrange(layout.processes)])
            statuses = group.wait()
            if set(statuses) == {0}:  # the last step was over
                break
            assert set(statuses) == {REQUEUE}, f'{statuses}: {group.said()[-2000:]}'
            said = group.sentence()
            assert 'SIGTERM' in said, said
        done += 1
        back += [seconds] * (done > 1)
    back.append(_goes_on(lab, place, layout))
    return Outcome('same', done, said, tuple(s for s in back if s is not None))


def filled(lab: Lab, place: pathlib.Path, rng: random.Random, with_log: bool = False) -> Outcome:
    """The disk is full from some step on: training goes on, and says that nothing is saved.

    with_log: whether what it says goes to that disk too.
    """
    with small_disk(place) as disk:
        workdir, beside = disk / 'run', place.parent / f'{place.name}.said'
        with lab.start(workdir, said=disk / 'said' if with_log else beside) as group:
            _step_after(group, rng.randint(1, lab.steps - 2), rng)
            with _full(disk / 'ballast'):
                status = group.wait()[0]
            said = group.said()
            assert status == NOT_SAVED, f'ended with {status}: {said[-2000:]}'
            if not with_log:
                assert 'cannot be written' in said, said[-2000:]
                assert group.step() == lab.steps, 'a full disk stopped training'
        (disk / 'ballast').unlink()
        return Outcome('same', 1, group.sentence(), _told(_goes_on(lab, workdir)))


def damaged(
    lab: Lab, place: pathlib.Path, rng: random.Random, what: str = 'checkpoint', how: str = 'flip'
) -> Outcome:
    """A file is cut, or one bit of it is another: in the last checkpoint, a shard, the manifest."""
    shutil.copytree(lab.undisturbed(ONE), place)
    cache = place.parent / f'{place.name}.cache'
    shutil.copytree(lab.folder / 'cache', cache)
    _hurt(rng.choice(sorted(_files(place, cache, what, lab.steps))), how, rng)
    if what != 'checkpoint':  # what is read anew, from the step before the last
        shutil.rmtree(place / 'checkpoints' / str(lab.steps))
    with lab.start(place, ONE, f'--config.data.cache={cache}') as group:
        began = time.perf_counter()
        status = group.wait()[0]
        seconds, said = time.perf_counter() - began, group.sentence()
        if status:
            assert status == BAD_INPUT and said, f'{status}: {group.said()[-2000:]}'
            return Outcome('sentence', 1, said)
    check_same(place, lab.undisturbed(ONE), lab.steps)
    return Outcome('same', 1, back=(seconds,))


def hung(lab: Lab, place: pathlib.Path, rng: random.Random, to_the_end: bool = True) -> Outcome:
    """A source stops answering: the watchdog ends the run, and names the task and the host."""
    switch = lab.folder / 'hangs'
    limits = ['--config.watchdog.seconds=10', '--config.watchdog.slow=120']
    try:
        with lab.start(place, ONE, *limits) as group:
            _step_after(group, rng.randint(1, 3), rng)
            switch.touch()
            status = group.wait()[0]
            said = group.said()
    finally:
        switch.unlink(missing_ok=True)
    assert status == REQUEUE and 'watchdog' in said and 'tiny_' in said, f'{status}: {said[-2000:]}'
    reports = list((place / 'watchdog').glob('*.txt'))
    assert any('unless_hung' in report.read_text() for report in reports), reports
    sentence = next(line for line in said.splitlines() if 'watchdog' in line)
    if not to_the_end:
        return Outcome('sentence', 1, sentence)
    return Outcome('same', 1, sentence, _told(_goes_on(lab, place)))


def alone(lab: Lab, place: pathlib.Path, rng: random.Random) -> Outcome:
    """One process of two never starts: the other says which."""
    there = rng.randrange(2)
    with lab.start(place, TWO, '--join_seconds=4', present=[there]) as group:
        status = group.wait()[0]
        said = group.sentence()
    assert status and f'process {1 - there}' in said, f'{status}: {group.said()[-2000:]}'
    return Outcome('sentence', 1, said)


def two_in_one(lab: Lab, place: pathlib.Path, rng: random.Random) -> Outcome:
    """A second run in a folder is refused, and the first goes on as if nothing had been."""
    target = rng.randint(1, lab.steps // 2)
    with lab.start(place) as first:
        first.until(lambda: first.step() >= target)
        first.send(signal.SIGSTOP)  # so that it does not end before the second has come
        with lab.start(place) as second:
            status = second.wait()[0]
            said = second.sentence()
        first.send(signal.SIGCONT)
        assert first.wait() == [0], first.said()[-2000:]
    assert status == BAD_INPUT and str(place) in said, f'{status}: {second.said()[-2000:]}'
    check_same(place, lab.undisturbed(ONE), lab.steps)
    return Outcome('same', 1, said)


def jumped(lab: Lab, place: pathlib.Path, rng: random.Random, layout: Layout = ONE) -> Outcome:
    """The clock jumps ahead by a day, back by three, and so on, every other second."""
    folder = place.parent / f'{place.name}.clock'
    folder.mkdir(parents=True)
    at = f'AT, AHEAD, BACK = {rng.uniform(0.3, 2):.2f}'
    (folder / 'sitecustomize.py').write_text(CLOCK.replace('AT, AHEAD, BACK = 2.0', at))
    lab.finish(place, layout, '--config.checkpoint.minutes=0.02', env=dict(PYTHONPATH=str(folder)))
    check_same(place, lab.undisturbed(layout), lab.steps)
    return Outcome('same')


def hanging_lab(folder: pathlib.Path, steps: int = 12) -> Lab:
    """A lab that streams, from a source that hangs while the file `hangs` is there."""
    lab = micro(
        folder, cached=False, data__mode='stream', data__mixture='tiny_first', train__steps=steps
    )
    tasks = folder / 'tasks.py'
    text = tasks.read_text()
    if 'unless_hung' not in text:
        text = HANGS.format(file=str(folder / 'hangs')) + text
        yields = '        yield dict(a=a'
        assert yields in text
        tasks.write_text(text.replace(yields, f'        unless_hung()\n{yields}'))
    return lab


@contextlib.contextmanager
def small_disk(place: pathlib.Path, megabytes: int = 24) -> Iterator[pathlib.Path]:
    """A disk of its own, in memory.

    Raises:
      PermissionError: this user may not mount one.
    """
    place.mkdir(parents=True)
    size = f'size={megabytes}m'
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', str(place)], stderr=-3)
    if done.returncode:
        raise PermissionError('a tmpfs cannot be mounted here')
    try:
        yield place
    finally:
        subprocess.run(['umount', '--lazy', str(place)], check=True)


def saving(place: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((place / 'checkpoints').glob('*.orbax-checkpoint-tmp*'))


def last_saved(place: pathlib.Path) -> int:
    """The step of the last whole checkpoint, 0 before any."""
    steps = [p.name for p in (place / 'checkpoints').glob('*') if p.name.isdigit()]
    return max(map(int, steps), default=0)


def _strike(
    lab: Lab,
    place: pathlib.Path,
    rng: random.Random,
    group: Group,
    in_a_save: bool,
    reach: int,
) -> float | None:
    """Waits for the moment to strike; gives the seconds to the first step, if it was reached.

    reach: how many steps after the last checkpoint it comes at most.
    """
    before = last_saved(place)
    if not in_a_save and rng.random() < 0.2:  # before there is a step
        time.sleep(rng.uniform(0, 4))
        return None
    group.until(lambda: group.step() > before)
    seconds = time.perf_counter() - group.started
    target = before + rng.randint(1, max(1, min(reach, lab.steps - before - 2)))
    group.until(lambda: group.step() >= target)
    if in_a_save:
        group.until(lambda: saving(place))
        time.sleep(rng.choice([0, rng.uniform(0, 0.02), rng.uniform(0, 0.3)]))
    else:
        time.sleep(rng.uniform(0, 0.2))
    return seconds


def _kill_a_child(lab: Lab, place: pathlib.Path, rng: random.Random, group: Group) -> float | None:
    """Kills what a process has started, soon; gives the seconds to a step after, None if over."""
    target = min(last_saved(place) + rng.randint(1, 4), lab.steps - 2)
    group.until(lambda: group.step() >= target)
    time.sleep(rng.uniform(0, 0.2))
    struck = children(rng.choice(group.processes).pid)
    if not struck or group.step() > lab.steps - 2:
        return None
    os.kill(struck[0], signal.SIGKILL)
    began, so_far = time.perf_counter(), len(group.steps())
    group.until(lambda: len(group.steps()) > so_far + 1)  # one may have been under way
    return time.perf_counter() - began


def _step_after(group: Group, steps: int, rng: random.Random) -> float | None:
    """Waits until so many steps were done, and a moment; the seconds to the first one."""
    if not group.until(lambda: group.step() > 0):
        return None
    seconds, first = time.perf_counter() - group.started, group.step()
    group.until(lambda: group.step() >= first + steps - 1)
    time.sleep(rng.uniform(0, 0.1))
    return seconds


def _goes_on(lab: Lab, place: pathlib.Path, layout: Layout = ONE) -> float | None:
    """The same command again ends as if nothing had been; gives the seconds to the first step."""
    with lab.start(place, layout) as group:
        come = group.until(lambda: group.step() > 0)
        seconds = time.perf_counter() - group.started
        statuses = group.wait()
        said = '\n'.join(group.said(i)[-2000:] for i in range(layout.processes))
        assert set(statuses) == {0}, f'started again, it ended with {statuses}\n{said}'
    check_same(place, lab.undisturbed(layout), lab.steps)
    return seconds if come else None


def _told(seconds: float | None) -> tuple[float, ...]:
    return () if seconds is None else (seconds,)


@contextlib.contextmanager
def _full(ballast: pathlib.Path) -> Iterator[None]:
    """Writes until there is no room left, and whenever a save that failed has made some again."""
    over = threading.Event()

    def fill():
        with open(ballast, 'wb', buffering=0) as file:
            while not over.wait(0.002):
                for size in (1 << 20, 1 << 12, 1):
                    with contextlib.suppress(OSError):
                        while file.write(b'x' * size):
                            pass

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        yield
    finally:
        over.set()
        filling.join()


def _files(place, cache, what: str, step: int) -> list[pathlib.Path]:
    if what == 'checkpoint':
        found = (place / 'checkpoints' / str(step)).rglob('*')
    elif what == 'manifest':
        found = [cache / 'manifest.json']
    else:
        found = cache.rglob('*.shard')
    return [p for p in found if p.is_file() and p.stat().st_size]


def _hurt(path: pathlib.Path, how: str, rng: random.Random) -> None:
    """Cuts a file at a random place, or turns a random bit of it around."""
    size = path.stat().st_size
    if how == 'cut':
        os.truncate(path, rng.randrange(size))
        return
    content = bytearray(path.read_bytes())
    content[rng.randrange(size)] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


Disturbance = Callable[[Lab, pathlib.Path, random.Random], Outcome]

# By name; the second is how many processes there are, which tells the cheap from the others.
DISTURBANCES: dict[str, tuple[Disturbance, int]] = dict(
    kill=(killed, 1),
    kill_in_a_save=(partial(killed, in_a_save=True), 1),
    kill_all_of_two=(partial(killed, layout=TWO), 2),
    kill_one_of_two=(partial(killed, layout=TWO, all_of_them=False), 2),
    kill_two_in_a_save=(partial(killed, layout=TWO, in_a_save=True), 2),
    kill_one_of_two_in_a_save=(
        partial(killed, layout=TWO, all_of_them=False, in_a_save=True),
        2,
    ),
    kill_with_restarts=(restarted, 1),
    kill_one_of_two_with_restarts=(partial(restarted, layout=TWO), 2),
    sigterm=(terminated, 1),
    sigterm_of_one_of_two=(partial(terminated, layout=TWO), 2),
    full_disk=(filled, 1),
    full_disk_with_its_log=(partial(filled, with_log=True), 1),
    cut_shard=(partial(damaged, what='shard', how='cut'), 1),
    flipped_shard=(partial(damaged, what='shard', how='flip'), 1),
    cut_checkpoint=(partial(damaged, what='checkpoint', how='cut'), 1),
    flipped_checkpoint=(partial(damaged, what='checkpoint', how='flip'), 1),
    cut_manifest=(partial(damaged, what='manifest', how='cut'), 1),
    flipped_manifest=(partial(damaged, what='manifest', how='flip'), 1),
    hanging_source=(hung, 1),
    missing_host=(alone, 2),
    two_runs_in_one_folder=(two_in_one, 1),
    clock_jumps=(jumped, 1),
    clock_jumps_on_two=(partial(jumped, layout=TWO), 2),
)
CHAINS = (killed, restarted, terminated)  # those that can be done several times to one run
