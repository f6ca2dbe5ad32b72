"""What experts cost: a sparse layer against the dense one at equal FLOPs a token.

    python benchmarks/experts.py [--experts=8,16,32,64] [--repeats=7] [--quick]

Every expert is as wide as the dense hidden layer and a token goes to one of them, so that the
products a token passes are the same. Timed are forward and backward pass of the layer (gradients of
weights and inputs, nothing recomputed), router and its losses included, and then the whole training
step of a small model whose every second layer is sparse, optimizer included. Capacity 1.0 computes
as many rows as the dense layer does, 1.25 (the default) a quarter more; dropless as many as there
are tokens, in blocks. Contestants are run in turn, so that what else the machine does touches all
alike; the figures are medians, with the least and the most, and the ratio is to the dense layer.

The step keeps an optimizer's moments for every expert: what it adds from 8 experts to 64 is mostly
memory traffic, the same for any batch, while the layer's work grows with the batch.
"""

import argparse
import statistics
import time
from functools import partial

SHAPE = dict(B=32, T=512, D=256, F=1024)  # of the layer: rows, positions, widths
STEP = dict(B=16, S=256, T=64)  # of the step: rows, inputs, targets
QUICK = dict(B=2, T=32, D=16, F=32), dict(B=2, S=32, T=16)
WAYS = {
    'capacity 1.0': dict(capacity=1.0),
    'capacity 1.25': dict(capacity=1.25),
    'dropless': dict(dispatch='dropless'),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--experts', default='8,16,32,64')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--quick', action='store_true', help='tiny, to see that it runs')
    args = parser.parse_args()
    experts = [int(e) for e in args.experts.split(',')]
    shape, step = QUICK if args.quick else (SHAPE, STEP)
    tokens = shape['B'] * shape['T']
    print(f'layer: {tokens} tokens, D={shape["D"]}, F={shape["F"]}, geglu, float32, top-1')
    compare(layers(shape, experts), args.repeats)
    print(f'step: {step["B"]} rows of {step["S"]}/{step["T"]}, 2+2 layers, one in two sparse')
    compare(steps(shape, step, experts[: 1 if args.quick else None]), args.repeats)


def compare(run: dict, repeats: int) -> None:
    """Runs all in turn and prints a line for each; the first is what the others are held to."""
    seconds = {name: [] for name in run}
    for take in run.values():
        take()
    for _ in range(repeats):
        for name, take in run.items():
            start = time.perf_counter()
            take()
            seconds[name].append(1e3 * (time.perf_counter() - start))
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f'  {name:<26} {middle:9.1f} ms ({min(values):.1f} to {max(values):.1f})  '
            f'{middle / first:5.2f}',
            flush=True,
        )


def config(shape: dict, E: int = 0, **moe):
    from mtpt.model.config import ModelConfig, MoeConfig, resolve

    sizes = dict(D=shape['D'], F=shape['F'], K=16, H=shape['D'] // 16)
    layers = dict(encoder_layers=2, decoder_layers=2)
    sparse = MoeConfig(E=E, **moe)
    return resolve(ModelConfig(size='mini', mlp='geglu', moe=sparse, **sizes, **layers), 2048)


def layers(shape: dict, experts: list[int]) -> dict:
    """Functions that run a layer's forward and backward pass once."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from mtpt.mesh import make_mesh, rows
    from mtpt.model.layers import Mlp
    from mtpt.model.moe import Moe
    from mtpt.model.routing import Routing

    jax.set_mesh(make_mesh())
    key = jax.random.key(0)
    x_BTD = rows(jax.random.normal(key, (shape['B'], shape['T'], shape['D'])))
    real_BT = rows(jnp.ones((shape['B'], shape['T']), bool))

    def one(make):
        graph, weights = jax.jit(lambda: nnx.split(make(nnx.Rngs(params=key))))()

        def loss(weights, x_BTD):
            module = nnx.merge(graph, weights)
            if isinstance(module, Mlp):
                return jnp.sum(jnp.sin(module(x_BTD)))
            y_BTD, aux = module(x_BTD, Routing(real_BT), key)
            return jnp.sum(jnp.sin(y_BTD)) + aux['loss/balance'] + aux['loss/router_z']

        graded = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return lambda: jax.block_until_ready(graded(weights, x_BTD))

    run = {'dense': one(partial(Mlp, config(shape)))}
    for way, moe in WAYS.items():
        for E in experts:
            cfg = config(shape, E, **moe)
            run[f'{way}, E={E}'] = one(lambda rngs, cfg=cfg: Moe(cfg, rngs, decoder=False))
    return run


def steps(shape: dict, step: dict, experts: list[int]) -> dict:
    """Functions that take a training step."""
    import jax
    from train_step import rows

    from mtpt.mesh import make_mesh, place
    from mtpt.model import functional
    from mtpt.train.optimizer import OptimizerConfig, make_optimizer
    from mtpt.train.state import new_state
    from mtpt.train.step import make_train_step

    batch = place(rows(step['B'], step['S'], step['T'], 2048), make_mesh())

    def one(cfg):
        tx = make_optimizer(OptimizerConfig(), functional.dims(cfg), 1000)
        options = dict(z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor='tokens')
        take = make_train_step.__wrapped__(cfg, tx, 1, **options)
        state = [new_state(cfg, tx, 0)]

        def once():
            state[0], metrics = take(state[0], batch)
            jax.block_until_ready((state[0].params, metrics))

        return once

    run = {'dense': one(config(shape))}
    for way in ('capacity 1.25', 'dropless'):
        for E in experts:
            run[f'{way}, E={E}'] = one(config(shape, E, **WAYS[way]))
    return run


if __name__ == '__main__':
    main()
