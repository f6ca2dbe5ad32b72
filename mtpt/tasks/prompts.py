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

import collections
import collections.abc
import contextvars
import copy
import dataclasses
import functools
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.compiler
import jinja2.meta
import jinja2.sandbox
from jinja2 import nodes

from mtpt.config import UserError

LONGEST = 1_000_000  # characters a template may write, or a string it may build by repeating one
WORK = 300_000  # what one rendering may spend: turns of loops, calls, elements and texts handled
BAR = '|||'
_HIDDEN = '\ue0b6\ue0b7\ue0b6'  # stands for BAR inside data while a template renders
_MUTATING = {'append', 'extend', 'insert', 'pop', 'remove', 'clear', 'sort', 'reverse', 'update'}
_MUTATING |= {'setdefault', 'popitem', 'add', 'discard'}
_WIDTHS = {'ljust', 'rjust', 'center', 'zfill', 'batch', 'slice'}
_LOOKS = {'length', 'count', 'first', 'last', 'default', 'd'}  # filters that read no elements
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
    token = _ROOM.set(_Room(example))
    try:
        return _render(prompt, dict(example), where)
    finally:
        _ROOM.reset(token)


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
                raise _TooMuch(f'writes more than {LONGEST} characters')
        return ''.join(text)
    except jinja2.sandbox.SecurityError as error:
        raise UserError(f"{where} reaches into Python's insides: {error}") from error
    except _TooMuch as error:
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


class _TooMuch(Exception):
    """A template computes more than a prompt has reason to."""


