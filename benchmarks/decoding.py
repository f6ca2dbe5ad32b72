"""Tokens a second of greedy decoding, by kind of attention and batch, and the bytes of its cache.

    python benchmarks/decoding.py [--size=small] [--dtype=float32] [--quick]

Inputs of 128 tokens, answers of 32: a call reads the inputs once and writes all answers, none of
which ends before. Beside it stands what a model without a cache does, multi-head: both sides
computed anew for every token; each token costs it the same, so few are timed. All cases of a batch
are timed in turn, so that what else the machine does touches all alike; figures are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

S, T, V = 128, 32, 32128
BATCHES = (1, 8, 64)
REPEATS = {1: 5, 8: 3, 64: 2}
FULL = 'multi-head, no cache'


def variants(H: int) -> dict[str, dict]:
    """The kinds of attention, as fields of a model's config, of both attentions of the decoder."""
    from mtpt.model.config import AttentionConfig

    groups = next(n for n in (2, 3, 1) if H % n == 0)
    kinds = {
        'multi-head': AttentionConfig(),
        f'grouped (GQA, {groups} of {H})': AttentionConfig(kv_heads=groups),
        'multi-query (MQA)': AttentionConfig(kv_heads=1),
        'shared by two layers (CLA)': AttentionConfig(kv_layers=2),
        'MQA and CLA': AttentionConfig(kv_heads=1, kv_layers=2),
    }
    return {name: dict(decoder_attention=a, cross_attention=a) for name, a in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--size', default='small')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--quick', action='store_true', help='a tiny model: does it run at all?')
    args = parser.parse_args()
    size, batches = ('tiny', (1,)) if args.quick else (args.size, BATCHES)
    told = measure(size, args.dtype, batches, args.quick)
    print(f'{size}, {args.dtype}, inputs {S}, answers {T}; tokens/s and bytes of the cache a row\n')
    print('| attention | ' + ' | '.join(f'batch {B}' for B in batches) + ' | cache a row |')
    print('|---|' + '---:|' * (len(batches) + 1))
    for name, (rates, kept) in told.items():
        cells = [f'{rates[B]:,.0f}' for B in batches]
        print(f'| {name} | ' + ' | '.join(cells) + f' | {kept / 2**10:,.0f} KiB |', flush=True)


def measure(size: str, dtype: str, batches: tuple[int, ...], quick: bool) -> dict:
    """For each case tokens a second by batch, and the bytes of its cache for one row."""
    import jax

    from mtpt.model.config import SIZES, ModelConfig, resolve

    vocabulary = 512 if quick else V
    configs = {
        name: resolve(ModelConfig(size=size, dtype=dtype, **fields), vocabulary)
        for name, fields in variants(SIZES[size]['H']).items()
    }
    weights = {name: made(cfg) for name, cfg in configs.items()}
    told = {name: ({}, cache_bytes(cfg)) for name, cfg in configs.items()} | {FULL: ({}, 0)}
    with jax.set_mesh(one_device()):
        for B in batches:
            calls = {name: cached(cfg, weights[name], B) for name, cfg in configs.items()}
            calls[FULL] = recomputed(configs['multi-head'], weights['multi-head'], B)
            seconds = timed(calls, 1 if quick else REPEATS[B])
            for name, value in seconds.items():
                tokens = B if name == FULL else B * T
                told[name][0][B] = tokens / value
    return told


def cache_bytes(cfg) -> int:
    """The bytes of the keys and values that one row keeps, its own and the inputs'."""
    import jax
    import jax.numpy as jnp

    from mtpt.model import functional

    def begin():
        params = functional.init(cfg, jax.random.key(0))
        ones_BS = jnp.ones((1, S), jnp.int32)
        return functional.start(cfg, params, functional.encode(cfg, params, ones_BS, ones_BS), T)

    with jax.set_mesh(one_device()):
        cache = jax.eval_shape(begin)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((cache.own, cache.cross)))


def cached(cfg, params, B: int) -> Callable[[], None]:
    """A call that answers B inputs greedily."""
    import jax

    from mtpt.model.decode import greedy

    inputs = asked(cfg, B)
    return lambda: jax.block_until_ready(greedy(cfg, params, inputs, T, eos=-1))


def recomputed(cfg, params, B: int) -> Callable[[], None]:
    """A call that computes everything anew for one more token of each of B answers."""
    import jax
    import jax.numpy as jnp

    from mtpt.mesh import act
    from mtpt.model import functional

    inputs = asked(cfg, B)

    @jax.jit
    def one_more(params, inputs_BS, written_BT):
        batch = dict(
            encoder_input_tokens=inputs_BS,
            encoder_segment_ids=jnp.ones_like(inputs_BS),
            decoder_input_tokens=written_BT,
            decoder_segment_ids=jnp.ones_like(written_BT),
        )
        logits_BTV, _ = functional.apply(cfg, params, batch)
        return jnp.argmax(jax.reshard(logits_BTV[:, -1], act('B1')), -1)

    written = inputs[:, :T]
    return lambda: jax.block_until_ready(one_more(params, inputs, written))


def made(cfg):
    """Random weights."""
    import jax
    import numpy as np

    from mtpt.model import functional

    with jax.set_mesh(one_device()):
        shapes = jax.eval_shape(lambda: functional.init(cfg, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(0.05 * rng.standard_normal(x.shape, np.float32)), shapes
    )


def asked(cfg, B: int):
    """Random inputs."""
    import numpy as np

    return np.random.default_rng(0).integers(3, cfg.V, (B, S)).astype(np.int32)


def one_device():
    import jax

    from mtpt.mesh import make_mesh

    return make_mesh(devices=jax.devices()[:1])


def timed(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The median seconds of each call, after one that compiles."""
    seconds = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == '__main__':
    main()
