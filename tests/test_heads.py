"""The laws of heads: what they read, what they are taught, and what that moves."""

import dataclasses
import json
import re
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import tiny

from mtpt import run as runs
from mtpt import trees
from mtpt.config import UserError
from mtpt.data.labels import Labels, word_starts
from mtpt.evaluate.heads import answer, answering, told
from mtpt.evaluate.run import EvaluateConfig, evaluate
from mtpt.mesh import MeshConfig, make_mesh
from mtpt.model import functional, heads
from mtpt.model.config import HeadConfig, ModelConfig, resolve
from mtpt.vocabulary import open_vocabulary

jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))

V = 64
QUICK = EvaluateConfig(bootstrap=20, empty_input=False)
KINDS = (
    HeadConfig('topic', labels=('a', 'b', 'c')),
    HeadConfig('tags', kind='multi_label', labels=('x', 'y', 'z')),
    HeadConfig('words', kind='token_labels', labels=('o', 'p'), depth=1),
    HeadConfig('near', kind='contrastive', pooling='attention'),
)
CFG = resolve(
    ModelConfig(size='micro', kind='encoder', encoder_layers=2, buckets=8, heads=KINDS), V
)
COLUMNS = {}
for head in KINDS:
    first = sum(h.columns for h in KINDS[: KINDS.index(head)])
    COLUMNS[head.name] = slice(first, first + head.columns)


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


@pytest.fixture(scope='module')
def params(mesh):
    return jit(partial(functional.init, CFG))(jax.random.key(0))


@pytest.fixture(scope='module')
def apply(mesh):
    return jit(lambda params, batch: functional.apply(CFG, params, batch)[1])


@pytest.fixture(scope='module')
def tell(mesh):
    return jit(partial(functional.told, CFG, segments=3))


def labelled(seed=0, B=8, S=18, T=9, G=3):
    """Rows of two or three segments with some padding, and labels for all heads."""
    rng = np.random.default_rng(seed)
    segments_S = np.repeat([1, 2, 3, 0], [6, 5, 4, S - 15])
    segments_T = np.repeat([1, 2, 3, 0], [3, 2, 3, T - 8])
    there_BG = np.arange(1, G + 1) <= rng.integers(2, 4, (B, 1))
    batch = dict(segment_task_ids=there_BG * rng.integers(1, 3, (B, G)))
    sides = dict(encoder=segments_S, decoder=segments_T)
    for side, segments in sides.items():
        kept = np.where(segments <= there_BG.sum(1, keepdims=True), segments, 0)
        batch[f'{side}_segment_ids'] = kept
        for name in ('input', 'target') if side == 'decoder' else ('input',):
            batch[f'{side}_{name}_tokens'] = rng.integers(3, V, kept.shape) * (kept > 0)
    batch['decoder_loss_weights'] = batch['decoder_segment_ids'] > 0
    columns = [rng.integers(0, 2, (B, G, h.columns)) for h in KINDS]
    columns[3] = rng.integers(0, 1 << 30, (B, G, 1))
    batch['segment_labels'] = np.where(there_BG[..., None], np.concatenate(columns, -1), -1)
    told_BS1 = (batch['encoder_segment_ids'] > 0)[..., None] & (rng.random((B, S, 1)) < 0.7)
    batch['token_labels'] = np.where(told_BS1, rng.integers(0, 2, (B, S, 1)), -1)
    return {name: x.astype(np.int32) for name, x in batch.items()}


def apart(batch):
    """The same segments, one a row; rows that are left over are empty."""
    B, G = batch['segment_task_ids'].shape
    out = {name: np.zeros((B * G, *x.shape[1:]), np.int32) for name, x in batch.items()}
    out['segment_labels'] -= 1
    out['token_labels'] -= 1
    for row in range(B):
        for g in range(G):
            new = row * G + g
            for side in ('encoder', 'decoder'):
                mine = batch[f'{side}_segment_ids'][row] == g + 1
                for name, x in batch.items():
                    words = name == 'token_labels' and side == 'encoder'
                    if name.startswith(side) or words:
                        value = 1 if name.endswith('segment_ids') else x[row, mine]
                        out[name][new, : mine.sum()] = value
            out['segment_task_ids'][new, 0] = batch['segment_task_ids'][row, g]
            out['segment_labels'][new, 0] = batch['segment_labels'][row, g]
    return out