class _Room:
    """What one rendering has left to spend, and the example that its draws depend on."""

    __slots__ = ('example', 'left')

    def __init__(self, example: Mapping[str, Any]):
        self.example, self.left = example, WORK

    def seed(self) -> bytes:
        text = json.dumps(self.example, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise _TooMuch('computes for too long: its loops, calls and lists are too many')

    def weigh(self, value: Any) -> int:
        """The characters and elements in a value, lists in lists included; looking has its cost."""
        if isinstance(value, str):
            self.spend(1 + len(value) // 100)
            return len(value)
        size, looked, left = 0, 0, [value]
        while left:
            one = left.pop()
            looked += 1
            if isinstance(one, (str, bytes)):
                size += len(one)
                looked += len(one) // 100
            elif isinstance(one, int):
                size += one.bit_length() // 3
            elif isinstance(one, (range, *_LISTS)):
                size += len(one)
                _bounded(size)
                left.extend(() if isinstance(one, range) else one)
            elif isinstance(one, Mapping):
                left += (one.keys(), one.values())
            elif isinstance(one, jinja2.utils.Namespace):
                left.append(one._Namespace__attrs)
            if looked >= 1000 or not left:
                self.spend(looked)
                looked = 0
        return size

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each paid for when it is taken."""
        for item in items:
            self.spend(1 + (len(item) if isinstance(item, (tuple, list)) else 0))
            yield item


_LISTS = (list, tuple, set, frozenset, collections.abc.KeysView, collections.abc.ValuesView)
_LISTS += (collections.abc.ItemsView,)
# Outside of the template's own variables, which it may set as it likes.
_ROOM: contextvars.ContextVar[_Room] = contextvars.ContextVar('_ROOM')


class _Generator(jinja2.compiler.CodeGenerator):
    """Compiles `~` into a call that looks at the size of what it builds."""

    def visit_Concat(self, node, frame):
        self.write('environment.joined((')
        for part in node.nodes:
            self.visit(part, frame)
            self.write(', ')
        self.write('))')


class _Sandbox(jinja2.sandbox.SandboxedEnvironment):
    """Jinja's sandbox with bounds on what is computed and on what is built.

    Loops, calls, filters and stored values are paid for from the room of the rendering, and nothing
    larger than `LONGEST` is built.
    """

    code_generator_class = _Generator
    intercepted_binops = frozenset(['+', '*', '**', '%'])

    def _generate(self, source, name, filename, defer_init=False):
        def paid(node, by):
            return nodes.Filter(node, by, [], [], None, None, lineno=source.lineno)

        for node in source.find_all((nodes.For, nodes.Assign, nodes.Compare, nodes.Getitem)):
            if isinstance(node, nodes.For):
                node.iter = paid(node.iter, '_each')
            elif isinstance(node, nodes.Assign):
                node.node = paid(node.node, '_weighed')
            elif isinstance(node, nodes.Compare):
                node.expr = paid(node.expr, '_weighed')
            elif isinstance(node.arg, nodes.Slice):
                node.node = paid(node.node, '_weighed')
        source.set_environment(self)
        return super()._generate(source, name, filename, defer_init)

    def concat(self, parts):
        parts = list(parts)
        return ''.join(parts) if _affordable(sum(map(len, parts))) else ''

    def joined(self, parts):
        weigh = _ROOM.get().weigh
        return ''.join(map(str, parts)) if _affordable(sum(map(weigh, parts))) else ''

    def call_binop(self, context, operator, left, right):
        if operator == '**':
            _bounded(abs(right) * max(abs(left), 2).bit_length() if isinstance(left, int) else 0)
        elif not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            weigh = _ROOM.get().weigh
            if operator == '+':
                _affordable(weigh(left) + weigh(right))
            elif operator == '*':
                for many, times in ((left, right), (right, left)):
                    if isinstance(times, int):
                        _affordable((weigh(many) + 1) * times)
            elif isinstance(left, str):
                _check_widths(left)
                _affordable(weigh(left) + left.count('%') * _largest(right, '*' in left))
        elif operator == '*' and isinstance(left, int) and isinstance(right, int):
            _bounded(left.bit_length() + right.bit_length())
        return super().call_binop(context, operator, left, right)

    def call(self, context, callee, *args, **kwargs):
        room = _ROOM.get()
        method = getattr(callee, '__wrapped__', callee)  # Jinja wraps str.format
        owner, name = getattr(method, '__self__', None), getattr(method, '__name__', '')
        if isinstance(callee, jinja2.runtime.LoopContext):
            args = (room.each(args[0]), *args[1:])
        elif callee is not _range:
            room.spend(len(args) + (30 if isinstance(callee, jinja2.runtime.Macro) else 3))
            args = (
                tuple([_opened(room, arg) for arg in args]) if isinstance(owner, _BUILT) else args
            )
            sizes = [room.weigh(arg) for arg in (*args, *kwargs.values())]
            if isinstance(owner, str):
                room.spend(len(owner) // 100)
                if name.startswith('format'):
                    _check_widths(owner)
                    if re.search(r'{[^}]*{', owner):
                        _bounded(_largest((*args, *kwargs.values()), numbers=True))
                if name == 'join':
                    _check_growth('join', args[0], (owner,))
                else:
                    _check_growth(name, owner, (*args, *kwargs.values()))
            elif isinstance(owner, _BUILT):
                room.spend(len(owner) // 1000)
                _bounded(len(owner) + sum(sizes))
        return super().call(context, callee, *args, **kwargs)


_BUILT = (str, list, dict, set)


def _bounded(size: int) -> None:
    if size > LONGEST:
        raise _TooMuch(f'builds a text or a number of size {size}, more than {LONGEST}')


def _affordable(size: int) -> bool:
    """Whether there is room to build something of this size; says so by an exception if not."""
    _bounded(size)
    _ROOM.get().spend(1 + size // 100)
    return True


def _check_widths(text: str) -> None:
    for digits in re.findall(r'\d{6,}', text):
        _bounded(int(digits[:12]))


def _largest(values: Any, numbers: bool = False) -> int:
    """The largest of the sizes of some texts and lists, or also of some numbers (widths)."""
    if isinstance(values, Mapping):
        values = values.values()
    values = values if isinstance(values, _LISTS) else (values,)
    weigh = _ROOM.get().weigh
    kept = (v for v in values if numbers or not isinstance(v, int))
    return max((v if isinstance(v, int) else weigh(v) for v in kept), default=0)


def _check_growth(name: str, value: Any, args: Sequence[Any]) -> None:
    """Refuses what a filter or a method would make too large, before it does."""
    if name in _WIDTHS:
        _bounded(_largest([arg for arg in args if isinstance(arg, int)], numbers=True))
    elif name == 'join':
        count = len(value) if hasattr(value, '__len__') else 0
        size = 0 if isinstance(value, str) else _ROOM.get().weigh(value)
        _affordable(size + count * (1 + _largest(args[:1])))
    elif name == 'replace' and len(args) > 1:
        text = str(value)
        _affordable(len(text) + text.count(str(args[0])) * len(str(args[1])))
    elif name in ('format', 'format_map', 'xmlattr'):
        text = str(value)
        marks = max(text.count('%'), text.count('{'))
        _affordable(len(text) + marks * _largest(args, '*' in text))
    elif name in ('indent', 'expandtabs'):
        text = str(value)
        _affordable(
            len(text) + (1 + text.count('\n') + text.count('\t')) * _largest(args, numbers=True)
        )
    elif name in ('wordwrap', 'urlize', 'tojson', 'translate'):
        _affordable(_ROOM.get().weigh(value) * (1 + _largest(args, numbers=name == 'tojson')))


def _opened(room: _Room, value: Any) -> Any:
    """A value whose size can be seen: what is computed as it is taken becomes a list."""
    return list(room.each(value)) if isinstance(value, Iterator) else value


def _paid(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it reads and is refused what it would make too large."""
    skip = 1 if hasattr(original, 'jinja_pass_arg') else 0  # a context comes first

    @functools.wraps(original)
    def bounded(*args, **kwargs):
        room = _ROOM.get()  # none while a template is compiled: then nothing is computed ahead
        head, (value, *rest) = args[:skip], args[skip:]
        value = _opened(room, value)
        if name not in _LOOKS:
            room.weigh(value)
            _check_growth(name, value, (*rest, *kwargs.values()))
        return original(*head, value, *rest, **kwargs)

    return bounded


@jinja2.pass_context
def _each(context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterator[Any]:
    return _ROOM.get().each(items)


@jinja2.pass_context
def _weighed(context: jinja2.runtime.Context, value: Any) -> Any:
    if type(value) not in _PLAIN:
        _bounded(_ROOM.get().weigh(value))
    return value


def _written(value: Any) -> Any:
    """What a template writes: a list in lists may be longer than it looks."""
    if type(value) not in _PLAIN:
        _bounded(_ROOM.get().weigh(value))
    return value


_PLAIN = (float, bool, type(None))


def _range(*args: int) -> range:
    return range(*args)


def _choice(options: Any) -> Any:
    options = list(options)
    if not options:
        raise jinja2.TemplateRuntimeError('`choice` of an empty list')
    return random.Random(_ROOM.get().seed()).choice(options)


def _most_frequent(items: Any) -> list[Any]:
    """Every element that occurs as often as the commonest one, in order of first occurrence."""
    counts = collections.Counter(items).most_common()
    return [item for item, count in counts if count == counts[0][1]]


def _sandbox() -> _Sandbox:
    environment = _Sandbox(undefined=jinja2.StrictUndefined, autoescape=False, finalize=_written)
    printf = environment.filters['format']
    environment.filters['format'] = lambda text, *args, **kwargs: (
        _check_widths(str(text)) or printf(text, *args, **kwargs)
    )
    environment.filters.update(choice=_choice, most_frequent=_most_frequent)
    environment.filters = {name: _paid(name, f) for name, f in environment.filters.items()}
    environment.filters.update(_each=_each, _weighed=_weighed)
    environment.globals = {'zip': zip, 'range': _range, 'namespace': jinja2.utils.Namespace}
    environment.globals['dict'] = dict
    return environment


_ENVIRONMENT = _sandbox()


class _Compiled(NamedTuple):
    run: Callable[..., Any]
    context: Callable[..., Any]
    names: frozenset[str]  # fields that the template reads
    mutates: bool  # it may change lists or dicts in place
    splits: bool  # it writes bars of its own


@functools.cache
def _compiled(source: str) -> _Compiled:
    tree = _ENVIRONMENT.parse(source)
    template = _ENVIRONMENT.from_string(source)
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
        tree = _ENVIRONMENT.parse(source)
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
