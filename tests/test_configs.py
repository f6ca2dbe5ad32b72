"""The shrunk law: every file in configs/ shrinks to a tiny run and takes a step."""

import json
import os
import pathlib

import pytest

from mtpt import flags
from mtpt.__main__ import main

DATA = pathlib.Path(
    os.environ.get('MTPT_DATA', pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data')
)
NEEDS_DATA = ('natural_instructions', 't0', 'task_experts')

SHRUNK = (
    *('model.size=micro', 'train.steps=1', 'train.validate_every=0'),
    *('model.D=32', 'model.H=2', 'model.K=16', 'model.F=64'),
    *('model.encoder_layers=2', 'model.decoder_layers=2'),
    *('data.mode=stream', 'data.batch_size=8', 'data.row_groups=4', 'data.accumulation=1'),
    *('checkpoint.every=0', 'log.tensorboard=False', 'evaluate.bootstrap=10'),
)  # fmt: skip


@pytest.mark.parametrize('name', flags.names())
def test_every_config_shrinks_and_takes_a_step(name, tmp_path):
    if name in NEEDS_DATA and not DATA.is_dir():
        pytest.skip(f'{name} needs real data: set MTPT_DATA')
    words = [f'--config={name}', f'--workdir={tmp_path}', '--config.exams={}']
    assert main(['train', *words, *(f'--config.{s}' for s in SHRUNK)]) == 0
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    merged = {key: value for line in lines for key, value in json.loads(line).items()}
    assert merged['step'] == 1 and merged['train/loss'] > 0


@pytest.mark.parametrize('name', flags.names())
def test_every_config_says_how_to_run_it(name):
    module = __import__(f'mtpt.configs.{name}', fromlist=['get_config'])
    assert f'--config={name}' in module.__doc__ and 'Hardware' in module.__doc__
