"""A training step against Hugging Face's PyTorch T5 of the same shape, weights and batch.

    python benchmarks/train_step.py [--size=small,mini] [--dtype=float32,bfloat16] [--steps=5]

Forward, backward and AdamW on full rows without dropout, on every core. All start from the same
weights, so that the first losses must agree (in bfloat16 roughly); then they step in turn, so that
what else the machine does touches all alike. Tokens are those of inputs and targets; the ratio is
to the fastest of theirs in the same dtype.

In float32 theirs runs as installed (`sdpa` attention), with plain attention (`eager`), and as
installed under torch.compile, where a C++ compiler is found. In bfloat16 ours keeps float32
weights; theirs runs under autocast, which does too, and with all weights and AdamW in bfloat16
('weights'), plain and compiled. The share is of what the framework reaches in one large product of
that dtype on this machine, in the FLOPs that the model needs (`mtpt.model.cost`).
"""

import argparse
import gc
import os
import pathlib
import shutil
import statistics
import sys
import time
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

SHAPES = dict(  # rows, inputs, targets, vocabulary
    small=(8, 512, 114, 32128),
    mini=(16, 64, 32, 2048),
    micro=(2, 16, 8, 512),
)
REPEATS = dict(small=1, mini=20, micro=2)  # steps of one between steps of the other
PRODUCTS = dict(small=2048, mini=2048, micro=128)  # rows and columns of the large product
THEIRS = dict(  # attention, autocast, weights in bfloat16, compiled
    float32={
        'sdpa': ('sdpa', False, False, False),
        'eager': ('eager', False, False, False),
        'sdpa, compiled': ('sdpa', False, False, True),
    },
    bfloat16={
        'autocast': ('sdpa', True, False, False),
        'weights': ('sdpa', False, True, False),
        'weights, compiled': ('sdpa', False, True, True),
    },
)
ADAMW = dict(b1=0.9, b2=0.999, weight_decay=0.01)
RATE = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', default='small,mini')
    parser.add_argument('--dtype', default='float32,bfloat16')
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--no-compile', action='store_true', help='leave torch.compile out')
    args = parser.parse_args()
    compiler = shutil.which(os.environ.get('CXX', 'g++'))
    if not compiler and not args.no_compile:
        print('torch.compile is left out: there is no C++ compiler')
    for size in args.size.split(','):
        for dtype in args.dtype.split(','):
            measure(size, dtype, args.steps, bool(compiler) and not args.no_compile)
            gc.collect()


def measure(size: str, dtype: str, steps: int, compiled: bool) -> None:
    """Prints a line for each contestant, and how the first losses compare."""
    B, S, T, V = SHAPES[size]
    batch = rows(B, S, T, V)
    run = {'mtpt': ours(size, V, dtype, hugging_face(size, V, 'sdpa'), batch)}
    for name, (attention, autocast, pure, fused) in THEIRS[dtype].items():
        if compiled or not fused:
            model = hugging_face(size, V, attention)
            run[f'transformers, {name}'] = pytorch(model, batch, autocast, pure, fused)
    first = {name: step() for name, step in run.items()}
    seconds = {name: [] for name in run}
    for _ in range(steps):
        for name, step in run.items():
            start = time.perf_counter()
            for _ in range(REPEATS[size]):
                step()
            seconds[name].append((time.perf_counter() - start) / REPEATS[size])
    print(f'{size}: {B} rows of {S}/{T}, V={V}, {len(os.sched_getaffinity(0))} cores, {dtype}')
    limits = dict(mtpt=product_jax(PRODUCTS[size], dtype))
    limits['transformers'] = product_torch(PRODUCTS[size], dtype)
    flops, rates = needed(size, S, T, V, B), {}
    for name, values in seconds.items():
        middle = statistics.median(values)
        rates[name] = B * (S + T) / middle
        spread = f'{1e3 * min(values):.1f} to {1e3 * max(values):.1f}'
        print(
            f'  {name:<31} {1e3 * middle:9.1f} ms a step ({spread}), {rates[name]:8.0f} tokens/s, '
            f'{flops / middle / 1e9:6.1f} GFLOP/s, '
            f'{100 * flops / middle / limits[name.split(",")[0]]:3.0f} % of a product, '
            f'first loss {first[name]:.5f}'
        )
    reached = ', '.join(f'{name} {limit / 1e9:.0f}' for name, limit in limits.items())
    print(f'  a product of {PRODUCTS[size]} x {PRODUCTS[size]} in {dtype}, GFLOP/s: {reached}')
    ratio = rates['mtpt'] / max(rate for name, rate in rates.items() if name != 'mtpt')
    print(f'  mtpt makes {ratio:.2f} times the tokens/s', flush=True)


