"""The quickstart as a user runs it: seconds, peak memory, scores; one row a seed.

python benchmarks/quickstart.py [SEEDS]
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time


def run(seed: int, folder: pathlib.Path) -> dict[str, float]:
    """Trains in a process of its own and reads what it left."""
    command = [sys.executable, '-m', 'mtpt', 'train', '--config=quickstart']
    command += [f'--workdir={folder}', f'--config.train.seed={seed}']
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f'the run of seed {seed} failed with status {status}')
    result = {'minutes': (time.perf_counter() - started) / 60, 'GB': usage.ru_maxrss / 2**20}
    newest = max(json.loads(p.read_text())['step'] for p in folder.glob('eval/*.json'))
    for path in sorted(folder.glob(f'eval/{newest:08d}-*.json')):
        found = json.loads(path.read_text())
        macro = next(m for m in found['summary']['macro'] if m['over'] == 'all')
        result[found['mixture'].removeprefix('builtin_')] = macro['value']
        if found['mixture'] == 'builtin_trained':
            families = [m for m in found['summary']['macro'] if m['over'] == 'family']
            gaps = {m['name']: m['value'] - m['majority'] for m in families}
            lowest = min(gaps, key=gaps.get)
            result[f'lowest family above majority ({lowest})'] = gaps[lowest]
    return result


def main(seeds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            row = run(seed, pathlib.Path(folder) / str(seed))
            print(f'seed {seed}: ' + '  '.join(f'{k} {v:.3f}' for k, v in row.items()), flush=True)


if __name__ == '__main__':
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
