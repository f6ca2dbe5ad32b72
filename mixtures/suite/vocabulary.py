"""The built-in vocabulary: every word and number of the suite is one piece, the rest is for prose.

    python -m mtpt.mixtures.suite.vocabulary mixtures/builtin.model

made `mixtures/builtin.model` with sentencepiece 0.2.2 on the documentation of Python 3.11.7.
"""

import collections
import random
import re
import sys
from collections.abc import Iterator

import jinja2

from mtpt import vocabulary
from mtpt.mixtures.suite import codes, documentation, tasks

SIZE = 1945  # with 100 sentinels and 3 modes 2,048
WORD = re.compile('(?<![^ ])(?:[A-Za-z]+|[0-9]+)')


def texts(n: int = 200) -> Iterator[str]:
    """What the tasks of the suite may say: `n` examples of each, under every wording."""
    for recipe in tasks.TRAINED + tasks.NEW:
        rng = random.Random(f'{recipe.name}/vocabulary')
        wordings = recipe.templates | recipe.new_templates
        templates = [jinja2.Template(text) for text in wordings.values()]
        for example in (recipe.draw(rng) for _ in range(n)):
            yield from (template.render(example) for template in templates)
            yield from example['choices']


def words() -> list[str]:
    """The words that stand first or after a space, the signs, and the numbers from 0 to 99."""
    found = collections.Counter(str(n) for n in range(100))
    for text in texts():
        found.update(WORD.findall(text))
    found.update([*codes.MARKS, *codes.HTML])
    return sorted(found)


def train(path: str) -> vocabulary.SentencePiece:
    """Trains the model and writes it to `path`."""
    prose = (document['text'] for document in documentation.documents('train'))
    corpus = [*texts(20), *prose]
    return vocabulary.train(corpus, SIZE, path, user_symbols=['▁' + word for word in words()])


if __name__ == '__main__':
    print(train(sys.argv[1]))
