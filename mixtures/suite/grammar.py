"""Grammar: who does what in a short sentence, its time, its form, and simple patterns."""

from mtpt.mixtures.suite.recipe import SKILL, bind, options, recipe, recipes, variant
from mtpt.mixtures.suite.words import (
    ANIMALS,
    COLORS,
    JOBS,
    MEN,
    NOUNS,
    PAST,
    PLACES,
    THINGS,
    WOMEN,
    plural,
)

DEEDS = 'sees helps calls finds follows paints'.split()
PRESENT = {verb: verb + 's' for verb in PAST if verb not in ('go', 'watch', 'wash')}
PRESENT |= {verb: verb + 's' for verb in 'wear ride use feed visit like'.split()}
PRESENT |= dict(go='goes', watch='watches', wash='washes')


def deed(rng, asked: int) -> dict:
    doer, done_to = rng.sample(ANIMALS + JOBS, 2)
    return dict(
        told=f'The {doer} {rng.choice(DEEDS)} the {done_to}.',
        answer=(doer, done_to)[asked],
        choices=rng.sample([doer, done_to], 2),
    )


def role(name: str, asked: int, question: str, what: str):
    return variant(
        name,
        'grammar',
        bind(deed, asked=asked),
        train=SKILL,
        ask=f'{{told}} {question}?',
        tell=f'{{told}} Say the {what}.',
        choose=f'Read: {{told}} The {what} is the',
        new=f'Read: {{told}} {question}?',
    )


subject_of = role('subject_of', 0, 'Who does it', 'subject')
object_of = role('object_of', 1, 'To whom is it done', 'object')


@recipe(
    'grammar',
    ask='{told} Past, present or future?',
    tell='Say past, present or future: {told}',
    choose='Read: {told} The time is',
    new='{told} Say past, present or future.',
)
def time_of_sentence(rng):
    verb = rng.choice(sorted(PAST))
    time = rng.choice(['past', 'present', 'future'])
    said = {'past': PAST[verb], 'present': PRESENT[verb], 'future': f'will {verb}'}[time]
    return dict(
        told=f'The {rng.choice(ANIMALS + JOBS)} {said} in the {rng.choice(PLACES)}.',
        answer=time,
        choices=['past', 'present', 'future'],
    )


@recipe(
    'grammar',
    ask='{name} in the {place}: I {verb}. Say what {name} does.',
    tell='In the {place} I {verb} and {name} _. Fill in the verb.',
    choose='I {verb} in the {place}. So {name} _ in the {place}.',
)
def third_person(rng):
    verb = rng.choice(sorted(PRESENT))
    return dict(
        verb=verb,
        name=rng.choice(MEN + WOMEN),
        place=rng.choice(PLACES),
        answer=PRESENT[verb],
        choices=options(rng, PRESENT[verb], PRESENT.values(), 4),
    )


@recipe(
    'grammar',
    train=SKILL,
    ask='Fill in he or she: {name} is in the {place} and _ has the {thing}.',
    tell='{name} has the {thing} in the {place}. Say he or she.',
    choose='He or she? In the {place} {name} has the {thing}.',
    new='{name} is in the {place} and has the {thing}. He or she?',
)
def he_or_she(rng):
    answer = rng.choice(['he', 'she'])
    return dict(
        name=rng.choice(MEN if answer == 'he' else WOMEN),
        place=rng.choice(PLACES),
        thing=rng.choice(THINGS),
        answer=answer,
        choices=['he', 'she'],
    )


@recipe(
    'grammar',
    ask='Fill in is or are: the {subject} _ {color} in the {place}.',
    tell='The {subject} _ {color} in the {place}. Say is or are.',
    choose='Is or are? The {subject} _ {color} in the {place}.',
    new='The {subject} _ {color} in the {place}. Fill in is or are.',
)
def is_or_are(rng):
    answer = rng.choice(['is', 'are'])
    noun = rng.choice(THINGS)
    return dict(
        subject=noun if answer == 'is' else plural(noun),
        color=rng.choice(COLORS),
        place=rng.choice(PLACES),
        answer=answer,
        choices=['is', 'are'],
    )


@recipe(
    'grammar',
    ask='Fill in a or an: {color} {place} with _ {noun}.',
    tell='{color} {place} with _ {noun}. Say a or an.',
    choose='A or an? {color} {place} with _ {noun}.',
)
def a_or_an(rng):
    answer = rng.choice(['a', 'an'])
    nouns = NOUNS + JOBS + 'oven eye ear arm idea onion'.split()
    return dict(
        color=rng.choice(COLORS),
        place=rng.choice(PLACES),
        noun=rng.choice([n for n in nouns if (n[0] in 'aeiou') == (answer == 'an')]),
        answer=answer,
        choices=['a', 'an'],
    )


@recipe(
    'grammar',
    ask='{told} Question, order or statement?',
    tell='Say question, order or statement: {told}',
    choose='Read: {told} The form is',
)
def form_of_sentence(rng):
    form = rng.choice(['question', 'order', 'statement'])
    who, place = rng.choice(ANIMALS + JOBS), rng.choice(PLACES)
    verb = rng.choice(['walk', 'play', 'sing', 'cook', 'help', 'call', 'run'])
    told = {
        'question': f'Does the {who} {verb} in the {place}?',
        'order': f'{verb.capitalize()} in the {place} with the {who}!',
        'statement': f'The {who} can {verb} in the {place}.',
    }[form]
    return dict(told=told, answer=form, choices=['question', 'order', 'statement'])


@recipe(
    'grammar',
    ask='{items} ... Which word is next?',
    tell='{items} ... Say the next word.',
    choose='List: {items} ... The next word of the list is',
    new='List: {items} ... Say the next word.',
    train=SKILL,
)
def next_in_pattern(rng):
    a, b = rng.sample(NOUNS, 2)
    n = rng.choice([3, 4, 5])
    return dict(
        items=' '.join(([a, b] * 3)[:n]), answer=(a, b)[n % 2], choices=rng.sample([a, b], 2)
    )


@recipe(
    'grammar',
    ask='Which word is there twice: {items}?',
    tell='{items}. Say the word that is there twice.',
    choose='List: {items}. Which word is twice in the list?',
    new='List: {items}. Say the word that is there twice.',
    train=SKILL,
)
def twice(rng):
    a, b = rng.sample(NOUNS, 2)
    items = rng.sample([a, a, b], 3)
    return dict(items=' '.join(items), answer=a, choices=rng.sample([a, b], 2))


TASKS = recipes(globals())
