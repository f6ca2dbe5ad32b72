"""The tokenizers beside Hugging Face's models, and the vocabularies of ours that do the same.

V vocabulary
"""

import json
import pathlib
from typing import Any

from mtpt.config import UserError
from mtpt.vocabulary import MODES, SENTINELS, Bytes, SentencePiece, Vocabulary, open_vocabulary


def vocabulary_of(folder: pathlib.Path, name: str | None, V: int) -> tuple[Vocabulary, list[str]]:
    """The vocabulary beside a model, or the one that is named, and what differs from theirs.

    Raises:
      UserError: there is none, or it has more ids than the model, or other ones than the files
        beside the model say.
    """
    found = _named(folder, name)
    ids = found.size - len(MODES)  # which stand in rows that a model may have to spare
    if ids > V:
        raise UserError(
            f'the vocabulary has {ids} ids and the model {V} rows; --vocabulary=FILE names another'
        )
    return found, [] if isinstance(found, Bytes) else _differences(folder, found)


def _named(folder: pathlib.Path, name: str | None) -> Vocabulary:
    if name:
        return open_vocabulary(name)
    for file in ('spiece.model', 'sentencepiece.model', 'tokenizer.model'):
        if (folder / file).is_file():
            return SentencePiece(folder / file)
    settings = folder / 'tokenizer_config.json'
    if settings.is_file() and 'ByT5' in str(json_of(settings).get('tokenizer_class')):
        return Bytes()
    raise UserError(
        f'{folder} holds no spiece.model; fetch it too, or name a SentencePiece model with '
        "--vocabulary=FILE, or 'bytes' for ByT5"
    )


def _differences(folder: pathlib.Path, vocabulary: Vocabulary) -> list[str]:
    """Checks the ids of tokens added to the pieces against those that the vocabulary gives."""
    others = []
    for i, content in sorted(_added(folder).items()):
        name = vocabulary.name(i)
        if content.startswith('<extra_id_') and name.lstrip('▁') != content:
            raise UserError(
                f'the tokenizer of {folder} gives {content} the id {i}, where its pieces put '
                f'{name}; name the right SentencePiece model with --vocabulary=FILE'
            )
        if i >= vocabulary.pieces and name != content:
            others.append(content)
    if not others:
        return []
    return [f'tokens of the tokenizer that the vocabulary does not have: {", ".join(others[:8])}']


def _added(folder: pathlib.Path) -> dict[int, str]:
    """The tokens, by id, that the files of a tokenizer add to its pieces."""
    settings, whole = folder / 'tokenizer_config.json', folder / 'tokenizer.json'
    added: dict[int, str] = {}
    try:
        if settings.is_file():
            told = json_of(settings).get('added_tokens_decoder') or {}
            added |= {int(i): str(token['content']) for i, token in told.items()}
        if whole.is_file():
            told = json_of(whole).get('added_tokens') or ()
            added |= {int(token['id']): str(token['content']) for token in told}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f'the tokenizer in {folder} is damaged ({error}); fetch it again'
        ) from error
    return added


def json_of(path: pathlib.Path) -> dict[str, Any]:
    """The table that a JSON file holds.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read ({error}); fetch it again') from error
    if not isinstance(found, dict):
        raise UserError(f'{path} is no table of settings; fetch it again')
    return found


def differences_there(vocabulary: Vocabulary) -> list[str]:
    """What their tokenizers will do otherwise than the vocabulary does."""
    if isinstance(vocabulary, Bytes):
        return ["the sentinels of mtpt's bytes have other ids than those of their ByT5Tokenizer"]
    if any(vocabulary.name(i).startswith('<0x') for i in range(vocabulary.pieces)):
        return [
            'the vocabulary falls back to bytes for characters that it has no piece for; their '
            'T5Tokenizer gives <unk> for them'
        ]
    return []


def write_tokenizer(folder: pathlib.Path, vocabulary: Vocabulary, V: int) -> None:
    """Writes the tokenizer's files beside a model; theirs then gives the ids that ours gives."""
    told: dict[str, Any] = dict(pad_token='<pad>', eos_token='</s>', unk_token='<unk>')
    if isinstance(vocabulary, Bytes):
        told |= dict(tokenizer_class='ByT5Tokenizer', extra_ids=max(0, V - vocabulary.pieces))
    else:
        (folder / 'spiece.model').write_bytes(vocabulary.model)
        told |= dict(tokenizer_class='T5Tokenizer', extra_ids=SENTINELS)
    (folder / 'tokenizer_config.json').write_text(json.dumps(told, indent=2) + '\n')
