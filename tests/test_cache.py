"""The cache: written once, taken up where it stopped, honest about what is broken."""

import dataclasses
import gzip
import itertools
import json
import os
import time
from functools import partial

import numpy as np
import pytest

from mtpt import tasks
from mtpt.config import UserError
from mtpt.data import building, cache, shards
from mtpt.data import manifest as manifests
from mtpt.data.blocks import Files
from mtpt.data.config import DataConfig
from mtpt.data.fingerprints import of_code
from mtpt.data.loader import Loader, validation_batches
from mtpt.data.stream import stream
from mtpt.data.writer import ShardWriter
from mtpt.tasks import Prompt
from mtpt.vocabulary import open_vocabulary

CFG = DataConfig(
    batch_size=4, row_groups=2, inputs_length=64, targets_length=32, segments=8, lookahead=4
)
PROMPTS = (
    Prompt('plain', 'Is {{n}} even?', '{{answer}}', ('yes', 'no')),
    Prompt('formal', 'Even or not: {{n}}.', '{{answer}}', ('yes', 'no')),
)
HELD_OUT = (Prompt('exam', 'Tell whether {{n}} is even.', '{{answer}}', ('yes', 'no')),)


def numbers(split, start=0):
    for n in range(start, start + {'train': 40, 'validation': 6}[split]):
        yield {'n': n, 'answer': 'no' if n % 2 else 'yes'}


def prose(split):
    return ({'text': f'This is document {i} of the split {split}. ' * 4} for i in range(12))


@pytest.fixture
def mixture(tmp_path):
    """A mixture of a function, a file and raw text; returns its name and the file."""
    file = tmp_path / 'rows.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in numbers('train', 100)))
    name = tmp_path.name.replace('-', '_')
    common = dict(family='arithmetic', vocabulary='bytes')
    tasks.task(f'{name}_f', tasks.function(numbers), PROMPTS, held_out_prompts=HELD_OUT, **common)
    tasks.task(f'{name}_j', tasks.jsonl({'train': file}), PROMPTS[:1], **common)
    tasks.text_task(f'{name}_t', tasks.function(prose), vocabulary='bytes')
    tasks.mixture(name, [f'{name}_f', f'{name}_j', f'{name}_t'], rule='equal')
    return name, file


def build(name, out, **options):
    return cache.build(name, out, 'bytes', **options)


def written(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob('*.shard')}


def texts(manifest, cfg=CFG, batches=8):
    """All segments of some batches as (task name, inputs text, targets text)."""
    vocabulary, loader, out = open_vocabulary('bytes'), Loader(manifest, cfg), []
    for _ in range(batches):
        batch, _ = next(loader)
        for row, g in itertools.product(range(cfg.batch_size), range(cfg.segments)):
            if task := batch['segment_task_ids'][row, g]:
                sides = [
                    batch[f'{side}_tokens'][row][batch[f'{side[:7]}_segment_ids'][row] == g + 1]
                    for side in ('encoder_input', 'decoder_target')
                ]
                out.append((manifest.names[task], *map(vocabulary.decode, sides)))
    return out


def test_what_a_loader_reads_is_what_the_tasks_say(tmp_path, mixture):
    name, _ = mixture
    manifest = build(name, tmp_path / 'cache')
    assert manifests.read(tmp_path / 'cache') == manifest
    assert manifest.names == ['padding', f'{name}_f', f'{name}_j', f'{name}_t']
    assert np.allclose(manifest.rates, [0, 1 / 3, 1 / 3, 1 / 3])
    found = texts(manifest)
    wording = {'Is {} even?', 'Even or not: {}.'}
    expected = {(w.format(n), 'no' if n % 2 else 'yes') for n in range(40) for w in wording}
    own = {(i, t) for task, i, t in found if task == f'{name}_f'}
    assert own <= expected and {i.split()[0] for i, _ in own} == {'Is', 'Even'}
    assert {t for task, _, t in found if task == f'{name}_t' and t.startswith('<extra_id_0>')}
    split = manifest.task(f'{name}_f').splits['train']
    assert (split.examples, split.renderings, split.longest_targets) == (40, 80, 4)
    assert split.mean_targets == pytest.approx(3.5) and split.shortest_targets == 3
    assert manifest.task(f'{name}_f').splits['validation'].examples == 6
    assert len(validation_batches(manifest, CFG)) >= 1
    assert (
        open_vocabulary(tmp_path / 'cache' / 'vocabulary').fingerprint
        == manifest.vocabulary['fingerprint']
    )


