"""A run: what its config says, and training, evaluating and generating with it.

The Python door of the command line, for notebooks and other programs:

    settings = read('quickstart', 'train.steps=500')
    train(settings, 'runs/small')
    rows = evaluate('runs/small', 'builtin_new_tasks', split='test')
"""

import dataclasses
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from mtpt import flags, hosts, prepare, record, stages, task_ids
from mtpt.config import UserError, choose
from mtpt.config import read as read_config
from mtpt.data.cache import IN_THIS_PROCESS
from mtpt.data.manifest import Manifest
from mtpt.data.runners import RunnerConfig
from mtpt.evaluate.generate import GREEDY, Decoding
from mtpt.evaluate.generate import answers as write_answers
from mtpt.evaluate.heads import told as told_by_heads
from mtpt.exams import Exams
from mtpt.opened import opened, restored
from mtpt.prepare import ExamPlan
from mtpt.settings import Run, overridden


def read(config: str | Mapping[str, Any] | Run, *overrides: str) -> Run:
    """Reads a config by name, by path, or from a mapping; overrides are 'section.key=value'.

    Raises:
      UserError: an unknown config, key or type; the message has the nearest right ones.
    """
    if not isinstance(config, str):
        return read_config(Run, config)
    return flags.load(config, [f'--config.{o}' for o in overrides])


def train(run: Run, workdir: str | pathlib.Path, debug: bool = False) -> list[dict[str, Any]]:
    """Trains as `run` says in a folder, or goes on where that was left; returns the last scores.

    debug: on one device, step by step, to the first update that is not finite.

    Raises:
      FloatingPointError: with `debug`, there.
      UserError: whatever is wrong with the config, the data or the folder, in a sentence.
    """
    from mtpt import training

    return training.train(run, workdir, debug)


