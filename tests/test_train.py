"""The laws of training: accumulation, overfitting, resuming, skipping, stopping.

A accumulation  B rows  S, T positions  G segments of a row  V vocabulary  M tasks
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import tempfile
import time

import jax
import numpy as np
import pytest

from mtpt.checkpoint import CheckpointConfig, Checkpoints
from mtpt.config import UserError
from mtpt.log import LogConfig, Writer, read_metrics, trim
from mtpt.mesh import MeshConfig, act, make_mesh, place
from mtpt.model import functional
from mtpt.model.config import ModelConfig, resolve
from mtpt.train import loop
from mtpt.train.config import TrainConfig
from mtpt.train.host import Prefetch
from mtpt.train.loop import Interrupted, Trainer
from mtpt.train.loss import normalizer, task_sums, token_losses
from mtpt.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
from mtpt.train.start import begin
from mtpt.train.state import InitFromConfig, init_from, new_state
from mtpt.train.step import make_train_step
from mtpt.train.validation import Judges
from mtpt.trees import flatten

TASKS = ['add', 'sort', 'copy']
V = 64
MODEL = resolve(ModelConfig(D=16, H=2, K=8, F=32, encoder_layers=1, decoder_layers=1, tied=True), V)
RATE = dict(adamw=2e-2, sgd=1.0)
LOSS = dict(z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor='tokens')


def batch(seed=0, B=8, T=12, G=3):
    """Rows of three segments, the last of which may be padding, and a task for each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 5, (B, G))
    segments = np.stack([np.r_[np.repeat([1, 2, 3], n), np.zeros(T, int)][:T] for n in lengths])
    targets = rng.integers(3, V, (B, T)) * (segments > 0)
    first = np.diff(segments, axis=1, prepend=0) != 0
    shifted = np.where(first, 0, np.roll(targets, 1, axis=1))
    positions = np.zeros_like(segments)
    arrays = dict(
        encoder_input_tokens=targets,
        encoder_segment_ids=segments,
        encoder_positions=positions,
        decoder_input_tokens=shifted,
        decoder_target_tokens=targets,
        decoder_loss_weights=segments > 0,
        decoder_segment_ids=segments,
        decoder_positions=positions,
        segment_task_ids=rng.integers(1, 1 + len(TASKS), (B, G)),
    )
    return {name: x.astype(np.int32) for name, x in arrays.items()}


def loader(position=None, spoil=lambda step, batch: batch):
    """An endless deterministic loader, as plain as can be: the position is how many were drawn."""
    step = int(position['drawn'][0]) if position else 0
    while True:
        step += 1
        yield spoil(step, batch(seed=step)), dict(drawn=np.array([step]))


@functools.cache
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@functools.cache
def optimizer(name='adamw'):
    schedule = ScheduleConfig(name='linear', rate=RATE[name], warmup=2)
    return make_optimizer(
        OptimizerConfig(name=name, schedule=schedule, clip=1.0), functional.dims(MODEL), 150
    )


def train(workdir, steps, data=loader, **settings):
    """A whole run in a folder, or the rest of one."""
    cfg = TrainConfig(**dict(steps=steps, validate_every=0, max_skipped=3) | settings)
    tx = optimizer()
    checkpoints = Checkpoints(workdir, CheckpointConfig(every=0))
    start = begin(cfg, MODEL, tx, mesh(), checkpoints)
    log = LogConfig(every=2, tensorboard=False)
    with Writer(workdir, TASKS, steps, log, step=start.step) as writer:
        judges = Judges(lambda: [batch(seed=-1 % 99)], cfg.validate_every)
        trainer = Trainer(cfg, MODEL, tx, mesh(), TASKS, writer, checkpoints, judges=judges)
        state, figures, _ = trainer.fit(start.state, data(start.position))
    return state, figures


def same(a, b):
    for path, x in flatten(dict(p=a.params)).items():
        np.testing.assert_array_equal(x, flatten(dict(p=b.params))[path], err_msg=path)
    for x, y in zip(jax.tree.leaves(a.opt_state), jax.tree.leaves(b.opt_state)):
        np.testing.assert_array_equal(x, y)
    assert int(a.step) == int(b.step)


@functools.cache
def compiled(name):
    """The optimizer, and a step that is traced once for all tests."""
    tx = optimizer(name)
    return tx, make_train_step(MODEL, tx, len(TASKS), **LOSS)


def run(data, steps=1, name='sgd', state=None):
    """The state and the metrics after some steps on one batch."""
    tx, step = compiled(name)
    with jax.set_mesh(mesh()):
        placed = place(data, mesh())
        state = new_state(MODEL, tx, 0) if state is None else state
        for _ in range(steps):
            state, metrics = step(state, placed)
    return state, metrics


