"""Prompts: from the fields of an example to what a model reads and what it writes.

Templates are Jinja and may come from strangers: they render in a sandbox, a missing field is an
error, and what a template may compute is bounded. White space at both ends of inputs, targets and
choices is dropped; inside it stays. `|||` separates: references in targets, options in choices, and
inputs from targets in a template that holds both. Where it occurs inside the data it does not
separate.

Beyond plain Jinja a template has the filters `choice` (an element drawn by example: always the same
one for the same example) and `most_frequent` (the list of the commonest elements), the global
`zip`, and the list `answer_choices`.
"""

import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jinja2
import jinja2.compiler
import jinja2.meta
import jinja2.sandbox
from jinja2 import nodes

from mtpt.config import UserError
from mtpt.tasks.sandbox import ENVIRONMENT, LONGEST, ROOM, Room, TooMuch

BAR = '|||'
_MUTATING = {'append', 'extend', 'insert', 'pop', 'remove', 'clear', 'sort', 'reverse', 'update'}
_MUTATING |= {'setdefault', 'popitem', 'add', 'discard'}
_HIDDEN = '\ue0b6\ue0b7\ue0b6'  # stands for BAR inside data while a template renders
_NAME = re.compile(r'[\w:#]+')


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Two templates and the answer options.

    Fields:
      name: letters, digits and `_ : #`; the prompt of a task is also the SeqIO Task `task.name`.
      inputs: template of what the model reads.
      targets: template of what it should write; several references are separated by `|||`, and the
        first one is trained on. None: `inputs` writes both, separated by the first `|||`.
      choices: a tuple of texts; or the name of a field that holds a list (`choices.text` goes
        deeper); or a template (a text with `{{`, `{%` or `|||`) whose result is split at `|||`; or
        None, when any answer is allowed.
    """

    name: str
    inputs: str
    targets: str | None
    choices: tuple[str, ...] | str | None = None

    def __post_init__(self):
        if not _NAME.fullmatch(self.name):
            raise UserError(f'prompt name {self.name!r} may have letters, digits and _ : # only')
        if isinstance(self.choices, list):
            object.__setattr__(self, 'choices', tuple(self.choices))
        for part in filter(None, (self.inputs, self.targets, self.choices_template)):
            _parse(part, self.name)

    @property
    def choices_template(self) -> str | None:
        template = isinstance(self.choices, str) and any(
            m in self.choices for m in ('{{', '{%', BAR)
        )
        return self.choices if template else None


class Rendered(NamedTuple):
    """An example under a prompt; `answer` is the place of the first reference among the choices."""

    inputs: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] | None
    answer: int | None


def clean_name(text: str) -> str:
    """A name for a prompt or a task from any text: all but letters and digits becomes `_`."""
    return re.sub(r'\W+', '_', text).strip('_') or 'unnamed'


def render(prompt: Prompt, example: Mapping[str, Any], task: str = '') -> Rendered | None:
    """Renders one example; None where the template does not apply (writes no inputs or targets).

    Raises:
      UserError: a missing field, a target that is not among the choices, a template that fails,
        computes too much or reaches into Python's insides.
    """
    where = f'prompt {prompt.name!r}' + (f' of task {task!r}' if task else '')
    token = ROOM.set(Room(example))
    try:
        return _render(prompt, dict(example), where)
    finally:
        ROOM.reset(token)


def _render(prompt: Prompt, fields: dict[str, Any], where: str) -> Rendered | None:
    choices = _choices(prompt, fields, where)
    if choices is not None:
        fields['answer_choices'] = list(choices)
    if prompt.targets is None:
        parts = _write_split(prompt.inputs, fields, where)
        inputs, targets = parts[0], tuple(part for part in parts[1:] if part)
    else:
        inputs = _write(prompt.inputs, fields, where).strip()
        if not inputs:
            return None
        targets = tuple(part for part in _write_split(prompt.targets, fields, where) if part)
    if not inputs or not targets:
        return None
    if choices is None:
        return Rendered(inputs, targets, None, None)
    if targets[0] not in choices:
        raise UserError(f'{where} writes {targets[0]!r}, which is not one of its choices {choices}')
    return Rendered(inputs, targets, choices, choices.index(targets[0]))


def _choices(prompt: Prompt, fields: dict[str, Any], where: str) -> tuple[str, ...] | None:
    if prompt.choices is None:
        return None
    if prompt.choices_template:
        found = _write_split(prompt.choices_template, fields, where)
    elif isinstance(prompt.choices, str):
        found = fields
        for part in prompt.choices.split('.'):
            if not isinstance(found, Mapping) or part not in found:
                raise _missing(where, prompt.choices, fields)
            found = found[part]
        if not isinstance(found, (list, tuple)):
            raise UserError(
                f'{where} takes its choices from {prompt.choices!r}, which is no list: {found!r}'
            )
    else:
        found = prompt.choices
    return tuple([str(choice).strip() for choice in found])


def _write(source: str, fields: dict[str, Any], where: str) -> str:
    """Runs one template and says in our own words what went wrong."""
    template = _compiled(source)
    if template.mutates:
        fields = copy.deepcopy(fields)
    try:
        text, size = [], 0
        for part in template.run(template.context(fields)):
            text.append(part)
            size += len(part)
            if size > LONGEST:
                raise TooMuch(f'writes more than {LONGEST} characters')
        return ''.join(text)
    except jinja2.sandbox.SecurityError as error:
        raise UserError(f"{where} reaches into Python's insides: {error}") from error
    except TooMuch as error:
        raise UserError(f'{where} {error}') from error
    except jinja2.UndefinedError as error:
        missing = sorted(template.names - fields.keys())
        if missing:
            raise _missing(where, missing[0], fields) from error
        raise UserError(f'{where}: {error}; the example has: {_known(fields)}') from error
    except Exception as error:
        raise UserError(f'{where} failed with {type(error).__name__}: {error}') from error


def _write_split(source: str, fields: dict[str, Any], where: str) -> list[str]:
    """Runs a template and splits what it wrote at its own `|||`, not at those of the data."""
    if not _compiled(source).splits:
        return [_write(source, fields, where).strip()]
    fields = _map_strings(fields, _hide)
    parts = _write(source, fields, where).split(BAR)
    return [part.replace(_HIDDEN, BAR).strip() for part in parts]


def _hide(text: str) -> str:
    return text.replace(BAR, _HIDDEN) if BAR in text else text


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {k: _map_strings(v, change) for k, v in value.items()}
    return [_map_strings(v, change) for v in value] if isinstance(value, list) else value


def _missing(where: str, field: str, fields: Mapping[str, Any]) -> UserError:
    return UserError(f'{where} names the field {field!r}; the example has: {_known(fields)}')


def _known(fields: Mapping[str, Any]) -> str:
    return ', '.join(sorted(map(str, fields.keys() - {'answer_choices'})))


class _Compiled(NamedTuple):
    run: Callable[..., Any]
    context: Callable[..., Any]
    names: frozenset[str]  # fields that the template reads
    mutates: bool  # it may change lists or dicts in place
    splits: bool  # it writes bars of its own


@functools.cache
def _compiled(source: str) -> _Compiled:
    tree = ENVIRONMENT.parse(source)
    template = ENVIRONMENT.from_string(source)
    calls = {
        node.node.attr for node in tree.find_all(nodes.Call) if isinstance(node.node, nodes.Getattr)
    }
    names = jinja2.meta.find_undeclared_variables(tree) - {'answer_choices', 'zip'}
    names -= {'range', 'namespace', 'dict'}

    def context(fields):
        return template.new_context(fields, shared=False)

    return _Compiled(
        template.root_render_func, context, frozenset(names), bool(calls & _MUTATING), BAR in source
    )


@functools.cache
def _parse(source: str, prompt: str) -> None:
    """Refuses at once what could never render: bad syntax, Python's insides, other templates."""
    try:
        tree = ENVIRONMENT.parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f'prompt {prompt!r}, line {error.lineno}: {error.message}') from error
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        key = node.attr if isinstance(node, nodes.Getattr) else getattr(node.arg, 'value', '')
        if isinstance(key, str) and key.startswith('__'):
            raise UserError(f"prompt {prompt!r} reaches into Python's insides: {key!r}")
    for node in tree.find_all((nodes.Name, nodes.NSRef, nodes.Filter, nodes.Macro)):
        if node.name.startswith('_') and node.name != '_':
            raise UserError(
                f"prompt {prompt!r} reaches into Python's insides: {node.name!r}; names of a "
                'template begin with a letter'
            )
    if any(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))):
        raise UserError(f'prompt {prompt!r} loads another template; a prompt stands alone')
