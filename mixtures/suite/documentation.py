"""Raw text: the English documentation that ships inside Python, read and never run.

Paragraphs of the docstrings of the standard library (by `ast`) and of `pydoc_data.topics`. The text
is that of the Python that runs; paragraphs are split by a hash of their words.
"""

import ast
import functools
import hashlib
import pathlib
import re
import sysconfig
from collections.abc import Iterator

MAX_WORDS = 120


def paragraphs(text: str) -> Iterator[str]:
    """Prose paragraphs: no doctests, tables or rules; white space made plain."""
    for block in re.split(r'\n\s*\n', text):
        words = block.split()
        line = ' '.join(words[:MAX_WORDS])
        letters = sum(c.isalpha() or c == ' ' for c in line)
        if len(words) >= 8 and '>>>' not in line and line.isascii() and letters > 0.85 * len(line):
            yield line


def docstrings(path: pathlib.Path) -> Iterator[str]:
    """Every docstring of a source file, which is parsed and never imported."""
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found = ast.get_docstring(node)
            if found:
                yield found


def topics(path: pathlib.Path) -> Iterator[str]:
    """The strings of `pydoc_data/topics.py`."""
    if path.is_file():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Dict):
                for value in node.values:
                    text = ast.literal_eval(value)
                    if isinstance(text, str):
                        yield text


@functools.cache
def paragraphs_by_split() -> dict[str, list[str]]:
    """All paragraphs; one in twenty, by its hash, is for validation."""
    library = pathlib.Path(sysconfig.get_paths()['stdlib'])
    texts = [text for file in sorted(library.glob('*.py')) for text in docstrings(file)]
    texts += topics(library / 'pydoc_data' / 'topics.py')
    found = dict.fromkeys(line for text in texts for line in paragraphs(text))
    parts = {'train': [], 'validation': []}
    for line in found:
        content = int.from_bytes(hashlib.sha256(line.encode()).digest()[:8], 'big')
        parts['train' if content % 20 else 'validation'].append(line)
    return parts


def documents(split: str) -> Iterator[dict]:
    """Yields `{'text': paragraph}` for each paragraph of a split."""
    for line in paragraphs_by_split()[split]:
        yield {'text': line}
