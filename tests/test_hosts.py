"""Processes that join: who is missing, twice there or different is named, and all end together."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from mtpt.config import UserError
from mtpt.hosts import places, roll_call

ROOT = pathlib.Path(__file__).resolve().parents[1]


def free_port():
    with socket.socket() as found:
        found.bind(('', 0))
        return found.getsockname()[1]


def called(port, members, seconds=20.0, said=None):
    """What each (process, processes, facts) of a roll call is told: None, or a sentence."""
    found = [None] * len(members)

    def call(i, process, processes, facts):
        me = roll_call.entry(process, processes, facts)
        try:
            say = (said if said is not None else []).append
            roll_call.take(f'localhost:{port}', me, seconds, say)
            found[i] = ''
        except UserError as error:
            found[i] = str(error)

    threads = [threading.Thread(target=call, args=(i, *m)) for i, m in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


# The roll call.


def test_processes_that_are_alike_pass():
    members = [(i, 3, dict(code='abc')) for i in (2, 0, 1)]
    assert called(free_port(), members) == ['', '', '']


def test_missing_processes_are_named_to_all_that_came():
    told = called(free_port(), [(0, 4, {}), (2, 4, {})], seconds=1.5)
    assert told[0] == told[1]
    assert 'processes 1, 3 of 4 did not start within 1.5 s' in told[0]
    assert f'2 on {socket.gethostname()}' in told[0]


def test_all_that_differ_are_named_with_what_they_differ_in():
    here = {'config.train/steps': '6', 'version of jax': '0.10.2'}
    members = [(0, 3, here), (1, 3, here | {'config.train/steps': '8'}), (2, 3, here | dict(b='1'))]
    told = called(free_port(), members)
    assert len(set(told)) == 1
    assert 'process 1 on' in told[0] and 'config.train/steps (8, not 6)' in told[0]
    assert 'process 2 on' in told[0] and 'b (1, not nothing)' in told[0]
    assert 'version of jax' not in told[0]


def test_a_number_that_is_given_twice_is_told():
    told = called(free_port(), [(0, 3, {}), (1, 3, {}), (1, 3, {})])
    assert all('process 1 was started twice' in sentence for sentence in told[:1])
    assert any('process 1 was started twice' in sentence for sentence in told[1:])


def test_processes_that_were_told_of_another_number_hear_it():
    told = called(free_port(), [(0, 3, {}), (1, 2, {})])
    assert told[0] == told[1] and 'process 1' in told[0] and 'of 2 processes' in told[0]


def test_a_process_0_that_does_not_answer_is_named_with_host_and_time():
    port = free_port()
    (told,) = called(port, [(1, 2, {})], seconds=0.5)
    assert f'process 0 at localhost:{port} did not answer' in told and 'refused' in told
    with socket.create_server(('localhost', port)) as other:

        def greet():
            connection, _ = other.accept()
            connection.recv(65536)
            connection.sendall(b'220 welcome\n')
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        (told,) = called(port, [(1, 2, {})], seconds=0.0)
    assert 'takes no roll call' in told


def test_strangers_and_processes_that_come_again_do_not_disturb():
    port, found = free_port(), []
    first = threading.Thread(target=lambda: found.extend(called(port, [(0, 3, {})])))
    first.start()
    lines = [b'GET / HTTP/1.1\r\n\n', b'{"process": 5}\n', b'[]\n', b'\xff\n']
    again = b'{"process": 1, "processes": 3, "host": "x", "pid": 1, "facts": {}}\n'
    for line in (*lines, again):
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection(('localhost', port)) as c,
            ):
                c.sendall(line)
                break
    time.sleep(1)  # the first process 1 has died; it is started again
    found += called(port, [(1, 3, {}), (2, 3, {})])
    first.join(60)
    assert found == ['', '', '']


def test_what_another_host_says_cannot_write_on_the_terminal():
    entries = {i: roll_call.Entry(i, 2, 'a\x1b[2J', 1, dict(x='y\x1b]0;' * i)) for i in (0, 1)}
    assert '\x1b' not in roll_call.different(entries)


# A place among others.


def test_a_place_that_is_told_in_part_names_the_missing_variable():
    whole = {places.ADDRESS: 'a:1', places.COUNT: '4', places.INDEX: '3'}
    assert places.said(whole) == ('a:1', 4, 3)
    assert places.said({}) is None
    for name in whole:
        with pytest.raises(UserError, match=f'{name} is missing'):
            places.said({k: v for k, v in whole.items() if k != name})
    ranks = {places.ADDRESS: 'a:1', 'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '2'}
    assert places.said(ranks) == ('a:1', 4, 2)
    assert places.local_device(ranks | {'OMPI_COMM_WORLD_LOCAL_RANK': '3'}) == [3]
    assert places.local_device(whole | {'SLURM_LOCALID': '3'}) is None
    with pytest.raises(UserError, match='JAX_PROCESS_ID=4'):
        places.said(whole | {places.INDEX: '4'})


@pytest.mark.parametrize(
    'variables, missing',
    [
        (dict(SLURM_JOB_ID='7', SLURM_NTASKS='2', SLURM_PROCID='0'), 'srun'),
        (dict(OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_RANK='0'), 'OMPI_MCA_orte_hnp_uri'),
        (dict(MEGASCALE_NUM_SLICES='2'), 'MEGASCALE_SLICE_ID'),
        (dict(TPU_WORKER_HOSTNAMES='a,b'), 'TPU_WORKER_ID is missing'),
        (dict(KUBERNETES_SERVICE_HOST='x', JOB_COMPLETION_INDEX='0'), 'JAX_NUM_PROCESSES'),
    ],
)
def test_one_of_many_that_knows_no_place_does_not_run_alone(variables, missing):
    with pytest.raises(UserError, match=missing):
        places.check_alone(variables)


def test_a_process_of_its_own_runs_alone():
    places.check_alone({})
    places.check_alone(dict(SLURM_JOB_ID='7', SLURM_NTASKS='1', SLURM_PROCID='0'))
    places.check_alone(dict(KUBERNETES_SERVICE_HOST='x'))
    places.check_alone(dict(TPU_WORKER_ID='0', TPU_WORKER_HOSTNAMES='localhost'))


# Real processes.


def start(code, *words, processes=2):
    """Starts processes that join, and then do `code`; their output is merged."""
    port = free_port()
    program = f"""
