"""A real SLURM on loopback launches a run of two processes, which is killed, requeued and ends."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from slurm import Unavailable, cluster

from mtpt.checkpoint import Checkpoints
from mtpt.trees import flatten

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATIENCE = 400  # seconds; against hanging only
STEPS = 40

# What the job finds as `mtpt`: it notes its process id for the test, and is then the run.
COMMAND = """#!/bin/bash
echo $$ > "$MTPT_TEST_PIDS/${{SLURM_RESTART_COUNT:-0}}.$SLURM_PROCID"
exec {python} -m mtpt "$@"
"""


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    try:
        with cluster(tmp_path_factory.mktemp('slurm')) as environment:
            yield environment
    except Unavailable as reason:
        pytest.skip(str(reason))


def ask(environment, *words):
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f'{words}: {done.stderr}'
    return done.stdout


def told(environment, job):
    """What SLURM says of a job, by name."""
    return dict(re.findall(r'(\w+)=(\S*)', ask(environment, 'scontrol', 'show', 'job', job)))


def until(happens, log):
    late = time.monotonic() + PATIENCE
    while not (found := happens()):
        assert time.monotonic() < late, log.read_text()[-3000:] if log.exists() else 'no log'
        time.sleep(0.2)
    return found


def saved(workdir):
    """The last whole checkpoint."""
    return max((int(p.name) for p in workdir.glob('checkpoints/*') if p.name.isdigit()), default=0)


def weights(workdir):
    return flatten(Checkpoints(workdir, read_only=True).load_params(STEPS))


def test_a_killed_and_a_terminated_job_are_requeued_and_end_as_an_undisturbed_run(slurm, tmp_path):
    config = tiny.write(
        tmp_path, exams={}, train__steps=STEPS, train__validate_every=0, checkpoint__every=5,
        data__cache=str(tmp_path / 'cache'),
    )  # fmt: skip
    folder, pids = tmp_path / 'bin', tmp_path / 'pids'
    for made in (folder, pids):
        made.mkdir()
    (folder / 'mtpt').write_text(COMMAND.format(python=sys.executable))
    (folder / 'mtpt').chmod(0o755)
    devices = '--xla_force_host_platform_device_count=1'
    environment = dict(slurm) | dict(
        JAX_PLATFORMS='cpu', XLA_FLAGS=devices, MTPT_TEST_PIDS=str(pids), PYTHONPATH=str(ROOT),
        PYTHONDONTWRITEBYTECODE='',
        PATH=f'{folder}{os.pathsep}{os.environ["PATH"]}',
    )  # fmt: skip

    def submitted(workdir):
        """Submits a run; gives the number of its job and its log."""
        log = tmp_path / f'{workdir.name}.log'
        words = [
            'sbatch', '--parsable', '--nodes=1', '--ntasks-per-node=2', f'--output={log}',
            'launch/slurm.sbatch', f'--config={config}', f'--workdir={workdir}',
            '--config.mesh.data=2', '--heartbeat=10',
        ]  # fmt: skip
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip(), log

    def ends(job, log):
        def over():
            state = told(environment, job)
            going = ('PENDING', 'CONFIGURING', 'RUNNING', 'COMPLETING', 'REQUEUED')
            return None if state['JobState'] in going else state

        state = until(over, log)
        assert state['JobState'] == 'COMPLETED', log.read_text()[-3000:]
        return int(state['Restarts'])

    quiet, disturbed = tmp_path / 'quiet', tmp_path / 'disturbed'
    assert ends(*submitted(quiet)) == 0
    job, log = submitted(disturbed)

    def begun(restarts, further):
        """Once the processes of the n-th start have saved a checkpoint that is further."""
        state = told(environment, job)
        assert state['JobState'] != 'COMPLETED', 'it ended before it was disturbed'
        running = state['JobState'] == 'RUNNING' and int(state['Restarts']) == restarts
        return running and saved(disturbed) > further

    for pid in pids.iterdir():
        pid.unlink()
    until(lambda: begun(0, 0), log)
    os.kill(int((pids / '0.1').read_text()), signal.SIGKILL)
    before = saved(disturbed)
    until(lambda: begun(1, before), log)
    ask(environment, 'scancel', '--signal=TERM', job)
    assert ends(job, log) == 2
    said = log.read_text()
    assert 'status 137; requeued' in said or 'status 134; requeued' in said
    assert 'status 75; requeued' in said and 'launch: done' in said
    undisturbed, found = weights(quiet), weights(disturbed)
    assert undisturbed.keys() == found.keys()
    for path in found:
        np.testing.assert_array_equal(found[path], undisturbed[path], err_msg=path)


def test_a_job_with_bad_input_is_not_requeued(slurm, tmp_path):
    log = tmp_path / 'log'
    (tmp_path / 'mtpt').write_text('#!/bin/bash\necho "$# $1 $2"\nexit 2\n')
    (tmp_path / 'mtpt').chmod(0o755)
    environment = dict(slurm) | dict(PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    words = ['sbatch', '--wait', '--nodes=1', f'--output={log}', 'launch/slurm.sbatch', 'a b']
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert '2 train a b' in log.read_text() and 'bad input' in log.read_text()