def test_packed_rows_teach_and_tell_the_same_as_separate_rows(params, apply, tell):
    batch = labelled()
    alone = apart(batch)
    one, other = apply(params, batch), apply(params, alone)
    assert {f'loss/heads/{h.name}' for h in KINDS} <= one.keys()
    for name in one:
        if name != 'segments':
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, err_msg=name)
    packed, separate = (
        jax.device_get(tell(params, b['encoder_input_tokens'], b['encoder_segment_ids']))
        for b in (batch, alone)
    )
    there_BG = batch['segment_task_ids'] > 0
    for name in ('topic', 'tags', 'near'):
        rows = separate[name][:, 0].reshape(*there_BG.shape, -1)
        np.testing.assert_allclose(packed[name][there_BG], rows[there_BG], atol=2e-5)
    lengths = (batch['encoder_segment_ids'] == 1).sum(1)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(
            packed['words'][row, :n], separate['words'][3 * row, :n], atol=2e-5
        )


def test_padding_changes_nothing(params, apply):
    batch = labelled(1)
    wide = {
        name: np.pad(x, [(0, 0), (0, 7)]) if x.ndim == 2 and x.shape[1] != 3 else x
        for name, x in batch.items()
    }
    wide['token_labels'] = np.pad(batch['token_labels'], [(0, 0), (0, 7), (0, 0)])
    wide['encoder_input_tokens'] = np.where(
        wide['encoder_segment_ids'] == 0, 9, wide['encoder_input_tokens']
    )
    one, other = apply(params, batch), apply(params, wide)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_attention_pooling_with_a_query_of_zeros_is_mean_pooling(mesh):
    rng = np.random.default_rng(0)
    x_BSD = rng.normal(size=(2, 6, CFG.D)).astype(np.float32)
    segments_BS = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    pool = heads.Attention(CFG, heads.nnx.Rngs(params=0))
    away, _ = pool(x_BSD, segments_BS, 2)
    pool.query[...] = 0 * pool.query[...]
    at_zero, _ = pool(x_BSD, segments_BS, 2)
    mean, _ = heads.Mean(CFG, None)(x_BSD, segments_BS, 2)
    np.testing.assert_allclose(at_zero, mean, atol=1e-6)
    assert np.abs(away - mean)[0].max() > 1e-3
    np.testing.assert_allclose(mean[0, 1, 0], x_BSD[0, 2:5].mean(0), atol=1e-6)
    np.testing.assert_array_equal(mean[1, 1], 0)  # no such segment


def in_float64(inputs, targets, text, group, temperature):
    """Multiple negatives by its formula, one pair after the other."""
    flat = [np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in (inputs, targets)]
    text, group = text.reshape(-1), group.reshape(-1)
    losses, right = [], []
    for i in np.flatnonzero(text >= 0):
        js = [
            j
            for j in np.flatnonzero((text >= 0) & (group == group[i]))
            if j == i or text[j] != text[i]
        ]
        scores = flat[1][js] @ flat[0][i] / temperature
        mine = scores[js.index(i)]
        losses.append(np.log(np.exp(scores).sum()) - mine)
        right.append(mine == scores.max())
    return np.array(losses), np.array(right)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def pairs(seed=0, B=8, G=3, D=8):
    rng = np.random.default_rng(seed)
    inputs, targets = unit(rng, B, G, D), unit(rng, B, G, D)
    text = rng.integers(0, 9, (B, G)) - (rng.random((B, G)) < 0.3) * 100
    return inputs, targets, text.astype(np.int32), rng.integers(0, 2, (B, G)).astype(np.int32)


