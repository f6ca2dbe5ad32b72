"""Experts chosen by task against a dense model of equal FLOPs, on Super-NaturalInstructions.

MTPT_DATA=DIR mtpt sweep --config=task_experts --over=model.moe.E=0,8 --seeds=3

The model of `natural_instructions` with 8 experts in every second layer. A router over the task's
representation, learnt from its id and its prompt, picks one expert a layer for the whole task, so
that a token costs what it costs in the dense model (E=0); a task never seen is routed by its
prompt. DIR is the data folder of `natural_instructions`.

Hardware: 2 CPU cores. What it reached stands in docs/real_data.md.
"""

from ml_collections import ConfigDict

from mtpt.configs import natural_instructions


def get_config() -> ConfigDict:
    config = natural_instructions.get_config()
    config.model.moe = dict(
        E=8,
        encoder=2,
        decoder=2,
        encoder_router='task',
        decoder_router='task',
        task_from='both',
        task_choice='gumbel',
    )
    config.data.batch_size = 8
    config.train.steps = 400
    config.exams = dict(natural_instructions_test=dict(split='test', max_examples=25))
    return config
