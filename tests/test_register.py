"""Registering: ours are SeqIO's, SeqIO's are ours, and both ways of reading give the same."""

import itertools
import json
import time

import numpy as np
import pytest
import seqio
import tensorflow as tf

from mtpt import tasks
from mtpt.config import UserError
from mtpt.data import objectives
from mtpt.tasks import Prompt, function, mixture, task, text_task
from mtpt.tasks.register import with_inputs_eos
from mtpt.vocabulary import Bytes, train

BYTES = Bytes()
YES_NO = Prompt('even', 'Is {{n}} even?', '{{ answer_choices[n % 2] }}', ('yes', 'no'))
SPELL = Prompt('spell', '{% if n > 2 %}Spell {{n}} {{words[0].w}}{% endif %}', '{{words[1].w}}')
TWO = Prompt('two', 'Two: {{n}} {{x}}', '{{ [n, n + 1] | join("|||") }}')
HELD = Prompt('held', 'Hold {{n}}', '{{n}}')


def rows(split):
    for n in range({'train': 9, 'validation': 4}[split]):
        yield {'n': n, 'x': n / 3, 'words': [{'w': f'wört {n} ||| \0'}, {'w': ('"', n)[n % 2]}]}


def texts(split):
    return [{'text': f'document {i} ' + 'says much more ' * (i % 5 + 2)} for i in range(40)]


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    monkeypatch.setattr(seqio.TaskRegistry, '_REGISTRY', {})
    monkeypatch.setattr(seqio.MixtureRegistry, '_REGISTRY', {})


def numbers(name='numbers', prompts=(YES_NO, SPELL, TWO), **kwargs):
    kwargs = dict(family='Math', vocabulary='bytes', held_out_prompts=[HELD]) | kwargs
    return task(name, function(rows), prompts, **kwargs)


def through_seqio(name, split='train', found=None, **kwargs):
    found = found or tasks.find(name)
    kwargs = dict(shuffle=False, num_epochs=1) | kwargs
    dataset = found.get_dataset(None, split=split, **kwargs)
    return [(e['inputs'].tolist(), e['targets'].tolist()) for e in dataset.as_numpy_iterator()]


def plain_seqio(name='theirs', vocabulary=None, more=(), size=5):
    def dataset(split, shuffle_files, seed=None):
        found = {
            'inputs': [f'in {i}' for i in range(size)],
            'targets': [f'out {i}' for i in range(size)],
        }
        return tf.data.Dataset.from_tensor_slices(found)

    vocabulary = vocabulary or seqio.ByteVocabulary()
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset, splits=['train'], num_input_examples={'train': size}
        ),
        preprocessors=[seqio.preprocessors.tokenize, *more, seqio.preprocessors.append_eos],
        output_features={s: seqio.Feature(vocabulary) for s in ('inputs', 'targets')},
    )


def test_our_reading_is_seqios_own_loading_prompt_by_prompt():
    numbers()
    cases = [(name, 'train', True) for name in tasks.exam_names('numbers')]
    for name, split, eos in [*cases, ('numbers.spell', 'validation', False)]:
        found = with_inputs_eos(tasks.find(name), eos)
        ours = [pair for [pair] in tasks.training_examples(name, split, BYTES, eos)]
        assert ours == through_seqio(name, split, found), (name, split, eos)
        assert len(ours) == (9 if split == 'train' else 4) - 3 * name.endswith('spell')


def test_our_reading_is_seqios_own_loading_with_a_trained_vocabulary(tmp_path):
    vocabulary = train((json.dumps(row) for row in [*rows('train')] * 9), 300, tmp_path / 'v.model')
    numbers(vocabulary=tmp_path / 'v.model')
    ours = tasks.training_examples('numbers.spell', 'train', vocabulary, True)
    assert [pair for [pair] in ours] == through_seqio('numbers.spell')


