"""Profiler traces of chosen steps, and one page a trace that says where their time went.

A trace is TensorBoard's (`tensorboard --logdir RUN/profile`), `profile/STEP/`; the page beside it
is `profile/STEP.md`, and `profile/STEP.json` holds its numbers for the report. They are read from
the trace itself, without TensorFlow.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.profiler import ProfileData

from mtpt import files
from mtpt.config import UserError

FOLDER = 'profile'
SHOWN = 15  # operations on a page
STEP = 'train step'  # what a traced step is called in a trace

# What an operation is, by the name or the category that XLA gives it; the first that is found.
KINDS = {
    'collectives': r'all[-_]reduce|all[-_]gather|all[-_]to[-_]all|reduce[-_]scatter|collective|nccl'
    r'|psum|ppermute|^send|^recv',
    'matrix products': r'dot|gemm|matmul|conv(?!ert)|cublas|cutlass|xmma|nvjet|ynn|onednn|cudnn'
    r'|einsum|attention|splash|flash',
    'copies': r'memcpy|memset|infeed|outfeed|host-transfer'
    r'|^(wrapped_)?((copy|transpose|bitcast|slice|reshape|concatenate)[-_]?)+(start|done|fusion)?'
    r'( |$)',
}
CONTAINERS = r'^(while|conditional|call|async-)'  # they hold others, whose time is their own


class Tracer:
    """Traces the steps that were asked for, numbered as in the log; neighbours share a trace.

    Args:
      steps: which steps; none of them: nothing is traced.
      workdir: the folder of the run.

    `say` is told where a page was written, or that a trace failed, which ends no run.
    """

    def __init__(self, steps: Sequence[int] = (), workdir: str | pathlib.Path | None = None):
        self.steps = frozenset(steps)
        self._folder = pathlib.Path(workdir) / FOLDER if workdir is not None else None
        self._first = self._last = self._mark = None
        self.say: Callable[[str], None] = lambda text: None

    def step(self, step: int, state: Any) -> bool:
        """Called before step `step` (from 0) is dispatched; `state` is what the one before gave.

        Returns:
          Whether a trace began or ended here, and what was under way was waited for.
        """
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        wanted = step + 1 in self.steps and self._folder is not None
        before = self._first
        if self._first is not None and not wanted:
            self._end(state)
        if wanted and (self._first is not None or self._begin(step + 1, state)):
            self._last = step + 1
            self._mark = jax.profiler.StepTraceAnnotation(STEP, step_num=step + 1)
            self._mark.__enter__()
        return self._first != before

    def close(self, state: Any = None) -> None:
        """Ends a trace under way, and waits for `state` before."""
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        if self._first is not None:
            self._end(state)

    def _begin(self, step: int, state: Any) -> bool:
        jax.block_until_ready(state)  # what was dispatched before is not of this step
        try:
            jax.profiler.start_trace(str(self._folder / f'{step:08d}'))
        except Exception as error:
            self.steps = frozenset()
            self.say(f'step {step} cannot be traced ({error}); training goes on')
            return False
        self._first = step
        return True

    def _end(self, state: Any) -> None:
        first, last, self._first = self._first, self._last, None
        jax.block_until_ready(state)
        try:
            jax.profiler.stop_trace()
            found = summarise(self._folder / f'{first:08d}', first, last)
            files.write(self._folder / f'{first:08d}.json', json.dumps(found.plain(), indent=1))
            page = self._folder / f'{first:08d}.md'
            files.write(page, markdown(found))
            self.say(f'profile of {_steps(first, last)}: {page}')
        except Exception as error:
            self.say(f'the trace of step {first} cannot be summed up ({error})')


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a trace says of its steps.

    seconds: of wall time; busy: the share of it in which a device computed, the mean over them;
    kinds: shares of the computing time; operations: (name, kind, seconds a step and device, calls).
    """

    first: int
    last: int
    seconds: float
    devices: int
    busy: float
    kinds: dict[str, float]
    operations: tuple[tuple[str, str, float, float], ...]

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


