import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_model import unset_mesh

from mtpt import trees
from mtpt.config import UserError
from mtpt.mesh import AXES, MeshConfig, act, check_divides, make_mesh, place, rows, weight
from mtpt.model import functional, grouped
from mtpt.model.config import ModelConfig, MoeConfig, resolve
from mtpt.model.decode import log_probs
from mtpt.model.dispatch import capacity_slots, collect, sorted_slots, spread
from mtpt.model.layers import MLPS, Mlp
from mtpt.model.moe import Moe
from mtpt.model.routing import Routing
from mtpt.model.sizes import SIZES
from mtpt.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from mtpt.train.state import new_state
from mtpt.train.step import make_train_step

# Laws are about numbers, not speed: half of the time to compile.
jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))

V, M = 96, 3
B, T, E = 8, 16, 8
NO_LIMIT = 1e6


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


def config(mlp='geglu', layers=2, **moe):
    own = dict(E=E, F=16, capacity=NO_LIMIT, eval_capacity=NO_LIMIT) | moe
    sizes = dict(D=16, H=4, K=4, encoder_layers=layers, decoder_layers=layers)
    return resolve(ModelConfig(size='micro', mlp=mlp, moe=MoeConfig(**own), **sizes), V, M)


def inputs(cfg, seed=0, B=B, T=T, padding=True):
    """States, and what routing knows of them: every fifth position or so is padding."""
    rng = np.random.default_rng(seed)
    x_BTD = rng.normal(size=(B, T, cfg.D)).astype(np.float32)
    real_BT = rng.random((B, T)) > 0.2 * padding
    tasks_BT = (rng.integers(0, M + 1, (B, T)) * real_BT).astype(np.int32)
    return x_BTD, real_BT, tasks_BT


def weights_of(cfg, decoder=False, seed=0):
    make = jit(lambda key: nnx.to_pure_dict(nnx.split(Moe(cfg, nnx.Rngs(params=key), decoder))[1]))
    return jax.tree.map(np.asarray, make(jax.random.key(seed)))


def layer(cfg, weights, given, key=None, decoder=False, decoding=False):
    """(y_BTD, aux) of the layer; `given` as `inputs` makes it."""
    graph = jax.eval_shape(lambda: nnx.split(Moe(cfg, nnx.Rngs(params=0), decoder)))[0]
    x_BTD, real_BT, tasks_BT = map(rows, given)
    routing = Routing(real_BT, tasks_BT)
    return nnx.merge(graph, weights)(x_BTD, routing, key, decoding)


def by_loop(cfg, weights, given):
    """The same without slots: every expert on every token, weighted by its gate."""
    x_BTD, real_BT, _ = given
    probs_BTE = jax.nn.softmax(x_BTD @ weights['router']['kernel'])
    # k-th largest probability: those below it are not chosen
    least_BT1 = jnp.sort(probs_BTE, -1)[..., -cfg.moe.top_k][..., None]
    gate_BTE = jnp.where(probs_BTE >= least_BT1, probs_BTE, 0)
    if cfg.moe.normalise:
        gate_BTE = gate_BTE / jnp.sum(gate_BTE, -1, keepdims=True)
    y_BTD = jnp.zeros_like(x_BTD)
    for e in range(cfg.moe.E):
        own = {name: weights[name][e] for name in ('gate', 'up', 'down') if name in weights}
        y_BTD += gate_BTE[..., e, None] * mlp(cfg, own, x_BTD)
    return jnp.where(real_BT[..., None], y_BTD, 0)


def mlp(cfg, own, x_BTD):
    activation, gated = MLPS[cfg.mlp]
    h_BTF = activation(x_BTD @ own['gate']) * (x_BTD @ own['up']) if gated else None
    return (activation(x_BTD @ own['up']) if h_BTF is None else h_BTF) @ own['down']


def energy(y_BTD):
    """A number that depends on every entry of its own."""
    weights_BTD = np.random.default_rng(9).normal(size=y_BTD.shape)
    return jnp.sum(jnp.sin(3 * y_BTD) * weights_BTD)


def close(ours, theirs, tolerance=2e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=tolerance), ours, theirs)