def test_seqio_draws_one_of_our_renderings_by_example_and_epoch():
    numbers()
    ours = list(tasks.training_examples('numbers', 'train', BYTES, True))
    assert [len(pairs) for pairs in ours] == [2, 2, 2] + [3] * 6
    drawn = through_seqio('numbers', seed=3, num_epochs=4)
    assert len(drawn) == 4 * 9 and drawn == through_seqio('numbers', seed=3, num_epochs=4)
    assert all(pair in pairs for pair, pairs in zip(drawn, ours * 4))
    assert drawn[:9] != drawn[9:18]
    assert drawn != through_seqio('numbers', seed=4, num_epochs=4)
    held = [pair for [pair] in tasks.training_examples('numbers.held', 'train', BYTES, True)]
    assert not set(map(str, held)) & set(map(str, drawn))


def test_seqio_packs_a_mixture_of_ours_and_theirs():
    numbers()
    plain_seqio()
    mixture('both', ['numbers', 'theirs'], rule='equal')
    assert type(tasks.find('theirs')) is seqio.Task
    assert isinstance(tasks.find('numbers'), seqio.Task)
    lengths = {'inputs': 96, 'targets': 48}
    converter = seqio.EncDecFeatureConverter(pack=True)
    dataset = seqio.get_dataset('both', lengths, converter, 'train', seed=0, num_epochs=None)
    rows_ = [row for row, _ in zip(dataset.as_numpy_iterator(), range(6))]
    assert all(row['encoder_segment_ids'].max() > 1 for row in rows_)
    seen = ' '.join(BYTES.decode(i for i in row['encoder_input_tokens'] if i != 1) for row in rows_)
    assert 'in 0' in seen and ('Two' in seen or 'even' in seen)


def test_a_plain_seqio_task_reads_unchanged_through_our_door():
    plain_seqio()
    ours = [pair for [pair] in tasks.training_examples('theirs', 'train', BYTES, True)]
    assert ours == through_seqio('theirs')
    without = [pair for [pair] in tasks.training_examples('theirs', 'train', BYTES, False)]
    assert without == [(inputs[:-1], targets) for inputs, targets in ours]
    exam = next(tasks.exams('theirs', 'train', BYTES, True))
    assert exam['references'] == ['out 0'] and exam['choices'] is None and exam['answer'] == -1
    stream = list(itertools.islice(tasks.stream('theirs', 'train', BYTES, True, 0), 10))
    assert sorted(stream[:5]) == sorted(ours) == sorted(stream[5:])
    assert tasks.check('theirs', 'bytes') == []


def test_ids_of_another_vocabulary_are_made_anew_only_from_text_that_was_left_alone(tmp_path):
    words = train(['in out 0 1 2 3 4 5 inside outside'] * 9, 290, tmp_path / 'w.model')
    plain_seqio(vocabulary=seqio.SentencePieceVocabulary(str(tmp_path / 'w.model')))
    ours = [pair for [pair] in tasks.training_examples('theirs', 'train', words, True)]
    assert ours == through_seqio('theirs')
    as_bytes = [pair for [pair] in tasks.training_examples('theirs', 'train', BYTES, True)]
    assert as_bytes[1] == (BYTES.encode('in 1') + [1], BYTES.encode('out 1') + [1])

    def shorter(dataset):
        return dataset.map(lambda e: e | {'targets': e['targets'][1:]})

    plain_seqio('cut', more=[shorter])
    with pytest.raises(UserError, match=r"'cut' has targets in the vocabulary .* more to them"):
        list(tasks.training_examples('cut', 'train', words, True))


def test_registering_reads_nothing_and_takes_no_time():
    def explode(split):
        raise AssertionError('read at registration')

    started = time.perf_counter()
    for i in range(60):
        prompts = [Prompt(f'p{j}', 'a {{x}}', '{{y}}') for j in range(3)]
        task(f't{i}', function(explode), prompts, family='f', vocabulary='/nowhere/x.model')
        task(f'j{i}', tasks.jsonl('/nowhere/x.jsonl'), prompts, family='f')
    text_task('raw', tasks.text('/nowhere/x.txt'))
    mixture('all', ['t*', 'j*', 'raw'], rule='ext5', R=2)
    mixture('nested', ['all'], rule='proportional')
    assert len(tasks.member_names('nested')) == 121
    assert time.perf_counter() - started < 2


