"""Laws of traces: the steps that were asked for, each second counted once, and no run harmed."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from mtpt import report
from mtpt.config import UserError
from mtpt.watch import profiling
from mtpt.watch.profiling import Tracer, markdown, summarise


@jax.jit
def work(x):
    return jnp.tanh(x @ x) / 3


def run(tracer, steps):
    """A loop as the trainer's: the tracer is asked before each step, and nothing is waited for."""
    state, waited = jnp.ones((512, 512)), []
    work(state).block_until_ready()
    for step in range(steps):
        if tracer.step(step, state):
            waited.append(step + 1)
        state = work(state)
    tracer.close(state)
    return waited


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
    """A folder in which steps 2, 3 and 6 of seven were traced."""
    folder = tmp_path_factory.mktemp('traced')
    tracer = Tracer((2, 3, 6), folder)
    told = []
    tracer.say = told.append
    assert run(tracer, 7) == [2, 4, 6, 7]  # where a trace begins or has ended
    return folder, told


def test_neighbours_share_a_trace_and_each_has_a_page(traced):
    folder, told = traced
    assert sorted(p.name for p in (folder / 'profile').glob('*.md')) == [
        '00000002.md',
        '00000006.md',
    ]
    assert 'steps 2 to 3' in told[0] and 'step 6' in told[1]
    found = json.loads((folder / 'profile/00000002.json').read_text())
    assert (found['first'], found['last']) == (2, 3)
    assert list((folder / 'profile/00000002/plugins/profile').glob('*/*.xplane.pb'))


def test_the_page_says_where_the_time_of_a_step_went(traced):
    folder, _ = traced
    for name, steps in (('00000002', (2, 3)), ('00000006', (6, 6))):
        found = summarise(folder / 'profile' / name, *steps)
        assert sum(found.kinds.values()) == pytest.approx(1)
        assert max(found.kinds, key=found.kinds.get) == 'matrix products'
        assert 0 < found.busy <= 1 and found.devices >= 1
        product = next(op for op in found.operations if op[1] == 'matrix products')
        assert product[3] * found.devices == pytest.approx(1)  # one call a step
        assert f'`{product[0]}`' in markdown(found)


def test_a_trace_that_the_loop_ends_in_is_closed(tmp_path):
    run(Tracer((3,), tmp_path), 3)
    assert (tmp_path / 'profile/00000003.md').exists()


def test_nothing_is_traced_unasked(tmp_path):
    assert run(Tracer((), tmp_path), 3) == [] and not (tmp_path / 'profile').exists()


def test_a_trace_that_cannot_begin_ends_no_run(tmp_path, monkeypatch):
    def broken(folder):
        raise RuntimeError('only one profile at a time')

    monkeypatch.setattr(jax.profiler, 'start_trace', broken)
    tracer, told = Tracer((1, 2), tmp_path), []
    tracer.say = told.append
    run(tracer, 3)
    assert len(told) == 1 and 'training goes on' in told[0]


def test_a_folder_without_a_trace_is_refused(tmp_path):
    with pytest.raises(UserError, match='holds no trace'):
        summarise(tmp_path, 1, 1)


def event(name, start, duration, **stats):
    return SimpleNamespace(name=name, start_ns=start, duration_ns=duration, stats=stats.items())


def test_an_operation_counts_without_those_inside_it(tmp_path, monkeypatch):
    """A loop of 100 ns holds two products of 30; then 20 idle, and a collective of 40."""
    events = [
        event('while.1', 0, 100),
        event('fusion.2', 10, 30, hlo_category='convolution fusion'),
        event('fusion.3', 50, 30, hlo_category='convolution fusion'),
        event('all-reduce.7', 120, 40),
    ]
    line = SimpleNamespace(name='XLA Ops', events=events)
    other = SimpleNamespace(name='Steps', events=[event('1', 0, 10_000)])
    plane = SimpleNamespace(name='/device:TPU:0', lines=[line, other])
    (tmp_path / 'plugins/profile/now').mkdir(parents=True)
    (tmp_path / 'plugins/profile/now/host.xplane.pb').write_bytes(b'')
    fake = SimpleNamespace(from_file=lambda path: SimpleNamespace(planes=[plane]))
    monkeypatch.setattr(profiling, 'ProfileData', fake)
    found = summarise(tmp_path, 5, 5)
    assert found.seconds == pytest.approx(160e-9) and found.busy == pytest.approx(140 / 160)
    assert found.kinds == {
        'matrix products': pytest.approx(60 / 140),
        'collectives': pytest.approx(40 / 140),
        'control': pytest.approx(40 / 140),
    }
    assert found.operations[0] == ('fusion', 'matrix products', pytest.approx(60e-9), 2)


@pytest.mark.parametrize(
    'name, kind',
    [
        ('dot.12', 'matrix products'),
        ('gemm_fusion_dot.3', 'matrix products'),
        ('all-gather-start.1', 'collectives'),
        ('transpose_copy_fusion', 'copies'),
        ('copy-done.4', 'copies'),
        ('multiply_bitcast_fusion', 'other'),
        ('add_rsqrt_fusion', 'other'),
        ('select_convert_fusion', 'other'),
        ('convolution.2', 'matrix products'),
        ('while.7', 'control'),
        ('psum_invariant', 'collectives'),
    ],
)
def test_kinds_follow_from_the_names_that_xla_gives(name, kind):
    assert profiling._kind(profiling._shared_name(name), name) == kind


def test_the_report_shows_a_profile_and_names_a_broken_one(traced, tmp_path):
    folder, _ = traced
    (tmp_path / 'profile').mkdir()
    whole = (folder / 'profile/00000002.json').read_text()
    (tmp_path / 'profile/00000002.json').write_text(whole)
    (tmp_path / 'profile/00000006.json').write_text('{"first": 1}')
    (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'train/loss': 1.0}) + '\n')
    page = report.write(tmp_path).read_text()
    assert 'Profile: steps 2 to 3' in page and 'matrix products' in page
    assert 'profile/00000006.json' in page
