import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from mtpt import chips, trees
from mtpt.mesh import BATCH_DIMS, act, make_mesh
from mtpt.model import cost, functional, grouped
from mtpt.model.config import SIZES, AttentionConfig, HeadConfig, ModelConfig, MoeConfig, resolve
from mtpt.model.task_routing import knows_tasks
from mtpt.train.optimizer import OptimizerConfig, make_optimizer
from mtpt.train.state import abstract_state
from mtpt.train.step import make_train_step

V = 32128
GROUPED, MULTI_QUERY = AttentionConfig(kv_heads=2), AttentionConfig(kv_heads=1)
SHARED_KEYS = AttentionConfig(kv_layers=2)
MIXED_HEADS = AttentionConfig(routed_heads=2, top_heads=1)


def everywhere(attention):
    return {f'{place}_attention': attention for place in ('encoder', 'decoder', 'cross')}


def by(router):
    return dict(encoder_router=router, decoder_router=router)


VARIANTS = dict(
    dense={},
    tied=dict(tied=True),
    relu=dict(mlp='relu'),
    rope=dict(positions='rope'),
    grouped=everywhere(GROUPED),
    multi_query=everywhere(MULTI_QUERY),
    shared_keys=everywhere(SHARED_KEYS),
    shared_grouped_keys=everywhere(AttentionConfig(kv_heads=2, kv_layers=4)),
    mixed_heads=everywhere(MIXED_HEADS),
    sparse=dict(moe=MoeConfig(E=8, capacity=1.0)),
    sparse_encoder=dict(moe=MoeConfig(E=4, top_k=2, F=256, decoder=0, encoder=(1,), capacity=1.0)),
    shared_experts=dict(moe=MoeConfig(E=4, shared=2, F=512, capacity=1.0)),
    dropless=dict(moe=MoeConfig(E=4, top_k=2, dispatch='dropless')),
    task_aware=dict(moe=MoeConfig(E=4, top_k=2, **by('task_aware'))),
    soft_tasks=dict(moe=MoeConfig(E=4, task_choice='soft', **by('task'))),
    hard_tasks=dict(moe=MoeConfig(E=4, task_choice='hard', **by('task'))),
    enforced=dict(moe=MoeConfig(E=4, expert_of_task=(0, 1, 2), **by('enforced'))),
    prefix_lm=dict(kind='prefix_lm'),
    sparse_prefix_lm=dict(kind='prefix_lm', moe=MoeConfig(E=4, capacity=1.0)),
    classifier=dict(kind='encoder', heads=(HeadConfig(labels=('yes', 'no')),)),
    contrastive=dict(heads=(HeadConfig(kind='contrastive'),)),
    expert_choice=dict(moe=MoeConfig(E=4, encoder_router='expert_choice', decoder=0, capacity=2.0)),
)


def small(name):
    return resolve(ModelConfig(size='small', remat='none', **VARIANTS[name]), V, M=2)


@pytest.fixture(scope='module', autouse=True)
def mesh():
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        yield mesh


@pytest.mark.parametrize('name', VARIANTS)
def test_parameters_are_those_that_init_makes(name):
    cfg = small(name)
    counted = cost.parameters(cfg)
    assert counted.total == trees.count(
        jax.eval_shape(lambda: functional.init(cfg, jax.random.key(0)))
    )
    layers = counted.total - counted.embedding - counted.heads - counted.experts
    assert layers == counted.encoder + counted.decoder
    if not cfg.heads and not knows_tasks(cfg):
        assert counted.heads == (0 if cfg.tied else cfg.D * V)
    assert counted.active <= counted.total
    assert (counted.active < counted.total) == (bool(cfg.moe.E) and name != 'soft_tasks')


def test_every_size_is_counted_without_memory():
    for size in SIZES:
        cfg = resolve(ModelConfig(size=size), V)
        counted = cost.parameters(cfg)
        shapes = jax.eval_shape(lambda cfg=cfg: functional.init(cfg, jax.random.key(0)))
        assert counted.total == trees.count(shapes), size
        if not cfg.moe.E:
            assert counted.active == counted.total and counted.experts == counted.expert == 0


def test_a_token_passes_its_own_experts_and_the_shared_ones():
    dense = resolve(ModelConfig(size='small'), V)
    sparse = resolve(ModelConfig(size='small', moe=MoeConfig(E=64, top_k=2)), V)
    counted, layers = cost.parameters(sparse), 4 + 4
    assert counted.expert == 3 * 512 * 1024
    assert counted.experts == layers * 64 * counted.expert
    routers = layers * 512 * 64
    assert counted.active == cost.parameters(dense).total + layers * counted.expert + routers
    shared = dataclasses.replace(sparse, moe=dataclasses.replace(sparse.moe, shared=1))
    assert cost.parameters(shared).active == counted.active + layers * counted.expert


def test_switch_base_has_the_parameters_of_the_paper():
    """2101.03961, table 9: 7 B parameters, with 128 experts in every second layer."""
    base = dict(D=768, H=12, K=64, F=2048, encoder_layers=12, decoder_layers=12)
    cfg = resolve(ModelConfig(**base, mlp='geglu', tied=True, moe=MoeConfig(E=128)), V)
    assert round(cost.parameters(cfg).total / 1e9) == 7


# FLOPs of 512 inputs and 114 targets, worked out for published throughputs: G a sequence.
PUBLISHED = dict(small=106, base=426, large=1468, xl=5346, xxl=20900)


@pytest.mark.parametrize('size', PUBLISHED)
def test_flops_of_the_published_sizes(size):
    flops = cost.train_flops(resolve(ModelConfig(size=size), V), 512, 114)
    assert abs(flops / 1e9 / PUBLISHED[size] - 1) < 0.005