def summarise(folder: str | pathlib.Path, first: int, last: int) -> Summary:
    """Reads the newest trace under a folder.

    Raises:
      UserError: there is no trace, or it holds no operation.
    """
    paths = sorted(pathlib.Path(folder).glob('plugins/profile/*/*.xplane.pb'))
    if not paths:
        raise UserError(f'{folder} holds no trace')
    lines = list(_lines(ProfileData.from_file(str(paths[-1]))))
    spans, own, calls = collections.defaultdict(list), collections.Counter(), collections.Counter()
    kinds: dict[str, str] = {}
    for device, events in lines:
        for name, category, begin, end, alone in _alone(events):
            spans[device].append((begin, end))
            name = _shared_name(name)
            kinds.setdefault(name, _kind(name, category))
            own[name] += alone
            calls[name] += 1
    total = sum(own.values())
    if not total:
        raise UserError(f'the trace in {folder} holds no operations of a device')
    ends = [span for of in spans.values() for span in of]
    wall = max(end for _, end in ends) - min(begin for begin, _ in ends)
    busy = sum(_covered(of) for of in spans.values()) / wall / len(spans)
    shares = collections.Counter()
    for name, seconds in own.items():
        shares[kinds[name]] += seconds / total
    each = (last - first + 1) * len(spans)
    operations = tuple(
        (name, kinds[name], seconds / each * 1e-9, calls[name] / each)
        for name, seconds in own.most_common(SHOWN)
    )
    return Summary(first, last, wall * 1e-9, len(spans), busy, dict(shares), operations)


def _lines(data: ProfileData) -> Iterator[tuple[str, list[tuple[str, str, float, float]]]]:
    """Of each thread or stream the device it is of, and (name, category, begin, end) in ns."""
    for plane in data.planes:
        on_device = plane.name.startswith('/device:') and 'CUSTOM' not in plane.name
        for line in plane.lines:
            if on_device and plane.name.startswith('/device:TPU') and line.name != 'XLA Ops':
                continue
            events: dict[str, list] = collections.defaultdict(list)
            for event in line.events:
                told = dict(event.stats)
                if 'hlo_op' not in told and not (on_device and 'TPU' in plane.name):
                    continue
                device = plane.name if on_device else f'cpu {told.get("device_ordinal", 0)}'
                name = str(told.get('hlo_op') or event.name)
                category = f'{told.get("hlo_category", "")} {event.name}'
                begin = float(event.start_ns)
                events[device].append((name, category, begin, begin + float(event.duration_ns)))
            yield from events.items()


def _alone(events: Iterable[tuple]) -> Iterator[tuple[str, str, float, float, float]]:
    """Events of a line with the time that is theirs alone, without that of events inside them."""
    stack: list[list] = []
    for name, category, begin, end in sorted(events, key=lambda e: (e[2], -e[3])):
        while stack and stack[-1][3] <= begin:
            yield tuple(stack.pop())
        if stack:
            stack[-1][4] -= min(end, stack[-1][3]) - begin
        stack.append([name, category, begin, end, end - begin])
    while stack:
        yield tuple(stack.pop())


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of spans."""
    total, reached = 0.0, float('-inf')
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _shared_name(name: str) -> str:
    """The name without the number that XLA puts behind it."""
    return re.sub(r'(\.\d+)+(\.clone|\.remat\d*)*$', '', name)


def _kind(name: str, category: str) -> str:
    told = f'{name} {category}'.lower()
    if re.match(CONTAINERS, name):
        return 'control'
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, told)), 'other')


def markdown(found: Summary) -> str:
    """The page of a trace."""
    shares = sorted(found.kinds.items(), key=lambda pair: -pair[1])
    lines = [
        f'# Profile of {_steps(found.first, found.last)}',
        '',
        f'{1e3 * found.seconds / found.count:.2f} ms a step on {found.devices} '
        f'device{"s" if found.devices > 1 else ""}, which computed {found.busy:.1%} of it and were '
        f'idle {1 - found.busy:.1%}.',
        '',
        '| of the computing time | share |',
        '| --- | ---: |',
        *(f'| {kind} | {share:.1%} |' for kind, share in shares),
        '',
        '| operation | kind | ms a step | calls a step |',
        '| --- | --- | ---: | ---: |',
        *(
            f'| `{name}` | {kind} | {1e3 * seconds:.3f} | {calls:.1f} |'
            for name, kind, seconds, calls in found.operations
        ),
        '',
        'Times are means over the steps and devices, of an operation without those inside it; '
        'kinds follow from the names that XLA gives, and a fusion is named after what is in it.',
    ]
    return '\n'.join(lines) + '\n'


def _steps(first: int, last: int) -> str:
    return f'step {first}' if first == last else f'steps {first} to {last}'
