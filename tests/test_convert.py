"""Conversion from and to Hugging Face's folders, and from T5X: bit by bit, and what is refused."""

import json
import pathlib
import pickle
import struct
from typing import NamedTuple

import flax.serialization
import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from mtpt import run, trees
from mtpt.__main__ import main
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError, read
from mtpt.convert import convert, hugging_face, names, safetensors, tokenizers
from mtpt.model.config import ModelConfig, resolve
from mtpt.train.state import InitFromConfig, init_from
from mtpt.vocabulary import SENTINELS, Bytes, SentencePiece, open_vocabulary, train

SIZES = dict(V=384, D=12, H=2, K=5, F=14, encoder_layers=4, decoder_layers=2, tied=False)
MOE = dict(E=3, encoder=2, decoder=2, dispatch='dropless', jitter=0.01)
KINDS = dict(
    t5=dict(mlp='relu', tied=True),
    t5_1_1=dict(mlp='geglu'),
    mt5=dict(mlp='geglu', V=640),
    byt5=dict(mlp='geglu', encoder_layers=3, decoder_layers=1),
    ul2=dict(mlp='swiglu', tied=True),
    switch=dict(mlp='relu', tied=True, moe=MOE),
)
BF16 = np.dtype(ml_dtypes.bfloat16)


class State(NamedTuple):
    params: dict
    step: np.ndarray


def config(kind, **changes):
    return resolve(read(ModelConfig, dict(size='base', **(SIZES | KINDS[kind] | changes))))


def theirs(kind, cfg, dtype=np.float32, seed=0):
    """Random tensors of a model, by Hugging Face's names."""
    rng = np.random.default_rng(seed)
    return {
        names.hugging_face(cfg, p): rng.normal(size=names.linear_shape(p)).astype(dtype)
        for p in names.places(cfg)
    }


def write_folder(folder, kind, tensors=None, shard=1 << 40, told=(), **changes):
    """A folder as Hugging Face would write it, with the vocabulary of bytes."""
    cfg = config(kind, **changes)
    folder.mkdir(parents=True)
    tensors = theirs(kind, cfg) if tensors is None else tensors
    plans = {n: safetensors.Plan(x.dtype, x.shape) for n, x in sorted(tensors.items())}
    safetensors.write(folder, plans, tensors.items(), shard)
    model_type = dict(mt5='mt5', switch='switch_transformers').get(kind, 't5')
    settings = hugging_face.config_from(cfg, dict(model_type=model_type)) | dict(told)
    (folder / 'config.json').write_text(json.dumps(settings))
    (folder / 'tokenizer_config.json').write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    return folder, cfg, tensors


def content(folder):
    return {name: np.array(x.read()) for name, x in safetensors.read(folder).items()}


def same(a, b):
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize('kind', KINDS)
def test_a_round_trip_changes_no_bit(tmp_path, kind):
    source, _, tensors = write_folder(tmp_path / 'theirs', kind)
    convert(source, tmp_path / 'ours')
    convert(tmp_path / 'ours', tmp_path / 'back')
    same(tensors, content(tmp_path / 'back'))
    old, new = (hugging_face.config_of(f) for f in (source, tmp_path / 'back'))
    assert {k: new[k] for k in old if k != 'dtype'} == old
    assert hugging_face.read(tmp_path / 'back')[0] == hugging_face.read(source)[0]


