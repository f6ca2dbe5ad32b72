"""T0 in miniature: prompted training on its BASE families, zero-shot on the families it holds out.

MTPT_DATA=DIR mtpt train --config=t0 --workdir=runs/t0

DIR/t0, DIR/labelled and DIR/MANIFEST.json are laid out as `mtpt.mixtures.t0` says and
DIR/vocab/t5_cc_all.32000 holds T5's vocabulary; without MTPT_DATA, DIR is ../shared/data beside the
checkout. The score is the accuracy of rank classification on inference, coreference, sentence
completion and word sense, by original-task templates. The datasets are samples (about 200 rows a
template), so the cap is set to their size. CB, ANLI, COPA, WSC, HellaSwag and Winogrande are asked
on a few dozen to a few hundred rows of their training splits: no numbers to compare with published
ones.

Hardware: 2 CPU cores; about ten minutes. It is the smallest run that goes all the way: it reached
0.386 with chance at 0.408; T0 itself starts from 11 billion pretrained parameters.
"""

import os
import pathlib

from ml_collections import ConfigDict

import mtpt


def get_config() -> ConfigDict:
    beside = pathlib.Path(mtpt.__file__).parents[2] / 'shared' / 'data'
    folder = pathlib.Path(os.environ.get('MTPT_DATA', beside))
    config = ConfigDict()
    config.tasks = dict(module='mtpt.mixtures.t0', args=dict(folder=str(folder), cap=1000))
    config.data = dict(
        mixture='t0_train',
        vocabulary=str(folder / 'vocab' / 't5_cc_all.32000' / 'sentencepiece.model'),
        batch_size=16,
        inputs_length=256,
        targets_length=64,
        segments=8,
        row_groups=4,
        long_targets='trim',
    )
    config.model = dict(size='mini')
    config.train = dict(steps=800, seed=0, validate_every=400)
    config.optimizer = dict(
        name='adamw_scale',
        b2=0.98,
        weight_decay=0.01,
        clip=1.0,
        schedule=dict(name='wsd', rate=1e-2, warmup=100, decay=0.2),
    )
    config.exams = dict(t0_eval=dict(split='validation', max_examples=100, at_start=True))
    config.held_out = dict(
        families=('natural_language_inference', 'coreference', 'sentence_completion', 'word_sense'),
        datasets=('anli', 'cb', 'copa', 'hellaswag', 'rte', 'wic', 'winogrande', 'wsc'),
    )
    config.checkpoint = dict(every=400)
    return config
