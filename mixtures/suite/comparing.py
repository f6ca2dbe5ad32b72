"""Comparing: the larger or the smaller of some numbers, in lists and in sentences."""

from mtpt.mixtures.suite.recipe import SKILL, bind, recipes, variant
from mtpt.mixtures.suite.words import NAMES, THINGS

SPAN = range(1, 41)
YEARS, COSTS, WEIGHS = '{} is {} years old', 'the {} costs {} coins', 'the {} has {} grams'


def listed(rng, n: int, best) -> dict:
    items = rng.sample(SPAN, n)
    words = [str(i) for i in items]
    return dict(items=' '.join(words), answer=str(best(items)), choices=words)


def said(rng, keys, fact: str, best, value: bool = True) -> dict:
    """Two facts `fact.format(key, number)`; the answer is the best number, or its key."""
    some_keys, numbers = rng.sample(keys, 2), rng.sample(SPAN, 2)
    told = ' and '.join(fact.format(k, n) for k, n in zip(some_keys, numbers))
    answers = [str(n) for n in numbers] if value else some_keys
    return dict(
        items=told, answer=answers[numbers.index(best(numbers))], choices=rng.sample(answers, 2)
    )


def compare(name: str, draw, what: str, family: str = 'comparing'):
    """`what` is asked for: `the larger number`."""
    return variant(
        name,
        family,
        draw,
        train=SKILL,
        ask=f'What is {what}: {{items}}?',
        tell=f'{{items}}. Say {what}.',
        choose=f'Read: {{items}}. Now say {what}.',
        new=f'{{items}}. What is {what}?',
    )


def sentence(name: str, fact: str, best, what: str, family: str = 'comparing', keys=NAMES):
    return compare(name, bind(said, keys=keys, fact=fact, best=best), what, family)


larger = compare('larger', bind(listed, n=2, best=max), 'the larger number')
smaller = compare('smaller', bind(listed, n=2, best=min), 'the smaller number')
largest = compare('largest', bind(listed, n=3, best=max), 'the largest number')
smallest = compare('smallest', bind(listed, n=3, best=min), 'the smallest number')
older_age = sentence('older_age', YEARS, max, 'the higher age')
younger_age = sentence('younger_age', YEARS, min, 'the lower age')
higher_price = sentence('higher_price', COSTS, max, 'the higher price', keys=THINGS)
lower_price = sentence('lower_price', COSTS, min, 'the lower price', keys=THINGS)
larger_weight = sentence('larger_weight', WEIGHS, max, 'the larger weight', keys=THINGS)
smaller_weight = sentence('smaller_weight', WEIGHS, min, 'the smaller weight', keys=THINGS)
who_is_older = compare(
    'who_is_older', bind(said, keys=NAMES, fact=YEARS, best=max, value=False), 'who is older'
)

TASKS = recipes(globals())
