"""Evaluation over several processes gives what one gives, whatever the sizes, and all cut alike."""

import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_evaluate import Words, exam

from mtpt import hosts
from mtpt.evaluate import run
from mtpt.evaluate.run import EvaluateConfig, evaluate, rounds
from mtpt.evaluate.table import markdown, summarise
from mtpt.exams import averages
from mtpt.mesh import MeshConfig, make_mesh
from mtpt.model import functional
from mtpt.model.config import HeadConfig, ModelConfig, resolve

CFG = resolve(
    ModelConfig(size='micro', heads=(HeadConfig('topic', labels=('yes', 'no'), tasks=('topic',)),)),
    V=128,
)


def exams():
    """Sets whose sizes no number of processes divides: ranked, written freely, told by a head."""
    told = exam('topic.exam', count=5, seed=3, task='topic')
    for i, example in enumerate(told.examples):
        example |= dict(choice_texts=['yes', 'no'], references=[], answer=i % 2)
        example |= dict(choices=[example['choices'][0], [*example['choices'][0][::-1], 1]])
    return [
        exam('colour.exam', count=37, seed=1),
        exam('single.exam', count=1, seed=2),
        exam('write.exam', count=11, seed=4, generation=True),
        told,
    ]


def take(folder):
    """Evaluates twice, whole and with next to no time; process 0 leaves what came of it."""
    mesh = make_mesh(MeshConfig(data=-1))
    hosts.meet(mesh)
    with jax.set_mesh(mesh):
        params = jax.jit(functional.init, static_argnums=0)(CFG, jax.random.key(0))
        params = jax.tree.map(lambda x: 1.3 * x, params)
        quick = dict(bootstrap=30, batch_tokens=512, max_target_length=8)
        whole = evaluate(
            *(CFG, params, exams(), Words(), EvaluateConfig(**quick)),
            predictions=folder / 'predictions.jsonl',
        )
        cut = evaluate(CFG, params, exams(), Words(), EvaluateConfig(**quick, seconds=1e-6))
    if jax.process_index() == 0:
        (folder / 'rows.json').write_text(json.dumps([whole, cut]))


def main(folder, address, process):
    """One process of two."""
    jax.distributed.initialize(address, 2, int(process))
    if process == '1':  # its own clock stands still: by itself it would never cut
        real = rounds
        run.rounds = lambda sizes, seconds: real(sizes, seconds, clock=lambda: 0.0)
    take(pathlib.Path(folder))


def read(folder):
    rows = json.loads((folder / 'rows.json').read_text())
    lines = (folder / 'predictions.jsonl').read_text().splitlines()
    return rows, [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    one, two = tmp_path_factory.mktemp('one'), tmp_path_factory.mktemp('two')
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    flags = '--xla_force_host_platform_device_count=1'
    here = pathlib.Path(__file__).resolve().parent
    path = f'{here.parent}:{here}'
    environment = os.environ | dict(XLA_FLAGS=flags, JAX_PLATFORMS='cpu', PYTHONPATH=path)
    code = 'import sys, test_evaluate_hosts as t; t.main(*sys.argv[1:])'
    started = [
        subprocess.Popen(
            [sys.executable, '-c', code, str(two), address, str(i)],
            env=environment, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        take(one)
        for process in started:
            said, _ = process.communicate(timeout=420)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in started:
            process.kill()
    return one, two


def test_two_processes_give_the_scores_of_one(folders):
    (one, said_one), (two, said_two) = map(read, folders)
    assert one[0] == two[0]
    assert {row['method'] for row in one[0]} == {
        'rank classification',
        'greedy decoding',
        'head topic',
    }
    assert len(said_one) == 37 + 1 + 11 + 5
    for a, b in zip(said_one, said_two):
        assert a.keys() == b.keys() and a['said'] == b['said'] and a['exam'] == b['exam']
        if 'scores' in a:
            np.testing.assert_allclose(a['scores'], b['scores'], rtol=1e-4, atol=1e-4)


def test_an_exam_that_is_cut_says_so_and_is_cut_alike_everywhere(folders):
    one, two = (read(folder)[0][1] for folder in folders)
    assert one == two
    told = {row['exam']: (row['examples'], row['of'], row['cut']) for row in one}
    assert told == {
        'colour.exam': (16, 37, True),
        'single.exam': (1, 1, False),
        'write.exam': (11, 11, False),
        'topic.exam': (5, 5, False),
    }


def passed(sizes, seconds, speed):
    """The rounds of exams whose examples take 1 / speed seconds each."""
    asked, found = [], []
    for first, last in rounds(sizes, seconds, clock=lambda: sum(asked) / speed):
        found.append((first, last))
        asked.append(sum(min(size, last) - min(size, first) for size in sizes))
    return found, sum(asked) / speed


def test_rounds_follow_one_another_and_cover_all_that_there_is_time_for():
    assert passed([100, 7], 0, 1)[0] == [(0, 100)]
    found, _ = passed([100, 7], 1e6, 1)
    assert found[0] == (0, 16) and found[-1][1] == 100
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))


@pytest.mark.parametrize('seconds', [30, 100, 500])
def test_time_is_used_and_not_overdrawn_by_more_than_the_first_round(seconds):
    found, spent = passed([1000, 200, 50], seconds, speed=2)
    assert spent <= max(seconds, 16 * 3 / 2) + 1
    assert spent > 0.9 * seconds or found[-1][1] == 1000


def test_scores_that_were_cut_never_stand_among_whole_ones(folders):
    whole, cut = read(folders[0])[0]
    assert all(name.startswith('eval/mix/') for name in averages(dict(mix=whole)))
    assert 'eval_cut/mix/accuracy' in averages(dict(mix=cut))
    assert 'eval/mix/accuracy' not in averages(dict(mix=cut))
    assert summarise(cut)['tasks'][0]['cut'] and '16*' in markdown(cut)
