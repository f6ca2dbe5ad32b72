"""The words of the suite: each is one piece of its vocabulary, as is every number to 99."""

KINDS = {
    'animal': 'cat dog horse cow pig goat bear lion duck frog'.split(),
    'fruit': 'apple pear peach plum grape lemon cherry banana melon mango'.split(),
    'tool': 'hammer saw drill shovel rake axe wrench chisel ladder brush'.split(),
    'garment': 'shirt coat hat shoe sock glove belt skirt jacket sweater'.split(),
    'food': 'bread cheese rice soup egg butter cake pasta salad pie'.split(),
    'vehicle': 'car bus train boat truck bike plane tram taxi canoe'.split(),
    'instrument': 'piano violin drum flute guitar harp horn cello trumpet organ'.split(),
    'furniture': 'table chair sofa bed desk shelf bench stool couch cabinet'.split(),
    'job': 'baker nurse farmer teacher pilot doctor sailor judge writer painter'.split(),
    'place': 'park school church office market garden kitchen library bank museum'.split(),
    'color': 'red blue green yellow black white brown pink purple gray'.split(),
}
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
THINGS = KINDS['tool'] + KINDS['garment'] + KINDS['fruit']
NOUNS = [noun for kind in KINDS if kind not in ('job', 'place', 'color') for noun in KINDS[kind]]
COLORS, PLACES, JOBS, ANIMALS = KINDS['color'], KINDS['place'], KINDS['job'], KINDS['animal']

WOMEN = 'Ann Eva Mia Lea Zoe Ivy Kim Amy Sue Pam'.split()
MEN = 'Tom Sam Ben Max Dan Leo Jim Bob Joe Tim'.split()
NAMES = WOMEN + MEN

OPPOSITES = dict(
    pair.split('-')
    for pair in 'hot-cold big-small fast-slow old-young hard-soft wet-dry rich-poor high-low '
    'light-heavy long-short loud-quiet clean-dirty full-empty open-closed early-late near-far '
    'thick-thin strong-weak bright-dark happy-sad'.split()
)
OPPOSITES |= {right: left for left, right in OPPOSITES.items()}

PAST = dict(
    pair.split('-')
    for pair in 'walk-walked talk-talked jump-jumped play-played help-helped call-called '
    'clean-cleaned open-opened cook-cooked paint-painted watch-watched wash-washed go-went see-saw '
    'eat-ate run-ran sing-sang write-wrote give-gave take-took find-found buy-bought sell-sold '
    'come-came'.split()
)
IRREGULAR_PLURALS = dict(foot='feet', shelf='shelves')
NUMBERS = (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
    'sixteen seventeen eighteen nineteen twenty'
).split()
ORDINALS = (
    'first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth'
).split()
LETTERS = list('abcdefghijklmnopqrstuvwxyz')


def article(noun: str) -> str:
    """The noun with `a` or `an` before it."""
    return f'{"an" if noun[0] in "aeiou" else "a"} {noun}'


def plural(noun: str) -> str:
    """The plural by rule, or the irregular one."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith('y') and noun[-2] not in 'aeiou':
        return noun[:-1] + 'ies'
    return noun + ('es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's')