def needed(size: str, S: int, T: int, V: int, B: int) -> float:
    from mtpt.model.cost import train_flops

    return train_flops(config(size, V), S, T, B)


def product_jax(n: int, dtype: str) -> float:
    """FLOP/s of a large product, the fastest of five."""
    import jax
    import jax.numpy as jnp

    x, y = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
    product = jax.jit(jnp.matmul)
    return _fastest(n, lambda: product(x, y).block_until_ready())


def product_torch(n: int, dtype: str) -> float:
    import torch

    x, y = (torch.randn(n, n, dtype=getattr(torch, dtype)) for _ in range(2))
    return _fastest(n, lambda: x @ y)


def _fastest(n, multiply) -> float:
    multiply()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def rows(B: int, S: int, T: int, V: int) -> dict:
    """Full rows of one segment each."""
    import numpy as np

    rng = np.random.default_rng(0)
    targets = rng.integers(3, V, (B, T))
    batch = dict(
        encoder_input_tokens=rng.integers(3, V, (B, S)),
        encoder_segment_ids=np.ones((B, S)),
        encoder_positions=np.tile(np.arange(S), (B, 1)),
        decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        decoder_target_tokens=targets,
        decoder_loss_weights=np.ones((B, T)),
        decoder_segment_ids=np.ones((B, T)),
        decoder_positions=np.tile(np.arange(T), (B, 1)),
        segment_task_ids=np.ones((B, 1)),
    )
    return {name: x.astype(np.int32) for name, x in batch.items()}


def config(size: str, V: int, dtype: str = 'float32'):
    from mtpt.model.config import ModelConfig, resolve

    return resolve(ModelConfig(size=size, tied=False, dtype=dtype), V)


def ours(size, V, dtype, model, batch):
    """A function that takes a step of ours, from the weights of `model`, and gives the loss."""
    import jax

    from mtpt.convert.names import from_hugging_face
    from mtpt.mesh import make_mesh, place
    from mtpt.model import functional
    from mtpt.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
    from mtpt.train.state import TrainState, new_state
    from mtpt.train.step import make_train_step

    cfg = config(size, V, dtype)
    schedule = ScheduleConfig(name='constant', rate=RATE)
    optimizer = OptimizerConfig(name='adamw', schedule=schedule, **ADAMW)
    tx = make_optimizer(optimizer, functional.dims(cfg), 1000)
    weights = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    jax.set_mesh(make_mesh())
    fresh = new_state(cfg, tx, 0)
    params = jax.tree.map(
        lambda x, like: jax.device_put(x.copy(), like.sharding),
        from_hugging_face(weights, cfg),
        fresh.params,
    )
    state: list[TrainState] = [fresh._replace(params=params)]
    placed = place(batch, make_mesh())
    step = make_train_step(
        cfg, tx, 1, z_loss=0.0, label_smoothing=0.0, loss_normalizing_factor='tokens'
    )

    def take():
        state[0], metrics = step(state[0], placed)
        return float(jax.block_until_ready((metrics, state[0]))[0]['train/loss'])

    return take


def hugging_face(size: str, V: int, attention: str):
    """Their T5 1.1 of the size; the same random weights for every kind of attention."""
    import torch
    import transformers

    warnings.filterwarnings('ignore')
    cfg = config(size, V)
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    theirs = transformers.T5Config(
        vocab_size=V,
        d_model=cfg.D,
        d_kv=cfg.K,
        d_ff=cfg.F,
        num_heads=cfg.H,
        num_layers=cfg.encoder_layers,
        num_decoder_layers=cfg.decoder_layers,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
        attn_implementation=attention,
    )
    model = transformers.T5ForConditionalGeneration(theirs).train()
    # Some versions tie the head all the same: give it weights of its own.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(V, cfg.D) * cfg.D**-0.5)
    return model


def pytorch(model, batch, autocast, pure, compiled):
    """A function that takes a step of theirs and gives the loss."""
    import torch

    if pure:
        model = model.to(torch.bfloat16)
    betas = ADAMW['b1'], ADAMW['b2']
    decay = ADAMW['weight_decay']
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=betas, weight_decay=decay, fused=True
    )
    forward = torch.compile(model) if compiled else model
    inputs = torch.from_numpy(batch['encoder_input_tokens']).long()
    targets = torch.from_numpy(batch['decoder_target_tokens']).long()
    mask = torch.ones_like(inputs)

    def take():
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            loss = forward(input_ids=inputs, attention_mask=mask, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return take


if __name__ == '__main__':
    main()
