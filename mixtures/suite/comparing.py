"""Comparing: the larger or the smaller of two values, or who has it."""

from mtpt.mixtures.suite.recipe import bind, recipes, variant
from mtpt.mixtures.suite.words import LETTERS, NAMES, THINGS

NUMBERS = range(1, 100)


def numbers(rng, n: int, best) -> dict:
    items = rng.sample(NUMBERS, n)
    words = [str(i) for i in items]
    return dict(items=' '.join(words), answer=str(best(items)), choices=words)


def letters(rng, best) -> dict:
    items = rng.sample(LETTERS, 2)
    return dict(first=items[0], last=items[1], answer=best(items), choices=items)


def holders(rng, keys, fact: str, best, span=NUMBERS) -> dict:
    """Two facts `fact.format(key, value)`; the answer is the key of the best value."""
    some_keys, values = rng.sample(keys, 2), rng.sample(span, 2)
    told = ' '.join(fact.format(k, v) for k, v in zip(some_keys, values))
    return dict(told=told, answer=some_keys[values.index(best(values))], choices=some_keys)


def of_numbers(name: str, n: int, best, word: str):
    return variant(
        name,
        'comparing',
        bind(numbers, n=n, best=best),
        train=2500,
        ask=f'Which number is {word}: {{items}}?',
        tell=f'{{items}}. Say the {word} number.',
        choose=f'List: {{items}}. What is the {word} number of the list?',
        new=f'{{items}}. Which of the list is {word}?',
    )


def of_holders(
    name: str, keys, fact: str, best, question: str, family: str = 'comparing', span=NUMBERS
):
    """`question` follows Who, Say who or Which, for example `is older`."""
    person = keys is NAMES
    return variant(
        name,
        family,
        bind(holders, keys=keys, fact=fact, best=best, span=span),
        train=3000,
        ask=f'{{told}} {"Who" if person else "What"} {question}?',
        tell=f'{{told}} Say {"who" if person else "which thing"} {question}.',
        choose=f'Read: {{told}} The {"name" if person else "thing"} that {question} is',
        new=f'Read: {{told}} Which {"name" if person else "thing"} {question}?',
    )


larger = of_numbers('larger', 2, max, 'larger')
smaller = of_numbers('smaller', 2, min, 'smaller')
largest = of_numbers('largest', 3, max, 'largest')
smallest = of_numbers('smallest', 3, min, 'smallest')
who_is_older = of_holders('who_is_older', NAMES, '{} is {} years old.', max, 'is older')
who_is_younger = of_holders('who_is_younger', NAMES, '{} is {} years old.', min, 'is younger')
costs_more = of_holders('costs_more', THINGS, 'The {} costs {}.', max, 'costs more')
costs_less = of_holders('costs_less', THINGS, 'The {} costs {}.', min, 'costs less')
has_more = of_holders('has_more', NAMES, '{} has {} books.', max, 'has more')
has_less = of_holders('has_less', NAMES, '{} has {} coins.', min, 'has less')

TASKS = recipes(globals())
