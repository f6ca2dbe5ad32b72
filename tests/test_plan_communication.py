"""What devices send each other, read off shardings: of single products, and of whole steps."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import P
from test_plan import a_problem, a_run

from mtpt import trees
from mtpt.chips import topology
from mtpt.mesh import AXES
from mtpt.plan import abstract, communication
from mtpt.plan.communication import EXCHANGE, GATHER, REDUCE, SCATTER

MESH = dict(data=2, fsdp=4, expert=1, tensor=2)


def sent_by(f, *arrays):
    """Bytes that a device sends by (kind, axes), for arrays of (shape, spec)."""
    mesh = abstract.abstract_mesh(tuple(MESH.values()))
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))
        for shape, spec in arrays
    ]
    with abstract.on(mesh):
        closed = jax.make_jaxpr(f)(*shapes)
    found = communication.collectives(closed, MESH)
    return {(one.kind, one.axes): one.sent(MESH) for one in found if one.sent(MESH)}


def product(out):
    return lambda x, w: jnp.einsum('bd,df->bf', x, w, out_sharding=out)


def test_a_weight_that_is_split_is_gathered_for_rows_that_are_split():
    found = sent_by(
        product(P('fsdp', 'tensor')), ((32, 8), P('fsdp', None)), ((8, 16), P('fsdp', 'tensor'))
    )
    assert found == {(GATHER, ('fsdp',)): 8 * 16 * 4 / 2 * 3 / 4}


def test_sums_over_a_split_dimension_are_added_up_where_the_result_is_not_split():
    found = sent_by(
        product(P('fsdp', None)), ((32, 8), P('fsdp', 'tensor')), ((8, 16), P('tensor', None))
    )
    assert found == {(REDUCE, ('tensor',)): 2 * 32 * 16 * 4 / 4 * 1 / 2}


def test_the_gradient_of_a_split_weight_ends_as_a_part_on_each_device():
    def gradient(x, dy):
        return jnp.einsum('bd,bf->df', x, dy, out_sharding=P('fsdp', None))

    rows = P(('data', 'fsdp'), None)
    found = sent_by(gradient, ((32, 8), rows), ((32, 16), rows))
    whole = 8 * 16 * 4
    assert found == {
        (SCATTER, ('fsdp',)): whole * 3 / 4,
        (REDUCE, ('data',)): 2 * whole / 4 * 1 / 2,
    }


def test_two_sums_that_are_only_added_are_reduced_once():
    def both(x, w, v):
        one, other = product(P('fsdp', None))(x, w), product(P('fsdp', None))(x, v)
        return one + other

    of = ((32, 8), P('fsdp', 'tensor')), ((8, 16), P('tensor', None)), ((8, 16), P('tensor', None))
    assert sent_by(both, *of) == {(REDUCE, ('tensor',)): 2 * 32 * 16 * 4 / 4 * 1 / 2}


def test_a_changed_sharding_is_gathered_or_exchanged_or_cut_for_nothing():
    def to(spec):
        return lambda x: jax.reshard(x, spec)

    split = ((32, 16), P('fsdp', None))
    assert sent_by(to(P(None, None)), split) == {(GATHER, ('fsdp',)): 32 * 16 * 4 * 3 / 4}
    assert sent_by(to(P(None, 'fsdp')), split) == {(EXCHANGE, ('fsdp',)): 32 * 16 * 4 / 4 * 3 / 4}
    assert sent_by(to(P('fsdp', 'tensor')), split) == {}


def test_collectives_within_a_shard_map_count_what_a_device_holds():
    @functools.partial(jax.shard_map, in_specs=P('fsdp', None), out_specs=P(None, None))
    def f(x):
        return jax.lax.psum(x, 'fsdp')

    found = sent_by(f, ((32, 16), P('fsdp', None)))
    assert found == {(REDUCE, ('fsdp',)): 2 * 8 * 16 * 4 * 3 / 4}


def test_a_scan_sends_in_each_round():
    def f(x, w_NDF):
        def body(x, w):
            return jnp.einsum('bd,df->bf', x, w, out_sharding=P('fsdp', None)), None

        return jax.lax.scan(body, x, w_NDF)[0]

    found = sent_by(f, ((32, 8), P('fsdp', None)), ((5, 8, 8), P(None, 'fsdp', None)))
    assert found == {(GATHER, ('fsdp',)): 5 * 8 * 8 * 4 * 3 / 4}


def weights(problem):
    """Numbers in the matrices of the layers, which are computed in the compute dtype."""
    leaves = trees.flatten(problem.state.params)
    return sum(x.size for path, x in leaves.items() if x.ndim > 2 and 'bias' not in path)


def step(mesh, slices=1, name='h100:2x8', **sections):
    problem = a_problem(a_run(mesh=mesh, **sections))
    sizes = dict(zip(AXES, mesh))
    found = communication.collectives(problem.trace(), sizes)
    lines = communication.lines(found, sizes, topology(name, slices))
    return problem, {(line.kind, line.axes): line for line in lines}


def test_replicas_sum_the_gradients_of_all_weights_once():
    problem, lines = step((8, 1, 1, 1))
    assert {kind for kind, _ in lines} == {REDUCE}
    total = sum(x.size for x in jax.tree.leaves(problem.state.params))
    assert lines[REDUCE, ('data',)].sent == pytest.approx(2 * 7 / 8 * total * 4, rel=0.05)


def test_split_weights_are_gathered_forward_and_backward_and_reduced_once():
    problem, lines = step((1, 8, 1, 1), model=dict(remat='full'))
    table = 2 * V_D(problem)  # of tokens, and the head
    gathered = 2 * weights(problem) + 2 * table  # once for looking up, the head both ways
    assert lines[GATHER, ('fsdp',)].sent == pytest.approx(7 / 8 * 4 * gathered, rel=0.05)
    reduced = weights(problem) + table / 2
    assert lines[SCATTER, ('fsdp',)].sent == pytest.approx(7 / 8 * 4 * reduced, rel=0.05)


def V_D(problem):
    return problem.model.V * problem.model.D


def test_only_what_runs_along_data_crosses_slices():
    _, lines = step((2, 4, 1, 2), slices=2, name='v5e:2x4')
    assert all(line.slow == 0 for (_, axes), line in lines.items() if 'data' not in axes)
    assert lines[REDUCE, ('data',)].slow > 0
    _, alone = step((2, 4, 1, 2), name='v5e:4x4')
    assert all(line.slow == 0 for line in alone.values())
    assert sum(x.seconds for x in alone.values()) < sum(x.seconds for x in lines.values())


def test_a_group_within_a_host_of_gpus_stays_on_its_fast_links():
    _, lines = step((1, 2, 1, 8 // 4 * 1), name='h100:1x4')
    assert all(line.slow == 0 for line in lines.values())
    _, lines = step((1, 16, 1, 1), name='h100:2x8')
    assert lines[GATHER, ('fsdp',)].slow > 0


def test_parts_of_a_batch_gather_again_and_send_as_many_activations():
    one, four = (
        step((1, 4, 1, 2), data=dict(accumulation=n), model=dict(remat='full'))[1] for n in (1, 4)
    )
    gathers = [lines[GATHER, ('fsdp',)].sent for lines in (one, four)]
    assert gathers[1] == pytest.approx(4 * gathers[0], rel=0.05)
    between = [lines[REDUCE, ('tensor',)].sent for lines in (one, four)]
    assert between[1] == pytest.approx(between[0], rel=0.05)