@pytest.mark.parametrize(
    'axes', [MeshConfig(), MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2)]
)
def test_multiple_negatives_are_their_formula_on_one_device_and_on_eight(axes):
    inputs, targets, text, group = pairs()
    wanted, right = in_float64(inputs, targets, text, group, 0.05)
    with jax.set_mesh(make_mesh(axes)):
        arrays = [functional.rows(x) for x in (inputs, targets, text, group)]
        found, hits = jit(partial(heads.multiple_negatives, temperature=0.05))(*arrays)
    np.testing.assert_allclose(np.asarray(found)[text >= 0], wanted, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(np.asarray(hits)[text >= 0], right)


def test_multiple_negatives_are_the_cross_entropy_of_the_similarities_as_pytorch_has_it():
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(3)
    inputs, targets = unit(rng, 8, 1, 8), unit(rng, 8, 1, 8)
    found, _ = heads.multiple_negatives(
        *map(functional.rows, (inputs, targets)),
        *map(functional.rows, (np.arange(8)[:, None], np.zeros((8, 1), np.int32))),
        0.05,
    )
    similar = torch.tensor(inputs[:, 0]) @ torch.tensor(targets[:, 0]).T / 0.05
    wanted = torch.nn.functional.cross_entropy(similar, torch.arange(8), reduction='none')
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-4, atol=1e-5)


def test_losses_of_labels_are_those_of_pytorch(params, apply, tell):
    torch = pytest.importorskip('torch')
    batch = labelled(2)
    losses = apply(params, batch)
    logits = tell(params, batch['encoder_input_tokens'], batch['encoder_segment_ids'])
    logits = {name: torch.tensor(np.array(x)) for name, x in logits.items()}
    labels = torch.tensor(batch['segment_labels']).long()
    there = torch.tensor(batch['segment_task_ids'] > 0)
    ce = torch.nn.functional.cross_entropy
    wanted = ce(logits['topic'][there], labels[there][:, COLUMNS['topic']][:, 0])
    np.testing.assert_allclose(losses['loss/heads/topic'], wanted, rtol=1e-4)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        logits['tags'][there], labels[there][:, COLUMNS['tags']].float()
    )
    np.testing.assert_allclose(losses['loss/heads/tags'], wanted, rtol=1e-4)
    words = torch.tensor(batch['token_labels'][..., 0]).long()
    wanted = ce(logits['words'].flatten(0, 1), words.flatten(), ignore_index=-1)
    np.testing.assert_allclose(losses['loss/heads/words'], wanted, rtol=1e-4)


def test_a_head_at_a_depth_moves_nothing_above_it(params):
    def taught(params):
        return functional.apply(CFG, params, labelled())[1]['loss/heads/words']

    low = trees.flatten(jit(jax.grad(taught))(params))
    for path, grad in low.items():
        if path.startswith('encoder/layers'):
            assert np.abs(grad[0]).max() > 0, path
            assert np.abs(grad[1]).max() == 0, path
        elif path.startswith('heads'):
            assert (np.abs(grad).max() > 0) == path.startswith('heads/words/'), path
    assert np.abs(low['encoder/norm/scale']).max() == 0


def laid_out(mesh, x):
    return jax.NamedSharding(mesh, x.sharding.spec)


def objective(params, batch):
    aux = functional.apply(CFG, params, batch)[1]
    return sum(x for name, x in aux.items() if name.startswith('loss/')), aux


@pytest.fixture(scope='module')
def graded(mesh):
    return jit(jax.value_and_grad(objective, has_aux=True))


def test_every_mesh_gives_the_same_losses_and_gradients(params, graded):
    batch, host, results = labelled(), jax.device_get(params), []
    axes = MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)
    for sizes in axes:
        with jax.set_mesh(make_mesh(sizes)):
            fresh = jax.eval_shape(partial(functional.init, CFG), jax.random.key(0))
            where = jax.tree.map(partial(laid_out, make_mesh(sizes)), fresh)
            here = jax.device_put(host, where)
            (value, _), grads = jax.device_get(graded(here, batch))
            results.append((value, grads))
    for value, grads in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-4), grads, results[0][1])


def test_heads_learn_eight_rows_by_heart(params, graded):
    batch, tx = labelled(5), optax.adam(3e-3)

    @jit
    def moved(params, grads, state):
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(120):
        (_, aux), grads = graded(params, batch)
        params, state = moved(params, grads, state)
    for head in KINDS:
        assert aux[f'heads/{head.name}/accuracy'] == 1, head.name
        assert aux[f'heads/{head.name}/labelled'] == 1


def test_an_encoder_decoder_with_heads_writes_the_same_text(params):
    small = dict(encoder_layers=1, heads=KINDS[:1])
    cfg = dataclasses.replace(CFG, kind='encoder_decoder', **small)
    plain = dataclasses.replace(cfg, heads=())
    batch = labelled()
    full = jit(partial(functional.init, cfg))(jax.random.key(0))
    logits, aux = jit(partial(functional.apply, cfg))(full, batch)
    bare = {name: x for name, x in full.items() if name != 'heads'}
    expected, nothing = jit(partial(functional.apply, plain))(bare, batch)
    np.testing.assert_array_equal(logits, expected)
    assert not nothing and 'segments' not in aux and 'heads/topic/accuracy' in aux


