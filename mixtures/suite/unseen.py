"""New tasks, never trained on: skills of the suite put together otherwise, in their own families.

finding   selection by a kind that training names, and never selects from a list of three
relating  reading by a kind or a verb that training has, and never asks of a text
ranking   comparing with words and in sentences that training has, and never together
choosing  the conditions of training with other things to say
"""

from mtpt.mixtures.suite.comparing import COSTS, WEIGHS, YEARS, sentence
from mtpt.mixtures.suite.logic import condition
from mtpt.mixtures.suite.reading import asks, thing, which
from mtpt.mixtures.suite.recipe import recipes
from mtpt.mixtures.suite.selection import task as select
from mtpt.mixtures.suite.words import KINDS, PLACES, THINGS

find_vehicle = select('vehicle', 'finding', 'find')
find_instrument = select('instrument', 'finding', 'find')
find_furniture = select('furniture', 'finding', 'find')
find_job = select('job', 'finding', 'find')

TOLD = {
    'ride': ('rides the {}', KINDS['vehicle']),
    'play': ('plays the {}', KINDS['instrument']),
    'buy': ('buys {} coins', [str(n) for n in range(2, 60)]),
}
which_vehicle = which('vehicle', 'relating')
which_instrument = which('instrument', 'relating')
which_furniture = which('furniture', 'relating')
what_rides = thing('ride', 'rides', TOLD, 'relating')
what_plays = thing('play', 'plays', TOLD, 'relating')
how_many_buys = asks(
    'how_many_buys',
    'buy',
    'How many coins does {name} buy',
    'how many coins {name} buys',
    TOLD,
    'relating',
)

larger_age = sentence('larger_age', YEARS, max, 'the larger age', 'ranking')
smaller_price = sentence('smaller_price', COSTS, min, 'the smaller price', 'ranking', THINGS)
higher_number = sentence('higher_number', '{} finds {} coins', max, 'the higher number', 'ranking')
lower_weight = sentence('lower_weight', WEIGHS, min, 'the lower weight', 'ranking', THINGS)

if_open_tool = condition('if_open_tool', 'door', ('open', 'closed'), KINDS['tool'], 'choosing')
if_hot_coat = condition('if_hot_coat', 'soup', ('hot', 'cold'), KINDS['garment'], 'choosing')
if_full_food = condition('if_full_food', 'glass', ('full', 'empty'), KINDS['food'], 'choosing')
if_clean_place = condition('if_clean_place', 'coat', ('clean', 'dirty'), PLACES, 'choosing')

TASKS = recipes(globals())
