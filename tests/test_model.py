import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtpt import trees
from mtpt.config import UserError
from mtpt.mesh import AXES, act, make_mesh, rows, weight
from mtpt.model.blocks import Memory
from mtpt.model.config import SIZES, ModelConfig, resolve
from mtpt.model.decode import log_probs
from mtpt.model.functional import apply, decode, dims, encode, init, module
from mtpt.model.layers import dropout
from mtpt.model.parts import REMAT
from mtpt.model.positions import bucket, relative_bias, same_segment
from mtpt.model.task_routing import of_tokens

# Laws are about numbers, not speed: half of the time to compile.
jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))

V = 96
CFG = resolve(ModelConfig(size='micro', encoder_layers=2, decoder_layers=2, tied=False), V)


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


@pytest.fixture(scope='module')
def params(mesh):
    return jit(partial(init, CFG))(jax.random.key(0))


@pytest.fixture(scope='module')
def forward(mesh):
    return jit(lambda params, batch: apply(CFG, params, batch)[0])


def rows_of(pairs, S, T, packed):
    """Rows for (encoder ids, decoder ids) pairs: all in one row, or one row each."""
    B = 1 if packed else len(pairs)
    names = (
        ('encoder_input_tokens', 'encoder_segment_ids'),
        (
            'decoder_input_tokens',
            'decoder_segment_ids',
        ),
    )
    batch = {
        name: np.zeros((B, S if 'encoder' in name else T), np.int32) for name in sum(names, ())
    }
    used = np.zeros((B, 2), int)
    for i, pair in enumerate(pairs):
        row = 0 if packed else i
        for side, ids in enumerate(pair):
            start = used[row, side]
            place = slice(start, start + len(ids))
            batch[names[side][0]][row, place] = ids
            batch[names[side][1]][row, place] = i + 1 if packed else 1
            used[row, side] += len(ids)
    return batch


def draw(rng, *lengths):
    return [rng.integers(3, V, n).tolist() for n in lengths]


def test_a_packed_row_equals_separate_rows(params, forward):
    rng = np.random.default_rng(0)
    pairs = [draw(rng, 5, 3), draw(rng, 4, 4), draw(rng, 7, 2)]
    packed = forward(params, rows_of(pairs, 20, 12, packed=True))[0]
    separate = forward(params, rows_of(pairs, 20, 12, packed=False))
    start = 0
    for row, (_, targets) in enumerate(pairs):
        n = len(targets)
        np.testing.assert_allclose(packed[start : start + n], separate[row, :n], atol=2e-5)
        start += n


def test_padding_changes_nothing(params, forward):
    pairs = [draw(np.random.default_rng(1), 6, 4)]
    tight = forward(params, rows_of(pairs, 6, 4, packed=False))
    batch = rows_of(pairs, 11, 9, packed=False)
    batch['encoder_input_tokens'][0, 6:] = 7
    batch['decoder_input_tokens'][0, 4:] = 8
    np.testing.assert_allclose(tight[0], forward(params, batch)[0, :4], atol=2e-5)


def test_nothing_flows_from_the_future(params):
    x_BSD, y_BTD = map(rows, jax.random.normal(jax.random.key(0), (2, 1, 8, CFG.D)))
    one_BT = rows(jnp.ones((1, 8), jnp.int32))

    def seen_at(y_BTD, t):
        decoder = module(CFG, params).decoder
        memory = Memory(x_BSD, same_segment(one_BT, one_BT))
        z_BTD, _ = decoder(y_BTD, decoder.view(one_BT, of_tokens(one_BT, None)), memory)
        return jnp.sum(z_BTD * (jnp.arange(8) == t)[:, None] * jnp.arange(CFG.D))

    flows_BTD = np.abs(jit(jax.grad(seen_at))(y_BTD, 3))
    assert flows_BTD[0, :4].max(-1).min() > 0
    assert flows_BTD[0, 4:].max() == 0


def test_decode_after_encode_is_apply(params, forward):
    batch = rows_of([draw(np.random.default_rng(3), 6, 4)], 8, 5, packed=False)
    tokens, segments = batch['encoder_input_tokens'], batch['encoder_segment_ids']
    encoded = jit(partial(encode, CFG))(params, tokens, segments)
    logits = jit(partial(decode, CFG))(
        params, encoded, batch['decoder_input_tokens'], batch['decoder_segment_ids']
    )
    np.testing.assert_allclose(logits, forward(params, batch), atol=1e-5)


