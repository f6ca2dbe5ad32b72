"""Codes: facts that every Python installation carries, read from its own tables."""

import builtins
import html.entities
import http
import keyword
import operator
import unicodedata

from mtpt.mixtures.suite.recipe import bind, options, recipes, variant
from mtpt.mixtures.suite.words import NAMES, PLACES

STATUSES = (
    200,
    201,
    202,
    204,
    206,
    301,
    302,
    303,
    304,
    307,
    308,
    400,
    401,
    403,
    404,
    405,
    406,
    408,
    409,
    410,
)
STATUSES += (500, 501, 502, 503, 504)
CLASSES = {2: 'success', 3: 'redirect', 4: 'client', 5: 'server'}
ENTITIES = 'amp lt gt quot copy reg euro pound yen cent deg sect para plusmn times divide'.split()
HTML = {chr(html.entities.name2codepoint[e]): e for e in ENTITIES}
MARKS = '! " # $ % & ( ) * + , - . / : ; < = > ? @ [ ] ^ _ { | } ~'.split()
CHARACTERS = {
    'digit': list('0123456789'),
    'letter': list('abcdefghijklmnopqrstuvwxyz'),
    'sign': [c for c in MARKS if unicodedata.category(c)[0] in 'SP'],
}
KEYWORDS = [w for w in keyword.kwlist if w.islower()]
FUNCTIONS = (
    'abs all any ascii bin bool chr dict dir enumerate eval filter float hex id int iter len '
    'list map max min next open ord pow print range repr round set slice sorted str sum super '
    'tuple type vars zip'
).split()
OPERATORS = {
    '+': operator.add,
    '-': operator.sub,
    '*': operator.mul,
    '<': operator.lt,
    '>': operator.gt,
    '%': operator.mod,
    '&': operator.and_,
    '|': operator.or_,
    '^': operator.xor,
    '@': operator.matmul,
}


def fact(rng, table: dict, labels=None) -> dict:
    """A key of the table and its value; the value is drawn first where labels are few."""
    if labels:
        answer = rng.choice(labels)
        key = rng.choice([k for k, v in table.items() if v == answer])
        choices = list(labels)
    else:
        key = rng.choice(list(table))
        answer = table[key]
        choices = options(rng, answer, table.values(), 4)
    return dict(
        key=str(key),
        name=rng.choice(NAMES),
        place=rng.choice(PLACES),
        answer=answer,
        choices=choices,
    )


def code(name: str, what: str, of: str, table: dict, labels=None, new: bool = False):
    """Asks for the `what` of a key, which is `of` some sort."""
    return variant(
        name,
        'codes',
        bind(fact, table=table, labels=labels),
        ask=f'{{name}} in the {{place}} reads the {of} {{key}}. What is the {what}?',
        tell=f'Say the {what}: {{name}} in the {{place}} reads the {of} {{key}}.',
        choose=f'In the {{place}} {{name}} reads the {of} {{key}}. The {what} is',
        new=f'In the {{place}} {{name}} reads the {of} {{key}}. Say the {what}.' if new else None,
    )


http_class = code(
    'http_class',
    'class',
    'status',
    {s: CLASSES[s // 100] for s in STATUSES},
    list(CLASSES.values()),
    True,
)
http_phrase = code(
    'http_phrase', 'phrase', 'status', {s: http.HTTPStatus(s).phrase.lower() for s in STATUSES}
)
html_entity = code('html_entity', 'character', 'entity', {e: c for c, e in HTML.items()})
html_name = code('html_name', 'entity', 'character', HTML)
unicode_name = code(
    'unicode_name', 'name', 'character', {c: unicodedata.name(c).lower() for c in MARKS}
)
unicode_kind = code(
    'unicode_kind',
    'kind',
    'character',
    {c: kind for kind, characters in CHARACTERS.items() for c in characters},
    list(CHARACTERS),
    True,
)
keyword_or_function = code(
    'keyword_or_function',
    'kind',
    'Python word',
    {w: 'keyword' for w in KEYWORDS} | {w: 'function' for w in FUNCTIONS},
    ['keyword', 'function'],
    True,
)
operator_name = code(
    'operator_name',
    'function',
    'operator',
    {sign: function.__name__.strip('_') for sign, function in OPERATORS.items()},
)

assert all(hasattr(builtins, w) for w in FUNCTIONS)
TASKS = recipes(globals())