def test_exams_have_choices_answers_and_references():
    numbers()
    assert tasks.exam_names('numbers') == [
        'numbers.even', 'numbers.spell', 'numbers.two', 'numbers.held',
    ]  # fmt: skip
    assert tasks.exam_names('numbers', held_out_prompts=False)[-1] == 'numbers.two'
    exams = list(tasks.exams('numbers.even', 'validation', BYTES, False, limit=3))
    assert [e['answer'] for e in exams] == [0, 1, 0]
    assert exams[0]['choices'] == [BYTES.encode('yes') + [1], BYTES.encode('no') + [1]]
    assert exams[0]['inputs'] == BYTES.encode('Is 0 even?')
    assert exams[1]['references'] == ['no'] and exams[1]['choice_texts'] == ['yes', 'no']
    free = next(tasks.exams('numbers.two', 'validation', BYTES, True))
    assert free['choices'] is None and free['answer'] == -1 and free['references'] == ['0', '1']
    with pytest.raises(UserError, match=r"'numbers' is no exam; .*numbers\.even"):
        tasks.exams('numbers', 'validation', BYTES, True)
    assert tasks.exam_info('numbers.held') == dict(
        task='numbers', prompt='held', family='mathematics', dataset='numbers',
        metrics=('accuracy',), held_out_prompt=True,
    )  # fmt: skip


def test_seqio_evaluates_a_prompt_task_with_its_metrics():
    numbers(metrics=('accuracy', 'exact_match', 'token_f1', 'bleu'))
    found = tasks.find('numbers.two')
    examples = list(found.get_dataset(None, split='validation', shuffle=False).as_numpy_iterator())
    targets = [found.postprocess_fn('', example=e, is_target=True) for e in examples]
    assert targets[1] == ['1', '2']
    said = [found.postprocess_fn(text, example=examples[0]) for text in ('0', '2', '4', 'x')]
    values = {k: v for fn in found.metric_fns for k, v in fn(targets, said).items()}
    assert values == {'accuracy': 0.25, 'exact_match': 0.5, 'token_f1': 0.5}


def test_members_carry_family_dataset_and_rates_of_the_rule():
    numbers()
    numbers('more', dataset='super_glue/rte:1.0.2', family='NLI')
    text_task('raw', function(texts), vocabulary='bytes', density=0.2)
    made = mixture('m', ['numbers', 'more', 'raw'], rule='ext5', R=0.5, cap=6)
    found = tasks.members('m')
    assert [(m.name, m.kind, m.objective) for m in found] == [
        ('numbers', 'pairs', None), ('more', 'pairs', None), ('raw', 'text', 'span_corruption'),
    ]  # fmt: skip
    np.testing.assert_allclose([m.rate for m in found], [1 / 3, 1 / 3, 1 / 3])
    assert found[1].family == 'natural_language_inference' and found[1].dataset == 'rte'
    assert found[2].objective_args == {'density': 0.2}
    assert found[0].prompts == ('even', 'spell', 'two')
    handed = tasks.members('m', sizes={'numbers': 1, 'raw': 5}, without=['more', 'absent'])
    assert [m.rate for m in handed] == pytest.approx([2 / 3, 1 / 3])
    for member in found:
        assert made.get_rate(tasks.find(member.name)) == pytest.approx(member.rate)
    assert tasks.members('numbers')[0].rate == 1
    with pytest.raises(UserError, match='nothing is left'):
        tasks.members('m', without=['numbers', 'more', 'raw'])


