"""The benchmark scripts at tiny size: that they run and what they say, not how fast anything is."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import tiny
from test_loader import build

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'benchmarks'))

# Found first by every Python of a run: what a machine with an accelerator need not have.
BARE = """
import sys

for name in ('tensorflow', 'seqio', 'tensorflow_datasets', 'ml_collections', 'tensorboardX'):
    sys.modules[name] = None
"""


def run(script, *flags, **env):
    command = [sys.executable, str(ROOT / 'benchmarks' / f'{script}.py'), *flags]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | env, cwd=ROOT, timeout=300
    )


def accelerator(folder, *flags):
    (folder / 'sitecustomize.py').write_text(BARE)
    quick = ['--size=micro', '--quick', '--shape=32/16', '--vocabulary=512', '--kernel=xla']
    quick += ['--remat=full', f'--out={folder}']
    done = run('accelerator', *quick, *flags, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr + (folder / 'log.txt').read_text()
    return [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]


def test_the_accelerator_script_needs_neither_tensorflow_nor_seqio(tmp_path):
    """And a case that cannot be is told and ends nothing else."""
    found = accelerator(tmp_path, '--experts=0,4', '--peer=autocast', '--remat=full,dost')
    products, *rest = found
    assert set(products['products']) == {'bfloat16', 'float32'}
    named = {one['name']: one for one in rest}
    dense, sparse, peer, broken = (
        named[name]
        for name in (
            'mtpt xla, remat full',
            'mtpt xla, remat full, 4 experts',
            'transformers autocast',
            'mtpt xla, remat dost',
        )
    )
    assert "no remat policy 'dost'; did you mean 'dots'" in broken['error']
    for one in (dense, sparse, peer):
        if one is peer and 'No module named' in one.get('error', ''):
            continue
        assert one['rows'] == 2 and one['tokens_s'] == 2 * (32 + 16) / one['seconds']
        assert 5 < one['loss'] < 9 and one['mfu'] is None
    assert dense['planned_bytes'] > 0
    table = (tmp_path / 'table.md').read_text()
    assert '| micro | mtpt xla, remat full | 2 |' in table and 'micro: at best' in table
    assert broken['error'] in table


def test_the_accelerator_script_trains_from_cached_shards(tmp_path):
    build(tmp_path / 'cache')
    flags = ('--experts=0', '--peer=', '--vocabulary=1024', f'--cache={tmp_path / "cache"}')
    _, one = accelerator(tmp_path, *flags)
    assert one['rows'] == 2 and 6 < one['loss'] < 9


def test_what_the_number_of_tasks_costs_is_measured_cached_and_streamed(tmp_path):
    import many_tasks

    many_tasks.write(tmp_path, 3)
    written = many_tasks.write_cache(tmp_path, 3)
    assert written['files'] == 6 and written['tokens_per_cpu_s'] > 0
    for way in ('cached', 'streamed'):
        found = many_tasks.pace(many_tasks.WAYS[way](tmp_path, 3), seconds=0.1)
        assert found['tokens_per_s'] > 0 and found['memory'] > 0
    shown = many_tasks.table({'cached, 3 tasks': found, 'seqio, 3 tasks': dict(gave_up_s=2.0)})
    assert '| seqio, 3 tasks | none in 2 |' in shown


def test_compile_time_is_told_for_every_depth(monkeypatch, capsys):
    import compile_time

    def here(one):
        kind, layers, scan = one.split(',')
        return compile_time.compile_one(kind, int(layers), scan == '1')

    monkeypatch.setattr(compile_time, 'in_a_process', here)
    flags = ('--depths=1,2', '--kinds=dense', '--scan=1', '--rounds=1')
    monkeypatch.setattr(sys, 'argv', ['compile_time', *flags])
    compile_time.main()
    said = capsys.readouterr().out
    assert '| dense, scanned | 1 |' in said and '| dense, scanned | 2 |' in said
    assert 'dense, scanned: 2 layers take' in said


def test_the_step_beside_pytorch_starts_from_the_same_loss():
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    done = run('train_step', '--size=micro', '--dtype=float32', '--steps=1', '--no-compile')
    assert done.returncode == 0, done.stderr
    losses = re.findall(r'first loss (\S+)', done.stdout)
    assert len(losses) == 3 and max(map(float, losses)) - min(map(float, losses)) < 1e-4
    assert '% of a product' in done.stdout and 'times the tokens/s' in done.stdout


def test_what_saving_and_starting_again_costs_is_told(tmp_path):
    flags = ('--steps=5', '--often=5', '--pairs=1', f'--out={tmp_path / "told.json"}')
    done = run('saving', f'--config={tiny.write(tmp_path)}', *flags)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / 'told.json').read_text())
    assert set(told['starts']) == {'first start', 'compiled before', 'restart after a kill'}
    assert min(told['starts'].values()) > 0 and told['saving']['step'] > 0
    assert 'restart after a kill: ' in done.stdout and 'a save costs' in done.stdout
