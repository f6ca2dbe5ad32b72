"""`mtpt plan` as a user calls it: what it prints, writes and imports, when it is asked again, and
what it answers to bad input."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from test_plan import a_run

from mtpt.__main__ import main
from mtpt.chips import topology
from mtpt.mesh import AXES
from mtpt.plan import abstract, estimate, search
from mtpt.plan.verb import Asked, key

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALONE = (
    'import sys\nfrom mtpt.__main__ import main\nstatus = main(sys.argv[1:])\n'
    "heavy = {'seqio', 'tensorflow', 'libtpu', 'jax_cuda12_plugin', 'torch'} & set(sys.modules)\n"
    "print('LOADED', sorted(heavy), 'jax' in sys.modules)\nsys.exit(status)"
)


def plan(*words, **env):
    return subprocess.run(
        [sys.executable, '-c', ALONE, 'plan', *words],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | dict(JAX_PLATFORMS='cpu', COLUMNS='80') | env,
    )  # fmt: skip


@pytest.mark.parametrize('name,words,devices', [
    ('quickstart', ['--topology=cpu', '--price=0.1'], 1),
    ('t5_base_c4', [], 16),
    ('ul2_20b', ['--topology=v5p:8x8x8', '--slices=2', '--config.mesh.data=2'], 1024),
])  # fmt: skip
def test_a_config_is_planned_without_accelerators_and_remembered(name, words, devices, tmp_path):
    out = tmp_path / 'plan.json'
    words = [f'--config={name}', *words, f'--cache={tmp_path / "cache"}', f'--out={out}']
    first = plan(*words)
    assert first.returncode == 0, first.stderr
    assert 'LOADED [] True' in first.stdout
    figures = json.loads(out.read_text())
    assert figures['topology']['devices'] == devices
    assert figures['legs'][0]['flops']['model'] > 0 and figures['run']['days'] > 0
    assert ('dollars' in figures['run']) == ('--price=0.1' in words)
    tables = first.stdout.partition('note: ')[0]
    assert max(map(len, tables.splitlines())) <= 80
    again = plan(*words)
    assert 'LOADED [] False' in again.stdout  # read from the cache, without JAX
    assert again.stdout.replace('False', 'True') == first.stdout


@pytest.fixture
def asked(tmp_path, capsys):
    def ask(*words):
        status = main(['plan', f'--cache={tmp_path / "cache"}', *words])
        told = capsys.readouterr()
        return status, told.out, told.err

    return ask


@pytest.mark.parametrize('words,said', [
    (['--topology=v5litepod-16'], 'no chip'),
    (['--topology=v5p:8x8'], 'v5p:4x4x8'),
    (['--topology=cpu:8'], '--search'),
    (['--topology=cpu:3', '--config.mesh.data=3'], 'B=16'),
    (['--topology=cpu', '--mfu=1.4'], '--mfu'),
    (['--topology=cpu', '--price=-1'], '--price'),
    (['--topology=cpu', '--tasks=0'], '--tasks'),
    (['--topology=cpu', '--slices=0'], '--slices'),
    ([], '--topology'),
])  # fmt: skip
def test_bad_input_gets_one_sentence(asked, words, said):
    status, _, err = asked('--config=quickstart', *words)
    assert status == 2 and said in err and len(err.strip().splitlines()) == 1, err


def test_a_compiler_that_is_not_installed_is_named_with_its_cure(asked, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    status, _, err = asked('--config=t5_base_c4', '--compile')
    assert status == 2 and 'libtpu' in err and 'pip install' in err


def test_what_the_compiler_says_is_printed(asked, monkeypatch):
    told = dict(
        topology='cpu:1', status='compiled', fits=False, needed=3 * 2**30, available=2**30,
        collectives=[dict(kind='all-gather', loop=True, count=2, times=48, bytes=5 * 10**9)],
        seconds=dict(lower=1.0, compile=2.5), why='needs 3.00 GiB of 1.00 GiB',
    )  # fmt: skip
    monkeypatch.setattr('mtpt.plan.compiled.compile_step', lambda job: told)
    words = ['--config=quickstart', '--topology=cpu', '--config.model.size=micro', '--compile']
    status, out, err = asked(*words)
    assert status == 0, err
    for said in ('3.00 GiB of 1.00', 'does not fit', 'all-gather', '48', '5.000', '2.50 s'):
        assert said in out


def test_a_plan_is_remembered_by_all_that_it_depends_on(tmp_path, monkeypatch):
    file = tmp_path / 'my.model'
    file.write_text('one')
    config = dict(data=dict(vocabulary=str(file)))
    seen = {key(config, [], Asked(topology='cpu'))}
    assert key(config, [], Asked(topology='cpu', out='x.json', cache='y')) in seen
    seen.add(key(config, ['--config.mesh.data=2'], Asked(topology='cpu')))
    seen.add(key(config, [], Asked(topology='cpu', mfu=0.5)))
    seen.add(key(config | dict(train=dict(steps=3)), [], Asked(topology='cpu')))
    file.write_text('another')
    seen.add(key(config, [], Asked(topology='cpu')))
    monkeypatch.setattr('mtpt.plan.verb._code', lambda: 'other code')
    seen.add(key(config, [], Asked(topology='cpu')))
    monkeypatch.setattr('importlib.metadata.version', lambda name: '9.9')
    seen.add(key(config, [], Asked(topology='cpu')))
    assert len(seen) == 7


def test_a_plan_that_is_cut_short_on_disk_is_made_again(asked, tmp_path):
    words = ['--config=quickstart', '--topology=cpu', '--config.model.size=micro']
    assert asked(*words)[0] == 0
    (place,) = (tmp_path / 'cache').iterdir()
    whole = place.read_text()
    place.write_text(whole[: len(whole) // 2])
    assert asked(*words)[0] == 0
    assert place.read_text() == whole


MOE = dict(moe=dict(E=4, encoder=2, decoder=2, capacity=1.0))


@pytest.mark.parametrize('changes', [{}, MOE], ids=['dense', 'sparse'])
def test_what_a_search_tells_of_a_layout_is_what_its_own_plan_tells(changes, monkeypatch):
    monkeypatch.setattr(search, 'REMAT', ('none', 'full'))
    model = dict(size='small', encoder_layers=2, decoder_layers=2, F=1024) | changes
    run = a_run(model=model, data=dict(batch_size=64, row_groups=2))
    target, known = topology('h100:2x4'), abstract.Sizes(256, 3)
    rows = search.ranked(run, target, known, 0.4)
    assert rows[0]['remat'] == 'none' and all(row['fits'] for row in rows)
    for row in (rows[len(rows) // 2], rows[-1]):
        laid = search.applied(run, row)
        mesh = abstract.abstract_mesh(tuple(row['mesh'][axis] for axis in AXES))
        own = estimate.leg(abstract.problems(laid, mesh, known, 'gpu')[0], target, 0.4)
        assert row['peak'] == pytest.approx(own['memory']['peak'], rel=0.05), row
        for name, seconds in own['seconds'].items():
            close = pytest.approx(seconds, rel=0.1 if changes else 0.01, abs=2e-5)  # slots round up
            assert row['seconds'][name] == close, (name, row)


def test_a_search_prints_lines_that_can_be_pasted(asked, monkeypatch):
    monkeypatch.setattr('mtpt.plan.search.REMAT', ('none', 'full'))
    words = ['--config=t5_base_c4', '--topology=v5e:4x4', '--config.model.encoder_layers=2']
    status, out, err = asked(*words, '--config.model.decoder_layers=2', '--search')
    assert status == 0, err
    lines = [line.strip() for line in out.splitlines() if line.startswith('config.')]
    from ml_collections import ConfigDict

    config = ConfigDict(dict(data={}, model={}))
    exec('\n'.join(lines), dict(config=config))
    assert config.model.remat and config.data.accumulation >= 1 and config.mesh


def test_where_nothing_fits_a_search_says_so(asked, monkeypatch):
    monkeypatch.setattr('mtpt.plan.search.REMAT', ('full',))
    words = ['--config=ul2_20b', '--topology=v5e:1x1', '--search', '--config.data.batch_size=128']
    status, out, _ = asked(*words)
    assert status == 0 and 'nothing fits' in out
