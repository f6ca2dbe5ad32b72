"""Chips and their topologies, by name."""

import pytest

from mtpt import chips
from mtpt.config import UserError


@pytest.mark.parametrize('name,slices,devices,hosts,island', [
    ('v4:8x8x8', 1, 512, 128, 512), ('v5p:4x4x4', 2, 128, 32, 64), ('v5e:16x16', 1, 256, 64, 256),
    ('v6e:2x2', 1, 4, 1, 4), ('tpu7x:4x4x4', 1, 128, 16, 128), ('h100:8x8', 1, 64, 8, 8),
    ('h200:2x4', 1, 8, 2, 4), ('cpu', 1, 1, 1, 1), ('cpu:8', 1, 8, 1, 8), ('v5e:1x1', 2, 2, 2, 1),
    ('cpu:8', 2, 16, 2, 8), ('v4:2x2x1', 1, 4, 1, 4), ('v4:8x8x4', 1, 256, 64, 256),
    ('v5p:16x16x24', 1, 6144, 1536, 6144), ('tpu7x:1x1x1', 1, 2, 1, 2),
])  # fmt: skip
def test_a_topology_has_devices_as_jax_counts_them(name, slices, devices, hosts, island):
    found = chips.topology(name, slices)
    assert (found.devices, found.hosts, found.island) == (devices, hosts, island)


@pytest.mark.parametrize('name,word', [
    ('v5:8x8', 'v5e'), ('v5litepod-16', 'known'), ('v5p', 'v5p:4x4x8'), ('v5e:4x4x4', 'v5e:8x8'),
    ('h100:64', 'h100:8x8'), ('h100:8x16', 'h100:16x8'), ('v4:0x2x2', 'v4:4x4x8'), ('', 'known'),
    ('cpu:2x2', 'cpu:8'), ('v5e:3x6', '4x4, '), ('v5e:2000x2000', '16x16, '), ('v6e:1x4', '2x2'),
    ('v4:4x4x6', '4x4x8, 4x4x4'), ('v4:16x16x20', '16x16x16'), ('v4:1x1x1', '2x2x1'),
    ('v5p:16x24x24', '16x16x24'),
])  # fmt: skip
def test_a_wrong_topology_is_told_the_nearest_right_one(name, word):
    with pytest.raises(UserError, match=word):
        chips.topology(name)


def test_every_chip_has_facts_that_go_together():
    for name, chip in chips.CHIPS.items():
        assert chip.name == name
        assert 0.7 * chip.memory <= chip.usable * chip.devices < 1.01 * chip.memory
        assert chip.slow / chip.host < chip.link < chip.bandwidth < chip.flops


def test_a_device_is_known_by_the_name_it_gives_itself():
    names = ('NVIDIA H200', 'NVIDIA H100 80GB HBM3', 'TPU v5 lite', 'TPU v5', 'TPU v4', 'TPU7x')
    found = [chips.of_device(name).name for name in names]
    assert found == ['h200', 'h100', 'v5e', 'v5p', 'v4', 'tpu7x']
    assert chips.of_device('cpu') is None and chips.peak_flops('cpu') is None
    assert chips.peak_flops('TPU7x') == 2307e12 / 2


def test_every_slice_of_a_chip_has_whole_hosts():
    for name, shape in [(c.name, s) for c in chips.CHIPS.values() for s in chips._shapes(c)]:
        found = chips.topology(f'{name}:{"x".join(map(str, shape))}')
        assert found.hosts * found.devices_a_host == found.devices
