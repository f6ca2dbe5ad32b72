"""What a step needs of a device's memory, estimated; and what compilers say, read."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ready import quick_to_compile

from mtpt import stages
from mtpt.chips import topology
from mtpt.config import UserError, read
from mtpt.mesh import AXES, make_mesh
from mtpt.model.parts import REMAT
from mtpt.plan import abstract, compiled, hlo, liveness, memory
from mtpt.settings import Run
from mtpt.train.state import new_state

GIB = 2**30
KNOWN = abstract.Sizes(V=512, M=3)
EXPERTS = dict(E=4, encoder=1, decoder=1)


def a_run(remat='full', accumulation=1, optimizer='adamw', mesh=None, moe=None, **model):
    model = dict(size='mini', dtype='float32', remat=remat, moe=moe or {}) | model
    data = dict(vocabulary='bytes', batch_size=64, inputs_length=64, targets_length=32)
    return read(
        Run,
        dict(
            name='planned',
            model=model,
            data=data | dict(accumulation=accumulation, segments=4),
            optimizer=dict(name=optimizer, schedule=dict(name='constant', rate=1e-3)),
            mesh=mesh or dict(fsdp=4, tensor=2),
        ),
    )


def a_problem(run, mesh=None):
    mesh = mesh or abstract.abstract_mesh(tuple(getattr(run.mesh, axis) for axis in AXES))
    return abstract.problem(stages.legs(run)[0], run, mesh, KNOWN, 'cpu')


def on_first_device(tree):
    first = jax.devices()[0]
    shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == first]
    return sum(s.data.nbytes for s in shards)


@pytest.mark.parametrize(
    ('optimizer', 'moe'), [('adafactor', {}), ('adamw', EXPERTS)], ids=['dense', 'sparse']
)
def test_the_estimate_of_parameters_and_optimizer_is_what_a_device_holds(optimizer, moe):
    sizes = dict(fsdp=2, expert=2, tensor=2) if moe else dict(data=2, fsdp=2, tensor=2)
    run = a_run(optimizer=optimizer, mesh=sizes, moe=moe, D=256)
    told = memory.estimate(problem := a_problem(run), 'cpu')
    with quick_to_compile(), jax.set_mesh(make_mesh(run.mesh)):
        state = new_state(problem.model, problem.tx, 0)
    assert told['parameters'] == on_first_device(state.params)
    assert told['optimizer'] == pytest.approx(on_first_device(state.opt_state), rel=1e-3)


def test_a_policy_that_keeps_more_needs_more():
    policies = ['full', 'dots_with_no_batch_dims', 'dots', 'none']
    assert set(policies) <= set(REMAT)
    told = [memory.estimate(a_problem(a_run(remat)), 'tpu') for remat in policies]
    kept, peaks = [t['activations'] for t in told], [t['peak'] for t in told]
    assert kept == sorted(kept) and peaks == sorted(peaks) and kept[0] < kept[1] < kept[3]
    assert len({t['parameters'] for t in told}) == 1


def test_taking_a_batch_in_parts_lowers_the_peak_and_nothing_else():
    whole, halves, eighths = (
        memory.estimate(a_problem(a_run(accumulation=n)), 'cpu') for n in (1, 2, 8)
    )
    assert whole['peak'] > halves['peak'] > eighths['peak']
    assert halves['activations'] > 1.5 * eighths['activations']
    assert whole['parameters'] == eighths['parameters'] and whole['batch'] == eighths['batch']


@pytest.mark.parametrize(('parts', 'copies'), [(1, 0), (8, 2)])
def test_a_gpu_holds_the_sums_of_an_accumulation_twice(parts, copies):
    """As XLA has it for CUDA; TPUs and CPUs add in place (docs/benchmarks.md)."""
    problem = a_problem(a_run(accumulation=parts))
    nothing = liveness.Course(np.zeros((1, 1)), (((), False),), {}, np.zeros(1), (), 1)
    told, in_place = (memory.estimate(problem, p, nothing) for p in ('gpu', 'cpu'))
    given = sum(told[name] for name in ('parameters', 'optimizer', 'batch'))
    assert told['peak'] == bool(copies) * given + copies * told['gradients']
    assert in_place['peak'] == 0


def test_a_walk_on_one_mesh_tells_of_another_and_of_more_parts():
    traced = a_problem(a_run(accumulation=2, mesh=dict(data=2, fsdp=2, tensor=2)))
    course = memory.course_of(traced, 'cpu')
    other = a_problem(a_run(accumulation=8, mesh=dict(data=1, fsdp=4, tensor=1)))
    told, walked = memory.estimate(other, 'cpu', course), memory.estimate(other, 'cpu')
    assert told['peak'] == pytest.approx(walked['peak'], rel=0.1)
    assert told['activations'] == pytest.approx(walked['activations'], rel=0.1)


def test_what_another_platform_needs_is_not_in_the_memory_of_this_one():
    def wide(x):
        return (x[:, None] * x.T[None] @ x).sum(1)

    def f(x):
        y = jax.lax.platform_dependent(x, cpu=lambda x: x @ x, cuda=wide, default=lambda x: x)
        return jnp.sum(jnp.sin(y))

    x = jax.ShapeDtypeStruct((64, 64), np.float32)
    closed = jax.make_jaxpr(jax.grad(f))(x)
    peaks = {
        name: liveness.course(closed, ['batch'], {}, 1, name).live.sum(1).max()
        for name in ('cpu', 'gpu', 'tpu')
    }
    whole = 64**3 * 4
    assert peaks['gpu'] > whole and max(peaks['cpu'], peaks['tpu']) < whole / 4, peaks


@pytest.mark.parametrize(
    ('remat', 'moe', 'size'),
    [
        ('full', {}, 'mini'),
        ('none', EXPERTS, 'mini'),
        ('none', EXPERTS | dict(dispatch='dropless'), 'micro'),
    ],
    ids=['dense, full', 'sparse, none', 'dropless, none'],
)
def test_the_peak_is_near_that_of_the_compiler_for_cpus(remat, moe, size):
    sizes = dict(data=2, fsdp=2, expert=2) if moe else dict(fsdp=4, tensor=2)
    run = a_run(remat, mesh=sizes, moe=moe, size=size)
    problem = a_problem(run, make_mesh(run.mesh))
    stats = problem.lower().compile().memory_analysis()
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    peak = stats.argument_size_in_bytes + stats.temp_size_in_bytes + new
    assert memory.estimate(problem, 'cpu')['peak'] == pytest.approx(peak, rel=0.25)


MODULE = """HloModule jit_step, is_scheduled=true

