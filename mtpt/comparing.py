"""How an answer is compared with one reference: 1 where they agree, 0 where they do not.

Two forms are in use. Super-NaturalInstructions' evaluation (`exact_match`) puts texts in lower case
without punctuation and with single spaces; SQuAD's (`squad_exact_match`, `token_f1`) drops the
articles too, which would make every answer `a` or `the` an empty one.
"""

import collections
import re
import string

_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


def folded(text: str) -> str:
    """Lower case, no punctuation, single spaces (Super-NaturalInstructions, 2204.07705)."""
    return ' '.join(text.lower().translate(_NO_PUNCTUATION).split())


def without_articles(text: str) -> str:
    """SQuAD's form (1606.05250): folded, and without `a`, `an` and `the`."""
    return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', folded(text)).split())


def same(prediction: str, reference: str) -> float:
    """1 where the texts agree but for space around them."""
    return float(prediction.strip() == reference.strip())


def exact_match(prediction: str, reference: str) -> float:
    """1 where the folded texts agree; texts of punctuation alone must agree as they stand."""
    said, wanted = folded(prediction), folded(reference)
    return float(said == wanted) if said or wanted else same(prediction, reference)


def squad_exact_match(prediction: str, reference: str) -> float:
    """1 where the texts agree in SQuAD's form."""
    return float(without_articles(prediction) == without_articles(reference))


def token_f1(prediction: str, reference: str) -> float:
    """SQuAD's F1 over the bags of words; two empty answers agree."""
    said, wanted = without_articles(prediction).split(), without_articles(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((collections.Counter(said) & collections.Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
