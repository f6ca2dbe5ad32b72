"""New tasks, never trained on: skills of the suite put together otherwise, in their own families.

finding   selection among kinds that training names and never selects
relating  reading through relations that training uses in other sentences
ranking   comparing in attributes that training tells of and never compares
choosing  if and else with other conditions and other things to say
"""

from mtpt.mixtures.suite.comparing import of_holders
from mtpt.mixtures.suite.reading import two_facts, what, who
from mtpt.mixtures.suite.recipe import bind, recipes, variant
from mtpt.mixtures.suite.selection import task as select
from mtpt.mixtures.suite.words import COLORS, JOBS, NAMES, PLACES, THINGS

find_vehicle = select('vehicle', 'finding', 'find')
find_instrument = select('instrument', 'finding', 'find')
find_furniture = select('furniture', 'finding', 'find')
find_job = select('job', 'finding', 'find')

what_paint = what('paint', 'relating')
who_sells = who('sell', 'relating')
who_calls = who('call', 'relating')
where_goes = variant(
    'where_goes',
    'relating',
    bind(two_facts, keys=NAMES, values=PLACES, fact='{} goes to the {}.'),
    ask='{told} Where is {asked}?',
    tell='{told} Say where {asked} goes.',
    choose='Read: {told} The place that {asked} goes to is',
)

reads_more = of_holders('reads_more', NAMES, '{} reads {} books.', max, 'reads more', 'ranking')
finds_less = of_holders('finds_less', NAMES, '{} finds {} coins.', min, 'finds less', 'ranking')
walks_more = of_holders('walks_more', NAMES, '{} walks {} miles.', max, 'walks more', 'ranking')
larger_thing = of_holders(
    'larger_thing', THINGS, 'The {} is {} inches.', max, 'is larger', 'ranking'
)


def condition(rng, values, words) -> dict:
    said, other = rng.sample(values, 2)
    yes, no = rng.sample(words, 2)
    holds = rng.random() < 0.5
    return dict(
        who=rng.choice(NAMES),
        said=said,
        seen=said if holds else other,
        yes=yes,
        no=no,
        answer=yes if holds else no,
        choices=[yes, no],
    )


def condition_task(name: str, values, words, fact: str):
    """`fact` holds {} where the value of someone stands."""
    seen, said = fact.format('{seen}'), fact.format('{said}')
    return variant(
        name,
        'choosing',
        bind(condition, values=values, words=words),
        ask=f'If {{who}} {said} say {{yes}}, else say {{no}}. {{who}} {seen}.',
        tell=f'{{who}} {seen}. Say {{yes}} if {{who}} {said}, else {{no}}.',
        choose=f'{{who}} {seen}. If {{who}} {said} then {{yes}}, else {{no}}.',
    )


if_job = condition_task('if_job', JOBS, COLORS, 'is a {}')
if_place = condition_task('if_place', PLACES, THINGS, 'is in the {}')
if_has = condition_task('if_has', THINGS, COLORS, 'has the {}')
if_age = condition_task('if_age', [str(n) for n in range(2, 60)], PLACES, 'is {} years old')

TASKS = recipes(globals())
