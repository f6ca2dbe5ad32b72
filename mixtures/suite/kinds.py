"""Kinds: what a thing is and what it is for."""

from mtpt.mixtures.suite.recipe import SKILL, options, recipe, recipes
from mtpt.mixtures.suite.words import KINDS, NAMES, NOUNS, PLACES, article

USES = dict(
    fruit='eat',
    food='eat',
    garment='wear',
    tool='use',
    animal='feed',
    vehicle='ride',
    instrument='play',
    place='visit',
)
DEEDS = sorted(set(USES.values()))


@recipe(
    'kinds',
    train=SKILL,
    ask='What kind of thing is {thing} that {name} sees in the {place}?',
    tell='{name} sees {thing} in the {place}. Say the kind of thing.',
    choose='In the {place} is {thing}. {name} asks what kind of thing it is.',
    new='In the {place} {name} sees {thing}. What kind of thing is it?',
)
def kind_of_thing(rng):
    kind = rng.choice([k for k in KINDS if k not in ('color', 'place')])
    return dict(
        thing=article(rng.choice(KINDS[kind])),
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=kind,
        choices=options(rng, kind, KINDS, 4),
    )


@recipe(
    'kinds',
    train=SKILL,
    ask='{items} are all of one kind. Which kind?',
    tell='Say the kind of thing: {items}.',
    choose='List: {items}. What kind of list is it?',
    new='{items}. What kind of thing is all of the list?',
)
def kind_of_list(rng):
    kind = rng.choice(sorted(KINDS))
    items = rng.sample(KINDS[kind], 3)
    return dict(items=' '.join(items), answer=kind, choices=options(rng, kind, KINDS, 4))


@recipe(
    'kinds',
    train=SKILL,
    ask='{name} sees {thing} in the {place}. Is it living or made?',
    tell='Living or made: {thing} that {name} sees in the {place}.',
    choose='In the {place} is {thing}. {name} asks if it is living or made.',
)
def living_or_made(rng):
    answer = rng.choice(['living', 'made'])
    kinds = ['animal', 'job'] if answer == 'living' else ['tool', 'vehicle', 'furniture', 'garment']
    return dict(
        thing=article(rng.choice(KINDS[rng.choice(kinds)])),
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=['living', 'made'],
    )


@recipe(
    'kinds',
    train=SKILL,
    ask='What can {name} do with {thing} in the {place}?',
    tell='{name} has {thing} in the {place}. Say what it is for.',
    choose='In the {place} {name} finds {thing}. What is it for?',
    new='{name} has {thing} in the {place}. What can {name} do with it?',
)
def what_for(rng):
    answer = rng.choice(DEEDS)
    kind = rng.choice([kind for kind, use in USES.items() if use == answer])
    return dict(
        thing=article(rng.choice(KINDS[kind])),
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=DEEDS,
    )


@recipe(
    'kinds',
    train=SKILL,
    ask='{first} and {last}: which is the {kind}?',
    tell='Say which is the {kind}: {first} or {last}.',
    choose='Here are {first} and {last}. Name the {kind}.',
)
def which_is_the_kind(rng):
    kind, other = rng.sample(sorted(KINDS), 2)
    answer = rng.choice(KINDS[kind])
    pair = [answer, rng.choice(KINDS[other])]
    rng.shuffle(pair)
    return dict(first=pair[0], last=pair[1], kind=kind, answer=answer, choices=pair)


@recipe(
    'kinds',
    train=SKILL,
    ask='Is the word {word}, that {name} writes in the {place}, a thing or a name?',
    tell='Thing or name: {name} writes {word} in the {place}.',
    choose='{name} writes {word} in the {place}. Say thing or name.',
)
def thing_or_name(rng):
    answer = rng.choice(['thing', 'name'])
    return dict(
        word=rng.choice(NOUNS if answer == 'thing' else NAMES),
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=['thing', 'name'],
    )


TASKS = recipes(globals())
