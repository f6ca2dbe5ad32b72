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
from mtpt.plan import abstract, estimate, search, show
from mtpt.plan.verb import Asked, key

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALONE = (
    'import sys\nfrom mtpt.__main__ import main\nstatus = main(sys.argv[1:])\n'
    "heavy = {'seqio', 'tensorflow', 'libtpu', 'jax_cuda12_plugin', 'torch'} & set(sys.modules)\n"
    "print('LOADED', sorted(heavy), 'jax' in sys.modules)\n"
    "if 'jax' in sys.modules:\n    import jax\n"
    "    print('PLATFORMS', jax.config.jax_platforms, file=sys.stderr)\nsys.exit(status)"
)


def plan(*words, **env):
    return subprocess.run(
        [sys.executable, '-c', ALONE, 'plan', *words],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | dict(JAX_PLATFORMS='an accelerator', COLUMNS='80') | env,
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
    assert 'PLATFORMS cpu\n' in first.stderr  # an accelerator is left alone
    figures = json.loads(out.read_text())
    assert figures['topology']['devices'] == devices
    assert figures['legs'][0]['flops']['model'] > 0 and figures['run']['days'] > 0
    told, hours = figures['run'], figures['run']['expected_days'] * 24
    if '--price=0.1' in words:
        assert told['expected_dollars'] == pytest.approx(hours * 0.1 * devices)
    else:
        assert 'dollars' not in told
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
    (['--topology=cpu', '--price=nan'], '--price'),
    (['--topology=cpu', '--price=inf'], '--price'),
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
    assert 'GB held: ' in out


@pytest.mark.parametrize('what,status', [('failed', 1), ('too slow', 1), ('refused', 2)])
def test_a_compile_that_gives_no_answer_has_a_status_and_a_sentence(
    asked, monkeypatch, what, status
):
    told = dict(topology='cpu:1', status=what, fits=None, why='it broke')
    monkeypatch.setattr('mtpt.plan.compiled.compile_step', lambda job: told)
    words = ['--config=quickstart', '--topology=cpu', '--config.model.size=micro', '--compile']
    ended, out, err = asked(*words)
    assert ended == status and 'it broke' in err and len(err.strip().splitlines()) == 1
    assert 'memory of a device' in out  # what arithmetic says is there all the same


@pytest.mark.parametrize(
    'peak,said', [(0.5, 'fits in'), (0.95, 'close to'), (1.05, 'does not fit')]
)
def test_what_comes_near_the_memory_is_said_to_fit_only_by_a_compiler(peak, said):
    assert show.verdict(peak * 2**34, 2**34)[0].startswith(said)
    assert show.CLOSE == search.ROOM


def test_a_price_is_that_of_a_chip_and_what_a_run_costs_multiplies_out(asked, tmp_path):
    out = f'--out={tmp_path / "x.json"}'
    small = ['--config.model.encoder_layers=1', '--config.model.decoder_layers=1']
    words = ['--config=t5_base_c4', '--topology=tpu7x:2x2x4', '--config.mesh.data=-1', *small, out]
    status, _, err = asked(*words)
    assert status == 0, err
    assert json.loads((tmp_path / 'x.json').read_text())['run'].keys().isdisjoint({'dollars'})
    status, out, err = asked(*words, '--price=12.5')
    assert status == 0 and '12.5 a chip-hour' in out
    figures = json.loads((tmp_path / 'x.json').read_text())
    run = figures['run']
    assert figures['topology']['devices'] == 32 and figures['topology']['chips'] == 16
    for name in ('', 'expected_'):
        assert run[f'{name}chip_hours'] == pytest.approx(run[f'{name}days'] * 24 * 16)
        assert run[f'{name}dollars'] == pytest.approx(run[f'{name}chip_hours'] * 12.5)
    assert len(list((tmp_path / 'cache').iterdir())) == 1  # a price needs no new plan


def test_a_plan_is_remembered_by_all_that_it_depends_on(tmp_path, monkeypatch):
    file = tmp_path / 'my.model'
    file.write_text('one')
    config = dict(data=dict(vocabulary=str(file)))
    seen = {key(config, [], Asked(topology='cpu'))}
    assert key(config, [], Asked(topology='cpu', out='x.json', cache='y')) in seen
    seen.add(key(config, ['--config.mesh.data=2'], Asked(topology='cpu')))
    assert key(config, [], Asked(topology='cpu', price=3)) in seen
    seen.add(key(config, [], Asked(topology='cpu', mfu=0.5)))
    seen.add(key(config | dict(train=dict(steps=3)), [], Asked(topology='cpu')))
    file.write_text('another')
    seen.add(key(config, [], Asked(topology='cpu')))
    monkeypatch.setattr('mtpt.plan.verb._code', lambda: 'other code')
    seen.add(key(config, [], Asked(topology='cpu')))
    monkeypatch.setattr('importlib.metadata.version', lambda name: '9.9')
    seen.add(key(config, [], Asked(topology='cpu')))
    assert len(seen) == 7


def test_a_plan_that_is_not_whole_on_disk_is_made_again(asked, tmp_path):
    words = ['--config=quickstart', '--topology=cpu', '--config.model.size=micro']
    assert asked(*words)[0] == 0
    (place,) = (tmp_path / 'cache').iterdir()
    whole = place.read_text()
    lacking, changed = json.loads(whole), json.loads(whole)
    del lacking['figures']['legs'][0]['memory']
    changed['figures']['legs'][0]['memory']['peak'] += 1
    damaged = [
        '',
        whole[: len(whole) // 2],
        '{}',
        '[]',
        '{"format": 1}',
        '{"sha256": "", "figures": 3}',
    ]
    for text in [*damaged, json.dumps(lacking), json.dumps(changed)]:
        place.write_text(text)
        status, out, err = asked(*words)
        assert status == 0 and 'memory of a device' in out, (text[:80], err)
        assert place.read_text() == whole


def test_a_search_cuts_no_name(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    mesh = dict(data=16, fsdp=512, expert=128, tensor=16)
    row = dict(mesh=mesh, accumulation=512, remat='dots_with_no_batch_dims', peak=2**36, mfu=0.4)
    row['seconds'] = dict(expected=1234.5)
    told = dict(tried=100_000, fit=99_999, best=[row], available=2**37)
    target = dict(name='v4:8x8x8', slices=1, devices=512, hosts=128)
    show.show(dict(name='any', topology=target, search=told, notes=[]))
    out = capsys.readouterr().out
    assert 'dots_with_no_batch_dims ' in out and 'nine tenths of 128.00 GiB' in out


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
