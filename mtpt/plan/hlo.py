"""What a compiler says, read from its text: a program's collectives, and why it did not fit."""

import re
from collections import defaultdict
from typing import Any, NamedTuple

KINDS = (
    'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all',
    'collective-permute', 'collective-broadcast',
)  # fmt: skip
BITS = dict(pred=8, s2=2, u2=2, s4=4, u4=4, s8=8, u8=8, s16=16, u16=16, bf16=16, f16=16, s32=32,
            u32=32, f32=32, s64=64, u64=64, f64=64, c64=64, c128=128)  # fmt: skip
SHAPE = re.compile(r'\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]')
INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
OPCODE = re.compile(r'\s([a-z][a-z0-9\-]*)\(')
HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
CALLED = re.compile(
    r'\b(?:calls|body|condition|to_apply|called_computations|branch_computations|true_computation|'
    r'false_computation)=(?:\{([^}]*)\}|%?([\w.\-]+))'
)
ALONE = re.compile(r'replica_groups=(?:\{(?:\{\d+\},?)+\}|\[\d+,1\]<=)')  # groups of one device
NUMBER = r'(?P<{0}>[\d.]+)(?P<{0}_unit>[KMGT])'
NEEDED, AVAILABLE = NUMBER.format('needed'), NUMBER.format('available')
SHORTAGES = (
    rf'{NEEDED}\)? exceeds available \w+ \({AVAILABLE}',
    rf'Used {NEEDED} of {AVAILABLE}',
    rf'allocat\w* {NEEDED}',
)
UNITS = dict(K=2**10, M=2**20, G=2**30, T=2**40)


class Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes


def number_of_bytes(type_: str) -> int:
    """Bytes of an HLO type, all elements of a tuple together, without padding."""
    return sum(_bytes(*found) for found in SHAPE.findall(type_))


