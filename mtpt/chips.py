"""The chips that can be planned for, a table with the source of every number, and their topologies.

A device is what JAX calls one. TPU v4 and v5p show a chip as one device (megacore), tpu7x as two.
"""

import dataclasses
import math
import re

from mtpt.config import UserError, nearest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do, as its maker's data sheet says; rates are of a whole chip, a second.

    kind: what JAX's device_kind holds; platform: what JAX calls its back end.
    flops: dense bfloat16 FLOP/s.
    memory: bytes of HBM by the data sheet; usable: bytes that a compiler lets a *device* have.
    bandwidth: bytes to and from HBM; link: bytes that a chip sends to its neighbours over the fast
      interconnect, all links together, one way.
    slow: bytes that a *host* sends to others over the data centre's network, one way.
    pcie: bytes between a chip and its host's memory, one way.
    devices: of a chip, as JAX sees them; host: chips a host at most; a CPU's are all of one.
    dimensions: of a topology's name; shapes: sizes that slices come in; cubes: the most chips of a
      slice of 4x4x4 cubes, which slices come in besides. A chip without shapes comes in any number.
    """

    name: str
    kind: tuple[str, ...]
    platform: str
    flops: float
    memory: float
    usable: float
    bandwidth: float
    link: float
    slow: float
    pcie: float
    devices: int = 1
    host: int = 4
    dimensions: int = 3
    shapes: tuple[tuple[int, ...], ...] = ()
    cubes: int = 0


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that one fast interconnect joins, and how many such slices a slow one joins."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Devices as JAX counts them, over all slices."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        return self.chips // self._together

    @property
    def _together(self) -> int:
        """Chips of a host."""
        if self.chip.platform != 'tpu':
            return self.shape[-1]
        return min(self.chip.host, math.prod(self.shape))

    @property
    def island(self) -> int:
        """Devices that the fast interconnect joins: those of a slice, or of a host of GPUs."""
        chips = self._together if self.chip.platform == 'gpu' else math.prod(self.shape)
        return chips * self.chip.devices

    @property
    def devices_a_host(self) -> int:
        return self._together * self.chip.devices


def topology(name: str, slices: int = 1) -> Topology:
    """Reads the name of a topology: 'v5p:8x8x8', 'h100:8x8' (hosts x GPUs a host), 'cpu:8'.

    Raises:
      UserError: no such chip, sizes that it does not come in, or no slice.
    """
    kind, _, sizes = name.strip().lower().partition(':')
    if kind not in CHIPS:
        raise UserError(f'no chip {kind!r} in --topology={name}; {nearest(kind, CHIPS)}')
    chip = CHIPS[kind]
    if slices < 1:
        raise UserError(f'--slices={slices} must be at least 1')
    if kind == 'cpu' and not sizes:
        sizes = '1'
    example = EXAMPLES[chip.dimensions].format(kind)
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', sizes):
        raise UserError(f'--topology={name} is not of the form CHIP:SIZES, such as {example}')
    shape = tuple(map(int, sizes.split('x')))
    if len(shape) != chip.dimensions:
        raise UserError(
            f'--topology={name} has {len(shape)} sizes and {kind} comes in {chip.dimensions}; '
            f'such as {example}'
        )
    if chip.platform == 'gpu' and shape[1] > chip.host:
        raise UserError(
            f'--topology={name}: a host has at most {chip.host} GPUs, and sizes are hosts x GPUs a '
            f'host; say {kind}:{math.prod(shape) // chip.host or 1}x{chip.host}'
        )
    if (known := _shapes(chip)) and tuple(sorted(shape)) not in map(tuple, map(sorted, known)):
        near = sorted(known, key=lambda other: _unlike(other, shape))[:3]
        raise UserError(
            f'--topology={name}: no slice of {kind} has these sizes; the nearest have '
            + ', '.join('x'.join(map(str, other)) for other in near)
        )
    return Topology(chip, shape, slices)


def _shapes(chip: Chip) -> list[tuple[int, ...]]:
    """The sizes that slices of a chip come in, the small first in each; none for any sizes."""
    found, most = list(chip.shapes), chip.cubes
    for a in range(4, most + 1, 4):
        for b in range(a, most // a + 1, 4):
            found += [(a, b, c) for c in range(b, most // (a * b) + 1, 4)]
    return found


def _unlike(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[float, float]:
    """How far apart two slices are: in chips, and of equals in the size that differs most."""
    sizes = zip(sorted(one), sorted(other))
    apart = abs(math.log(math.prod(one) / math.prod(other)))
    return round(apart, 6), max(abs(math.log(a / b)) for a, b in sizes)


def of_device(device_kind: str) -> Chip | None:
    """The chip by the name that JAX gives its devices ('TPU v5 lite'); None where unknown."""
    told = device_kind.lower()
    known = [(k.lower(), chip) for chip in CHIPS.values() for k in chip.kind if k.lower() in told]
    return max(known, key=lambda k: len(k[0]))[1] if known else None


def peak_flops(device_kind: str) -> float | None:
    """The bfloat16 peak in FLOP/s of a device by the name JAX gives it; None where unknown."""
    chip = of_device(device_kind)
    return chip.flops / chip.devices if chip else None


EXAMPLES = {1: '{}:8', 2: '{}:8x8', 3: '{}:4x4x8'}

# Slices of flat chips, as docs/v5e and docs/v6e list them all.
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Slices of less than a cube of 4x4x4 (docs/v4, docs/v5p, docs/tpu7x).
BLOCKS = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))

# Google's pages are cloud.google.com/tpu/docs/NAME. Their interconnect bandwidth is of both
# directions: half of it here. `usable` of TPUs is the limit that libtpu's compiler reports; of GPUs
# three quarters of the memory, which is what JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says
# more. `pcie` is one direction of 16 lanes: generation 3 (v4: glennklockwood.com/garden/tpuv4) 16
# GB/s, 4 (A100) 32, 5 (H100, H200) 64; TPUs of which nothing is told are taken as v4 or as A100.
# `cubes`: a pod of v4 and of tpu7x, 64 and 144 cubes; of v5p the largest slice, 96 (docs/v5p).
CHIPS: dict[str, Chip] = {
    # docs/v4: 275 TFLOPS, 32 GiB, 1,200 GBps, six links of 50 GBps (2304.01433, table 4); the
    # network is not told: taken as that of v5p, whose hosts are as large.
    'v4': Chip(
        'v4', ('TPU v4',), 'tpu', 275e12, 32 * GIB, 30.75 * GIB, 1.2e12, 300e9, 25e9, 16e9,
        shapes=BLOCKS, cubes=4096,
    ),
    # docs/v5e: 197 TFLOPs, 16 GB, 819 GBps, 400 GBps both ways; docs/v6e: two NICs of 100 Gbps
    # for 8 chips, of which a host of a slice has 4.
    'v5e': Chip(
        'v5e', ('TPU v5 lite', 'TPU v5e'), 'tpu', 197e12, 16 * GIB, 15.75 * GIB, 819e9, 200e9,
        12.5e9, 16e9, dimensions=2, shapes=FLAT,
    ),
    # docs/v5p: 459 TFLOPs, 95 GiB, 2,765 GBps, 1,200 GBps both ways, network 50 Gbps a chip.
    'v5p': Chip(
        'v5p', ('TPU v5', 'TPU v5p'), 'tpu', 459e12, 95 * GIB, 95.74 * GIB, 2765e9, 600e9, 25e9,
        16e9, shapes=BLOCKS, cubes=6144,
    ),
    # docs/v6e and docs/tpu7x: 918 TFLOPs, 32 GiB, 1,638 GBps, 800 GBps, network 100 Gbps a chip.
    'v6e': Chip(
        'v6e', ('TPU v6 lite', 'TPU v6e'), 'tpu', 918e12, 32 * GIB, 31.25 * GIB, 1638e9, 400e9,
        50e9, 32e9, dimensions=2, shapes=FLAT,
    ),
    # docs/tpu7x: 2,307 TFLOPs, 192 GiB, 7,380 GBps, 1,200 GBps, network 100 Gbps a chip.
    'tpu7x': Chip(
        'tpu7x', ('TPU7x', 'TPU v7x'), 'tpu', 2307e12, 192 * GIB, 94.75 * GIB, 7380e9, 600e9, 50e9,
        32e9, devices=2, shapes=((1, 1, 1), *BLOCKS), cubes=9216,
    ),
    # NVIDIA's data sheet of H100 SXM: 989 TFLOPS dense, 80 GB, 3.35 TB/s, NVLink 900 GB/s both
    # ways; DGX H100: eight adapters of 400 Gb/s.
    'h100': Chip(
        'h100', ('H100',), 'gpu', 989e12, 80e9, 0.75 * 80e9, 3350e9, 450e9, 400e9, 64e9,
        host=8, dimensions=2,
    ),
    # NVIDIA's data sheet of H200 SXM: as H100 with 141 GB, 4.8 TB/s; DGX H200: as DGX H100.
    'h200': Chip(
        'h200', ('H200',), 'gpu', 989e12, 141e9, 0.75 * 141e9, 4800e9, 450e9, 400e9, 64e9,
        host=8, dimensions=2,
    ),
    # NVIDIA's data sheet of A100 80GB SXM: 312 TFLOPS, 80 GB, 2,039 GB/s, NVLink 600 GB/s both
    # ways; DGX A100: eight adapters of 200 Gb/s.
    'a100': Chip(
        'a100', ('A100',), 'gpu', 312e12, 80e9, 0.75 * 80e9, 2039e9, 300e9, 200e9, 32e9,
        host=8, dimensions=2,
    ),
    # No data sheet: two cores of a server with AVX-512, where products of 1,024 x 1,024 float32
    # were measured at 507 GFLOP/s; memory and links are those of an ordinary machine.
    'cpu': Chip(
        'cpu', (), 'cpu', 0.5e12, 16e9, 16e9, 50e9, 10e9, 1e9, 50e9, host=1, dimensions=1,
    ),
}  # fmt: skip
