"""Logic: if and else, negation, and, or, and what follows from a rule."""

from mtpt.mixtures.suite.recipe import SKILL, bind, recipe, recipes, variant
from mtpt.mixtures.suite.words import ANIMALS, COLORS, KINDS, NAMES, OPPOSITES, THINGS, plural

SAID = ANIMALS + COLORS + KINDS['fruit']


def if_else(rng, what: str, states, words) -> dict:
    """What to say if something is in the first of two states, and what if in the other."""
    yes, no = rng.sample(words, 2)
    state = rng.choice(states)
    return dict(
        told=f'the {what} of {rng.choice(NAMES)} is {state}',
        yes=yes,
        no=no,
        answer=yes if state == states[0] else no,
        choices=[yes, no],
    )


def condition(name: str, what: str, states, words=SAID, family: str = 'logic'):
    return variant(
        name,
        family,
        bind(if_else, what=what, states=states, words=words),
        train=SKILL,
        ask=f'If {states[0]} say {{yes}}, else say {{no}}: {{told}}.',
        tell=f'Now {{told}}. Say {{yes}} if {states[0]}, else say {{no}}.',
        choose=f'Read: {{told}}. If it is {states[0]} say {{yes}}, else say {{no}}.',
        new=f'Now {{told}}. If it is {states[0]} say {{yes}}, else say {{no}}.',
    )


if_open = condition('if_open', 'door', ('open', 'closed'))
if_hot = condition('if_hot', 'soup', ('hot', 'cold'))
if_full = condition('if_full', 'glass', ('full', 'empty'))
if_clean = condition('if_clean', 'coat', ('clean', 'dirty'))


@recipe(
    'logic',
    ask='It is not true that the {thing} of {name} is {said}. What is it?',
    tell='The {thing} of {name} is not {said}. Say what it is.',
    choose='{name} says that the {thing} is not {said}. So it is',
    new='It is not true that the {thing} of {name} is {said}. So it is',
)
def not_so(rng):
    said = rng.choice(sorted(OPPOSITES))
    return dict(
        thing=rng.choice(THINGS),
        name=rng.choice(NAMES),
        said=said,
        answer=OPPOSITES[said],
        choices=sorted([said, OPPOSITES[said]]),
    )


def truths(rng, rule) -> dict:
    left, right = rng.sample(NAMES + ANIMALS, 2)
    answer = rng.random() < 0.5
    pairs = [(a, b) for a in (True, False) for b in (True, False) if rule([a, b]) == answer]
    a, b = rng.choice(pairs)
    words = {True: 'true', False: 'false'}
    return dict(
        left=left,
        right=right,
        a=words[a],
        b=words[b],
        answer=words[answer],
        choices=['true', 'false'],
    )


def both(name: str, rule, word: str):
    return variant(
        name,
        'logic',
        bind(truths, rule=rule),
        ask=f'{{left}} is {{a}}. {{right}} is {{b}}. Is {{left}} {word} {{right}} true or false?',
        tell=f'Now {{left}} is {{a}} and {{right}} {{b}}. Say what {{left}} {word} {{right}} is.',
        choose=f'With {{left}} {{a}} and {{right}} {{b}}, say what {{left}} {word} {{right}} is.',
    )


both_true = both('both_true', all, 'and')
any_true = both('any_true', any, 'or')


@recipe(
    'logic',
    ask='All {things} are {color}. {name} has {what}. What color is it?',
    tell='{name} has {what}. All {things} are {color}. Say the color of it.',
    choose='All {things} are {color}. {name} has {what}. The color of it is',
)
def all_are(rng):
    thing = rng.choice(ANIMALS)
    color, other = rng.sample(COLORS, 2)
    return dict(
        things=plural(thing),
        color=color,
        name=rng.choice(NAMES),
        what=f'a {thing}',
        answer=color,
        choices=rng.sample([color, other], 2),
    )


TASKS = recipes(globals())
