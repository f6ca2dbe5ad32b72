"""Logic: if and else, negation, and, or, and what follows from a rule."""

from mtpt.mixtures.suite.recipe import bind, recipe, recipes, variant
from mtpt.mixtures.suite.words import ANIMALS, COLORS, NAMES, OPPOSITES, PLACES, THINGS, plural


@recipe(
    'logic',
    ask='If the {thing} is {color} say {yes}, else say {no}. The {thing} is {seen}.',
    tell='The {thing} is {seen}. Say {yes} if it is {color}, else {no}.',
    choose='The {thing} is {seen}. If {color} then {yes}, else {no}.',
    new='The {thing} is {seen}. If it is {color} say {yes}, else say {no}.',
    train=3000,
)
def if_color(rng):
    color, other = rng.sample(COLORS, 2)
    yes, no = rng.sample(ANIMALS, 2)
    holds = rng.random() < 0.5
    return dict(
        thing=rng.choice(THINGS),
        color=color,
        seen=color if holds else other,
        yes=yes,
        no=no,
        answer=yes if holds else no,
        choices=[yes, no],
    )


@recipe(
    'logic',
    ask='Are {first} and {last} the same word? Say {yes} if so, else {no}.',
    tell='If {first} and {last} are the same say {yes}, else say {no}.',
    choose='Say {yes} if {first} is the same as {last}, else {no}.',
    train=3000,
)
def if_same(rng):
    first, other = rng.sample(COLORS + PLACES, 2)
    yes, no = rng.sample(ANIMALS, 2)
    same = rng.random() < 0.5
    return dict(
        first=first,
        last=first if same else other,
        yes=yes,
        no=no,
        answer=yes if same else no,
        choices=[yes, no],
    )


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
    left, right = rng.sample(NAMES, 2)
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
        tell=f'{{left}} is {{a}} and {{right}} is {{b}}. Say true or false: {{left}} {word} {{right}}.',
        choose=f'With {{left}} {{a}} and {{right}} {{b}}, the value of {{left}} {word} {{right}} is',
    )


both_true = both('both_true', all, 'and')
any_true = both('any_true', any, 'or')


@recipe(
    'logic',
    ask='All {things} are {color}. {name} has {what}. What color is it?',
    tell='{name} has {what}. All {things} are {color}. Say the color of it.',
    choose='All {things} are {color}. {name} has {what}. The color of it is',
    train=1000,
)
def all_are(rng):
    thing = rng.choice([t for t in ANIMALS if t not in ('sheep', 'wolf', 'mouse')])
    color, other = rng.sample(COLORS, 2)
    return dict(
        things=plural(thing),
        color=color,
        name=rng.choice(NAMES),
        what=f'a {thing}',
        answer=color,
        choices=rng.sample([color, other], 2),
    )


@recipe(
    'logic',
    ask='{name} has the {a} or the {b}, but not the {missing}. What does {name} have?',
    tell='{name} has the {a} or the {b}, but not the {missing}. Say what {name} has.',
    choose='Of the {a} and the {b} {name} has not the {missing}. So {name} has the',
    train=3000,
)
def one_of_two(rng):
    pair = rng.sample(THINGS, 2)
    answer, missing = rng.sample(pair, 2)
    return dict(
        name=rng.choice(NAMES), a=pair[0], b=pair[1], missing=missing, answer=answer, choices=pair
    )


TASKS = recipes(globals())