@functools.cache
def run_to(steps):
    """The state after a run that nothing interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        return train(folder, steps)[0]


def test_ten_steps_equal_five_saved_loaded_and_five_more(tmp_path):
    whole, _ = train(tmp_path / 'whole', 10)
    train(tmp_path / 'parts', 5)
    parts, _ = train(tmp_path / 'parts', 10)
    same(whole, parts)
    lines = [read_metrics(tmp_path / folder) for folder in ('whole', 'parts')]
    assert [line['step'] for line in lines[1]] == [2, 4, 5, 6, 8, 10]
    assert lines[0][-1]['train/loss'] == lines[1][-1]['train/loss']


def test_ctrl_c_finishes_the_step_saves_and_the_run_goes_on_from_there(tmp_path):
    def pressed(step, batch):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # a loader that is slow now must not hold up the stop
        return batch

    with pytest.raises(Interrupted, match=r'stopped by Ctrl-C after step .*same command goes on'):
        train(tmp_path / 'cut', 10, functools.partial(loader, spoil=pressed))
    saved = Checkpoints(tmp_path / 'cut').latest()
    assert 1 <= saved <= 6
    same(train(tmp_path / 'cut', 10)[0], run_to(10))


def test_a_second_ctrl_c_in_the_middle_of_a_save_breaks_no_checkpoint(tmp_path, monkeypatch):
    train(tmp_path / 'run', 3)
    wait, first = Checkpoints.wait, []

    def impatient(self):
        if not first:
            first.append(True)
            with contextlib.suppress(shutil.Error):  # a file may be renamed meanwhile
                shutil.copytree(tmp_path / 'run', tmp_path / 'as left')
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
        wait(self)

    monkeypatch.setattr(Checkpoints, 'wait', impatient)
    monkeypatch.setattr(loop, 'let_finish', lambda *args: pytest.fail('the save was waited for'))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'run', 6)
    monkeypatch.undo()
    for folder in ('as left', 'run'):
        assert Checkpoints(tmp_path / folder).latest() in (3, 6)
        same(train(tmp_path / folder, 8)[0], run_to(8))


def test_a_stop_while_the_last_checkpoint_becomes_whole_is_a_stop(tmp_path, monkeypatch):
    """The step was the last, but exams may take hours: the same command goes on with them."""
    wait = Checkpoints.wait

    def told(self):
        if self._saving == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        wait(self)

    monkeypatch.setattr(Checkpoints, 'wait', told)
    with pytest.raises(Interrupted, match='stopped by SIGTERM after step 3; checkpoint 3'):
        train(tmp_path, 3)
    monkeypatch.undo()
    same(train(tmp_path, 3)[0], run_to(3))


def test_accumulated_parts_give_the_update_of_the_whole():
    data = batch(seed=5)
    data['decoder_loss_weights'][:2] = 0
    parts = {name: x.reshape(4, 2, -1) for name, x in data.items()}
    whole, metrics = run(data)
    accumulated, summed = run(parts)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        whole.params,
        accumulated.params,
    )
    for name, value in metrics.items():
        np.testing.assert_allclose(value, summed[name], rtol=1e-4, err_msg=name)


def test_a_tiny_model_memorises_eight_examples():
    data = batch(seed=3)
    data['segment_task_ids'][:, 1:] = 0
    for side in ('encoder', 'decoder'):
        data[f'{side}_segment_ids'] = np.minimum(data[f'{side}_segment_ids'], 1)
    _, metrics = run(data, 150, 'adamw')
    assert metrics['train/loss'] < 0.05
    assert metrics['train/accuracy'] > 0.99


def losses_in_numpy(logits, targets, z_loss, smoothing):
    logits = logits.astype(np.float64)
    logZ = np.log(np.exp(logits).sum(-1))
    logp = logits - logZ[..., None]
    q = np.full(logits.shape, smoothing / (V - 1))
    np.put_along_axis(q, targets[..., None], 1 - smoothing, -1)
    entropy = -(q * np.log(np.maximum(q, 1e-300))).sum(-1)
    return -(q * logp).sum(-1) - entropy + z_loss * logZ**2


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_loss_is_the_same_whether_the_vocabulary_is_split_or_not(smoothing):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(8, 4, V)).astype(np.float32), rng.integers(0, V, (8, 4))
    expected = losses_in_numpy(logits, targets, 1e-2, smoothing)
    for sizes in (MeshConfig(), MeshConfig(data=2, tensor=4)):
        with jax.set_mesh(make_mesh(sizes)):
            split = jax.device_put(logits, act('BTV')), jax.device_put(targets, act('BT'))
            got = jax.jit(lambda x, y: token_losses(x, y, 1e-2, smoothing))(*split)
        np.testing.assert_allclose(got['objective'], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got['correct'], logits.argmax(-1) == targets)


def test_sums_by_task_are_those_of_a_loop_and_one_bad_task_leaves_the_others_intact():
    data, rng = batch(seed=1), np.random.default_rng(0)
    nll, correct = rng.random((8, 12)).astype(np.float32), np.ones((8, 12), np.float32)
    nll[:, 11] = np.inf  # padding in most rows
    data['decoder_loss_weights'][:, 11] = 0
    bad = data['segment_task_ids'][0, 0]
    nll[0, 0] = np.nan
    expected = np.zeros((4, 4))
    for b, t in np.ndindex(8, 12):
        if data['decoder_loss_weights'][b, t]:
            m = data['segment_task_ids'][b, data['decoder_segment_ids'][b, t] - 1]
            expected[:3, m] += nll[b, t], correct[b, t], 1
    expected[3] = np.bincount(data['segment_task_ids'].ravel(), minlength=4)
    for sizes in (MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)):
        with jax.set_mesh(make_mesh(sizes)) as _:
            placed = place(data, jax.sharding.get_mesh())
            losses = {
                k: jax.device_put(x, act('BT')) for k, x in dict(nll=nll, correct=correct).items()
            }
            got = jax.jit(lambda losses, batch: task_sums(losses, batch, 3))(losses, placed)
        names = [f'task/{name}' for name in ('loss_sum', 'correct', 'tokens', 'segments')]
        np.testing.assert_allclose([got[name] for name in names], expected, rtol=1e-5)
    assert np.isnan(expected[0, bad]) and np.isfinite(np.delete(expected[0], bad)).all()


def test_the_loss_is_divided_by_what_the_config_says():
    weights = np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
    assert normalizer('tokens', weights) == 3
    assert normalizer('positions', weights) == 8
    assert normalizer(233472.0, weights) == 233472
    with pytest.raises(UserError, match='did you mean'):
        normalizer('token', weights)


def spoiled(step, batch, at, task=2):
    """Gives a loss that is no number to one task at some steps."""
    if step in at:
        weights = batch['decoder_loss_weights'].astype(np.float32)
        for b, g in zip(*np.where(batch['segment_task_ids'] == task)):
            weights[b][batch['decoder_segment_ids'][b] == g + 1] = np.nan
        batch = batch | dict(decoder_loss_weights=weights)
    return batch


def test_an_update_that_is_not_finite_is_left_out_and_counted():
    clean, _ = run(batch(seed=1), name='adamw')
    spoilt, metrics = run(spoiled(1, batch(seed=2), at=[1]), name='adamw')
    assert (int(metrics['train/skipped']), int(spoilt.skipped), int(spoilt.step)) == (1, 1, 1)
    assert np.array(metrics['task/nonfinite']).tolist() == [False, False, True, False]
    state = spoilt._replace(step=jax.numpy.zeros_like(spoilt.step))
    state, metrics = run(batch(seed=1), name='adamw', state=state)
    assert (int(metrics['train/skipped']), int(state.skipped)) == (0, 0)
    same(state, clean)


def test_a_run_that_stays_broken_stops_and_names_the_task_and_the_last_checkpoint(tmp_path):
    sometimes = functools.partial(spoiled, at=[2, 3, 5])
    train(tmp_path, 6, functools.partial(loader, spoil=sometimes))
    assert sum(line.get('train/skipped', 0) for line in read_metrics(tmp_path)) == 3
    always = functools.partial(loader, spoil=functools.partial(spoiled, at=range(99)))
    with pytest.raises(UserError, match=r'3 steps in a row.*tasks: sort \(3x\);.*checkpoint 6 in'):
        train(tmp_path, 20, always)
    assert Checkpoints(tmp_path).latest() == 6
    text = (tmp_path / 'metrics.jsonl').read_text()
    assert 'NaN' not in text and '"task/sort/loss": null' in text


def test_what_a_loader_raises_surfaces_where_its_batch_is_taken():
    def failing():
        yield 1, 'a'
        raise UserError('line 3 of x.jsonl is broken')

    batches = Prefetch(failing(), lambda x: x + 1, depth=2)
    assert batches.take() == (2, 'a')
    with pytest.raises(UserError, match='line 3'):
        batches.take()
    with pytest.raises(UserError, match='the data ended'):
        Prefetch(iter([]), lambda x: x, depth=2).take()


def test_validation_is_measured_by_task_on_the_same_batches(tmp_path):
    _, figures = train(tmp_path, 4, validate_every=2)
    lines = {line['step']: line for line in read_metrics(tmp_path)}
    assert {f'valid/task/{name}/loss' for name in TASKS} | {'valid/loss'} <= lines[2].keys()
    assert lines[4]['valid/loss'] == figures['valid/loss'] < lines[2]['valid/loss']
    assert {'train/loss', 'task/add/loss', 'task/add/tokens', 'time/tokens_per_s'} <= lines[
        4
    ].keys()


def test_a_run_starts_from_the_parameters_of_another(tmp_path):
    trained, _ = train(tmp_path, 2)
    dims, old = functional.dims(MODEL), flatten(trained.params)
    larger = resolve(
        ModelConfig(D=16, H=2, K=8, F=32, encoder_layers=1, decoder_layers=1, tied=True), 128
    )
    with jax.set_mesh(mesh()):
        params = new_state(larger, optimizer(), 7).params
    fresh = flatten(params)
    source = InitFromConfig(path=str(tmp_path), exclude=('decoder/*',))
    rows = {i: i for i in range(60)} | {63: 127}
    taken, notes = init_from(source, params, dims, rows)
    taken = flatten(taken)
    for path in old:
        if path != 'token_embedding':
            expected = fresh[path] if path.startswith('decoder/') else old[path]
            np.testing.assert_array_equal(taken[path], expected)
    table = np.array(taken['token_embedding'])
    np.testing.assert_array_equal(table[:60], old['token_embedding'][:60])
    np.testing.assert_array_equal(table[127], old['token_embedding'][63])
    np.testing.assert_array_equal(table[60:127], fresh['token_embedding'][60:127])
    assert 'stay fresh: decoder/' in ' '.join(notes)
    with pytest.raises(UserError, match="'decodr/\\*' matches nothing"):
        init_from(InitFromConfig(path=str(tmp_path), include=('decodr/*',)), params, dims)
    with pytest.raises(UserError, match='no checkpoints in'):
        init_from(InitFromConfig(path=str(tmp_path / 'nowhere')), params, dims)


def test_lines_past_the_resumed_step_and_cut_lines_are_dropped(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    lines = [json.dumps(dict(step=s, x=s)) for s in (2, 4, 6)]
    path.write_text('\n'.join([*lines, '{"step": 8, "tr']))
    trim(path, 4)
    assert read_metrics(tmp_path) == [dict(step=2, x=2), dict(step=4, x=4)]


def test_the_metrics_of_one_step_are_the_golden_ones():
    _, metrics = run(batch(seed=0))
    got = {name: np.round(np.asarray(x, float), 5).tolist() for name, x in metrics.items()}
    assert got == {name: pytest.approx(x, rel=1e-3) for name, x in GOLDEN.items()}, got


GOLDEN = {
    'task/correct': [0, 0, 0, 0],
    'task/loss_sum': [0, 84.02711, 108.54617, 137.83057],
    'task/nonfinite': [0, 0, 0, 0],
    'task/segments': [0, 6, 8, 10],
    'task/tokens': [0, 18, 23, 31],
    'train/accuracy': 0,
    'train/encoder_tokens': 72,
    'train/grad_norm': 1.17236,
    'train/learning_rate': 0.5,
    'train/loss': 4.58894,
    'train/objective': 4.5912,
    'train/skipped': 0,
    'train/skipped_in_a_row': 0,
    'train/tokens': 72,
    'train/z_loss': 0.00226,
}


@pytest.mark.parametrize('sizes', [dict(), dict(data=2, fsdp=2, tensor=2)])
def test_scaled_losses_weigh_each_task_by_its_number(sizes):
    """The objective is the sum over tasks of scale x summed loss, over all real tokens."""
    scale = (0.0, 0.5, 2.0, 0.0, 1.0, 3.0)[: len(TASKS) + 1]
    many = make_mesh(MeshConfig(**sizes), jax.devices()[: max(1, 8 * len(sizes) // 3)])
    tx = optimizer('sgd')
    loss = LOSS | dict(z_loss=0.0, label_smoothing=0.0)
    step = make_train_step(MODEL, tx, len(TASKS), task_scale=scale, **loss)
    with jax.set_mesh(many):
        _, metrics = step(new_state(MODEL, tx, 0), place(batch(), many))
    expected = np.dot(scale, metrics['task/loss_sum']) / np.sum(metrics['task/tokens'])
    np.testing.assert_allclose(metrics['train/objective'], expected, rtol=1e-5)
    assert not np.isclose(expected, metrics['train/loss'], rtol=1e-2)
