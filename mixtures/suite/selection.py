"""Selection: the one item of a short list that is of the kind asked for."""

from mtpt.mixtures.suite.recipe import bind, recipes, variant
from mtpt.mixtures.suite.words import KINDS

TRAINED = ('animal', 'fruit', 'tool', 'garment', 'food', 'place', 'color')


def pick(rng, kind: str) -> dict:
    answer = rng.choice(KINDS[kind])
    others = rng.sample([k for k in KINDS if k != kind], 2)
    items = [answer, *(rng.choice(KINDS[other]) for other in others)]
    rng.shuffle(items)
    return dict(items=' '.join(items), answer=answer, choices=items)


def task(kind: str, family: str = 'selection', prefix: str = 'select'):
    return variant(
        f'{prefix}_{kind}',
        family,
        bind(pick, kind=kind),
        train=2500,
        ask=f'Which word is the {kind}: {{items}}?',
        tell=f'{{items}}. Say the {kind}.',
        choose=f'List: {{items}}. What is the {kind} of the list?',
        new=f'{{items}}. Which of the list is the {kind}?',
    )


def draw_number(rng) -> dict:
    answer = str(rng.randrange(100))
    items = [answer, *(rng.choice(KINDS[k]) for k in rng.sample(sorted(KINDS), 2))]
    rng.shuffle(items)
    return dict(items=' '.join(items), answer=answer, choices=items)


select_animal, select_fruit, select_tool, select_garment = map(task, TRAINED[:4])
select_food, select_place, select_color = map(task, TRAINED[4:])
select_number = variant('select_number', 'selection', draw_number, **task('number').wordings)

TASKS = recipes(globals())