def test_a_plain_seqio_mixture_has_members_too():
    numbers()
    plain_seqio()
    seqio.MixtureRegistry.add('their_mix', [('numbers', 3), ('theirs', 1)])
    assert {m.name: m.rate for m in tasks.members('their_mix')} == {'numbers': 0.75, 'theirs': 0.25}
    mixture('outer', ['their_mix'], rule='equal')
    assert {m.rate for m in tasks.members('outer')} == {0.5}


def test_the_data_set_of_a_plain_seqio_task_has_its_canonical_name():
    for name, dataset in (('super_glue_rte', 'rte'), ('NewsQA', 'newsqa')):
        plain_seqio(name)
        assert tasks.members(name)[0].dataset == tasks.exam_info(name)['dataset'] == dataset


def test_sizes_that_nobody_knows_are_asked_for():
    found = plain_seqio('unsized')
    found._source._num_input_examples = None
    numbers('evaluated', prompts=[YES_NO])
    task('only_test', function(rows, splits=('validation',)), [YES_NO], family='f')
    task('empty', function(lambda split: []), [YES_NO], family='f')
    for name, said in {
        'unsized': 'hand it in',
        'only_test': "no split 'train'",
        'empty': 'no examples',
    }.items():
        mixture(f'm_{name}', [name, 'evaluated'])
        with pytest.raises(UserError, match=f"task '{name}'.*{said}|size of task '{name}'"):
            tasks.members(f'm_{name}')
    assert len(tasks.members('m_unsized', sizes={'unsized': 4})) == 2
    text_task('huge', tasks.text('/nowhere/c4.txt'))
    mixture('ext5', ['huge', 'evaluated'], rule='ext5', R=1)
    assert [m.rate for m in tasks.members('ext5')] == [0.5, 0.5]
    mixture('equal', ['only_test', 'evaluated'], rule='equal')
    assert len(tasks.members('equal')) == 2


def test_whether_inputs_end_with_eos_belongs_to_the_mixture():
    numbers()
    numbers('bare', inputs_eos=False)
    plain_seqio()
    with pytest.raises(UserError, match=r"'numbers' end with EOS and those of 'bare' do not"):
        mixture('mixed', ['numbers', 'bare'])
    for eos in (True, False):
        made = mixture(
            'mixed', ['numbers', 'bare', 'theirs'], inputs_eos=eos, rule='equal', replace=True
        )
        assert tasks.inputs_eos('mixed') is eos
        for found in made.tasks:
            pairs = through_seqio(found.name, found=found)
            assert {inputs[-1] == 1 for inputs, _ in pairs} == {eos}
            assert all(targets[-1] == 1 for _, targets in pairs)
            assert {inputs.count(1) for inputs, _ in pairs} == {int(eos)}
    assert tasks.inputs_eos('bare') is False
    mixture('outer', ['mixed'], inputs_eos=True)
    with pytest.raises(UserError, match='end with EOS'):
        mixture('outer2', ['mixed'])


def test_the_same_definition_registers_again_and_another_one_only_on_request(monkeypatch):
    numbers()
    made = mixture('m', ['numbers'])
    numbers()
    mixture('m', ['numbers'])
    assert tasks.find('m') is not made
    with pytest.raises(UserError, match=r"'numbers' is registered already.*replace=True"):
        numbers(prompts=[TWO])
    assert tasks.exam_names('numbers')[0] == 'numbers.even'
    numbers(prompts=[TWO], replace=True)
    assert tasks.exam_names('numbers') == ['numbers.two', 'numbers.held']
    assert 'numbers.even' not in seqio.TaskRegistry.names()
    assert tasks.find('m').tasks == [tasks.find('numbers')]
    monkeypatch.setattr('sys.ps1', '>>> ', raising=False)
    numbers(prompts=[SPELL])
    assert tasks.find('m').tasks == [tasks.find('numbers')]
    plain_seqio()
    with pytest.raises(UserError, match="'theirs' is registered already"):
        numbers('theirs')