def test_every_part_of_a_tensor_lands_where_it_belongs(tmp_path):
    source, cfg, tensors = write_folder(tmp_path / 'theirs', 'switch')
    convert(source, tmp_path / 'ours')
    params = trees.flatten(Checkpoints(tmp_path / 'ours', read_only=True).load_params())
    assert {p: x.shape for p, x in params.items()} == dict(names.shapes(cfg))
    q = tensors['encoder.block.2.layer.0.SelfAttention.q.weight']  # [H K, D]
    o = tensors['decoder.block.1.layer.1.EncDecAttention.o.weight']  # [D, H K]
    expert = tensors['encoder.block.3.layer.1.mlp.experts.expert_2.wi.weight']  # [F, D]
    D, H, K = cfg.D, cfg.H, cfg.K
    for h in range(H):
        mine = params['encoder/layers/0/attention/q'][1][:, h]
        np.testing.assert_array_equal(mine, q[h * K : (h + 1) * K].T)
        mine = params['decoder/layers/1/cross/o'][0][h]
        np.testing.assert_array_equal(mine, o[:, h * K : (h + 1) * K].T)
    np.testing.assert_array_equal(params['encoder/layers/1/moe/up'][1, 2], expert.T)
    assert params['encoder/layers/1/moe/up'].shape == (2, 3, D, cfg.F)


def test_types_stay_as_they_are_stored_or_become_what_is_asked_for(tmp_path):
    kind = 't5_1_1'
    cfg = config(kind)
    source, _, tensors = write_folder(tmp_path / 'bf16', kind, theirs(kind, cfg, BF16))
    convert(source, tmp_path / 'ours')
    convert(tmp_path / 'ours', tmp_path / 'back')
    same(tensors, content(tmp_path / 'back'))
    assert hugging_face.config_of(tmp_path / 'back')['dtype'] == 'bfloat16'
    convert(source, tmp_path / 'wide', dtype='float32')
    held = trees.flatten(Checkpoints(tmp_path / 'wide', read_only=True).load_params())
    assert {x.dtype.name for x in held.values()} == {'float32'}
    convert(tmp_path / 'wide', tmp_path / 'narrow', dtype='bfloat16')
    same(tensors, content(tmp_path / 'narrow'))


def test_layers_of_several_types_share_a_leaf_of_the_widest(tmp_path):
    kind = 't5'
    tensors = theirs(kind, config(kind), np.float16)
    name = 'encoder.block.1.layer.1.DenseReluDense.wo.weight'
    tensors[name] = tensors[name].astype(np.float32) + np.float32(1e-7)
    source, _, _ = write_folder(tmp_path / 'theirs', kind, tensors)
    convert(source, tmp_path / 'ours')
    params = trees.flatten(Checkpoints(tmp_path / 'ours', read_only=True).load_params())
    np.testing.assert_array_equal(params['encoder/layers/mlp/down'][1], tensors[name].T)
    assert params['encoder/layers/mlp/up'].dtype == np.float16


def test_sharded_files_are_read_and_written(tmp_path):
    source, _, tensors = write_folder(tmp_path / 'theirs', 't5_1_1', shard=8000)
    assert len(list(source.glob('model-*-of-*.safetensors'))) > 3
    convert(source, tmp_path / 'ours')
    convert(tmp_path / 'ours', tmp_path / 'back', shard=5000)
    index = json.loads((tmp_path / 'back' / safetensors.INDEX).read_text())
    assert index['weight_map'].keys() == tensors.keys()
    assert index['metadata']['total_size'] == sum(x.nbytes for x in tensors.values())
    largest = max(x.nbytes for x in tensors.values())
    for file in set(index['weight_map'].values()):
        held = safetensors.header(tmp_path / 'back' / file)
        assert {n for n, f in index['weight_map'].items() if f == file} == held.keys()
        total = sum(x.dtype.itemsize * int(np.prod(x.shape)) for x in held.values())
        assert total <= max(5000, largest)
    same(tensors, content(tmp_path / 'back'))


