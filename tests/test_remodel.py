"""One model becomes another: by law it says the same, or what a formula says."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import mtpt.run as runs
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError, as_dict
from mtpt.mesh import make_mesh
from mtpt.model.config import AttentionConfig, ModelConfig, MoeConfig, resolve
from mtpt.model.functional import apply, dims, init
from mtpt.model.remodel import carried, remodel, restack, unstack
from mtpt.train.state import InitFromConfig, TrainState, init_from
from mtpt.trees import flatten, map_with_path, unflatten

jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))

V = 40
SMALL = dict(size='micro', D=16, H=4, K=8, F=16, encoder_layers=2, decoder_layers=2)
KEY = jax.random.key(7)


def config(**changes):
    return resolve(ModelConfig(**(SMALL | changes)), V)


def everywhere(**own):
    places = ('encoder_attention', 'decoder_attention', 'cross_attention')
    return dict.fromkeys(places, AttentionConfig(**own))


def experts(**own):
    """Experts in half of the layers; none is full, and gates sum to 1."""
    return dict(moe=MoeConfig(**(dict(E=4, normalise=True, dispatch='dropless') | own)))


DENSE = config()


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


def drawn(cfg, seed=0):
    """Parameters of a model of `cfg` in NumPy, drawn without compiling anything."""
    shapes = jax.eval_shape(lambda: init(cfg, KEY))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        if path.endswith('scale'):
            return np.ones(x.shape, np.float32)
        width = 1 if 'embedding' in path or 'bias' in path else x.shape[1]
        width *= x.shape[-1] if path.endswith('/q') else 1
        return (rng.normal(size=x.shape) / width**0.5).astype(np.float32)

    return map_with_path(draw, shapes)


def become(params, old, new, seed=9):
    """What `remodel` does, with fresh parameters that cost nothing."""
    fresh = drawn(new, seed)
    found, notes = carried(jax.device_get(params), old, new, fresh)
    return unflatten(flatten(fresh) | flatten(found)), notes


@pytest.fixture(scope='module')
def dense(mesh):
    return drawn(DENSE)


BATCH = {
    f'{side}_{name}': np.random.default_rng(i).integers(3, V, (2, 7)).astype(np.int32)
    if name == 'input_tokens'
    else np.ones((2, 7), np.int32)
    for i, side in enumerate(('encoder', 'decoder'))
    for name in ('input_tokens', 'segment_ids')
}


def logits(cfg, params):
    return np.asarray(jit(lambda params: apply(cfg, params, BATCH)[0])(params))


@pytest.fixture(scope='module')
def said(dense):
    return logits(DENSE, dense)


def changed(params, how):
    """The tree with leaves changed by `how(path, x)`."""
    return unflatten({path: how(path, x) for path, x in flatten(params).items()})


def assert_trees_equal(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        experts(decoder=2, encoder=1),
        experts(decoder=(1,)) | dict(cross_attention=AttentionConfig(kv_layers=2)),
    ],
)
def test_restacking_undoes_unstacking(changes):
    cfg = config(**changes)
    shapes = jax.eval_shape(lambda: init(cfg, KEY))
    params = jax.tree.map(lambda x: np.random.default_rng(0).normal(size=x.shape), shapes)
    for stack, cross in dict(encoder=False, decoder=True).items():
        layers = unstack(cfg, params[stack]['layers'], cross)
        assert len(layers) == getattr(cfg, f'{stack}_layers')
        assert_trees_equal(restack(cfg, layers, cross), params[stack]['layers'])
        if changes:
            assert [i for i, x in enumerate(layers) if 'moe' in x] == {
                'encoder': [0, 1] if cfg.moe.encoder == 1 else [1],
                'decoder': [1],
            }[stack]
    with pytest.raises(ValueError, match='1 layers do not make a stack of 2'):
        restack(cfg, unstack(cfg, params['encoder']['layers'], False)[:1], False)


def test_a_layer_of_a_pattern_is_where_the_pattern_has_it():
    cfg = config(**experts(decoder=2), decoder_layers=4)
    layers = {
        '0': dict(attention=dict(q=np.array([0, 2]))),
        '1': dict(attention=dict(q=np.array([1, 3]))),
    }
    assert [int(x['attention']['q']) for x in unstack(cfg, layers, True)] == [0, 1, 2, 3]


@pytest.mark.parametrize('kv_heads', [2, 1])
def test_heads_are_pooled_to_their_mean(dense, kv_heads):
    new = config(**everywhere(kv_heads=kv_heads))
    pooled, notes = become(dense, DENSE, new)
    old, found = flatten(dense), flatten(pooled)
    assert found.keys() == old.keys()
    for path, x in found.items():
        if path.endswith(('/k', '/v')):
            group = 4 // kv_heads
            for j in range(kv_heads):
                mean = old[path][:, :, j * group : (j + 1) * group].mean(2)
                np.testing.assert_allclose(x[:, :, j], mean, atol=1e-7)
        else:
            np.testing.assert_array_equal(x, old[path])
    assert f'cross_attention: 4 key/value heads become {kv_heads}' in notes


def test_pooling_heads_that_are_alike_changes_nothing(dense):
    def alike(path, x):
        return np.repeat(x[:, :, ::2], 2, axis=2) if path.endswith(('/k', '/v')) else x

    params, new = changed(dense, alike), config(**everywhere(kv_heads=2))
    pooled, _ = become(params, DENSE, new)
    np.testing.assert_allclose(logits(new, pooled), logits(DENSE, params), atol=1e-5)
    whole, _ = become(pooled, new, DENSE)
    np.testing.assert_allclose(logits(DENSE, whole), logits(DENSE, params), atol=1e-5)


def test_layers_that_share_keys_have_the_mean_of_theirs(dense):
    new = config(**everywhere(kv_layers=2, kv_heads=2))
    shared, notes = become(dense, DENSE, new)
    old = dense['decoder']['layers']
    found = shared['decoder']['layers']
    for name in ('attention', 'cross'):
        for part in 'kv':
            x = old[name][part]
            mean = (x[0::2] + x[1::2]).reshape(1, 16, 2, 2, 8).mean(3) / 2
            np.testing.assert_allclose(found['0'][name][part], mean, atol=1e-7)
            assert part not in found['1'][name]
        np.testing.assert_array_equal(found['1'][name]['q'], old[name]['q'][1::2])
    assert 'cross_attention: keys and values are the mean of those of 2 layers' in notes


def test_giving_each_layer_its_own_cross_keys_changes_nothing():
    old = config(cross_attention=AttentionConfig(kv_layers=3, kv_heads=2), decoder_layers=3)
    new = config(decoder_layers=3)
    params = drawn(old)
    apart, notes = become(params, old, new)
    np.testing.assert_allclose(logits(new, apart), logits(old, params), atol=1e-5)
    assert 'cross_attention: layers without keys and values get those they used' in notes


def test_routing_all_heads_by_query_changes_nothing(dense, said):
    own = dict(routed_heads=3, head_router='query')
    new = config(**everywhere(top_heads=3, **own))
    routed, notes = become(dense, DENSE, new)
    assert_trees_equal(routed, dense)
    np.testing.assert_array_equal(logits(new, routed), said)
    assert 'encoder_attention: 3 of 4 heads are chosen by the norms of their queries' in notes
    fewer = config(**everywhere(top_heads=1, **own))
    assert np.abs(logits(fewer, routed) - said).max() > 1e-3


def test_learnt_routing_of_heads_with_even_scores_changes_nothing(dense, said):
    new = config(**everywhere(routed_heads=3, top_heads=3))
    routed, _ = become(dense, DENSE, new)
    fresh = flatten(routed).keys() - flatten(dense).keys()
    assert fresh and all('/gates/' in path for path in fresh)
    even = changed(routed, lambda path, x: 0 * x if path in fresh else x)
    np.testing.assert_allclose(logits(new, even), said, atol=1e-5)


@pytest.mark.parametrize(
    'changes',
    [
        experts(top_k=1),
        experts(top_k=2, encoder=(0,), decoder=1, shared=2),
        experts(top_k=2, dispatch='capacity', eval_capacity=8.0, shared=1),
    ],
)
def test_an_upcycled_model_equals_the_dense_one_at_step_0(dense, said, changes):
    new = config(**changes)
    sparse, notes = become(dense, DENSE, new)
    assert flatten(sparse).keys() == flatten(dims(new)).keys()
    np.testing.assert_allclose(logits(new, sparse), said, atol=1e-5)
    assert any('becomes 4 experts that are copies' in note for note in notes)
    assert not any('normalise' in note for note in notes)


def test_gates_below_one_are_told_of(dense, said):
    new = config(**experts(normalise=False))
    sparse, notes = become(dense, DENSE, new)
    assert any('model.moe.normalise=True' in note for note in notes)
    assert np.abs(logits(new, sparse) - said).max() > 1e-3


def test_experts_that_are_there_stay_when_more_layers_become_sparse(dense):
    half, all_of_them = config(**experts()), config(**experts(encoder=1, decoder=1))
    sparse, _ = become(dense, DENSE, half)
    marked = changed(sparse, lambda path, x: x + 1 if '/router/' in path else np.asarray(x))
    found, _ = become(marked, half, all_of_them, 8)
    routers = np.asarray(found['decoder']['layers']['moe']['router']['kernel'])
    np.testing.assert_array_equal(
        routers[1::2], marked['decoder']['layers']['1']['moe']['router']['kernel']
    )
    fresh = drawn(all_of_them, 8)['decoder']['layers']['moe']['router']['kernel']
    np.testing.assert_array_equal(routers[0::2], np.asarray(fresh)[0::2])
    np.testing.assert_allclose(logits(all_of_them, found), logits(half, marked), atol=1e-5)


def test_models_of_the_same_kind_are_left_alone(dense):
    found, notes = carried(dense, DENSE, config(dropout=0.1), dense)
    assert found == dense and not notes


def test_a_remodelled_tree_is_whole_and_lies_on_the_mesh(dense):
    new = config(encoder_attention=AttentionConfig(routed_heads=2, top_heads=1))
    found, _ = remodel(dense, DENSE, new, KEY)
    assert flatten(found).keys() == flatten(dims(new)).keys()
    assert all(isinstance(x, jax.Array) for x in flatten(found).values())
    assert 0 < found['encoder']['layers']['attention']['gates']['routed'].std() < 0.03
    with pytest.raises(UserError, match='the old model has D=16 and the new one D=32'):
        remodel(dense, DENSE, config(D=32), KEY)


def test_experts_of_another_width_are_refused(dense):
    words = 'width 16 does not become experts of model.moe.F=8; set model.moe.F=16'
    with pytest.raises(UserError, match=re.escape(words)):
        become(dense, DENSE, config(**experts(F=8)))


def test_key_heads_that_do_not_divide_are_refused():
    old = config(H=6, decoder_attention=AttentionConfig(kv_heads=3))
    new = config(H=6, decoder_attention=AttentionConfig(kv_heads=2))
    words = '3 key/value heads of model.decoder_attention do not become kv_heads=2'
    with pytest.raises(UserError, match=re.escape(words)):
        become(drawn(old), old, new)


def test_a_run_starts_from_one_of_another_model(dense, tmp_path, said):
    zero = jnp.int32(0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, TrainState(zero, dense, {}, KEY, zero), {}, dict(model=as_dict(DENSE)))
    checkpoints.close()
    new = config(**experts(top_k=2), **everywhere(kv_heads=4, kv_layers=1))
    fresh = jax.tree.map(jnp.asarray, drawn(new, 5))
    source = InitFromConfig(path=str(tmp_path))
    params, notes = init_from(source, fresh, dims(new), model_cfg=new)
    np.testing.assert_allclose(logits(new, params), said, atol=1e-5)
    assert any('these stay fresh: decoder/layers/1/moe/router/kernel' in note for note in notes)
    assert any('the MLP of layer 1 of the decoder becomes 4 experts' in note for note in notes)
    some = dataclasses.replace(source, include=('encoder/layers/*',), exclude=('*/mlp/*',))
    params, _ = init_from(some, fresh, dims(new), model_cfg=new)
    found, first = flatten(params), flatten(fresh)
    for path, x in found.items():
        mine = path.startswith('encoder/layers/') and '/mlp/' not in path and 'router' not in path
        assert mine != np.array_equal(x, first[path]) or path.endswith('scale'), path


def test_the_command_line_makes_a_sparse_multi_query_model_of_a_dense_run(tmp_path, capsys):
    settings = runs.read(str(tiny.write(tmp_path, train__steps=1)))
    settings = dataclasses.replace(settings, exams={})
    runs.train(settings, tmp_path / 'dense')
    more = ['moe.E=4', 'moe.encoder=1', 'moe.decoder=1', 'decoder_attention.kv_heads=1']
    settings = runs.read(
        str(tmp_path / 'config.py'),
        f'init_from.path={tmp_path / "dense"}',
        f'data.cache={tmp_path / "dense" / "cache"}',
        'optimizer.schedule.rate=0.0',
        *(f'model.{words}' for words in more),
    )
    runs.train(dataclasses.replace(settings, exams={}), tmp_path / 'sparse')
    told = ''.join(capsys.readouterr())
    assert 'decoder_attention: 2 key/value heads become 1' in told
    assert 'the MLP of layer 0 of the decoder becomes 4 experts' in told
    old, new = (flatten(Checkpoints(tmp_path / name).load_params()) for name in ('dense', 'sparse'))
    for expert in range(4):
        np.testing.assert_array_equal(
            new['decoder/layers/moe/up'][:, expert], old['decoder/layers/mlp/up']
        )
    keys = old['decoder/layers/attention/k']
    np.testing.assert_allclose(
        new['decoder/layers/attention/k'], keys.mean(2, keepdims=True), atol=1e-7
    )
