"""The launch files: they parse, name what exists, quote what they are given, know each status."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import yaml

from mtpt import flags, statuses

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])
JOBS = sorted(LAUNCH.glob('*.yaml'))
AGAIN = {statuses.FAULT, statuses.REQUEUE, 128 + signal.SIGABRT, 128 + signal.SIGKILL}
FOR_GOOD = {statuses.BAD_INPUT, statuses.NOT_SAVED, statuses.INTERRUPTED}
HARD = ["--config=it's", '--workdir=/a b/$(touch x)', '--config.x="y"; exit 3', '*']


def program(folder, name, text):
    """A program that stands in for another."""
    path = folder / name
    path.write_text(f'#!/bin/bash\n{text}\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    subprocess.run(['bash', '-n', script], check=True)
    if shutil.which('shellcheck'):
        words = ['shellcheck', '--severity=warning', script]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('path', [*SCRIPTS, *JOBS, ROOT / 'docs/launch.md'], ids=lambda p: p.name)
def test_every_flag_and_config_that_is_named_exists(path):
    text = path.read_text()
    for name in re.findall(r'--config=([a-z0-9_]+)', text):
        assert name in flags.names(), name
    lines = [line for line in text.replace('\\\n', ' ').splitlines() if 'mtpt train' in line]
    known = {*flags.VERB_FLAGS['train'], 'config'}
    for line in lines:
        for name in re.findall(r'--([a-z_]+)[= ]', line.partition('mtpt train')[2]):
            assert name in known, f'{name} in {line}'
    if path in JOBS:
        for word in pod(path)['containers'][0]['args']:
            assert word.removeprefix('--').partition('=')[0] in known
    for key in re.findall(r'--config\.([a-z.]+)=', text):
        section, _, name = key.partition('.')
        assert name in flags.load('quickstart').__getattribute__(section).__dataclass_fields__


def pod(path):
    return job(path)['template']['spec']


def job(path):
    (workers,) = yaml.safe_load(path.read_text())['spec']['replicatedJobs']
    return workers['template']['spec']


@pytest.mark.parametrize('path', JOBS, ids=lambda path: path.name)
def test_jobs_start_again_what_can_go_on_and_nothing_else(path):
    whole, spec = yaml.safe_load(path.read_text()), job(path)
    assert spec['parallelism'] == spec['completions'] and spec['backoffLimit'] == 0
    (rule,) = spec['podFailurePolicy']['rules']
    assert set(rule['onExitCodes']['values']) == FOR_GOOD
    assert rule['onExitCodes']['containerName'] == pod(path)['containers'][0]['name']
    assert whole['spec']['failurePolicy']['maxRestarts'] > 0
    assert pod(path)['restartPolicy'] == 'Never' and pod(path)['terminationGracePeriodSeconds'] > 60


def test_pods_with_gpus_are_told_their_place_whole():
    path = LAUNCH / 'jobset_gpu.yaml'
    told = {v['name']: v['value'] for v in pod(path)['containers'][0]['env']}
    whole = yaml.safe_load(path.read_text())
    name, workers = whole['metadata']['name'], whole['spec']['replicatedJobs'][0]['name']
    assert told['JAX_COORDINATOR_ADDRESS'].startswith(f'{name}-{workers}-0-0.{name}:')
    assert int(told['JAX_NUM_PROCESSES']) == job(path)['completions']
    assert job(path)['completionMode'] == 'Indexed'


@pytest.mark.parametrize('status', sorted({0, 3} | AGAIN | FOR_GOOD))
def test_a_slurm_job_is_requeued_where_it_can_go_on(status, tmp_path):
    program(tmp_path, 'srun', f'printf "%s\\n" "$@" > {tmp_path}/words; exit {status}')
    program(tmp_path, 'scontrol', f'echo "$*" > {tmp_path}/asked')

    def run(restarts):
        environment = dict(
            PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_JOB_ID='7', SLURM_RESTART_COUNT=restarts
        )
        words = ['bash', LAUNCH / 'slurm.sbatch', *HARD]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == status and 'launch: ' in done.stdout
        asked = tmp_path / 'asked'
        return asked.exists() and asked.read_text().strip()

    assert not run('50')
    assert run('0') == ('requeue 7' if status in AGAIN else False)
    assert (tmp_path / 'words').read_text().splitlines()[-len(HARD) :] == HARD


SSH = r"""
host=$1; shift
echo "$host" >> {folder}/hosts
exec bash -c "$*"
"""


def started(folder, command):
    """`machines.sh` on two machines that are this one, where mtpt is `command`."""
    program(folder, 'ssh', SSH.format(folder=shlex.quote(str(folder))))
    program(folder, 'mtpt', command)
    environment = os.environ | dict(PATH=f'{folder}:{os.environ["PATH"]}', TMPDIR=str(folder))
    words = [LAUNCH / 'machines.sh', 'me@a', 'b', '--', *HARD]
    return subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_each_machine_is_given_its_number_and_the_words_as_they_are(tmp_path):
    folder = tmp_path / 'it is "here"'
    folder.mkdir()
    note = 'n=${5#*=}; printf "%s\\n" "$PWD" "$@" > "$TMPDIR/words.$n"; exit $((2 * n))'
    process = started(folder, note)
    assert process.wait(60) == 2
    assert 'b ended with status 2' in process.stderr.read()
    assert sorted((folder / 'hosts').read_text().split()) == ['b', 'me@a']
    for number in (0, 1):
        place, *words = (folder / f'words.{number}').read_text().splitlines()
        assert pathlib.Path(place) == folder
        together = ['--coordinator=a:8476', '--processes=2', f'--process={number}']
        assert words == ['train', '--restarts=20', *together, *HARD]
    assert not (folder / 'x').exists()


def test_sigterm_reaches_the_run_on_every_machine(tmp_path):
    run = 'trap "exit 75" TERM; touch "$TMPDIR/runs.$$"; while :; do sleep 0.1; done'
    process = started(tmp_path, run)
    late = time.monotonic() + 60
    while len(list(tmp_path.glob('runs.*'))) < 2 and time.monotonic() < late:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 75
    assert process.stderr.read().count('status 75') == 2


def test_the_hosts_of_a_slice_are_given_the_words_and_left_alone_with_the_run(tmp_path):
    gcloud = program(tmp_path, 'gcloud', f'printf "%s\\0" "$@" > {tmp_path}/words')
    environment = os.environ | dict(MTPT_GCLOUD=str(gcloud))
    words = [LAUNCH / 'tpu_vm.sh', 'name', 'zone', '--', *HARD]
    subprocess.run(words, env=environment, check=True, timeout=60)
    given = (tmp_path / 'words').read_text().split('\0')
    assert given[4:7] == ['name', '--zone=zone', '--worker=all']
    command = given[7].removeprefix('--command=')
    home = tmp_path / 'home'
    (home / 'mtpt/.venv/bin').mkdir(parents=True)
    (home / 'mtpt/.venv/bin/activate').write_text(f'PATH={tmp_path}:$PATH')
    above = """tr '\\0' ' ' < /proc/$PPID/cmdline > "$HOME/above"; touch "$HOME/done" """
    program(tmp_path, 'mtpt', f'printf "%s\\n" "$@"; sleep 0.5; {above}')
    environment |= dict(HOME=str(home))
    # The session ends before the run does, and nothing but the run is called `mtpt train`.
    subprocess.run(['bash', '-c', command], env=environment, stdout=subprocess.PIPE, check=True)
    assert not (home / 'done').exists()
    late = time.monotonic() + 60
    while not (home / 'done').exists() and time.monotonic() < late:
        time.sleep(0.1)
    assert 'mtpt train' not in (home / 'above').read_text()
    assert (home / 'mtpt.log').read_text().splitlines() == ['train', '--restarts=20', *HARD]


@pytest.mark.parametrize('script', ['machines.sh', 'tpu_vm.sh'])
def test_a_script_without_words_says_how_it_is_called(script):
    done = subprocess.run([LAUNCH / script, 'a'], capture_output=True, text=True)
    assert done.returncode == 2 and f'launch/{script}' in done.stderr
