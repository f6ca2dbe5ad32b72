"""Metrics: what an answer is worth beside its references, all between 0 and 1.

A metric is a pair: `measure` turns N answers into N rows of statistics, `reduce` turns the sum of
the rows into a score. A mean of per-example scores needs one column; a corpus metric such as BLEU
needs its counts. Any choice of examples (a resample, a majority label, chance) is then a sum of
rows, and nothing is measured twice.

N answers
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mtpt.comparing import exact_match, same, squad_exact_match, token_f1
from mtpt.config import choose

Texts = Sequence[str]
References = Sequence[Sequence[str]]


class Metric(NamedTuple):
    measure: Callable[[Texts, References], np.ndarray]
    reduce: Callable[[np.ndarray, int], float]


def score(name: str, predictions: Texts, references: References) -> float:
    """The value of the metric `name` for a list of answers, each with one or more references.

    Raises:
      UserError: no metric of this name.
    """
    metric = choose('metric', name, METRICS)
    return metric.reduce(metric.measure(predictions, references).sum(0), len(predictions))


def rouge(kind: str, prediction: str, reference: str) -> float:
    """F1 of ROUGE with Porter's stemmer, as Super-NaturalInstructions takes it."""
    return _rouge(prediction, reference)[kind].fmeasure


@functools.lru_cache(maxsize=1 << 16)
def _rouge(prediction: str, reference: str):
    return _rouge_scorer().score(target=reference, prediction=prediction)


@functools.cache
def _rouge_scorer():
    from rouge_score import rouge_scorer  # brings in NLTK, which takes its time

    return rouge_scorer.RougeScorer(['rouge1', 'rouge2', 'rougeL'], use_stemmer=True)


def best(compare: Callable[[str, str], float]) -> Metric:
    """The mean over answers of the score against the reference that fits best."""

    def measure(predictions: Texts, references: References) -> np.ndarray:
        rows = [
            max(compare(p, r) for r in rs) for p, rs in zip(predictions, references, strict=True)
        ]
        return np.array(rows, np.float64).reshape(-1, 1)

    return Metric(measure, lambda total, count: float(total[0] / count))


def _bleu_counts(predictions: Texts, references: References) -> np.ndarray:
    """What corpus BLEU sums: lengths of answer and nearest reference, n-grams shared and said."""
    import sacrebleu

    rows = []
    for prediction, wanted in zip(predictions, references, strict=True):
        b = sacrebleu.sentence_bleu(prediction, list(wanted), smooth_method='none')
        rows.append([b.sys_len, b.ref_len, *b.counts, *b.totals])
    return np.array(rows, np.float64).reshape(len(rows), 10)


def _bleu(total: np.ndarray, count: int) -> float:
    """Corpus BLEU-4 as sacrebleu takes it, of summed counts."""
    from sacrebleu.metrics import BLEU

    sums = [round(x) for x in total]
    lengths, shared, said = sums[:2], sums[2:6], sums[6:]
    return float(BLEU.compute_bleu(shared, said, *lengths, smooth_method='exp').score) / 100


METRICS = dict(
    accuracy=best(same),
    exact_match=best(exact_match),
    squad_exact_match=best(squad_exact_match),
    token_f1=best(token_f1),
    rouge1=best(functools.partial(rouge, 'rouge1')),
    rouge2=best(functools.partial(rouge, 'rouge2')),
    rougeL=best(functools.partial(rouge, 'rougeL')),
    bleu=Metric(_bleu_counts, _bleu),
)
