"""Arithmetic with small numbers, inside a short sentence."""

from mtpt.mixtures.suite.recipe import SKILL, bind, options, recipe, recipes, variant
from mtpt.mixtures.suite.words import NAMES, THINGS, plural


def near(rng, answer: int, low: int = 0) -> list[str]:
    """Four numbers close to the answer, the answer among them."""
    around = [n for n in range(answer - 4, answer + 5) if n >= low]
    return options(rng, str(answer), map(str, around), 4)


def one_number(rng, span: range, rule) -> dict:
    number = rng.choice(span)
    answer = rule(number)
    return dict(
        number=number,
        name=rng.choice(NAMES),
        thing=plural(rng.choice(THINGS)),
        answer=str(answer),
        choices=near(rng, answer),
    )


def counted(name: str, span: range, rule, happens: str, new: str | None = None):
    """`Tom has 3 apples` and something happens to them."""
    return variant(
        name,
        'arithmetic',
        bind(one_number, span=span, rule=rule),
        train=SKILL,
        ask=f'{{name}} has {{number}} {{thing}} and {happens}. How many now?',
        tell=f'{{name}} with {{number}} {{thing}} {happens}. Say how many now.',
        choose=f'Of {{number}} {{thing}} {{name}} {happens}. The number now is',
        new=new,
    )


add_one = counted('add_one', range(1, 21), lambda n: n + 1, 'finds 1 more')
add_two = counted('add_two', range(1, 21), lambda n: n + 2, 'finds 2 more')
take_one = counted('take_one', range(2, 21), lambda n: n - 1, 'gives 1 away')
add_ten = counted('add_ten', range(1, 21), lambda n: n + 10, 'finds 10 more')
double = counted('double', range(1, 21), lambda n: 2 * n, 'finds as many more')


@recipe(
    'arithmetic',
    ask='{name} has {a} {thing} and {b} more. How many?',
    tell='{a} {thing} and {b} more that {name} has. Say how many.',
    choose='{name} adds {a} and {b} {thing}. The number is',
    new='{name} adds {b} {thing} and {a} more. How many?',
    train=SKILL,
)
def add(rng):
    a, b = rng.randrange(1, 6), rng.randrange(1, 6)
    thing = plural(rng.choice(THINGS))
    return dict(
        a=a, b=b, thing=thing, name=rng.choice(NAMES), answer=str(a + b), choices=near(rng, a + b)
    )


@recipe(
    'arithmetic',
    ask='{name} has {number} {thing}. Is the number even or odd?',
    tell='Even or odd: {name} has {number} {thing}.',
    choose='Of {thing} {name} has {number}. Say if even or odd.',
    new='{name} has {number} {thing}. Say if the number is even or odd.',
)
def even_or_odd(rng):
    drawn = one_number(rng, range(40), lambda n: n)
    return drawn | dict(answer=('even', 'odd')[drawn['number'] % 2], choices=['even', 'odd'])


@recipe(
    'arithmetic',
    ask='{name} has {number} {thing}. What is the last digit of the number?',
    tell='{name} has {number} {thing}. Say the last digit.',
    choose='Of {thing} {name} has {number}. The last digit is',
)
def last_digit(rng):
    drawn = one_number(rng, range(10, 40), lambda n: n % 10)
    return drawn | dict(choices=options(rng, drawn['answer'], map(str, range(10)), 4))


@recipe(
    'arithmetic',
    ask='{name} has {number} {thing}. What is the first digit of the number?',
    tell='{name} has {number} {thing}. Say the first digit.',
    choose='Of {thing} {name} has {number}. The first digit is',
)
def first_digit(rng):
    drawn = one_number(rng, range(10, 40), lambda n: n // 10)
    return drawn | dict(choices=options(rng, drawn['answer'], map(str, range(1, 5)), 3))


@recipe(
    'arithmetic',
    ask='{name} has {number} {thing}. Are they few or many?',
    tell='Few or many: {name} has {number} {thing}.',
    choose='Of {thing} {name} has {number}. Say few or many.',
)
def few_or_many(rng):
    drawn = one_number(rng, range(40), lambda n: n)
    return drawn | dict(answer='few' if drawn['number'] < 20 else 'many', choices=['few', 'many'])


TASKS = recipes(globals())
