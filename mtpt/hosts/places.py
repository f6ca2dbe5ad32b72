"""What tells a process its place among others: the variables of each launcher.

JAX takes only a whole set of variables. With part of one it runs as a lone process, so that several
would train side by side in one folder: what is missing is named instead.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mtpt.config import UserError

ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
ALONE = 'as it is, every process runs alone; if several are meant, '


class Launcher(NamedTuple):
    """The variables that JAX wants all of, those it cannot do without, and how one gets them."""

    variables: tuple[str, ...]
    needed: tuple[str, ...]
    cure: str


PLACES = {
    'SLURM': Launcher(
        ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
        (),
        'start the run with srun, not from the shell of sbatch or salloc',
    ),
    'Open MPI': Launcher(
        (
            'OMPI_MCA_orte_hnp_uri',
            'OMPI_COMM_WORLD_SIZE',
            'OMPI_COMM_WORLD_RANK',
            'OMPI_COMM_WORLD_LOCAL_RANK',
        ),
        (),
        f'start the run with mpirun; Open MPI 5 names no address: set {ADDRESS} to HOST:PORT of '
        'rank 0',
    ),
    'TPU': Launcher(
        ('TPU_WORKER_ID', 'TPU_WORKER_HOSTNAMES'),
        ('TPU_WORKER_ID',),
        'set both on every host: its number from 0, and the names of all hosts with commas',
    ),
    'TPU slices': Launcher(
        ('MEGASCALE_COORDINATOR_ADDRESS', 'MEGASCALE_NUM_SLICES', 'MEGASCALE_SLICE_ID'),
        ('MEGASCALE_COORDINATOR_ADDRESS', 'MEGASCALE_NUM_SLICES', 'MEGASCALE_SLICE_ID'),
        'set all three on every host of every slice',
    ),
    'JAX': Launcher(
        (ADDRESS, COUNT, INDEX),
        (ADDRESS, COUNT, INDEX),
        'set all three in every process: HOST:PORT of process 0, how many there are, and which '
        'this is, from 0',
    ),
}
SAME = {
    'TPU_WORKER_HOSTNAMES': ('TPU_PROCESS_ADDRESSES',),
    COUNT: ('OMPI_COMM_WORLD_SIZE', 'SLURM_NTASKS'),
    INDEX: ('OMPI_COMM_WORLD_RANK', 'SLURM_PROCID', 'JOB_COMPLETION_INDEX'),
}  # any of them will do
NUMBERS = {
    'SLURM': ('SLURM_PROCID', 'SLURM_NTASKS'),
    'Open MPI': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
    'TPU slices': ('MEGASCALE_SLICE_ID', 'MEGASCALE_NUM_SLICES'),
    'JAX': (INDEX, COUNT),
}


def value(environment: Mapping[str, str], variable: str) -> str:
    """What a variable says, or one that will do in its place; '' where none does."""
    names = (variable, *SAME.get(variable, ()))
    return next((environment[name] for name in names if environment.get(name)), '')


def parts(environment: Mapping[str, str], name: str) -> tuple[list[str], list[str]]:
    """The variables of a launcher that are here, and those that are missing."""
    variables = PLACES[name].variables
    if not any(environment.get(v) for v in variables) and not (
        name == 'TPU' and environment.get('TPU_PROCESS_ADDRESSES')
    ):
        return [], list(variables)
    here = [v for v in variables if value(environment, v)]
    return here, [v for v in variables if v not in here]


def numbers(environment: Mapping[str, str], name: str) -> tuple[str, str, str]:
    """The variable that says which process this is, what it says, and how many there are."""
    if name == 'TPU':
        hosts = value(environment, 'TPU_WORKER_HOSTNAMES')
        return 'TPU_WORKER_ID', value(environment, 'TPU_WORKER_ID'), str(len(hosts.split(',')))
    index, count = NUMBERS[name]
    return index, value(environment, index), value(environment, count)


def said(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(address, number of processes, this process) that JAX's three variables say, if they do.

    Raises:
      UserError: some of them are set and others missing, or one is no number.
    """
    here, missing = parts(environment, 'JAX')
    if not here:
        return None
    if missing:
        raise UserError(_sentence('JAX', here, missing))
    count, index = (value(environment, name) for name in (COUNT, INDEX))
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise UserError(f'{INDEX}={index} must be a number from 0, below {COUNT}={count}')
    return environment[ADDRESS], int(count), int(index)


def local_device(environment: Mapping[str, str]) -> list[int] | None:
    """The one device of a process that mpirun or srun numbers: theirs are one a device, as in JAX.

    None where the process was numbered by hand, and has all devices of its host.
    """
    if environment.get(INDEX):
        return None
    for variable in ('OMPI_COMM_WORLD_LOCAL_RANK', 'SLURM_LOCALID'):
        if environment.get(variable, '').isdecimal():
            return [int(environment[variable])]
    return None


def check_alone(environment: Mapping[str, str]) -> None:
    """A process to which nothing gave a place, though it seems to be one of many.

    Raises:
      UserError: what is missing, and the cure.
    """
    for name, launcher in PLACES.items():
        here, missing = parts(environment, name)
        several = numbers(environment, name)[2]
        several = several.isdecimal() and int(several) > 1
        if here and missing and (several or set(missing) & set(launcher.needed)):
            raise UserError(_sentence(name, here, missing))
    if environment.get('KUBERNETES_SERVICE_HOST') and environment.get('JOB_COMPLETION_INDEX'):
        raise UserError(
            'this pod has a JOB_COMPLETION_INDEX, and nothing says where the others are: set '
            f'{ADDRESS} and {COUNT} in the pods (see launch/), or --processes=1 if it is alone'
        )


def _sentence(name: str, here: list[str], missing: list[str]) -> str:
    are = [f'{", ".join(names)} {"is" if len(names) == 1 else "are"}' for names in (here, missing)]
    return (
        f'{are[0]} set and {are[1]} missing; {PLACES[name].cure}, or give --processes=1 to run '
        'alone'
    )