%add.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}

%gather_part.7 (p: bf16[8,16]) -> bf16[32,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, dimensions={0}
}

%body.2 (arg: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %arg = (s32[], bf16[8,16]{1,0}) parameter(0)
  %w = bf16[8,16]{1,0} get-tuple-element(%arg), index=1
  %one = bf16[32,16]{1,0} fusion(%w), kind=kLoop, calls=%gather_part.7
  %all-gather.8 = bf16[32,16]{1,0} all-gather(%w), channel_id=3, dimensions={0}
  %start = (bf16[8,16], bf16[8,16], u32[]) collective-permute-start(%w), channel_id=4
  ROOT %out = (s32[], bf16[8,16]{1,0}) tuple(%arg)
}

%cond.3 (arg.1: (s32[], bf16[8,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main.4 (p0: f32[64]) -> f32[64] {
  %p0 = f32[64]{0} parameter(0)
  %init = (s32[], bf16[8,16]{1,0}) tuple(%p0)
  %loop = (s32[], /*index=1*/bf16[8,16]{1,0}) while(%init), condition=%cond.3, body=%body.2
  %reduced = f32[16]{0} reduce-scatter(%p0), channel_id=1, to_apply=%add.1
  ROOT %all = f32[64]{0} all-reduce(%p0), channel_id=2, to_apply=%add.1
}
"""


def test_collectives_are_read_with_their_bytes_and_those_in_loops_as_often_as_they_run():
    found = {(row['kind'], row['loop']): row for row in hlo.collectives(MODULE)}
    gather = found['all-gather', True]
    assert gather == dict(kind='all-gather', loop=True, count=1, times=12, bytes=12 * 32 * 16 * 2)
    assert found['collective-permute', True]['bytes'] == 12 * 8 * 16 * 2
    assert found['all-reduce', False]['bytes'] == found['reduce-scatter', False]['bytes'] == 256
    assert len(found) == 4


COMBINED = """HloModule jit_step, is_scheduled=true

ENTRY %main (p0: f32[64], p1: bf16[8,16,2]) -> f32[512] {
  %p0 = f32[64]{0} parameter(0)
  %p1 = bf16[8,16,2]{2,1,0} parameter(1)
  %g = ((f32[64]{0}, bf16[8,16,2]{2,1,0:T(8,128)(2,1)}, /*index=2*/bf16[8,16,2]{2,1,0}), (f32[512]{0}, bf16[64,16,2]{2,1,0:T(8,128)(2,1)}, /*index=2*/bf16[64,16,2]{2,1,0})) all-gather-start(%p0, %p1, /*index=2*/%p1), channel_id=1, dimensions={0}
  %whole = (f32[512]{0}, bf16[64,16,2]{2,1,0}, bf16[64,16,2]{2,1,0}) all-gather-done(%g)
  %r = ((f32[512]{0}, f32[512]{0}), (f32[64]{0}, f32[64]{0})) reduce-scatter-start(%w0, %w0), channel_id=2
  %s = (f32[64]{0}, bf16[8,16,2]{2,1,0}) all-reduce-start(%p0, %p1), channel_id=3, replica_groups={{0,1}}, to_apply=%add
  %c = (bf16[8,16,2]{2,1,0}, bf16[8,16,2]{2,1,0}, u32[], u32[]) collective-permute-start(%p1), channel_id=4
  %alone = f32[64]{0} all-reduce(%p0), channel_id=5, replica_groups={{0},{1}}, to_apply=%add
  %single = f32[64]{0} all-reduce(%p0), channel_id=6, replica_groups=[2,1]<=[2], to_apply=%add
  ROOT %w0 = f32[512]{0} get-tuple-element(%whole), index=0
}
"""  # noqa: E501


def test_a_collective_that_was_combined_holds_all_that_went_into_it():
    """As XLA writes it for GPUs: a `-start` has a tuple of operands and one of results."""
    held = {row['kind']: row['bytes'] for row in hlo.collectives(COMBINED)}
    whole, part = 64 * 16 * 2 * 2, 8 * 16 * 2 * 2
    assert held == {
        'all-gather': 512 * 4 + 2 * whole, 'reduce-scatter': 2 * 512 * 4,
        'all-reduce': 64 * 4 + part, 'collective-permute': part,
    }  # fmt: skip


SHARED = """HloModule jit_step, is_scheduled=true

%first.1 (p: f32[64]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  ROOT %a = f32[64]{0} all-reduce(%p), channel_id=1, metadata={op_name="jit(step)/jvp()/psum"}
}

ENTRY %main (p0: f32[64], p1: f32[32]) -> f32[64] {
  %p0 = f32[64]{0} parameter(0)
  %p1 = f32[32]{0} parameter(1)
  %b = f32[64]{0} fusion(%p0), kind=kLoop, calls=%first.1
  %c = f32[64]{0} all-reduce(%b), channel_id=1, metadata={op_name="jit(step)/transpose()/psum"}
  %d = f32[32]{0} all-reduce(%p1), channel_id=1, metadata={op_name="jit(step)/jvp()/psum"}
  ROOT %e = f32[64]{0} all-reduce(%c), channel_id=1, metadata={op_name="jit(step)/transpose()/psum"}
}
"""


def test_collectives_of_one_channel_are_told_apart():
    (row,) = hlo.collectives(SHARED)  # as JAX writes what shard_maps ask for
    assert row['count'] == 4 and row['bytes'] == (3 * 64 + 32) * 4


@pytest.mark.parametrize(
    ('message', 'needed', 'available'),
    [
        ('RESOURCE_EXHAUSTED: temporaries (40.24G) exceeds available HBM (15.75G).', 40.24, 15.75),
        ('RESOURCE_EXHAUSTED: Ran out. Used 20.59G of 15.75G hbm. Exceeded by 4.8G', 20.59, 15.75),
        ('RESOURCE_EXHAUSTED: cannot allocate 512.00M', 0.5, None),
    ],
)
def test_what_a_compiler_lacks_is_read_from_its_message(message, needed, available):
    found = hlo.shortage(message)
    assert found['needed'] == pytest.approx(needed * GIB, rel=1e-6)
    assert found.get('available') == (available and pytest.approx(available * GIB, rel=1e-6))


def test_other_messages_are_no_shortage():
    assert hlo.shortage('INTERNAL: allocate 3.00G of courage') is None
    assert hlo.shortage('RESOURCE_EXHAUSTED: no more') == {}


def test_a_memory_report_gives_what_is_reserved_and_the_largest_places():
    report = (
        'Memory Space: default (color=0)\nTotal bytes: 3145728 (3.00MiB)\n  cumulative_size; ...\n'
        '    2.00MiB( 66%);    2.00MiB;     4096;          2; bf16[16,4], f32[8]\n'
        '    3.00MiB(100%); 1024.00KiB;        0;          1; 2xf32[4]\n'
        'Memory Space: smem (color=2)\nTotal bytes: 8 (8B)\n'
    )
    found = hlo.usage(report)
    assert found['reserved'] == 3 * 2**20
    assert found['largest'][0] == dict(bytes=2 * 2**20, shapes=['bf16[16,4]', 'f32[8]'])
    assert len(found['largest']) == 2 and hlo.usage('nothing') == {}


def compile_here(run, name, **kwargs):
    return compiled.compile_step(compiled.job(run, topology(name), 512, 3), 600, **kwargs)


def test_a_step_is_compiled_in_a_process_of_its_own():
    run = a_run(mesh=dict(data=2, fsdp=2), size='micro')
    found = compile_here(run, 'cpu:4')
    assert json.loads(json.dumps(found)) == found
    assert found['status'] == 'compiled' and found['fits'] and found['needed'] > 0
    state = found['bytes']['aliased']  # handed in, used up, and written in the same place
    assert 0 < state <= found['bytes']['arguments']
    assert {row['kind'] for row in found['collectives']} & {'all-reduce', 'all-gather'}


def test_what_goes_wrong_in_that_process_is_a_result(tmp_path):
    odd = compile_here(a_run(mesh=dict(tensor=3), size='micro'), 'cpu:3')
    assert odd['status'] == 'refused' and 'do not split over tensor=3' in odd['why']
    job = compiled.job(a_run(size='micro', mesh=dict(data=1)), topology('cpu'), 512, 3)
    late = compiled.compile_step(job, 0.2)
    assert late['status'] == 'too slow' and late['fits'] is None
    broken = dataclasses.replace(job, leg=7)
    found = compiled.compile_step(broken, 600, log := tmp_path / 'log.txt')
    assert found['status'] == 'failed' and 'IndexError' in found['why'] and log.exists()


def test_the_benchmark_of_plans_goes_on_where_it_stopped(tmp_path, monkeypatch):
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / 'benchmarks'))
    import plan

    def compile_step(job, limit_s, log):
        asked.append(job.topology)
        told = dict(status='compiled', fits=True, needed=2**24, available=2**30, process_s=1.0)
        return told | dict(bytes=dict(peak=2**24, arguments=2**22))

    asked, small = [], ('model.size=micro', 'data.batch_size=8')
    case = plan.Case('config-quickstart', 'quickstart', 'cpu:1', small)
    monkeypatch.setattr(compiled, 'compile_step', compile_step)
    monkeypatch.setattr(plan, 'HELD_OUT', (case,))
    for _ in range(2):
        assert plan.main([f'--out={tmp_path}', '--groups=held_out']) == 0
    assert asked == ['cpu:1']
    table = (tmp_path / 'table.md').read_text()
    assert '| config-quickstart: micro, dense | cpu:1 | one device' in table
    assert '1 steps that nothing was tuned on' in table


@pytest.mark.parametrize(('name', 'extra'), [('v5p:2x2x1', 'tpu'), ('h100:1x8', 'cuda')])
def test_a_compiler_that_is_not_installed_is_named_with_its_extra(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=rf"not installed.*pip install 'mtpt\[{extra}\]'"):
        compiled.job(a_run(), topology(name), 512, 3)


def test_a_gpu_without_a_description_is_refused():
    with pytest.raises(UserError, match=r'knows no a100.*h100'):
        compiled.package(topology('a100:1x8'))


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="needs libtpu: 'mtpt[tpu]'")
def test_a_step_is_compiled_for_tpus_that_are_not_here():
    run = a_run(mesh=dict(fsdp=4), size='micro', dtype='bfloat16')
    found = compile_here(run, 'v5e:2x2')
    assert found['status'] == 'compiled' and found['fits'], found
    told = memory.estimate(a_problem(run), 'tpu')
    params = told['parameters'] + told['optimizer'] + told['batch']
    assert found['bytes']['arguments'] > 0.9 * params
    assert np.isclose(found['available'], 15.75 * GIB, rtol=1e-3)
    assert found['reserved'] > 0 and found['largest']
