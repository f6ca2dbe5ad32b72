from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtpt.mesh import MeshConfig, make_mesh, rows, weight
from mtpt.model.config import ModelConfig, resolve
from mtpt.model.decode import greedy, log_probs
from mtpt.model.functional import decode, dims, encode, init, start, step

V, S, T = 24, 10, 7
CFG = resolve(ModelConfig(size='micro', decoder_layers=2, tied=False), V)
INPUTS_BS = np.random.default_rng(0).integers(3, V, (8, S)).astype(np.int32)
INPUTS_BS[2, 6:] = 0


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


@pytest.fixture(scope='module')
def params(mesh):
    params = jax.jit(partial(init, CFG))(jax.random.key(1))
    # A lively model: untrained logits barely differ, and the end would hardly ever come first.
    kernel = np.asarray(params['logits']['kernel']) * np.where(np.arange(V) == 1, 6, 4)
    return params | dict(logits=dict(kernel=jax.device_put(kernel, weight('DV'))))


@pytest.fixture(scope='module')
def full(mesh):
    """Teacher-forced logits for given outputs: what the decoder says at every position."""

    def run(params, out_BT):
        segments_BS = rows((INPUTS_BS > 0).astype(np.int32))
        encoded = encode(CFG, params, INPUTS_BS, segments_BS)
        before_BT = jnp.pad(out_BT, ((0, 0), (1, 0)))[:, :-1]
        return decode(CFG, params, encoded, before_BT, jnp.ones_like(out_BT))

    return jax.jit(run)


@pytest.fixture(scope='module')
def written(params):
    return np.asarray(greedy(CFG, params, INPUTS_BS, T))


def test_a_cached_step_equals_the_full_forward(params, full):
    out_BT = np.random.default_rng(1).integers(3, V, (8, T)).astype(np.int32)

    @jax.jit
    def steps(params, out_BT):
        segments_BS = rows((INPUTS_BS > 0).astype(np.int32))
        cache = start(CFG, params, encode(CFG, params, INPUTS_BS, segments_BS), T)

        def one(cache, tokens_B):
            logits_BV, cache = step(CFG, params, cache, tokens_B)
            return cache, logits_BV

        before_TB = jnp.pad(out_BT, ((0, 0), (1, 0)))[:, :-1].T
        return jax.lax.scan(one, cache, before_TB)[1]

    np.testing.assert_allclose(
        np.moveaxis(steps(params, out_BT), 0, 1), full(params, out_BT), atol=3e-5
    )


def test_greedy_writes_the_likeliest_token_until_the_end(params, full, written):
    best_BT = np.asarray(full(params, written)).argmax(-1)
    ended = [np.flatnonzero(row == 1) for row in written]
    assert any(len(at) for at in ended) and not all(len(at) for at in ended)
    for row, best, at in zip(written, best_BT, ended):
        n = at[0] + 1 if len(at) else T
        np.testing.assert_array_equal(row[:n], best[:n])
        assert (row[n:] == 0).all()


def test_greedy_is_the_same_when_everything_is_split(params, written):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    host = jax.device_get(params)
    split = jax.tree.map(
        lambda x, d: jax.device_put(x, jax.NamedSharding(mesh, weight(d))), host, dims(CFG)
    )
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(greedy(CFG, split, INPUTS_BS, T), written)


def test_greedy_stops_when_every_row_has_ended(params):
    always = params | dict(logits=dict(kernel=jnp.zeros_like(params['logits']['kernel'])))
    out_BT = np.asarray(greedy(CFG, always, INPUTS_BS, T, eos=0))
    assert (out_BT == 0).all()


def test_log_probs_are_those_of_a_softmax():
    rng = np.random.default_rng(0)
    logits_BTV, targets_BT = rng.normal(size=(2, 3, V)), rng.integers(0, V, (2, 3))
    p_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
    expected = np.log(np.take_along_axis(p_BTV, targets_BT[..., None], -1)[..., 0])
    np.testing.assert_allclose(log_probs(logits_BTV.astype(np.float32), targets_BT), expected, 1e-5)
