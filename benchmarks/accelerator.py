"""Training steps on an accelerator: MFU, tokens/s and peak memory, beside transformers' T5.

    python benchmarks/accelerator.py [--size=small,base,large,xl] [--seconds=540] [--out=FOLDER]

Needs jax, flax, optax and orbax, for the peer torch and transformers; no TensorFlow, no SeqIO, no
downloads: the batches are packed rows of random tokens, or with --cache=FOLDER those of a cache
that `mtpt cache` made elsewhere, drawn and placed while the device works.

A step is forward, backward and AdamW, without dropout; ours computes in bfloat16 and keeps float32
weights. The peer runs with sdpa attention under bfloat16 autocast, which keeps float32 weights as
well ('autocast'), or with everything in bfloat16 ('weights'), and with --compile compiled too.

Every case has a process of its own, so that memory is fresh and one that runs out of it ends
nothing else. Its rows are doubled as long as that gains 3 %, or are those of --rows. Cases come in
order of interest: each size with the first kernel and recomputation named, the first peer, experts,
then the rest; when --seconds are over, those left are named. Results go to FOLDER/results.jsonl at
once and to FOLDER/table.md at the end. MFU counts what the model needs (`mtpt.model.cost`), nothing
recomputed and no empty slot of an expert, against the chip's dense bfloat16 peak.

On a CPU it runs too (`--size=micro --quick`), which shows that it works and nothing else.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

ROWS = dict(small=128, base=128, large=64, xl=32, xxl=8)  # where doubling begins
GOALS = dict(large=0.40, xl=0.50)  # MFU on one H200
PEER_GOAL = 1.5
GAIN = 1.03  # a doubling of the rows that gains less is the last
GIB = 2**30
OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'out of memory', 'OutOfMemory', 'Out of memory')
MARK = 'RESULT '

Case = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', default='small,base,large,xl')
    parser.add_argument('--experts', default='0,16', help='experts a sparse layer; 0 is dense')
    parser.add_argument('--kernel', default='cudnn,xla')
    parser.add_argument('--remat', default='dots,none,full', help='`model.config.REMAT`')
    parser.add_argument('--scan', default='1', help='1 scans over layers, 0 unrolls them')
    parser.add_argument('--peer', default='autocast,weights', help="'' for none")
    parser.add_argument('--compile', action='store_true', help='the peers with torch.compile too')
    parser.add_argument(
        '--rows', default='', help='such as 32,64; by default doubled while it pays'
    )
    parser.add_argument('--shape', default='512/114', help='inputs/targets')
    parser.add_argument('--vocabulary', type=int, default=32128)
    parser.add_argument('--xla-flags', default='', help='sets of XLA flags to try, parted by `;`')
    parser.add_argument('--cache', default='', help='a cache to train from')
    parser.add_argument('--seconds', type=float, default=540, help='for all cases together')
    parser.add_argument('--pace', type=float, default=4, help='seconds that a case is timed for')
    parser.add_argument('--quick', action='store_true', help='two steps of two rows: does it run?')
    parser.add_argument('--out', default='runs/accelerator')
    parser.add_argument('--case', help='(of the script itself) one case, as JSON')
    args = parser.parse_args(arguments)
    if args.case:
        run_case(json.loads(args.case))
        return 0
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + args.seconds
    results = run_all(cases(args), args, out, deadline)
    if all('products' in r for r in results):
        return 0 if results and results[0]['platform'] == 'cpu' else 1
    text = report(results)
    (out / 'table.md').write_text(text)
    print(text, flush=True)
    return 0 if any('tokens_s' in r for r in results) else 1


def cases(args: argparse.Namespace) -> list[Case]:
    """All cases in order of interest."""
    sizes, kernels, remats = (x.split(',') for x in (args.size, args.kernel, args.remat))
    experts, scans = ([int(x) for x in text.split(',')] for text in (args.experts, args.scan))
    flags = [' '.join(x.split()) for x in args.xla_flags.split(';')]
    peers = [dict(who='transformers', precision=x) for x in args.peer.split(',') if x]
    peers += [x | dict(compiled=True) for x in peers] if args.compile else []
    variants = [
        dict(who='mtpt', experts=E, kernel=kernel, remat=remat, scan=scan, xla_flags=set_of_flags)
        for set_of_flags, scan, kernel, remat in itertools.product(flags, scans, kernels, remats)
        for E in experts[:1]
    ]
    sparse = [variants[0] | dict(experts=E) for E in experts[1:]]
    rounds = [*variants[:1], *peers[:1], *sparse, *variants[1:], *peers[1:]]
    S, T = (int(x) for x in args.shape.split('/'))
    shared = dict(S=S, T=T, V=args.vocabulary, cache=args.cache, pace=args.pace, quick=args.quick)
    rows = [int(x) for x in args.rows.split(',') if x]
    made = []
    for one in rounds:
        for size in sizes:
            begin = [2] if args.quick else [ROWS.get(size, 8)]
            grow = not rows and not args.quick
            made.append(shared | one | dict(size=size, rows=rows or begin, grow=grow))
    return [dict(who='products', V=0, size='', quick=args.quick), *made]


def name_of(case: Case) -> str:
    if case['who'] == 'transformers':
        return f'transformers {case["precision"]}' + ', compiled' * case.get('compiled', False)
    if case['who'] == 'products':
        return 'large products'
    sparse = f', {case["experts"]} experts' if case['experts'] else ''
    unrolled = '' if case['scan'] else ', unrolled'
    flags = f', {case["xla_flags"]}' if case['xla_flags'] else ''
    return f'mtpt {case["kernel"]}, remat {case["remat"]}{sparse}{unrolled}{flags}'


# The outer process: starts the cases, holds no memory of the device, and never imports JAX.


def run_all(todo: list[Case], args: Any, out: pathlib.Path, deadline: float) -> list[dict]:
    results: list[dict] = []
    platform, longest = '', 20.0
    with open(out / 'results.jsonl', 'w') as file, open(out / 'log.txt', 'w') as log:
        while todo:
            case = todo.pop(0)
            left = deadline - time.time()
            if left < min(longest, args.seconds / 2):
                names = [f'{c["size"]}: {name_of(c)}' for c in (case, *todo)]
                print(f'no time left for: {"; ".join(names)}', flush=True)
                break
            if platform == 'cpu' and case.get('kernel') == 'cudnn':
                print(f'{case["size"]}: {name_of(case)}: left out, there is no GPU', flush=True)
                continue
            start, found = time.time(), []
            for one in start_case(case | dict(deadline=deadline), log, left):
                one = dict(size=case['size'], name=name_of(case), **one)
                platform = one.get('platform', platform)
                found.append(one)
                print(line(one), flush=True)
                file.write(json.dumps(one | dict(case=case)) + '\n')
                file.flush()
            if platform == 'cpu' and not args.quick:
                print('there is no accelerator; --size=micro --quick shows that the script runs')
                return results + found
            longest = max(longest, min(time.time() - start, args.seconds / 4))
            results += found
            smaller = case.get('rows', [1])[0] // 2
            if case.get('grow') and smaller and [r.get('error') for r in found] == [NO_ROOM]:
                todo.insert(0, case | dict(rows=[smaller]))
    return results


NO_ROOM = 'out of memory'


def start_case(case: Case, log: Any, seconds: float) -> Iterator[dict]:
    """Runs a case in a process of its own and gives its results as they come."""
    env = os.environ | dict(TF_CPP_MIN_LOG_LEVEL='2', TOKENIZERS_PARALLELISM='false')
    if case['who'] == 'transformers':
        env['JAX_PLATFORMS'] = 'cpu'  # used there for arithmetic alone
    env.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.94')
    if case.get('xla_flags'):
        env['XLA_FLAGS'] = f'{env.get("XLA_FLAGS", "")} {case["xla_flags"]}'.strip()
    command = [sys.executable, str(HERE / 'accelerator.py'), f'--case={json.dumps(case)}']
    log.write(f'\n== {case["size"]}: {name_of(case)}\n')
    log.flush()
    place = log.tell()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    end = time.time() + seconds
    timer = threading.Timer(max(seconds, 1), process.kill)
    timer.start()
    try:
        for text in process.stdout:
            if text.startswith(MARK):
                yield json.loads(text[len(MARK) :])
        process.wait()
    finally:
        timer.cancel()
        process.kill()
    if process.returncode and time.time() >= end:
        yield dict(error='stopped: the time was over')
    elif process.returncode:
        yield dict(error=reason(pathlib.Path(log.name), place, process.returncode))


def reason(path: pathlib.Path, place: int, code: int) -> str:
    """Why a process ended, from what it wrote to the log since `place`."""
    with open(path) as log:
        log.seek(place)
        written = log.read()
    if any(word in written for word in OUT_OF_MEMORY):
        return NO_ROOM
    last = [text for text in written.strip().splitlines() if text.strip()][-1:]
    return f'ended with {code}: {" ".join(last)[:200]}'


def line(one: dict) -> str:
    """A result in words."""
    head = f'{one["size"] or "-"}: {one["name"]}'
    if 'products' in one:
        rates = ', '.join(f'{k} {v:.3g}' for k, v in one['products'].items())
        return f'{head}: {rates} TFLOP/s on {one["device"]} ({one["versions"]})'
    if 'rows' in one:
        head += f', {one["rows"]} rows'
    if 'error' in one:
        return f'{head}: {one["error"]}'
    spread = f'{1e3 * one["fastest"]:.1f} to {1e3 * one["slowest"]:.1f}'
    return (
        f'{head}: {1e3 * one["seconds"]:.1f} ms ({spread}), {one["tokens_s"]:.0f} tokens/s, '
        f'MFU {percent(one["mfu"])}, {gib(one["peak_bytes"])} GiB, loss {one["loss"]:.4f}, '
        f'ready in {one["ready"]:.0f} s'
    )


def percent(share: float | None) -> str:
    return '-' if share is None else f'{100 * share:.1f} %'


def gib(count: float | None) -> str:
    return '-' if count is None else f'{count / GIB:.1f}'


def report(results: list[dict]) -> str:
    """The table, and how it stands to the goals."""
    text = [line(r) for r in results if 'products' in r]
    text += [
        '',
        '| size | what | rows | ms a step | tokens/s | TFLOP/s | MFU | peak GiB | of peer |',
    ]
    text += ['|---|---|---|---|---|---|---|---|---|']
    peers: dict[str, float] = {}
    for one in results:
        if 'tokens_s' in one and one['name'].startswith('transformers'):
            peers[one['size']] = max(peers.get(one['size'], 0), one['tokens_s'])
    for one in results:
        if 'products' in one:
            continue
        cells = [one['size'], one['name'], str(one.get('rows', ''))]
        if 'error' in one:
            cells += [one['error'], *[''] * 5]
        else:
            peer = peers.get(one['size'])
            cells += [
                f'{1e3 * one["seconds"]:.1f}',
                f'{one["tokens_s"]:,.0f}',
                f'{one["flops"] / one["seconds"] / 1e12:.2f}',
                percent(one['mfu']),
                gib(one['peak_bytes']),
                f'{one["tokens_s"] / peer:.2f}' if peer else '',
            ]
        text.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*text, '', *goals(results, peers)]) + '\n'


def goals(results: list[dict], peers: dict[str, float]) -> list[str]:
    """The best dense case of each size against what was asked for."""
    said = []
    for size in dict.fromkeys(r['size'] for r in results):
        ours = [r for r in results if r['size'] == size and 'tokens_s' in r and r['dense']]
        if not ours:
            continue
        best = max(ours, key=lambda r: r['tokens_s'])
        words = f'{size}: at best {percent(best["mfu"])} MFU ({best["name"]}, {best["rows"]} rows)'
        if size in GOALS and best['mfu'] is not None:
            words += f', asked for {percent(GOALS[size])}'
        if size in peers:
            ratio = best['tokens_s'] / peers[size]
            words += f'; {ratio:.2f} times the fastest peer, asked for {PEER_GOAL}'
        said.append(words)
    return said


# The inner process: one case.


def run_case(case: Case) -> None:
    if case['who'] == 'products':
        return tell(products(case))
    climb(case, ours(case) if case['who'] == 'mtpt' else theirs(case))


def tell(found: dict) -> None:
    print(MARK + json.dumps(found), flush=True)


def climb(case: Case, measure: Callable[[int], dict]) -> None:
    """Measures the rows asked for, or twice as many again as long as that pays and fits."""
    rows, best = list(case['rows']), 0.0
    for B in rows:
        start = time.time()
        try:
            found = measure(B)
        except Exception as error:
            if not any(word in f'{type(error).__name__} {error}' for word in OUT_OF_MEMORY):
                raise
            return tell(dict(rows=B, error=NO_ROOM))
        tell(dict(rows=B, **found))
        ending = case['deadline'] - time.time() < 1.5 * (time.time() - start)
        if case['grow'] and found['tokens_s'] > GAIN * best and not ending:
            rows.append(2 * B)
        best = max(best, found['tokens_s'])


def paced(case: Case, take: Callable[[int], float]) -> dict[str, float]:
    """Median, least and most seconds a step; `take(n)` does n steps and gives the last loss."""
    take(1)
    start = time.perf_counter()
    loss = take(1)
    one = time.perf_counter() - start
    n = 1 if case['quick'] else max(1, math.ceil(0.2 / one))
    rounds = 2 if case['quick'] else min(12, max(4, round(case['pace'] / (n * one))))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        take(n)
        seconds.append((time.perf_counter() - start) / n)
    middle = statistics.median(seconds)
    return dict(seconds=middle, fastest=min(seconds), slowest=max(seconds), loss=loss)


def rated(case: Case, B: int, timing: dict[str, float], device: str) -> dict[str, Any]:
    """What the timing means: tokens of both sides, model FLOPs, and their share of the peak."""
    from mtpt.chips import peak_flops
    from mtpt.model.cost import train_flops

    flops = train_flops(config(case), case['S'], case['T'], B)
    peak = peak_flops(device)
    return dict(
        timing,
        tokens_s=B * (case['S'] + case['T']) / timing['seconds'],
        flops=flops,
        mfu=flops / timing['seconds'] / peak if peak else None,
    )


def config(case: Case) -> Any:
    from mtpt.model.config import SIZES, ModelConfig, MoeConfig, resolve

    chosen = dict(size=case['size'], tied=False, dtype='bfloat16')
    if case['who'] == 'mtpt':
        chosen |= dict(remat=case['remat'], kernel=case['kernel'], scan=bool(case['scan']))
        if case['experts']:
            every = min(2, SIZES[case['size']]['encoder_layers'])  # the smallest size has one layer
            moe = MoeConfig(E=case['experts'], top_k=1, encoder=every, decoder=every)
            chosen |= dict(moe=moe)
    return resolve(ModelConfig(**chosen), case['V'])


def packed_rows(case: Case, B: int) -> dict:
    """Full rows of random tokens, each of four segments of unequal length."""
    import numpy as np

    rng = np.random.default_rng(0)
    S, T, V = case['S'], case['T'], case['V']

    def side(length):
        lengths = np.diff([0, length // 6, length // 2, 5 * length // 6, length])
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        ids, places = np.repeat(np.arange(1, 5), lengths), np.arange(length) - starts
        return np.tile(ids, (B, 1)), np.tile(places, (B, 1))

    (segments_BS, positions_BS), (segments_BT, positions_BT) = side(S), side(T)
    targets_BT = rng.integers(3, V, (B, T))
    shifted_BT = np.where(positions_BT > 0, np.roll(targets_BT, 1, axis=1), 0)
    batch = dict(
        encoder_input_tokens=rng.integers(3, V, (B, S)),
        encoder_segment_ids=segments_BS,
        encoder_positions=positions_BS,
        decoder_input_tokens=shifted_BT,
        decoder_target_tokens=targets_BT,
        decoder_loss_weights=np.ones((B, T)),
        decoder_segment_ids=segments_BT,
        decoder_positions=positions_BT,
        segment_task_ids=np.tile(np.arange(1, 5), (B, 1)),
    )
    return {name: x.astype(np.int32) for name, x in batch.items()}


def ours(case: Case) -> Callable[[int], dict]:
    """A function that measures our step with so many rows."""
    import jax

    from mtpt.mesh import MeshConfig, make_mesh, place
    from mtpt.model import functional
    from mtpt.train.host import Prefetch
    from mtpt.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
    from mtpt.train.state import new_state
    from mtpt.train.step import make_train_step

    device = jax.devices()[0]
    mesh = make_mesh(MeshConfig(), [device])
    jax.set_mesh(mesh)
    cfg = config(case)
    schedule = ScheduleConfig(name='constant', rate=1e-4)
    optimizer = OptimizerConfig(name='adamw', schedule=schedule, weight_decay=0.01)
    tx = make_optimizer(optimizer, functional.dims(cfg), 1000)
    loss = dict(z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor='tokens')

    def measure(B):
        if not case['cache']:
            fixed = place(packed_rows(case, B), mesh)
            return timed(B, 4, lambda: fixed)
        loader = cached(case, B)
        fetch = Prefetch(loader, lambda batch: place(batch, mesh), 2)
        try:
            return timed(B, len(loader.manifest.names) - 1, lambda: fetch.take()[0])
        finally:
            fetch.close()

    def timed(B, tasks, batch):
        start = time.perf_counter()
        step = make_train_step(cfg, tx, tasks, **loss)
        held = [new_state(cfg, tx, 0)]
        step = step.lower(held[0], batch()).compile()
        plan, stats = step.memory_analysis(), device.memory_stats() or {}
        planned = plan.argument_size_in_bytes + plan.output_size_in_bytes
        planned += plan.temp_size_in_bytes - plan.alias_size_in_bytes
        if planned > stats.get('bytes_limit', math.inf):
            raise MemoryError(f'out of memory: {planned} bytes of {stats["bytes_limit"]}')
        ready = time.perf_counter() - start

        def take(n):
            for _ in range(n):
                held[0], metrics = step(held[0], batch())
            return float(jax.block_until_ready((metrics, held[0]))[0]['train/loss'])

        timing = paced(case, take)
        return rated(case, B, timing, device.device_kind) | dict(
            ready=ready,
            dense=not case['experts'],
            planned_bytes=planned,
            peak_bytes=(device.memory_stats() or {}).get('peak_bytes_in_use'),
            platform=device.platform,
            xla_flags=os.environ.get('XLA_FLAGS', ''),
        )

    return measure


def cached(case: Case, B: int) -> Any:
    """An endless loader of packed rows out of a cache; the vocabulary is at least the model's."""
    from mtpt.config import UserError
    from mtpt.data import manifest
    from mtpt.data.config import DataConfig
    from mtpt.data.loader import Loader

    found = manifest.read(case['cache'])
    if found.vocabulary['size'] > case['V']:
        raise UserError(f'the cache has {found.vocabulary["size"]} ids; set --vocabulary to it')
    lengths = dict(inputs_length=case['S'], targets_length=case['T'], long_targets='trim')
    cfg = DataConfig(cache=case['cache'], batch_size=B, row_groups=math.gcd(B, 4), **lengths)
    return Loader(found, cfg)


