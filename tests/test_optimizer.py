"""Optimizers take the published steps, layer by layer; schedules have the published shapes.

N layers  D model width  H heads  K head width  F hidden width  V vocabulary  U buckets
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtpt.config import UserError
from mtpt.mesh import MeshConfig, make_mesh, weight
from mtpt.train.optimizer import (
    OPTIMIZERS,
    OptimizerConfig,
    ScheduleConfig,
    decays,
    factors,
    make_optimizer,
    make_schedule,
)

SIZES = dict(N=3, D=16, H=2, K=8, F=24, V=40, U=32)
DIMS = {
    'token_embedding': 'VD',
    'relative_bias': 'UH',
    'norm': {'scale': 'D'},
    'layers': {'q': 'NDHK', 'o': 'NHKD', 'up': 'NDF', 'scale': 'ND'},
}
RATE = 0.1


def draw(seed, dims=DIMS):
    """A tree of numbers whose layers differ in size, so that mixing them would show."""
    leaves, tree = jax.tree.flatten(dims)
    rng, out = np.random.default_rng(seed), []
    for letters in leaves:
        x = rng.normal(size=[SIZES[d] for d in letters])
        if letters[0] == 'N':
            x *= np.array([0.01, 1, 30]).reshape([3] + [1] * (x.ndim - 1))
        out.append(x.astype(np.float32))
    return jax.tree.unflatten(tree, out)


def optimizer(name, dims=DIMS, **settings):
    if name == 'adafactor':
        settings = dict(min_dim=12) | settings
    schedule = ScheduleConfig(name='constant', rate=RATE)
    return make_optimizer(OptimizerConfig(name=name, schedule=schedule, **settings), dims, 10)


def steps(tx, params, grads):
    """The parameters after one update with each of the gradients."""
    state = tx.init(params)
    for step, g in enumerate(grads):
        updates, state = jax.jit(tx.update)(g, state, params, step=step)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def unstack(tree):
    """Every layer of a stack as a weight of its own."""
    out = {k: v for k, v in tree.items() if k != 'layers'}
    for i in range(SIZES['N']):
        out[f'layer_{i}'] = {
            k: v[1:] if isinstance(v, str) else v[i] for k, v in tree['layers'].items()
        }
    return out


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_stacked_layers_take_the_steps_of_separate_ones(name):
    params, grads = draw(0), [draw(1), draw(2), draw(3)]
    stacked = steps(optimizer(name, weight_decay=0.1), params, grads)
    apart = optimizer(name, unstack(DIMS), weight_decay=0.1)
    separate = steps(apart, unstack(params), [unstack(g) for g in grads])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7),
        unstack(stacked),
        separate,
    )


def adafactor_in_numpy(p, grads, dims):
    """T5X's formulas in float64, with the heads and their width written as one axis of a matrix."""
    p, shape = p.astype(np.float64), p.shape
    matrix = {'VD': (40, 16), 'DHK': (16, 16), 'HKD': (16, 16), 'DF': (16, 24)}.get(dims)
    v = vr = vc = 0
    for t, g in enumerate(grads, start=1):
        g = g.astype(np.float64)
        beta2, g2 = 1 - t**-0.8, g * g + 1e-30
        if matrix:
            g2 = g2.reshape(matrix)
            vr = beta2 * vr + (1 - beta2) * g2.mean(1, keepdims=True)
            vc = beta2 * vc + (1 - beta2) * g2.mean(0, keepdims=True)
            y = g / np.sqrt(vr @ vc / vr.mean()).reshape(shape)
        else:
            v = beta2 * v + (1 - beta2) * g2
            y = g / np.sqrt(v)
        y = y / max(1, np.sqrt(np.mean(y * y)))
        p = p - RATE * max(1e-3, np.sqrt(np.mean(p * p))) * y
    return p