import os, pathlib, sys, time
from mtpt import hosts
from mtpt.config import UserError
i = int(sys.argv[1])

def work():
{textwrap.indent(textwrap.dedent(code), '    ')}

try:
    with hosts.joined(lambda: dict(code='abc'), 'localhost:{port}', {processes}, i, 60, 10):
        work()
    status = 0
except UserError as error:
    print(error)
    status = 2
except SystemExit as error:
    status = error.code
hosts.leave(status)
sys.exit(status)
"""
    environment = os.environ | dict(
        JAX_PLATFORMS='cpu',
        XLA_FLAGS='--xla_force_host_platform_device_count=1',
        PYTHONDONTWRITEBYTECODE='',
    )
    return [
        subprocess.Popen(
            [sys.executable, '-u', '-c', program, str(i), *map(str, words)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(processes)
    ]


def finished(processes, seconds=120):
    try:
        told = [p.communicate(timeout=seconds)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, text) for p, text in zip(processes, told)]


def test_real_processes_wait_agree_and_find_what_they_do_not_share(tmp_path):
    code = """
    import jax
    import numpy as np
    from mtpt.mesh import MeshConfig, make_mesh, place
    for mesh, number in ((MeshConfig(data=2), 4), (MeshConfig(tensor=2), 2)):
        told = place(dict(segment_task_ids=np.full((2, 3), i * (number == 4))), make_mesh(mesh))
        assert told['segment_task_ids'].shape == (number, 3)
        assert {int(s.data[0, 0]) for s in told['segment_task_ids'].addressable_shards} <= {0, i}
    assert (hosts.number(), hosts.index()) == (2, i) == (jax.process_count(), jax.process_index())
    file = pathlib.Path(sys.argv[2]) / 'prepared'
    hosts.first('prepare', lambda: (time.sleep(2), file.touch()))
    assert file.exists()
    hosts.meet(make_mesh(MeshConfig(data=2)))
    hosts.check_shared(file.parent)
    assert i or [f.name for f in file.parent.iterdir()] == ['prepared']
    own = file.parent.with_name(f'own{i}')
    for wrong in (
        lambda: hosts.agree('mixture', dict(mixture=str(i))),
        lambda: hosts.check_shared(own, seconds=1),
        lambda: hosts.first('fails', lambda: file.with_name('no').read_text()),
    ):
        try:
            wrong()
        except (UserError, FileNotFoundError) as error:
            print(error)
    if i == 0:
        try:
            hosts.wait_for_all('never', seconds=1)
        except UserError as error:
            print(error)
    """
    found = finished(start(code, tmp_path))
    for status, said in found:
        assert status == 0, said
        assert 'process 1 on' in said and 'mixture (1, not 0)' in said
        assert 'cannot see there what process 0' in said and 'own1' in said
        assert 'No such file' in said
    assert 'process 1 on' in found[0][1] and "did not come to 'never" in found[0][1]


def test_an_error_of_one_process_ends_all_with_its_sentence():
    found = finished(
        start("""
    if i == 1:
        raise UserError('the disk of this host is full')
    time.sleep(100)
    """)
    )
    assert [status for status, _ in found] == [2, 2]
    assert 'process 1 on' in found[0][1] and 'the disk of this host is full' in found[0][1]


def test_the_death_of_one_process_ends_the_others():
    processes = start("""
    import jax
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices('met')
    print('met', flush=True)
    while True:
        multihost_utils.sync_global_devices('again')
        time.sleep(0.1)
    """)
    for line in processes[1].stdout:
        if 'met' in line:
            break
    processes[1].send_signal(signal.SIGKILL)
    (status, said), _ = finished(processes)
    assert status in (75, 134, -6), said
    assert 'is gone' in said or 'another task died' in said or 'std::bad_cast' in said, said


def test_a_run_whose_other_host_never_starts_ends_with_a_sentence(tmp_path):
    import tiny

    command = [
        sys.executable, '-m', 'mtpt', 'train', f'--config={tiny.write(tmp_path)}',
        f'--workdir={tmp_path / "run"}', f'--coordinator=localhost:{free_port()}',
        '--processes=2', '--process=0', '--join_seconds=2',
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert 'process 1 of 2 did not start within 2 s' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
