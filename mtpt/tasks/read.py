"""Opening tasks without tf.data: raw example -> prompt -> ids, in plain Python.

It gives what SeqIO's own `get_dataset` gives for the same Task (a test holds this), but opens in no time,
where sixty tf.data pipelines take a quarter of a minute. Tasks registered elsewhere with plain SeqIO are
read through tf.data.
"""

import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from mtpt.config import UserError
from mtpt.tasks import register
from mtpt.tasks.pipeline import Card, draw_prompt, fingerprint
from mtpt.tasks.prompts import Rendered, render
from mtpt.vocabulary import Vocabulary, open_vocabulary

Ids = list[int]
Pair = tuple[Ids, Ids]
SHUFFLED = 2048  # examples among which a stream draws the next one


def training_examples(
    name: str,
    split: str,
    vocabulary: Vocabulary,
    inputs_eos: bool,
    lengths: dict[str, int] | None = None,
) -> Iterator[list[Pair]]:
    """Yields one list an example: (inputs, targets) under each training prompt that applies.

    Examples that no prompt applies to are left out. For a plain SeqIO Task the list has one pair; `lengths`
    is what its own preprocessors are told.

    Raises:
      UserError: naming the task, and the file and line where that is known.
    """
    card = register.card_of(register._task(name))
    if card is None:
        found = _through_seqio(name, split, vocabulary, inputs_eos, lengths)
        return ([(inputs, targets)] for inputs, targets, _ in found)
    if card.kind == 'text':
        raise UserError(f'task {name!r} is raw text: it has documents, not examples with prompts')
    return _pairs(name, card, split, vocabulary, inputs_eos)


def _pairs(name, card, split, vocabulary, inputs_eos):
    with _named(name):
        for example in card.source.read(split):
            found = [render(prompt, example, card.parent or name) for prompt in card.drawn]
            found = [rendered for rendered in found if rendered is not None]
            if found:
                yield encode(found, vocabulary, inputs_eos)


def encode(found: list[Rendered], vocabulary: Vocabulary, inputs_eos: bool) -> list[Pair]:
    """Token ids of rendered prompts: targets end with EOS, inputs where `inputs_eos`."""
    ids = vocabulary.encode_many([text for r in found for text in (r.inputs, r.targets[0])])
    end = [vocabulary.eos] if inputs_eos else []
    return [(i + end, t + [vocabulary.eos]) for i, t in zip(ids[::2], ids[1::2])]


def documents(name: str, split: str, vocabulary: Vocabulary) -> Iterator[Ids]:
    """Yields the ids of each document of a text task, without EOS; empty ones are left out.

    Raises:
      UserError: the task is not raw text, or an example lacks its text field.
    """
    card = register.card_of(register._task(name))
    if card is None or card.kind != 'text':
        raise UserError(f'task {name!r} is not raw text; register it with text_task')
    return _documents(name, card, split, vocabulary)


def _documents(name, card, split, vocabulary):
    with _named(name):
        for example in card.source.read(split):
            ids = vocabulary.encode(_document(card, example))
            if ids:
                yield ids


def _document(card: Card, example: dict[str, Any]) -> str:
    text = example.get(card.field)
    if not isinstance(text, str):
        known = ', '.join(sorted(example))
        raise UserError(f'no text in the field {card.field!r}; the example has: {known}')
    return text