@pytest.mark.parametrize('name', VARIANTS)
def test_flops_are_those_of_the_products_in_a_training_step(name, mesh, monkeypatch):
    # Of the ways to multiply by group, the one that says what is asked for, without blocks.
    monkeypatch.setattr(grouped, 'METHODS', dict(default=grouped.METHODS['default']))
    B, S, T = 4, 512, 128
    cfg = small(name)
    spent = flops_of(step_of(cfg, B, S, T, mesh))
    assert abs(cost.train_flops(cfg, S, T, B, slots=True) / spent - 1) < 0.02


def test_a_slack_capacity_is_spent_and_not_asked_for(mesh):
    roomy = dataclasses.replace(small('sparse'), moe=MoeConfig(E=8, F=1024, capacity=2.0))
    asked, spent = (cost.train_flops(roomy, 512, 128, slots=slots) for slots in (False, True))
    assert asked == cost.train_flops(small('sparse'), 512, 128) < spent
    assert abs(4 * spent / flops_of(step_of(roomy, 4, 512, 128, mesh)) - 1) < 0.02


def test_what_is_recomputed_does_not_count(mesh):
    cfg = small('dense')
    full = dataclasses.replace(cfg, remat='full')
    assert cost.train_flops(full, 512, 128) == cost.train_flops(cfg, 512, 128)
    assert flops_of(step_of(full, 2, 512, 128, mesh)) > 1.2 * cost.train_flops(cfg, 512, 128, 2)


def step_of(cfg, B, S, T, mesh):
    """The jaxpr of the training step, optimizer included, traced on shapes alone."""
    tx = make_optimizer(OptimizerConfig(name='adamw'), functional.dims(cfg), 10)
    loss = dict(z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor='tokens')
    step = make_train_step(cfg, tx, 2, **loss)
    sizes = dict(B=B, S=S, T=T, G=4, O=1)
    batch = {
        name: jax.ShapeDtypeStruct(
            tuple(sizes[d] for d in dims), jnp.int32, sharding=jax.NamedSharding(mesh, act(dims))
        )
        for name, dims in BATCH_DIMS.items()
        if set(dims) <= set(sizes)
    }
    jaxpr = step.trace(abstract_state(cfg, tx, mesh), batch).jaxpr.jaxpr
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def flops_of(jaxpr):
    """2 m k n of every product in a jaxpr, the body of a scan as often as it runs."""
    total = 0
    for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        name = eqn.primitive.name
        if name == 'dot_general':
            (contracted, _), _ = eqn.params['dimension_numbers']
            size = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * size
        elif name.startswith('ragged_dot'):
            lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
            numbers = eqn.params['ragged_dot_dimension_numbers'].dot_dimension_numbers
            (contracted, _), _ = numbers
            free = [n for i, n in enumerate(rhs) if i not in numbers[0][1]]
            ragged = eqn.params['ragged_dot_dimension_numbers'].rhs_group_dimensions
            free = math.prod(free) // math.prod(rhs[i] for i in ragged)
            total += 2 * math.prod(lhs) * free
        times = eqn.params.get('length', 1) if name == 'scan' else 1
        if name == 'shard_map':
            times = eqn.params['mesh'].size
        inner = [flops_of(x) for x in jax.tree.leaves(eqn.params, is_leaf=is_jaxpr) if is_jaxpr(x)]
        total += times * (max(inner, default=0) if name == 'cond' else sum(inner))
    return total


def is_jaxpr(x):
    return hasattr(x, 'eqns') or hasattr(x, 'jaxpr')


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
    'name', ['dense', 'grouped', 'multi_query', 'shared_keys', 'shared_grouped_keys']
)
def test_cache_bytes_are_those_of_the_cache_that_start_makes(name, dtype):
    B, S, T = 3, 24, 7
    cfg = dataclasses.replace(small(name), dtype=dtype)
    params = cost.shapes(cfg)
    tokens_BS = jax.ShapeDtypeStruct((B, S), jnp.int32)

    def begin(params, tokens_BS):
        encoded = functional.encode(cfg, params, tokens_BS, tokens_BS)
        return functional.start(cfg, params, encoded, T)

    cache = jax.eval_shape(begin, params, tokens_BS)
    counted = cost.cache_bytes(cfg, B, S, T)
    assert (counted.own, counted.cross) == (nbytes(cache.own), nbytes(cache.cross))


def nbytes(tree):
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_fewer_heads_and_shared_layers_make_the_cache_smaller_by_as_much():
    total = {name: cost.cache_bytes(small(name), 8, 512, 128).total for name in VARIANTS}
    H = small('dense').H
    assert total['dense'] == 8 * 2 * (512 + 128) * 8 * 6 * 64 * 4
    assert total['dense'] == H * total['multi_query'] == H // 2 * total['grouped']
    assert total['dense'] == 2 * total['shared_keys'] == 4 * H // 2 * total['shared_grouped_keys']
    assert total['dense'] == total['sparse'] == total['mixed_heads']


def test_peaks_go_by_the_names_that_devices_give_themselves():
    names = ('NVIDIA H200', 'NVIDIA H100 80GB HBM3', 'TPU v5 lite', 'TPU v5', 'cpu')
    assert [chips.peak_flops(name) for name in names] == [989e12, 989e12, 197e12, 459e12, None]


def test_the_counter_counts_a_product_and_a_scan():
    def f(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    x, w = np.zeros((5, 7), np.float32), np.zeros((3, 7, 7), np.float32)
    assert flops_of(jax.make_jaxpr(f)(x, w)) == 3 * 2 * 5 * 7 * 7