@pytest.mark.parametrize('tied', [False, True])
def test_the_first_loss_is_that_of_guessing_plus_half_the_variance_of_the_logits(tied):
    cfg = resolve(ModelConfig(size='tiny', tied=tied), 32128)
    rng = np.random.default_rng(0)
    batch = rows_of([rng.integers(3, cfg.V, (2, 32)) for _ in range(2)], 32, 32, packed=False)

    def first(key):
        logits_BTV, _ = apply(cfg, init(cfg, key), batch)
        targets_BT = rng.integers(3, cfg.V, (2, 32))
        return -log_probs(logits_BTV, targets_BT).mean(), logits_BTV.var()

    loss, variance = jit(first)(jax.random.key(0))
    assert 0.5 < variance < 2
    assert abs(loss - math.log(cfg.V) - variance / 2) < 0.2
    assert 10.4 < loss < 11.2


def test_initial_weights_have_the_deviations_of_t5(params):
    leaves, letters = trees.flatten(params), trees.flatten(dims(CFG))
    assert leaves.keys() == letters.keys()
    D, H, K, F = CFG.D, CFG.H, CFG.K, CFG.F
    expected = dict(q=(D * K) ** -0.5, k=D**-0.5, v=D**-0.5, o=(H * K) ** -0.5)
    expected |= dict(gate=D**-0.5, up=D**-0.5, down=F**-0.5, token_embedding=1.0, kernel=D**-0.5)
    sizes = CFG.letters | dict(N=2)
    for path, x in leaves.items():
        assert x.dtype == jnp.float32
        assert x.shape == tuple(sizes[d] for d in letters[path]), path
        if (name := path.split('/')[-1]) in expected:
            assert abs(x.std() / expected[name] - 1) < 0.1, path
        elif name == 'scale':
            assert (x == 1).all()
    table = leaves['encoder/relative_bias']
    assert np.abs(table).max() <= math.sqrt(6 / (32 + H)) < 1.2 * np.abs(table).max()
    assert letters['decoder/layers/cross/q'] == 'NDHK' and letters['logits/kernel'] == 'DV'


def test_layers_of_a_stack_start_different(params):
    for path, x in trees.flatten(params['encoder']['layers']).items():
        assert path.endswith('scale') or not np.array_equal(x[0], x[1])


def test_the_bias_by_shifted_rows_is_the_table_by_distance():
    T, S = 40, 300
    table_UH = np.random.default_rng(0).normal(size=(CFG.buckets, CFG.H)).astype(np.float32)
    for both_ways in (True, False):
        shifted = relative_bias(CFG, jnp.asarray(table_UH), T, S, both_ways)
        distance_TS = np.arange(S)[None] - np.arange(T)[:, None]
        buckets_TS = bucket(distance_TS, both_ways, CFG.buckets, CFG.max_distance)
        np.testing.assert_allclose(shifted[0], np.moveaxis(table_UH[buckets_TS], -1, 0))


def test_buckets_are_exact_near_by_and_end_at_the_greatest_distance():
    one_way = bucket(-np.arange(300), False, 32, 128)
    np.testing.assert_array_equal(one_way[:17], np.arange(17))
    assert (np.diff(one_way) >= 0).all() and one_way[112] == 30 and (one_way[113:] == 31).all()
    assert (bucket(np.arange(5), False, 32, 128) == 0).all()
    both = bucket(np.array([-200, -3, 0, 3, 200]), True, 32, 128)
    np.testing.assert_array_equal(both, [15, 3, 0, 19, 31])


def test_dropout_needs_a_key_and_spares_no_position_of_a_feature(params):
    x_BTD = jnp.ones((4, 6, 1000))
    assert dropout(x_BTD, 'BTD', 0.5, None) is x_BTD
    y_BTD = dropout(x_BTD, 'BTD', 0.25, jax.random.key(0))
    assert set(np.unique(y_BTD)) == {0, np.float32(1 / 0.75)}
    assert (np.asarray(y_BTD) == np.asarray(y_BTD)[:, :1]).all()
    assert abs((y_BTD == 0).mean() - 0.25) < 0.03
    cfg = dataclasses.replace(CFG, dropout=0.3)
    batch = rows_of([draw(np.random.default_rng(3), 6, 4)], 8, 5, packed=False)
    run = jit(lambda key: apply(cfg, params, batch, key)[0])
    first, again, other = [run(jax.random.key(seed)) for seed in (0, 0, 1)]
    assert (first == again).all() and not np.allclose(first, other)


