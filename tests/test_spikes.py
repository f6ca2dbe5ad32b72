"""The laws of loss spikes: left out or rolled back, counted, and the same after any stop.

W updates remembered
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ready
import test_train as base

from mtpt.checkpoint import CheckpointConfig, Checkpoints
from mtpt.config import UserError
from mtpt.log import LogConfig, Writer, read_metrics
from mtpt.train.config import TrainConfig
from mtpt.train.loop import Trainer
from mtpt.train.spikes import SpikesConfig, check, judge, start
from mtpt.train.start import begin
from mtpt.train.state import new_state, with_spikes

EVERY = 4
SPIKE = 11  # the step whose batch weighs a hundred times as much
RULES = dict(
    skip=SpikesConfig(rule='skip', window=4, threshold=20.0),
    rollback=SpikesConfig(rule='rollback', window=4, threshold=20.0, after=3, most=1),
)


def heavy(step, batch, at=(SPIKE,)):
    factor = 100 if step in at else 1
    return batch | dict(decoder_loss_weights=batch['decoder_loss_weights'] * np.int32(factor))


@pytest.fixture(scope='module', autouse=True)
def quick():
    with ready.quick_to_compile():
        yield


def train(folder, steps, rule='skip', at=(SPIKE,), every=EVERY):
    """A whole run in a folder, or the rest of one."""
    cfg = TrainConfig(
        steps=steps, validate_every=0, loss_normalizing_factor=200.0, spikes=RULES[rule]
    )
    tx, kept = base.optimizer(), CheckpointConfig(every=every, keep=1)
    checkpoints = Checkpoints(folder, kept, regular=2)
    begun = begin(cfg, base.MODEL, tx, base.mesh(), checkpoints)
    data = base.loader(begun.position, functools.partial(heavy, at=at))
    log = LogConfig(every=1, tensorboard=False)
    with Writer(folder, base.TASKS, steps, log, step=begun.step) as writer:
        trainer = Trainer(cfg, base.MODEL, tx, base.mesh(), base.TASKS, writer, checkpoints)
        fitted = trainer.fit(begun.state, data)
    checkpoints.close()
    return fitted.state


@pytest.fixture(scope='module', params=RULES)
def whole(request, tmp_path_factory):
    """A run of twenty steps that nothing stopped."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, train(folder, 20, request.param)


def params_at(folder, step):
    return Checkpoints(folder, read_only=True).load_params(step)


def same_params(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_a_spike_is_counted_and_nothing_is_learnt_from_its_batch(whole):
    rule, folder, _ = whole
    lines = {line['step']: line for line in read_metrics(folder)}
    assert [step for step, line in lines.items() if line['train/spikes']] == [SPIKE]
    over = [step for step, line in lines.items() if line['train/passed_over']]
    assert over == dict(skip=[SPIKE], rollback=[SPIKE, SPIKE + 1, SPIKE + 2])[rule]
    assert lines[SPIKE]['train/objective'] > lines[SPIKE]['spikes/loss_limit']
    assert lines[SPIKE].get('spikes/back_to') == dict(skip=None, rollback=8)[rule]
    assert not any(line['train/skipped'] for line in lines.values())


@pytest.mark.parametrize('stop', [8, 10, SPIKE, SPIKE + 1, SPIKE + 2])
def test_a_run_stopped_around_a_spike_ends_with_the_same_weights(whole, tmp_path, stop):
    rule, _, state = whole
    before = train(tmp_path, stop, rule)
    if rule == 'rollback' and stop > SPIKE:  # three batches are passed over from the spike on
        same_params(before.params, params_at(tmp_path, 8))
    base.same(state, train(tmp_path, 20, rule))


def test_a_skipped_update_leaves_the_parameters_as_they_were(tmp_path):
    states = [train(tmp_path / str(n), n) for n in (SPIKE - 1, SPIKE)]
    same_params(*[state.params for state in states])


def test_too_many_rollbacks_stop_the_run_in_words(tmp_path):
    with pytest.raises(UserError, match=r'spiked at step 15, and 1 spikes were rolled back before'):
        train(tmp_path, 20, 'rollback', at=(SPIKE, 15))


def test_a_spike_before_the_first_checkpoint_is_passed_over(tmp_path, capfd):
    state = train(tmp_path, SPIKE + 2, 'rollback', every=50)
    assert f'no checkpoint before step {SPIKE}' in capfd.readouterr().err
    assert int(state.spikes['done']) == 1 and not int(state.spikes['asked'])


def judged(cfg, losses):
    """Which of the updates with these losses are taken."""
    kept, taken = start(cfg), []
    for step, loss in enumerate(losses, 1):
        figures = jnp.float32(loss), jnp.float32(1.0)
        ok, kept, _ = judge(cfg, kept, jnp.int32(step), figures, jnp.isfinite(figures[0]))
        taken.append(bool(ok))
    return taken


def test_a_level_that_stays_is_taken_after_so_many_updates():
    cfg = SpikesConfig(rule='skip', window=4, threshold=6.0, most=3)
    levels = [1.0, 1.1, 0.9, 1.0, *[9.0] * 5, 9.1]
    assert judged(cfg, levels) == [True] * 4 + [False] * 3 + [True] * 3


def test_what_is_no_number_and_what_was_left_out_count_for_no_mean():
    cfg = SpikesConfig(rule='skip', window=4, threshold=6.0)
    levels = [1.0, 1.1, np.nan, 0.9, 1.0, 9.0, 1.05, np.inf, 9.0]
    assert judged(cfg, levels) == [True, True, False, True, True, False, True, False, False]


def test_a_state_without_a_rule_holds_nothing_for_spikes():
    with jax.set_mesh(base.mesh()):
        state = new_state(base.MODEL, base.optimizer(), 0)
    assert jax.tree.leaves(state.spikes) == []
    on = with_spikes(state._replace(step=jnp.int32(7)), RULES['skip'], base.mesh())
    assert on.spikes['seen'].shape == (2, 4) and int(on.spikes['since']) == 7
    assert with_spikes(on, SpikesConfig(), base.mesh()).spikes == ()


def test_a_rollback_that_could_not_be_exact_is_refused():
    with pytest.raises(UserError, match=r'set checkpoint\.every'):
        check(RULES['rollback'], 0, learnt=False)
    with pytest.raises(UserError, match='do not go together'):
        check(RULES['rollback'], 4, learnt=True)
    check(RULES['skip'], 0, learnt=True)
    with pytest.raises(UserError, match='no rule for spikes'):
        SpikesConfig(rule='clip')
