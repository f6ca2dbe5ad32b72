"""The doctor names what is wrong and what to do, and never hangs."""

import os
import socket
import sys
import time

import pytest
from packaging.requirements import Requirement

from mtpt import doctor, versions
from mtpt.hosts import places

GOOD = {
    'python': '3.11.7',
    'jax': '0.10.2',
    'jaxlib': '0.10.2',
    'protobuf': '6.33.6',
    'sentencepiece': '0.2.2',
    'seqio': '0.0.20',
    'tensorflow-datasets': '4.9.10',
    'importlib-resources': '7.1.0',
}
WANTED = {
    'jax': [
        'jaxlib<=0.10.2,>=0.10.1',
        'jaxlib==0.10.1; extra == "minimum-jaxlib"',
        'libtpu==0.0.42.*; extra == "tpu"',
        'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"',
    ],
    'jax-cuda12-plugin': ['jax-cuda12-pjrt==0.10.2'],
}
SLURM = {v: '1' for v in places.PLACES['SLURM'].variables} | {'SLURM_NTASKS': '4'}


def family(**more):
    here = GOOD | {name.replace('_', '-'): version for name, version in more.items()}
    return versions.jax_family(here, lambda name: WANTED.get(name, []))


def test_a_good_environment_gives_no_complaint():
    assert versions.clashes(GOOD) == []
    assert family() == []
    wanted = [Requirement('jax>=0.10.2,<0.12'), Requirement('seqio>=0.0.20')]
    (found,) = versions.dependencies(wanted, GOOD)
    assert found.level == 'ok' and found.value.startswith('2 of 2')


@pytest.mark.parametrize(
    'change, words',
    [
        ({'sentencepiece': '0.2.3'}, 'sentencepiece<0.2.3'),
        ({'importlib-resources': None}, 'pip install importlib-resources'),
        ({'seqio-nightly': '0.0.18.dev1'}, 'pip uninstall seqio-nightly'),
        ({'tfds-nightly': '4.9'}, 'pip uninstall tfds-nightly'),
        ({'t5': '0.9.4'}, 'pip uninstall t5'),
        ({'tensorflow': '2.21.0', 'tensorflow-cpu': '2.20.0'}, 'pip uninstall tensorflow-cpu'),
    ],
)
def test_each_known_clash_is_bad_and_has_a_cure(change, words):
    here = {k: v for k, v in (GOOD | change).items() if v is not None}
    (found,) = versions.clashes(here)
    assert found.level == 'bad' and words in found.cure


def test_the_new_sentencepiece_is_fine_with_the_new_protobuf():
    assert versions.clashes(GOOD | {'sentencepiece': '0.2.3', 'protobuf': '7.36.2'}) == []


@pytest.mark.parametrize(
    'more, name, words',
    [
        (dict(jaxlib='0.9.0'), 'jaxlib', "pip install 'jax==0.10.2'"),
        (dict(libtpu='0.0.51'), 'libtpu', "pip install 'jax[tpu]==0.10.2'"),
        (dict(jax_cuda12_plugin='0.10.1'), 'jax-cuda12-plugin', 'jax[cuda12]==0.10.2'),
        (
            dict(jax_cuda12_plugin='0.10.2', jax_cuda12_pjrt='0.10.1'),
            'jax-cuda12-pjrt',
            'jax[cuda12]==0.10.2',
        ),
    ],
)
def test_parts_of_jax_that_do_not_fit_are_named(more, name, words):
    (found,) = family(**more)
    assert found.level == 'bad' and found.name == name and words in found.cure


def test_two_cuda_plugins_at_once_are_a_clash():
    found = family(jax_cuda12_plugin='0.10.2', jax_cuda13_plugin='0.10.2')
    assert [f.name for f in found] == ['clash']


