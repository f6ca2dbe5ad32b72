"""Laws of the built-in suite: what it holds, and that its splits never touch."""

import collections
import functools
import hashlib
import json
import re

import jinja2
import pytest

from mtpt.mixtures.suite import documentation, recipe, tasks, words
from mtpt.mixtures.suite import vocabulary as suite_vocabulary
from mtpt.vocabulary import open_vocabulary

ALL = tasks.TRAINED + tasks.NEW
WORDS = re.compile('[A-Za-z]+|[0-9]+')


def each(recipes):
    return pytest.mark.parametrize('task', recipes, ids=[task.name for task in recipes])


@functools.cache
def texts(task, split, new):
    """Everything that a split says, under the wordings of training or under the new ones."""
    templates = task.new_templates if new else task.templates
    compiled = [jinja2.Template(t, undefined=jinja2.StrictUndefined) for t in templates.values()]
    return {t.render(example) for t in compiled for example in task.examples(split)}


@functools.cache
def trained_words():
    found = set()
    for task in tasks.TRAINED:
        found.update(WORDS.findall(' '.join(texts(task, 'train', False))))
        for example in task.examples('train'):
            found.update(WORDS.findall(' '.join(example['choices'])))
    return found


def test_the_suite_is_as_large_as_it_promises():
    families = collections.Counter(task.family for task in tasks.TRAINED)
    assert len(tasks.TRAINED) >= 60 and len(families) >= 8 and min(families.values()) >= 4
    new = collections.Counter(task.family for task in tasks.NEW)
    assert len(tasks.NEW) >= 12 and len(new) >= 3 and not set(new) & set(families)
    assert len({task.name for task in ALL}) == len(ALL)
    assert all(
        len(set(task.wordings.values()) - set(task.new_wordings.values())) >= 3 for task in ALL
    )
    assert sum(bool(task.new_wordings) for task in tasks.TRAINED) >= 20
    assert all(len(task.examples('test')) >= 200 for task in tasks.NEW)


@each(ALL)
def test_no_text_of_validation_or_test_is_seen_in_training(task):
    said = {s: texts(task, s, False) | texts(task, s, True) for s in recipe.SPLITS}
    wordings = len(task.wordings) + len(task.new_wordings)
    for split, found in said.items():
        assert len(found) == wordings * len(task.examples(split)), 'two examples read alike'
    assert not said['train'] & (said['validation'] | said['test'])
    assert not said['validation'] & said['test']


@each(ALL)
def test_the_answer_is_one_of_different_choices_and_leans_to_no_side(task):
    examples = task.examples('train')
    assert len(examples) >= 400 and len(task.examples('validation')) >= 70
    for example in examples:
        assert example['choices'].count(example['answer']) == 1
        assert len(set(example['choices'])) == len(example['choices']) >= 2
    fair = 1 / len(examples[0]['choices'])
    places = collections.Counter(e['choices'].index(e['answer']) for e in examples)
    assert max(places.values()) / len(examples) < fair + 0.08
    answers = collections.Counter(e['answer'] for e in examples)
    assert max(answers.values()) / len(examples) < max(fair, 0.25) + 0.05


def test_no_label_is_commoner_than_another_where_labels_are_fixed():
    fixed = [task for task in ALL if task.labels]
    assert len(fixed) > 10
    for task in fixed:
        for split in recipe.SPLITS:
            counts = collections.Counter(e['answer'] for e in task.examples(split))
            assert set(counts) == set(task.labels) and len(set(counts.values())) == 1, task.name


def test_examples_are_the_same_on_every_machine():
    told = [[task.examples(split)[:20] for split in recipe.SPLITS] for task in ALL]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == '33512de121bc4657', (
        'the suite has changed: scores before and after do not compare'
    )


def test_another_seed_draws_other_examples():
    task = tasks.TRAINED[0]
    assert task.examples('train') != task.examples('train', seed=1)


@each(tasks.NEW)
def test_new_tasks_say_nothing_in_words_that_training_never_uses(task):
    said = ' '.join(texts(task, 'test', False))
    assert set(WORDS.findall(said)) <= trained_words()


def test_new_wordings_use_words_of_training():
    for task in tasks.TRAINED:
        said = ' '.join(texts(task, 'test', True))
        assert set(WORDS.findall(said)) <= trained_words(), task.name


def test_every_word_and_number_of_the_suite_is_one_piece():
    vocabulary = open_vocabulary('builtin')
    assert vocabulary.size <= 2048
    nouns = [noun for kind in words.KINDS.values() for noun in kind]
    numbers = [str(n) for n in range(100)]
    for word in [*nouns, *words.NAMES, *numbers, *words.NUMBERS, *words.OPPOSITES]:
        assert len(vocabulary.encode(word)) == 1, word
    assert len(vocabulary.encode('the cat and 42 dogs')) == 5


def test_the_vocabulary_holds_every_word_that_it_was_made_for():
    vocabulary = open_vocabulary('builtin')
    split = [word for word in suite_vocabulary.words() if len(vocabulary.encode(word)) > 1]
    assert not split, 'train mixtures/builtin.model again (see mixtures/suite/vocabulary.py)'


def test_documentation_is_prose_in_two_disjoint_splits():
    train, validation = (
        [d['text'] for d in documentation.documents(s)] for s in ('train', 'validation')
    )
    assert len(train) > 1000 and len(validation) > 50
    assert not set(train) & set(validation) and len(set(train)) == len(train)
    assert all(len(text.split()) >= 8 and '\n' not in text for text in train)


def test_one_line_registers_the_suite_with_seqio():
    pytest.importorskip('seqio')
    from mtpt.mixtures import builtin  # noqa: F401
    from mtpt.tasks import register

    members = register.members('builtin')
    assert len(members) == len(tasks.TRAINED) + 1
    assert 0.01 < sum(m.rate for m in members if m.kind == 'text') < 0.05
    wordings = register.exam_names('builtin_trained', held_out_prompts=False)
    assert len(wordings) == sum(len(task.wordings) for task in tasks.TRAINED)
    unseen = register.exam_names('builtin_new_wordings')
    assert unseen and all(register.exam_info(name)['held_out_prompt'] for name in unseen)
    new = {register.exam_info(name)['family'] for name in register.exam_names('builtin_new_tasks')}
    assert new == {task.family for task in tasks.NEW} and not new & {m.family for m in members}
