"""Reading: a value out of a short text about one person, or one of two."""

from mtpt.mixtures.suite.recipe import SKILL, bind, recipes, variant
from mtpt.mixtures.suite.words import KINDS, NAMES, THINGS, article

YEARS = [str(n) for n in range(2, 60)]
DEEDS = {verb: verb + 's' for verb in 'buy sell find take give call clean open help'.split()}
# verb of a question -> (what the text says, the values)
TOLD = {
    'wear': ('wears the {}', KINDS['garment']),
    'eat': ('eats the {}', KINDS['fruit'] + KINDS['food']),
    'use': ('uses the {}', KINDS['tool']),
    'feed': ('feeds the {}', KINDS['animal']),
    'like': ('likes the color {}', KINDS['color']),
    'work': ('works as {}', [article(job) for job in KINDS['job']]),
    'age': ('is {} years old', YEARS),
}


def one_person(rng, asked: str, told: dict) -> dict:
    """Three facts of a person; the answer is the value of one, the choices those of all."""
    others = rng.sample([verb for verb in TOLD if verb != asked], 2)
    facts = {}
    for verb in (asked, *others):
        values = [value for value in (told | TOLD)[verb][1] if value not in facts.values()]
        facts[verb] = rng.choice(values)
    order = rng.sample(sorted(facts), 3)
    name = rng.choice(NAMES)
    said = ', '.join((told | TOLD)[verb][0].format(facts[verb]) for verb in order)
    return dict(
        told=f'{name} {said}.',
        name=name,
        answer=facts[asked],
        choices=[facts[verb] for verb in order],
    )


def asks(task: str, verb: str, question: str, saying: str, told=TOLD, family: str = 'reading'):
    """`question` and `saying` hold {name}: `What does {name} wear`, `what {name} wears`."""
    return variant(
        task,
        family,
        bind(one_person, asked=verb, told=told),
        train=SKILL,
        ask=f'{{told}} {question}?',
        tell=f'{{told}} Say {saying}.',
        choose=f'Read: {{told}} Now say {saying}.',
        new=f'Read: {{told}} {question}?',
    )


def thing(verb: str, third: str, told=TOLD, family: str = 'reading'):
    question, saying = f'What does {{name}} {verb}', f'what {{name}} {third}'
    return asks(f'what_{third}', verb, question, saying, told, family)


what_wears, what_eats = thing('wear', 'wears'), thing('eat', 'eats')
what_uses, what_feeds = thing('use', 'uses'), thing('feed', 'feeds')
what_color = asks('what_color', 'like', 'Which color does {name} like', 'which color {name} likes')
what_job = asks('what_job', 'work', 'What is the job of {name}', 'the job of {name}')
what_age = asks('what_age', 'age', 'How old is {name}', 'how old {name} is')


HELD = ('garment', 'fruit', 'tool', 'animal', 'food')


def three_things(rng, kind: str) -> dict:
    """Three things of a person, each of another kind; the answer is that of the kind asked for."""
    others = rng.sample([other for other in HELD if other != kind], 2)
    things = [rng.choice(KINDS[each]) for each in rng.sample([kind, *others], 3)]
    answer = next(thing for thing in things if thing in KINDS[kind])
    name = rng.choice(NAMES)
    told = f'{name} has the {", the ".join(things)}.'
    return dict(told=told, name=name, answer=answer, choices=things)


def which(kind: str, family: str = 'reading'):
    return variant(
        f'which_{kind}',
        family,
        bind(three_things, kind=kind),
        train=SKILL,
        ask=f'{{told}} Which {kind} does {{name}} have?',
        tell=f'{{told}} Say which {kind} {{name}} has.',
        choose=f'Read: {{told}} Now say which {kind} {{name}} has.',
        new=f'Read: {{told}} Which {kind} does {{name}} have?',
    )


which_garment, which_fruit, which_tool, which_animal, which_food = map(which, HELD)


def three_deeds(rng) -> dict:
    """Three deeds of a person with three things: only the verb tells which is asked for."""
    verbs, things = rng.sample(sorted(DEEDS), 3), rng.sample(THINGS, 3)
    name, which = rng.choice(NAMES), rng.randrange(3)
    said = ', '.join(f'{DEEDS[verb]} the {thing}' for verb, thing in zip(verbs, things))
    return dict(
        told=f'{name} {said}.',
        name=name,
        verb=verbs[which],
        third=DEEDS[verbs[which]],
        answer=things[which],
        choices=things,
    )


what_deed = variant(
    'what_deed',
    'reading',
    three_deeds,
    train=SKILL,
    ask='{told} What does {name} {verb}?',
    tell='{told} Say what {name} {third}.',
    choose='Read: {told} Now say what {name} {third}.',
    new='Read: {told} What does {name} {verb}?',
)


def two_facts(rng, keys, values, ask_value: bool) -> dict:
    """Two facts; asks for the value of a key, or for the key of a value."""
    some_keys, some_values = rng.sample(keys, 2), rng.sample(values, 2)
    told = ' '.join(f'{k} has {article(v)}.' for k, v in zip(some_keys, some_values))
    which = rng.randrange(2)
    asked, answers = (some_keys, some_values) if ask_value else (some_values, some_keys)
    return dict(told=told, asked=asked[which], answer=answers[which], choices=answers)


what_has = variant(
    'what_has',
    'reading',
    bind(two_facts, keys=NAMES, values=THINGS, ask_value=True),
    train=SKILL,
    ask='{told} What does {asked} have?',
    tell='{told} Say what {asked} has.',
    choose='Read: {told} Now say what {asked} has.',
)
who_has = variant(
    'who_has',
    'reading',
    bind(two_facts, keys=NAMES, values=THINGS, ask_value=False),
    train=SKILL,
    ask='{told} Who has the {asked}?',
    tell='{told} Say who has the {asked}.',
    choose='Read: {told} Now say who has the {asked}.',
)

TASKS = recipes(globals())
