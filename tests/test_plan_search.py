"""What a search tells of layouts is what plans of their own tell; it tries whatever divides."""

import itertools
import math

from test_plan import a_run

from mtpt.chips import topology
from mtpt.mesh import AXES
from mtpt.plan import abstract, estimate, search

KNOWN = abstract.Sizes(256, 3)
MODEL = dict(size='small', encoder_layers=2, decoder_layers=2, F=256)


def layout(row):
    return *row['mesh'].values(), row['accumulation'], row['remat']


def test_with_fewer_tokens_than_slots_the_layouts_told_are_told_as_their_own_plans_are(monkeypatch):
    monkeypatch.setattr(search, 'REMAT', ('none',))
    monkeypatch.setattr(search, 'SHOWN', 3)
    moe = dict(E=128, F=512, encoder=2, decoder=2, capacity=1.0)
    run = a_run(model=MODEL | dict(moe=moe), data=dict(batch_size=64, row_groups=64))
    target = topology('v5p:2x2x4')
    rough = {layout(row): row for row in search.ranked(run, target, KNOWN, 0.4)}
    found = search.search(run, target, KNOWN, 0.4)
    assert len(found['best']) == search.SHOWN
    for row in found['best']:
        laid = search.applied(run, row)
        mesh = abstract.abstract_mesh(tuple(row['mesh'][axis] for axis in AXES))
        own = estimate.leg(abstract.problems(laid, mesh, KNOWN, 'tpu')[0], target, 0.4)
        assert row['seconds'] == own['seconds'] and row['peak'] == own['memory']['peak']
    took = [row['seconds']['expected'] for row in found['best']]
    assert took == sorted(took)
    more = [
        row['seconds']['products'] / rough[layout(row)]['seconds']['products']
        for row in found['best']
    ]
    assert max(more) > 1.2  # or there was nothing to be told


def test_a_batch_is_taken_in_as_many_parts_as_some_mesh_divides(monkeypatch):
    monkeypatch.setattr(search, 'REMAT', ('none',))
    moe = dict(E=4, encoder=2, decoder=2)
    run = a_run(model=MODEL | dict(moe=moe), data=dict(batch_size=8, row_groups=1))
    rows = search.ranked(run, topology('v5e:2x2'), KNOWN, 0.4)
    assert {row['accumulation'] for row in rows} == {1, 2, 4}
    for row in rows:
        assert 8 % (row['accumulation'] * math.prod(list(row['mesh'].values())[:3])) == 0


def test_of_layouts_that_take_as_long_one_that_leaves_the_host_alone_comes_first(monkeypatch):
    monkeypatch.setattr(search, 'REMAT', ('offload_layers', 'full'))
    run = a_run(model=MODEL, data=dict(batch_size=32))
    rows = search.ranked(run, topology('v5e:2x2'), KNOWN, 0.4)
    ties = 0
    for one, other in itertools.pairwise(rows):
        took = [f'{row["seconds"]["expected"]:.3g}' for row in (one, other)]
        if took[0] == took[1] and one['remat'] != other['remat']:
            assert one['remat'] == 'full', (one, other)
            ties += 1
    assert ties and any(
        row['peak'] < rows[0]['peak'] for row in rows if row['remat'] == 'offload_layers'
    )