def test_dependencies_missing_too_old_and_too_new_differ():
    wanted = list(map(Requirement, ('jax>=0.11,<0.12', 'flax>=0.12', 'seqio>=0.0.10,<0.0.15')))
    first, *rest = versions.dependencies(wanted, GOOD)
    assert first.value.startswith('0 of 3')
    found = {f.name: f for f in rest}
    assert found['jax'].level == 'bad' and "pip install 'jax<0.12,>=0.11'" in found['jax'].cure
    assert found['flax'].value == 'not installed' and found['flax'].level == 'bad'
    assert found['seqio'].level == 'warn' and 'newer' in found['seqio'].cure


def test_what_an_extra_asks_for_is_not_required(monkeypatch):
    texts = ['jax>=0.1', 'pytest>=8; extra == "test"', 'tomli; python_version < "3"']
    monkeypatch.setattr(versions, 'requirements', lambda name: texts)
    assert [r.name for r in versions.declared()] == ['jax']


def test_the_declared_requirements_are_found_without_the_extras():
    names = {r.name for r in versions.declared()}
    assert {'jax', 'seqio', 'jinja2'} <= names and 'pytest' not in names


def test_old_pythons_are_refused():
    assert versions.python('3.10.4').level == 'bad'
    assert versions.python('3.12.1').level == 'ok'


def test_an_accelerator_that_hangs_is_reported_and_its_process_ended(tmp_path):
    note = tmp_path / 'pid'
    probe = f'import os, time; open({str(note)!r}, "w").write(str(os.getpid())); time.sleep(600)'
    start = time.monotonic()
    answer = doctor.ask_devices(3, probe)
    assert answer == {'hangs': True} and time.monotonic() - start < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
    (found,) = doctor.devices(answer, 3, ['tpu'])
    assert found.level == 'bad' and 'another process' in found.cure


def test_a_backend_that_fails_is_reported_in_its_own_words(monkeypatch):
    monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
    answer = doctor.ask_devices(60, 'raise RuntimeError("no TPU here")')
    (found,) = doctor.devices(answer, 60, [])
    assert found.level == 'bad' and 'no TPU here' in found.value
    assert 'JAX_PLATFORMS=tpu' in found.cure


def test_jax_answers_from_a_process_of_its_own():
    before = set(sys.modules)
    answer = doctor.ask_devices(120)
    assert answer['platform'] == 'cpu' and answer['number'] == 8 and answer['right']
    assert 'jax' in before or 'jax' not in sys.modules


def test_hardware_that_jax_does_not_use_is_a_warning(monkeypatch):
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    answer = dict(platform='cpu', kind='cpu', number=1, local=1, bytes=None, right=True)
    (found,) = doctor.devices(answer, 1, ['gpu'])
    assert found.level == 'warn' and 'jax[cuda12]' in found.cure
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    (found,) = doctor.devices(answer, 1, ['tpu'])
    assert found.level == 'warn' and 'JAX_PLATFORMS=cpu' in found.cure
    assert doctor.devices(answer, 1, [])[0].level == 'ok'


def test_cards_are_told_from_what_the_system_shows(tmp_path):
    for name, vendor, device in (('a', '0x1ae0', '0x0042'), ('b', '0x8086', '0x0063')):
        card = tmp_path / 'sys/bus/pci/devices' / name
        card.mkdir(parents=True)
        (card / 'vendor').write_text(vendor + '\n')
        (card / 'device').write_text(device + '\n')
    assert doctor.hardware(tmp_path) == []
    (card.parent / 'a/device').write_text('0x0063\n')
    (tmp_path / 'dev').mkdir()
    (tmp_path / 'dev/nvidia0').touch()
    assert doctor.hardware(tmp_path) == ['gpu', 'tpu']


