"""Spelling: letters of words, forms of words, numbers in words."""

from mtpt.mixtures.suite.recipe import bind, options, recipe, recipes, variant
from mtpt.mixtures.suite.words import (
    ANIMALS,
    COLORS,
    KINDS,
    LETTERS,
    NAMES,
    NOUNS,
    NUMBERS,
    OPPOSITES,
    ORDINALS,
    PAST,
    PLACES,
    plural,
)

WORDS = ANIMALS + COLORS + KINDS['fruit']
PLURALS = [w for k in ('fruit', 'vehicle', 'instrument', 'tool', 'garment') for w in KINDS[k]]


def written(rng, words, rule, others) -> dict:
    """A word that someone writes somewhere, and a property of it among four."""
    word = rng.choice(words)
    answer = rule(word)
    return dict(
        word=word,
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=options(rng, answer, others, 4),
    )


def of_word(name: str, words, rule, others, what: str, new: bool = False):
    return variant(
        name,
        'spelling',
        bind(written, words=words, rule=rule, others=others),
        ask=f'{{name}} in the {{place}} writes {{word}}. What is the {what}?',
        tell=f'Say the {what}: {{word}}, that {{name}} writes in the {{place}}.',
        choose=f'In the {{place}} {{name}} writes {{word}}. The {what} is',
        new=f'In the {{place}} {{name}} writes {{word}}. Say the {what}.' if new else None,
    )


first_letter = of_word('first_letter', WORDS, lambda w: w[0], LETTERS, 'first letter', True)
last_letter = of_word('last_letter', WORDS, lambda w: w[-1], LETTERS, 'last letter', True)
word_length = of_word(
    'word_length',
    [word for n in (3, 4, 5, 6) for word in [w for w in NOUNS if len(w) == n][:10]],
    lambda w: str(len(w)),
    [str(n) for n in range(3, 7)],
    'number of letters',
)
next_letter = of_word(
    'next_letter', LETTERS[:-1], lambda c: chr(ord(c) + 1), LETTERS, 'next letter'
)
opposite_of = of_word(
    'opposite_of', sorted(OPPOSITES), OPPOSITES.get, sorted(OPPOSITES), 'opposite', True
)
past_of = of_word('past_of', sorted(PAST), PAST.get, sorted(PAST.values()), 'past form', True)
number_in_words = of_word(
    'number_in_words',
    [str(n) for n in range(21)],
    lambda n: NUMBERS[int(n)],
    NUMBERS,
    'number in words',
)
number_in_digits = of_word(
    'number_in_digits',
    NUMBERS,
    lambda w: str(NUMBERS.index(w)),
    [str(n) for n in range(21)],
    'number in digits',
)
ordinal_of = of_word(
    'ordinal_of',
    [str(n + 1) for n in range(12)],
    lambda n: ORDINALS[int(n) - 1],
    ORDINALS,
    'ordinal number',
)
plural_of = of_word('plural_of', PLURALS, plural, [plural(w) for w in PLURALS], 'plural', True)


@recipe(
    'spelling',
    ask='Is the letter {letter}, that {name} in the {place} writes, a vowel or a consonant?',
    tell='Vowel or consonant: {letter}, that {name} writes in the {place}.',
    choose='In the {place} {name} writes {letter}. Say vowel or consonant.',
)
def vowel_or_consonant(rng):
    answer = rng.choice(['vowel', 'consonant'])
    return dict(
        letter=rng.choice([c for c in LETTERS if (c in 'aeiou') == (answer == 'vowel')]),
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=['vowel', 'consonant'],
    )


TASKS = recipes(globals())
