"""Bad input gets one sentence that names the thing and the cure, a status, and no traceback."""

import pytest
import tiny

from mtpt.__main__ import main


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
