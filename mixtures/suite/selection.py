"""Selection: the one item of a short list that is of the kind asked for."""

from mtpt.mixtures.suite.recipe import SKILL, bind, recipes, variant
from mtpt.mixtures.suite.words import KINDS

TRAINED = ('animal', 'fruit', 'tool', 'garment', 'food', 'place', 'color')


def pick(rng, kind: str, values=None) -> dict:
    """One item of the kind and two of other kinds, all of them selected somewhere in training."""
    others = rng.sample([other for other in TRAINED if other != kind], 2)
    answer = rng.choice(values or KINDS[kind])
    items = [answer, *(rng.choice(KINDS[other]) for other in others)]
    rng.shuffle(items)
    return dict(items=' '.join(items), answer=answer, choices=items)


def task(kind: str, family: str = 'selection', prefix: str = 'select', values=None):
    return variant(
        f'{prefix}_{kind}',
        family,
        bind(pick, kind=kind, values=values),
        train=SKILL,
        ask=f'Which word is the {kind}: {{items}}?',
        tell=f'{{items}}. Say the {kind}.',
        choose=f'List: {{items}}. What is the {kind} of the list?',
        new=f'Say which word is the {kind}: {{items}}.',
    )


select_animal, select_fruit, select_tool, select_garment = map(task, TRAINED[:4])
select_food, select_place, select_color = map(task, TRAINED[4:])
select_number = task('number', values=[str(n) for n in range(60)])

TASKS = recipes(globals())
