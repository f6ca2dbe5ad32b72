"""The laws of the prefix language model: what it sees, where it counts, how it decodes."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtpt import run as runs
from mtpt.config import UserError
from mtpt.mesh import AXES, MeshConfig, act, make_mesh, rows
from mtpt.model import functional
from mtpt.model.config import AttentionConfig, ModelConfig, resolve
from mtpt.model.decode import greedy, log_probs
from mtpt.model.prefix_lm import follows, prefix_causal

jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))

V = 64
CFG = resolve(ModelConfig(size='micro', kind='prefix_lm', decoder_layers=2, buckets=8), V)
VARIANTS = dict(
    relative=CFG,
    rope=dataclasses.replace(
        CFG, positions='rope', decoder_attention=AttentionConfig(kv_heads=1, kv_layers=2)
    ),
    none=dataclasses.replace(CFG, positions='none', decoder_layers=1),
)


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


@pytest.fixture(scope='module', params=VARIANTS)
def model(request, mesh):
    """A config and its parameters, with embeddings that attention cannot ignore."""
    cfg = VARIANTS[request.param]
    return cfg, jit(partial(functional.init, cfg))(jax.random.key(0))


@pytest.fixture(scope='module')
def forward(mesh):
    compiled = {cfg: jit(partial(functional.apply, cfg)) for cfg in VARIANTS.values()}
    return lambda cfg, params, batch: compiled[cfg](params, batch)[0]


def rows_of(pairs, S, T, packed):
    """A batch of (inputs, targets): all in one row, or one a row and the other rows empty."""
    shape = len(pairs)
    names = ('encoder_input_tokens', 'encoder_segment_ids')
    batch = {name: np.zeros((shape, S), np.int32) for name in names}
    names = ('decoder_input_tokens', 'decoder_segment_ids')
    batch |= {name: np.zeros((shape, T), np.int32) for name in names}
    used = np.zeros((shape, 2), int)
    for i, (inputs, targets) in enumerate(pairs):
        row, segment = (0, i + 1) if packed else (i, 1)
        for side, (part, ids) in enumerate([('encoder', inputs), ('decoder', [0, *targets[:-1]])]):
            place = slice(used[row, side], used[row, side] + len(ids))
            batch[f'{part}_input_tokens'][row, place] = ids
            batch[f'{part}_segment_ids'][row, place] = segment
            used[row, side] += len(ids)
    return batch


def draw(seed, *lengths):
    rng = np.random.default_rng(seed)
    return [(rng.integers(3, V, s).tolist(), rng.integers(3, V, t).tolist()) for s, t in lengths]


def test_a_packed_row_equals_separate_rows(model, forward):
    cfg, params = model
    pairs = draw(0, (5, 3), (4, 4), (7, 2))
    packed = forward(cfg, params, rows_of(pairs, 20, 12, packed=True))[0]
    separate = forward(cfg, params, rows_of(pairs, 20, 12, packed=False))
    start = 0
    for row, (_, targets) in enumerate(pairs):
        n = len(targets)
        np.testing.assert_allclose(packed[start : start + n], separate[row, :n], atol=2e-5)
        start += n


def test_targets_count_on_from_their_inputs(model):
    cfg, params = model
    pairs = draw(1, (6, 5))
    long = {k: jnp.asarray(v) for k, v in rows_of(pairs, 9, 5, packed=False).items()}
    apply = jit(lambda b: functional.apply(cfg, params, b)[0])
    (inputs, targets), tight = pairs[0], rows_of(pairs, 6, 5, packed=False)
    np.testing.assert_allclose(apply(long), apply(tight), atol=2e-5)
    # By hand: one stack over inputs and targets as one text, with every position in its place.
    tokens_BL = rows(jnp.asarray([[*inputs, 0, *targets[:-1]]]))
    module = functional.module(cfg, params)
    ones_BL = jnp.ones_like(tokens_BL)
    view = module.decoder.view(ones_BL, functional_routing(ones_BL))
    view = view._replace(mask_B1TT=jnp.asarray(prefix_causal(6, 5)))
    x_BLD, _ = jit(lambda x: module.decoder(x, view))(module.embed(tokens_BL))
    np.testing.assert_allclose(module.head(x_BLD)[:, 6:], apply(tight), atol=2e-5)


def functional_routing(segments_BL):
    from mtpt.model.task_routing import of_tokens

    return of_tokens(segments_BL, None)


def test_padding_changes_nothing(model, forward):
    cfg, params = model
    pairs = draw(2, (5, 3), (4, 4), (7, 2))
    batch = rows_of(pairs, 20, 12, packed=True)
    clean = forward(cfg, params, batch)
    for part in ('encoder', 'decoder'):
        tokens, empty = batch[f'{part}_input_tokens'], batch[f'{part}_segment_ids'] == 0
        batch[f'{part}_input_tokens'] = np.where(empty, 7, tokens)
    np.testing.assert_allclose(forward(cfg, params, batch)[0, :9], clean[0, :9], atol=1e-6)


def test_inputs_see_one_another_both_ways_and_targets_do_not():
    expected_LL = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    np.testing.assert_array_equal(prefix_causal(2, 2)[0, 0], expected_LL)
    params = jit(partial(functional.init, CFG))(jax.random.key(0))
    read = jit(lambda ids: functional.encode(CFG, params, ids, jnp.ones_like(ids)).kept[0][0])
    first, other = (np.asarray(read(np.asarray([[5, 6, last]]))) for last in (7, 8))
    moved_NS = np.abs(first - other)[0].max((-1, -2))
    assert (moved_NS[0] > 0).tolist() == [False, False, True]  # keys of the first layer
    assert moved_NS[1].min() > 0  # keys of the second: the last input has reached the first


def test_the_future_of_a_batch_moves_no_earlier_logit_and_a_later_input_moves_all(model, forward):
    cfg, params = model
    batch = rows_of(draw(3, (6, 5)), 6, 5, packed=False)
    clean = forward(cfg, params, batch)
    future = dict(batch, decoder_input_tokens=batch['decoder_input_tokens'].copy())
    future['decoder_input_tokens'][0, 3] += 1
    moved = np.abs(forward(cfg, params, future) - clean)[0].max(-1)
    assert moved[:3].max() == 0 and moved[3:].min() > 0
    later = dict(batch, encoder_input_tokens=batch['encoder_input_tokens'].copy())
    later['encoder_input_tokens'][0, 5] += 1
    assert np.abs(forward(cfg, params, later) - clean)[0].max(-1).min() > 0


def test_decode_after_encode_is_apply_on_packed_rows(model, forward):
    cfg, params = model
    batch = rows_of(draw(4, (5, 3), (4, 4), (7, 2)), 20, 12, packed=True)
    read = jit(partial(functional.encode, cfg))(
        params, batch['encoder_input_tokens'], batch['encoder_segment_ids']
    )
    logits_BTV = jit(partial(functional.decode, cfg))(
        params, read, batch['decoder_input_tokens'], batch['decoder_segment_ids']
    )
    whole_BTV = forward(cfg, params, batch)
    np.testing.assert_allclose(logits_BTV[0, :9], whole_BTV[0, :9], atol=2e-5)


def test_a_cached_step_equals_the_full_forward(model, forward):
    cfg, params = model
    batch = rows_of(draw(5, (9, 5), (4, 5), (6, 5)), 9, 5, packed=False)
    whole_BTV = forward(cfg, params, batch)
    encode = jit(partial(functional.encode, cfg))
    read = encode(params, batch['encoder_input_tokens'], batch['encoder_segment_ids'])
    cache = jit(lambda p, r: functional.start(cfg, p, r, 5))(params, read)
    step = jit(partial(functional.step, cfg))
    for t in range(5):
        logits_BV, cache = step(params, cache, batch['decoder_input_tokens'][:, t])
        np.testing.assert_allclose(logits_BV, whole_BTV[:, t], atol=2e-5)


def test_greedy_takes_the_likeliest_token_each_time(model):
    cfg, params = model
    inputs = np.asarray([[5, 9, 3, 8, 0, 0], [4, 4, 6, 7, 9, 5]], np.int32)
    out_BT = np.asarray(greedy(cfg, params, inputs, 4))
    for row, ids in enumerate(inputs):
        batch = rows_of([(ids[ids > 0].tolist(), out_BT[row].tolist())], 6, 4, packed=False)
        logits_BTV = jit(lambda b: functional.apply(cfg, params, b)[0])(batch)
        likeliest = np.argmax(logits_BTV[0], -1)
        ended = np.cumsum(out_BT[row] == 1) - (out_BT[row] == 1)
        np.testing.assert_array_equal(out_BT[row], np.where(ended, 0, likeliest))


def test_every_mesh_gives_the_same_loss_gradients_and_answers():
    cfg = dataclasses.replace(CFG, decoder_attention=AttentionConfig(kv_heads=1))
    batch = rows_of(draw(6, *[(6, 4)] * 8), 8, 5, packed=False)
    inputs_BS = batch['encoder_input_tokens']

    def loss(params):
        logits_BTV = functional.apply(cfg, params, batch)[0]
        log_p_BT = log_probs(logits_BTV, jnp.roll(batch['decoder_input_tokens'], -1, 1))
        return -jnp.sum(jnp.where(batch['decoder_segment_ids'] > 0, log_p_BT, 0))

    results = []
    for axes in (MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=4, expert=2)):
        with jax.set_mesh(make_mesh(axes)):
            params = jit(partial(functional.init, cfg))(jax.random.key(0))
            value, grads = jit(jax.value_and_grad(loss))(params)
            answers = greedy(cfg, params, inputs_BS, 4)
            results.append(jax.tree.map(np.asarray, (value, grads, answers)))
    for value, grads, answers in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-4), grads, results[0][1])
        np.testing.assert_array_equal(answers, results[0][2])


def test_it_type_checks_on_a_machine_that_is_not_there():
    cfg = resolve(ModelConfig(size='large', kind='prefix_lm', dtype='bfloat16', dropout=0.1), 32128)
    mesh = jax.sharding.AbstractMesh(
        (4, 16, 1, 4), AXES, axis_types=(jax.sharding.AxisType.Explicit,) * 4
    )
    sharding = jax.NamedSharding(mesh, act('BT'))
    batch = {
        name: jax.ShapeDtypeStruct(
            (256, 512 if 'enc' in name else 128), jnp.int32, sharding=sharding
        )
        for name in rows_of(draw(0, (1, 1)), 1, 1, packed=False)
    }

    def objective(params, batch):
        logits_BTV, _ = functional.apply(cfg, params, batch, jax.random.key(0))
        return -log_probs(logits_BTV, batch['decoder_input_tokens']).mean()

    nowhere = jax.sharding.Mesh(np.empty((), object), ())
    with jax.set_mesh(nowhere), jax.sharding.use_abstract_mesh(mesh):
        params = jax.eval_shape(lambda: functional.init(cfg, jax.random.key(0)))
        grads = jax.eval_shape(jax.grad(objective), params, batch)
    jax.tree.map(lambda g, p: None if g.sharding == p.sharding else 1 / 0, grads, params)


def test_counting_on_is_the_length_of_the_inputs_for_a_row_of_one_segment():
    segments_BS = jnp.asarray([[1, 1, 1, 0, 0], [1, 2, 2, 2, 3]])
    segments_BT = jnp.asarray([[1, 1, 0, 0], [1, 1, 2, 3]])
    after_BT = np.asarray(follows(segments_BT, segments_BS))
    np.testing.assert_array_equal(after_BT[0, :2], [3, 3])
    np.testing.assert_array_equal(after_BT[1], [1, 1, 4 - 2, 5 - 3])


def test_it_trains_is_examined_and_generates(tmp_path):
    settings = runs.read(str(tiny.write(tmp_path, model__kind='prefix_lm')))
    rows = runs.train(settings, tmp_path / 'run')
    assert rows and all(row['low'] <= row['value'] <= row['high'] for row in rows)
    again = runs.evaluate(tmp_path / 'run', 'tiny_last', split='test', overrides=['max_examples=2'])
    assert {row['method'] for row in again} == {'greedy decoding'}
    assert len(runs.generate(tmp_path / 'run', ['First of red blue (3)?'], max_length=3)) == 1


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            dict(cross_attention=AttentionConfig(kv_heads=1)),
            "a part that model.kind='prefix_lm' does not have; set model.decoder_attention",
        ),
        (
            dict(encoder_attention=AttentionConfig(kv_heads=1)),
            "a part that model.kind='prefix_lm' does not have; set model.decoder_attention",
        ),
    ],
)
def test_a_prefix_lm_that_cannot_be_is_refused_in_a_sentence(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        resolve(ModelConfig(kind='prefix_lm', **changes), V)
