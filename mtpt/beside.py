"""What goes on beside the steps of a run: where its time goes, what a step costs, traces."""

import pathlib

import jax

from mtpt import chips
from mtpt.model.config import ModelConfig
from mtpt.model.cost import train_flops
from mtpt.settings import Run
from mtpt.train.loop import Beside, alone
from mtpt.watch.goodput import Goodput
from mtpt.watch.profiling import Tracer
from mtpt.watch.speed import Cost
from mtpt.watch.watchdog import Watchdog


def beside_of(run: Run, workdir: pathlib.Path, step: int, began: float) -> Beside:
    """What is watched of a run that goes on from `step`; one process writes of it.

    began: when this process took the run up, by `goodput.begun`.
    """
    primary = jax.process_index() == 0
    return alone()._replace(
        watchdog=Watchdog(run.watchdog, workdir, jax.process_index()),
        clock=Goodput(workdir, step, primary, began),
        tracer=Tracer(run.log.profile if primary else (), workdir),
    )


def cost_of(run: Run, model_cfg: ModelConfig, mesh: jax.sharding.Mesh) -> Cost:
    """What a step of a leg asks for: full rows, nothing recomputed, as is usual for MFU."""
    data = run.data
    flops = train_flops(model_cfg, data.inputs_length, data.targets_length, data.batch_size)
    peak = chips.peak_flops(mesh.devices.flat[0].device_kind)
    return Cost(flops, peak and peak * mesh.devices.size)
