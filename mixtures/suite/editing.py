"""Editing: short lists turned, sorted, shortened and counted."""

from mtpt.mixtures.suite.recipe import SKILL, bind, recipes, variant
from mtpt.mixtures.suite.words import NOUNS

NUMBERS = [str(n) for n in range(1, 41)]


def edited(rng, n: int, words, change, wrong) -> dict:
    """A list of `n` words, what a change makes of it, and what other changes would."""
    items = rng.sample(words, n)
    choices = [' '.join(change(items)), *(' '.join(other(items)) for other in wrong)]
    answer = choices[0]
    choices = list(dict.fromkeys(choices))
    rng.shuffle(choices)
    return dict(items=' '.join(items), answer=answer, choices=choices)


def edit(name: str, draw, doing: str, what: str):
    """`doing` stands before the list, `what` after it: `Reverse`, `backwards`."""
    return variant(
        name,
        'editing',
        draw,
        train=SKILL,
        ask=f'{doing}: {{items}}.',
        tell=f'{{items}}. Say them {what}.',
        choose=f'List: {{items}}. Say the list {what}.',
        new=f'List: {{items}}. Say them {what}.',
    )


def same(items):
    return items


def turned(items):
    return items[::-1]


def ascending(items):
    return sorted(items, key=int)


def descending(items):
    return sorted(items, key=int, reverse=True)


def but_first(items):
    return items[1:]


def but_last(items):
    return items[:-1]


def but_middle(items):
    return [items[0], items[2]]


PAIR = dict(n=2, words=NOUNS)
THREE = dict(n=3, words=NOUNS)

repeat_pair = edit(
    'repeat_pair', bind(edited, **PAIR, change=same, wrong=[turned]), 'Repeat', 'again'
)
reverse_pair = edit(
    'reverse_pair', bind(edited, **PAIR, change=turned, wrong=[same]), 'Reverse', 'backwards'
)
drop_first = edit(
    'drop_first',
    bind(edited, **THREE, change=but_first, wrong=[but_last, but_middle]),
    'Remove the first',
    'without the first',
)
drop_last = edit(
    'drop_last',
    bind(edited, **THREE, change=but_last, wrong=[but_first, but_middle]),
    'Remove the last',
    'without the last',
)
sort_up = edit(
    'sort_up',
    bind(edited, n=2, words=NUMBERS, change=ascending, wrong=[descending]),
    'Sort from small to large',
    'from small to large',
)
sort_down = edit(
    'sort_down',
    bind(edited, n=2, words=NUMBERS, change=descending, wrong=[ascending]),
    'Sort from large to small',
    'from large to small',
)


def counted(rng) -> dict:
    n = rng.randrange(2, 6)
    items = ' '.join(rng.sample(NOUNS, n))
    return dict(items=items, answer=str(n), choices=['2', '3', '4', '5'])


count_words = variant(
    'count_words',
    'editing',
    counted,
    train=SKILL,
    ask='How many words are in: {items}?',
    tell='{items}. Say how many words.',
    choose='List: {items}. How many words has the list?',
    new='List: {items}. Say how many words.',
)

TASKS = recipes(globals())