MANIFEST = SimpleNamespace(
    names=['padding', 'topics', 'tags', 'ner', 'other'],
    tasks=[
        SimpleNamespace(name=name, id=i, family=family)
        for i, (name, family) in enumerate(
            [('topics', 'classes'), ('tags', 'sets'), ('ner', 'words'), ('other', 'rest')], 1
        )
    ],
)


def batch_of(vocabulary, examples, G=4):
    """One row that packs (task, inputs, targets)."""
    ids = [[vocabulary.encode(t) + [vocabulary.eos] for t in texts] for _, *texts in examples]
    batch = {}
    for side, name in enumerate(('encoder_input', 'decoder_target')):
        parts = [pair[side] for pair in ids] + [[0, 0]]
        batch[f'{name}_tokens'] = np.concatenate(parts)[None].astype(np.int32)
        numbers = [*range(1, len(ids) + 1), 0]
        segments = np.repeat(numbers, [len(part) for part in parts])[None].astype(np.int32)
        batch[f'{name.split("_")[0]}_segment_ids'] = segments
    tasks = [task for task, *_ in examples]
    batch['segment_task_ids'] = np.array([tasks + [0] * (G - len(tasks))], np.int32)
    return batch


@pytest.mark.parametrize('kind', ['bytes', 'builtin'])
def test_labels_are_read_off_the_targets(kind):
    vocabulary = open_vocabulary(kind)
    own = (
        HeadConfig('topic', tasks=('topics',), labels=('sport|sports', 'world news')),
        HeadConfig('tags', kind='multi_label', tasks=('sets',), labels=('red', 'big', 'old')),
        HeadConfig('ner', kind='token_labels', tasks=('ner',), labels=('O', 'PER')),
        HeadConfig('near', kind='contrastive', tasks=('t*',)),
    )
    examples = [
        (1, 'who won', 'world news'),
        (2, 'an apple', 'old, red'),
        (3, 'Anna met  Bo', 'PER O PER'),
        (1, 'who lost', 'sports'),
    ]
    batch = batch_of(vocabulary, examples)
    before = {name: x.copy() for name, x in batch.items()}
    out = Labels(own, MANIFEST, vocabulary)(batch)
    for name, x in before.items():
        np.testing.assert_array_equal(out[name], x)
    columns = out['segment_labels'][0]
    assert columns[:, 0].tolist() == [1, -1, -1, 0]
    assert columns[:, 1:4].tolist() == [[-1] * 3, [1, 0, 1], [-1] * 3, [-1] * 3]
    assert columns[:, 4].tolist() == [-1, -1, 0, -1]
    assert (columns[:, 5] >= 0).tolist() == [True, True, False, True]
    words = out['token_labels'][0, :, 0]
    mine = batch['encoder_segment_ids'][0] == 3
    assert words[mine][words[mine] >= 0].tolist() == [1, 0, 1] and (words[~mine] == -1).all()
    starts = np.flatnonzero(words >= 0)
    rest = [vocabulary.decode(batch['encoder_input_tokens'][0, s:]) for s in starts]
    assert [text.split()[0] for text in rest] == ['Anna', 'met', 'Bo']
    unlike = batch_of(vocabulary, [(1, 'x', 'politics'), (2, 'x', 'red, new'), (3, 'a b', 'O')])
    columns = Labels(own, MANIFEST, vocabulary)(unlike)['segment_labels'][0]
    assert columns[0, 0] == -2 and columns[1, 1:4].tolist() == [-2] * 3 and columns[2, 4] == -2
    none = batch_of(vocabulary, [(2, 'x', 'none'), (4, 'x', 'red')])
    columns = Labels(own, MANIFEST, vocabulary)(none)['segment_labels'][0]
    assert columns[0, 1:4].tolist() == [0, 0, 0] and (columns[1] == -1).all()


