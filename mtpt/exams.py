"""The exams of a run: which sets are taken, what their scores mean, and where they go."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mtpt import prepare, task_ids
from mtpt.config import UserError
from mtpt.data.manifest import ExamEntry, ExamSet, Manifest
from mtpt.evaluate.run import evaluate, save
from mtpt.evaluate.table import summarise, table
from mtpt.files import Unwritten
from mtpt.log import table_console
from mtpt.model.config import ModelConfig
from mtpt.prepare import ExamPlan
from mtpt.settings import Run
from mtpt.vocabulary import Vocabulary

Rows = list[dict[str, Any]]


class Exams:
    """Takes the exams of a run: prints their tables and writes `eval/STEP-MIXTURE.json`.

    Inputs longer than those that the run trains on are trimmed to their length, and counted. With a
    `tag`, which says what was asked otherwise than the run does, files are `STEP-MIXTURE@TAG.json`.
    """

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        vocabulary: Vocabulary,
        model_cfg: ModelConfig,
        mesh: jax.sharding.Mesh,
        workdir: pathlib.Path,
        whole: bool = True,
        tag: str = '',
    ):
        self.run, self.manifest, self.vocabulary = run, manifest, vocabulary
        self.model_cfg, self.mesh, self.workdir, self.whole = model_cfg, mesh, workdir, whole
        self.tag = tag
        self.about: dict[str, Any] = {}  # what more is told of the model in the files of scores
        self.alive: Callable[..., None] = lambda *what, **how: None  # told of every batch
        self.console = table_console()

    def when_due(self, step: int, params: Any) -> dict[str, float]:
        """For the training loop: the mixtures whose plan says so, and their averages as metrics.

        What is taken elsewhere is left out.
        """
        if step == self.run.train.steps:  # the end of the run takes them all
            return {}
        due = [n for n, p in self.run.exams.items() if p.every and step % p.every == 0]
        return averages(self.take(step, params, here(self.run.exams, due)))

    def take(self, step: int, params: Any, mixtures: Sequence[str]) -> dict[str, Rows]:
        return {mixture: self._take(step, params, mixture) for mixture in mixtures}

    def place(self, step: int, mixture: str) -> pathlib.Path:
        """Where the rows of an exam are written."""
        return place_of(self.workdir, step, mixture, self.tag)

    def _take(self, step, params, mixture):
        plan = self.run.exams[mixture]
        exams, trimmed = self._trimmed(self._sets(mixture, plan))
        cfg = dataclasses.replace(
            self.run.evaluate,
            max_examples=self.run.evaluate.max_examples or plan.max_examples,
            seconds=self.run.evaluate.seconds or plan.seconds,
            max_target_length=min(
                self.run.evaluate.max_target_length, self.run.data.targets_length
            ),
        )
        with jax.set_mesh(self.mesh):
            ids = task_ids.of_exams(self.manifest, self.run.exams)
            self.alive(f'exam {mixture}', slow=True)
            rows = evaluate(
                self.model_cfg, params, exams, self.vocabulary, cfg, task_ids=ids,
                # A batch may be the first of its shape, which compiles.
                progress=lambda done, of: self.alive(f'exam {mixture}, {done} of {of}', slow=True),
            )  # fmt: skip
        if jax.process_index() == 0:
            meta = dict(step=step, mixture=mixture, split=plan.split)
            meta |= dict(normalisation=cfg.normalisation, seed=self.run.train.seed)
            meta |= dict(max_examples=cfg.max_examples, seconds=cfg.seconds, trimmed=trimmed)
            meta |= self.about
            try:
                save(self.place(step, mixture), rows, summarise(rows), meta)
            except Unwritten as error:
                if self.whole:  # asked for by itself, and not on the way of training
                    raise
                print(f'WARNING: {error}', file=sys.stderr)
            cut = f', {trimmed} inputs trimmed' if trimmed else ''
            self._show(f'{mixture} ({plan.split} split), step {step}{cut}', rows)
        return rows

    def _show(self, title: str, rows: Rows) -> None:
        """All rows if `whole`, else their averages."""
        out = table(rows, prompts=self.whole, tasks=self.whole)
        out.title = title
        self.console.print(out)

    def _sets(self, mixture: str, plan: ExamPlan) -> list[ExamSet]:
        entries = prepare.exam_entries(self.manifest, mixture, plan.split)
        usable = [e for e in entries if not e.reason]
        if not usable:
            raise UserError(
                f'nothing to evaluate on: {mixture!r} has no evaluation set of split {plan.split!r}'
            )
        kinds = {e.name: kind_of(self.manifest, e) for e in usable}
        sets = self.manifest.exam_sets(plan.split, list(kinds), plan.max_examples or None)
        return [dataclasses.replace(s, kind=kinds[s.name]) for s in sets]

    def _trimmed(self, sets: list[ExamSet]) -> tuple[list[ExamSet], int]:
        longest, end = self.run.data.inputs_length, [self.vocabulary.eos]
        end = end if self.manifest.inputs_eos else []
        mode = self.run.data.mode_token
        front = [self.vocabulary.modes[mode]] if mode else []
        longest -= len(front)
        count, out = 0, []
        for exam in sets:
            examples = []
            for example in exam.examples:
                if len(example['inputs']) > longest:
                    inputs = [*example['inputs'][: longest - len(end)], *end]
                    example, count = {**example, 'inputs': inputs}, count + 1
                examples.append({**example, 'inputs': [*front, *example['inputs']]})
            out.append(dataclasses.replace(exam, examples=tuple(examples)))
        return out, count


def kind_of(manifest: Manifest, entry: ExamEntry) -> str:
    """What a score means: 'new tasks' share neither family nor data set with training."""
    trained = [t for t in manifest.tasks if t.status == 'ok' and t.rate > 0]
    if {entry.task, entry.name} & {t.name for t in trained}:
        return 'new wordings' if entry.held_out_prompt else 'trained'
    if entry.family in {t.family for t in trained}:
        return 'trained family'
    return 'trained data' if entry.dataset in {t.dataset for t in trained} else 'new tasks'


def here(plans: Mapping[str, ExamPlan], names: Sequence[str]) -> list[str]:
    """Those of the exams that the trainer takes itself."""
    return [name for name in names if not plans[name].elsewhere]


def averages(rows: Mapping[str, Rows]) -> dict[str, float]:
    """The macro average of each mixture and metric, as 'eval/MIXTURE/METRIC'.

    Those of an exam that was cut for want of time are 'eval_cut/...': how many examples they are
    of differs from step to step, and nothing that compares steps may take them for the others.
    """
    found: dict[str, float] = {}
    for mixture, taken in rows.items():
        found |= averages_of(mixture, summarise(taken))
    return found


def averages_of(mixture: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """As `averages` has them, from the summary of one mixture."""
    return {
        f'{"eval_cut" if macro.get("cut") else "eval"}/{mixture}/{macro["metric"]}': macro['value']
        for macro in summary['macro']
        if macro['over'] == 'all'
    }


def place_of(workdir: pathlib.Path, step: int, mixture: str, tag: str = '') -> pathlib.Path:
    """Where the rows of an exam are written."""
    return workdir / 'eval' / f'{step:08d}-{mixture}{"@" if tag else ""}{tag}.json'
