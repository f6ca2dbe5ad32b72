"""What multi-task training gives: the built-in suite, span corruption alone and no training.

python benchmarks/transfer.py [WORKDIR]

Three seeds of each at equal steps, by `mtpt sweep`; the rows of step 0 are the untrained models.
The sweep goes on where it stopped if WORKDIR is given again.
"""

import subprocess
import sys

COMMAND = ['sweep', '--config=quickstart', '--over=data.mixture=builtin,builtin_text', '--seeds=3']


def main(workdir: str) -> int:
    command = [sys.executable, '-m', 'mtpt', *COMMAND, f'--workdir={workdir}']
    return subprocess.run(command).returncode


if __name__ == '__main__':
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else 'runs/transfer'))
