"""The laws of finding what was behind a step that was not finite.

B row  G segments of a row  V vocabulary
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ready
import tiny

from mtpt import run as runs
from mtpt import training
from mtpt.__main__ import main
from mtpt.config import UserError
from mtpt.diagnosis import sentence
from mtpt.mesh import MeshConfig, make_mesh
from mtpt.model import functional
from mtpt.model.config import HeadConfig, ModelConfig, resolve
from mtpt.model.parts import MoeConfig
from mtpt.train import loop
from mtpt.train.replay import Found, Replay, Segment, only
from mtpt.trees import flatten, unflatten

V, M = 64, 3
LOSS = dict(z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor='tokens')
SIZES = dict(D=16, H=2, K=8, F=32, encoder_layers=3, decoder_layers=2, dtype='float32')
TOKEN = 60  # that only one example holds, where a test puts it


def batch(seed=0, B=4, T=12, G=3):
    """Rows of three segments of tokens under 50, none of which is padding."""
    rng = np.random.default_rng(seed)
    segments = np.tile(np.repeat(np.arange(1, G + 1), T // G), (B, 1))
    tokens = rng.integers(3, 50, (2, B, T))
    arrays = dict(
        encoder_input_tokens=tokens[0],
        encoder_segment_ids=segments,
        encoder_positions=np.zeros_like(segments),
        decoder_input_tokens=np.roll(tokens[1], 1, axis=1),
        decoder_target_tokens=tokens[1],
        decoder_loss_weights=np.ones_like(segments),
        decoder_segment_ids=segments,
        decoder_positions=np.zeros_like(segments),
        segment_task_ids=rng.integers(1, 1 + M, (B, G)),
    )
    return {name: x.astype(np.int32) for name, x in arrays.items()}


def accumulated(data):
    return {name: x.reshape(2, -1, *x.shape[1:]) for name, x in data.items()}


@pytest.fixture(scope='module', autouse=True)
def quick():
    with ready.quick_to_compile():
        yield


@functools.cache
def mesh(devices=1):
    return make_mesh(MeshConfig(data=devices), jax.devices()[:devices])


@functools.cache
def model(**changes):
    cfg = resolve(ModelConfig(**{**SIZES, **changes}), V)
    with jax.set_mesh(mesh()):
        params = jax.device_get(jax.jit(lambda: functional.init(cfg, jax.random.key(0)))())
    return cfg, params


def spoiled(params, path, place, value):
    """The parameters with one number changed."""
    flat = dict(flatten(params))
    flat[path] = np.array(flat[path])
    flat[path][place] = value
    return unflatten(flat)


def replayed(cfg, params, data, devices=1):
    replay = Replay(cfg, M, mesh(devices), **LOSS)
    return replay(jax.tree.map(jnp.asarray, params), jax.random.key(1), data)


def test_a_sound_step_is_found_sound():
    cfg, params = model()
    assert replayed(cfg, params, batch()).look == ''


@pytest.mark.parametrize('layers', ['scanned', 'unrolled', 'some sparse', 'prefix_lm'])
def test_a_weight_that_is_no_number_is_named_with_its_layer_and_its_part(layers):
    changes = {
        'scanned': {},
        'unrolled': dict(scan=False),
        'some sparse': dict(decoder_layers=4),
        'prefix_lm': dict(kind='prefix_lm', encoder_layers=0, decoder_layers=3),
    }[layers]
    if layers == 'some sparse':
        changes['moe'] = MoeConfig(E=2)
    cfg, params = model(**changes)
    path, index, place = 'decoder/layers/attention/o', 1, 'decoder/layers/1/attention'
    if layers == 'some sparse':
        path, place = 'decoder/layers/1/moe/up', 'decoder/layers/3/moe'
    found = replayed(cfg, spoiled(params, path, (index,), np.nan), batch())
    named = path.replace('layers/1', 'layers') if layers == 'some sparse' else path
    layer = 3 if layers == 'some sparse' else 1
    assert found.look == 'parameters' and found.every and not found.segments
    assert found.parameters == (named.replace('layers/', f'layers/{layer}/'),)
    assert found.place == place


@pytest.mark.parametrize('side', ['encoder', 'decoder'])
@pytest.mark.parametrize('parts', [1, 2])
def test_the_example_that_holds_the_token_is_named(side, parts):
    cfg, params = model()
    data = batch()
    data[f'{side}_input_tokens'][3, 5] = TOKEN  # of segment 2, the number 1
    data = accumulated(data) if parts == 2 else data
    found = replayed(cfg, spoiled(params, 'token_embedding', (TOKEN, 0), np.inf), data)
    assert found.place == f'{side}/embedding'
    assert found.segments == (Segment(0, 3 if parts == 1 else 1, 1),)
    assert (found.part, found.every) == (parts - 1, False)


@pytest.mark.parametrize('devices', [1, 4])
def test_a_gradient_that_overflows_is_named_with_its_example(devices):
    cfg, params = model()
    data, feature = batch(), 3
    data['encoder_input_tokens'][2, 9] = TOKEN  # of segment 3, the number 2
    # Only this token drives the hidden layer of the first layer, whose outputs are taken back.
    params = spoiled(params, 'token_embedding', (slice(None), feature), 0)
    params = spoiled(params, 'token_embedding', (TOKEN, feature), 1)
    params = spoiled(params, 'encoder/layers/attention/o', (0, ..., feature), 0)
    params = spoiled(params, 'encoder/layers/mlp/up', (0,), 0)
    params = spoiled(params, 'encoder/layers/mlp/up', (0, feature), 1e25)
    params = spoiled(params, 'encoder/layers/mlp/down', (0,), 1e-28)
    found = replayed(cfg, params, data, devices)
    assert found.look == 'backward'
    assert found.gradients[0] == 'encoder/layers/0/mlp/down'
    assert found.largest == ('encoder/layers/mlp/up', pytest.approx(1e25))
    assert (found.segments, found.every) == ((Segment(0, 2, 2),), False)


def test_a_model_of_heads_alone_is_looked_into_too():
    head = HeadConfig(name='h', kind='classification', tasks=('a',), labels=('x', 'y'))
    cfg, params = model(kind='encoder', decoder_layers=0, heads=(head,))
    data = batch() | dict(segment_labels=np.zeros((4, 3, 1), np.int32))
    data['encoder_input_tokens'][3, 5] = TOKEN
    assert replayed(cfg, params, data).look == ''
    found = replayed(cfg, spoiled(params, 'token_embedding', (TOKEN, 0), np.inf), data)
    assert (found.place, found.segments) == ('encoder/embedding', (Segment(0, 3, 1),))


def test_what_is_left_out_of_a_batch_is_padding():
    data = batch()
    left = only(data, [(1, 0), (3, 2)])
    assert np.argwhere(left['segment_task_ids']).tolist() == [[1, 0], [3, 2]]
    for side in ('encoder', 'decoder'):
        kept = left[f'{side}_segment_ids'] > 0
        assert kept.sum() == 8 and not left[f'{side}_input_tokens'][~kept].any()
    assert left['decoder_loss_weights'].sum() == 8


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    """A run of three steps, to be gone on with."""
    folder = tmp_path_factory.mktemp('begun')
    config = tiny.write(folder, train__steps=3, train__validate_every=0, exams={})
    runs.train(runs.read(str(config)), folder / 'run')
    return folder


@pytest.fixture
def planted(monkeypatch):
    """A number in the table of tokens that is none, once the run is gone on with."""
    begin = training.begin

    def spoilt(*args, **kwargs):
        start = begin(*args, **kwargs)
        params = start.state.params
        table = np.array(params['token_embedding'])
        table[ord('w') + 3] = np.inf  # of 'brown' and 'white', which some examples lack
        table = jax.device_put(table, params['token_embedding'].sharding)
        state = start.state._replace(params=params | dict(token_embedding=table))
        return dataclasses.replace(start, state=state)

    monkeypatch.setattr(training, 'begin', spoilt)


def test_a_run_writes_down_the_layer_the_task_and_the_example(begun, tmp_path, capfd, planted):
    workdir = shutil.copytree(begun / 'run', tmp_path / 'run')
    config = runs.read(str(begun / 'config.py'), 'train.steps=8', 'train.max_skipped=3')
    with pytest.raises(UserError, match=r'nonfinite/0000000\d\.json') as stopped:
        runs.train(config, workdir)
    files = sorted((workdir / 'nonfinite').glob('*.json'))
    assert files
    told = json.loads(files[0].read_text())
    assert told['same_parameters'] and told['look'] == 'parameters'
    assert told['parameters'] == ['token_embedding'] and told['place'] == 'encoder/embedding'
    for example in told['segments']:
        assert example['task'].startswith('tiny_')
        assert 'w' in example['inputs'] + example['targets']
    assert told['sentence'] in stopped.value.args[0]
    assert told['sentence'] in capfd.readouterr().err.replace('\n', ' ')


def test_debugging_is_on_one_device_without_a_thread_and_ends_at_the_line(
    begun, tmp_path, capfd, monkeypatch, request
):
    workdir = shutil.copytree(begun / 'run', tmp_path / 'run')
    monkeypatch.setattr(loop, 'Prefetch', None)
    config = runs.read(str(begun / 'config.py'), 'train.steps=4', 'mesh.data=2')
    runs.train(config, workdir, debug=True)
    assert '--debug: one device' in capfd.readouterr().err
    assert json.loads((workdir / 'config.json').read_text())['devices'].startswith('1 x')
    request.getfixturevalue('planted')
    config = runs.read(str(begun / 'config.py'), 'train.steps=8')
    with pytest.raises(FloatingPointError, match='encoder/embedding') as stopped:
        runs.train(config, workdir, debug=True)
    lines = traceback.extract_tb(stopped.value.__cause__.__traceback__)
    assert any('mtpt/model/' in line.filename for line in lines)


def test_debug_is_a_flag_of_every_verb_and_more_to_train(capsys):
    assert main(['train', '--help']) == 0
    assert 'NaN checks' in capsys.readouterr().out
    with pytest.raises(UserError):
        main(['report', '--debug', '--workdir=nowhere/at/all'])
    with pytest.raises(UserError):
        main(['train', '--debug', '--workdir=nowhere/at/all'])
    with pytest.raises(UserError, match='leave one of them out'):
        main(['train', '--debug', '--restarts=2', '--workdir=nowhere/at/all'])


OF_TWO = """
import sys
import jax
import jax.numpy as jnp
number, port, tests = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f'localhost:{port}', 2, number)
jax.config.update('jax_disable_most_optimizations', True)
sys.path.insert(0, tests)
import test_replay as laws
from mtpt import hosts
from mtpt.mesh import MeshConfig, make_mesh
from mtpt.model import functional
from mtpt.model.config import ModelConfig, resolve
from mtpt.train.replay import Replay
cfg, mesh = resolve(ModelConfig(**laws.SIZES), laws.V), make_mesh(MeshConfig(data=2))
hosts.meet(mesh)
data = laws.batch(seed=number)
if number == 1:
    data['encoder_input_tokens'][2, 9] = laws.TOKEN
