"""The laws of large models' memory: what is split, recomputed, moved or rounded changes no result.

B row  S, T positions  D model width  A accumulation  N layers
"""

import dataclasses
import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_mesh import mean_loss as mean_loss_of_text
from test_mesh import packed_batch
from test_optimizer import (
    DIMS,
    RATE,
    adafactor_in_numpy,
    adamw_scale_in_numpy,
    draw,
    steps,
    unstack,
)
from test_optimizer import optimizer as small_optimizer

from mtpt import layout, trees
from mtpt.checkpoint import CheckpointConfig, Checkpoints
from mtpt.config import UserError
from mtpt.data.config import DataConfig
from mtpt.mesh import BATCH_DIMS, MeshConfig, make_mesh, place, weight
from mtpt.model.config import HeadConfig, ModelConfig, MoeConfig, resolve
from mtpt.model.decode import log_probs
from mtpt.model.functional import apply, dims, init
from mtpt.model.layers import check_split
from mtpt.settings import Run
from mtpt.train.moments import rounded, stored
from mtpt.train.optimizer import OptimizerConfig, ScheduleConfig, decays, make_optimizer
from mtpt.train.state import TrainState, abstract_state, new_state, with_optimizer
from mtpt.train.step import make_train_step

V = 64
ONE = MeshConfig()
MIX = MeshConfig(data=2, fsdp=2, tensor=2)
SPARSE = MeshConfig(expert=2, fsdp=2, tensor=2)
KEY = np.uint32(7)
LOSS = dict(z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor='tokens')

# Laws are about numbers, not speed: half of the time to compile.
QUICK = dict(xla_backend_optimization_level=0)
jit = partial(jax.jit, compiler_options=QUICK)

sized = partial(ModelConfig, size='micro', H=4, K=8, encoder_layers=2, decoder_layers=2)
MODELS = dict(
    dense=sized(dropout=0.1),
    sparse=sized(moe=MoeConfig(E=4, top_k=2, capacity=8.0, group=16)),
    prefix_lm=sized(kind='prefix_lm'),
    encoder=sized(
        kind='encoder',
        heads=(
            HeadConfig(name='top', labels=('a', 'b')),
            HeadConfig(name='low', kind='multi_label', labels=('a', 'b'), depth=1),
        ),
    ),
)


def rows():
    """Packed rows with the tasks of their segments and what heads are taught of them."""
    batch = packed_batch(V)
    B = len(batch['encoder_input_tokens'])
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (B, 2, 3))
    return batch | dict(
        segment_task_ids=np.ones((B, 2), np.int32), segment_labels=labels.astype(np.int32)
    )


def objective(cfg, params, batch):
    """The mean loss of the text where there is any, and what layers and heads add."""
    if cfg.kind == 'encoder':
        batch = {n: x for n, x in batch.items() if not n.startswith('decoder_')}
    key = jax.random.key(KEY) if cfg.dropout else None
    logits_BTV, aux = apply(cfg, params, batch, key)
    added = sum(x for name, x in aux.items() if name.startswith('loss/'))
    if logits_BTV is None:
        return added
    real_BT = batch['decoder_segment_ids'] > 0
    loss_BT = -log_probs(logits_BTV, batch['decoder_target_tokens'])
    return added + jnp.sum(jnp.where(real_BT, loss_BT, 0)) / jnp.sum(real_BT)


def graded(cfg, params, sizes):
    """The objective and its gradient on a mesh; params: on the host."""
    mesh, specs = make_mesh(sizes), jax.tree.map(weight, dims(cfg))
    placed = jax.tree.map(lambda x, s: jax.device_put(x, jax.NamedSharding(mesh, s)), params, specs)
    with jax.set_mesh(mesh):
        loss, grads = jit(jax.value_and_grad(partial(objective, cfg)))(placed, place(rows(), mesh))
        for path, grad in trees.flatten(grads).items():
            assert grad.sharding.spec == trees.flatten(placed)[path].sharding.spec, path
    return loss, jax.device_get(grads)


def born(cfg):
    with jax.set_mesh(make_mesh()):
        return jax.device_get(jit(partial(init, cfg))(jax.random.key(0)))


@functools.cache
def reference(kind):
    """A model, weights on the host, and its objective and gradient on one device."""
    cfg = resolve(MODELS[kind], V)
    params = born(cfg)
    return cfg, params, graded(cfg, params, ONE)


def agree(found, wanted):
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=3e-5), found[1], wanted[1])