def adamw_scale_in_numpy(p, grads, dims):
    """nanoT5's formulas in float64, with weight decay 0.1 where it reaches."""
    p, m, v = p.astype(np.float64), 0, 0
    for t, g in enumerate(grads, start=1):
        g = g.astype(np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        step = step * max(1e-3, np.sqrt(np.mean(p * p)))
        p = p - RATE * (step + (0.1 * p if decays(dims) else 0))
    return p


@pytest.mark.parametrize(
    'name, formula, decay',
    [('adafactor', adafactor_in_numpy, 0.0), ('adamw_scale', adamw_scale_in_numpy, 0.1)],
)
def test_steps_follow_the_published_formulas(name, formula, decay):
    params, grads = draw(4), [draw(5), draw(6), draw(7)]
    got = unstack(steps(optimizer(name, weight_decay=decay), params, grads))
    columns = [jax.tree.leaves(unstack(g)) for g in grads]
    for p, dims, x, *g in zip(
        jax.tree.leaves(unstack(params)),
        jax.tree.leaves(unstack(DIMS)),
        jax.tree.leaves(got),
        *columns,
    ):
        near = 1e-6 * np.abs(p).max()
        np.testing.assert_allclose(x, formula(p, g, dims), rtol=3e-5, atol=near, err_msg=dims)


def test_adafactor_factors_by_the_meaning_of_axes():
    assert factors('NDHK', (24, 768, 12, 64), 128) == ((1,), (2, 3))
    assert factors('NHKD', (24, 12, 64, 768), 128) == ((3,), (1, 2))
    assert factors('VD', (32128, 768), 128) == ((1,), (0,))
    assert factors('NEDF', (2, 8, 128, 256), 128) == ((2,), (3,))
    assert factors('ND', (24, 768), 128) is None
    assert factors('UH', (256, 128), 128) is None
    assert factors('DF', (768, 64), 128) is None


def test_moments_of_factored_weights_are_small_and_lie_where_the_weights_do():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        leaves, tree = jax.tree.flatten(DIMS)
        place = [jax.device_put(x, weight(d)) for x, d in zip(jax.tree.leaves(draw(0)), leaves)]
        params = jax.tree.unflatten(tree, place)
        tx = optimizer('adafactor')
        moments = jax.eval_shape(tx.init, params)[1].moments['layers']
        assert {k: v.shape for k, v in moments['q'].items()} == {
            'row': (3, 16),
            'column': (3, 2, 8),
        }
        assert moments['q']['row'].sharding.spec == weight('ND')
        assert moments['q']['column'].sharding.spec == weight('NHK')
        split = steps(tx, params, [params, params])
    whole = steps(tx, draw(0), [draw(0), draw(0)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), split, whole)


def test_weight_decay_spares_norms_biases_and_position_tables():
    assert [d for d in ('VD', 'NDHK', 'NEDF', 'DV') if not decays(d)] == []
    assert [d for d in ('D', 'ND', 'UH', 'NF', 'NED') if decays(d)] == []


def test_gradients_are_cut_to_the_global_norm():
    grads = draw(1)
    got = steps(optimizer('sgd', clip=0.5), draw(0), [grads])
    norm = np.sqrt(sum(np.sum(np.square(x.astype(np.float64))) for x in jax.tree.leaves(grads)))
    expected = jax.tree.map(lambda p, g: p - RATE * 0.5 / norm * g, draw(0), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def rates(steps_of_run, at, offset=0, **settings):
    schedule = make_schedule(ScheduleConfig(**settings), steps_of_run, offset)
    return [float(schedule(step)) for step in at]


def test_schedules_have_the_published_shapes():
    assert rates(9, [0, 9], name='constant', rate=1e-3) == pytest.approx([1e-3, 1e-3])
    assert rates(10**6, [0, 10_000, 40_000], rate=1.0) == pytest.approx([0.01, 0.01, 0.005])
    assert rates(100, [0, 50, 100], name='cosine', rate=2.0) == pytest.approx([2, 1, 0], abs=1e-6)
    assert rates(100, [0, 50, 100], name='linear', rate=2.0, final=0.5) == pytest.approx(
        [2, 1.5, 1]
    )
    wsd = dict(name='wsd', rate=1.0, decay=0.4)
    assert rates(100, [0, 60, 80, 100], **wsd) == pytest.approx([1, 1, 0.5, 0], abs=1e-6)


def test_every_schedule_warms_up_and_goes_on_from_an_offset():
    for name in ('constant', 'inverse_sqrt', 'cosine', 'linear', 'wsd'):
        plain = rates(100, range(0, 100, 9), name=name, rate=1.0, warmup=10)
        ramp = rates(100, [0, 4, 9], name=name, rate=1.0, warmup=10)
        assert ramp == pytest.approx([r * ramp[2] for r in (0.1, 0.5, 1)], rel=1e-5)
        assert rates(90, range(-10, 90, 9), 10, name=name, rate=1.0, warmup=10) == pytest.approx(
            plain
        )


def test_a_setting_of_another_method_is_refused():
    with pytest.raises(UserError, match="optimizer 'adafactor' has no setting 'b1'"):
        optimizer('adafactor', b1=0.9)
    with pytest.raises(UserError, match="schedule 'constant' has no setting 'decay'"):
        make_schedule(ScheduleConfig(name='constant', decay=0.1), 10)
    with pytest.raises(UserError, match="did you mean 'adamw"):
        optimizer('adamv')
