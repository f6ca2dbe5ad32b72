"""How fast batches come: from a cache, from a stream of 60 tasks, and from SeqIO's own mixture.

    python benchmarks/input_pipeline.py [--json FILE] [--without-seqio]

Sixty generated tasks of three prompts each, byte vocabulary, 55 to 60 tokens an example, rows of
512 encoder and 128 decoder positions, one core. Tokens are encoder and decoder tokens that are not
padding. Times to the first batch begin after imports and registration. CPU seconds tell what a
shared machine hides.
"""

import argparse
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mtpt import tasks
from mtpt.data import cache, draws, objectives
from mtpt.data.config import DataConfig
from mtpt.data.loader import Loader
from mtpt.data.stream import stream
from mtpt.tasks import Prompt

TASKS, EXAMPLES, SECONDS = 60, 2000, 4.0
CFG = DataConfig(batch_size=64, row_groups=4, inputs_length=512, targets_length=128, segments=16)
WORDS = (
    'ant bee cat dog eel fox gnu hen ibex jay kiwi lynx mole newt owl pig ram seal toad yak'.split()
)


def examples(split: str, task: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f'{split} {task}')
    for _ in range(EXAMPLES if split == 'train' else 50):
        some = rng.sample(WORDS, 8)
        yield {'words': ' '.join(some), 'place': (i := rng.randrange(8)) + 1, 'answer': some[i]}


def register() -> str:
    prompts = [
        Prompt('after', '{{words}}: word {{place}}?', '{{answer}}'),
        Prompt('before', 'Word {{place}} of {{words}} is', '{{answer}}'),
        Prompt('list', 'List: {{words}}. Item {{place}}:', '{{answer}}'),
    ]
    names = [f'bench_{task:02d}' for task in range(TASKS)]
    for task, name in enumerate(names):
        source = tasks.function(
            lambda split, task=task: examples(split, task),
            sizes={'train': EXAMPLES, 'validation': 50},
        )
        tasks.task(name, source, prompts, family='selection', vocabulary='bytes')
    tasks.mixture('bench', names, rule='equal')
    return 'bench'


def real_tokens(batch: dict[str, Any]) -> int:
    return sum(np.count_nonzero(batch[f'{side}_segment_ids']) for side in ('encoder', 'decoder'))


def pace(batches: Iterator[dict[str, Any]]) -> dict[str, float]:
    """Time to the first batch, then real tokens a second and how full the encoder rows are."""
    start, busy = time.perf_counter(), time.process_time()
    next(batches)
    first, first_busy = time.perf_counter() - start, time.process_time() - busy
    tokens = rows = used = 0
    start, busy = time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - start) < SECONDS:
        batch = next(batches)
        tokens += real_tokens(batch)
        used += np.count_nonzero(batch['encoder_segment_ids'])
        rows += len(batch['encoder_segment_ids'])
    return dict(
        first_batch_s=first,
        first_batch_cpu_s=first_busy,
        tokens_per_s=tokens / spent,
        tokens_per_cpu_s=tokens / (time.process_time() - busy),
        rows_per_s=rows / spent,
        encoder_filled=used / rows / CFG.inputs_length,
    )


def batches_of(make: Callable[[], Iterator[Any]]) -> Iterator[dict[str, Any]]:
    yield from (batch for batch, _ in make())


def seqio_batches(name: str) -> Iterator[dict[str, Any]]:
    import seqio

    dataset = seqio.get_dataset(
        name,
        task_feature_lengths={'inputs': CFG.inputs_length, 'targets': CFG.targets_length},
        feature_converter=seqio.EncDecFeatureConverter(pack=True),
        dataset_split='train',
        shuffle=True,
        seed=0,
    )
    yield from dataset.batch(CFG.batch_size).as_numpy_iterator()


def corruption() -> dict[str, float]:
    length, _ = objectives.span_corruption_lengths(CFG.inputs_length)
    pieces = np.random.default_rng(0).integers(3, 30000, (64, length)).astype(np.uint16)
    symbols = objectives.Symbols(sentinel=32099)
    start, busy, turn = time.perf_counter(), time.process_time(), 0
    while (spent := time.perf_counter() - start) < 1:
        objectives.span_corruption(pieces, draws.bits(turn, np.arange(64)), symbols)
        turn += 1
    busy = time.process_time() - busy
    tokens = turn * pieces.size
    return dict(tokens_per_s=tokens / spent, tokens_per_cpu_s=tokens / busy)


def run(with_seqio: bool) -> dict[str, dict[str, float]]:
    name = register()
    results = {'span corruption alone': corruption()}
    with tempfile.TemporaryDirectory() as folder:
        start, busy = time.perf_counter(), time.process_time()
        manifest = cache.build(name, folder, 'bytes')
        written = sum(split.tokens for task in manifest.tasks for split in task.splits.values())
        spent, busy = time.perf_counter() - start, time.process_time() - busy
        results['writing the cache'] = dict(
            seconds=spent, tokens_per_s=written / spent, tokens_per_cpu_s=written / busy
        )
        results['cached, packed'] = pace(batches_of(lambda: Loader(manifest, CFG)))
    table = cache.outline(name, 'bytes')
    opened = cache.opener(table, 'bytes', CFG)
    results['streamed, packed'] = pace(batches_of(lambda: stream(table, CFG, opened)))
    if with_seqio:
        results["SeqIO's mixture, packed"] = pace(seqio_batches(name))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', help='also write the results to this file')
    parser.add_argument('--without-seqio', action='store_true', help='leave the comparison out')
    args = parser.parse_args()
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import seqio  # noqa: F401  (so that no time below holds its import)

    results = run(not args.without_seqio)
    about = f'Python {platform.python_version()}, NumPy {np.__version__}'
    print(f'{platform.machine()}, one core of {os.cpu_count()}, {about}\n')
    columns = dict(
        first_batch_s=('first batch, s', '{:.2f}'),
        first_batch_cpu_s=('CPU s', '{:.2f}'),
        tokens_per_s=('tokens/s', '{:,.0f}'),
        tokens_per_cpu_s=('tokens/CPU s', '{:,.0f}'),
        encoder_filled=('encoder filled', '{:.1%}'),
    )
    print('| what | ' + ' | '.join(title for title, _ in columns.values()) + ' |')
    print('|---' * (len(columns) + 1) + '|')
    for what, r in results.items():
        cells = [form.format(r[key]) if key in r else '' for key, (_, form) in columns.items()]
        print(f'| {what} | ' + ' | '.join(cells) + ' |')
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(results, file, indent=1)


if __name__ == '__main__':
    main()
