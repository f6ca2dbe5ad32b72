"""Plan laws: what is counted from a traced step is what the formulas say, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from mtpt import chips
from mtpt.config import UserError, read
from mtpt.mesh import AXES, MeshConfig, make_mesh, place
from mtpt.model import cost
from mtpt.model.parts import REMAT
from mtpt.plan import abstract, estimate, flops, memory
from mtpt.settings import Run
from mtpt.train.state import new_state

V, M = 256, 3
ONE = (1, 1, 1, 1)


def a_run(mesh=ONE, **sections):
    """A small run in the shape of T5: its model, its batch, a mesh."""
    told = dict(
        data=dict(batch_size=32, row_groups=2, inputs_length=64, targets_length=32, segments=2),
        model=dict(size='small', encoder_layers=2, decoder_layers=4, remat='none'),
        optimizer=dict(name='adamw', schedule=dict(name='constant', rate=1e-3)),
        train=dict(steps=10),
    )
    for section, changes in sections.items():
        told[section] = told.get(section, {}) | changes
    return read(Run, told | dict(mesh=dict(zip(AXES, mesh))))


def a_problem(run):
    mesh = abstract.abstract_mesh(tuple(getattr(run.mesh, axis) for axis in AXES))
    return abstract.problems(run, mesh, abstract.Sizes(V, M), 'gpu')[0]


def counted(**sections):
    problem = a_problem(a_run(**sections))
    return flops.count(problem.trace(), dict(problem.mesh.shape))


def t5_flops(S, T, D, H, K, F, layers, rows, matrices):
    """A training step of a dense T5, written out from its layers."""
    encoder, decoder = layers

    def attention(queries, keys):
        project = 2 * D * H * K * (2 * queries + 2 * keys)
        return project + 2 * 2 * queries * keys * H * K

    one = encoder * (attention(S, S) + 2 * matrices * S * D * F)
    one += decoder * (attention(T, T) + attention(T, S) + 2 * matrices * T * D * F)
    return 3 * rows * (one + 2 * T * D * V)


@pytest.mark.parametrize('size,D,H,F,matrices', [
    ('small', 512, 6, 1024, 3), ('t5_small', 512, 8, 2048, 2), ('base', 768, 12, 2048, 3),
])  # fmt: skip
def test_flops_of_a_dense_t5_are_those_of_its_formula(size, D, H, F, matrices):
    problem = a_problem(a_run(model=dict(size=size)))
    found = flops.count(problem.trace(), dict(problem.mesh.shape))
    written = t5_flops(64, 32, D, H, 64, F, (2, 4), 32, matrices)
    assert found.exact and found.model == pytest.approx(written, rel=0.02)
    assert found.model == pytest.approx(cost.train_flops(problem.model, 64, 32, 32), rel=0.02)


def test_a_scan_counts_as_much_as_its_layers_one_by_one():
    for remat in ('none', 'full'):
        scanned, unrolled = (
            counted(model=dict(scan=scan, remat=remat)) for scan in (True, False)
        )  # fmt: skip
        assert scanned.model == pytest.approx(unrolled.model, rel=1e-3)
        assert scanned.hardware == pytest.approx(unrolled.hardware, rel=1e-3)


def test_remat_changes_only_what_hardware_does():
    found = {remat: counted(model=dict(remat=remat)) for remat in REMAT}
    for remat, one in found.items():
        assert one.model == pytest.approx(found['none'].model, rel=1e-6), remat
    assert found['none'].hardware == found['none'].model
    assert found['full'].hardware > 1.2 * found['full'].model
    assert found['full'].hardware >= found['dots_with_no_batch_dims'].hardware


@pytest.mark.parametrize('mesh', [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 1, 2), (2, 4, 1, 2)])
def test_splitting_over_a_mesh_leaves_the_flops_as_they_are(mesh):
    whole, split = counted(), counted(mesh=mesh)
    assert split.model == pytest.approx(whole.model, rel=1e-6)
    n, sizes = int(np.prod(mesh)), dict(zip(AXES, mesh))
    assert split.per_device(sizes) * n == pytest.approx(split.hardware, rel=1e-3)


def test_accumulation_leaves_the_flops_as_they_are():
    one, four = counted(), counted(data=dict(accumulation=4))
    assert four.model == pytest.approx(one.model, rel=1e-3)


SPARSE = dict(size='small', encoder_layers=2, decoder_layers=2, remat='none')


def test_flops_of_a_sparse_model_are_those_of_its_slots():
    moe = dict(E=4, encoder=2, decoder=2, capacity=1.0)
    run = a_run(model=SPARSE | dict(moe=moe), mesh=(1, 1, 4, 1))
    problem = a_problem(run)
    found = flops.count(problem.trace(), dict(problem.mesh.shape))
    analytic = cost.train_flops(problem.model, 64, 32, 32, slots=True)
    assert found.model == pytest.approx(analytic, rel=0.02)


DROPLESS = dict(E=4, encoder=2, decoder=2, dispatch='dropless')


@pytest.mark.parametrize('mesh', [(8, 1, 1, 1), (2, 1, 4, 1)], ids=['data', 'expert'])
@pytest.mark.parametrize('platform', ['tpu', 'gpu', 'cpu'])
def test_flops_of_a_model_that_drops_nothing_are_near_those_of_its_tokens(platform, mesh):
    problem = a_problem(a_run(model=SPARSE | dict(moe=DROPLESS), mesh=mesh))
    found = flops.count(problem.trace(), dict(problem.mesh.shape), platform)
    told = found.model / cost.train_flops(problem.model, 64, 32, 32)
    assert found.exact and found.expected == (platform != 'gpu')
    if platform != 'gpu':
        assert told == pytest.approx(1, rel=0.02)
    else:  # all blocks at once, of all rows that are gathered: some are empty
        assert 1 <= told < (1.5 if mesh[2] == 1 else mesh[2])


@pytest.mark.parametrize(
    ('model', 'slack'), [({}, 1), (SPARSE | dict(moe=dict(E=4, encoder=2, capacity=2.0)), 2)]
)
def test_the_flops_of_a_model_are_those_that_training_reckons_with_and_slots_are_extra(
    model, slack
):
    problem = a_problem(a_run(model=dict(remat='full') | model))
    leg = estimate.leg(problem, chips.topology('h100:1x1'), 0.4)
    told, asked = leg['flops'], cost.train_flops(problem.model, 64, 32, 32)
    slots = cost.train_flops(problem.model, 64, 32, 32, slots=True)
    assert told['model'] == pytest.approx(asked, rel=0.02)
    assert told['slots'] == pytest.approx(slots - asked, rel=0.02, abs=0.02 * asked)
    assert (told['slots'] > 0.1 * asked) == (slack > 1)
    assert told['model'] + told['slots'] + told['recomputed'] == pytest.approx(told['hardware'])
    took = leg['seconds']
    assert took['at_mfu'] / took['products'] == pytest.approx(told['model'] / told['hardware'])


def product_flops(f, *shapes, platform=None):
    closed = jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    return flops.count(closed, dict(zip(AXES, ONE)), platform)


def test_loops_count_as_often_as_they_run_and_unknown_ones_are_told_of():
    def known(x):
        return jax.lax.while_loop(lambda c: c[0] < 7, lambda c: (c[0] + 2, c[1] @ x), (0, x))[1]

    def unknown(x):
        return jax.lax.while_loop(lambda c: c[0, 0] < 7, lambda c: c @ x, x)

    one = 2 * 8**3
    assert product_flops(known, (8, 8)) == product_flops(known, (8, 8))
    found = product_flops(known, (8, 8))
    assert found.model == 4 * one and found.exact
    found = product_flops(unknown, (8, 8))
    assert found.model == one and not found.exact


def test_a_choice_counts_its_larger_branch():
    def f(x, y):
        return jax.lax.cond(x[0, 0] > 0, lambda: (x @ y).sum(), lambda: x.sum())

    assert product_flops(f, (4, 8), (8, 16)).model == 2 * 4 * 8 * 16


def test_a_choice_by_platform_counts_the_branch_of_the_chip():
    def unknown(x, y):
        return jax.lax.while_loop(lambda c: c[0, 0] < 7, lambda c: c @ y, x)

    def f(x, y):
        by = dict(cpu=lambda x, y: x @ y @ y, tpu=unknown, default=lambda x, y: x @ y)
        return jax.lax.platform_dependent(x, y, **by)

    one = 2 * 4 * 8 * 8
    for platform, times in dict(cpu=2, gpu=1, tpu=1).items():  # the default has a known length
        found = product_flops(f, (4, 8), (8, 8), platform=platform)
        assert found.model == times * one and found.exact, platform


def test_a_kernel_counts_once_a_cell_of_its_grid():
    def kernel(x, y, out):
        out[...] = jnp.dot(x[...], y[...])

    def f(x, y):
        return pl.pallas_call(
            kernel,
            grid=(4, 2),
            in_specs=[
                pl.BlockSpec((16, 32), lambda i, j: (i, 0)),
                pl.BlockSpec((32, 8), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((16, 8), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((64, 16), jnp.float32),
        )(x, y)

    assert product_flops(f, (64, 32), (32, 16)).model == 2 * 64 * 32 * 16


def test_grouped_products_count_each_row_once_forward_and_backward():
    sizes = jnp.array([3, 5, 8])

    def f(x, w):
        return jax.lax.ragged_dot(x, w, sizes).sum()

    one = 2 * 16 * 8 * 4
    assert product_flops(f, (16, 8), (3, 8, 4)).model == one
    found = product_flops(jax.grad(f, (0, 1)), (16, 8), (3, 8, 4))
    assert found.model == 2 * one  # the sum needs no product, its two gradients one each


def test_a_convolution_counts_its_window():
    def f(x, w):
        return jax.lax.conv_general_dilated(x, w, (1,), 'SAME')

    assert product_flops(f, (2, 3, 10), (5, 3, 4)).model == 2 * (2 * 5 * 10) * (3 * 4)


def test_a_device_holds_as_much_of_the_state_as_the_real_arrays_do():
    run = a_run(mesh=(2, 2, 1, 2), optimizer=dict(name='adafactor'))
    problem = a_problem(run)
    mesh = make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        state = new_state(problem.model, problem.tx, 0)
    sizes = dict(mesh.shape)
    for name in ('params', 'opt_state'):
        real = [
            sum(shard.data.nbytes for x in jax.tree.leaves(getattr(state, name))
                for shard in x.addressable_shards if shard.device == device)
            for device in mesh.devices.flat
        ]  # fmt: skip
        assert {memory.held(getattr(problem.state, name), sizes)} == set(real)


def test_the_abstract_batch_is_laid_out_as_a_loader_s_is():
    for parts in (1, 2):
        problem = a_problem(a_run(mesh=(2, 2, 1, 2), data=dict(accumulation=parts)))
        rows = {name: np.zeros(x.shape, np.int32) for name, x in problem.batch.items()}
        for name, x in place(rows, make_mesh(problem.run.mesh)).items():
            assert x.sharding.spec == problem.batch[name].sharding.spec, name


def test_on_devices_the_abstract_step_takes_the_state_that_training_begins_with():
    changes = dict(loss_scaling='labels', spikes=dict(rule='skip'))
    run = a_run(mesh=(2, 2, 1, 2), train=changes, data=dict(accumulation=2))
    mesh = make_mesh(run.mesh)
    problem = abstract.problems(run, mesh, abstract.Sizes(V, M), 'cpu')[0]
    with jax.set_mesh(mesh):
        state = jax.eval_shape(
            lambda: new_state(problem.model, problem.tx, 0, spikes=run.train.spikes)
        )
    alike = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype,
                         state, problem.state)  # fmt: skip
    assert all(jax.tree.leaves(alike)) and problem.lower().as_text()


def test_a_mesh_that_does_not_fit_says_what_to_do():
    v5e = chips.topology('v5e:4x4')
    assert abstract.mesh_sizes(MeshConfig(fsdp=-1, tensor=4), v5e) == (1, 4, 1, 4)
    for sizes in (dict(data=8), dict(fsdp=-1, tensor=3), dict(data=-1, fsdp=-1), dict(data=0)):
        with pytest.raises(UserError, match=r'--config.mesh.*--search'):
            abstract.mesh_sizes(MeshConfig(**sizes), v5e)
    with pytest.raises(UserError, match='only data runs'):
        abstract.mesh_sizes(MeshConfig(fsdp=32), chips.topology('v5e:4x4', 2))


def test_a_run_in_stages_is_planned_leg_by_leg():
    run = read(Run, dict(
        data=dict(mixture='x', batch_size=32, row_groups=2, inputs_length=64, targets_length=32),
        model=dict(size='micro'),
        stages=[dict(name='short', steps=3), dict(name='long', steps=5,
                                                  data=dict(inputs_length=128))],
    ))  # fmt: skip
    mesh = abstract.abstract_mesh(ONE)
    found = abstract.problems(run, mesh, abstract.Sizes(V, M), 'cpu')
    assert [(p.name, p.steps, p.batch['encoder_positions'].shape) for p in found] == [
        ('short', 3, (32, 64)), ('long', 5, (32, 128)),
    ]  # fmt: skip


def test_what_a_config_leaves_open_is_told_or_assumed_and_said():
    known = abstract.sizes(a_run(data=dict(vocabulary='bytes')), tasks=7)
    assert (known.V, known.M, known.notes) == (384, 7, ())
    known = abstract.sizes(a_run(data=dict(vocabulary='no.model'), model=dict(size='mt5_small')))
    assert (known.V, known.M) == (250112, abstract.ASSUMED_TASKS)
    assert 'no.model' in known.notes[0] and '--tasks' in known.notes[1]


def test_attention_of_cudnn_is_planned_where_there_is_none():
    run = a_run(model=dict(kernel='cudnn', dtype='bfloat16'))
    problem = a_problem(run)
    assert abstract.CUDNN in problem.notes
    found = flops.count(problem.trace(), dict(problem.mesh.shape))
    assert found.model == pytest.approx(cost.train_flops(problem.model, 64, 32, 32), rel=0.02)
    with pytest.raises(UserError, match='needs a GPU'):
        mesh = abstract.abstract_mesh(ONE)
        abstract.problems(run, mesh, abstract.Sizes(V, M), 'tpu')