def test_a_partial_set_of_host_variables_names_the_missing_one():
    assert doctor.distributed({}) == []
    for missing in SLURM:
        (found,) = doctor.distributed({k: v for k, v in SLURM.items() if k != missing})
        assert found.level == 'warn' and f'{missing} missing' in found.value
        assert 'srun' in found.cure
    (found,) = doctor.distributed(SLURM)
    assert found.level == 'ok' and found.value == 'process 1 of 4'
    (found,) = doctor.distributed({'TPU_WORKER_ID': '0'})
    assert 'TPU_WORKER_HOSTNAMES missing' in found.value
    (found,) = doctor.distributed({'TPU_WORKER_HOSTNAMES': 'a,b'})
    assert found.level == 'bad' and 'TPU_WORKER_ID missing' in found.value
    either = {'TPU_WORKER_ID': '1', 'TPU_PROCESS_ADDRESSES': 'a:1,b:1'}
    assert doctor.distributed(either)[0].value == 'process 1 of 2'


def test_a_coordinator_is_asked_for_where_it_is_named():
    with socket.create_server(('localhost', 0)) as server:
        port = server.getsockname()[1]
        named = {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_NUM_PROCESSES': '2'}
        place, answer = doctor.distributed(named | {'JAX_PROCESS_ID': '1'})
        assert place.value == 'process 1 of 2' and answer.value.endswith('answers')
        taken = doctor.distributed(named | {'JAX_PROCESS_ID': '0'})[1]
        assert taken.level == 'bad' and 'end what has the port' in taken.cure
    refused = doctor.distributed(named | {'JAX_PROCESS_ID': '1'})[1]
    assert refused.level == 'ok' and 'no run has begun' in refused.value
    assert doctor.coordinator('nowhere', here=False).level == 'bad'
    part = doctor.distributed({'JAX_COORDINATOR_ADDRESS': f'localhost:{port}'})[0]
    assert part.level == 'bad' and 'JAX_NUM_PROCESSES, JAX_PROCESS_ID missing' in part.value


def test_a_place_beyond_the_number_of_processes_is_bad():
    (found,) = doctor.distributed(SLURM | {'SLURM_PROCID': '4'})
    assert found.level == 'bad' and 'SLURM_PROCID=4 of 4' in found.value


def test_the_data_folder_must_exist_if_it_is_named(tmp_path):
    assert doctor.data_folder({}).level == 'ok'
    assert doctor.data_folder({'MTPT_DATA': str(tmp_path / 'no')}).level == 'bad'
    assert doctor.data_folder({'MTPT_DATA': str(tmp_path)}).level == 'warn'
    (tmp_path / 'tasks').mkdir()
    found = doctor.data_folder({'MTPT_DATA': str(tmp_path)})
    assert found.level == 'ok' and 'tasks' in found.value


def test_little_memory_and_little_disk_are_told(tmp_path, monkeypatch):
    levels = [doctor.memory(gib * 2**30).level for gib in (1, 3, 30)]
    assert levels == ['bad', 'warn', 'ok']
    assert doctor.memory(None).level == 'ok'
    for free, level in ((2**29, 'bad'), (2**32, 'warn'), (2**40, 'ok')):
        monkeypatch.setattr(
            doctor.shutil, 'disk_usage', lambda _, f=free: type('U', (), {'free': f})
        )
        assert doctor.disk(tmp_path).level == level


@pytest.mark.parametrize('level, status', [('ok', 0), ('warn', 0), ('bad', 1)])
def test_the_exit_status_says_whether_something_is_bad(level, status, monkeypatch, capsys):
    finding = doctor.Finding('disk', '[bold]no[/nothing] room', level, 'make room')
    monkeypatch.setattr(doctor, 'examine', lambda: [finding])
    assert doctor.main() == status
    assert '[bold]no[/nothing]' in capsys.readouterr().out  # shown as it is, never as markup


def test_the_whole_examination_has_a_line_for_each_part():
    found = doctor.examine()
    assert all(f.level in ('ok', 'warn', 'bad') for f in found)
    assert {'python', 'dependencies', 'devices', 'disk', 'memory', 'cores'} <= {
        f.name for f in found
    }
    assert all(f.cure for f in found if f.level != 'ok')
