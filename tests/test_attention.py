"""Every kind of attention under the same laws, and against what others compute."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtpt import trees
from mtpt.config import UserError
from mtpt.mesh import AXES, MeshConfig, act, make_mesh, rows, weight
from mtpt.model.attention import Attention, check_kernel
from mtpt.model.config import AttentionConfig, ModelConfig, resolve
from mtpt.model.decode import greedy, log_probs
from mtpt.model.functional import apply, dims, encode, init, start, step
from mtpt.model.mixture_of_heads import LearntGates, QueryGates, report
from mtpt.model.positions import rotate

# Laws are about numbers, not speed: half of the time to compile.
jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))

V, S, T = 40, 12, 9
SMALL = dict(size='micro', D=16, H=4, K=8, F=16, encoder_layers=2, decoder_layers=2)
PLACES = ('encoder_attention', 'decoder_attention', 'cross_attention')


def everywhere(**own):
    return dict.fromkeys(PLACES, AttentionConfig(**own))


ROUTED = dict(routed_heads=3, top_heads=2)
VARIANTS = dict(
    grouped_without_positions=everywhere(kv_heads=2) | dict(positions='none'),
    multi_query=everywhere(kv_heads=1),
    across_layers=everywhere(kv_layers=2)
    | dict(cross_attention=AttentionConfig(kv_layers=3), decoder_layers=3),
    across_layers_multi_query=everywhere(kv_layers=2, kv_heads=1) | dict(decoder_layers=4),
    routed=everywhere(**ROUTED),
    rotated_and_routed_by_query=everywhere(head_router='query', **ROUTED) | dict(positions='rope'),
    all_at_once=everywhere(kv_heads=2, kv_layers=2, **ROUTED)
    | dict(decoder_layers=3, positions='rope'),
)


def config(**changes):
    return resolve(ModelConfig(**(SMALL | changes)), V)


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


@pytest.fixture(scope='module', params=VARIANTS)
def cfg(request):
    return config(**VARIANTS[request.param])


@pytest.fixture(scope='module')
def params(cfg, mesh):
    return started(cfg)


def started(cfg):
    """Weights of a lively model: heads differ, scores too, and routers choose."""
    shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(path, x):
        if path.endswith('scale'):
            return np.ones(x.shape, np.float32)
        width = 1 if 'embedding' in path or 'bias' in path else x.shape[1]
        width *= x.shape[-1] if path.endswith('/q') else 1
        return (rng.normal(size=x.shape) / width**0.5).astype(np.float32)

    return on_mesh(cfg, trees.map_with_path(draw, shapes))


def on_mesh(cfg, params):
    return jax.tree.map(lambda x, d: jax.device_put(x, weight(d)), params, dims(cfg))


LENGTHS = ((4, 3), (5, 2), (3, 4))


@pytest.fixture(scope='module')
def batch():
    """Row 0 holds three examples, rows 1 to 3 one each; 4 is 3 with another end, 5 with noise."""
    rng = np.random.default_rng(0)
    sides = dict(encoder=np.zeros((8, S), np.int32), decoder=np.zeros((8, T), np.int32))
    segments = {side: np.zeros_like(x) for side, x in sides.items()}
    used = dict(encoder=0, decoder=0)
    for i, lengths in enumerate(LENGTHS):
        for (side, x), n in zip(sides.items(), lengths):
            ids, at = rng.integers(3, V, n), used[side]
            x[0, at : at + n], segments[side][0, at : at + n] = ids, i + 1
            x[i + 1, :n], segments[side][i + 1, :n] = ids, 1
            used[side] += n
    for side, x in sides.items():
        x[4:], segments[side][4:] = x[3], segments[side][3]
        x[5] = np.where(segments[side][5], x[5], 7)
    sides['decoder'][4, 2:4] = [5, 6]
    found = {f'{side}_input_tokens': x for side, x in sides.items()}
    return found | {f'{side}_segment_ids': x for side, x in segments.items()}


@pytest.fixture(scope='module')
def logits(cfg, params, batch):
    return np.asarray(jit(lambda params: apply(cfg, params, batch)[0])(params))


def test_a_packed_row_equals_separate_rows(logits):
    at = 0
    for i, (_, n) in enumerate(LENGTHS):
        np.testing.assert_allclose(logits[0, at : at + n], logits[i + 1, :n], atol=3e-5)
        at += n


def test_nothing_comes_from_the_future_or_from_padding(logits):
    np.testing.assert_allclose(logits[4, :2], logits[3, :2], atol=2e-6)
    assert np.abs(logits[4, 2:4] - logits[3, 2:4]).max() > 1e-2
    np.testing.assert_allclose(logits[5, :4], logits[3, :4], atol=2e-6)


def test_a_cached_step_equals_the_full_forward(cfg, params, batch, logits):
    def steps(params):
        tokens, segments = batch['encoder_input_tokens'], batch['encoder_segment_ids']
        one = {'encoder_input_tokens': tokens[1:5], 'encoder_segment_ids': segments[1:5]}
        encoded = encode(cfg, params, *one.values())

        def one_more(cache, tokens_B):
            logits_BV, cache = step(cfg, params, cache, tokens_B)
            return cache, logits_BV

        written = rows(batch['decoder_input_tokens'][1:5])
        return jax.lax.scan(one_more, start(cfg, params, encoded, T), written.T)[1]

    stepped = np.moveaxis(np.asarray(jit(steps)(params)), 0, 1)
    for i, (_, n) in enumerate(LENGTHS):
        np.testing.assert_allclose(stepped[i, :n], logits[i + 1, :n], atol=3e-5)


def loss(cfg, params, batch):
    logits_BTV, aux = apply(cfg, params, batch)
    real_BT = batch['decoder_segment_ids'] > 0
    terms_BT = jnp.where(real_BT, log_probs(logits_BTV, batch['decoder_input_tokens']), 0)
    extra = sum((x for name, x in aux.items() if name.startswith('loss/')), start=0.0)
    return -jnp.sum(terms_BT) / jnp.sum(real_BT) + extra, aux


def learnt(cfg, params, batch):
    """Loss, reports and gradients."""
    found = jit(jax.value_and_grad(partial(loss, cfg), has_aux=True))(params, batch)
    return jax.device_get(found)


@pytest.mark.parametrize('name', ['multi_query', 'rotated_and_routed_by_query', 'all_at_once'])
def test_neither_the_mesh_nor_scanning_changes_loss_and_gradients(name, batch):
    cfg = config(**VARIANTS[name])
    params = started(cfg)
    expected = learnt(cfg, params, batch)
    assert_same(learnt(dataclasses.replace(cfg, scan=False), params, batch), expected)
    host = jax.device_get(params)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        placed = {name: rows(x) for name, x in batch.items()}
        assert_same(learnt(cfg, on_mesh(cfg, host), placed), expected)


def test_steps_are_the_same_when_everything_is_split(batch):
    cfg = config(**VARIANTS['all_at_once'])
    inputs, host = batch['encoder_input_tokens'], jax.device_get(started(cfg))
    written = []
    for sizes in (dict(), dict(data=2, fsdp=2, tensor=2)):
        with jax.set_mesh(make_mesh(MeshConfig(**sizes))):
            written.append(np.asarray(greedy(cfg, on_mesh(cfg, host), inputs, T)))
    np.testing.assert_array_equal(*written)
    assert len(np.unique(written[0])) > 3


def assert_same(found, expected):
    (value, aux), grads = found
    (expected_value, expected_aux), expected_grads = expected
    np.testing.assert_allclose(value, expected_value, rtol=2e-5)
    assert aux.keys() == expected_aux.keys()
    for name, x in expected_aux.items():
        np.testing.assert_allclose(aux[name], x, rtol=2e-5, err_msg=name)
    expected_grads = trees.flatten(expected_grads)
    for path, grad in trees.flatten(grads).items():
        np.testing.assert_allclose(grad, expected_grads[path], rtol=1e-3, atol=3e-5, err_msg=path)


def attended(own, seed=0, B=2, real_BT=None, low=False, **changes):
    """What an attention gives for random input, what it reports, and what it was made of."""
    dtype = 'bfloat16' if low else 'float32'
    cfg = config(dtype=dtype, **changes)
    module = Attention(cfg, own, nnx.Rngs(params=jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    x_BTD, y_BSD = (rng.normal(size=(B, n, cfg.D)).astype(np.float32) for n in (T, S))
    bias_1HTS = rng.normal(size=(1, cfg.H, T, S)).astype(np.float32)
    mask_B1TS = rng.random((B, 1, T, S)) < 0.7
    mask_B1TS[..., 0] = True
    given = dict(x=x_BTD, y=y_BSD, bias=bias_1HTS, mask=mask_B1TS)
    x_BTD, y_BSD, mask_B1TS = rows(x_BTD.astype(dtype)), rows(y_BSD.astype(dtype)), rows(mask_B1TS)
    bias_1HTS = jax.reshard(bias_1HTS, act('1HTS'))
    given |= dict(module=module, heads=[module.q, module.k, module.v, module.o])
    kv = module.keys_values(y_BSD)
    z_BTD, aux = module(x_BTD, kv, bias_1HTS, mask_B1TS, real_BT=real_BT)
    return z_BTD.astype(jnp.float32), aux, given


def by_formula(given, gates_BTH=1.0):
    """What heads gather, in float64, with the keys of head h of H being those of h J // H of J."""
    q, k, v, o = (np.asarray(w[...], np.float64) for w in given['heads'])
    H, J = q.shape[1], k.shape[1]
    k, v = (np.repeat(w, H // J, axis=1) for w in (k, v))
    q_BTHK = np.einsum('btd,dhk->bthk', given['x'], q)
    k_BSHK, v_BSHK = (np.einsum('bsd,dhk->bshk', given['y'], w) for w in (k, v))
    scores = np.einsum('bthk,bshk->bhts', q_BTHK, k_BSHK) + given['bias']
    scores = np.where(given['mask'], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    y_BTHK = np.einsum('bhts,bshk->bthk', p, v_BSHK)
    gates_BTH = np.broadcast_to(gates_BTH, y_BTHK.shape[:3])
    return np.einsum('bth,bthk,hkd->btd', gates_BTH, y_BTHK, o), q_BTHK


@pytest.mark.parametrize('kv_heads', [4, 2, 1])
def test_attention_is_the_formula(kv_heads):
    z_BTD, aux, given = attended(AttentionConfig(kv_heads=kv_heads))
    assert given['module'].k.shape == (16, kv_heads, 8) and not aux
    np.testing.assert_allclose(z_BTD, by_formula(given)[0], atol=1e-5)


def test_as_many_key_heads_as_heads_is_multi_head_attention(batch):
    plain, grouped = config(), config(**everywhere(kv_heads=4))
    assert dims(plain) == dims(grouped)
    params = started(plain)
    first, second = (jit(lambda p, c=c: apply(c, p, batch)[0])(params) for c in (plain, grouped))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('kv_heads', [2, 1])
def test_grouped_attention_is_that_of_torch(kv_heads):
    torch = pytest.importorskip('torch')
    z_BTD, _, given = attended(AttentionConfig(kv_heads=kv_heads))
    q, k, v, o = (torch.tensor(np.asarray(w[...])) for w in given['heads'])
    x, y, bias, mask = (torch.tensor(given[name]) for name in ('x', 'y', 'bias', 'mask'))
    heads = [torch.einsum('btd,dhk->bhtk', a, w) for a, w in ((x, q), (y, k), (y, v))]
    bias = torch.where(mask, bias, float('-inf'))
    gathered = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=bias, scale=1.0, enable_gqa=True
    )
    expected = torch.einsum('bhtk,hkd->btd', gathered, o)
    np.testing.assert_allclose(z_BTD, expected.numpy(), atol=1e-5)


def test_the_fused_kernel_is_given_what_the_other_computes(monkeypatch):
    plain = jax.nn.dot_product_attention

    def instead(*args, implementation, **more):
        assert implementation == 'cudnn' and args[0].dtype == jnp.bfloat16
        return plain(*args, implementation='xla', **more)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', instead)
    for sizes in (dict(), dict(data=2, fsdp=2, tensor=2)):
        with jax.set_mesh(make_mesh(MeshConfig(**sizes))):
            for kv_heads in (4, 2):
                own = AttentionConfig(kv_heads=kv_heads)
                fused, expected = (
                    jit(lambda k=k, own=own: attended(own, B=4, low=True, kernel=k)[0])()
                    for k in ('cudnn', 'xla')
                )
                np.testing.assert_allclose(fused, expected, atol=0.03)
                assert np.abs(expected).max() > 0.5


def test_rotation_is_multiplication_of_complex_numbers():
    rng = np.random.default_rng(0)
    x_BTHK, positions_BT = rng.normal(size=(2, 5, 3, 8)), rng.integers(0, 500, (2, 5))
    pairs = x_BTHK[..., :4] + 1j * x_BTHK[..., 4:]
    turned = pairs * np.exp(1j * positions_BT[..., None, None] * 10000.0 ** (-np.arange(4) / 4))
    expected = np.concatenate([turned.real, turned.imag], -1)
    found = rotate(jnp.asarray(x_BTHK, jnp.float32), jnp.asarray(positions_BT))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_rotation_is_that_of_llama_in_transformers():
    torch = pytest.importorskip('torch')
    llama = pytest.importorskip('transformers.models.llama.modeling_llama')
    theirs = llama.LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    x_BTHK = np.random.default_rng(1).normal(size=(2, 20, 4, 8)).astype(np.float32)
    q = torch.tensor(np.moveaxis(x_BTHK, 2, 1))
    cos, sin = llama.LlamaRotaryEmbedding(theirs)(q, torch.arange(20)[None])
    expected, _ = llama.apply_rotary_pos_emb(q, q, cos, sin)
    found = rotate(jnp.asarray(x_BTHK), jnp.arange(20))
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, 2), atol=1e-5)