def theirs(case: Case) -> Callable[[int], dict]:
    """A function that measures the step of transformers' T5 with so many rows."""
    import torch
    from train_step import hugging_face

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.set_float32_matmul_precision('high')
    pure = case['precision'] == 'weights'
    start = time.perf_counter()
    with device:
        model = hugging_face(case['size'], case['V'], 'sdpa')
    model = model.to(device, torch.bfloat16 if pure else torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if case.get('compiled') else model

    def measure(B):
        batch = packed_rows(case, B)
        inputs, targets = (
            torch.from_numpy(batch[name]).long().to(device)
            for name in ('encoder_input_tokens', 'decoder_target_tokens')
        )
        mask = torch.ones_like(inputs)

        def take(n):
            for _ in range(n):
                with torch.autocast(device.type, torch.bfloat16, enabled=not pure):
                    loss = forward(input_ids=inputs, attention_mask=mask, labels=targets).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return loss.item()  # waits for the device

        take(1)
        ready = time.perf_counter() - start
        cuda = device.type == 'cuda'
        kind = torch.cuda.get_device_name() if cuda else 'cpu'
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        timing = paced(case, take)
        peak = torch.cuda.max_memory_allocated() if cuda else None
        told = dict(ready=ready, dense=False, peak_bytes=peak)
        return rated(case, B, timing, kind) | told

    return measure


def products(case: Case) -> dict:
    """What the device reaches in a large product, the limit that shares are to be read against."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    n = 8192 if device.platform == 'gpu' and not case['quick'] else 512
    rates = {}
    for dtype in ('bfloat16', 'float32'):
        keys = jax.random.split(jax.random.key(0))
        x, y = (jax.random.normal(key, (n, n), dtype) for key in keys)
        product = jax.jit(jnp.matmul)
        product(x, y).block_until_ready()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            out = [product(x, y) for _ in range(8)]
            jax.block_until_ready(out)
            seconds.append((time.perf_counter() - start) / 8)
        rates[dtype] = 2 * n**3 / statistics.median(seconds) / 1e12
    import flax

    versions = f'jax {jax.__version__}, flax {flax.__version__}'
    return dict(
        products=rates, device=device.device_kind, platform=device.platform, versions=versions
    )


if __name__ == '__main__':
    sys.exit(main())
