"""A SLURM of one machine on loopback: slurmctld and one slurmd, with a folder of their own.

Debian's slurm-wlm is enough (apt-get install slurm-wlm); nothing of the system's own configuration
is read. Run as a program it starts one, and a shell command within it:

    python -m tests.slurm FOLDER sinfo
"""

import contextlib
import getpass
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

PROGRAMS = ('slurmctld', 'slurmd', 'srun', 'sbatch', 'scontrol', 'squeue', 'sinfo')

CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=300
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=60 State=UP
"""


class Unavailable(Exception):
    """SLURM is not installed, or its daemons do not start here."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def cluster(folder: pathlib.Path, seconds: float = 30) -> Iterator[Mapping[str, str]]:
    """Starts both daemons; gives the variables that SLURM's programs find them by.

    Raises:
      Unavailable: and why.
    """
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        raise Unavailable(f'SLURM is not installed: no {", ".join(missing)}')
    for name in ('state', 'spool'):
        (folder / name).mkdir(parents=True)
    told = dict(host=socket.gethostname().partition('.')[0], user=getpass.getuser(), folder=folder)
    ports = dict(controller=_free_port(), daemon=_free_port())
    (folder / 'slurm.conf').write_text(CONFIG.format(**told, **ports))
    environment = os.environ | dict(SLURM_CONF=str(folder / 'slurm.conf'))
    commands = (['slurmctld', '-D', '-c'], ['slurmd', '-D', '-N', 'localhost'])
    daemons = []
    try:
        for command in commands:
            with open(folder / f'{command[0]}.out', 'w') as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
        _wait_until_idle(environment, daemons, folder, seconds)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait_until_idle(environment, daemons, folder, seconds):
    end, said = time.monotonic() + seconds, ''
    while time.monotonic() < end:
        if any(daemon.poll() is not None for daemon in daemons):
            break
        asked = subprocess.run(
            ['sinfo', '--noheader', '--format=%t'], env=environment, capture_output=True, text=True
        )
        said = asked.stdout.strip() or asked.stderr.strip()
        if said == 'idle':
            return
        time.sleep(0.2)
    logs = [(folder / f'{name}.log') for name in ('slurmctld', 'slurmd')]
    last = [log.read_text().strip().rpartition('\n')[2] for log in logs if log.exists()]
    raise Unavailable(f'SLURM does not start here: {said}; {"; ".join(last)}')


if __name__ == '__main__':
    with cluster(pathlib.Path(sys.argv[1]).resolve()) as environment:
        subprocess.run(sys.argv[2:], env=environment)