def test_what_is_recomputed_changes_no_gradient(params):
    tokens_BS = np.random.default_rng(4).integers(3, V, (2, 8))
    results = []
    for policy in REMAT:
        cfg = dataclasses.replace(CFG, remat=policy)

        def energy(params, cfg=cfg):
            return jnp.mean(encode(cfg, params, tokens_BS, np.ones_like(tokens_BS)).x_BSD ** 3)

        results.append(jit(jax.grad(energy))(params))
    for grads in results[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), grads, results[0])


def test_bfloat16_computes_about_the_same_and_gives_float32_logits(params, forward):
    batch = rows_of([draw(np.random.default_rng(5), 6, 4)], 8, 5, packed=False)
    cfg = dataclasses.replace(CFG, dtype='bfloat16')
    low, high = jit(lambda p: apply(cfg, p, batch)[0])(params), forward(params, batch)
    assert low.dtype == jnp.float32
    assert 0 < np.abs(low - high).max() < 0.2


@pytest.mark.parametrize(
    'size, parameters',
    [
        ('small', 76_961_152),
        ('base', 247_577_856),
        ('large', 783_150_080),
        ('xl', 2_849_757_184),
        ('xxl', 11_135_332_352),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(size, parameters):
    cfg = resolve(ModelConfig(size=size), 32128)
    shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
    assert trees.count(shapes) == parameters


def test_every_large_size_type_checks_on_a_machine_that_is_not_there():
    for size, axes in dict(base=(2, 8, 1, 4), large=(4, 16, 1, 4), xxl=(1, 64, 1, 4)).items():
        cfg = resolve(ModelConfig(size=size, dtype='bfloat16', dropout=0.1), 32128)
        explicit = (jax.sharding.AxisType.Explicit,) * 4
        mesh = jax.sharding.AbstractMesh(axes, AXES, axis_types=explicit)

        def step(params, batch, cfg=cfg):
            def loss(params):
                logits_BTV, _ = apply(cfg, params, batch, jax.random.key(0))
                return -log_probs(logits_BTV, batch['decoder_input_tokens']).mean()

            return jax.value_and_grad(loss)(params)

        batch = rows_of([([3], [4])], 512, 128, packed=False)
        batch = {
            name: jax.ShapeDtypeStruct(
                (256, x.shape[1]), jnp.int32, sharding=jax.NamedSharding(mesh, act('BT'))
            )
            for name, x in batch.items()
        }
        with unset_mesh(), jax.sharding.use_abstract_mesh(mesh):
            params = jax.eval_shape(lambda cfg=cfg: init(cfg, jax.random.key(0)))
            _, grads = jax.eval_shape(step, params, batch)
        letters = trees.flatten(dims(cfg))
        for path, grad in trees.flatten(grads).items():
            assert grad.sharding.spec == weight(letters[path]), (size, path)


def unset_mesh():
    return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


def test_a_size_gives_the_letters_and_a_letter_overrides_it():
    cfg = resolve(ModelConfig(size='base', F=100, V=7), 32128)
    assert (cfg.D, cfg.H, cfg.F, cfg.V, cfg.tied) == (768, 12, 100, 7, False)
    assert resolve(cfg) == cfg
    assert resolve(ModelConfig(size='mini'), 64).tied
    assert not resolve(ModelConfig(size='mini', tied=False), 64).tied
    assert all(resolve(ModelConfig(size=size), 64).encoder_layers for size in SIZES)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(size='bsae'), "no model size 'bsae'; did you mean 'base'"),
        (dict(dtype='float16'), "'float16' overflows in T5; use 'bfloat16' or 'float32'"),
        (dict(dtype='bfloat61'), "no compute dtype 'bfloat61'; did you mean 'bfloat16'"),
        (dict(remat='dost'), "no remat policy 'dost'; did you mean 'dots'"),
        (dict(V=-1), 'model.V=-1 must be at least 1'),
        (dict(dropout=1.0), 'model.dropout=1.0 must be at least 0 and below 1'),
        (dict(buckets=7), 'model.buckets=7 must be a multiple of 4'),
        (dict(max_distance=16), 'model.max_distance=16 must be above half of model.buckets=32'),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_a_sentence(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        resolve(ModelConfig(**changes), 64)


def test_without_a_mesh_the_model_says_what_to_do():
    with unset_mesh(), pytest.raises(RuntimeError, match='no mesh is set'):
        init(CFG, jax.random.key(0))
