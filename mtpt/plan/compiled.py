"""The real train step, compiled ahead of time for machines that are not here.

A compile runs in a process of its own: the parent needs no accelerator's library, and a compiler
that crashes, runs out of memory or out of time becomes a result like any other.

    python -m mtpt.plan.compiled JOB.json RESULT.json
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from mtpt import files
from mtpt.chips import Topology, topology
from mtpt.config import UserError, as_dict, choose
from mtpt.plan import hlo

LIMIT_S = 1800.0
AGAIN = ('failed', 'too slow')  # what another try may change
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be compiled: a leg of a run for a topology, all in plain JSON.

    run: `as_dict` of a `settings.Run`; V, M: rows of the vocabulary, tasks.
    effort: 'quick' asks a TPU's compiler for less optimisation (a quarter of the time; peaks within
      a few percent), 'full' is what training compiles.
    """

    run: dict[str, Any]
    topology: str
    slices: int = 1
    leg: int = 0
    V: int = 0
    M: int = 0
    effort: str = 'quick'

    @property
    def target(self) -> Topology:
        return topology(self.topology, self.slices)


def job(run: Any, target: Topology, V: int, M: int, leg: int = 0, effort: str = 'quick') -> Job:
    """The job of a run on a topology.

    Raises:
      UserError: no such effort; the compiler for these chips is not installed, or there is none.
    """
    choose('effort', effort, EFFORTS)
    package(target)
    return Job(as_dict(run), target.name, target.slices, leg, V, M, effort)


def package(target: Topology) -> dict[str, str]:
    """The packages that compile for a topology, with their versions.

    Raises:
      UserError: they are not installed, or nothing compiles for this chip without one.
    """
    extra, modules = choose('compiler', target.chip.platform, COMPILERS)
    if target.chip.platform == 'gpu' and target.chip.name not in GPUS:
        raise UserError(
            f'--compile knows no {target.chip.name}: of GPUs it compiles for {", ".join(GPUS)}; '
            'leave --compile out'
        )
    found = [name for name in modules if importlib.util.find_spec(name)]
    if modules and not found:
        raise UserError(
            f'compiling for {target.chip.name} needs {modules[0]}, which is not installed; run: '
            f"pip install 'mtpt[{extra}]'"
        )
    return {n: importlib.metadata.version(n.replace('_', '-')) for n in ('jax', *found[:1])}


def compile_step(job: Job, limit_s: float = LIMIT_S, log: pathlib.Path | None = None) -> dict:
    """Compiles the train step of a job; what comes back is JSON whatever happened.

    status: 'compiled', 'too large' (the compiler says that memory does not suffice), 'refused' (a
      `UserError` in words), 'failed' or 'too slow'; why: a sentence, unless it was compiled.
    fits: whether a device's memory suffices, None where that is not known; needed and available in
      bytes; bytes: those of a device as the compiler counts them; reserved and largest: as
      `hlo.usage` reads them; collectives: as `hlo.collectives` gives them; seconds: to lower and to
      compile; versions: of JAX and the compiler.

    Args:
      limit_s: seconds after which the compiler is stopped.
      log: a file for what the compiler prints; by default that is dropped but for its last line.
    """
    versions = package(job.target)
    with tempfile.TemporaryDirectory(prefix='mtpt-compile-') as folder:
        asked, answer = pathlib.Path(folder, 'job.json'), pathlib.Path(folder, 'result.json')
        asked.write_text(json.dumps(dataclasses.asdict(job)))
        printed = log or pathlib.Path(folder, 'log.txt')
        began = time.monotonic()
        dump = pathlib.Path(folder, 'dump')
        code = _run(asked, answer, printed, environment(job.target, dump), limit_s)
        seconds = time.monotonic() - began
        told = {} if answer.exists() else _unanswered(code, limit_s, printed)
        result = json.loads(answer.read_text()) if answer.exists() else told
        for report in dump.glob('*memory-usage-report.txt'):
            result |= hlo.usage(report.read_text(errors='replace'))
    about = dict(topology=job.topology, slices=job.slices, effort=job.effort, versions=versions)
    return about | result | dict(process_s=round(seconds, 1))


