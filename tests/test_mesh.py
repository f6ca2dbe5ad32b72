import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtpt import trees
from mtpt.config import UserError
from mtpt.mesh import (
    AXES,
    BATCH_DIMS,
    MeshConfig,
    act,
    arrange,
    check_divides,
    einsum,
    make_mesh,
    place,
    rows,
    share,
    weight,
)
from mtpt.model.config import ModelConfig, resolve
from mtpt.model.decode import log_probs
from mtpt.model.functional import apply, dims, init

# Laws are about numbers, not speed: half of the time to compile.
jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))

SIX = (
    MeshConfig(),
    MeshConfig(data=8),
    MeshConfig(fsdp=4),
    MeshConfig(tensor=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(data=2, expert=2, tensor=2),
)


def packed_batch(V, B=8, S=16, T=8):
    """Rows of two segments and some padding on both sides."""
    rng = np.random.default_rng(0)
    segments_S = np.repeat([1, 2, 0], [S // 2, S // 4, S - S // 2 - S // 4])
    segments_T = np.repeat([1, 2, 0], [T // 2, T // 4, T - T // 2 - T // 4])
    tokens = {
        'encoder_input_tokens': rng.integers(3, V, (B, S)) * (segments_S > 0),
        'decoder_input_tokens': rng.integers(3, V, (B, T)) * (segments_T > 0),
        'decoder_target_tokens': rng.integers(3, V, (B, T)) * (segments_T > 0),
        'encoder_segment_ids': np.tile(segments_S, (B, 1)),
        'decoder_segment_ids': np.tile(segments_T, (B, 1)),
    }
    return {name: x.astype(np.int32) for name, x in tokens.items()}


def mean_loss(cfg, params, batch, key=None):
    logits_BTV, _ = apply(cfg, params, batch, key)
    real_BT = batch['decoder_segment_ids'] > 0
    loss_BT = -log_probs(logits_BTV, batch['decoder_target_tokens'])
    return jnp.sum(jnp.where(real_BT, loss_BT, 0)) / jnp.sum(real_BT)


def test_the_loss_and_its_gradient_are_the_same_on_six_meshes():
    cfg = resolve(
        ModelConfig(size='micro', H=4, K=8, encoder_layers=2, tied=False, remat='none'), 64
    )
    batch = packed_batch(cfg.V)
    with jax.set_mesh(make_mesh()):
        params = jax.device_get(jit(partial(init, cfg))(jax.random.key(0)))
    specs = trees.flatten(jax.tree.map(weight, dims(cfg)))
    results = []
    for sizes in SIX:
        mesh = make_mesh(sizes)
        shardings = {p: jax.NamedSharding(mesh, spec) for p, spec in specs.items()}
        here = jax.device_put(trees.flatten(params), shardings)
        with jax.set_mesh(mesh):
            graded = jit(jax.value_and_grad(partial(mean_loss, cfg)))
            loss, grads = graded(trees.unflatten(here), place(batch, mesh))
            for path, grad in trees.flatten(grads).items():
                assert grad.sharding.spec == here[path].sharding.spec, path
        results.append((loss, jax.device_get(grads)))
    for loss, grads in results[1:]:
        np.testing.assert_allclose(loss, results[0][0], rtol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), grads, results[0][1])


def test_parameters_are_born_the_same_on_every_mesh():
    cfg = resolve(ModelConfig(size='micro'), 64)
    born = []
    for sizes in (MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)):
        with jax.set_mesh(make_mesh(sizes)):
            born.append(jit(partial(init, cfg))(jax.random.key(3)))
    assert born[1]['token_embedding'].sharding.spec == jax.P('tensor', 'fsdp')
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), *jax.device_get(born))


def test_letters_say_how_weights_and_activations_are_split():
    assert act('BTHK') == jax.P(('data', 'fsdp', 'expert'), None, 'tensor', None)
    assert weight('NDHK') == jax.P(None, 'fsdp', 'tensor', None)
    assert weight('EDF') == jax.P('expert', 'fsdp', 'tensor')


def test_einsum_splits_its_result_as_the_letters_say():
    x_BTD, w_DHK = np.ones((8, 4, 6), np.float32), np.arange(48, dtype=np.float32).reshape(6, 4, 2)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=4))):
        x, w = rows(x_BTD), jax.device_put(w_DHK, weight('DHK'))
        y = jax.jit(partial(einsum, 'BTD,DHK->BTHK'))(x, w)
        assert y.sharding.spec == act('BTHK')
    np.testing.assert_allclose(y, np.einsum('BTD,DHK->BTHK', x_BTD, w_DHK), rtol=1e-6)


def test_einsum_computes_in_the_dtype_of_its_first_operand():
    with jax.set_mesh(make_mesh()):
        y = einsum('BTD,DF->BTF', jnp.ones((1, 2, 3), jnp.bfloat16), jnp.ones((3, 4)))
    assert y.dtype == jnp.bfloat16


