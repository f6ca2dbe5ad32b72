"""Measures: units, what they measure, their symbols and sizes."""

from mtpt.mixtures.suite.codes import fact
from mtpt.mixtures.suite.recipe import bind, recipe, recipes, variant
from mtpt.mixtures.suite.words import NAMES

MEASURES = {
    'length': 'meter mile inch foot yard kilometer centimeter millimeter'.split(),
    'time': 'second minute hour day week month year century'.split(),
    'weight': 'gram kilogram ton pound ounce milligram'.split(),
    'volume': 'liter gallon pint cup barrel'.split(),
}
MEASURE_OF = {unit: quantity for quantity, units in MEASURES.items() for unit in units}
SYMBOLS = dict(
    meter='m',
    second='s',
    gram='g',
    liter='l',
    hour='h',
    kilometer='km',
    kilogram='kg',
    centimeter='cm',
    millimeter='mm',
    milligram='mg',
    minute='min',
    inch='in',
    foot='ft',
    pound='lb',
)
SIZES = {
    'time': 'second minute hour day week month year century'.split(),
    'length': 'millimeter centimeter inch foot meter kilometer mile'.split(),
    'weight': 'milligram gram ounce pound kilogram ton'.split(),
}
PARTS = dict(
    minute='60 second',
    hour='60 minute',
    day='24 hour',
    week='7 day',
    year='12 month',
    century='99 year',
    foot='12 inch',
    yard='3 foot',
    gallon='8 pint',
    pound='16 ounce',
    centimeter='10 millimeter',
)
PARTS.pop('century')
PREFIXES = dict(
    kilo='thousand',
    mega='million',
    giga='billion',
    centi='hundredth',
    milli='thousandth',
    deci='tenth',
)


def of_unit(name: str, what: str, of: str, table: dict, labels=None, new: bool = False):
    return variant(
        name,
        'measures',
        bind(fact, table=table, labels=labels),
        ask=f'{{name}} in the {{place}} asks for the {what} of the {of} {{key}}.',
        tell=f'Say the {what} of the {of} {{key}} to {{name}} in the {{place}}.',
        choose=f'In the {{place}} {{name}} reads the {of} {{key}}. The {what} is',
        new=f'In the {{place}} {{name}} asks for the {what} of the {of} {{key}}.' if new else None,
    )


unit_measures = of_unit('unit_measures', 'measure', 'unit', MEASURE_OF, list(MEASURES), True)
unit_symbol = of_unit('unit_symbol', 'symbol', 'unit', SYMBOLS)
unit_of_symbol = of_unit('unit_of_symbol', 'unit', 'symbol', {v: k for k, v in SYMBOLS.items()})
unit_parts = of_unit('unit_parts', 'parts', 'unit', PARTS)
prefix_size = of_unit('prefix_size', 'size', 'prefix', PREFIXES)


def two_units(rng, larger: bool) -> dict:
    units = SIZES[rng.choice(sorted(SIZES))]
    i, j = sorted(rng.sample(range(len(units)), 2))
    pair = rng.sample([units[i], units[j]], 2)
    return dict(
        first=pair[0],
        last=pair[1],
        name=rng.choice(NAMES),
        other=rng.choice(NAMES),
        answer=units[j] if larger else units[i],
        choices=pair,
    )


def size_of_units(name: str, larger: bool, word: str):
    return variant(
        name,
        'measures',
        bind(two_units, larger=larger),
        ask=f'{{name}} asks {{other}} which is {word}: {{first}} or {{last}}?',
        tell=f'{{first}} or {{last}}: {{name}} says to {{other}} which is {word}.',
        choose=f'Of the units {{first}} and {{last}} {{name}} gives {{other}} the {word}.',
    )


larger_unit = size_of_units('larger_unit', True, 'larger')
smaller_unit = size_of_units('smaller_unit', False, 'smaller')


@recipe(
    'measures',
    ask='{name} is away for {weeks} weeks and {other} asks: how many days?',
    tell='{other} asks {name} how many days {weeks} weeks are.',
    choose='In days, the {weeks} weeks that {name} and {other} are away are',
)
def weeks_in_days(rng):
    weeks = rng.randrange(1, 11)
    wrong = rng.sample([7 * w for w in range(1, 11) if w != weeks], 3)
    choices = [str(n) for n in rng.sample([7 * weeks, *wrong], 4)]
    return dict(
        weeks=weeks,
        name=rng.choice(NAMES),
        other=rng.choice(NAMES),
        answer=str(7 * weeks),
        choices=choices,
    )


TASKS = recipes(globals())