def test_labels_of_an_accumulated_batch_are_those_of_its_parts():
    vocabulary = open_vocabulary('bytes')
    own = (HeadConfig('topic', tasks=('topics',), labels=('a', 'b')), KINDS[2])
    parts = [batch_of(vocabulary, [(1, 'x y', t), (3, 'x y', 'o p')]) for t in 'ab']
    add = Labels(own, MANIFEST, vocabulary)
    whole = add({name: np.stack([part[name] for part in parts]) for name in parts[0]})
    for i, part in enumerate(parts):
        for name, x in add(part).items():
            np.testing.assert_array_equal(whole[name][i], x)


def test_words_start_after_spaces_in_every_vocabulary():
    for kind in ('bytes', 'builtin'):
        vocabulary = open_vocabulary(kind)
        ids = vocabulary.encode('Zoé  runs, 12 km')
        starts = word_starts(vocabulary, [*ids, vocabulary.eos])
        texts = [vocabulary.decode(ids[a:b]) for a, b in zip(starts, [*starts[1:], None])]
        assert [text.strip() for text in texts] == ['Zoé', 'runs,', '12', 'km']


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(depth=3), "'h' has depth=3, and the encoder has 2 layers; choose 1 to 2, or 0"),
        (dict(kind='clasification'), "no kind of head (of 'h') 'clasification'; did you mean"),
        (dict(pooling='max'), "no pooling (of head 'h') 'max'"),
        (dict(labels=()), "'h' has 0 labels; list the texts of its labels"),
        (dict(labels=('a|b', 'b')), "'h' has 'b' twice among its labels"),
        (dict(name='a/b'), "'a/b' is no name for a head; use letters, digits and _"),
        (dict(temperature=0.1), "'h' is of kind 'classification', which has no temperature"),
        (dict(kind='contrastive'), "'h' is of kind 'contrastive', which has no labels"),
        (dict(kind='token_labels', pooling='mean'), "labels every word, and pooling='mean' makes"),
        (dict(weight=-1.0), "'h' has weight=-1.0, which must be at least 0"),
    ],
)
def test_a_head_that_cannot_be_is_refused_in_a_sentence(changes, words):
    head = dataclasses.replace(HeadConfig('h', labels=('a', 'b')), **changes)
    with pytest.raises(UserError, match=re.escape(words)):
        resolve(dataclasses.replace(CFG, heads=(head,)))


def test_heads_that_do_not_go_with_the_model_or_each_other_are_refused():
    for changes, words in [
        (dict(kind='encoder', heads=()), "model.kind='encoder' gives nothing without heads"),
        (dict(kind='prefix_lm'), "model.heads read an encoder, which model.kind='prefix_lm'"),
        (dict(heads=(KINDS[0], KINDS[0])), "two of model.heads are called 'topic'"),
    ]:
        with pytest.raises(UserError, match=re.escape(words)):
            resolve(dataclasses.replace(CFG, **changes))
    head = dataclasses.replace(KINDS[0], tasks=('topisc',))
    with pytest.raises(UserError, match=r"which no task or family .* did you mean 'topics'"):
        Labels((head,), MANIFEST, open_vocabulary('bytes'))


