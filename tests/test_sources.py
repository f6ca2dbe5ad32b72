"""Sources: every kind gives the same plain examples, and bad files are named with their lines."""

import datetime
import decimal
import enum
import functools
import gzip
import json
import os

import numpy as np
import pytest

from mtpt.config import UserError
from mtpt.tasks import sources
from mtpt.tasks.plain import plain

ROWS = [{'text': f'line {i} é', 'label': str(i % 3)} for i in range(7)]


def listed(source, split='train'):
    return list(source.read(split))


def write_jsonl(path, rows=ROWS):
    opened = gzip.open if str(path).endswith('.gz') else open
    with opened(path, 'wt', encoding='utf-8') as file:
        file.writelines(json.dumps(row) + '\n' for row in rows)
    return path


def test_every_file_format_gives_the_same_examples(tmp_path):
    import pyarrow
    import pyarrow.parquet

    plainly = write_jsonl(tmp_path / 'a.jsonl')
    packed = write_jsonl(tmp_path / 'b.jsonl.gz')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / 'c.parquet')
    lines = ['text,label', *(f'"{row["text"]}",{row["label"]}' for row in ROWS)]
    (tmp_path / 'd.csv').write_text('\n'.join(lines))
    (tmp_path / 'e.tsv').write_text('\n'.join(f'{row["text"]}\t{row["label"]}' for row in ROWS))
    found = [
        sources.jsonl(plainly),
        sources.jsonl({'train': packed}),
        sources.parquet(tmp_path / 'c.parquet'),
        sources.csv(tmp_path / 'd.csv'),
        sources.csv(tmp_path / 'e.tsv', delimiter='\t', fields=('text', 'label'), quoted=False),
        sources.function(lambda split: iter(ROWS), splits=('train',)),
    ]
    for source in found:
        assert listed(source) == ROWS == listed(source), source.kind
        assert source.size('train') == 7 and source.splits == ('train',)


def test_text_is_read_by_line_document_or_file(tmp_path):
    (tmp_path / 'a.txt').write_text('one\ntwo\n\n  \nthree\r\n')
    found = {
        by: listed(sources.text(tmp_path / 'a.txt', by=by)) for by in ('line', 'document', 'file')
    }
    assert [e['text'] for e in found['line']] == ['one', 'two', 'three']
    assert [e['text'] for e in found['document']] == ['one\ntwo', 'three']
    assert len(found['file']) == 1
    with pytest.raises(UserError, match="'document'"):
        sources.text(tmp_path / 'a.txt', by='page')


def test_globs_lists_and_variables_name_files(tmp_path, monkeypatch):
    for name in ('x-2.jsonl', 'x-1.jsonl'):
        write_jsonl(tmp_path / name, [{'name': name}])
    monkeypatch.setenv('CORPUS', str(tmp_path))
    source = sources.jsonl({'train': '$CORPUS/x-*.jsonl', 'test': [f'{tmp_path}/x-2.jsonl']})
    assert [e['name'] for e in source.read('train')] == ['x-1.jsonl', 'x-2.jsonl']
    assert [e['name'] for e in source.read('test')] == ['x-2.jsonl']


def test_making_a_source_opens_nothing():
    def explode(split):
        raise AssertionError('called')

    made = [
        sources.jsonl('/nowhere/a.jsonl'),
        sources.parquet({'train': '/nowhere/*.parquet'}),
        sources.tfds('no_such_set'),
        sources.function(explode, sizes={'train': 3}),
    ]
    assert made[0].splits == ('train',)
    assert made[-1].size('train') == 3
    with pytest.raises(UserError, match=r'no file /nowhere/a.jsonl'):
        listed(made[0])
    with pytest.raises(UserError, match="no split 'tain'; did you mean 'train'"):
        made[0].read('tain')


@pytest.mark.parametrize('bad', ['{"text": "a"', '[1, 2]', 'text', '{"a": 1} {"b": 2}'])
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path, bad):
    path = tmp_path / 'bad.jsonl'
    path.write_text('{"text": "good"}\n\n' + bad + '\n')
    with pytest.raises(
        UserError, match=r'bad\.jsonl, line 3: expected one JSON object, got'
    ) as error:
        listed(sources.jsonl(path))
    assert '\n' not in str(error.value)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / 'latin.jsonl').write_bytes(b'{"a": 1}\n{"a": "\xe9"}\n')
    with pytest.raises(UserError, match=r'latin\.jsonl, line 2: not UTF-8'):
        listed(sources.jsonl(tmp_path / 'latin.jsonl'))
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    (tmp_path / 'cut.jsonl.gz').write_bytes(whole[:-9])
    (tmp_path / 'no.jsonl.gz').write_bytes(b'{"a": 1}\n')
    for name in ('cut', 'no'):
        with pytest.raises(UserError, match=rf'{name}\.jsonl\.gz is damaged at line'):
            listed(sources.jsonl(tmp_path / f'{name}.jsonl.gz'))
    (tmp_path / 'x.parquet').write_text('no')
    with pytest.raises(UserError, match='not a Parquet file'):
        listed(sources.parquet(tmp_path / 'x.parquet'))
    (tmp_path / 'x.csv').write_text('a,b\n1,2\n3\n')
    with pytest.raises(UserError, match=r'x\.csv, line 3: expected 2 values \(a, b\), got 1'):
        listed(sources.csv(tmp_path / 'x.csv'))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert listed(sources.jsonl(tmp_path / 'a.jsonl')) == [{'a': 1}]