def evaluate(
    workdir: str | pathlib.Path,
    mixture: str,
    *,
    step: int | None = None,
    split: str | None = None,
    overrides: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Scores a run's checkpoint on a mixture or a task; prints the table and writes it to `eval/`.

    Args:
      workdir: the folder of a run.
      mixture: a registered name; its evaluation sets are cached if they are not yet.
      step: a checkpoint's step; the last one by default.
      split: by default what the run's config says for this mixture, else 'validation'.
      overrides: 'key=value' for fields of `EvaluateConfig`, such as 'normalisation=mean'.
    """
    workdir = pathlib.Path(workdir)
    run, manifest, tag = asked(workdir, mixture, split, list(overrides))
    vocabulary, model_cfg, mesh, params, step = restored(run, workdir, step, manifest)
    exams = Exams(run, manifest, vocabulary, model_cfg, mesh, workdir, tag=tag)
    return exams.take(step, params, [mixture])[mixture]


class Asked(NamedTuple):
    """A run with one exam, as it is asked for; `tag` says what differs from the run's own plan."""

    run: Run
    manifest: Manifest
    tag: str


def asked(
    workdir: pathlib.Path, mixture: str, split: str | None, overrides: Sequence[str]
) -> Asked:
    """A run with the exam that is asked for and its sets, as `evaluate` has them."""
    run = stages.ended(record.run_of(workdir))
    plan, tag = plan_of(run, mixture, split, overrides)
    changed = overridden(run.evaluate, overrides)
    manifest = _with_exams(run, workdir, mixture, plan)
    return Asked(dataclasses.replace(run, evaluate=changed, exams={mixture: plan}), manifest, tag)


def plan_of(
    run: Run, mixture: str, split: str | None, overrides: Sequence[str]
) -> tuple[ExamPlan, str]:
    """How a mixture is examined, and what of that the run does not plan."""
    plan = run.exams.get(mixture, ExamPlan())
    tag = ','.join([*([split] if split and split != plan.split else []), *sorted(overrides)])
    return dataclasses.replace(plan, split=split or plan.split), tag


def generate(
    workdir: str | pathlib.Path,
    texts: Sequence[str],
    *,
    step: int | None = None,
    max_length: int = 0,
    how: Decoding = GREEDY,
    choices: Sequence[str] | None = None,
    task: str | None = None,
) -> list[str]:
    """Answers texts, `how.number` times each; `<extra_id_0>` and `[NLU]` stand for their tokens.

    Args:
      workdir: the folder of a run.
      texts: inputs; the answers to the first come first.
      step: a checkpoint's step; the last one by default.
      max_length: the most tokens of an answer, up to the run's `evaluate.batch_tokens`; its
        `targets_length` by default.
      how: the likeliest token each time by default, or drawn, or searched for.
      choices: the only answers allowed; by default the likeliest is found.
      task: what task of the run the texts are of, for a model that routes by task.

    Raises:
      UserError: nothing to answer, a text that is too long, settings that do not go together.
    """
    if choices is not None and not (choices and all(choice.strip() for choice in choices)):
        raise UserError('a choice is empty; give answers such as choices=yes,no, no comma too many')
    choices = list(dict.fromkeys(choices or ()))
    how.check(len(choices))
    if max_length < 0:
        raise UserError(f'max_length={max_length} must be at least 1 token')
    if choices and max_length:
        raise UserError(
            'max_length bounds free answers, and choices have a length of their own; leave one out'
        )
    if not texts or not all(text.strip() for text in texts):
        raise UserError('there is nothing to complete: give --input=TEXT or lines of text')
    model = opened(workdir, step)
    longest = model.run.evaluate.batch_tokens
    if max_length > longest:
        raise UserError(f'max_length={max_length} must be at most {longest} tokens, one batch')
    inputs = [model.inputs(text) for text in texts]
    options = [model.targets(choice) for choice in choices]
    task_ids.check_asked(model.cfg, task)
    number = task_ids.id_of(model.tasks, task) if task else 0
    with jax.set_mesh(model.mesh):
        found = write_answers(
            model.cfg,
            model.params,
            inputs,
            max_length or model.run.data.targets_length,
            model.run.evaluate.batch_tokens,
            model.vocabulary.eos,
            how,
            [options] * len(inputs) if options else None,
            tasks=[number] * len(inputs),
        )
    said = dict(zip(map(tuple, options), choices))
    return [
        said[tuple(answer.ids)] if said else model.vocabulary.decode(answer.ids)
        for answers in found
        for answer in answers
    ]


def embed(
    workdir: str | pathlib.Path,
    texts: Sequence[str],
    *,
    head: str = '',
    step: int | None = None,
    task: str | None = None,
) -> np.ndarray:
    """Embeddings of length 1 [texts, D], from a contrastive head of a run.

    Args:
      workdir: the folder of a run.
      texts: inputs, as the run was trained on them.
      head: the name of a contrastive head; the only one by default.
      step: a checkpoint's step; the last one by default.
      task: what task of the run the texts are of, for a model that routes by task.

    Raises:
      UserError: no such head, a text that is too long.
    """
    model = opened(workdir, step)
    known = [own.name for own in model.cfg.heads if own.kind == 'contrastive']
    if not known or (not head and len(known) > 1):
        raise UserError(
            f'the run in {workdir} has {len(known)} contrastive heads'
            + (f'; name one of {", ".join(known)}' if known else ', and texts are embedded by one')
        )
    head = choose('contrastive head', head or known[0], {name: name for name in known})
    task_ids.check_asked(model.cfg, task)
    number = task_ids.id_of(model.tasks, task) if task else 0
    inputs = [model.inputs(text) for text in texts]
    with jax.set_mesh(model.mesh):
        found = told_by_heads(
            model.cfg,
            model.params,
            inputs,
            model.run.evaluate.batch_tokens,
            tasks=[number] * len(inputs),
        )
    return np.stack([told[head] for told in found])


def build_cache(
    run: Run, mixture: str, out: str, runner: RunnerConfig = IN_THIS_PROCESS
) -> Manifest:
    """Writes the shards and evaluation sets of a mixture, for runs that name it in `data.cache`.

    `out` is a folder here or in a cloud; `runner` says who does the work.
    """
    data = dataclasses.replace(run.data, mixture=mixture)
    started = time.perf_counter()
    manifest = prepare.build(data, run.tasks, run.held_out, run.exams, out, runner=runner)
    tokens = sum(s.tokens for t in manifest.tasks for s in t.splits.values())
    examples = sum(s.examples for t in manifest.tasks for s in t.splits.values())
    print(
        f'{out}: {len(manifest.tasks)} tasks, {examples:,} examples, {tokens:,} tokens, '
        f'{len(manifest.exams)} evaluation sets in {time.perf_counter() - started:.0f} s'
    )
    for entry in manifest.skipped:
        print(f'skipped {entry.name}: {entry.reason}')
    return manifest


def _with_exams(run: Run, workdir: pathlib.Path, mixture: str, plan: ExamPlan) -> Manifest:
    """The run's manifest, with the evaluation sets of a mixture added where they are missing.

    Of several processes the first adds them.
    """
    folder = prepare.cache_of(run.data, workdir)
    add = partial(prepare.add_exams, run.data, run.tasks, {mixture: plan}, folder)
    hosts.first('exams', add)
    return add().of(stages.parts(run))
