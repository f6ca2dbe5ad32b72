"""Metric functions for SeqIO's own Evaluator, carried by the Tasks of single prompts.

Our evaluation (mtpt.evaluate) has its own metrics and intervals; these let whoever evaluates with
SeqIO see the same numbers. A target is the list of its references.
"""

from collections.abc import Callable, Sequence

from mtpt import comparing

References = Sequence[Sequence[str]]


def _best(
    compare: Callable[[str, str], float], targets: References, predictions: Sequence[str]
) -> float:
    """Mean over examples of the score beside the reference that suits best."""
    best = [max(compare(said, r) for r in refs) for refs, said in zip(targets, predictions)]
    return sum(best) / max(len(best), 1)


def accuracy(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that are the first reference, letter by letter."""
    first = [references[:1] for references in targets]
    return {'accuracy': _best(comparing.same, first, predictions)}


def exact_match(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that are one of the references but for case and punctuation."""
    return {'exact_match': _best(comparing.exact_match, targets, predictions)}


def squad_exact_match(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that are one of the references in SQuAD's form."""
    return {'squad_exact_match': _best(comparing.squad_exact_match, targets, predictions)}


def token_f1(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of the words of a prediction in SQuAD's form beside its best reference."""
    return {'token_f1': _best(comparing.token_f1, targets, predictions)}


METRIC_FNS = dict(
    accuracy=accuracy,
    exact_match=exact_match,
    squad_exact_match=squad_exact_match,
    token_f1=token_f1,
)
