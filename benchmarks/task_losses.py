"""What per-task losses cost: a training step with them against one with a single loss.

    python benchmarks/task_losses.py [--tasks=2000] [--devices=1] [--steps=30]

Both steps are compiled from the same code on the same batch and run in turn, step by step, so that
what else the machine does touches both alike; the ratio is of medians. The other step keeps the
loss and the accuracy of the whole batch and sums nothing by task.
"""

import argparse
import os
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--tasks', type=int, default=2000)
    parser.add_argument('--devices', type=int, default=1)
    parser.add_argument('--steps', type=int, default=30)
    args = parser.parse_args()
    if args.devices > 1:
        os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={args.devices}'
    seconds = measure(args.tasks, args.devices, args.steps)
    share = seconds['by task'] / seconds['one loss'] - 1
    for name, value in seconds.items():
        print(f'{name:<10} {1e3 * value:8.2f} ms a step')
    print(f'{args.tasks} tasks cost {100 * share:+.2f} % of a step')


def measure(M: int, devices: int, steps: int) -> dict[str, float]:
    """The median seconds of a step with per-task losses and without."""
    import jax
    import numpy as np

    from mtpt.mesh import MeshConfig, make_mesh, place
    from mtpt.model import functional
    from mtpt.model.config import ModelConfig, resolve
    from mtpt.train import step as steps_of
    from mtpt.train.optimizer import OptimizerConfig, make_optimizer
    from mtpt.train.state import new_state

    cfg = resolve(ModelConfig(size='mini'), 2304)
    tx = make_optimizer(OptimizerConfig(), functional.dims(cfg), 1000)
    mesh = make_mesh(MeshConfig(data=devices))
    loss = dict(z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor='tokens')
    kinds, seconds = {'by task': steps_of.task_sums, 'one loss': whole_batch}, {}
    with jax.set_mesh(mesh):
        batch, run = place(rows(M), mesh), {}
        for name, sums in kinds.items():
            steps_of.task_sums = sums
            steps_of.make_train_step.cache_clear()
            step = steps_of.make_train_step(cfg, tx, M, **loss)
            run[name] = [step, new_state(cfg, tx, 0)]
            run[name][1], _ = step(run[name][1], batch)
        for name in [*kinds] * steps:
            step, state = run[name]
            start = time.perf_counter()
            run[name][1], metrics = step(state, batch)
            jax.block_until_ready((run[name][1].params, metrics))
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def whole_batch(losses, batch, M):
    """Sums over the batch in the place of sums by task."""
    import jax.numpy as jnp

    from mtpt.train.loss import weigh

    weights_BT = batch['decoder_loss_weights'].astype(jnp.float32)
    names = {'task/loss_sum': losses['nll'], 'task/correct': losses['correct']}
    sums = {name: jnp.sum(weigh(x, weights_BT)) for name, x in names.items()}
    return sums | {'task/tokens': jnp.sum(weights_BT)}


def rows(M, B=16, S=128, T=64, G=16):
    """Full rows of eight segments with tasks drawn at random."""
    import numpy as np

    rng = np.random.default_rng(0)
    segments = {n: np.tile(np.repeat(np.arange(1, 9), n // 8), (B, 1)) for n in (S, T)}
    targets = rng.integers(3, 2000, (B, T))
    tasks = np.zeros((B, G), int)
    tasks[:, :8] = rng.integers(1, M + 1, (B, 8))
    batch = dict(
        encoder_input_tokens=rng.integers(3, 2000, (B, S)),
        encoder_segment_ids=segments[S],
        encoder_positions=np.tile(np.arange(S) % (S // 8), (B, 1)),
        decoder_input_tokens=np.roll(targets, 1, 1),
        decoder_target_tokens=targets,
        decoder_loss_weights=np.ones((B, T)),
        decoder_segment_ids=segments[T],
        decoder_positions=np.tile(np.arange(T) % (T // 8), (B, 1)),
        segment_task_ids=tasks,
    )
    return {name: x.astype(np.int32) for name, x in batch.items()}


if __name__ == '__main__':
    main()
