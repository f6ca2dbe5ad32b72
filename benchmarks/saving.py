"""What saving costs a step, how long a start takes to its first step, and how long a restart does.

python benchmarks/saving.py [--config=quickstart] [--steps=300] [--often=25] [--pairs=3] [--out=F]

Saving: pairs of runs, one that saves every `often` steps and one that does not; what the steps of
the first take longer, by the saves, is what a save costs, with all that goes on in its background.
Starts: from the command to the line of step 1, with an empty compilation cache and with a full
one. Restart: from the command after a kill -9 to the line of the step after the last checkpoint.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIRST = 20  # steps before the clock of the first part starts
PATIENCE = 1800.0  # seconds


class Started:
    """A run under way, and when its lines appeared; what it prints goes to a file."""

    def __init__(self, args: argparse.Namespace, folder: pathlib.Path, compiled: pathlib.Path):
        self.folder, self._config = folder, args.config
        self._env = os.environ | dict(
            JAX_COMPILATION_CACHE_DIR=str(compiled), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0'
        )
        self.process = None

    def begin(self, *settings: str) -> float:
        """Starts it; the time on the clock."""
        words = [f'--config={self._config}', f'--workdir={self.folder}', *settings]
        words += ['--config.train.validate_every=0', '--config.checkpoint.keep_best=0']
        words += ['--config.exams={}', '--config.log.tensorboard=False']
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with open(self.folder / 'said.txt', 'a') as said:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'mtpt', 'train', *words],
                cwd=ROOT, env=self._env, stdout=said, stderr=said,
            )  # fmt: skip
        return began

    def reaches(self, step: int) -> float:
        """Waits for the line of a step; the time on the clock then."""
        path, until = self.folder / 'metrics.jsonl', time.monotonic() + PATIENCE
        while True:
            if path.exists():
                steps = [json.loads(t)['step'] for t in path.read_text().splitlines(True)
                         if t.endswith('}\n')]  # fmt: skip
                if max(steps, default=0) >= step:
                    return time.perf_counter()
            if self.process.poll() is not None:
                path = self.folder / 'said.txt'
                raise SystemExit(f'the run in {self.folder} ended: {path.read_text()[-2000:]}')
            if time.monotonic() > until:
                raise SystemExit(f'the run in {self.folder} does not come to step {step}')
            time.sleep(0.01)

    def has_saved(self, step: int) -> None:
        """Waits until a checkpoint is whole."""
        self.reaches(step)
        until = time.monotonic() + PATIENCE
        while not (self.folder / 'checkpoints' / str(step)).is_dir():
            if time.monotonic() > until:
                raise SystemExit(f'the run in {self.folder} does not save step {step}')
            time.sleep(0.01)

    def end(self) -> None:
        """Kills it as a fault would."""
        self.process.kill()
        self.process.wait()


def saving(args: argparse.Namespace, root: pathlib.Path, compiled: pathlib.Path) -> dict:
    """The seconds of a step without and with saves, and of one save."""
    seconds = {False: [], True: []}
    cache = f'--config.data.cache={root / "cache"}'
    last = FIRST + args.steps
    for pair in range(args.pairs):
        for saves in (False, True) if pair % 2 else (True, False):
            run = Started(args, root / f'pair{pair}-{saves}', compiled)
            every = args.often if saves else 0
            run.begin(
                cache, f'--config.train.steps={last + 50}', f'--config.checkpoint.every={every}',
                '--config.log.every=5',
            )  # fmt: skip
            began = run.reaches(FIRST)
            seconds[saves].append((run.reaches(last) - began) / args.steps)
            run.end()
    without, with_ = (statistics.median(seconds[saves]) for saves in (False, True))
    save = (with_ - without) * args.often
    return dict(
        step=without, step_with_saves=with_, often=args.often, save=save, all=seconds,
        share_every_500=save / (500 * without), share_every_often=with_ / without - 1,
    )  # fmt: skip


def starts(args: argparse.Namespace, root: pathlib.Path) -> dict:
    """Seconds to the first step, new and compiled before, and after a kill."""
    found = {}
    every = ['--config.log.every=1', '--config.checkpoint.every=10', '--config.train.steps=100000']
    cache = f'--config.data.cache={root / "cache"}'
    compiled = root / 'compiled-anew'
    for name in ('first start', 'compiled before'):
        run = Started(args, root / name.replace(' ', '-'), compiled)
        began = run.begin(cache, *every)
        found[name] = run.reaches(1) - began
        if name == 'first start':
            run.end()
    run.has_saved(10)
    run.end()
    began = run.begin(cache, *every)
    (run.folder / 'metrics.jsonl').unlink()  # the lines of before do not count
    found['restart after a kill'] = run.reaches(11) - began
    run.end()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--config', default='quickstart')
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--often', type=int, default=25)
    parser.add_argument('--pairs', type=int, default=3)
    parser.add_argument('--out', type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        warm = Started(args, root / 'warm', root / 'compiled')
        warm.begin(f'--config.data.cache={root / "cache"}', '--config.train.steps=1')
        if warm.process.wait():
            raise SystemExit((warm.folder / 'said.txt').read_text()[-2000:])
        told = dict(starts=starts(args, root), saving=saving(args, root, root / 'compiled'))
    for name, seconds in told['starts'].items():
        print(f'{name}: {seconds:.1f} s to the line of the first step')
    cost = told['saving']
    print(
        f'a step: {1e3 * cost["step"]:.2f} ms, with a save every {args.often} steps '
        f'{1e3 * cost["step_with_saves"]:.2f} ms; a save costs {1e3 * cost["save"]:.0f} ms, '
        f'{cost["share_every_500"]:.2%} of the time when every 500 steps'
    )
    if args.out:
        args.out.write_text(json.dumps(told, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
