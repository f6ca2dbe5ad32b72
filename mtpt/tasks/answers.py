"""Metric functions for SeqIO's own Evaluator, carried by the Tasks of single prompts.

Our evaluation (mtpt.evaluate) has its own metrics and intervals; these let whoever evaluates with
SeqIO see numbers too. A target is the list of its references.
"""

import collections
from collections.abc import Callable, Sequence

References = Sequence[Sequence[str]]


def _best(
    score: Callable[[str, str], float], targets: References, predictions: Sequence[str]
) -> float:
    """Mean over examples of the score beside the reference that suits best."""
    pairs = list(zip(targets, predictions))
    best = [
        max(score(reference.strip(), said.strip()) for reference in refs) for refs, said in pairs
    ]
    return sum(best) / max(len(best), 1)


def accuracy(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that are the first reference, letter by letter."""
    first = [references[:1] for references in targets]
    return {'accuracy': _best(lambda a, b: float(a == b), first, predictions)}


def exact_match(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that are one of the references, letter by letter."""
    return {'exact_match': _best(lambda a, b: float(a == b), targets, predictions)}


def token_f1(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of the words of a prediction, split at white space, beside its best reference."""

    def f1(reference, said):
        reference, said = reference.split(), said.split()
        shared = sum((collections.Counter(reference) & collections.Counter(said)).values())
        return 2 * shared / max(len(reference) + len(said), 1)

    return {'token_f1': _best(f1, targets, predictions)}


METRIC_FNS = dict(accuracy=accuracy, exact_match=exact_match, token_f1=token_f1)