def test_a_build_that_was_stopped_goes_on_where_it_was(tmp_path, mixture, monkeypatch):
    name, _ = mixture
    real = tasks.numbered

    def stopping(task, *args):
        if task == f'{name}_t':
            raise KeyboardInterrupt
        return real(task, *args)

    monkeypatch.setattr(tasks, 'numbered', stopping)
    with pytest.raises(KeyboardInterrupt):
        build(name, tmp_path / 'cache')
    half = written(tmp_path / 'cache')
    assert half and not list((tmp_path / 'cache').rglob('*partial*'))
    monkeypatch.undo()
    manifest = build(name, tmp_path / 'cache')
    whole = written(tmp_path / 'cache')
    assert half.items() < whole.items() and not shards.verify(manifest)
    assert build(name, tmp_path / 'cache') == manifest and written(tmp_path / 'cache') == whole


def test_a_task_is_written_again_when_its_source_or_prompt_changed_and_no_other(tmp_path, mixture):
    name, file = mixture
    first = build(name, tmp_path / 'cache')
    before = written(tmp_path / 'cache')
    file.write_text(json.dumps({'n': 7, 'answer': 'no'}) + '\n')
    second = build(name, tmp_path / 'cache')
    after = written(tmp_path / 'cache')
    assert second.task(f'{name}_j').splits['train'].examples == 1
    assert before.items() < after.items()
    assert {p.parts[-3] for p in set(after) - set(before)} == {f'{name}_j'}
    assert first.fingerprint != second.fingerprint
    assert [p.parent.name for p in manifests.unnamed(second)] == [f'{name}_j']
    assert not shards.verify(first)


@pytest.mark.parametrize('large', [False, True])
def test_an_edit_beyond_the_first_rows_that_leaves_the_size_is_seen(
    tmp_path, mixture, monkeypatch, large
):
    name, file = mixture
    if large:  # of which only the ends are hashed
        monkeypatch.setattr('mtpt.tasks.origins.WHOLE', 100)
        monkeypatch.setattr('mtpt.tasks.origins.ENDS', 10)
    first = build(f'{name}_j', tmp_path / 'cache')
    text = file.read_text()
    assert text.count('{"n": 130, "answer": "yes"}') == 1
    file.write_text(text.replace('{"n": 130, "answer": "yes"}', '{"n": 131, "answer": "yes"}'))
    os.utime(file, (1, 1))
    second = build(f'{name}_j', tmp_path / 'cache')
    assert first.fingerprint != second.fingerprint
    assert build(f'{name}_j', tmp_path / 'cache').fingerprint == second.fingerprint


class Draw:
    """A source that is an object, which says where it lies in memory."""

    def __init__(self, start):
        self.start = start

    def __call__(self, split):
        return numbers(split, self.start)

    def method(self, split):
        return numbers(split, self.start)


@pytest.mark.parametrize('of', [lambda d: d, lambda d: d.method, lambda d: partial(apply, d)])
def test_objects_that_are_called_are_known_by_what_they_hold(of):
    assert of_code(of(Draw(3))) == of_code(of(Draw(3))) != of_code(of(Draw(4)))


def apply(draw, split):
    return draw(split)


def test_ids_are_given_once(tmp_path, mixture):
    name, _ = mixture
    first = build(f'{name}_t', tmp_path / 'cache')
    second = build(name, tmp_path / 'cache')
    assert first.names == ['padding', f'{name}_t']
    assert second.names == ['padding', f'{name}_t', f'{name}_f', f'{name}_j']
    third = build(f'{name}_f', tmp_path / 'cache')
    assert third.names == second.names and third.rates.tolist() == [0, 0, 1, 0]
    assert third.task(f'{name}_t').status == 'unused'
    next(Loader(third, CFG))