def _bytes(dtype: str, dims: str) -> int:
    size = BITS.get(dtype, 8 if dtype.startswith('f8') else 0)
    for d in filter(None, dims.split(',')):
        size *= int(d)
    return -(-size // 8)


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation of a module, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry, current = '', None
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            if opcode := OPCODE.search(match[2]):
                type_, rest = match[2][: opcode.start()], match[2][opcode.end() - 1 :]
                current.append(Instruction(match[1], type_, opcode[1], rest))
    return found, entry


def times(found: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    """How often a step runs each computation: bodies of loops as often as the loops go round."""
    counts: dict[str, int] = defaultdict(int)

    def visit(name: str, factor: int) -> None:
        counts[name] += factor
        for one in found.get(name, ()):
            rounds = trips(found, one) if one.opcode == 'while' else 1
            for called in _called(one):
                visit(called, factor * rounds)

    visit(entry, 1)
    return counts


def _called(one: Instruction) -> list[str]:
    names = []
    for several, single in CALLED.findall(one.rest):
        names += [n.strip().lstrip('%') for n in several.split(',')] if several else [single]
    return names


def trips(found: dict[str, list[Instruction]], loop: Instruction) -> int:
    """How often a `while` goes round: as told, or the largest constant of its condition, or 1."""
    if told := re.search(r'known_trip_count[^0-9]*(\d+)', loop.rest):
        return int(told[1])
    condition = re.search(r'condition=%?([\w.\-]+)', loop.rest)
    numbers = [1]
    for one in found.get(condition[1], ()) if condition else ():
        if one.opcode == 'constant' and one.type.startswith(('s32[]', 'u32[]', 's64[]')):
            numbers += map(int, re.findall(r'^\((\d+)\)', one.rest))
    return max(numbers)


def collectives(text: str) -> list[dict[str, Any]]:
    """The collectives of a compiled module by kind, a row a kind and place (`loop` or not).

    `count` is how many stand in the program, `times` how many a step runs, and `bytes` what they
    hold on a device in a step: the larger of operands and results, times how often they run. A
    collective that the compiler split over several computations counts once, and one that it
    combined of several counts once with the bytes of all. What is among groups of one is none.
    """
    found, entry = computations(text)
    runs = times(found, entry)
    looped = _in_loops(found, entry)
    types = {one.name: one.type for body in found.values() for one in body}
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, body in found.items():
        for one in body:
            kind = one.opcode.removesuffix('-start')
            if kind not in KINDS or not runs.get(name) or ALONE.search(one.rest):
                continue
            if seen.setdefault(_same(kind, one), name) != name:
                continue
            if kind == 'all-reduce' and 'all-reduce-scatter' in name:
                kind = 'reduce-scatter'
            loop = name in looped
            row = rows.setdefault(
                (kind, loop), dict(kind=kind, loop=loop, count=0, times=0, bytes=0)
            )
            row['count'] += 1
            row['times'] += runs[name]
            row['bytes'] += runs[name] * _held(one, types)
    return sorted(rows.values(), key=lambda row: -row['bytes'])


def _same(kind: str, one: Instruction) -> tuple[Any, ...]:
    """What the parts of a collective that was split have in common. The channel alone does not do:
    all that a `shard_map` asks for has the same."""
    channel = re.search(r'channel_id=(\d+)', one.rest)
    if not channel:
        return kind, one.name
    origin = re.search(r'op_name="([^"]*)"', one.rest)
    return kind, channel[1], *SHAPE.findall(_made(one)), origin and origin[1]


def _held(one: Instruction, types: dict[str, str]) -> int:
    """Bytes of a collective: of operands or results, whichever are more."""
    operands = one.rest[1 : one.rest.index(')')]
    given = sum(number_of_bytes(types.get(n, '')) for n in re.findall(r'%([\w.\-]+)', operands))
    return max(given, number_of_bytes(_made(one)))


def _made(one: Instruction) -> str:
    """The type of what comes out. That of a `-start` is (operands, results, ...), each of them a
    tuple where the compiler combined several collectives; an all-reduce's is its results."""
    parts = _parts(one.type)
    if not one.opcode.endswith('-start') or one.opcode == 'all-reduce-start' or len(parts) < 2:
        return one.type
    return parts[1]


def _parts(type_: str) -> list[str]:
    """The elements of a tuple's type; none of a type that is no tuple."""
    if not type_.startswith('('):
        return []
    parts, depth = [''], 0
    for letter in type_[1:-1]:
        depth += (letter in '([{') - (letter in ')]}')
        if letter == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += letter
    return parts


def _in_loops(found: dict[str, list[Instruction]], entry: str) -> set[str]:
    """The computations that a loop runs, directly or by calls."""
    inside: set[str] = set()

    def visit(name: str, loop: bool) -> None:
        if loop:
            inside.add(name)
        for one in found.get(name, ()):
            for called in _called(one):
                visit(called, loop or one.opcode == 'while')

    visit(entry, False)
    return inside


def usage(report: str) -> dict[str, Any]:
    """What a compiler's memory usage report says of the main memory.

    Returns:
      reserved: bytes with the gaps between buffers; largest: the largest places in it, with their
      bytes and the first of the shapes that take turns there. Empty where it says nothing.
    """
    of_main = report.partition('Memory Space:')[2].partition('Memory Space:')[0] or report
    total = re.search(r'Total bytes: (\d+)', of_main)
    if not total:
        return {}
    places = []
    row = r'^ *[\d.]+\w+\( *\d+%\); *([\d.]+)([KMGT]?)(?:i?B); *\d+; *\d+; (.*)$'
    for size, unit, shapes in re.findall(row, of_main, re.M)[:PLACES]:
        bytes_ = round(float(size) * UNITS.get(unit, 1))
        places.append(dict(bytes=bytes_, shapes=shapes.split(', ')[:4]))
    return dict(reserved=int(total[1]), largest=places)


PLACES = 12


def shortage(message: str) -> dict[str, int] | None:
    """What a compiler that ran out of memory asks for, and what there is, in bytes.

    None where the message is about something else. Either number may be missing.
    """
    if 'RESOURCE_EXHAUSTED' not in message and 'out of memory' not in message.lower():
        return None
    for pattern in SHORTAGES:
        if match := re.search(pattern, message):
            got = match.groupdict()
            return {
                name: round(float(got[name]) * UNITS[got[f'{name}_unit']])
                for name in ('needed', 'available')
                if got.get(name)
            }
    return {}
