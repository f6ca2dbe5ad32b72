"""Dates: days, months, seasons and hours, from Python's own calendar."""

import calendar

from mtpt.mixtures.suite.recipe import bind, options, recipe, recipes, variant
from mtpt.mixtures.suite.words import NAMES, PLACES

DAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
MONTHS = (
    'January February March April May June July August September October November December'
).split()
SEASONS = ('winter', 'spring', 'summer', 'autumn')


def shifted(rng, ring, by: int) -> dict:
    i = rng.randrange(len(ring))
    answer = ring[(i + by) % len(ring)]
    return dict(
        now=ring[i],
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=options(rng, answer, ring, 4),
    )


def neighbour(name: str, ring, by: int, word: str, unit: str):
    return variant(
        name,
        'dates',
        bind(shifted, ring=ring, by=by),
        ask=f'{{name}} goes to the {{place}} the {unit} {word} {{now}}. Which {unit}?',
        tell=f'Say the {unit} {word} {{now}}: {{name}} goes to the {{place}}.',
        choose=f'{{name}} is in the {{place}} in {{now}}. The {unit} {word} it is',
        new=f'{{name}} is in the {{place}} the {unit} {word} {{now}}. Say the {unit}.',
    )


next_day = neighbour('next_day', DAYS, 1, 'after', 'day')
day_before = neighbour('day_before', DAYS, -1, 'before', 'day')
next_month = neighbour('next_month', MONTHS, 1, 'after', 'month')
month_before = neighbour('month_before', MONTHS, -1, 'before', 'month')


def of_month(rng, rule, labels=None) -> dict:
    """A fact of a month; labels are drawn evenly where there are few."""
    wanted = rng.choice(labels) if labels else None
    months = [m for m in range(1, 13) if wanted in (None, rule(m))]
    month = rng.choice(months)
    answer = rule(month)
    return dict(
        month=MONTHS[month - 1],
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=list(labels) if labels else options(rng, answer, map(str, range(1, 13)), 4),
    )


def month_fact(name: str, draw, question: str, saying: str):
    return variant(
        name,
        'dates',
        draw,
        ask=f'{{name}} goes to the {{place}} in {{month}}. {question}?',
        tell=f'In {{month}} {{name}} is in the {{place}}. Say {saying}.',
        choose=f'{{name}} is in the {{place}} in {{month}}, and {saying} is',
    )


season = month_fact(
    'season',
    bind(of_month, rule=lambda m: SEASONS[m % 12 // 3], labels=SEASONS),
    'Which season is it',
    'the season',
)
month_number = month_fact(
    'month_number',
    bind(of_month, rule=str),
    'Which number has the month',
    'the number of the month',
)
days_in_month = month_fact(
    'days_in_month',
    bind(
        of_month,
        rule=lambda m: str(calendar.monthrange(2023, m)[1]),
        labels=('30', '31'),
    ),
    'How many days has the month',
    'how many days the month has',
)


@recipe(
    'dates',
    ask='{name} goes to the {place} on {day}. Is it a weekday or the weekend?',
    tell='On {day} {name} is in the {place}. Say weekday or weekend.',
    choose='Weekday or weekend: {name} is in the {place} on {day}.',
    new='On {day} {name} goes to the {place}. Say if it is a weekday or the weekend.',
)
def weekday_or_weekend(rng):
    answer = rng.choice(['weekday', 'weekend'])
    return dict(
        day=rng.choice(DAYS[:5] if answer == 'weekday' else DAYS[5:]),
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=['weekday', 'weekend'],
    )


@recipe(
    'dates',
    ask='{name} goes to the {place} at {hour}:00. Which part of the day is it?',
    tell='At {hour}:00 {name} is in the {place}. Say the part of the day.',
    choose='{name} is in the {place} at {hour}:00, and the part of the day is',
)
def part_of_day(rng):
    parts = ('night', 'morning', 'afternoon', 'evening')
    part = rng.randrange(4)
    return dict(
        hour=6 * part + rng.randrange(6),
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=parts[part],
        choices=list(parts),
    )


TASKS = recipes(globals())
