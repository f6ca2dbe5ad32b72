"""Where templates render: Jinja's sandbox, with a bound on what a template may compute and build.

A template may come from a stranger. It reaches none of Python's insides (Jinja's own sandbox sees
to that), and it pays for every turn of a loop, call and element from a budget that it cannot see.
"""

import collections
import collections.abc
import contextvars
import functools
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.sandbox
from jinja2 import nodes

LONGEST = 1_000_000  # characters a template may write, or a string it may build by repeating one
WORK = 300_000  # what one rendering may spend: turns of loops, calls, elements and texts handled
_WIDTHS = {'ljust', 'rjust', 'center', 'zfill', 'batch', 'slice'}
_LOOKS = {'length', 'count', 'first', 'last', 'default', 'd'}  # filters that read no elements


class TooMuch(Exception):
    """A template computes more than a prompt has reason to."""


class Room:
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
            raise TooMuch('computes for too long: its loops, calls and lists are too many')

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
ROOM: contextvars.ContextVar[Room] = contextvars.ContextVar('ROOM')


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
        weigh = ROOM.get().weigh
        return ''.join(map(str, parts)) if _affordable(sum(map(weigh, parts))) else ''

    def call_binop(self, context, operator, left, right):
        if operator == '**':
            _bounded(abs(right) * max(abs(left), 2).bit_length() if isinstance(left, int) else 0)
        elif not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            weigh = ROOM.get().weigh
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
        room = ROOM.get()
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
        raise TooMuch(f'builds a text or a number of size {size}, more than {LONGEST}')


def _affordable(size: int) -> bool:
    """Whether there is room to build something of this size; says so by an exception if not."""
    _bounded(size)
    ROOM.get().spend(1 + size // 100)
    return True


def _check_widths(text: str) -> None:
    for digits in re.findall(r'\d{6,}', text):
        _bounded(int(digits[:12]))


def _largest(values: Any, numbers: bool = False) -> int:
    """The largest of the sizes of some texts and lists, or also of some numbers (widths)."""
    if isinstance(values, Mapping):
        values = values.values()
    values = values if isinstance(values, _LISTS) else (values,)
    weigh = ROOM.get().weigh
    kept = (v for v in values if numbers or not isinstance(v, int))
    return max((v if isinstance(v, int) else weigh(v) for v in kept), default=0)


def _check_growth(name: str, value: Any, args: Sequence[Any]) -> None:
    """Refuses what a filter or a method would make too large, before it does."""
    if name in _WIDTHS:
        _bounded(_largest([arg for arg in args if isinstance(arg, int)], numbers=True))
    elif name == 'join':
        count = len(value) if hasattr(value, '__len__') else 0
        size = 0 if isinstance(value, str) else ROOM.get().weigh(value)
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
        _affordable(ROOM.get().weigh(value) * (1 + _largest(args, numbers=name == 'tojson')))


def _opened(room: Room, value: Any) -> Any:
    """A value whose size can be seen: what is computed as it is taken becomes a list."""
    return list(room.each(value)) if isinstance(value, Iterator) else value


def _paid(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what it reads and is refused what it would make too large."""
    skip = 1 if hasattr(original, 'jinja_pass_arg') else 0  # a context comes first

    @functools.wraps(original)
    def bounded(*args, **kwargs):
        room = ROOM.get()  # none while a template is compiled: then nothing is computed ahead
        head, (value, *rest) = args[:skip], args[skip:]
        value = _opened(room, value)
        if name not in _LOOKS:
            room.weigh(value)
            _check_growth(name, value, (*rest, *kwargs.values()))
        return original(*head, value, *rest, **kwargs)

    return bounded


@jinja2.pass_context
def _each(context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterator[Any]:
    return ROOM.get().each(items)


@jinja2.pass_context
def _weighed(context: jinja2.runtime.Context, value: Any) -> Any:
    if type(value) not in _PLAIN:
        _bounded(ROOM.get().weigh(value))
    return value


def _written(value: Any) -> Any:
    """What a template writes: a list in lists may be longer than it looks."""
    if type(value) not in _PLAIN:
        _bounded(ROOM.get().weigh(value))
    return value


_PLAIN = (float, bool, type(None))


def _range(*args: int) -> range:
    return range(*args)


def _choice(options: Any) -> Any:
    options = list(options)
    if not options:
        raise jinja2.TemplateRuntimeError('`choice` of an empty list')
    return random.Random(ROOM.get().seed()).choice(options)


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


ENVIRONMENT = _sandbox()