def test_a_broken_source_fails_by_task_file_and_line(tmp_path, mixture):
    name, file = mixture
    file.write_text(file.read_text() + '{"n": 5, \n')
    with pytest.raises(UserError, match=rf"'{name}_j'.*rows\.jsonl, line 41.*on_broken=skip"):
        build(name, tmp_path / 'cache')
    file.unlink()
    with pytest.raises(UserError, match=rf"'{name}_j'.*no file .*rows\.jsonl"):
        build(name, tmp_path / 'cache')


def test_a_skipped_source_stays_in_the_table_with_its_reason_and_the_rest_renormalises(
    tmp_path, mixture
):
    name, file = mixture
    file.unlink()
    manifest = build(name, tmp_path / 'cache', on_broken='skip')
    [entry] = manifests.read(tmp_path / 'cache').skipped
    assert entry.name == f'{name}_j' and 'rows.jsonl' in entry.reason and entry.id == 2
    assert np.allclose(manifest.rates, [0, 0.5, 0, 0.5])
    loader = Loader(manifest, CFG)
    assert loader.problems == [(entry.name, entry.reason)]
    outline = cache.outline(name, 'bytes', on_broken='skip')
    assert outline.names == manifest.names and np.allclose(outline.rates, manifest.rates)
    file.write_text(json.dumps({'n': 7, 'answer': 'no'}) + '\n')
    mended = build(name, tmp_path / 'cache', on_broken='skip')
    assert mended.names == manifest.names and not mended.skipped


def test_a_skipped_task_stays_skipped_when_another_mixture_is_cached(tmp_path, mixture):
    name, file = mixture
    row = file.read_text()
    file.unlink()
    build(name, tmp_path / 'cache', on_broken='skip')
    build(f'{name}_f', tmp_path / 'cache')
    [entry] = manifests.read(tmp_path / 'cache').of({name: 1.0}).skipped
    assert entry.name == f'{name}_j' and 'rows.jsonl' in entry.reason
    assert not manifests.read(tmp_path / 'cache').of({f'{name}_f': 1.0}).skipped
    file.write_text(row)  # whole again, but the rates of the first mixture were made without it
    assert set(build(f'{name}_j', tmp_path / 'cache').mixtures) == {f'{name}_f', f'{name}_j'}


def test_an_empty_task_is_broken_and_so_is_one_that_raises(tmp_path, mixture):
    name, _ = mixture
    tasks.task(
        f'{name}_e',
        tasks.function(lambda split: [], ['train']),
        PROMPTS,
        family='logic',
        vocabulary='bytes',
    )
    with pytest.raises(UserError, match='no examples'):
        build(f'{name}_e', tmp_path / 'cache')

    def raising(split):
        yield from numbers(split)
        raise ZeroDivisionError('by nought')

    tasks.task(f'{name}_z', tasks.function(raising), PROMPTS, family='logic', vocabulary='bytes')
    with pytest.raises(UserError, match=rf"'{name}_z': ZeroDivisionError: by nought"):
        build(f'{name}_z', tmp_path / 'cache')
    with pytest.raises(UserError, match='nothing is left'):
        build(f'{name}_z', tmp_path / 'cache', on_broken='skip')


def test_exams_are_cached_beside_the_shards(tmp_path, mixture):
    name, _ = mixture
    manifest = build(name, tmp_path / 'cache', exam_mixtures=[f'{name}_f'], exam_examples=4)
    sets = {exam.name: exam for exam in manifests.read(tmp_path / 'cache').exam_sets()}
    assert list(sets) == [f'{name}_f.{p}' for p in ('plain', 'formal', 'exam')]
    exam = sets[f'{name}_f.exam']
    expected = list(tasks.exams(exam.name, 'validation', open_vocabulary('bytes'), True, 4))
    assert list(exam.examples) == expected and len(expected) == 4
    assert (exam.task, exam.prompt, exam.kind) == (f'{name}_f', 'exam', 'choices')
    assert [e.held_out_prompt for e in manifest.exams] == [False, False, True]
    [one] = manifest.exam_sets(names=[f'{name}_f.exam'], limit=2)
    assert one.examples == exam.examples[:2]
    with pytest.raises(UserError, match='did you mean'):
        manifest.exam_sets(names=[f'{name}_f.exams'])
    (tmp_path / 'cache' / manifest.exams[0].path).write_bytes(gzip.compress(b'{"inputs": '))
    with pytest.raises(UserError, match='build the cache again'):
        manifest.exam_sets()
    assert shards.verify(manifest) == [str(tmp_path / 'cache' / manifest.exams[0].path)]