@pytest.mark.parametrize('kind', MODELS)
def test_rows_split_by_position_give_the_loss_and_gradient_of_whole_ones(kind):
    cfg, params, wanted = reference(kind)
    split = dataclasses.replace(cfg, sequence_split=True)
    agree(graded(split, params, SPARSE if kind == 'sparse' else MIX), wanted)


def test_a_length_that_does_not_divide_is_refused_in_a_sentence():
    cfg = resolve(sized(sequence_split=True), V)
    said = 'data.inputs_length=100 positions do not split over tensor=8, .* a multiple of 8'
    with pytest.raises(UserError, match=said):
        check_split(cfg, 8, {'data.inputs_length': 100})
    check_split(cfg, 4, {'data.inputs_length': 100})
    check_split(dataclasses.replace(cfg, sequence_split=False), 8, {'data.inputs_length': 100})
    data = DataConfig(mixture='any', batch_size=8, inputs_length=100, targets_length=64)
    run, mesh = Run(data=data), make_mesh(MeshConfig(tensor=8))
    with pytest.raises(UserError, match=said):
        layout.check(run, resolve(sized(H=8, sequence_split=True), V), mesh, 'cpu')
    with pytest.raises(UserError, match=r'inputs_length \+ data.targets_length=164 positions'):
        layout.check(run, resolve(sized(kind='prefix_lm', sequence_split=True), V), mesh, 'cpu')


def kept(cfg, sizes=ONE, S=16, T=8):
    """What a device keeps between the forward and the backward pass: abstract arrays."""
    mesh = make_mesh(sizes)

    def backward(params, batch):
        return jax.vjp(lambda p: mean_loss_of_text(cfg, p, batch), params)[1]

    with jax.set_mesh(mesh):
        params = jax.eval_shape(partial(init, cfg), jax.random.key(0))
        batch = place(packed_batch(V, S=S, T=T), mesh)
        return jax.tree.leaves(jax.eval_shape(backward, params, batch))


def octets(x):
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


def test_split_rows_take_as_much_less_memory_as_they_are_split():
    N, B, S, T, D = 2, 8, 64, 32, 32
    stacks = [(N, B, S, D), (N, B, T, D)]
    for kind, wanted in (('dense', stacks), ('prefix_lm', [(N, B, S + T, D)])):
        sums = []
        for split in (False, True):
            cfg = resolve(dataclasses.replace(MODELS[kind], sequence_split=split), V)
            found = kept(cfg, MeshConfig(fsdp=2, tensor=4), S, T)
            states = {x.shape: octets(x) for x in found if x.shape in wanted}
            assert states.keys() == set(wanted), kind
            sums.append(states)
        assert {shape: 4 * n for shape, n in sums[1].items()} == sums[0], kind


def test_policies_keep_from_all_to_nothing_and_the_host_as_much_as_they_say():
    names = ('none', 'dots', 'dots_with_no_batch_dims', 'attention', 'full')
    sizes = {
        name: sum(map(octets, kept(resolve(sized(remat=name), V))))
        for name in (*names, 'offload_dots', 'offload_layers')
    }
    assert sorted(names, key=sizes.get, reverse=True) == list(names)
    assert sizes['offload_dots'] == sizes['dots_with_no_batch_dims']
    assert sizes['offload_layers'] == sizes['full']


def on_the_host(policy):
    """How often the program of a gradient speaks of an array in the memory of the host."""
    cfg, mesh = resolve(sized(remat=policy), V), make_mesh()
    grad = jax.grad(partial(mean_loss_of_text, cfg))
    with jax.set_mesh(mesh):
        params = jax.eval_shape(partial(init, cfg), jax.random.key(0))
        return str(jax.make_jaxpr(grad)(params, place(packed_batch(V), mesh))).count('<host>')


def test_what_is_offloaded_waits_in_the_memory_of_the_host():
    assert on_the_host('full') == on_the_host('dots_with_no_batch_dims') == 0
    assert 0 < on_the_host('offload_layers') < on_the_host('offload_dots')


def test_what_waits_on_the_host_changes_no_gradient_on_a_mesh():
    cfg, params, wanted = reference('dense')
    agree(graded(dataclasses.replace(cfg, remat='offload_layers'), params, MIX), wanted)


# Accumulation


