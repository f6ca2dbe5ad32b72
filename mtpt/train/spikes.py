"""Loss spikes: updates that stand out of those before them are left out, or rolled back.

What counts as a spike is decided inside the step, from the objective and the norm of the gradient
of the last updates that were taken. Those figures are part of the state, so a run that is stopped
and gone on with meets the same spikes.

W updates remembered
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError, choose

FIGURES = ('loss', 'grad_norm')  # what is looked at: the objective, and the norm of its gradient


@dataclasses.dataclass(frozen=True)
class SpikesConfig:
    """What is done about an update whose loss or gradient stands out.

    rule: 'none'; 'skip', where it is left out; or 'rollback', where parameters and optimizer go
    back to the last checkpoint before it that was due by `checkpoint.every`, and the data goes on
    (PaLM, 2204.02311, section 5.1: spikes come of a state of the parameters and certain batches
    together). A spike is more than `threshold` standard deviations above the mean over the last
    `window` updates that were taken (ZClip, 2504.02507, clips by such a score; here the update goes
    as a whole); nothing is one before there are as many. most: updates left out in a row, after
    which the next is taken and the window begins anew; of 'rollback', those of a run or a stage,
    after which it stops. after: with 'rollback', batches that nothing is learnt from, that of the
    spike among them.
    """

    rule: str = 'none'
    threshold: float = 6.0
    window: int = 128
    most: int = 5
    after: int = 50

    def __post_init__(self):
        choose('rule for spikes', self.rule, RULES)
        for name, least in dict(threshold=0, window=2, most=1, after=2).items():
            if getattr(self, name) < least:
                raise UserError(
                    f'train.spikes.{name}={getattr(self, name)} must be at least {least}'
                )


def start(cfg: SpikesConfig, step: Any = 0) -> Any:
    """What a rule keeps in the state of training, from `step` on; () where there is none.

    seen: the figures of the last updates that were taken [2, W], and how many there were; in_a_row:
    updates left out; held: batches that are still passed over; asked: the step of a spike that is
    to be rolled back (0: none); done: how many were; since: the step at which this began.
    """
    if cfg.rule == 'none':
        return ()
    zero = jnp.zeros((), jnp.int32)
    counts = dict.fromkeys(('taken', 'in_a_row', 'held', 'asked', 'done'), zero)
    seen = jnp.zeros((len(FIGURES), cfg.window), jnp.float32)
    return counts | dict(seen=seen, since=jnp.asarray(step, jnp.int32))


def judge(
    cfg: SpikesConfig, kept: Any, step: jax.Array, figures: tuple[jax.Array, ...], sound: jax.Array
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """Says inside a step whether its update is taken.

    Args:
      kept: as `start` gave it, or the step before.
      step: the number of the step, from 1.
      figures: the objective and the norm of the gradient.
      sound: whether they are finite.

    Returns:
      Whether the update is taken, what is kept, and metrics.
    """
    if cfg.rule == 'none':
        return sound, kept, {}
    x_2 = jnp.stack([jnp.asarray(x, jnp.float32) for x in figures])
    mean_2, deviation_2 = jnp.mean(kept['seen'], 1), jnp.std(kept['seen'], 1)
    limit_2 = mean_2 + cfg.threshold * deviation_2
    known = kept['taken'] >= cfg.window
    high = sound & known & jnp.any(x_2 > limit_2)
    taken, spike, kept = RULES[cfg.rule](cfg, kept, step, high, sound)
    place = kept['taken'] % cfg.window
    seen = kept['seen'].at[:, place].set(jnp.where(taken, x_2, kept['seen'][:, place]))
    kept = kept | dict(seen=seen, taken=kept['taken'] + taken)
    told = {f'spikes/{name}_limit': jnp.where(known, limit_2[i], jnp.nan) for i, name in _named()}
    told |= {'train/spikes': spike.astype(jnp.int32)}
    told |= {'train/passed_over': (sound & ~taken).astype(jnp.int32)}
    return taken, kept, told


def _named() -> list[tuple[int, str]]:
    return list(enumerate(FIGURES))


def _skip(cfg, kept, step, high, sound):
    spike = high & (kept['in_a_row'] < cfg.most)
    taken = sound & ~spike
    # What stands out that often is the new level: the window begins anew with it.
    counts = dict(
        in_a_row=jnp.where(spike, kept['in_a_row'] + 1, jnp.where(sound, 0, kept['in_a_row'])),
        taken=jnp.where(high & ~spike, 0, kept['taken']),
    )
    return taken, spike, kept | counts


def _rollback(cfg, kept, step, high, sound):
    spike = high & (kept['held'] == 0)
    held = jnp.where(spike, cfg.after, kept['held'])
    counts = dict(
        held=jnp.maximum(held - 1, 0), asked=jnp.where(spike, step, kept['asked']).astype(jnp.int32)
    )
    return sound & (held == 0), spike, kept | counts


def check(cfg: SpikesConfig, every: int, learnt: bool) -> None:
    """Refuses a rollback that could not be, or not be exact.

    every: steps between checkpoints; learnt: whether rates are learnt from losses.
    """
    if cfg.rule == 'rollback' and not every:
        raise UserError(
            "train.spikes.rule='rollback' goes back to checkpoints, and checkpoint.every=0 makes "
            'none on the way; set checkpoint.every'
        )
    if cfg.rule == 'rollback' and learnt:
        raise UserError(
            "train.spikes.rule='rollback' and data.learn do not go together: rates would be learnt "
            'from losses of parameters that are taken back; set train.spikes.rule=skip'
        )


class Rollbacks:
    """Puts the state back where a spike asks for it.

    The batches after a spike are passed over on the devices, so it makes no difference at which of
    them that happens: a run that is stopped in between ends with the same weights.
    """

    def __init__(
        self,
        cfg: SpikesConfig,
        checkpoints: Checkpoints,
        say: Callable[[str], None],
        write: Callable[[int, Mapping[str, float]], None],
        wait: Callable[[], None],
    ):
        self.cfg, self.checkpoints, self.say, self.write = cfg, checkpoints, say, write
        self.wait = wait
        self._due = False

    def heard(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of a step, and tells of a spike in it."""
        if not metrics.get('train/spikes', 0):
            return
        told = {n: (metrics[f'train/{n}'], metrics[f'spikes/{n}_limit']) for n in ('grad_norm',)}
        told['loss'] = metrics['train/objective'], metrics['spikes/loss_limit']
        high = [
            f'{n} {float(x):.4g} is above {float(y):.4g}' for n, (x, y) in told.items() if x > y
        ]
        self.say(f'step {step}: a spike, {" and ".join(high)}; its update was left out')
        self._due = self.cfg.rule == 'rollback'

    def resumed(self, state: Any) -> Any:
        """The state that a run goes on from, put back if it was stopped before that was done."""
        self._due = self.cfg.rule == 'rollback' and int(state.spikes['asked']) > 0
        return self.applied(state)

    def applied(self, state: Any) -> Any:
        """The state as it is, or after a spike that was heard of, as it was before."""
        if not self._due:
            return state
        self._due = False
        kept = jax.device_get(state.spikes)
        step, every = int(kept['asked']), self.checkpoints.cfg.every
        back = (step - 1) // every * every
        if kept['done'] >= self.cfg.most:
            raise UserError(
                f'the loss spiked at step {step}, and {self.cfg.most} spikes were rolled back '
                'before (train.spikes.most); lower optimizer.schedule.rate, set optimizer.clip, or '
                'look at the data, and begin another --workdir with init_from.path set to this one'
            )
        counts = dict(asked=0, done=kept['done'] + 1)
        if back <= kept['since']:
            self.say(
                f'there is no checkpoint before step {step} to go back to; its batch and '
                + (f'{self.cfg.after - 1} more are passed over')
            )
        else:
            state = self._loaded(state, back, step)
        self.write(step, {'spikes/back_to': back if back > kept['since'] else step - 1})
        return state._replace(spikes=state.spikes | _like(counts, state.spikes))

    def _loaded(self, state: Any, back: int, step: int) -> Any:
        """The parameters and moments of a checkpoint; those of now make room for them first."""
        self.wait()
        if back not in self.checkpoints.steps():
            raise UserError(
                f'the loss spiked at step {step}, and checkpoint {back}, which it goes back to, is '
                f'not in {self.checkpoints.folder}; put it back, or set train.spikes.rule=skip in '
                'another --workdir'
            )
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        jax.block_until_ready(state)
        jax.tree.map(lambda x: x.delete(), (state.params, state.opt_state))
        old, _, _ = self.checkpoints.load(back, abstract)
        self.say(
            f'back to the parameters of step {back}; the data goes on, and nothing is learnt from '
            f'the batches of steps {step} to {step + self.cfg.after - 1}'
        )
        return state._replace(params=old.params, opt_state=old.opt_state)


def _like(counts: Mapping[str, int], kept: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {n: jax.device_put(np.int32(x), kept[n].sharding) for n, x in counts.items()}


# Functions of (settings, what is kept, step, whether a figure is high, whether they are finite)
# giving whether the update is taken, whether this is a spike, and what is kept.
RULES = dict(none=None, skip=_skip, rollback=_rollback)

OFF = SpikesConfig()