def test_a_set_that_is_not_the_one_written_is_named_and_a_build_mends_it(tmp_path, mixture):
    name, _ = mixture
    asked = dict(exam_mixtures=[f'{name}_f'], exam_examples=4)
    manifest = build(f'{name}_f', tmp_path / 'cache', **asked)
    place = tmp_path / 'cache' / manifest.exams[0].path
    good = place.read_bytes()
    flipped = bytearray(good)
    flipped[20] ^= 0xFF  # within what zlib unpacks
    other = dict(inputs=[5, 1], choices=None, answer=0, references=['a'], choice_texts=None)
    for wrong in (bytes(flipped), gzip.compress(json.dumps(other).encode() + b'\n')):
        place.write_bytes(wrong)
        with pytest.raises(UserError, match=rf'{place.name} cannot be read.*build the cache again'):
            manifest.exam_sets()
        build(f'{name}_f', tmp_path / 'cache', **asked)
        assert place.read_bytes() == good


def test_exams_are_added_without_touching_tasks_shards_or_the_sets_that_are_there(
    tmp_path, mixture
):
    name, file = mixture
    first = build(name, tmp_path / 'cache', exam_mixtures=[f'{name}_f'], exam_examples=4)
    before = {p: p.read_bytes() for p in (tmp_path / 'cache').rglob('*') if p.is_file()}
    file.unlink()  # a build would fail, or change the table
    second = cache.add_exams(tmp_path / 'cache', [name])
    assert second == manifests.read(tmp_path / 'cache')
    assert dataclasses.replace(second, exams=first.exams) == first
    assert [e.mixtures for e in second.exams] == [(f'{name}_f', name)] * 3
    assert [e.size for e in second.exams] == [4] * 3
    third = cache.add_exams(tmp_path / 'cache', [f'{name}_f'], ['train'])
    assert [e.split for e in third.exams] == ['validation'] * 3 + ['train'] * 3
    assert all(p.read_bytes() == b for p, b in before.items() if p.name != 'manifest.json')
    assert third.exam_sets('train') and not shards.verify(third)


def test_a_cache_of_another_vocabulary_or_end_of_inputs_is_refused(tmp_path, mixture):
    name, _ = mixture
    build(name, tmp_path / 'cache')
    place = tmp_path / 'cache' / 'manifest.json'
    tree = json.loads(place.read_text())
    del tree['seal']  # as of mtpt before there were seals
    for change, words in (
        ({'inputs_eos': False}, 'do not end with EOS'),
        ({'vocabulary': tree['vocabulary'] | {'fingerprint': 'x'}}, 'another vocabulary'),
    ):
        place.write_text(json.dumps(tree | change))
        with pytest.raises(UserError, match=words):
            build(name, tmp_path / 'cache')


@pytest.mark.parametrize('path', ['/etc/shard', '../outside', 'shards/../../outside', 'C:\\x'])
def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path, mixture, path):
    name, _ = mixture
    manifest = build(f'{name}_f', tmp_path / 'cache')
    place = tmp_path / 'cache' / 'manifest.json'
    tree = json.loads(place.read_text())
    del tree['seal']
    tree['tasks'][0]['splits']['train']['shards'][0]['path'] = path
    place.write_text(json.dumps(tree))
    with pytest.raises(UserError, match='outside its folder'):
        Loader(manifests.read(tmp_path / 'cache'), CFG)
    assert manifest.file('eval/x').parent == tmp_path / 'cache' / 'eval'