def temporary(cfg, *parts, S=64, T=32, G=2):
    """Bytes of temporary arrays of a compiled step on rows [*parts, S] and [*parts, T]."""
    mesh, sizes = make_mesh(), dict(S=S, T=T, G=G)
    fields = [n for n in BATCH_DIMS if n not in ('segment_labels', 'token_labels')]
    shapes = {name: (*parts, *(sizes[d] for d in BATCH_DIMS[name][1:])) for name in fields}
    tx = optimizer('sgd', cfg)
    with jax.set_mesh(mesh):
        batch = place({name: np.zeros(shape, np.int32) for name, shape in shapes.items()}, mesh)
        step = make_train_step(cfg, tx, 1, **LOSS)
        compiled = step.lower(abstract_state(cfg, tx, mesh), batch).compile(QUICK)
    return compiled.memory_analysis().temp_size_in_bytes


def test_accumulated_parts_need_little_more_memory_than_one_of_them():
    """One tree of gradients, to which the backward passes add; a second would show."""
    cfg = resolve(sized(D=128, K=32, F=512, remat='none'), 512)
    with jax.set_mesh(make_mesh()):
        params = jax.eval_shape(partial(init, cfg), jax.random.key(0))
    tree = sum(map(octets, jax.tree.leaves(params)))
    one, four = temporary(cfg, 4), temporary(cfg, 4, 4)
    assert four < one + 0.5 * tree


# Moments in bfloat16


def optimizer(name, cfg, **settings):
    schedule = ScheduleConfig(name='constant', rate=0.1)
    return make_optimizer(OptimizerConfig(name=name, schedule=schedule, **settings), dims(cfg), 10)


def test_rounding_is_right_on_average_and_to_a_neighbour():
    x = np.float32([1.0, 1.003, -1.003, 3e-20, 0.0, np.inf, -np.inf, np.nan])
    draws = np.stack([rounded(x, step, 0).astype(np.float32) for step in range(2000)])
    low, high = np.float32(1.0), np.float32(1.0078125)
    assert set(np.unique(draws[:, 1])) == {low, high} == set(np.unique(-draws[:, 2]))
    np.testing.assert_allclose(draws[:, 1:4].mean(0), x[1:4], rtol=3e-4)
    for i in (0, 4, 5, 6):
        assert (draws[:, i] == x[i]).all()
    assert np.isnan(draws[:, 7]).all()


def test_rounding_draws_the_same_on_every_mesh_and_else_by_step_and_place():
    x_DF = np.full((16, 8), 1.003, np.float32)
    whole = np.float32(rounded(x_DF, 3, 1))
    with jax.set_mesh(make_mesh(MIX)):
        split = jax.jit(lambda x: rounded(x, 3, 1))(jax.device_put(x_DF, weight('DF')))
        assert split.sharding.spec == weight('DF')
    np.testing.assert_array_equal(np.float32(split), whole)
    for other in (
        rounded(x_DF, 4, 1),
        rounded(x_DF, 3, 2),
        np.roll(whole, 1, 0),
        whole.T.reshape(16, 8),
    ):
        assert 0.2 < np.mean(np.float32(other) != whole) < 0.8


def test_a_second_moment_in_bfloat16_follows_gradients_that_shrink():
    """Rounded to the nearest it would stay where it is: a step moves it by half of a last bit."""
    tx = stored(optax.scale_by_adam(b2=0.999), 'bfloat16')
    w = jnp.zeros(256)
    state = tx.init(w)._replace(nu=jnp.ones(256, jnp.bfloat16))

    def step(state, at):
        return tx.update(0.1 * jnp.ones(256), state, w, step=at)[1], None

    nu = jax.lax.scan(step, state, jnp.arange(3000))[0].nu.astype(jnp.float32)
    wanted = 0.01 + 0.99 * 0.999**3000
    np.testing.assert_allclose(nu.mean(), wanted, rtol=0.02)


@pytest.mark.parametrize('name', ['adamw', 'adamw_scale', 'adafactor'])
def test_moments_in_bfloat16_take_nearly_the_published_steps(name):
    """Each stored moment is within 2^-7 of what it would be, so that steps are within 2^-4."""
    formulas = dict(
        adafactor=adafactor_in_numpy, adamw_scale=adamw_scale_in_numpy, adamw=adamw_in_numpy
    )
    params, grads = draw(4), [draw(5), draw(6), draw(7)]
    settings = dict(weight_decay=0.0 if name == 'adafactor' else 0.1)
    exact, got = (
        unstack(steps(small_optimizer(name, state_dtype=dtype, **settings), params, grads))
        for dtype in (None, 'bfloat16')
    )
    columns = [jax.tree.leaves(unstack(g)) for g in grads]
    trees_of = (unstack(params), unstack(DIMS), got, exact)
    leaves = [jax.tree.leaves(tree) for tree in trees_of]
    differ = 0
    for p, letters, x, near, *g in zip(*leaves, *columns):
        wanted = formulas[name](p, g, letters)
        far = np.abs(wanted - p).max()
        np.testing.assert_allclose(x, wanted, atol=2**-4 * far, rtol=0, err_msg=letters)
        differ += np.any(x != near)
    assert differ