COLOURS = ['red', 'blue', 'green', 'black', 'white', 'brown', 'pink']
RUN = [
    dict(name='colour', tasks=['copying', 'tiny_unseen', 'tiny_last'], labels=COLOURS, depth=1),
    dict(name='near', kind='contrastive', tasks=['tiny_last']),
]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The folder of a run of an encoder with heads."""
    folder = tmp_path_factory.mktemp('heads')
    changes = dict(data__accumulation=2, data__segments=2)
    path = tiny.write(folder, model__kind='encoder', model__heads=RUN, **changes)
    rows = runs.train(runs.read(str(path)), folder / 'run')
    assert {row['method'] for row in rows} == {'head colour'}
    return folder / 'run'


def test_a_run_of_heads_tells_their_figures_and_the_loss_of_each_task(finished):
    lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
    merged = {name: value for line in lines for name, value in line.items()}
    for head in RUN:
        assert merged[f'heads/{head["name"]}/labelled'] == 1
        assert 0 <= merged[f'heads/{head["name"]}/accuracy'] <= 1
    assert merged['task/tiny_first/loss'] > 0 and merged['valid/task/tiny_last/loss'] > 0
    assert merged['task/tiny_text/tokens'] == 0 and merged['task/tiny_text/examples'] > 0
    losses = sum(merged[f'loss/heads/{head["name"]}'] for head in RUN)
    assert merged['train/objective'] == pytest.approx(losses, rel=1e-5)


def test_heads_answer_exams_and_embed_texts(finished):
    (row,) = runs.evaluate(finished, 'tiny_last', split='test', overrides=['max_examples=8'])[:1]
    assert row['method'] == 'head colour' and set(row['label_shares']) <= set(COLOURS)
    texts = ['First of red blue (3)?', 'black', 'First of red blue (3)?', 'x' * 40]
    embedded = runs.embed(finished, texts)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(embedded[0], embedded[2], atol=1e-6)
    assert np.abs(embedded[0] - embedded[1]).max() > 1e-3
    with pytest.raises(UserError, match="no contrastive head 'naer'; did you mean 'near'"):
        runs.embed(finished, texts, head='naer')
    with pytest.raises(UserError, match='writes no text; ask its heads'):
        runs.generate(finished, ['red?'])


def test_the_choices_of_an_exam_are_ranked_by_their_head_in_its_order():
    vocabulary = open_vocabulary('bytes')
    cfg = resolve(
        ModelConfig(
            size='micro',
            encoder_layers=1,
            heads=(
                HeadConfig('topic', tasks=('t',), labels=('sport|sports', 'news', 'art')),
                HeadConfig('tags', kind='multi_label', tasks=('s',), labels=('red', 'big')),
                HeadConfig('ner', kind='token_labels', tasks=('n',), labels=('O', 'PER')),
            ),
        ),
        vocabulary.padded_size,
    )
    params = jit(partial(functional.init, cfg))(jax.random.key(0))
    inputs = [vocabulary.encode(text) for text in ('a b c', 'd e', 'f')]
    orders = [('news', 'sports'), ('art', 'news', 'sport'), ('sport', 'art')]

    def exam(task, examples):
        about = dict(name=f'{task}.p', task=task, prompt='p', family='f', dataset='d', kind='')
        return SimpleNamespace(metrics=('exact_match',), examples=examples, **about)

    ranked = exam(
        't',
        [
            dict(
                inputs=ids,
                choices=[vocabulary.encode(text) for text in texts],
                choice_texts=list(texts),
                answer=0,
                references=[],
            )
            for ids, texts in zip(inputs, orders)
        ],
    )
    free = dict(choices=None, choice_texts=None, answer=None)
    exams = [
        ranked,
        exam('s', [dict(inputs=ids, references=['big, red'], **free) for ids in inputs]),
        exam('n', [dict(inputs=ids, references=['O PER'], **free) for ids in inputs]),
    ]
    examples = [(one, one.examples, answering(cfg, one, one.examples)) for one in exams]
    assert [head.name for _, _, head in examples] == ['topic', 'tags', 'ner']
    found = answer(cfg, params, examples, [0] * 3, [], vocabulary, 1024)
    logits = [told(cfg, params, inputs, 1024)[i] for i in range(3)]
    place = dict(sport=0, sports=0, news=1, art=2)
    for i, texts in enumerate(orders):
        scores = [logits[i]['topic'][place[text]] for text in texts]
        np.testing.assert_allclose(found[0].scores[i], scores)
        assert found[0].texts[i] == texts[int(np.argmax(scores))]
        said = [name for name, logit in zip(('red', 'big'), logits[i]['tags']) if logit > 0]
        assert found[1].texts[i] == (', '.join(said) or 'none')
        starts = range(0, len(inputs[i]), 2)
        words = [('O', 'PER')[int(np.argmax(logits[i]['ner'][s]))] for s in starts]
        assert found[2].texts[i] == ' '.join(words)
    other = exam('t', [dict(inputs=inputs[0], references=['politics'], **free)])
    assert answering(cfg, other, other.examples) is None
    alone = dataclasses.replace(cfg, kind='encoder')
    with pytest.raises(UserError, match=r"no head can answer exam 't\.p'"):
        answering(alone, other, other.examples)
    assert {row['method'] for row in evaluate(cfg, params, [ranked], vocabulary, QUICK)} == {
        'head topic'
    }
    plain = dataclasses.replace(QUICK, heads=False)
    (row,) = evaluate(cfg, params, [ranked], vocabulary, plain)
    assert row['method'] == 'rank classification'