def test_a_shard_of_pickled_objects_is_never_loaded(tmp_path, mixture):
    name, _ = mixture
    manifest = build(f'{name}_f', tmp_path / 'cache')
    path = manifest.tasks[0].splits['train'].shards[0].path
    place = tmp_path / 'cache' / f'{path}.shard'
    with open(place, 'wb') as file:
        np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match='cannot be read'):
        Loader(manifest, CFG)


def test_manifests_that_are_missing_or_broken_are_refused_in_words(tmp_path):
    with pytest.raises(UserError, match='mtpt cache'):
        manifests.read(tmp_path)
    for content in ('{', '[]', '{"format": 99}', '{"format": 1, "tasks": [{}], "exams": []}'):
        (tmp_path / 'manifest.json').write_text(content)
        with pytest.raises(UserError, match='build the cache again'):
            manifests.read(tmp_path)


def test_a_manifest_with_another_value_is_refused(tmp_path, mixture):
    name, _ = mixture
    build(f'{name}_f', tmp_path / 'cache')
    place = tmp_path / 'cache' / 'manifest.json'
    tree = json.loads(place.read_text())
    task = tree['tasks'][0]
    for wrong in (dict(inputs_eos=False), dict(tasks=[task | dict(rate=task['rate'] / 2)])):
        place.write_text(json.dumps(tree | wrong))
        with pytest.raises(UserError, match=r'manifest\.json is broken.*not as it was written'):
            manifests.read(tmp_path / 'cache')


def test_what_names_the_shards_is_refused_by_file_where_a_value_is_of_another_type(
    tmp_path, mixture
):
    name, _ = mixture
    build(f'{name}_f', tmp_path / 'cache')
    manifest, [done] = tmp_path / 'cache' / 'manifest.json', (tmp_path / 'cache').rglob('done.json')
    whole, tree = manifest.read_text(), json.loads(manifest.read_text())
    task = tree['tasks'][0]
    for wrong in (
        dict(mixtures=[]),
        dict(mixtures={name: 3}),
        dict(tasks=[5]),
        dict(tasks=[task | dict(id='one')]),
        dict(tasks=[task | dict(rate=None)]),
        dict(tasks=[task | dict(splits={'train': []})]),
        dict(vocabulary={}),
        dict(exams={'a': 1}),
    ):
        manifest.write_text(json.dumps(tree | wrong))
        with pytest.raises(UserError, match=r'manifest\.json is broken.*build the cache again'):
            manifests.read(tmp_path / 'cache')
    manifest.write_text(whole)
    for content in ('{', '[1]', '{"train": 3}'):
        done.write_text(content)
        with pytest.raises(UserError, match=r'done\.json is broken.*delete its folder'):
            build(f'{name}_f', tmp_path / 'cache')


def test_a_full_disk_is_told_in_words_and_keeps_what_was_there(tmp_path, mixture, monkeypatch):
    name, _ = mixture
    manifest = build(f'{name}_f', tmp_path / 'cache')

    def full(folder, place, content):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('mtpt.folders.Folder.write', full)
    with pytest.raises(UserError, match='no space is left'):
        build(name, tmp_path / 'cache', on_broken='skip')
    assert manifests.read(tmp_path / 'cache') == manifest and not shards.verify(manifest)


def test_the_same_examples_come_from_a_stream(tmp_path, mixture):
    name, _ = mixture
    manifest = cache.outline(name, 'bytes')
    opened = cache.opener(manifest, 'bytes', CFG, seed=1)
    loader = stream(manifest, dataclasses.replace(CFG, mode='stream'), opened, seed=1)
    vocabulary = open_vocabulary('bytes')
    seen = set()
    for _ in range(4):
        batch, _ = next(loader)
        seen |= set(np.unique(batch['segment_task_ids']).tolist())
        texts = vocabulary.decode(batch['decoder_target_tokens'][0])
    assert seen == {0, 1, 2, 3} and texts