def planted():
    params = functional.init(cfg, jax.random.key(0))
    guilty = jnp.arange(laws.V)[:, None] == laws.TOKEN
    return params | dict(token_embedding=jnp.where(guilty, jnp.inf, params['token_embedding']))
with jax.set_mesh(mesh):
    params, key = jax.jit(planted)(), jax.jit(lambda: jax.random.key(1))()
found = Replay(cfg, laws.M, mesh, **laws.LOSS)(params, key, data)
print(found.place, [tuple(s) for s in found.segments])
"""


def test_two_processes_find_the_same_whichever_holds_the_example():
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    here = pathlib.Path(__file__).resolve().parent
    words = [sys.executable, '-c', OF_TWO]
    environment = os.environ | dict(XLA_FLAGS='', PYTHONPATH=str(here.parent))
    both = [
        subprocess.Popen(
            [*words, str(number), port, str(here)], env=environment, text=True, cwd=here.parent,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in (0, 1)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    for out, error in told:
        assert 'encoder/embedding [(1, 2, 2)]' in out, error[-2000:]


def test_a_rate_that_blew_the_parameters_up_is_named_before_the_examples_are_blamed():
    told = Found('backward', 'decoder/norm', gradients=('decoder/norm/scale',))._asdict()
    told |= dict(step=2, same_parameters=True, segments=[])
    assert 'lower the rate' not in sentence(told | dict(largest=('decoder/norm/scale', 90.0)))
    said = sentence(told | dict(largest=('decoder/norm/scale', 1e30)))
    assert 'parameters have grown to 1e+30 (decoder/norm/scale)' in said


def test_of_what_was_not_counted_to_the_end_no_number_is_told():
    told = Found('backward', 'x', gradients=tuple('abcdefgh'))._asdict()
    told |= dict(step=2, same_parameters=True, segments=[])
    assert 'that fails is a and others' in sentence(told)
    assert 'that fails is a and 2 more' in sentence(told | dict(gradients=('a', 'b', 'c')))