def test_values_become_what_json_holds():
    class Colour(enum.IntEnum):
        RED = 3

    found = plain(
        dict(
            b='é'.encode(), bad=b'\xff', i=np.int64(3), f=np.float32(0.5), s=np.str_('x'),
            a=np.array([[1, 2]]), o=np.array([b'u', b'v'], object), t=(1, (2,)), z={3, 1},
            d=datetime.date(2020, 1, 2), m=decimal.Decimal('1.50'), e=Colour.RED, n=None,
            nest={'k': [np.bool_(True), {'q': b'w'}]},
        )
    )  # fmt: skip
    assert found == dict(
        b='é', bad='\ufffd', i=3, f=0.5, s='x', a=[[1, 2]], o=['u', 'v'], t=[1, [2]], z=[1, 3],
        d='2020-01-02', m='1.50', e=3, n=None, nest={'k': [True, {'q': 'w'}]},
    )  # fmt: skip
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(UserError, match=r"field 'k.x' is a object"):
        plain({'k': {'x': object()}})
    with pytest.raises(UserError, match='is int, not a dict'):
        listed(sources.function(lambda split: [3], splits=('train',)))


def test_provenance_names_files_bytes_and_hashes(tmp_path):
    path = write_jsonl(tmp_path / 'a.jsonl')
    facts = sources.jsonl(path).describe(hashes=True)['splits']['train'][0]
    assert facts['path'] == str(path) and facts['bytes'] == os.path.getsize(path)
    assert len(facts['sha256']) == 64
    write_jsonl(path, ROWS[1:])
    assert sources.jsonl(path).describe(hashes=True)['splits']['train'][0] != facts
    assert 'sha256' not in sources.jsonl(path).describe()['splits']['train'][0]


def test_sources_are_equal_when_they_are_made_from_the_same_things():
    def rows(split, n=3):
        return [{'i': i} for i in range(n)]

    assert sources.jsonl('a') == sources.jsonl({'train': 'a'}) != sources.jsonl('b')
    assert sources.csv('a') != sources.csv('a', delimiter=';')
    assert sources.function(rows) == sources.function(rows)
    three, four = functools.partial(rows, n=3), functools.partial(rows, n=4)
    assert sources.function(three) == sources.function(functools.partial(rows, n=3))
    assert sources.function(three) != sources.function(four)
    again = [lambda split: [{'i': 1}], lambda split: [{'i': 1}], lambda split: [{'i': 2}]]
    made = [sources.function(f) for f in again]
    assert made[0] == made[1] != made[2]


def test_tfds_sets_are_read_where_they_are_prepared_and_refused_at_once_where_not(tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {'text': tfds.features.Text(), 'label': tfds.features.ClassLabel(names=['n', 'y'])}
    )
    rows = {'text': ['a', 'b é', 'c'], 'label': [0, 1, 1]}
    tfds.dataset_builders.store_as_tfds_dataset(
        name='tiny_set',
        version='1.0.0',
        features=features,
        split_datasets={'train': tf.data.Dataset.from_tensor_slices(rows)},
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    source = sources.tfds('tiny_set', {'train': 'train[:2]', 'rest': 'train[2:]'}, str(tmp_path))
    assert listed(source) == [{'label': 0, 'text': 'a'}, {'label': 1, 'text': 'b é'}]
    assert source.size('train') == 2 and source.size('rest') == 1
    with pytest.raises(UserError, match=r"'glue/cola' is not prepared in .*download_and_prepare"):
        listed(sources.tfds('glue/cola', data_dir=str(tmp_path)))
    with pytest.raises(UserError, match="knows no data set 'no_such_set'"):
        listed(sources.tfds('no_such_set', data_dir=str(tmp_path)))


def test_a_mocked_tfds_set_reads_as_plain_values(monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'is_prepared', lambda self: True)
    with tfds.testing.mock_data(num_examples=4):
        found = listed(sources.tfds('super_glue/boolq', splits=['train']))
    assert len(found) == 4 and json.loads(json.dumps(found)) == found
    assert isinstance(found[0]['question'], str) and isinstance(found[0]['label'], int)
