"""What a task of the suite is: a drawing function, wordings, and examples that never cross a split.

A drawing function takes a `random.Random` and returns one example: the fields that the wordings
name, the `answer`, and `choices` that hold it. A wording names a field as `{field}`, and every
wording names every field, so that two different examples never become the same text.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Callable, Iterable

SPLITS = ('train', 'validation', 'test')
SHARES = {'train': range(0, 80), 'validation': range(80, 90), 'test': range(90, 100)}
TRAIN, VALIDATION, TEST = 500, 150, 250
SKILL = 800  # training examples of what takes longer to learn; mixing follows these sizes


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A task before SeqIO hears of it."""

    name: str
    family: str
    draw: Callable[[random.Random], dict]
    wordings: dict[str, str]
    new_wordings: dict[str, str]
    train: int = TRAIN

    @property
    def templates(self) -> dict[str, str]:
        """The wordings of training as Jinja templates."""
        return {name: jinja(text) for name, text in self.wordings.items()}

    @property
    def new_templates(self) -> dict[str, str]:
        """The wordings that training never sees."""
        return {name: jinja(text) for name, text in self.new_wordings.items()}

    def size(self, split: str) -> int:
        """How many examples a split has at most; fewer where there are no more to say."""
        return {'train': self.train, 'validation': VALIDATION, 'test': TEST}[split]

    def examples(self, split: str, seed: int = 0) -> tuple[dict, ...]:
        """The distinct examples of one split; the same on every machine."""
        return _examples(self, split, seed)

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The choices, where every example has the same; each is the answer equally often."""
        lists = {tuple(self.draw(random.Random(f'{self.name}/{i}'))['choices']) for i in range(8)}
        return lists.pop() if len(lists) == 1 else ()


@functools.cache
def _examples(recipe: Recipe, split: str, seed: int) -> tuple[dict, ...]:
    rng = random.Random(f'{recipe.name}/{split}/{seed}')
    wanted, labels = recipe.size(split), recipe.labels
    most = -(-wanted // len(labels)) if labels else wanted
    drawn, found = collections.Counter(), {}
    for _ in range(60 * wanted):
        if len(found) == wanted:
            break
        example = recipe.draw(rng)
        content = fingerprint(example)
        if content % 100 not in SHARES[split] or content in found:
            continue
        if drawn[example['answer']] < most:
            drawn[example['answer']] += 1
            found[content] = example
    return _balanced(found.values(), labels, min(map(drawn.__getitem__, labels), default=0))


def _balanced(examples: Iterable[dict], labels: tuple[str, ...], least: int) -> tuple[dict, ...]:
    """Leaves as many examples of each label as there are of the rarest, where labels are fixed."""
    kept, taken = [], collections.Counter()
    for example in examples:
        taken[example['answer']] += 1
        if not labels or taken[example['answer']] <= least:
            kept.append(example)
    return tuple(kept)


def jinja(wording: str) -> str:
    """`{field}` as Jinja writes it."""
    return wording.replace('{', '{{ ').replace('}', ' }}')


def fingerprint(example: dict) -> int:
    """A stable number of what an example says; the order of its choices says nothing."""
    content = {k: v for k, v in example.items() if k != 'choices'}
    text = json.dumps(content, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def recipe(
    family: str, new: str | None = None, train: int = TRAIN, **wordings: str
) -> Callable[[Callable], Recipe]:
    """Makes a Recipe of the drawing function below; `new` is a wording that training never sees."""

    def make(draw: Callable[[random.Random], dict]) -> Recipe:
        held_out = {'new': new} if new else {}
        return Recipe(getattr(draw, '__name__', ''), family, draw, dict(wordings), held_out, train)

    return make


def variant(name: str, family: str, draw: Callable, **settings) -> Recipe:
    """A Recipe of a drawing function that several tasks share, with its settings bound already."""
    made = recipe(family, **settings)(draw)
    return dataclasses.replace(made, name=name)


def recipes(namespace: dict) -> tuple[Recipe, ...]:
    """The recipes that a module has defined, in their order."""
    return tuple(value for value in namespace.values() if isinstance(value, Recipe))


def options(rng: random.Random, answer: str, others, n: int = 3) -> list[str]:
    """`n` different choices in random order, the answer among them."""
    wrong = [word for word in dict.fromkeys(others) if word != answer]
    chosen = [answer, *rng.sample(wrong, n - 1)]
    rng.shuffle(chosen)
    return chosen


bind = functools.partial
