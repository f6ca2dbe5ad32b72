"""Text to token ids and back: SentencePiece or bytes, with sentinels and mode tokens.

Every vocabulary has the same frame: pad 0, end of sequence 1, unknown 2, the pieces of its model,
then 100 sentinels counting down (`<extra_id_0>` has the highest id of the hundred, as T5 has it),
then UL2's three mode tokens. T5's own model keeps its ids: 32,000 pieces, sentinels 32,000 to
32,099, modes in three of the spare rows below its padded size of 32,128.
"""

import functools
import hashlib
import io
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

import mtpt
from mtpt.config import UserError
from mtpt.files import write

PAD, EOS, UNK = 0, 1, 2
SENTINELS = 100
MODES = ('[NLU]', '[NLG]', '[S2S]')  # UL2 (2205.05131): R, X and S denoisers
ROWS = 128  # the embedding table is padded to a multiple of this

_SPECIAL = re.compile('(<extra_id_[0-9]{1,2}>|' + '|'.join(map(re.escape, MODES)) + ')')


class Vocabulary:
    """What every vocabulary can do; `SentencePiece` and `Bytes` fill in the pieces.

    Fields: `kind`, `pieces` (ids below the sentinels), `size` (all ids), `padded_size` (rows of an
      embedding
    table), `modes` (mode token to id), `fingerprint` (equal exactly when two vocabularies give
    equal ids).
    """

    kind = ''
    pad, eos, unk = PAD, EOS, UNK
    pieces: int

    @property
    def size(self) -> int:
        return self.pieces + SENTINELS + len(MODES)

    @property
    def padded_size(self) -> int:
        return -(-self.size // ROWS) * ROWS

    @property
    def modes(self) -> dict[str, int]:
        return {mode: self.pieces + SENTINELS + i for i, mode in enumerate(MODES)}

    def sentinel(self, i: int) -> int:
        """The id of `<extra_id_i>`, i from 0 to 99; ids go down as i goes up."""
        if not 0 <= i < SENTINELS:
            raise UserError(f'there are sentinels 0 to {SENTINELS - 1}, not {i}')
        return self.pieces + SENTINELS - 1 - i

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Ids of a text, without end of sequence.

        Data is encoded as plain text. With `specials`, for prompts typed by hand, `<extra_id_0>`
        and `[NLU]` stand for their tokens, and the spaces around them go.
        """
        if specials:
            parts = (part.strip() for part in _SPECIAL.split(text))
            return [i for part in parts if part for i in self._special_or_text(part)]
        try:
            return self._encode(text)
        except (UnicodeEncodeError, RuntimeError):
            # Half of a surrogate pair, which JSON can carry and UTF-8 cannot: a question mark.
            whole = text.encode('utf-8', 'replace').decode()
            if whole == text:
                raise
            return self._encode(whole)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: stops at EOS, drops padding, names sentinels and modes."""
        ids = itertools.takewhile(lambda i: i != EOS, map(int, ids))
        runs = itertools.groupby((i for i in ids if i != PAD), key=lambda i: i >= self.pieces)
        parts = []
        for special, run in runs:
            parts += map(self.name, run) if special else [self._decode(list(run))]
        return ' '.join(part for part in parts if part)

    def name(self, i: int) -> str:
        """How one id is written: a piece, `</s>`, `<extra_id_0>`, `[NLU]`."""
        if i < self.pieces:
            return self._piece(i)
        if i < self.pieces + SENTINELS:
            return f'<extra_id_{self.pieces + SENTINELS - 1 - i}>'
        return MODES[i - self.pieces - SENTINELS] if i < self.size else f'<unused_{i}>'

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the vocabulary into a folder, from where `load` reads it.

        Raises:
          UserError: it cannot be written; what was there is as it was.
        """
        folder = pathlib.Path(folder)
        if self.model:
            write(folder / 'vocabulary.model', self.model)
        about = {'kind': self.kind, 'size': self.size, 'fingerprint': self.fingerprint}
        write(folder / 'vocabulary.json', json.dumps(about, indent=1))

    @functools.cached_property
    def fingerprint(self) -> str:
        frame = f'{self.kind}|{SENTINELS}|{",".join(MODES)}|'
        return hashlib.sha256(frame.encode() + self.model).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, fingerprint={self.fingerprint[:12]})'

    def _special_or_text(self, part: str) -> list[int]:
        if part in self.modes:
            return [self.modes[part]]
        if _SPECIAL.fullmatch(part):
            return [self.sentinel(int(part[len('<extra_id_') : -1]))]
        return self.encode(part)


class SentencePiece(Vocabulary):
    """A SentencePiece model with pad 0, end of sequence 1 and unknown 2.

    Raises:
      UserError: no such file, no SentencePiece model in it, or a model with other ids for these
        three.
    """

    kind = 'sentencepiece'

    def __init__(self, path: str | pathlib.Path):
        import sentencepiece

        self.path = str(path)
        try:
            self.model = pathlib.Path(path).read_bytes()
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
            self.pieces = len(self._processor) - self._own_sentinels()
        except OSError as error:
            raise UserError(f'cannot read the vocabulary {path}: {error.strerror}') from error
        except RuntimeError as error:
            raise UserError(f'{path} is not a SentencePiece model') from error
        ids = self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id()
        if ids != (PAD, EOS, UNK):
            raise UserError(
                f'{path} has pad, eos, unk = {ids}; train it with pad_id=0, eos_id=1, unk_id=2 '
                '(mtpt.vocabulary.train does)'
            )

    def _own_sentinels(self) -> int:
        """How many sentinels end the model itself, as in mT5's (`▁<extra_id_99>` and on)."""
        size = len(self._processor)
        names = [self._processor.id_to_piece(size - 1 - i) for i in range(min(SENTINELS, size))]
        own = [name.lstrip('▁') == f'<extra_id_{i}>' for i, name in enumerate(names)]
        return SENTINELS if len(own) == SENTINELS and all(own) else 0

    def _encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _piece(self, i: int) -> str:
        return self._processor.id_to_piece(i)


class Bytes(Vocabulary):
    """UTF-8 bytes as tokens, as in ByT5 (2105.13626): byte b has id b + 3."""

    kind = 'bytes'
    pieces = 3 + 256
    model = b''

    def _encode(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode()]

    def _decode(self, ids: list[int]) -> str:
        return bytes(i - 3 for i in ids if i >= 3).decode('utf-8', 'ignore')

    def _piece(self, i: int) -> str:
        if i < 3:
            return ('<pad>', '</s>', '<unk>')[i]
        return chr(i - 3) if 32 <= i - 3 < 127 else f'<0x{i - 3:02X}>'


def open_vocabulary(name: str | pathlib.Path | Vocabulary) -> Vocabulary:
    """Opens a vocabulary: 'builtin', 'bytes', a `.model` file or a folder that `save` wrote.

    Raises:
      UserError: there is none at that place.
    """
    if isinstance(name, Vocabulary):
        return name
    if name == 'bytes':
        return Bytes()
    path = _builtin() if name == 'builtin' else pathlib.Path(name).expanduser()
    if path.is_dir():
        return load(path)
    if not path.is_file():
        raise UserError(f"no vocabulary {str(name)!r}; give 'builtin', 'bytes' or a .model file")
    stat = path.stat()
    return _opened(str(path.resolve()), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _opened(path: str, changed: int, size: int) -> Vocabulary:
    return SentencePiece(path)


def _builtin() -> pathlib.Path:
    """The model of the built-in suite, beside its mixtures, in a checkout or installed."""
    places = [pathlib.Path(folder) / 'mixtures' / 'builtin.model' for folder in mtpt.__path__]
    return next((place for place in places if place.is_file()), places[0])


def load(folder: str | pathlib.Path) -> Vocabulary:
    """Reads the vocabulary that `save` wrote into a folder.

    Raises:
      UserError: there is none, or its model is not the one that was saved.
    """
    folder = pathlib.Path(folder)
    try:
        about = json.loads((folder / 'vocabulary.json').read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{folder} holds no vocabulary (vocabulary.json)') from error
    found = Bytes() if about['kind'] == 'bytes' else SentencePiece(folder / 'vocabulary.model')
    if found.fingerprint != about['fingerprint']:
        raise UserError(f'{folder}/vocabulary.model is not the one vocabulary.json was saved with')
    return found


def common_ids(old: Vocabulary, new: Vocabulary) -> dict[int, int]:
    """Where the ids of one vocabulary are in another: pieces, sentinels and modes by name."""
    places = {new.name(i): i for i in range(new.size)}
    names = ((i, old.name(i)) for i in range(old.size))
    return {i: places[name] for i, name in names if name in places}


def train(
    texts: Iterable[str],
    size: int,
    path: str | pathlib.Path,
    user_symbols: Sequence[str] = (),
    split_digits: bool = False,
    normalization: str = 'nmt_nfkc',
) -> SentencePiece:
    """Trains a unigram SentencePiece model (Kudo, 1804.10959) with byte fallback into `path`.

    Deterministic: the same texts in the same order give the same file. The model has at most `size`
      pieces,
    fewer where the texts do not hold as many. `user_symbols` become one piece each wherever they
    stand, with `▁` for the space before a word. `nmt_nfkc` (T5's) folds white space: line breaks
    become spaces.

    Raises:
      UserError: no text, or a size that the trainer cannot meet.
    """
    import sentencepiece

    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise UserError('a vocabulary is trained on texts, and there are none')
    needed = 3 + 256 + len(user_symbols)
    if size <= needed:
        raise UserError(
            f'size={size} is too small: bytes and {len(user_symbols)} symbols take {needed}'
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], texts),
            model_writer=model,
            model_type='unigram',
            vocab_size=size,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=split_digits,
            user_defined_symbols=list(user_symbols),
            normalization_rule_name=normalization,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            bos_id=-1,
            num_threads=1,
            max_sentence_length=1 << 16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f'SentencePiece could not train {size} pieces: {error}') from error
    write(path, model.getvalue())
    return SentencePiece(path)