def test_a_redefined_inner_mixture_changes_the_outer_one():
    numbers()
    numbers('more')
    mixture('inner', ['numbers'])
    mixture('outer', ['inner'])
    mixture('inner', ['more'], replace=True)
    assert tasks.member_names('outer') == ['more']


def test_globs_take_tasks_or_training_prompts():
    numbers()
    numbers('nummer')
    mixture('whole', ['num*'])
    assert tasks.member_names('whole') == ['numbers', 'nummer']
    mixture('by_prompt', ['numbers.*'], rule='t0')
    assert tasks.member_names('by_prompt') == ['numbers.even', 'numbers.spell', 'numbers.two']
    numbers('numb3')
    assert tasks.member_names('whole') == ['numbers', 'nummer']
    with pytest.raises(UserError, match="no task matches 'x\\*'"):
        mixture('none', ['x*'])


def test_wrong_names_and_definitions_are_told_in_a_sentence():
    numbers()
    with pytest.raises(UserError, match="no task or mixture 'numbrs'; did you mean 'numbers'"):
        mixture('m', ['numbrs'])
    for wrong, said in (
        (lambda: mixture('m', ['numbers'], rule='equall'), "did you mean 'equal'"),
        (lambda: mixture('m', ['m']), 'cannot hold itself'),
        (lambda: mixture('numbers', ['num*']), 'is a task already'),
        (lambda: mixture('a b', ['numbers']), 'letters, digits'),
        (lambda: numbers('a b'), 'letters, digits'),
        (lambda: numbers('n', prompts=[]), 'at least one prompt'),
        (lambda: numbers('n', prompts=[TWO, TWO]), "two prompts named 'two'"),
        (lambda: task('n', 'file.jsonl', [TWO], family='f'), 'needs a source'),
        (lambda: tasks.documents('numbers', 'train', BYTES), 'not raw text'),
        (
            lambda: next(tasks.training_examples('numbers', 'tain', BYTES, True)),
            "did you mean 'train'",
        ),
    ):
        with pytest.raises(UserError, match=said):
            wrong()


def test_a_broken_line_is_told_with_task_file_and_line(tmp_path):
    (tmp_path / 'x.jsonl').write_text('{"n": 1}\n{"n": \n')
    task('broken', tasks.jsonl(tmp_path / 'x.jsonl'), [HELD], family='f', vocabulary='bytes')
    with pytest.raises(UserError, match=r"task 'broken': .*x\.jsonl, line 2"):
        list(tasks.training_examples('broken', 'train', BYTES, True))
    stream = tasks.stream('broken', 'train', BYTES, True, seed=0)
    with pytest.raises(UserError, match=r"task 'broken': .*x\.jsonl, line 2"):
        list(stream)


def test_a_stream_goes_round_every_example_and_repeats_with_its_seed():
    numbers(prompts=[YES_NO, TWO])
    ours = list(tasks.training_examples('numbers', 'train', BYTES, True))
    first = list(itertools.islice(tasks.stream('numbers', 'train', BYTES, True, 1), 36))
    assert first == list(itertools.islice(tasks.stream('numbers', 'train', BYTES, True, 1), 36))
    assert first != list(itertools.islice(tasks.stream('numbers', 'train', BYTES, True, 2), 36))
    for epoch in (first[:9], first[9:18], first[18:27]):
        places = [next(i for i, pairs in enumerate(ours) if pair in pairs) for pair in epoch]
        assert sorted(places) == list(range(9)) and places != list(range(9))
    task('none', function(lambda split: [{'n': 1}]), [SPELL], family='f')
    with pytest.raises(UserError, match="task 'none': split 'train' is empty, or no prompt"):
        next(tasks.stream('none', 'train', BYTES, True, 0))


def uncorrupted(inputs, targets):
    """Puts what each sentinel hides back into the inputs."""
    sentinels = {BYTES.sentinel(i) for i in range(100)}
    hidden, now = {}, None
    for i in targets:
        if i in sentinels:
            now = hidden.setdefault(i, [])
        elif i != 1:
            now.append(i)
    return [t for i in inputs if i != 1 for t in (hidden[i] if i in hidden else [i])]