def adamw_in_numpy(p, grads, letters):
    """Loshchilov and Hutter's formulas in float64, with weight decay 0.1 where it reaches."""
    p, m, v = p.astype(np.float64), 0, 0
    for t, g in enumerate(grads, start=1):
        g = g.astype(np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = p - RATE * (step + (0.1 * p if decays(letters) else 0))
    return p


def test_moments_in_bfloat16_take_half_of_the_bytes_and_lie_where_the_weights_do():
    cfg, mesh = resolve(sized(), V), make_mesh(MIX)

    def moments(name, **settings):
        state = abstract_state(cfg, optimizer(name, cfg, **settings), mesh)
        return [x for x in jax.tree.leaves(state.opt_state) if x.ndim]

    whole, half = moments('adamw'), moments('adamw', state_dtype='bfloat16')
    assert 2 * sum(map(octets, half)) == sum(map(octets, whole))
    assert [x.sharding.spec for x in half] == [x.sharding.spec for x in whole]
    factored = moments('adafactor', state_dtype='bfloat16', min_dim=8)
    assert {x.dtype for x in factored} == {jnp.dtype('bfloat16'), jnp.dtype('float32')}


def test_a_run_with_moments_in_bfloat16_goes_on_bit_for_bit(tmp_path):
    cfg, mesh = resolve(sized(encoder_layers=1, decoder_layers=1), V), make_mesh()
    tx = optimizer('adamw', cfg, state_dtype='bfloat16')
    batch = packed_batch(V)
    batch |= dict(
        decoder_loss_weights=(batch['decoder_segment_ids'] > 0).astype(np.int32),
        segment_task_ids=np.ones((8, 2), np.int32),
    )
    step = make_train_step(cfg, tx, 1, **LOSS)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every=0))
    with jax.set_mesh(mesh):
        placed = place(batch, mesh)
        state, _ = step(new_state(cfg, tx, 0), placed)
        checkpoints.save(1, state, {}, {})
        checkpoints.wait()
        state, _ = step(state, placed)
        loaded, *_ = checkpoints.load(1, abstract_state(cfg, tx, mesh))
        again, _ = step(loaded, placed)
    checkpoints.close()
    assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(again.opt_state))
    for x, y in zip(
        jax.tree.leaves((state.params, state.opt_state)),
        jax.tree.leaves((again.params, again.opt_state)),
    ):
        np.testing.assert_array_equal(x, y)


def test_a_stage_may_store_moments_otherwise_and_keeps_them():
    cfg, mesh = resolve(sized(encoder_layers=1, decoder_layers=1), V), make_mesh()
    plain, short = optimizer('adamw', cfg), optimizer('adamw', cfg, state_dtype='bfloat16')
    with jax.set_mesh(mesh):
        params = born(cfg)
        moments = jax.tree.map(lambda x: jnp.full_like(x, 0.123), plain.init(params))
        state = TrainState(np.int32(0), params, moments, None, np.int32(0))
    narrow = with_optimizer(state, short, mesh)
    wide = with_optimizer(narrow, plain, mesh)
    for x, y in zip(jax.tree.leaves(narrow.opt_state), jax.tree.leaves(wide.opt_state)):
        if x.ndim:
            assert x.dtype == jnp.bfloat16 and y.dtype == jnp.float32
            np.testing.assert_allclose(y, 0.123, rtol=2**-8)


def test_moments_that_are_not_there_or_of_another_dtype_are_refused_in_a_sentence():
    cfg = resolve(sized(), V)
    with pytest.raises(UserError, match="'sgd' without momentum keeps nothing"):
        optimizer('sgd', cfg, state_dtype='bfloat16')
    with pytest.raises(UserError, match="state_dtype 'bfloat61'; did you mean 'bfloat16'"):
        optimizer('adamw', cfg, state_dtype='bfloat61')