@pytest.mark.parametrize('dispatch', ['capacity', 'dropless'])
@pytest.mark.parametrize(
    'top_k, normalise, kind', [(1, 0, 'relu'), (2, 1, 'geglu'), (3, 0, 'gelu')]
)
def test_without_limit_the_layer_is_the_sum_over_experts_by_a_loop(
    dispatch, top_k, normalise, kind
):
    cfg = config(mlp=kind, top_k=top_k, normalise=bool(normalise), dispatch=dispatch)
    weights, given = weights_of(cfg), inputs(cfg)

    def graded(run):
        def of(weights, x_BTD):
            y_BTD = run(weights, x_BTD)
            return energy(y_BTD), y_BTD

        return jit(jax.grad(of, argnums=(0, 1), has_aux=True))(weights, given[0])

    ours = graded(lambda w, x: layer(cfg, w, (x, *given[1:]))[0])
    close(ours, graded(lambda w, x: by_loop(cfg, w, (x, *given[1:]))))
    assert np.abs(ours[0][0]['router']['kernel']).max() > 1e-3
    assert (np.asarray(ours[1])[~given[1]] == 0).all()


LAYERS = dict(
    capacity=dict(top_k=2, capacity=0.5, group=16),
    dropless=dict(top_k=2, dispatch='dropless'),
    expert_choice=dict(encoder_router='expert_choice', capacity=2.0, group=16, normalise=True),
)


def test_the_layer_is_the_same_on_every_mesh():
    cfgs = [config(jitter=0.1, dropout=0.2, shared=1, **moe) for moe in LAYERS.values()]
    given = inputs(cfgs[0])

    def results(axes):
        with jax.set_mesh(make_mesh(axes)):

            def run(key):
                found = []
                for cfg in cfgs:
                    moe = Moe(cfg, nnx.Rngs(params=key), False)
                    graph, state = nnx.split(moe)

                    def of(state, x_BTD, graph=graph):
                        routing = Routing(*map(rows, given[1:]))
                        y_BTD, aux = nnx.merge(graph, state)(rows(x_BTD), routing, key)
                        extra = sum(x for name, x in aux.items() if name.startswith('loss/'))
                        return energy(y_BTD) + extra, (y_BTD, aux)

                    found.append(jax.grad(of, argnums=(0, 1), has_aux=True)(state, given[0]))
                return jax.tree.map(lambda x: x, found)

            return jax.tree.map(np.asarray, jit(run)(jax.random.key(0)))

    one = results(MeshConfig())
    assert 0.2 < one[0][1][1]['moe/kept'] < 0.95
    for axes in (MeshConfig(data=2, expert=2, tensor=2), MeshConfig(fsdp=2, expert=4)):
        close(results(axes), one)


