"""The words of the suite: each is one piece of the built-in vocabulary, as is every number to 99."""

KINDS = {
    'animal': 'cat dog horse cow pig sheep goat fox bear lion wolf duck mouse frog'.split(),
    'fruit': (
        'apple pear peach plum grape lemon cherry banana melon mango fig kiwi papaya apricot'
    ).split(),
    'tool': (
        'hammer saw drill shovel rake axe wrench pliers chisel ladder brush needle scissors knife'
    ).split(),
    'garment': (
        'shirt coat hat shoe sock glove scarf belt skirt dress jacket boot cap sweater'
    ).split(),
    'food': 'bread cheese rice soup egg butter cake honey pasta salad sugar corn pie jam'.split(),
    'vehicle': 'car bus train boat ship truck bike plane tram van taxi canoe wagon sled'.split(),
    'instrument': (
        'piano violin drum flute guitar harp horn cello trumpet organ banjo tuba oboe bell'
    ).split(),
    'furniture': (
        'table chair sofa bed desk shelf bench stool couch cabinet cupboard wardrobe cradle dresser'
    ).split(),
    'job': (
        'baker nurse farmer teacher pilot doctor sailor judge writer painter cook barber '
        'singer actor'
    ).split(),
    'place': (
        'park school church office market garden kitchen library bank farm hotel museum '
        'station beach'
    ).split(),
    'color': 'red blue green yellow black white brown pink purple gray orange silver'.split(),
}
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
THINGS = KINDS['tool'] + KINDS['garment'] + KINDS['fruit'] + KINDS['food']
NOUNS = [noun for kind in KINDS if kind not in ('job', 'place', 'color') for noun in KINDS[kind]]
COLORS, PLACES, JOBS, ANIMALS = KINDS['color'], KINDS['place'], KINDS['job'], KINDS['animal']

WOMEN = 'Ann Eva Mia Lea Zoe Ivy Kim Amy Sue Pam'.split()
MEN = 'Tom Sam Ben Max Dan Leo Jim Bob Joe Tim'.split()
NAMES = WOMEN + MEN

OPPOSITES = dict(
    pair.split('-')
    for pair in 'hot-cold big-small fast-slow old-young hard-soft wet-dry rich-poor high-low '
    'light-heavy long-short loud-quiet clean-dirty full-empty open-closed early-late near-far thick-thin '
    'strong-weak bright-dark happy-sad'.split()
)
OPPOSITES |= {right: left for left, right in OPPOSITES.items()}

PAST = dict(
    pair.split('-')
    for pair in 'walk-walked talk-talked jump-jumped play-played help-helped call-called '
    'clean-cleaned open-opened cook-cooked paint-painted watch-watched wash-washed go-went see-saw '
    'eat-ate run-ran sing-sang write-wrote give-gave take-took find-found buy-bought sell-sold '
    'come-came'.split()
)
IRREGULAR_PLURALS = dict(
    mouse='mice', foot='feet', shelf='shelves', scarf='scarves', knife='knives'
)
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