def test_a_converted_model_is_a_run(tmp_path, capsys):
    """It generates, scores, is reported on, and training can start from it."""
    source, cfg, tensors = write_folder(tmp_path / 'theirs', 'byt5')
    assert main(['convert', f'--source={source}', f'--out={tmp_path / "ours"}']) == 0
    count = sum(x.size for x in tensors.values())
    assert f'{count:,} parameters in float32' in capsys.readouterr().out
    out = run.generate(tmp_path / 'ours', ['first of red blue'], max_length=4)
    assert len(out) == 1
    assert main(['report', f'--workdir={tmp_path / "ours"}']) == 0
    fresh = names.from_hugging_face(theirs('byt5', cfg, seed=1), cfg)
    with jax.set_mesh(jax.make_mesh((1,), ('data',))):
        fresh = jax.tree.map(jax.numpy.asarray, fresh)
    letters = trees.unflatten(dict.fromkeys(trees.flatten(fresh), 'X'))
    taken, notes = init_from(InitFromConfig(path=str(tmp_path / 'ours')), fresh, letters)
    wanted = trees.flatten(names.from_hugging_face(tensors, cfg))
    for path, x in trees.flatten(taken).items():
        np.testing.assert_array_equal(x, wanted[path], err_msg=path)
    assert 'parameters come from' in notes[0]


def test_a_checkpoint_that_training_saved_whole_converts(tmp_path):
    source, _, tensors = write_folder(tmp_path / 'theirs', 'switch')
    convert(source, tmp_path / 'ours')
    checkpoints = Checkpoints(tmp_path / 'ours')
    told = checkpoints.load_provenance()
    params = jax.tree.map(lambda x: 2 * x, checkpoints.load_params())
    checkpoints.save(5, State(params, np.int32(5)), {}, told)
    checkpoints.close()
    convert(tmp_path / 'ours', tmp_path / 'last')
    same({name: 2 * x for name, x in tensors.items()}, content(tmp_path / 'last'))
    convert(tmp_path / 'ours' / 'checkpoints' / '0', tmp_path / 'first')
    same(tensors, content(tmp_path / 'first'))
    with pytest.raises(UserError, match=r'no checkpoint 3.*0, 5'):
        convert(tmp_path / 'ours', tmp_path / 'third', step=3)


# --- vocabularies ---


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    """A SentencePiece model, and one that ends with its own sentinels, as mT5's does."""
    folder = tmp_path_factory.mktemp('pieces')
    texts = ['the red house is old', 'a blue house is new', 'number one and number two'] * 20
    train(texts, 300, folder / 'plain.model')
    own = [f'▁<extra_id_{i}>' for i in reversed(range(SENTINELS))]
    from sentencepiece import sentencepiece_model_pb2 as format

    model = format.ModelProto.FromString((folder / 'plain.model').read_bytes())
    for name in own:
        model.pieces.add(piece=name, score=0, type=format.ModelProto.SentencePiece.USER_DEFINED)
    (folder / 'own.model').write_bytes(model.SerializeToString())
    return folder


def test_sentinels_inside_a_model_are_not_added_again(pieces):
    plain, own = SentencePiece(pieces / 'plain.model'), SentencePiece(pieces / 'own.model')
    assert own.pieces == plain.pieces and own.size == plain.size
    for i in range(SENTINELS):
        assert own.sentinel(i) == plain.sentinel(i)
        assert own._processor.id_to_piece(own.sentinel(i)) == f'▁<extra_id_{i}>'
    text = '<extra_id_0> red <extra_id_99> house'
    assert own.encode(text, specials=True) == plain.encode(text, specials=True)
    assert own.decode(own.encode(text, specials=True)) == text


def spiece_folder(folder, pieces, added=None):
    V = SentencePiece(pieces / 'plain.model').padded_size
    source, _, _ = write_folder(folder, 't5_1_1', V=V)
    (source / 'spiece.model').write_bytes((pieces / 'plain.model').read_bytes())
    told = dict(tokenizer_class='T5Tokenizer', extra_ids=100)
    if added:
        told['added_tokens_decoder'] = {str(i): dict(content=c) for i, c in added.items()}
    (source / 'tokenizer_config.json').write_text(json.dumps(told))
    return source


