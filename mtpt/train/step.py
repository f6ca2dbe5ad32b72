"""One training step: losses, gradients, update; and one validation step.

A accumulation   B rows   T decoder positions   M tasks
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mtpt.config import UserError
from mtpt.model import functional
from mtpt.train.loss import label_sums, normalizer, task_sums, task_weights, token_losses, weigh
from mtpt.train.optimizer import Optimizer
from mtpt.train.spikes import OFF, SpikesConfig, judge
from mtpt.train.state import TrainState

Batch = dict[str, jax.Array]


@functools.lru_cache(maxsize=4)
def make_train_step(
    model_cfg: Any,
    tx: Optimizer,
    M: int,
    *,
    z_loss: float,
    label_smoothing: float,
    loss_normalizing_factor: str | float,
    task_scale: tuple[float, ...] | None = None,
    spikes: SpikesConfig = OFF,
    apply: Callable = functional.apply,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles `step(state, batch) -> (state, metrics)`; the state handed in is used up.

    Asked for again with the same arguments it gives the same function, already compiled.

    A batch with a leading axis A is taken in A parts whose gradients add up to those of the whole:
    every part is divided by the real tokens (or the asked-for factor) of all of them. Where the
    loss or the gradient is not finite, parameters and optimizer stay as they were and `skipped`
    counts on. A model without a decoder has the losses of its heads in place of those of tokens;
    its tasks' sums count labels. What the model reports under 'loss/*' is added to the objective;
    of all it reports, the mean over the parts, by tokens, is a metric. `task_scale`, one number a
    task id, multiplies what the tokens of a task add to the objective.

    Metrics: flat, 'train/*' scalars, 'task/*' sums of [M + 1], and what the model itself reports.
    """

    part_loss = make_part_loss(model_cfg, M, z_loss, label_smoothing, task_scale, apply)

    def gradients(params, batch, key):
        weights = batch['decoder_loss_weights']
        scale = 1 / normalizer(loss_normalizing_factor, weights)
        total = normalizer('tokens', weights)

        def part(params, batch, key):
            return part_loss(params, batch, key, scale, total)

        if weights.ndim == 2:
            graded = jax.value_and_grad(part, has_aux=True)
            (objective, sums), grads = graded(params, batch, key)
            return objective, sums, grads
        return accumulated(part, params, batch, key)

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        objective, sums, grads = gradients(state.params, batch, key)
        grad_norm = optax.global_norm(grads)
        sound = jnp.isfinite(objective) & jnp.isfinite(grad_norm)
        figures = objective, grad_norm
        ok, kept, told = judge(spikes, state.spikes, state.step + 1, figures, sound)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        skipped = jnp.where(sound, 0, state.skipped + 1)
        metrics = summary(sums) | told
        metrics |= {
            'train/objective': objective,
            'train/grad_norm': grad_norm,
            'train/learning_rate': tx.rate(state.step),
            'train/skipped': 1 - sound.astype(jnp.int32),
            'train/skipped_in_a_row': skipped,
        }
        state = TrainState(
            state.step + 1,
            _where(ok, params, state.params),
            _where(ok, opt_state, state.opt_state),
            state.key,
            skipped,
            kept,
        )
        return state, metrics

    return jax.jit(step, donate_argnums=0)


def accumulated(
    part: Callable[[Any, Batch, jax.Array], tuple[jax.Array, Any]],
    params: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, Any, Any]:
    """The sums over the parts of a batch [A, B, ...] of a loss, its figures and its gradient.

    The backward pass of each part adds to one tree of gradients in place, weight by weight: a tree
    for the part beside that of the sum would be as large as the parameters.
    """
    grads = jax.tree.map(lambda p: jax.new_ref(jnp.zeros_like(p)), params)

    def add(carry, xs):
        batch, index = xs
        own_key = jax.random.fold_in(key, index)
        objective, backward, sums = jax.vjp(lambda p: part(p, batch, own_key), params, has_aux=True)
        backward.with_refs(grads)(jnp.ones_like(objective))
        return jax.tree.map(jnp.add, carry, (objective, sums)), None

    first = jax.tree.map(lambda x: x[0], batch)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, params, first, key))
    A = len(batch['decoder_loss_weights'])
    (objective, sums), _ = jax.lax.scan(add, zeros, (batch, jnp.arange(A)))
    return objective, sums, jax.tree.map(jax.freeze, grads)


def make_part_loss(
    model_cfg: Any,
    M: int,
    z_loss: float,
    label_smoothing: float,
    task_scale: tuple[float, ...] | None = None,
    apply: Callable = functional.apply,
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Makes `loss(params, batch, key, scale, total) -> (objective, sums)` of a part of a batch.

    scale: what the summed loss of the tokens is multiplied by; total: the real tokens of the whole
    batch, by which what the model reports is weighed.
    """

    def part_loss(params, batch, key, scale, total):
        if model_cfg.heads and 'segment_labels' not in batch:
            raise UserError(
                'model.heads learn from segment_labels, which the batch lacks; add them with '
                'data.labels.Labels'
            )
        logits_BTV, aux = apply(model_cfg, params, batch, key)
        weights_BT = batch['decoder_loss_weights'].astype(jnp.float32)
        share = jnp.sum(weights_BT) / total
        if logits_BTV is None:  # no text, only heads
            sums, objective = label_sums(aux.pop('segments'), batch, M), 0.0
            sums['z_sum'] = jnp.zeros(())
        else:
            targets_BT = batch['decoder_target_tokens']
            losses = token_losses(logits_BTV, targets_BT, z_loss, label_smoothing)
            sums = task_sums(losses, batch, M)
            sums['z_sum'] = jnp.sum(weigh(losses['z'], weights_BT))
            asked_BT = weights_BT
            if task_scale is not None:
                asked_BT = weights_BT * task_weights(jnp.array(task_scale), batch)
            objective = jnp.sum(weigh(losses['objective'], asked_BT)) * scale
        sums |= {n: share * x for n, x in aux.items() if not n.startswith('routing/')}
        sums['encoder_tokens'] = jnp.sum(batch['encoder_segment_ids'] > 0, dtype=jnp.float32)
        return objective + sum(x for name, x in sums.items() if name.startswith('loss/')), sums

    return part_loss


@functools.lru_cache(maxsize=4)
def make_validation_step(
    model_cfg: Any, M: int, *, apply: Callable = functional.apply
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Compiles `step(params, batch) -> sums by task`, without dropout and without extra terms.

    Of a model with experts the sums hold 'routing/*' too: tokens by layer, task and expert.
    """

    def step(params, batch):
        logits_BTV, aux = apply(model_cfg, params, batch, None)
        routing = {n: x for n, x in aux.items() if n.startswith('routing/')}
        if logits_BTV is None:
            return label_sums(aux['segments'], batch, M) | routing
        losses = token_losses(logits_BTV, batch['decoder_target_tokens'], 0.0, 0.0)
        return task_sums(losses, batch, M) | routing

    return jax.jit(step)


def _where(ok: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def summary(sums: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Turns the sums of a batch into its flat metrics; the tasks keep their sums."""
    sums = dict(sums)
    tokens = jnp.sum(sums['task/tokens'])
    safe = jnp.maximum(tokens, 1.0)
    return {
        'train/loss': jnp.sum(sums['task/loss_sum']) / safe,
        'train/accuracy': jnp.sum(sums['task/correct']) / safe,
        'train/z_loss': sums.pop('z_sum') / safe,
        'train/tokens': tokens,
        'train/encoder_tokens': sums.pop('encoder_tokens'),
        'task/nonfinite': ~jnp.isfinite(sums['task/loss_sum']),
    } | sums