def test_rotated_scores_depend_on_the_difference_of_positions():
    q_BTHK, k_BTHK = jax.random.normal(jax.random.key(0), (2, 1, 6, 2, 8))

    def scores(shift):
        turned = [rotate(x, jnp.arange(6) + shift) for x in (q_BTHK, k_BTHK)]
        return jnp.einsum('bthk,bshk->bhts', *turned)

    np.testing.assert_allclose(scores(0), scores(100), atol=1e-4)
    assert np.abs(scores(0) - jnp.einsum('bthk,bshk->bhts', q_BTHK, k_BTHK)).max() > 0.1


def softmax(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize('routed, top', [(3, 2), (2, 1), (4, 3)])
def test_learnt_gates_are_those_of_the_paper_and_its_code(routed, top):
    own = AttentionConfig(routed_heads=routed, top_heads=top, kv_heads=2)
    real_BT = rows(jnp.arange(T)[None] < jnp.array([[T], [4]]))
    z_BTD, aux, given = attended(own, real_BT=real_BT)
    gates, shared = given['module'].gates, 4 - routed
    weights = {
        n: np.asarray(w[...], np.float64) for n, w in vars(gates).items() if 'Param' in str(type(w))
    }
    scores = {name: softmax(given['x'] @ w) for name, w in weights.items()}
    least = np.sort(scores['routed'])[..., -top, None]
    chosen = (scores['routed'] >= least).astype(float)
    expected = chosen * scores['routed']
    expected *= top / expected.sum(-1, keepdims=True)
    if shared:
        first = shared * (scores['shared'] if shared > 1 else np.ones_like(expected[..., :1]))
        kinds = 2 * scores['kinds']
        expected = np.concatenate([first * kinds[..., :1], expected * kinds[..., 1:]], -1)
    np.testing.assert_allclose(z_BTD, by_formula(given, expected)[0], atol=1e-5)
    real = np.asarray(real_BT)
    load, mean = (x[real].mean(0) for x in (chosen, scores['routed']))
    np.testing.assert_allclose(
        aux['loss/head_balance'], own.head_balance * routed * (load * mean).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(aux['heads/load_max'], load.max() / load.mean(), rtol=1e-5)


def test_even_scores_give_gates_of_one():
    cfg = config()
    for routed in (2, 3, 4):
        own = AttentionConfig(routed_heads=routed, top_heads=routed)
        gates = LearntGates(cfg, own, nnx.Rngs(params=jax.random.key(0)))
        found, probs, chosen = gates(jnp.zeros((1, 1, cfg.D)), None)
        np.testing.assert_allclose(found, np.ones((1, 1, 4)), atol=1e-6)
        even = report(probs, chosen, jnp.ones((1, 1), bool), 1.0)
        np.testing.assert_allclose(even['loss/head_balance'], routed, rtol=1e-6)
        np.testing.assert_allclose(even['heads/load_max'], 1, rtol=1e-6)


def test_gates_by_query_take_the_heads_of_the_largest_queries():
    own = AttentionConfig(head_router='query', kv_heads=2, **ROUTED)
    z_BTD, aux, given = attended(own)
    norm_BTH = np.linalg.norm(by_formula(given)[1], axis=-1)
    last_BT1 = np.argmin(norm_BTH[..., 1:], -1)[..., None] + 1
    gates_BTH = (np.arange(4) != last_BT1).astype(float)
    np.testing.assert_allclose(z_BTD, by_formula(given, gates_BTH)[0], atol=1e-5)
    assert not aux


def test_with_all_heads_chosen_gates_by_query_are_multi_head_attention(batch):
    plain = config()
    own = dict(routed_heads=3, top_heads=3, head_router='query')
    routed = config(**everywhere(**own))
    assert dims(plain) == dims(routed)
    params = started(plain)
    first, (second, aux) = (jit(lambda p, c=c: apply(c, p, batch))(params) for c in (plain, routed))
    np.testing.assert_array_equal(first[0], second)
    assert aux['heads/load_max'] == 1


def test_gates_by_query_have_the_gradient_of_their_probability():
    cfg, own = config(), AttentionConfig(head_router='query', **ROUTED)
    gates = QueryGates(cfg, own, nnx.Rngs(params=jax.random.key(0)))
    q_BTHK, c_BTH = jax.random.normal(jax.random.key(1), (2, 1, 2, 4, 8))
    c_BTH = c_BTH[..., 0]

    def given(q_BTHK):
        return jnp.sum(gates(None, q_BTHK)[0] * c_BTH)

    def expected(q_BTHK):
        norm = jnp.linalg.norm(q_BTHK[..., 1:, :], axis=-1)
        probs = jax.nn.softmax(norm / jnp.std(norm, -1, keepdims=True, ddof=1))
        kept = norm > norm.min(-1, keepdims=True)
        return jnp.sum(jnp.where(kept, probs, 0) * c_BTH[..., 1:])

    np.testing.assert_allclose(jax.grad(given)(q_BTHK), jax.grad(expected)(q_BTHK), atol=1e-5)
    assert np.isfinite(jax.grad(given)(jnp.zeros_like(q_BTHK))).all()


@pytest.mark.parametrize(
    'changes',
    [
        everywhere(kv_heads=4, kv_layers=2, routed_heads=12, top_heads=8),
        everywhere(kv_heads=1, kv_layers=3, head_router='query', routed_heads=12, top_heads=8)
        | dict(positions='rope'),
    ],
)
def test_a_large_model_type_checks_on_a_machine_that_is_not_there(changes):
    cfg = resolve(ModelConfig(size='large', dtype='bfloat16', dropout=0.1, **changes), 32128)
    mesh = jax.sharding.AbstractMesh(
        (4, 16, 1, 4), AXES, axis_types=(jax.sharding.AxisType.Explicit,) * 4
    )
    names = [f'{s}_{n}' for s in ('encoder', 'decoder') for n in ('input_tokens', 'segment_ids')]
    sharding = jax.NamedSharding(mesh, act('BT'))
    batch = {n: jax.ShapeDtypeStruct((256, 512), jnp.int32, sharding=sharding) for n in names}
    nothing = jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
    with nothing, jax.sharding.use_abstract_mesh(mesh):
        params = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
        grads, _ = jax.eval_shape(jax.grad(partial(loss, cfg), has_aux=True), params, batch)
    letters = trees.flatten(dims(cfg))
    for path, grad in trees.flatten(grads).items():
        assert grad.sharding.spec == weight(letters[path]), path


WHERE = 'model.decoder_attention'


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            dict(decoder_attention=AttentionConfig(kv_heads=3)),
            f'{WHERE}.kv_heads=3 does not divide',
        ),
        (dict(decoder_attention=AttentionConfig(kv_heads=-1)), f'{WHERE}.kv_heads=-1'),
        (
            dict(decoder_attention=AttentionConfig(kv_layers=0)),
            f'{WHERE}.kv_layers=0 must be at least 1',
        ),
        (
            dict(cross_attention=AttentionConfig(routed_heads=2, top_heads=3)),
            'model.cross_attention.top_heads=3 must be from 1 to '
            'model.cross_attention.routed_heads=2',
        ),
        (dict(decoder_attention=AttentionConfig(routed_heads=2)), f'{WHERE}.top_heads=0 must be'),
        (dict(decoder_attention=AttentionConfig(top_heads=2)), f'{WHERE}.routed_heads too'),
        (
            dict(decoder_attention=AttentionConfig(routed_heads=9, top_heads=1)),
            f'{WHERE}.routed_heads=9 must be at most the H=4 heads',
        ),
        (
            dict(decoder_attention=AttentionConfig(head_router='lernt')),
            "no head router 'lernt'; did you mean 'learnt'",
        ),
        (
            dict(decoder_attention=AttentionConfig(head_balance=-1.0)),
            f'{WHERE}.head_balance=-1.0 must be at least 0',
        ),
        (dict(kernel='cudnn'), "set model.dtype='bfloat16', or model.kernel='xla'"),
        (
            dict(kernel='cudnn', dtype='bfloat16', dropout=0.1),
            "set model.dropout=0, or model.kernel='xla'",
        ),
        (dict(kernel='cudnn', dtype='bfloat16', K=12), 'model.K=12 must be a multiple of 8'),
        (dict(positions='rope', K=7), "model.K=7 must be even for model.positions='rope'"),
        (dict(positions='roap'), "no position scheme 'roap'; did you mean 'rope'"),
    ],
)
def test_an_attention_that_cannot_be_is_refused_in_a_sentence(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        config(**changes)


def test_a_fused_kernel_on_the_wrong_machine_is_refused_in_a_sentence():
    cfg, lengths = config(kernel='cudnn', dtype='bfloat16'), {'data.inputs_length': 512}
    check_kernel(cfg, 'gpu', lengths)
    check_kernel(config(), 'cpu', {'data.inputs_length': 7})
    words = "model.kernel='cudnn' needs a GPU, and this run is on a CPU; set model.kernel='xla'"
    with pytest.raises(UserError, match=re.escape(words)):
        check_kernel(cfg, 'cpu', lengths)
    with pytest.raises(UserError, match=r'data\.inputs_length=7 must be even'):
        check_kernel(cfg, 'gpu', {'data.inputs_length': 7})