def test_the_vocabulary_goes_with_the_model_both_ways(tmp_path, pieces):
    vocabulary = SentencePiece(pieces / 'plain.model')
    added = {vocabulary.sentinel(i): f'<extra_id_{i}>' for i in range(SENTINELS)}
    source = spiece_folder(tmp_path / 'theirs', pieces, added | {vocabulary.size - 3: '<new>'})
    notes = convert(source, tmp_path / 'ours')
    assert any('<new>' in note for note in notes)
    assert open_vocabulary(tmp_path / 'ours' / 'vocabulary') == vocabulary
    notes = convert(tmp_path / 'ours', tmp_path / 'back')
    assert 'falls back to bytes' in notes[1]
    assert (tmp_path / 'back' / 'spiece.model').read_bytes() == vocabulary.model


def test_a_tokenizer_with_other_sentinels_is_refused(tmp_path, pieces):
    source = spiece_folder(tmp_path / 'theirs', pieces, {305: '<extra_id_7>'})
    with pytest.raises(UserError, match='gives <extra_id_7> the id 305'):
        convert(source, tmp_path / 'ours')


def test_a_model_without_a_vocabulary_needs_one_named(tmp_path):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')
    (source / 'tokenizer_config.json').unlink()
    with pytest.raises(UserError, match='--vocabulary=FILE'):
        convert(source, tmp_path / 'ours')
    convert(source, tmp_path / 'ours', vocabulary='bytes')
    assert open_vocabulary(tmp_path / 'ours' / 'vocabulary') == Bytes()
    source, _, _ = write_folder(tmp_path / 'small', 't5', V=256)
    with pytest.raises(UserError, match='359 ids and the model 256 rows'):
        convert(source, tmp_path / 'other', vocabulary='bytes')


# --- what is refused ---


