"""What a leg of a run needs of a machine and how long it takes there, as a plain dict of figures.

B rows  S encoder positions  T decoder positions
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtpt.chips import Topology
from mtpt.model import cost
from mtpt.plan import communication, flops, memory
from mtpt.plan.abstract import Problem

HIDDEN = {'data', 'fsdp'}  # traffic of weights and their gradients, which is sent while others work


@dataclasses.dataclass(frozen=True)
class Traced:
    """What was counted in a traced step; good for any mesh, since axes have no sizes in it.

    model: FLOPs that the model asks for, without empty slots of experts and what is computed again.
    """

    counted: flops.Counted
    collectives: tuple[communication.Collective, ...]
    model: float


def traced(problem: Problem, platform: str) -> Traced:
    """Traces the step of a problem and counts what it does on a platform."""
    closed, sizes = problem.trace(), dict(problem.mesh.shape)
    counted = flops.count(closed, sizes, platform)
    sent = communication.collectives(closed, sizes, platform)
    return Traced(counted, sent, model_flops(problem, counted))


def model_flops(problem: Problem, counted: flops.Counted) -> float:
    """FLOPs that MFU is reckoned with: of sparse models those of the experts that tokens are sent
    to, as training reckons too, since a trace has their slots, be they filled or empty."""
    if not problem.model.moe.E:
        return counted.model
    data = problem.run.data
    return cost.train_flops(problem.model, data.inputs_length, data.targets_length, problem.rows)


def leg(problem: Problem, topology: Topology, mfu: float) -> dict[str, Any]:
    """All figures of a leg; bytes and seconds are a device's and a step's.

    Of its FLOPs, `model`, `slots` and `recomputed` add up to those of the hardware; slots are what
    experts compute beyond what tokens ask for, below 0 where fewer tokens find a slot. `expected`
    tells whether they are a mean over where tokens may go, `exact` whether all loops were counted.
    """
    found = traced(problem, topology.chip.platform)
    sizes, counted = dict(problem.mesh.shape), found.counted
    lines = communication.lines(found.collectives, sizes, topology)
    held = memory.estimate(problem, topology.chip.platform)
    needed, usable = held['peak'], topology.chip.usable
    return dict(
        name=problem.name,
        steps=problem.steps,
        mixture=problem.run.data.mixture,
        rows=problem.rows,
        inputs_length=problem.run.data.inputs_length,
        targets_length=problem.run.data.targets_length,
        accumulation=problem.run.data.accumulation,
        tokens=problem.tokens,
        memory=held,
        available=usable,
        fits=bool(needed <= usable),
        flops=dict(
            model=found.model,
            slots=counted.model - found.model,
            recomputed=counted.hardware - counted.model,
            hardware=counted.hardware,
            device=counted.per_device(sizes),
            exact=counted.exact,
            expected=counted.expected,
        ),
        communication=[dataclasses.asdict(line) for line in lines],
        seconds=(times := seconds(found, lines, held, sizes, topology, mfu)),
        intensity=intensity(counted, lines, held, sizes, topology),
        tokens_per_second=problem.tokens / times['at_mfu'],
    )


def seconds(
    found: Traced,
    lines: list[communication.Line],
    held: Mapping[str, float],
    sizes: Mapping[str, int],
    topology: Topology,
    mfu: float,
) -> dict[str, float]:
    """How long a step takes, in parts that partly go on at once.

    at_mfu: as long as the model's FLOPs take at the stated MFU, whatever the rest says.
    products: the hardware FLOPs at that share of the peak; memory: what HBM's bandwidth needs;
    weights: gathering weights and reducing gradients, and host: moving what layers keep to the
    host's memory and back, which go on meanwhile; activations: what layers wait for. expected: the
    longest of the first four, and then the last.
    """
    peak, counted = topology.chip.flops / topology.chip.devices, found.counted
    parts = dict(
        products=counted.per_device(sizes) / (peak * mfu),
        memory=moved(counted, held, sizes) * topology.chip.devices / topology.chip.bandwidth,
        weights=sum(line.seconds for line in lines if line.axes and set(line.axes) <= HIDDEN),
        host=sum(line.seconds for line in lines if not line.axes),
        activations=sum(line.seconds for line in lines if not set(line.axes) <= HIDDEN),
    )
    at_mfu = found.model / (topology.devices * peak * mfu)
    together = ('products', 'memory', 'weights', 'host')
    expected = max(parts[name] for name in together) + parts['activations']
    return dict(at_mfu=at_mfu, **parts, expected=expected)


def moved(counted: flops.Counted, held: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Bytes that a device reads from and writes to HBM: operands and results of products once each,
    and in the update parameters, gradients and the optimizer's state in and out."""
    update = 2 * held['parameters'] + 2 * held['optimizer'] + 2 * held['gradients']
    return counted.moved(sizes) + update


def intensity(
    counted: flops.Counted,
    lines: list[communication.Line],
    held: Mapping[str, float],
    sizes: Mapping[str, int],
    topology: Topology,
) -> dict[str, float | None]:
    """FLOPs for each byte, against the chip's ridge: where both take equally long at full speed."""
    chip, done = topology.chip, counted.per_device(sizes)
    sent = sum(line.sent for line in lines if line.axes)
    return dict(
        memory=done / moved(counted, held, sizes),
        memory_ridge=chip.flops / chip.bandwidth,
        links=done / sent if sent else None,
        links_ridge=chip.flops / chip.link,
    )


def parameters(problem: Problem) -> dict[str, int]:
    """The model's parameters: in all, on a token's path, by part, and of one expert."""
    return dataclasses.asdict(cost.parameters(problem.model))


def kv_cache(problem: Problem) -> dict[str, float]:
    """Bytes that a device keeps to decode as many rows as evaluation gives it at once."""
    run, cfg, sizes = problem.run, problem.model, problem.mesh.shape
    if cfg.kind == 'encoder':
        return dict(rows=0, bytes=0.0)
    S, T = run.data.inputs_length, run.data.targets_length
    rows = max(1, run.evaluate.batch_tokens // (S + T))
    of = (cfg.decoder_attention, cfg.cross_attention)
    whole = any(own.kv_heads not in (0, cfg.H) for own in of)  # those are not split over tensor
    return dict(
        rows=rows,
        bytes=cost.cache_bytes(cfg, rows, S, T).total / (1 if whole else sizes['tensor']),
    )
