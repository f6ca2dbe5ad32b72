"""How long a training step takes to compile: 24 layers a stack against 2.

    python benchmarks/compile_time.py [--depths=2,24] [--kinds=dense,sparse] [--scan=1,0]

Small widths, for what is asked is how the time grows with depth. Layers that are scanned over are
compiled once, so that 24 should cost at most 1.3 times 2; unrolled ones (scan=0) show what scanning
saves. Of the sparse model every second layer has experts. Every step is compiled in a process of
its own, without a compilation cache, in turn over the depths; the least of --rounds counts, since
what else a machine does only adds. Tracing is told apart from compiling.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
GOAL = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--depths', default='2,24', help='layers of each stack')
    parser.add_argument('--kinds', default='dense,sparse')
    parser.add_argument('--scan', default='1,0', help='1 scans over layers, 0 unrolls them')
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--one', help='(of the script itself) kind, layers, scan: one compilation')
    args = parser.parse_args()
    if args.one:
        kind, layers, scan = args.one.split(',')
        print(json.dumps(compile_one(kind, int(layers), scan == '1')))
        return
    depths = [int(x) for x in args.depths.split(',')]
    variants = list(itertools.product(args.kinds.split(','), args.scan.split(',')))
    print('| step | layers a stack | tracing, s | compiling, s | of the compiler, CPU s |')
    print('|---|---|---|---|---|')
    told = []
    for kind, scan in variants:
        found: dict[int, dict] = {}
        for layers in depths * args.rounds:
            new = in_a_process(f'{kind},{layers},{scan}')
            best = found.setdefault(layers, new)
            found[layers] = {name: min(value, best[name]) for name, value in new.items()}
        name = f'{kind}, {"scanned" if scan == "1" else "unrolled"}'
        for layers, one in found.items():
            cells = f'{one["tracing"]:.2f} | {one["compiling"]:.2f} | {one["cpu"]:.2f}'
            print(f'| {name} | {layers} | {cells} |', flush=True)
        few, many = found[min(depths)]['cpu'], found[max(depths)]['cpu']
        told.append(
            f'{name}: {max(depths)} layers take {many / few:.2f} times the compile time of '
            f'{min(depths)} (asked for, scanned: {GOAL})'
        )
    print('\n' + '\n'.join(told))


def in_a_process(one: str) -> dict:
    env = os.environ | dict(JAX_PLATFORMS='cpu', JAX_ENABLE_COMPILATION_CACHE='false')
    command = [sys.executable, __file__, f'--one={one}']
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compile_one(kind: str, layers: int, scan: bool) -> dict[str, float]:
    """Seconds to trace and to compile a step of so many layers in each stack."""
    import jax
    import jax.numpy as jnp

    from mtpt.mesh import BATCH_DIMS, MeshConfig, act, make_mesh
    from mtpt.model import functional
    from mtpt.model.config import ModelConfig, MoeConfig, resolve
    from mtpt.train.optimizer import OptimizerConfig, make_optimizer
    from mtpt.train.state import abstract_state
    from mtpt.train.step import make_train_step

    moe = MoeConfig(E=8) if kind == 'sparse' else MoeConfig()
    depth = dict(encoder_layers=layers, decoder_layers=layers)
    cfg = resolve(ModelConfig(size='tiny', **depth, moe=moe, scan=scan, tied=False), 512)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    tx = make_optimizer(OptimizerConfig(name='adamw'), functional.dims(cfg), 100)
    loss = dict(z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor='tokens')
    step = make_train_step(cfg, tx, 4, **loss)
    sizes = dict(B=8, S=128, T=32, G=4)
    batch = {
        name: jax.ShapeDtypeStruct(
            tuple(sizes[d] for d in dims), jnp.int32, sharding=jax.NamedSharding(mesh, act(dims))
        )
        for name, dims in BATCH_DIMS.items()
        if set(dims) <= set(sizes)
    }
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        lowered = step.lower(abstract_state(cfg, tx, mesh), batch)
        middle, busy = time.perf_counter(), time.process_time()
        lowered.compile()
        end, cpu = time.perf_counter(), time.process_time() - busy
    return dict(tracing=middle - start, compiling=end - middle, cpu=cpu)


if __name__ == '__main__':
    main()