def refused(tmp_path, source, match, **flags):
    """Conversion fails with a sentence and leaves nothing behind."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match=match) as caught:
        convert(source, tmp_path / 'ours', **flags)
    assert '\n' not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    return str(caught.value)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
    tensors = theirs('t5', config('t5'))
    gone, wrong = 'encoder.final_layer_norm.weight', 'decoder.block.1.layer.2.layer_norm.weight'
    tensors['encoder.final_norm.weight'] = tensors.pop(gone)
    tensors[wrong] = tensors[wrong][:-1]
    source, _, _ = write_folder(tmp_path / 'theirs', 't5', tensors)
    said = refused(tmp_path, source, 'missing')
    for part in (gone, 'encoder.final_norm.weight', f'{wrong} is (11,)', '(12,)'):
        assert part in said


@pytest.mark.parametrize(
    'told, match',
    [
        (dict(model_type='bart'), "type 'bart'.*switch_transformers"),
        (dict(model_type='umt5'), "type 'umt5'"),
        (dict(architectures=['T5EncoderModel']), 'T5EncoderModel.*T5ForConditionalGeneration'),
        (dict(feed_forward_proj='gated-tanh'), "'gated-tanh'.*gated-gelu"),
        (dict(feed_forward_proj=7), 'no hidden layer'),
        (dict(feed_forward_proj=['relu']), 'no hidden layer'),
        (dict(architectures=7), 'architectures=7, which must be a list'),
        (dict(architectures=[['T5Model']]), 'of the architecture'),
        (dict(scale_decoder_outputs='yes'), "true or false.*'yes'"),
        (dict(num_heads=0), 'num_heads=0, which must be a whole number of at least 1'),
        (dict(num_layers=10_000_000), 'num_layers=10000000, and the folder no more than'),
        (dict(num_decoder_layers=10_000_000), 'num_decoder_layers=10000000, and the folder'),
        (dict(layer_norm_epsilon=1e-5), 'layer_norm_epsilon=1e-05'),
        (dict(decoder_start_token_id=2), 'decoder_start_token_id=2'),
        (dict(d_model='12'), "d_model='12', which must be a whole number"),
        (dict(d_model=-12), 'd_model=-12, which must be a whole number of at least 1'),
        (dict(num_layers=3), 'encoder.block.3.*not of this model'),
        (dict(num_decoder_layers=3), 'decoder.block.2.*missing'),
        (dict(d_kv=4), r'is \(10, 12\) where the model has \(8, 12\)'),
    ],
)
def test_a_config_that_ours_cannot_be_is_refused(tmp_path, told, match):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5', told=told)
    refused(tmp_path, source, match)


def test_a_head_that_is_tied_and_differs_is_refused(tmp_path):
    tensors = theirs('t5', config('t5'))
    equal = tensors | {'lm_head.weight': tensors['shared.weight']}
    equal |= {'decoder.embed_tokens.weight': tensors['shared.weight']}
    source, _, _ = write_folder(tmp_path / 'equal', 't5', equal)
    convert(source, tmp_path / 'fine')
    other = equal | {'lm_head.weight': tensors['shared.weight'] + 1}
    source, _, _ = write_folder(tmp_path / 'other', 't5', other)
    refused(tmp_path, source, 'lm_head.weight and shared.weight differ')
    other = equal | {'decoder.embed_tokens.weight': tensors['shared.weight'] + 1}
    source, _, _ = write_folder(tmp_path / 'third', 't5', other)
    refused(tmp_path, source, 'one embedding')


def test_a_head_that_shares_the_embedding_unscaled_becomes_one_of_its_own(tmp_path):
    tensors = theirs('t5_1_1', config('t5_1_1'))
    tensors.pop('lm_head.weight')
    source, _, _ = write_folder(tmp_path / 'theirs', 't5_1_1', tensors)
    convert(source, tmp_path / 'ours')
    params = Checkpoints(tmp_path / 'ours', read_only=True).load_params()
    np.testing.assert_array_equal(params['logits']['kernel'], tensors['shared.weight'].T)


def test_a_folder_without_an_embedding_is_refused(tmp_path):
    tensors = theirs('t5_1_1', config('t5_1_1'))
    del tensors['lm_head.weight'], tensors['shared.weight']
    source, _, _ = write_folder(tmp_path / 'theirs', 't5_1_1', tensors)
    refused(tmp_path, source, 'shared.weight.*missing')


def test_what_is_beside_a_model_does_not_change_what_it_is(tmp_path):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')
    (source / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-1"')
    (source / 'checkpoints').mkdir()
    refused(tmp_path, source, '--mlp=geglu means nothing for a folder of Hugging', mlp='geglu')
    convert(source, tmp_path / 'ours')
    with pytest.raises(UserError, match='--vocabulary=bytes means nothing for a run'):
        convert(tmp_path / 'ours', tmp_path / 'back', vocabulary='bytes')


def test_out_is_a_new_folder_wherever_one_stands(tmp_path, monkeypatch):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    with pytest.raises(UserError, match='the folder you are in'):
        convert(source, '.')
    convert(source, 'ours')
    kept = run.record.run_of(tmp_path / 'here' / 'ours').data.vocabulary
    assert kept == str(tmp_path / 'here' / 'ours' / 'vocabulary')


def test_what_cannot_be_read_is_not_called_unwritable(tmp_path, monkeypatch):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')

    def read(self):
        raise PermissionError(13, 'Permission denied', str(self.file))

    monkeypatch.setattr(safetensors.Tensor, 'read', read)
    refused(tmp_path, source, 'cannot read .*model.safetensors: Permission denied')


def test_pickles_are_never_opened(tmp_path):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')
    (source / safetensors.SINGLE).unlink()

    class Bomb:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / 'opened',)

    (source / 'pytorch_model.bin').write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path, source, 'pytorch_model.bin.*safetensors')
    assert not (tmp_path / 'opened').exists()


def damaged(header, size=1000, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + bytes(size)


F32 = dict(dtype='F32', shape=[10], data_offsets=[0, 40])


@pytest.mark.parametrize(
    'content, match',
    [
        (b'', 'not a safetensors file'),
        (damaged({}, length=1 << 60), 'not a safetensors file'),
        (damaged(b'{"a": '), 'damaged'),
        (damaged(b'[]'), 'damaged'),
        (damaged(b'[' * 100000), 'damaged'),
        (damaged(dict(a=[1])), 'nothing clear of a'),
        (damaged(dict(a=F32 | dict(dtype='F8_E4M3'))), 'F8_E4M3.*quantised'),
        (damaged(dict(a=F32 | dict(dtype=['F32']))), 'nothing clear'),
        (damaged(dict(a=F32 | dict(shape=[-10]))), 'a shape or place that is none'),
        (damaged(dict(a=F32 | dict(shape=[1.5]))), 'a shape or place that is none'),
        (damaged(dict(a=F32 | dict(shape=7))), 'nothing clear'),
        (damaged(dict(a=F32 | dict(shape=[1 << 62, 1 << 62]))), 'does not fit'),
        (damaged(dict(a=F32 | dict(data_offsets=[-40, 0]))), 'a shape or place that is none'),
        (damaged(dict(a=F32 | dict(data_offsets=[980, 1020]))), 'cut short'),
        (damaged(dict(a=F32, b=F32 | dict(data_offsets=[20, 60]))), 'overlap'),
    ],
)
def test_a_damaged_or_hostile_file_is_refused(tmp_path, content, match):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')
    (source / safetensors.SINGLE).write_bytes(content)
    refused(tmp_path, source, match)


def test_an_index_that_nests_too_deep_is_refused(tmp_path):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')
    (source / safetensors.INDEX).write_text('[' * 100_000)
    refused(tmp_path, source, 'damaged')


@pytest.mark.parametrize('name', ['../outside.safetensors', '/etc/hostname', 'a\\b', 7])
def test_an_index_may_not_lead_out_of_its_folder(tmp_path, name):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')
    index = dict(weight_map={'shared.weight': name})
    (source / safetensors.INDEX).write_text(json.dumps(index))
    refused(tmp_path, source, 'not a file of its own folder')


def test_a_model_that_they_do_not_have_stays_with_mtpt(tmp_path):
    for changes in (
        dict(positions='rope', K=6),
        dict(decoder_attention=dict(kv_heads=1)),
        dict(moe=MOE | dict(top_k=2)),
        dict(moe=MOE | dict(encoder=(0, 1, 3))),
        dict(moe=MOE | dict(shared=1)),
    ):
        cfg = config('t5', **changes)
        with pytest.raises(UserError, match='Hugging Face has no'):
            hugging_face.config_from(cfg, {})


# Layers of a stack, how many of them are asked to be sparse, and which then are (counted from 0).
SPARSE = [(8, 2, (1, 5)), (4, 4, (0, 1, 2, 3)), (12, 15, ()), (6, 0, (1,)), (5, 2, (1, 3))]


@pytest.mark.parametrize('layers, wanted, sparse', SPARSE)
def test_which_layers_of_a_switch_model_are_sparse(layers, wanted, sparse):
    cfg = config('switch')
    told = hugging_face.config_from(cfg, {})
    told |= dict(num_layers=layers, num_sparse_encoder_layers=wanted)
    assert hugging_face.model_config(told, tied=True).moe.encoder == sparse
    again = hugging_face.config_from(hugging_face.model_config(told, tied=True), {})
    assert hugging_face.model_config(again, tied=True).moe.encoder == sparse


@pytest.mark.parametrize('layers, wanted, sparse', SPARSE)
def test_the_live_library_has_the_same_sparse_layers(layers, wanted, sparse):
    library = pytest.importorskip('transformers')
    pytest.importorskip('torch')
    told = hugging_face.config_from(config('switch'), {})
    told |= dict(num_layers=layers, num_sparse_encoder_layers=wanted)
    stack = library.SwitchTransformersEncoderModel(library.SwitchTransformersConfig(**told)).encoder
    assert tuple(i for i, block in enumerate(stack.block) if block.is_sparse) == sparse


def test_nothing_is_overwritten(tmp_path):
    source, _, _ = write_folder(tmp_path / 'theirs', 't5')
    (tmp_path / 'ours').mkdir()
    (tmp_path / 'ours' / 'kept').write_text('kept')
    refused(tmp_path, source, 'is there already')
    assert (tmp_path / 'ours' / 'kept').read_text() == 'kept'
    with pytest.raises(UserError, match='none of what can be converted'):
        convert(tmp_path / 'ours', tmp_path / 'new')
    with pytest.raises(UserError, match='no folder'):
        convert(tmp_path / 'nowhere', tmp_path / 'new')


# --- T5X ---


def write_t5x(folder, cfg, scanned=False, joined=True, small=False):
    """A checkpoint as T5X lays it out: msgpack, and a gzipped zarr folder for each large array."""
    rng, wanted, arrays = np.random.default_rng(0), {}, {}
    for p in names.places(cfg):
        x = rng.normal(size=p.shape).astype(np.float32)
        wanted.setdefault(p.path, np.zeros(names.shapes(cfg)[p.path], np.float32))[p.index] = x
        if p.inner.endswith('relative_bias'):
            x = x.T
        elif joined and p.inputs and p.inner.startswith(('attention', 'cross')):
            x = x.reshape(int(np.prod(p.shape[: p.inputs])), -1)
        name, index = names.t5x(cfg, p, scanned)
        arrays.setdefault(name, []).append((index, x))
    target = {}
    for name, parts in arrays.items():
        x = parts[0][1]
        if parts[0][0]:
            axis = 1 if scanned else 0
            x = np.stack([x for _, x in sorted(parts, key=lambda part: part[0][-1])], axis)
        target[name] = x if small or x.ndim < 2 else stored(folder, f'target.{name}', x)
    state = dict(target=trees.unflatten(target), state=dict(step=np.int32(7)))
    folder.mkdir(exist_ok=True)
    whole = flax.serialization.msgpack_serialize(dict(version=3, optimizer=state))
    (folder / 'checkpoint').write_bytes(whole)
    return wanted


def stored(folder, name, x):
    place = name.replace('/', '.')
    chunks = [max(1, n // 2) for n in x.shape]
    told = dict(
        driver='zarr',
        dtype='float32',
        kvstore=dict(driver='file', path=place),
        metadata=dict(shape=list(x.shape), chunks=chunks, compressor=dict(id='gzip')),
    )
    here = told | dict(kvstore=dict(driver='file', path=f'{folder / place}/'))
    ts.open(here, create=True).result().write(x).result()
    return told


@pytest.mark.parametrize(
    'kind, how',
    [
        ('t5_1_1', dict(scanned=False)),
        ('t5_1_1', dict(scanned=True, joined=False)),
        ('t5', dict(small=True)),
        ('switch', dict(joined=False)),
    ],
)
def test_a_checkpoint_of_t5x_is_read(tmp_path, kind, how):
    cfg = config(kind)
    wanted = write_t5x(tmp_path / 'checkpoint_7', cfg, **how)
    mlp = 'geglu' if cfg.mlp == 'geglu' else None
    convert(tmp_path / 'checkpoint_7', tmp_path / 'ours', vocabulary='bytes', mlp=mlp)
    held = trees.flatten(Checkpoints(tmp_path / 'ours', read_only=True).load_params())
    assert held.keys() == wanted.keys()
    for path, x in held.items():
        np.testing.assert_array_equal(x, wanted[path], err_msg=path)
    made = run.record.run_of(tmp_path / 'ours').model
    for letter in 'VDHKF':
        assert getattr(made, letter) == getattr(cfg, letter)
    assert (made.mlp, made.tied, made.moe.E) == (cfg.mlp, cfg.tied, cfg.moe.E)


def test_what_a_checkpoint_of_t5x_does_not_tell_is_asked_for(tmp_path):
    write_t5x(tmp_path / 'checkpoint_7', config('t5_1_1'))
    source = tmp_path / 'checkpoint_7'
    refused(tmp_path, source, '--vocabulary=FILE')
    refused(tmp_path, source, '--mlp=geglu', vocabulary='bytes')
    refused(tmp_path, source, '--step=3 means nothing', vocabulary='bytes', step=3)
    refused(tmp_path, source, 'not gated', vocabulary='bytes', mlp='relu')


def test_a_damaged_or_hostile_checkpoint_of_t5x_is_refused(tmp_path):
    source = tmp_path / 'checkpoint_7'
    write_t5x(source, config('t5_1_1'))
    told = flax.serialization.msgpack_restore((source / 'checkpoint').read_bytes())
    flags = dict(vocabulary='bytes', mlp='geglu')

    def rewritten(change):
        tree = json.loads(json.dumps(told, default=lambda x: None))
        tree['optimizer']['target'] = flax.serialization.msgpack_restore(
            (source / 'whole').read_bytes()
        )['optimizer']['target']
        change(tree['optimizer']['target'])
        (source / 'checkpoint').write_bytes(flax.serialization.msgpack_serialize(tree))

    (source / 'whole').write_bytes((source / 'checkpoint').read_bytes())
    rewritten(lambda t: t['encoder']['layers_1']['attention'].pop('query'))
    refused(tmp_path, source, 'encoder/layers_1/attention/query/kernel.*missing', **flags)
    embedding = dict(driver='zarr', kvstore=dict(driver='file', path='../../secret'))
    rewritten(lambda t: t['token_embedder'].update(embedding=embedding))
    refused(tmp_path, source, 'outside of the checkpoint', **flags)
    embedding = dict(driver='zarr', kvstore=dict(driver='file', path='nothing'))
    rewritten(lambda t: t['token_embedder'].update(embedding=embedding))
    refused(tmp_path, source, 'token_embedder/embedding cannot be read', **flags)
    (source / 'checkpoint').write_bytes(b'model_checkpoint_path: "model.ckpt-1"')
    refused(tmp_path, source, 'no checkpoint of T5X', **flags)


# --- the live library ---


@pytest.mark.parametrize('kind', KINDS)
def test_what_the_live_library_saves_converts_and_what_we_write_it_loads(tmp_path, kind):
    torch = pytest.importorskip('torch')
    from test_parity import live_model

    cfg = config(kind)
    model = live_model(kind, cfg)
    with torch.no_grad():
        rng = np.random.default_rng(0)
        for x in model.parameters():
            x.copy_(torch.from_numpy(rng.normal(size=x.shape) * 0.3))
    model.save_pretrained(tmp_path / 'theirs', max_shard_size='20KB')
    convert(tmp_path / 'theirs', tmp_path / 'ours', vocabulary='bytes')
    convert(tmp_path / 'ours', tmp_path / 'back')
    same(content(tmp_path / 'theirs'), content(tmp_path / 'back'))
    again = type(model).from_pretrained(tmp_path / 'back').eval()
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        a, b = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (model, again))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_the_live_tokenizers_give_our_ids(tmp_path, pieces):
    transformers = pytest.importorskip('transformers')
    texts = ['the red house', 'number two and <extra_id_0> blue', '<extra_id_99> old']
    for name in ('plain.model', 'bytes'):
        vocabulary = open_vocabulary('bytes' if name == 'bytes' else pieces / name)
        folder = tmp_path / name
        folder.mkdir()
        tokenizers.write_tokenizer(folder, vocabulary, vocabulary.padded_size)
        (folder / 'config.json').write_text('{"model_type": "t5"}')
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        for i in range(SENTINELS if name != 'bytes' else 0):
            assert theirs.convert_tokens_to_ids(f'<extra_id_{i}>') == vocabulary.sentinel(i)
        for i in range(vocabulary.pieces if name != 'bytes' else 0):
            assert theirs.convert_ids_to_tokens(i) == vocabulary.name(i)
        for text in texts if name != 'bytes' else texts[:1]:
            ours = vocabulary.encode(text, specials=True) + [vocabulary.eos]
            assert theirs(text)['input_ids'] == ours, text