def test_the_table_of_a_stream_can_be_cached_with_its_evaluation_data_only(tmp_path, mixture):
    name, file = mixture
    manifest = build(name, tmp_path / 'cache', splits=('validation',), exam_mixtures=[name])
    outline = cache.outline(name, 'bytes')
    assert manifest.names == outline.names and np.allclose(manifest.rates, outline.rates)
    assert [sorted(task.splits) for task in manifest.tasks] == [['validation'], [], ['validation']]
    assert validation_batches(manifest, CFG) and manifest.exam_sets()
    file.unlink()
    with pytest.raises(UserError, match=rf"'{name}_j'.*no file"):
        build(name, tmp_path / 'other', splits=('validation',))


def test_a_table_that_grows_changes_no_stream_of_a_task_that_it_had(tmp_path, mixture, monkeypatch):
    name, _ = mixture
    monkeypatch.setattr(cache, 'SHUFFLED', 12)
    tasks.text_task(f'{name}_u', tasks.function(prose), objective='prefix_lm', vocabulary='bytes')
    tasks.mixture(f'{name}_0', [f'{name}_f', f'{name}_t'], rule='equal')
    tasks.mixture(f'{name}_1', [f'{name}_j', f'{name}_u'], rule='equal')

    def streams(*mixtures):
        table = manifests.read(tmp_path / 'cache').of(dict.fromkeys(mixtures, 1.0))
        opened = cache.opener(table.at(f'{name}_0'), 'bytes', CFG, seed=1)
        pairs = {t: itertools.islice(opened(f'{name}_{t}'), 30) for t in 'ft'}
        return {t: [(list(i), list(o)) for i, o in found] for t, found in pairs.items()}

    build(f'{name}_0', tmp_path / 'cache', splits=('validation',))
    before = streams(f'{name}_0')
    for mixtures in ([f'{name}_0', f'{name}_1'], [f'{name}_1'], [f'{name}_1', f'{name}_0']):
        build(mixtures, tmp_path / 'cache', splits=('validation',))
        assert streams(f'{name}_0') == streams(f'{name}_0', f'{name}_1') == before
    later = manifests.read(tmp_path / 'cache')
    assert [(t.beside, t.part) for t in later.tasks] == [(2, ()), (2, (0, 1)), (4, ()), (4, (1, 2))]


def test_what_a_killed_build_left_behind_goes(tmp_path, mixture):
    name, _ = mixture
    for age in (0, 2 * building.STALE):
        place = tmp_path / 'cache' / 'shards' / f'{name}_f' / f'killed-{age}'
        (place / 'parts').mkdir(parents=True)
        os.utime(place, (time.time() - age,) * 2)
    build(f'{name}_f', tmp_path / 'cache')
    assert [p.name for p in place.parent.glob('killed*')] == ['killed-0']


def test_the_fingerprint_is_that_of_the_order_of_training_examples(tmp_path, mixture):
    name, _ = mixture
    first = build(name, tmp_path / 'cache')
    build(f'{name}_f', tmp_path / 'cache')
    again = build(name, tmp_path / 'cache', exam_mixtures=[name], validation_examples=3)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != build(f'{name}_f', tmp_path / 'cache').fingerprint


def test_examples_of_a_split_fill_many_shards_without_loss(tmp_path):
    writer = ShardWriter(tmp_path, 'shards/t/train', 'pairs', 1000, shard_tokens=64)
    for i in range(100):
        writer.add_pairs([([100 + i, 1], [200 + i, 1]), ([300 + i, 1], [400 + i, 1])], eos=1)
    split = writer.finish()
    assert len(split.shards) > 5 and split.examples == 100 and split.tokens == 800
    entry = manifests.TaskEntry('t', 1, 'f', 'd', 'pairs', 1.0, splits={'train': split})
    manifest = manifests.Manifest(str(tmp_path), 'm', True, {}, (entry,))
    reader = shards.Prompted(manifest, split, Files())
    pairs = [reader.pair(number, 0) for number in range(reader.size)]
    assert sorted(inputs[0] for inputs, _ in pairs) == list(range(100, 200))
    assert all(targets[0] - inputs[0] == 100 for inputs, targets in pairs)
    assert [inputs[0] for inputs, _ in pairs] != list(range(100, 200))
    with pytest.raises(UserError, match='reach 1000 in a vocabulary of 1000'):
        writer.add_pairs([([1000], [1])], eos=1)
