"""Super-NaturalInstructions: hundreds of tasks by instruction, asked on kinds it never saw.

MTPT_DATA=DIR mtpt train --config=natural_instructions --workdir=runs/natural_instructions

DIR/ni is the folder of the collection in its official layout and DIR/vocab/t5_cc_all.32000 holds
T5's vocabulary; without MTPT_DATA, DIR is ../shared/data beside the checkout. The score is ROUGE-L
and exact match on the first 100 instances of each test task. Of the official lists, the tasks that
have a file are used (`partial`); with the whole collection, set `partial=False`.

Hardware: 2 CPU cores; sized for about ten minutes. It is the smallest run that goes all the way:
ROUGE-L 0.079 was reached (published scores come from large models, pretrained on text).
"""

import os
import pathlib

from ml_collections import ConfigDict

import mtpt


def get_config() -> ConfigDict:
    beside = pathlib.Path(mtpt.__file__).parents[2] / 'shared' / 'data'
    folder = pathlib.Path(os.environ.get('MTPT_DATA', beside))
    config = ConfigDict()
    config.tasks = dict(
        module='mtpt.mixtures.natural_instructions',
        args=dict(folder=str(folder / 'ni'), k=0, partial=True),
    )
    config.data = dict(
        mixture='natural_instructions_train',
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
    config.exams = dict(natural_instructions_test=dict(split='test', at_start=True))
    # With the whole collection, 'grammar_error_correction' is a twelfth family of test tasks.
    config.held_out = dict(
        families=(
            'answerability_classification',
            'cause_effect_classification',
            'coreference',
            'dialogue_act_recognition',
            'keyword_tagging',
            'natural_language_inference',
            'overlap_extraction',
            'question_rewriting',
            'structure_to_text',
            'title_generation',
            'word_analogy',
        ),
        datasets=('e2e_nlg', 'gap', 'mnli', 'rte', 'scitail', 'sick', 'wsc'),
    )
    config.checkpoint = dict(every=400)
    return config
