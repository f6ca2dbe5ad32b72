"""Bad input gets one sentence that names the thing and the cure, a status, and no traceback."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny

from mtpt.__main__ import main
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that must fail, and returns its one sentence."""

    def call(*words, status=2):
        assert main(list(words)) == status
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith('mtpt: ') and 'Traceback' not in said
        return said

    return call


def _train(folder, *words):
    return ['train', f'--config={folder / "config.py"}', f'--workdir={folder / "run"}', *words]


def test_a_wrong_verb_is_told_the_right_one(refused):
    assert "did you mean 'train'" in refused('trian')


def test_a_wrong_flag_is_named(refused):
    assert 'wrokdir' in refused('report', '--wrokdir=x')


def test_a_missing_flag_is_asked_for(refused):
    assert '--config=quickstart' in refused('train')


def test_a_wrong_config_name_is_told_the_nearest(refused):
    assert "did you mean 'quickstart'" in refused('train', '--config=quikstart', '--workdir=x')


CONFIG = 'from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict()\n'


@pytest.mark.parametrize('code,said', [
    ('import os\n\nrate = base * 2\n' + CONFIG, "line 3: NameError: name 'base'"),
    ('import no_such_module\n' + CONFIG, 'line 1: ModuleNotFoundError'),
    ('def get_config():\n    return [][1]\n', 'line 2: IndexError'),
    ('x = (\n', 'is not Python: line 1'),
    ('x = 1\n', 'has no get_config()'),
    ('get_config = 3\n', 'has no get_config()'),
    ('def get_config():\n    pass\n', 'must return a ConfigDict, and gave NoneType'),
    ('TOPOLOGY = 42\n' + CONFIG, 'TOPOLOGY'),
])  # fmt: skip
def test_a_fault_in_a_config_file_is_told_with_the_file_and_the_line(
    refused, tmp_path, monkeypatch, code, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(code)
    told = refused('plan', '--config=mine.py', '--cache=plans')
    assert 'mine.py' in told and said in told and 'fault of mtpt' not in told
    if 'TOPOLOGY' not in code:  # which only a plan reads
        assert said in refused('train', '--config=mine.py', '--workdir=run')


def test_with_debug_a_fault_in_a_config_file_shows_its_traceback(tmp_path):
    (tmp_path / 'mine.py').write_text('rate = base * 2\n')
    with pytest.raises(UserError) as raised:
        main(['plan', f'--config={tmp_path / "mine.py"}', '--debug'])
    assert isinstance(raised.value.__cause__, NameError)


def test_an_unknown_key_says_what_was_meant(refused, tmp_path):
    tiny.write(tmp_path)
    said = refused(*_train(tmp_path, '--config.data.batchsize=3'))
    assert 'config.data.batchsize' in said and "'batch_size'" in said
    tiny.write(tmp_path, data__mixtur='x')
    assert "did you mean 'mixture'" in refused(*_train(tmp_path))


def test_a_wrong_type_is_named(refused, tmp_path):
    tiny.write(tmp_path, data__batch_size='many')
    assert "config.data.batch_size must be int, got 'many'" in refused(*_train(tmp_path))
    tiny.write(tmp_path)
    assert 'many' in refused(*_train(tmp_path, '--config.data.batch_size=many'))


def test_a_mesh_that_does_not_fit_is_refused(refused, tmp_path):
    tiny.write(tmp_path, mesh__tensor=64)
    assert '64' in refused(*_train(tmp_path))
    tiny.write(tmp_path, mesh__tensor=8)
    assert 'H=2' in refused(*_train(tmp_path))


def test_a_mixture_that_does_not_exist_is_told_the_nearest(refused, tmp_path):
    tiny.write(tmp_path, data__mixture='tinny')
    assert "did you mean 'tiny'" in refused(*_train(tmp_path))


def test_what_is_held_out_cannot_be_trained_on(refused, tmp_path):
    tiny.write(tmp_path, held_out__families=['copying'])
    said = refused(*_train(tmp_path))
    assert "'tiny_first'" in said and "'copying'" in said
    tiny.write(tmp_path, held_out__datasets=['tiny_last'])
    assert "'tiny_last'" in refused(*_train(tmp_path))


def test_a_held_out_name_that_nothing_has_is_a_mistake(refused, tmp_path):
    tiny.write(tmp_path, held_out__families=['copyign'])
    assert "did you mean 'copying'" in refused(*_train(tmp_path))


def test_targets_longer_than_the_limit_are_named(refused, tmp_path):
    tiny.write(tmp_path, data__targets_length=4, data__mixture='tiny_last')
    said = refused(*_train(tmp_path))
    assert "'tiny_last'" in said and 'targets_length' in said


def test_span_corruption_that_would_be_cut_is_refused(refused, tmp_path):
    tiny.write(tmp_path, data__targets_length=8, data__mixture='tiny_text')
    assert 'targets_length' in refused(*_train(tmp_path))


def test_a_malformed_line_is_named_by_task_file_and_line(refused, tmp_path):
    tiny.write(tmp_path)
    (tmp_path / 'bad.jsonl').write_text('{"a": "x", "b": "y"}\n{"a": \n')
    broken = (
        '    from mtpt.tasks import jsonl\n'
        f"    task('broken', jsonl(dict(train={str(tmp_path / 'bad.jsonl')!r})),\n"
        "         [Prompt('p', '{{ a }}', '{{ b }}')], family='copying')\n"
        "    mixture('half_broken', ['broken', 'tiny_last'], rule='equal')\n"
    )
    (tmp_path / 'tasks.py').write_text(tiny.TASKS + broken)
    said = refused(*_train(tmp_path, '--config.data.mixture=half_broken'))
    assert "'broken'" in said and 'bad.jsonl' in said and 'line 2' in said
    skip = ['--config.data.mixture=half_broken', '--config.data.on_broken=skip']
    assert main(_train(tmp_path, *skip)) == 0
    assert 'bad.jsonl' in (tmp_path / 'run' / 'report.html').read_text()


def test_a_prompt_that_names_a_missing_field_is_told_the_fields(refused, tmp_path):
    tiny.write(tmp_path)
    code = tiny.TASKS.replace("'{{ b }}')", "'{{ c }}')")
    (tmp_path / 'tasks.py').write_text(code.replace('tiny', 'lacking'))
    said = refused(*_train(tmp_path, '--config.data.mixture=lacking_last', '--config.exams={}',
                           '--config.held_out.families=()'))  # fmt: skip
    assert "'c'" in said and 'a, b' in said


def test_a_folder_of_another_run_is_left_alone(refused, tmp_path):
    tiny.write(tmp_path)
    assert main(_train(tmp_path, '--config.train.steps=2')) == 0
    said = refused(*_train(tmp_path, '--config.model.D=64'))
    assert 'model/D' in said and 'another --workdir' in said


def test_a_folder_without_a_run_is_named(refused, tmp_path):
    assert 'holds no run' in refused('evaluate', f'--workdir={tmp_path}', '--mixture=tiny')
    assert 'holds no run' in refused('generate', f'--workdir={tmp_path}', '--input=x')


def test_an_empty_task_is_named(refused, tmp_path):
    tiny.write(tmp_path)
    code = tiny.TASKS.replace('range(start, 180, 3)', 'range(0)').replace('tiny', 'hollow')
    (tmp_path / 'tasks.py').write_text(code)
    said = refused(*_train(tmp_path, '--config.data.mixture=hollow_last', '--config.exams={}',
                           '--config.held_out.families=()'))  # fmt: skip
    assert "'hollow_last'" in said and 'no examples' in said


def test_a_hostile_template_is_refused_by_name(refused, tmp_path):
    tiny.write(tmp_path)
    hostile = ("{{ ''.__class__.__mro__ }}", '{% set _room = 1 %}{{ a }}', '{{ "x" * 10**9 }}')
    for i, template in enumerate(hostile):
        code = tiny.TASKS.replace("'Last of {{ a }} {{ b }} ({{ n }})?'", repr(template))
        (tmp_path / 'tasks.py').write_text(code.replace('tiny', f'hostile{i}'))
        said = refused(*_train(tmp_path, f'--config.data.mixture=hostile{i}_last',
                               '--config.exams={}', '--config.held_out.families=()'))  # fmt: skip
        assert "'last'" in said and ('insides' in said or 'builds a text' in said)


def test_a_checkpoint_of_another_model_is_told_from_ones_own(refused, tmp_path):
    tiny.write(tmp_path, train__steps=1)
    assert main(_train(tmp_path, '--config.exams={}')) == 0
    cache = f'--config.data.cache={tmp_path / "run" / "cache"}'
    other = ['--config.model.D=64', '--config.exams={}', f'--workdir={tmp_path / "other"}', cache]
    assert main(_train(tmp_path, *other)) == 0
    shutil.rmtree(tmp_path / 'run' / 'checkpoints')
    shutil.copytree(tmp_path / 'other' / 'checkpoints', tmp_path / 'run' / 'checkpoints')
    for command in (
        ['generate', '--input=First of red blue (3)?'],
        ['evaluate', '--mixture=tiny_last', '--set=max_examples=2'],
    ):
        said = refused(*command, f'--workdir={tmp_path / "run"}')
        assert 'another model' in said and str(tmp_path / 'run' / 'checkpoints') in said


def _contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_a_full_disk_costs_nothing_that_was_saved(refused, tmp_path, monkeypatch):
    tiny.write(tmp_path, train__steps=2)
    assert main(_train(tmp_path, '--config.exams={}')) == 0
    saved = _contents(tmp_path / 'run')

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr('mtpt.files.open', full, raising=False)
        said = refused(*_train(tmp_path, '--config.exams={}', '--config.train.steps=4'))
    assert 'No space left' in said and 'free some space' in said
    after = _contents(tmp_path / 'run')
    assert not [p for p, content in saved.items() if not after[p].startswith(content)]
    assert not [p for p in after if p.name.endswith('.part')]
    assert main(_train(tmp_path, '--config.exams={}', '--config.train.steps=4')) == 0
    assert Checkpoints(tmp_path / 'run', read_only=True).latest() == 4


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    tiny.write(tmp_path, train__steps=100_000, train__validate_every=0)
    command = _train(tmp_path, '--config.exams={}')
    checkpoints = tmp_path / 'run' / 'checkpoints'
    process = subprocess.Popen(
        [sys.executable, '-m', 'mtpt', *command], stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, cwd=pathlib.Path(__file__).resolve().parents[1],
    )  # fmt: skip
    try:
        late = time.monotonic() + 300
        while not (checkpoints / '3').exists() and process.poll() is None:
            assert time.monotonic() < late, 'no checkpoint appeared'
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode not in (0, None) and 'Traceback' not in said, said
    step = Checkpoints(tmp_path / 'run', read_only=True).latest()
    assert step >= 3
    assert main([*command, f'--config.train.steps={step + 1}']) == 0
    assert Checkpoints(tmp_path / 'run', read_only=True).latest() == step + 1
