"""Runs the benchmarks one after the other: `python -m benchmarks [NAME ...]`.

Each prints its own table; docs/benchmarks.md holds the figures with machine and versions. Run
nothing beside them: two cores that also do something else measure something else.
"""

import os
import pathlib
import platform
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent
BENCHMARKS = dict(
    input_pipeline='packing, caching, cached loading and streaming, against SeqIO',
    many_tasks='first batch, pace and memory at 10 and 1,000 tasks, against SeqIO',
    task_losses='what per-task losses cost a step',
    train_step="a training step against PyTorch's T5 (needs torch and transformers)",
    accelerator='MFU, tokens/s and memory on a GPU, beside transformers (it needs a GPU)',
    compile_time='how long a step of 24 layers takes to compile, against 2',
    experts='a sparse layer, and a training step with it, against the dense one at equal FLOPs',
    decoding='greedy decoding by kind of attention and batch, and without a cache',
    saving='what saving costs a step; start-up and restart after a kill',
    faults='runs that are killed, starved and damaged end as those that were not (hours)',
    quickstart='the first command: time, memory, scores',
    task_count='what the number of training tasks is worth (needs real data)',
    transfer='multi-task training, span corruption alone and no training, three seeds',
)


def main(names: list[str]) -> int:
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        print(f'no benchmark {sorted(unknown)}; there are: {", ".join(BENCHMARKS)}')
        return 2
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python', end=' ')
    print(platform.python_version())
    failed = []
    for name in names or BENCHMARKS:
        print(f'\n== {name}: {BENCHMARKS[name]}', flush=True)
        command = [sys.executable, str(FOLDER / f'{name}.py')]
        if subprocess.run(command, cwd=FOLDER.parent).returncode:
            failed.append(name)
    if failed:
        print(f'\nfailed: {", ".join(failed)}')
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