def _run(
    asked: pathlib.Path, answer: pathlib.Path, log: pathlib.Path, env: dict, limit_s: float
) -> int | None:
    """The exit status of a process that compiles; None where it was stopped for taking too long."""
    command = [sys.executable, '-m', 'mtpt.plan.compiled', str(asked), str(answer)]
    with open(log, 'wb') as file:
        child = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def environment(target: Topology, dump: pathlib.Path) -> dict[str, str]:
    """This process's variables, and those that keep a compiler from looking for its machine.

    dump: a folder for the compiler's report on memory, which it writes in the middle of its work.
    """
    unwanted = ('LIBTPU_INIT_ARGS', 'JAX_COMPILATION_CACHE_DIR')
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    own = dict(JAX_PLATFORMS='cpu', TF_CPP_MIN_LOG_LEVEL='3', TPU_SKIP_MDS_QUERY='1')
    own |= dict(TPU_LOG_DIR='disabled', TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0')
    own |= dict(ALLOW_MULTIPLE_LIBTPU_LOAD='1')  # no chip is opened, so none need be locked
    if target.chip.platform == 'cpu':
        own['JAX_NUM_CPU_DEVICES'] = str(target.devices)
    own['XLA_FLAGS'] = f'--xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=step'
    root = str(pathlib.Path(__file__).resolve().parents[2])
    path = [root, *filter(None, [os.environ.get('PYTHONPATH')])]
    return kept | own | dict(PYTHONPATH=os.pathsep.join(path))


def _unanswered(code: int | None, limit_s: float, log: pathlib.Path) -> dict[str, Any]:
    """The result of a process that left none."""
    if code is None:
        why = f'the compiler was stopped after {limit_s:.0f} s'
        return dict(status='too slow', fits=None, why=why)
    lines = [x for x in log.read_text(errors='replace').splitlines() if x.strip()]
    last = next((x for x in reversed(lines) if 'Error' in x), lines[-1] if lines else 'no word')
    name = f'signal {signal.Signals(-code).name}' if code < 0 else f'status {code}'
    return dict(status='failed', fits=None, why=f'the compiler ended with {name}: {last[:500]}')


# What follows runs in the process of its own.


def devices(target: Topology) -> list[Any]:
    """Devices of a topology that can be compiled for and nothing else."""
    import jax
    from jax.experimental import topologies

    chip = target.chip
    if chip.platform == 'cpu':
        return jax.devices('cpu')[: target.devices]
    if chip.platform == 'gpu':
        hosts, each = target.shape
        told = dict(platform='cuda', topology=f'{target.slices}x{hosts}x{each}')
        return list(topologies.get_topology_desc(**told, target_config=GPUS[chip.name]).devices)
    told = dict(topology_name=target.name, platform='tpu')
    if target.slices > 1:
        told['num_slices'] = target.slices
    told |= TPUS.get(chip.name, {})
    if target.chips // target.slices < chip.host:  # part of a host
        bounds = (*target.shape, *[1] * (3 - len(target.shape)))
        told['chips_per_host_bounds'] = bounds
    return list(topologies.get_topology_desc(**told).devices)


def mesh_of(sizes: tuple[int, ...], target: Topology) -> Any:
    """The four axes on a topology's devices, laid out as training lays them out."""
    import jax

    from mtpt.mesh import AXES, arrange

    explicit = (jax.sharding.AxisType.Explicit,) * len(AXES)
    return jax.sharding.Mesh(arrange(sizes, devices(target)), AXES, axis_types=explicit)


def answer(job: Job) -> dict[str, Any]:
    """Compiles; see `compile_step`."""
    from jax.errors import JaxRuntimeError

    from mtpt import stages
    from mtpt.config import read
    from mtpt.plan import abstract
    from mtpt.settings import Run

    run, target = read(Run, job.run), job.target
    mesh = mesh_of(abstract.mesh_sizes(run.mesh, target), target)
    known = abstract.Sizes(job.V, job.M)
    leg = stages.legs(run)[job.leg]
    began = time.monotonic()
    problem = abstract.problem(leg, run, mesh, known, target.chip.platform)
    lowered = problem.lower()
    seconds = dict(lower=round(time.monotonic() - began, 1))
    began = time.monotonic()
    options = OPTIONS[target.chip.platform] | EFFORTS[job.effort].get(target.chip.platform, {})
    try:
        done = lowered.compile(compiler_options=options or None)
    except JaxRuntimeError as error:
        short = hlo.shortage(str(error))
        if short is None:
            raise
        seconds['compile'] = round(time.monotonic() - began, 1)
        return _too_large(short, str(error), target) | dict(seconds=seconds)
    seconds['compile'] = round(time.monotonic() - began, 1)
    stats = done.memory_analysis()
    found = dict(
        peak=_peak(stats, target),
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    needed, available = found['peak'], round(target.chip.usable)
    # A TPU's compiler refuses what does not fit; one for GPUs does not.
    fits = target.chip.platform == 'tpu' or needed <= available
    result = dict(status='compiled', fits=fits, needed=needed, available=available, bytes=found)
    if not fits:
        result['why'] = f'needs {needed / GIB:.2f} GiB of {available / GIB:.2f} GiB'
    return result | dict(collectives=hlo.collectives(done.as_text()), seconds=seconds)


def _peak(stats: Any, target: Topology) -> int:
    """The most that is there at a time; on a CPU XLA's figure for it leaves temporaries out."""
    if target.chip.platform != 'cpu':
        return stats.peak_memory_in_bytes
    made = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + stats.temp_size_in_bytes + made


def _too_large(short: dict[str, int], message: str, target: Topology) -> dict[str, Any]:
    available = short.get('available', round(target.chip.usable))
    needed = short.get('needed')
    much = f'{needed / GIB:.2f} GiB' if needed else 'more memory'
    why = f'needs {much} of {available / GIB:.2f} GiB'
    said = ' '.join(message.split())[:1000]
    told = dict(status='too large', fits=False, needed=needed, available=available, why=why)
    return told | dict(said=said)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('job')
    parser.add_argument('result')
    args = parser.parse_args(arguments)
    asked = Job(**json.loads(pathlib.Path(args.job).read_text()))
    try:
        result = answer(asked)
    except UserError as error:
        result = dict(status='refused', fits=None, why=str(error))
    files.write(args.result, json.dumps(result))
    return 0


# What compilers are asked for. Triton's products want to be tried out on a GPU, which is not here.
OPTIONS: dict[str, dict[str, Any]] = dict(
    tpu={}, gpu=dict(xla_gpu_enable_triton_gemm=False, xla_gpu_autotune_level=0), cpu={}
)
EFFORTS: dict[str, dict[str, dict[str, Any]]] = dict(
    quick=dict(
        tpu=dict(exec_time_optimization_effort=-1.0),
        gpu=dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True),
    ),
    full={},
)

# The extra of mtpt and the modules, any of which compiles for a platform.
COMPILERS = dict(
    tpu=('tpu', ('libtpu',)), gpu=('cuda', ('jax_cuda12_plugin', 'jax_cuda13_plugin')),
    cpu=('', ()),
)  # fmt: skip

# A v4 chip is one device to JAX, in the mode that the compiler calls megacore.
TPUS: dict[str, dict[str, Any]] = dict(v4=dict(chip_config_name='megacore'))

# XLA's description of a GPU, filled in from NVIDIA's H100 and H200 data sheets and the CUDA C++
# Programming Guide's table of compute capability 9.0.
HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""
GPUS = dict(
    h100=HOPPER.format(name='NVIDIA H100 80GB HBM3', memory=80 * 10**9, bandwidth=3350 * 10**9),
    h200=HOPPER.format(name='NVIDIA H200', memory=141 * 10**9, bandwidth=4800 * 10**9),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
