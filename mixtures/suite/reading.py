"""Reading: a value out of a text of two short facts."""

from mtpt.mixtures.suite.recipe import bind, recipes, variant
from mtpt.mixtures.suite.words import ANIMALS, COLORS, JOBS, NAMES, PLACES, THINGS, article

SMALL = [str(n) for n in range(2, 60)]


def two_facts(rng, keys, values, fact: str, ask_value: bool = True) -> dict:
    """Two facts `fact.format(key, value)`; asks for a value by its key, or for a key by its value."""
    some_keys, some_values = rng.sample(keys, 2), rng.sample(values, 2)
    told = ' '.join(fact.format(k, v) for k, v in zip(some_keys, some_values))
    which = rng.randrange(2)
    asked, answers = (some_keys, some_values) if ask_value else (some_values, some_keys)
    return dict(told=told, asked=asked[which], answer=answers[which], choices=answers)


def what(verb: str, family: str = 'reading', train: int = 2500):
    """`Tom has a cup. Ann has a key.` asks what Ann has; the verb's base form is `verb`."""
    third, base = (verb, verb) if verb == 'has' else (verb + 's', verb)
    third, base = ('has', 'have') if verb == 'has' else (third, base)
    draw = bind(two_facts, keys=NAMES, values=THINGS + ANIMALS, fact=f'{{}} {third} the {{}}.')
    return variant(
        f'what_{base}',
        family,
        draw,
        train=train,
        ask=f'{{told}} What does {{asked}} {base}?',
        tell=f'{{told}} Say what {{asked}} {third}.',
        choose=f'Read: {{told}} The thing that {{asked}} {third} is',
        new=f'Read: {{told}} Which thing does {{asked}} {base}?',
    )


def who(verb: str, family: str = 'reading', train: int = 2500):
    """`Tom has a cup. Ann has a key.` asks who has the key."""
    third = 'has' if verb == 'has' else verb + 's'
    draw = bind(
        two_facts,
        keys=NAMES,
        values=THINGS + ANIMALS,
        fact=f'{{}} {third} the {{}}.',
        ask_value=False,
    )
    return variant(
        f'who_{third}',
        family,
        draw,
        train=train,
        ask=f'{{told}} Who {third} the {{asked}}?',
        tell=f'{{told}} Say who {third} the {{asked}}.',
        choose=f'Read: {{told}} The name of who {third} the {{asked}} is',
        new=f'Read: {{told}} Which name {third} the {{asked}}?',
    )


what_have, what_like, what_want = what('has'), what('like'), what('want')
who_has, who_likes, who_finds = who('has'), who('like'), who('find')

where_is = variant(
    'where_is',
    'reading',
    bind(two_facts, keys=NAMES, values=PLACES, fact='{} is in the {}.'),
    train=2500,
    ask='{told} Where is {asked}?',
    tell='{told} Say where {asked} is.',
    choose='Read: {told} The place that {asked} is in is',
    new='Read: {told} In which place is {asked}?',
)
what_color = variant(
    'what_color',
    'reading',
    bind(two_facts, keys=THINGS, values=COLORS, fact='The {} is {}.'),
    train=2500,
    ask='{told} What color is the {asked}?',
    tell='{told} Say the color of the {asked}.',
    choose='Read: {told} The color of the {asked} is',
    new='Read: {told} Which color is the {asked}?',
)
thing_of_color = variant(
    'thing_of_color',
    'reading',
    bind(two_facts, keys=THINGS, values=COLORS, fact='The {} is {}.', ask_value=False),
    train=2500,
    ask='{told} What is {asked}?',
    tell='{told} Say which thing is {asked}.',
    choose='Read: {told} The thing that is {asked} is the',
    new='Read: {told} Which thing is {asked}?',
)
what_age = variant(
    'what_age',
    'reading',
    bind(two_facts, keys=NAMES, values=SMALL, fact='{} is {} years old.'),
    train=2500,
    ask='{told} How old is {asked}?',
    tell='{told} Say how old {asked} is.',
    choose='Read: {told} The age of {asked} is',
    new='Read: {told} What age is {asked}?',
)
what_price = variant(
    'what_price',
    'reading',
    bind(two_facts, keys=THINGS, values=SMALL, fact='The {} costs {}.'),
    train=2500,
    ask='{told} How much is the {asked}?',
    tell='{told} Say the price of the {asked}.',
    choose='Read: {told} The price of the {asked} is',
    new='Read: {told} What is the price of the {asked}?',
)
what_job = variant(
    'what_job',
    'reading',
    bind(two_facts, keys=NAMES, values=JOBS, fact='{} is a {}.'),
    train=2500,
    ask='{told} What job does {asked} have?',
    tell='{told} Say the job of {asked}.',
    choose='Read: {told} The job of {asked} is',
    new='Read: {told} What is the job of {asked}?',
)

assert article('egg') == 'an egg'
TASKS = recipes(globals())
