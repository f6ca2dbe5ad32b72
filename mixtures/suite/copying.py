"""Copying: one item of a short list, by its place."""

from mtpt.mixtures.suite.recipe import SKILL, bind, recipes, variant
from mtpt.mixtures.suite.words import NAMES, NOUNS

PLACE_OF = {'first': 0, 'middle': 1, 'last': 2}


def place(rng, which: str, words) -> dict:
    items = rng.sample(words, 3)
    answer = items[PLACE_OF[which]]
    return dict(items=' '.join(items), answer=answer, choices=rng.sample(items, 3))


def task(which: str, what: str, words):
    return variant(
        f'{which}_{what}',
        'copying',
        bind(place, which=which, words=words),
        train=SKILL,
        ask=f'What is the {which} {what} of: {{items}}?',
        tell=f'{{items}}. Say the {which} {what}.',
        choose=f'List: {{items}}. Which {what} is {which}?',
        new=f'Say the {which} {what} of: {{items}}.',
    )


first_word = task('first', 'word', NOUNS)
last_word = task('last', 'word', NOUNS)
middle_word = task('middle', 'word', NOUNS)
first_name = task('first', 'name', NAMES)
last_name = task('last', 'name', NAMES)
first_number = task('first', 'number', [str(n) for n in range(100)])
last_number = task('last', 'number', [str(n) for n in range(100)])

TASKS = recipes(globals())