def exams(
    name: str, split: str, vocabulary: Vocabulary, inputs_eos: bool, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the examples of one exam (a name of `exam_names`), the first `limit` of them.

    Keys: `inputs` ids; `choices` ids of each with EOS, or None; `answer` the place of the right one, or -1;
    `references` texts; `choice_texts`.
    """
    card = register.card_of(register._task(name))
    if card is not None and not card.prompt:
        nearby = ', '.join(register.exam_names(name)[:5]) or 'none'
        raise UserError(f'{name!r} is no exam; exams have one prompt each: {nearby}')
    found = _exams(name, card, split, vocabulary, inputs_eos)
    return itertools.islice(found, limit)


def _exams(name, card, split, vocabulary, inputs_eos):
    end = [vocabulary.eos] if inputs_eos else []
    if card is None:
        for inputs, targets, texts in _through_seqio(name, split, vocabulary, inputs_eos, None):
            references = [texts.get('targets', vocabulary.decode(targets))]
            yield dict(inputs=inputs, choices=None, answer=-1, references=references, choice_texts=[])
        return
    choices = functools.lru_cache(maxsize=1024)(
        lambda texts: [ids + [vocabulary.eos] for ids in vocabulary.encode_many(texts)]
    )
    with _named(name):
        for example in card.source.read(split):
            found = render(card.prompt, example, card.parent)
            if found is None:
                continue
            yield dict(
                inputs=vocabulary.encode(found.inputs) + end,
                choices=None if found.choices is None else list(choices(found.choices)),
                answer=-1 if found.answer is None else found.answer,
                references=list(found.targets),
                choice_texts=list(found.choices or ()),
            )


def stream(
    name: str,
    split: str,
    vocabulary: Vocabulary,
    inputs_eos: bool,
    seed: int,
    lengths: dict[str, int] | None = None,
) -> Iterator[Pair]:
    """Yields pairs without end: epochs shuffled in a window of 2,048, prompts drawn by example and epoch.

    The same seed gives the same stream.

    Raises:
      UserError: the task is empty or cannot be read.
    """
    card = register.card_of(register._task(name))
    if card is None:
        return _stream_seqio(name, split, vocabulary, inputs_eos, seed, lengths)
    if card.kind == 'text':
        raise UserError(f'task {name!r} is raw text: stream its documents with document_stream')

    def draw(example, rng):
        found = draw_prompt(card.drawn, example, card.parent or name, rng)
        return None if found is None else encode([found], vocabulary, inputs_eos)[0]

    return _stream(name, card, split, seed, draw)


def document_stream(name: str, split: str, vocabulary: Vocabulary, seed: int) -> Iterator[Ids]:
    """Yields the documents of a text task without end, each epoch in another order (window of 2,048)."""
    card = register.card_of(register._task(name))
    if card is None or card.kind != 'text':
        raise UserError(f'task {name!r} is not raw text; register it with text_task')

    def draw(example, rng):
        return vocabulary.encode(_document(card, example)) or None

    return _stream(name, card, split, seed, draw)


def _stream(
    name: str, card: Card, split: str, seed: int, draw: Callable[[Any, random.Random], Any]
) -> Iterator[Any]:
    with _named(name):
        for epoch in itertools.count():
            rng = random.Random(f'{seed} {epoch} {name}')
            given = 0
            for example in _shuffled(card.source.read(split), rng):
                found = draw(example, rng)
                if found is not None:
                    given += 1
                    yield found
            if not given:
                raise UserError(f'no example of split {split!r} can be used: it is empty, or no prompt applies')


def _shuffled(examples: Iterator[Any], rng: random.Random) -> Iterator[Any]:
    window = list(itertools.islice(examples, SHUFFLED))
    for example in examples:
        i = rng.randrange(len(window))
        window[i], chosen = example, window[i]
        yield chosen
    rng.shuffle(window)
    yield from window


def _stream_seqio(name, split, vocabulary, inputs_eos, seed, lengths):
    for epoch in itertools.count():
        found = _through_seqio(name, split, vocabulary, inputs_eos, lengths, (seed + epoch) % 2**31)
        pairs = 0
        for inputs, targets, _ in found:
            pairs += 1
            yield inputs, targets
        if not pairs:
            raise UserError(f'task {name!r} has no examples in its split {split!r}')


def _through_seqio(
    name: str,
    split: str,
    vocabulary: Vocabulary,
    inputs_eos: bool,
    lengths: dict[str, int] | None,
    seed: int | None = None,
) -> Iterator[tuple[Ids, Ids, dict[str, str]]]:
    """Yields inputs, targets and their texts (where the Task keeps them) of a plain SeqIO Task.

    Ids of another vocabulary are made anew from the text, if tokenising is all that the Task did to it.
    """
    plain = register.with_inputs_eos(register._task(name), inputs_eos)
    if split not in plain.splits:
        raise UserError(f'task {name!r} has no split {split!r}; it has: {", ".join(plain.splits)}')
    dataset = plain.get_dataset(
        lengths, split=split, shuffle=seed is not None, seed=seed, trim_output_features=False
    )
    theirs = {side: plain.output_features[side].vocabulary for side in ('inputs', 'targets')}
    same = {side: fingerprint(v) == vocabulary.fingerprint for side, v in theirs.items()}
    for example in dataset.as_numpy_iterator():
        sides, texts = [], {}
        for side in ('inputs', 'targets'):
            ids = example[side].tolist()
            text = example.get(f'{side}_pretokenized')
            texts |= {side: text.decode()} if isinstance(text, bytes) else {}
            if not same[side]:
                ids = _again(name, side, ids, texts.get(side), theirs[side], vocabulary)
            sides.append(ids)
        if (sides[0][-1:] == [vocabulary.eos]) != inputs_eos:
            sides[0] = sides[0] + [vocabulary.eos] if inputs_eos else sides[0][:-1]
        yield *sides, texts


def _again(name, side, ids, text, theirs, vocabulary):
    eos = [theirs.eos_id] if ids[-1:] == [theirs.eos_id] else []
    if text is None or list(theirs.encode(text)) + eos != ids:
        raise UserError(
            f'task {name!r} has {side} in the vocabulary {theirs}, not the one of this run, and does more '
            'to them than tokenise: train with its vocabulary'
        )
    return vocabulary.encode(text) + ([vocabulary.eos] if eos else [])


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Puts the name of the task before an error that does not have it."""
    try:
        yield
    except UserError as error:
        if repr(name) in str(error):
            raise
        raise UserError(f'task {name!r}: {error}') from error


def check(name: str, vocabulary: str | Vocabulary | None = None, examples: int = 5) -> list[str]:
    """Probes every task of a name and returns all that is wrong, a sentence each; an empty list is good.

    Reads the first `examples` of each split, renders them under every prompt and tokenises.
    """
    problems = []
    for member in register.member_names(name):
        found = register._task(member)
        card = register.card_of(found)
        for split in found.splits:
            try:
                problems += _probe(member, card, split, vocabulary, examples)
            except Exception as error:
                said = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
                where = '' if repr(member) in said else f'task {member!r}: '
                problems.append(f'{where}{said} (split {split!r})')
    return problems


def _probe(
    name: str, card: Card | None, split: str, vocabulary: str | Vocabulary | None, examples: int
) -> list[str]:
    ids = open_vocabulary(vocabulary or (card.vocabulary if card else 'builtin'))
    if card is None:
        found = _through_seqio(name, split, ids, register.inputs_eos(name), {'inputs': 512, 'targets': 512})
        some = list(itertools.islice(found, examples))
        said = {'has an empty side': any(not i or not t for i, t, _ in some)}
        said['has targets without EOS'] = any(t[-1:] != [ids.eos] for _, t, _ in some)
        said['is empty'] = not some
        return [f'task {name!r} {what} in split {split!r}' for what, wrong in said.items() if wrong]
    raw = list(itertools.islice(card.source.read(split), examples))
    if not raw:
        return [f'task {name!r} has no examples in split {split!r}']
    if card.kind == 'text':
        texts = [_document(card, example) for example in raw]
        return _unknown(name, split, ids, texts)
    problems = []
    prompts = card.drawn if card.prompt else card.prompts + card.held_out_prompts
    for prompt in prompts:
        where = f'prompt {prompt.name!r} of task {name!r}'
        try:
            found = [render(prompt, example, card.parent or name) for example in raw]
        except UserError as error:
            problems.append(f'{error} (split {split!r})')
            continue
        found = [rendered for rendered in found if rendered is not None]
        if not found:
            problems.append(f'{where} applies to none of {len(raw)} examples of split {split!r}')
        if any(len(set(r.choices or ())) < len(r.choices or ()) for r in found):
            problems.append(f'{where} offers a choice twice in split {split!r}')
        texts = [text for r in found for text in (r.inputs, r.targets[0])]
        problems += _unknown(f'{name}.{prompt.name}', split, ids, texts)
    return problems


def _unknown(name: str, split: str, vocabulary: Vocabulary, texts: list[str]) -> list[str]:
    ids = [i for text in texts for i in vocabulary.encode(text)]
    share = ids.count(vocabulary.unk) / max(len(ids), 1)
    if share <= 0.05:
        return []
    return [f'task {name!r}: the vocabulary does not know {share:.0%} of the tokens of split {split!r}']


def show(
    name: str, vocabulary: Vocabulary, split: str | None = None, index: int = 0
) -> list[tuple[str, str]]:
    """One example of a task at every stage: (stage, text) for raw, prompted and tokens.

    Raises:
      UserError: the task cannot be read, or has no such example.
    """
    found = register._task(name)
    card = register.card_of(found)
    split = split or next(iter(found.splits))
    if card is None:
        eos = register.inputs_eos(name)
        pairs = _through_seqio(name, split, vocabulary, eos, {'inputs': 512, 'targets': 512})
        inputs, targets, texts = _nth(name, pairs, split, index)
        stages = [(f'text of {side}', text) for side, text in texts.items()]
        return stages + _tokens('', inputs, targets, vocabulary)
    with _named(name):
        raw = _nth(name, card.source.read(split), split, index)
        stages = [(f'raw, {split} {index}', '\n'.join(f'{k}: {v!r}' for k, v in raw.items()))]
        if card.kind == 'text':
            ids = vocabulary.encode(_document(card, raw))
            return stages + [('tokens', _written(ids, vocabulary))]
        for prompt in card.drawn if card.prompt else card.prompts + card.held_out_prompts:
            held_out = ' (held out)' if prompt in card.held_out_prompts else ''
            rendered = render(prompt, raw, card.parent or name)
            title = f'prompt {prompt.name}{held_out}'
            stages.append((title, 'does not apply' if rendered is None else _shown(rendered)))
            if rendered is not None:
                [pair] = encode([rendered], vocabulary, bool(card.inputs_eos))
                stages += _tokens(f' of {prompt.name}', *pair, vocabulary)
    return stages


def _nth(name: str, examples: Iterator[Any], split: str, index: int) -> Any:
    found = next(itertools.islice(examples, index, None), None)
    if found is None:
        raise UserError(f'task {name!r} has no example {index} in split {split!r}')
    return found


def _shown(rendered: Rendered) -> str:
    lines = [f'inputs: {rendered.inputs}', *(f'targets: {text}' for text in rendered.targets)]
    return '\n'.join(lines + ([f'choices: {" | ".join(rendered.choices)}'] if rendered.choices else []))


def _tokens(of: str, inputs: Ids, targets: Ids, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    sides = {'inputs': inputs, 'targets': targets}
    return [(f'tokens{of}: {side}', _written(ids, vocabulary)) for side, ids in sides.items()]


def _written(ids: Ids, vocabulary: Vocabulary) -> str:
    return f'{len(ids)}: ' + ' '.join(f'{vocabulary.name(i)}/{i}' for i in ids)