def test_a_batch_is_split_by_rows_and_its_accumulation_axis_is_not():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    flat = dict(segment_task_ids=np.arange(12, dtype=np.int32).reshape(4, 3))
    placed = place(flat, mesh)['segment_task_ids']
    assert placed.sharding.shard_shape(placed.shape) == (1, 3)
    np.testing.assert_array_equal(placed, flat['segment_task_ids'])
    stacked = place({'encoder_input_tokens': np.zeros((2, 4, 5), np.int32)}, mesh)
    assert stacked['encoder_input_tokens'].sharding.spec == jax.P(None, *act('BS'))
    assert set(BATCH_DIMS) >= {'decoder_loss_weights', 'encoder_positions'}
    with pytest.raises(UserError, match=r"'teacher'.*BATCH_DIMS"):
        place(dict(teacher=np.zeros(3)), mesh)


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshConfig(data=-1, tensor=2)).shape) == dict(
        data=4, fsdp=1, expert=1, tensor=2
    )
    assert make_mesh(MeshConfig(fsdp=-1), jax.devices()[:3]).shape['fsdp'] == 3


@pytest.mark.parametrize(
    'sizes, words',
    [
        (dict(data=16), 'data=16 needs 16 devices and there are 8'),
        (dict(data=-1, tensor=3), '3 does not divide 8'),
        (dict(data=-1, fsdp=-1), 'only one mesh axis may be -1'),
        (dict(data=0), 'data=0 must be at least 1'),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_says_so(sizes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(MeshConfig(**sizes))


def test_a_dimension_that_does_not_divide_is_named_with_its_cure():
    sentence = 'H=12 heads do not split over tensor=8; choose a divisor of 12'
    with pytest.raises(UserError, match=sentence):
        check_divides(dict(D=768, H=12), MeshConfig(tensor=8))
    with pytest.raises(UserError, match='B=12 rows of a batch do not split over data=4 x fsdp=2'):
        check_divides(dict(B=12), make_mesh(MeshConfig(data=4, fsdp=2)))
    check_divides(dict(B=16, D=768, H=12, F=2048, V=32128, K=5), MeshConfig(data=4, tensor=4))


@dataclasses.dataclass(frozen=True)
class Fake:
    """A device of a machine that is not here."""

    id: int
    process_index: int
    slice_index: int = 0
    coords: tuple = (0, 0, 0)
    platform: str = 'tpu'
    device_kind: str = 'TPU v5p'
    core_on_chip: int = 0


def slices(number, side=4, each=4):
    """TPU slices of side x side chips, so many of them a host."""
    found = []
    for i in range(number * side * side):
        chip = i % (side * side)
        place = (chip % side, chip // side, 0)
        found.append(Fake(i, i // each, i // (side * side), place))
    return found


def test_only_data_runs_between_slices():
    for sizes in ((2, 4, 2, 2), (4, 8, 1, 1), (2, 1, 1, 16), (32, 1, 1, 1)):
        laid = arrange(sizes, slices(2)[::-1])
        assert laid.shape == sizes and len(set(laid.flat)) == 32
        for i, within in enumerate(laid):
            assert {d.slice_index for d in within.flat} == {i * 2 // sizes[0]}


def test_data_that_slices_do_not_divide_gets_a_sentence():
    with pytest.raises(UserError, match='data=3 does not split over 2 slices'):
        arrange((3, 1, 1, 1), [d for d in slices(2) if d.id % 16 < 2][:3])
    with pytest.raises(UserError, match='data=1 does not split over 2 slices'):
        arrange((1, 32, 1, 1), slices(2))


def test_one_slice_may_be_cut_across_its_physical_axes():
    assert arrange((1, 8, 1, 2), slices(1)).shape == (1, 8, 1, 2)


def test_the_last_axes_stay_within_a_host_of_gpus():
    gpus = [Fake(i, i // 8, i // 8, platform='gpu', device_kind='NVIDIA H100') for i in range(32)]
    laid = arrange((2, 2, 1, 8), gpus[::-1])
    for host in laid.reshape(4, 8):
        assert len({d.process_index for d in host}) == 1


def fake_mesh(sizes, each):
    cpus = [Fake(i, i // each, platform='cpu') for i in range(int(np.prod(sizes)))]
    return jax.sharding.Mesh(arrange(sizes, cpus), AXES)


def test_hosts_share_the_rows_and_those_on_one_model_have_the_same():
    apart = fake_mesh((2, 2, 1, 2), each=4)
    assert [share(apart, p)[:2] for p in (0, 1)] == [(0, 2), (1, 2)]
    assert share(apart, 0).holders == (0, 1)
    together = fake_mesh((2, 1, 1, 4), each=2)
    assert [share(together, p)[:2] for p in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert share(together, 3).holders == (0, 2)
    with pytest.raises(UserError, match='does not split over hosts'):
        share(fake_mesh((2, 1, 1, 3), each=2), 0)


def test_the_mesh_config_is_what_the_axes_are():
    assert [f.name for f in dataclasses.fields(MeshConfig)] == ['data', 'fsdp', 'expert', 'tensor']


def test_trees_flatten_select_and_measure():
    tree = dict(a=dict(b=np.full((2, 2), 2.0), c=np.zeros(3)), d=np.ones(1))
    flat = trees.flatten(tree)
    assert list(flat) == ['a/b', 'a/c', 'd']
    assert trees.flatten(trees.unflatten(flat)).keys() == flat.keys()
    assert trees.count(tree) == 8
    assert list(trees.flatten(trees.select(tree, 'a/*'))) == ['a/b', 'a/c']
    np.testing.assert_allclose(trees.norm(jax.tree.map(jnp.asarray, tree)), 17**0.5)
    doubled = trees.map_with_path(lambda path, x, y: x + y if path == 'd' else x, tree, tree)
    assert doubled['d'] == 2 and doubled['a']['b'].sum() == 8
    with pytest.raises(UserError, match="pattern 'a/q' matches no parameter"):
        trees.select(tree, ['a/q'])