def test_seqio_loads_raw_text_as_span_corruption_that_loses_nothing():
    tasks.bind_objectives(objectives.OBJECTIVES, objectives.OBJECTIVE_LENGTHS)
    text_task('raw', function(texts), vocabulary='bytes')
    ids = [i for document in tasks.documents('raw', 'train', BYTES) for i in document]
    length, targets = objectives.span_corruption_lengths(64)
    lengths = {'inputs': 64, 'targets': targets}

    def load(seed):
        found = tasks.find('raw').get_dataset(lengths, split='train', shuffle=False, seed=seed)
        return [(e['inputs'].tolist(), e['targets'].tolist()) for e in found.as_numpy_iterator()]

    pairs = load(1)
    assert [i for pair in pairs for i in uncorrupted(*pair)] == ids
    assert {len(inputs) for inputs, _ in pairs[:-1]} == {64}
    assert {len(t) for _, t in pairs[:-1]} == {targets} and len(pairs) == -(-len(ids) // length)
    assert load(1) == pairs != load(2)
    mixture('bare', ['raw'], inputs_eos=False)
    found = tasks.find('bare').tasks[0].get_dataset(lengths, split='train', shuffle=False, seed=1)
    assert [e['inputs'].tolist() for e in found.as_numpy_iterator()] == [i[:-1] for i, _ in pairs]
    with pytest.raises(UserError, match=rf'targets of {targets} tokens .* set the targets length'):
        tasks.find('raw').get_dataset({'inputs': 64, 'targets': targets - 1}, split='train')


def test_documents_stream_without_end():
    text_task('raw', function(texts), vocabulary='bytes')
    all_ = sorted(tasks.documents('raw', 'train', BYTES))
    stream = list(itertools.islice(tasks.document_stream('raw', 'train', BYTES, 0), 80))
    assert sorted(stream[:40]) == all_ == sorted(stream[40:]) and stream[:40] != stream[40:]
    text_task('no_text', function(lambda split: [{'words': 'a'}]), vocabulary='bytes')
    with pytest.raises(UserError, match=r"task 'no_text': no text in the field 'text'; .* words"):
        next(tasks.documents('no_text', 'train', BYTES))


def test_check_reports_every_problem_and_show_every_stage(tmp_path):
    numbers()
    assert tasks.check('numbers') == []
    lacks = Prompt('lacks', '{{m}}', 'x')
    never = Prompt('never', '{% if n > 99 %}a{% endif %}', 'x')
    twice = Prompt('twice', 'q', 'a', ('a', 'a'))
    numbers('bad', prompts=[lacks, never, twice])
    task('gone', tasks.jsonl('/nowhere/g.jsonl'), [HELD], family='f', vocabulary='bytes')
    task(
        'empty',
        function(lambda split: [], splits=('train',)),
        [HELD],
        family='f',
        vocabulary='bytes',
    )
    mixture('m', ['numbers', 'bad', 'gone', 'empty'], rule='equal')
    problems = tasks.check('m')
    for said in (
        "names the field 'm'",
        "'never' of task 'bad' applies to none",
        "'twice' of task 'bad' offers a choice twice",
        "task 'gone': no file /nowhere/g.jsonl",
        "task 'empty' has no examples",
    ):
        assert any(said in problem for problem in problems), (said, problems)
    assert len(problems) == 3 * 2 + 2
    stages = dict(tasks.show('numbers', BYTES, split='validation', index=3))
    assert 'n: 3' in stages['raw, validation 3']
    assert stages['prompt even'] == 'inputs: Is 3 even?\ntargets: no\nchoices: yes | no'
    assert stages['tokens of even: targets'] == '3: n/113 o/114 </s>/1'
    assert 'prompt held (held out)' in stages
    with pytest.raises(UserError, match="no example 99 in split 'train'"):
        tasks.show('numbers', BYTES, index=99)