def one_by_one(expert_nk, gate_nk, E, C, R, order):
    """Slots handed out pair by pair: which pairs get one."""
    n, k = expert_nk.shape
    g = -(-n // R)
    kept_nk = np.zeros((n, k), bool)
    for start in range(0, n, g):
        tokens = list(range(start, min(start + g, n)))
        if order == 'gate':
            tokens.sort(key=lambda t: -max(gate_nk[t]))
        pairs = [(t, j) for j in range(k) for t in tokens]
        if order == 'position':
            pairs.sort()
        free = [C] * E
        for t, j in pairs:
            e = expert_nk[t, j]
            if e < E and free[e]:
                free[e] -= 1
                kept_nk[t, j] = True
    return kept_nk


@pytest.mark.parametrize('order', ['choice', 'gate', 'position'])
def test_slots_go_to_whoever_comes_first_and_none_to_padding(order):
    rng = np.random.default_rng(0)
    for n, k, R, C in ((24, 2, 2, 3), (23, 3, 2, 2)):
        expert_nk = np.argsort(rng.random((n, 5)), -1)[:, :k].astype(np.int32)
        expert_nk[rng.random(n) < 0.3] = 5
        gate_nk = rng.random((n, k)).astype(np.float32)
        lay = jit(partial(capacity_slots, E=5, C=C, R=R, order=order))
        pair_P, slot_nk = lay(expert_nk, gate_nk.max(-1))
        kept_nk = one_by_one(expert_nk, gate_nk, 5, C, R, order)
        np.testing.assert_array_equal(slot_nk < len(pair_P), kept_nk)
        assert kept_nk.sum() < (expert_nk < 5).sum()
        for (t, j), slot in np.ndenumerate(slot_nk):
            if kept_nk[t, j]:
                assert pair_P[slot] == t * k + j
                assert slot // (R * C) == expert_nk[t, j] and slot // C % R == t // -(-n // R)
        assert (np.asarray(pair_P) < n * k).sum() == kept_nk.sum()


def test_prioritised_slots_go_to_the_highest_gates():
    gate_n1 = np.random.default_rng(0).random((12, 1)).astype(np.float32)
    expert_n1 = np.zeros((12, 1), np.int32)
    expert_n1[3], gate_n1[3] = 1, 1.0  # padding, whatever its gate
    lay = jit(partial(capacity_slots, E=1, C=4, R=1, order='gate'))
    pair_P, _ = lay(expert_n1, gate_n1[:, 0])
    real = np.delete(np.arange(12), 3)
    assert list(pair_P) == sorted(real, key=lambda t: -gate_n1[t, 0])[:4]


def test_pairs_are_sorted_by_expert_and_all_kept():
    expert_nk = np.array([[2, 0], [3, 3], [0, 1], [2, 1], [0, 2]], np.int32)  # 3: padding
    slots, sizes_E = jit(partial(sorted_slots, E=3))(expert_nk)
    assert list(sizes_E) == [3, 2, 3]
    assert list(slots.pair_P) == [1, 4, 8, 5, 7, 0, 6, 9, 10, 10]
    assert list(slots.slot_nk.reshape(-1)) == [5, 0, 10, 10, 1, 3, 6, 4, 2, 7]


def test_gradients_through_slots_are_those_of_plain_indexing():
    rng = np.random.default_rng(0)
    n, k, D = 10, 2, 3
    expert_nk = np.argsort(rng.random((n, 4)), -1)[:, :k].astype(np.int32)
    gate_nk = rng.random((n, k)).astype(np.float32)
    lay = jit(partial(capacity_slots, E=4, C=4, R=1, order='choice'))
    slots = lay(expert_nk, gate_nk)
    x_nD = rng.normal(size=(n, D)).astype(np.float32)

    def ours(x_nD, gate_nk):
        return energy(collect(jnp.sin(spread(x_nD, slots)), gate_nk, slots))

    def plain(x_nD, gate_nk):
        x_nD = jnp.concatenate([x_nD, jnp.zeros((1, D))])
        h_PD = jnp.sin(x_nD[slots.pair_P // k])
        h_PD = jnp.concatenate([h_PD, jnp.zeros((1, D))])
        return energy(jnp.einsum('nkD,nk->nD', h_PD[slots.slot_nk], gate_nk))

    close(*(jit(jax.value_and_grad(f, argnums=(0, 1)))(x_nD, gate_nk) for f in (ours, plain)))


@pytest.mark.parametrize('platform', grouped.METHODS)
def test_a_grouped_product_is_a_product_a_group(platform):
    method = grouped.METHODS[platform]
    how = dict(interpret=True) if platform == 'tpu' else {}
    rng = np.random.default_rng(0)
    for P, sizes in ((1, [0, 1]), (300, [64, 0, 65, 1, 120])):
        x_PD, g_PF = (rng.normal(size=(P, n)).astype(np.float32) for n in (8, 12))
        w_EDF = rng.normal(size=(len(sizes), 8, 12)).astype(np.float32)
        y_PF, outer_EDF, start = np.zeros((P, 12)), np.zeros(w_EDF.shape), 0
        for e, size in enumerate(sizes):
            own = slice(start, start + size)
            y_PF[own] = x_PD[own] @ w_EDF[e]
            outer_EDF[e] = x_PD[own].T @ g_PF[own]
            start += size
        sizes = np.array(sizes, np.int32)
        with unset_mesh():
            ours = jit(partial(method.forward, **how))(x_PD, w_EDF, sizes)
            outer = jit(partial(method.outer, **how))(x_PD, g_PF, sizes)
        close((ours[:start], outer), (y_PF[:start], outer_EDF))


def test_a_dropped_token_gets_nothing_and_the_others_what_they_would():
    cfg = config(top_k=1, eval_capacity=0.5, group=64)
    weights, given = weights_of(cfg), inputs(cfg)
    y_BTD, aux = jit(partial(layer, cfg))(weights, given)
    whole_BTD = by_loop(cfg, weights, given)
    kept_BT = np.abs(y_BTD).max(-1) > 0
    assert 0.3 < kept_BT.sum() / given[1].sum() < 0.9
    np.testing.assert_allclose(aux['moe/kept'], kept_BT.sum() / given[1].sum(), rtol=1e-5)
    close(np.asarray(y_BTD)[kept_BT], np.asarray(whole_BTD)[kept_BT])


def test_padding_pushes_nobody_out():
    cfg = config(top_k=1, eval_capacity=0.7)
    weights, (x_BTD, real_BT, tasks_BT) = weights_of(cfg), inputs(cfg)
    run = jit(partial(layer, cfg))
    y_BTD, aux = run(weights, (x_BTD, real_BT, tasks_BT))
    same_BTD = np.where(real_BT[..., None], x_BTD, x_BTD[0, 0])  # all padding to one expert
    again_BTD, others = run(weights, (same_BTD, real_BT, tasks_BT))
    close(again_BTD, y_BTD)
    close(others, aux)
    assert aux['moe/kept'] < 1


def test_no_position_of_a_decoder_takes_a_slot_from_an_earlier_one():
    cfg = config(top_k=2, eval_capacity=0.5, group=2 * T)
    weights = weights_of(cfg, decoder=True)
    x_BTD, real_BT, tasks_BT = inputs(cfg, padding=False)
    other_BTD = inputs(cfg, seed=1)[0]
    run = jit(lambda x: layer(cfg, weights, (x, real_BT, tasks_BT), decoder=True))
    y_BTD, aux = run(x_BTD)
    assert aux['moe/kept'] < 0.7
    for t in range(1, T // 2):
        changed_BTD = x_BTD.copy()
        changed_BTD[1::2, t:] = other_BTD[1::2, t:]  # the second row of every group
        z_BTD, _ = run(changed_BTD)
        np.testing.assert_array_equal(z_BTD[1::2, :t], y_BTD[1::2, :t])
        np.testing.assert_array_equal(z_BTD[::2], y_BTD[::2])
        assert not np.array_equal(z_BTD[1::2, t:], y_BTD[1::2, t:])


def test_a_step_of_decoding_drops_nobody_whoever_it_is_batched_with():
    cfg = config(top_k=2, eval_capacity=0.1)
    weights, given = weights_of(cfg, decoder=True), inputs(cfg, B=64, T=1, padding=False)
    run = jit(partial(layer, cfg, decoder=True), static_argnames='decoding')
    assert run(weights, given)[1]['moe/kept'] < 0.5
    y_B1D, aux = run(weights, given, decoding=True)
    assert aux['moe/kept'] == 1
    close(y_B1D, by_loop(cfg, weights, given))


@pytest.mark.parametrize('platform, kernel', dict(cpu='while', tpu='tpu_custom_call').items())
def test_grouped_products_are_lowered_for_the_platform_and_not_as_dense_ones(platform, kernel):
    cfg = config(dispatch='dropless')
    weights, given = weights_of(cfg), inputs(cfg)
    step = jax.jit(jax.grad(lambda w: jnp.sum(layer(cfg, w, given)[0])))
    text = step.trace(weights).lower(lowering_platforms=(platform,)).as_text()
    assert kernel in text and 'ragged_dot' not in text


def test_experts_that_choose_take_their_best_tokens_and_as_many_each():
    cfg = config(encoder_router='expert_choice', capacity=1.0, eval_capacity=9.0, group=64)
    weights, given = weights_of(cfg), inputs(cfg)
    y_BTD, aux = jit(partial(layer, cfg))(weights, given)
    x_RnD, real_Rn = given[0].reshape(2, 64, -1), given[1].reshape(2, 64)
    expected, taken_Rn = np.zeros(x_RnD.shape), np.zeros((2, 64), bool)
    for r, (x_nD, real_n) in enumerate(zip(x_RnD, real_Rn)):
        probs_nE = np.asarray(jax.nn.softmax(x_nD @ weights['router']['kernel']))
        for e in range(E):
            best = np.argsort(np.where(real_n, -probs_nE[:, e], 1))[:8]  # 1.0 * 64 / 8
            own = {name: weights[name][e] for name in ('gate', 'up', 'down')}
            expected[r, best] += probs_nE[best, e, None] * mlp(cfg, own, x_nD[best])
            taken_Rn[r, best] = True
    close(np.asarray(y_BTD).reshape(expected.shape), expected)
    assert aux['moe/load_max'] == aux['moe/load_min'] == 1
    np.testing.assert_array_equal(np.sum(aux['routing'], 0), [16] * E)
    np.testing.assert_allclose(aux['moe/kept'], taken_Rn.sum() / real_Rn.sum(), rtol=1e-6)
    assert 'loss/balance' not in aux and 'loss/router_z' in aux


@pytest.mark.parametrize('top_k', [1, 2])
def test_losses_and_figures_are_those_of_the_papers_over_real_tokens(top_k):
    cfg = config(top_k=top_k, balance=0.3, z_loss=0.7, eval_capacity=1.0)
    weights, given = weights_of(cfg), inputs(cfg)
    weights['router']['kernel'] = weights['router']['kernel'] * 40
    _, aux = jit(partial(layer, cfg))(weights, given)
    x_nD = given[0][given[1]].astype(np.float64)
    logits_nE = x_nD @ np.asarray(weights['router']['kernel'], np.float64)
    probs_nE = np.exp(logits_nE) / np.exp(logits_nE).sum(-1, keepdims=True)
    chosen_nk = np.argsort(-probs_nE, -1)[:, :top_k]
    f_E = np.array([(chosen_nk == e).any(-1).mean() for e in range(E)])
    balance = E * sum(f_E[e] * probs_nE[:, e].mean() for e in range(E))
    z = np.mean(np.log(np.exp(logits_nE).sum(-1)) ** 2)
    entropy = -np.mean(np.sum(probs_nE * np.log(probs_nE), -1))
    np.testing.assert_allclose(aux['loss/balance'], 0.3 * balance, rtol=1e-5)
    np.testing.assert_allclose(aux['loss/router_z'], 0.7 * z, rtol=1e-5)
    np.testing.assert_allclose(aux['moe/entropy'], entropy, rtol=1e-5)
    np.testing.assert_allclose(aux['moe/load_max'], f_E.max() * E / top_k, rtol=1e-5)
    np.testing.assert_allclose(aux['moe/load_min'], f_E.min() * E / top_k, rtol=1e-5)
    counts_ME = np.zeros((M + 1, E))
    for task, choices in zip(given[2][given[1]], chosen_nk):
        counts_ME[task, choices] += 1
    np.testing.assert_array_equal(aux['routing'], counts_ME)
    slots = top_k * B * T // E
    kept = sum(min(slots, n) for n in counts_ME.sum(0)) / counts_ME.sum()
    np.testing.assert_allclose(aux['moe/kept'], kept, rtol=1e-5)


def test_an_even_load_has_the_least_balance_loss():
    cfg = config(top_k=2, balance=1.0)
    weights, given = weights_of(cfg), inputs(cfg)
    run = jit(lambda kernel: layer(cfg, weights | dict(router=dict(kernel=kernel)), given)[1])
    assert abs(run(weights['router']['kernel'] * 1e-3)['loss/balance'] - 2) < 0.01
    assert run(jnp.ones_like(weights['router']['kernel']).at[:, 0].set(9))['loss/balance'] > 2.1


def test_one_expert_is_the_dense_layer():
    cfg = config(E=1, F=64, top_k=1)
    weights, given = weights_of(cfg), inputs(cfg, padding=False)
    y_BTD, _ = jit(partial(layer, cfg))(weights, given)
    graph = jax.eval_shape(lambda: nnx.split(Mlp(cfg, nnx.Rngs(params=0), 64)))[0]
    own = {name: weights[name][0] for name in ('gate', 'up', 'down')}
    close(y_BTD, nnx.merge(graph, own)(rows(given[0])))


def test_shared_experts_take_every_token_beside_the_routed_ones():
    cfg = config(shared=2)
    weights, given = weights_of(cfg), inputs(cfg)
    assert weights['shared']['up'].shape == (cfg.D, 2 * cfg.moe.F)
    y_BTD, _ = jit(partial(layer, cfg))(weights, given)
    close(y_BTD - by_loop(cfg, weights, given), mlp(cfg, weights['shared'], given[0]))


def test_noise_and_dropout_need_a_key_and_are_the_same_in_both_dispatches():
    moe = dict(top_k=2, jitter=0.3, dropout=0.5)
    cfgs = [config(dispatch=name, **moe) for name in ('capacity', 'dropless')]
    weights, given = weights_of(cfgs[0]), inputs(cfgs[0])

    def run(cfg):
        keys = [None, jax.random.key(1), jax.random.key(1), jax.random.key(2)]
        return [layer(cfg, weights, given, key)[0] for key in keys]

    plain, first, again, other = jit(partial(run, cfgs[0]))()
    assert (first == again).all() and not np.allclose(first, other)
    close(plain, by_loop(cfgs[0], weights, given))
    close(jit(partial(run, cfgs[1]))(), [plain, first, again, other])


def test_initial_experts_have_a_tenth_of_the_variance_and_no_tails():
    cfg = config(E=16, F=64)
    weights = weights_of(cfg)
    for name, fan_in in dict(gate=cfg.D, up=cfg.D, down=64).items():
        deviation = (0.1 / fan_in) ** 0.5
        assert abs(weights[name].std() / deviation - 1) < 0.05, name
        assert np.abs(weights[name]).max() < 2.3 * deviation, name
    assert abs(weights['router']['kernel'].std() / 2e-2 - 1) < 0.2
    letters = functional.dims(config(encoder=(1,)))['encoder']['layers']['1']['moe']
    assert letters['router'] == dict(kernel='NDY') and letters['down'] == 'NEFD'


# The whole model


def batch_of(B=8, S=32, T=16):
    """Rows of two segments of different tasks, and some padding."""
    rng = np.random.default_rng(0)
    segments_S, segments_T = (np.repeat([1, 2, 0], (n // 2, n // 4, n // 4)) for n in (S, T))
    batch = {
        'encoder_input_tokens': rng.integers(3, V, (B, S)) * (segments_S > 0),
        'decoder_input_tokens': rng.integers(3, V, (B, T)) * (segments_T > 0),
        'decoder_target_tokens': rng.integers(3, V, (B, T)) * (segments_T > 0),
        'decoder_loss_weights': np.tile(segments_T > 0, (B, 1)),
        'encoder_segment_ids': np.tile(segments_S, (B, 1)),
        'decoder_segment_ids': np.tile(segments_T, (B, 1)),
        'segment_task_ids': rng.integers(1, M + 1, (B, 2)),
    }
    return {name: x.astype(np.int32) for name, x in batch.items()}


def sparse_model(**moe):
    return config(top_k=2, **dict(encoder=2, decoder=(0, 1)) | moe)


def test_a_sparse_model_has_the_same_loss_and_routing_on_every_mesh_scanned_or_not():
    cfg = sparse_model(eval_capacity=0.75, group=16)
    batch = batch_of()

    def run(cfg, key):
        logits_BTV, aux = functional.apply(cfg, functional.init(cfg, key), batch)
        return -log_probs(logits_BTV, batch['decoder_target_tokens']).mean(), aux

    def on(axes, cfg=cfg):
        with jax.set_mesh(make_mesh(axes)):
            return jax.tree.map(np.asarray, jit(partial(run, cfg))(jax.random.key(0)))

    one = on(MeshConfig())
    assert one[1]['moe/kept'] < 0.95
    assert one[1]['routing/encoder'].shape == (1, M + 1, E)
    assert one[1]['routing/decoder'].shape == (2, M + 1, E)
    assert one[1]['routing/decoder'].sum() == 2 * 2 * (batch['decoder_segment_ids'] > 0).sum()
    close(on(MeshConfig(fsdp=2, expert=2, tensor=2)), one)
    close(on(MeshConfig(), dataclasses.replace(cfg, scan=False)), one)


@pytest.mark.parametrize(
    'dispatch, axes', [('capacity', MeshConfig()), ('dropless', MeshConfig(expert=4, tensor=2))]
)
def test_a_decoding_step_of_a_sparse_model_equals_the_whole_forward_pass(dispatch, axes):
    cfg = sparse_model(dispatch=dispatch)
    batch = batch_of(T=8)
    one_BT = np.ones((8, 8), np.int32)
    tokens_BT = np.random.default_rng(1).integers(3, V, (8, 8)).astype(np.int32)

    def run(key):
        params = functional.init(cfg, key)
        encoded = functional.encode(
            cfg,
            params,
            batch['encoder_input_tokens'],
            np.minimum(batch['encoder_segment_ids'], 1),
            batch['segment_task_ids'][:, :1],
        )
        whole_BTV = functional.decode(cfg, params, encoded, tokens_BT, one_BT)
        cache = functional.start(cfg, params, encoded, 8)

        def step(cache, tokens_B):
            logits_BV, cache = functional.step(cfg, params, cache, tokens_B)
            return cache, logits_BV

        _, stepped_TBV = jax.lax.scan(step, cache, rows(tokens_BT).T)
        return whole_BTV, jnp.moveaxis(stepped_TBV, 0, 1)

    with jax.set_mesh(make_mesh(axes)):
        close(*jit(run)(jax.random.key(0)))


def test_two_halves_that_are_alike_step_as_one_of_them_does():
    cfg = config(layers=1, encoder=1, decoder=0, capacity=0.8, balance=0.5)
    schedule = ScheduleConfig(name='constant', rate=1e-2)
    tx = make_optimizer(OptimizerConfig(name='sgd', schedule=schedule), functional.dims(cfg), 10)
    options = dict(z_loss=0.0, label_smoothing=0.0, loss_normalizing_factor='tokens')
    half = batch_of(B=4)
    found = []
    for batch in (half, {name: np.stack([x, x]) for name, x in half.items()}):
        batch = place(batch, make_mesh())
        state, metrics = make_train_step(cfg, tx, M, **options)(new_state(cfg, tx, 0), batch)
        assert metrics['loss/balance'] > 0.5 and metrics['loss/router_z'] > 0
        assert 0.5 < metrics['moe/kept'] < 1
        assert not any('routing' in name for name in metrics)
        extra = metrics['loss/balance'] + metrics['loss/router_z']
        close(metrics['train/objective'], metrics['train/loss'] + extra)
        found.append((state.params, metrics['loss/balance'], metrics['moe/kept']))
    close(*found)


@pytest.mark.parametrize('dispatch', ['capacity', 'dropless'])
def test_a_large_sparse_model_type_checks_on_a_machine_that_is_not_there(dispatch):
    moe = MoeConfig(E=64, top_k=2, dispatch=dispatch, shared=1, jitter=0.01)
    cfg = resolve(ModelConfig(size='base', dtype='bfloat16', dropout=0.1, moe=moe), 32128, M)
    explicit = (jax.sharding.AxisType.Explicit,) * 4
    mesh = jax.sharding.AbstractMesh((2, 2, 8, 2), AXES, axis_types=explicit)

    def step(params, batch):
        def loss(params):
            logits_BTV, aux = functional.apply(cfg, params, batch, jax.random.key(0))
            extra = aux['loss/balance'] + aux['loss/router_z']
            return -log_probs(logits_BTV, batch['decoder_input_tokens']).mean() + extra, aux

        return jax.grad(loss, has_aux=True)(params)

    batch = {
        name: jax.ShapeDtypeStruct(
            (256, x.shape[1]), jnp.int32, sharding=jax.NamedSharding(mesh, act('BT'))
        )
        for name, x in batch_of(S=512, T=128).items()
    }
    with unset_mesh(), jax.sharding.use_abstract_mesh(mesh):
        params = jax.eval_shape(lambda: functional.init(cfg, jax.random.key(0)))
        grads, aux = jax.eval_shape(step, params, batch)
    letters = trees.flatten(functional.dims(cfg))
    for path, grad in trees.flatten(grads).items():
        assert grad.sharding.spec == weight(letters[path]), path
    assert aux['routing/encoder'].shape == (6, M + 1, 64)


def test_an_evaluation_batch_need_not_divide_into_groups_and_a_training_batch_must():
    cfg = config(group=48, capacity=2.0, eval_capacity=NO_LIMIT)
    weights, given = weights_of(cfg), inputs(cfg)
    y_BTD, _ = jit(partial(layer, cfg))(weights, given)
    close(y_BTD, by_loop(cfg, weights, given))
    words = 'model.moe.group=48 does not divide the 128 tokens of a device (8 rows of 16)'
    with pytest.raises(UserError, match=re.escape(words)):
        jax.eval_shape(lambda: layer(cfg, weights, given, jax.random.key(0)))


@pytest.mark.parametrize('router', ['top_k', 'expert_choice'])
def test_what_a_row_is_told_does_not_hang_on_its_batch(router):
    cfg = config(encoder_router=router, capacity=0.5, eval_capacity=0.5)
    params = functional.init(cfg, jax.random.key(0))
    tokens_BS = np.random.default_rng(0).integers(3, V, (8, T)).astype(np.int32)

    @jit
    def told(params, tokens_BS):
        encoded = functional.encode(cfg, params, tokens_BS, jnp.ones_like(tokens_BS))
        return functional.decode(cfg, params, encoded, tokens_BS, jnp.ones_like(tokens_BS))

    together = told(params, tokens_BS)
    others = np.roll(tokens_BS, 5, axis=1)
    others[3] = tokens_BS[3]
    np.testing.assert_allclose(told(params, others)[3], together[3], atol=1e-5)


def test_a_field_set_beside_a_sparse_size_keeps_the_rest_of_its_line():
    for size in (name for name, line in SIZES.items() if 'moe' in line):
        line = resolve(ModelConfig(size=size), V).moe
        own = resolve(ModelConfig(size=size, moe=MoeConfig(capacity=3.0)), V).moe
        assert own == dataclasses.replace(line, capacity=3.0)
    dense = resolve(ModelConfig(size='switch_base_8', moe=MoeConfig(encoder=0, decoder=0)), V)
    assert not dense.moe.E


@pytest.mark.parametrize(
    'moe, words',
    [
        (dict(top_k=9), 'model.moe.top_k=9 must be from 1 to the model.moe.E=8 experts'),
        (dict(decoder_router='expert_choice'), "use 'top_k' in the decoder"),
        (dict(encoder_router='topk'), "no encoder router 'topk'; did you mean 'top_k'"),
        (dict(prioritised=True, dispatch='dropless'), 'needs sparse encoder layers'),
        (dict(prioritised=True, encoder=0), 'needs sparse encoder layers'),
        (dict(group=64, dispatch='dropless'), 'none of the experts has any'),
        (dict(encoder=9, decoder=()), 'no layer is sparse'),
        (dict(capacity=float('nan')), 'model.moe.capacity=nan must be above 0'),
        (dict(E=-1), 'model.moe.E=-1'),
        (dict(experts_of=('a=1',)), "no router of the model is 'enforced'"),
        (dict(capacity=0.0), 'model.moe.capacity=0.0 must be above 0'),
        (dict(dropout=1.0), 'model.moe.dropout=1.0 must be at least 0 and below 1'),
        (dict(jitter=1.0), 'model.moe.jitter=1.0 must be at least 0 and below 1'),
    ],
)
def test_experts_that_cannot_be_are_refused_in_a_sentence(moe, words):
    with pytest.raises(UserError, match=re.escape(words)):
        config(**moe)


def test_experts_that_do_not_split_over_the_mesh_are_refused():
    with pytest.raises(UserError, match='E=6 experts do not split over expert=4; choose a divisor'):
        check_divides(dict(E=6), MeshConfig(expert=4))
