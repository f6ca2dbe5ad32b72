"""The shrunk law: every file in configs/ shrinks to a tiny run and takes a step.

And the plan law: those for machines that are not here type-check and fit on their declared mesh.
"""

import contextlib
import importlib
import json
import os
import pathlib

import jax
import pytest

from mtpt import flags, tasks
from mtpt.__main__ import main
from mtpt.chips import topology
from mtpt.mesh import MeshConfig
from mtpt.plan import abstract, memory
from tests import registries

DATA = pathlib.Path(
    os.environ.get('MTPT_DATA', pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data')
)
ARGUMENTS = dict(flan_xl=':commonsense', exmix_pairs=':dialogue,commonsense', three_stages=':1,1,1')
NEEDS_DATA = ('natural_instructions', 't0', 'task_experts', 'task_count', 'three_stages')

FEWER = dict(task_count=('tasks.args.count=8',))  # tasks: all of them are in the other configs
# Of TFDS sets nothing is here: records are made up from their specifications. Of the whole of ExMix
# a family or two will do.
MADE_UP = dict(
    t5_base_c4=(),
    t5_large_c4=(),
    switch_base=(),
    switch_c=(),
    st_moe_32b=('model.moe.E=8',),
    ul2_20b=('data.targets_length=128',),
    ext5_base=('data.mixture=exmix_pair_dialogue_natural_language_inference',),
    ext5_large=('data.mixture=exmix_semantic_parsing',),
    task_moe_base=('data.mixture=exmix_closed_book_qa',),
    exmix_pairs=(),
    flan_xl=(),
    t0_3b=('tasks.args.on_missing=fail',),
)

SHRUNK = (
    *('model.size=micro', 'train.steps=1', 'train.validate_every=0'),
    *('model.D=32', 'model.H=2', 'model.K=16', 'model.F=64'),
    *('model.encoder_layers=2', 'model.decoder_layers=2'),
    *('data.mode=stream', 'data.batch_size=8', 'data.row_groups=4', 'data.accumulation=1'),
    *('checkpoint.every=0', 'log.tensorboard=False', 'evaluate.bootstrap=10'),
)  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def own_registries():
    with registries.restored():
        yield


@pytest.mark.parametrize('name', flags.names())
def test_every_config_shrinks_and_takes_a_step(name, tmp_path):
    if name in NEEDS_DATA and not DATA.is_dir():
        pytest.skip(f'{name} needs real data: set MTPT_DATA')
    words = [
        f'--config={name}{ARGUMENTS.get(name, "")}',
        f'--workdir={tmp_path}',
        '--config.exams={}',
    ]
    steps = 3 if name == 'three_stages' else 1
    shrunk = [s for s in SHRUNK if steps == 1 or s != 'train.steps=1']
    shrunk += FEWER.get(name, ())
    made_up = contextlib.nullcontext()
    if name in MADE_UP:
        made_up = tasks.mocked(4)
        shrunk += ['data.vocabulary=builtin', 'data.inputs_length=128', 'data.targets_length=64']
        shrunk += [*('mesh.data=1', 'mesh.fsdp=1', 'mesh.expert=1'), 'data.long_targets=trim']
        shrunk += MADE_UP[name]
    with made_up:
        assert main(['train', *words, *(f'--config.{s}' for s in shrunk)]) == 0
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    merged = {key: value for line in lines for key, value in json.loads(line).items()}
    assert merged['step'] == steps and merged['train/loss'] > 0


@pytest.mark.parametrize('name', flags.names())
def test_every_config_says_how_to_run_it(name):
    module = __import__(f'mtpt.configs.{name}', fromlist=['get_config'])
    assert f'--config={name}' in module.__doc__ and 'Hardware' in module.__doc__


def _declared(name):
    return getattr(importlib.import_module(f'mtpt.configs.{name}'), 'TOPOLOGY', None)


@pytest.mark.parametrize('name', [n for n in flags.names() if _declared(n)])
def test_a_config_for_a_pod_type_checks_and_fits_on_its_declared_mesh(name):
    run, target = flags.load(name), topology(_declared(name))
    if run.mesh == MeshConfig():
        pytest.skip(f'{name} declares a topology for its larger models, and no mesh')
    mesh = abstract.abstract_mesh(abstract.mesh_sizes(run.mesh, target))
    known = abstract.sizes(run, tasks=150)
    for problem in abstract.problems(run, mesh, known, target.chip.platform):
        with abstract.on(mesh):
            after, metrics = jax.eval_shape(problem.step, problem.state, problem.batch)
        before = jax.tree.leaves(problem.state.params)
        for old, new in zip(before, jax.tree.leaves(after.params), strict=True):
            assert old.sharding.spec == new.sharding.spec and old.shape == new.shape
        assert metrics['task/loss_sum'].shape == (151,)
        assert memory.estimate(problem, target.chip.platform)['peak'] < target.chip.usable
