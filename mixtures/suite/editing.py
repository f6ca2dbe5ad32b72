"""Editing: short lists turned, sorted, shortened and changed."""

from mtpt.mixtures.suite.recipe import bind, recipe, recipes, variant
from mtpt.mixtures.suite.words import ANIMALS, COLORS, NOUNS


def turned(rng, words, change) -> dict:
    """A pair and what a change makes of it; the choices are both orders."""
    a, b = rng.sample(words, 2)
    answer = change(a, b)
    choices = [f'{a} {b}', f'{b} {a}']
    rng.shuffle(choices)
    return dict(items=f'{a} {b}', answer=answer, choices=choices)


def edit(name: str, words, change, doing: str, what: str, new: bool = True):
    return variant(
        name,
        'editing',
        bind(turned, words=words, change=change),
        train=2500,
        ask=f'{doing} {{items}}.',
        tell=f'{{items}}. Say them {what}.',
        choose=f'List: {{items}}. The list {what} is',
        new=f'List: {{items}}. Say the list {what}.' if new else None,
    )


repeat_pair = edit('repeat_pair', NOUNS, lambda a, b: f'{a} {b}', 'Repeat', 'again')
reverse_pair = edit('reverse_pair', NOUNS, lambda a, b: f'{b} {a}', 'Reverse', 'backwards')
sort_numbers = edit(
    'sort_numbers',
    [str(n) for n in range(100)],
    lambda a, b: ' '.join(sorted([a, b], key=int)),
    'Sort',
    'from small to large',
)


@recipe(
    'editing',
    ask='Remove {out} from: {items}.',
    tell='{items}. Say them without {out}.',
    choose='List: {items}. The list without {out} is',
    new='List: {items}. Say the list without {out}.',
    train=3000,
)
def remove(rng):
    pair = rng.sample(NOUNS, 2)
    out, answer = rng.sample(pair, 2)
    return dict(items=' '.join(pair), out=out, answer=answer, choices=pair)


@recipe(
    'editing',
    ask='Replace {out} by {put} in: {items}.',
    tell='{items}. Say them with {put} for {out}.',
    choose='List: {items}. The list with {put} for {out} is',
    new='List: {items}. Say the list with {put} for {out}.',
    train=3000,
)
def replace(rng):
    pair = rng.sample(ANIMALS, 2)
    put = rng.choice(COLORS)
    place = rng.randrange(2)
    edited = [*pair]
    edited[place] = put
    other = [*pair]
    other[1 - place] = put
    choices = rng.sample([' '.join(edited), ' '.join(other)], 2)
    return dict(
        items=' '.join(pair), out=pair[place], put=put, answer=' '.join(edited), choices=choices
    )


@recipe(
    'editing',
    ask='How many words are in: {items}?',
    tell='{items}. Say how many words.',
    choose='List: {items}. The number of words in the list is',
    new='{items}. How many words are in the list?',
    train=2000,
)
def count_words(rng):
    n = rng.randrange(1, 5)
    return dict(items=' '.join(rng.sample(NOUNS, n)), answer=str(n), choices=['1', '2', '3', '4'])


TASKS = recipes(globals())
