"""Numbers -> the coordinates of small charts, as plain dicts that the report's template draws.

A chart is drawn in a box of 1000 x 1000 that is stretched to its place on the page, with labels
laid beside it as text; so a chart is as wide as the window allows and its type keeps its size.
"""

import math
from collections.abc import Sequence
from typing import Any

Curve = list[tuple[int, float]]  # (step, value), by step
Thinned = list[tuple[float, float, float, float]]  # (step, mean, lowest, highest) of neighbours

SIDE = 1000
POINTS = 300


def chart(
    title: str, curves: dict[str, Curve], log: bool = False, top: float | None = None
) -> dict[str, Any] | None:
    """A chart of named curves over steps; None where there is nothing to draw.

    Args:
      title: its heading.
      curves: points by name; the name is the curve's class in the page's style.
      log: a logarithmic scale, where all values are positive and span more than a factor of ten.
      top: the end of the scale, where the metric has one.
    """
    thinned = {name: thin(curve, POINTS) for name, curve in curves.items()}
    values = [v for curve in thinned.values() for _, v, _, _ in curve]
    if not values:
        return None
    log = log and min(values) > 0 and max(values) > 10 * min(values)
    ticks = log_ticks(min(values), max(values)) if log else ticks_to(top or max(values))
    last = max(curve[-1][0] for curve in thinned.values() if curve)
    y = _log_scale(ticks) if log else _upwards(0, ticks[-1])
    lines = [_line(name, curve, _across(last), y) for name, curve in thinned.items() if curve]
    return dict(
        title=title + (' (log scale)' if log else ''),
        lines=lines,
        level=None,
        xticks=[(x * 100 / last, short(x)) for x in ticks_to(last, 4) if x <= last] if last else [],
        yticks=[(y(tick) * 100 / SIDE, short(tick)) for tick in ticks],
    )


def course(title: str, points: Sequence[tuple[int, dict]]) -> dict[str, Any] | None:
    """A macro score over steps with its interval, and chance as a level; None for one point."""
    if len(points) < 2:
        return None
    last = points[-1][0] or 1
    highest = max(s['high'] for _, s in points)
    ticks = ticks_to(1.0 if highest <= 1 else highest)
    x, y = _across(last), _upwards(0, ticks[-1])
    curve = [(step, s['value'], s['low'], s['high']) for step, s in points]
    line = dict(_line('score', curve, x, y), dots=[(x(s), y(v)) for s, v, _, _ in curve])
    chance = points[-1][1]['chance']
    return dict(
        title=title,
        lines=[line],
        level=None if chance is None else y(chance),
        xticks=[(t * 100 / last, short(t)) for t in ticks_to(last, 4) if t <= last],
        yticks=[(y(tick) * 100 / SIDE, short(tick)) for tick in ticks],
    )


def small(curves: Sequence[Thinned], last: int, top: float) -> dict[str, Any] | None:
    """Training and validation loss of one task on scales given by its neighbours."""
    x, y = _across(last), _upwards(0, top)
    lines = [_line(n, curve, x, y) for n, curve in zip(('train', 'valid'), curves) if curve]
    if not lines:
        return None
    return dict(lines=lines, level=None, yticks=[], last=lines[-1]['last'])


def strip(found: dict[str, Any], scale: float, dots: Sequence[float] = ()) -> dict[str, Any]:
    """A score, its interval, chance and single prompts: places on a line 0 .. `scale`, in %."""

    def place(value):
        return None if value is None else round(100 * min(max(value / scale, 0), 1), 2)

    marks = {key: place(found[key]) for key in ('value', 'low', 'high', 'chance', 'majority')}
    return dict(marks, dots=[place(dot) for dot in dots] if len(dots) > 1 else [])


def heat(names: Sequence[str], counts: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """A heat map: how each row's count is shared out over the columns; None for a broken table.

    Returns:
      `rows` with `name`, the row's `share` of all (0 to 1) and `cells`, pairs of (share of the row,
      count); `columns`, the labels that have room: all of few, some of many.
    """
    width = len(counts[0]) if counts else 0
    sound = all(len(row) == width and None not in map(number, row) for row in counts)
    if not width or not sound or len(names) != len(counts):
        return None
    total = sum(map(sum, counts)) or 1
    rows = []
    for name, row in zip(names, counts):
        whole = sum(row)
        cells = [(count / whole if whole else 0, count) for count in row]
        rows.append(dict(name=name, share=whole / total, cells=cells))
    every = -(-width // 24)
    return dict(rows=rows, columns=[i if i % every == 0 else '' for i in range(width)])


def thin(curve: Curve, points: int) -> Thinned:
    """Means and extremes of neighbours, at most `points` of them; drops what is not finite."""
    curve = [(step, value) for step, value in curve if math.isfinite(value)]
    size = max(1, math.ceil(len(curve) / points))
    found = []
    for start in range(0, len(curve), size):
        steps, values = zip(*curve[start : start + size])
        found.append((steps[-1], sum(values) / len(values), min(values), max(values)))
    return found


def _line(name, curve, x, y):
    band = ''
    if any(high > low for _, _, low, high in curve) and len(curve) > 1:
        there = [(step, high) for step, _, _, high in curve]
        back = [(step, low) for step, _, low, _ in reversed(curve)]
        band = _path(there + back, x, y) + 'Z'
    points = [(step, value) for step, value, _, _ in curve]
    lone = [(x(points[0][0]), y(points[0][1]))] if len(points) == 1 else []
    return dict(name=name, path=_path(points, x, y), band=band, dots=lone, last=points[-1][1])


def _path(points, x, y):
    return 'M' + 'L'.join(f'{x(step)} {y(value)}' for step, value in points)


def _across(last):
    """Maps steps 0 .. last to the box, left to right."""
    return lambda step: round(SIDE * step / (last or 1))


def _upwards(low, high):
    """Maps [low, high] to the box, whose 0 is at the top; what lies outside stays at the edge."""
    span = (high - low) or 1
    return lambda value: round(SIDE * (1 - min(max((value - low) / span, 0), 1)))


def _log_scale(ticks):
    inner = _upwards(math.log(ticks[0]), math.log(ticks[-1]))
    return lambda value: inner(math.log(value))


def ticks_to(top: float, about: int = 4) -> list[float]:
    """0 and round numbers in equal steps up to at least `top`."""
    if top <= 0:
        return [0.0, 1.0]
    size = 10.0 ** math.floor(math.log10(top / about))
    size *= next(f for f in (1, 2, 2.5, 5, 10) if f * size * about >= top * (1 - 1e-9))
    return [i * size for i in range(math.ceil(top / size - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around a range of positive numbers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 5))
    return [10.0**e for e in range(first, last + stride, stride)]


def nice_above(value: float) -> float:
    """The next round number at or above a positive one."""
    return ticks_to(value)[-1]


def short(value: float | None) -> str:
    """A number in four signs or so: 0.0007, 1.25, 320, 33.6 M."""
    if value is None or not math.isfinite(value):
        return '–'
    for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e4, 'k')):
        if abs(value) >= size:
            return f'{value / (1e3 if unit == "k" else size):.3g} {unit}'
    if value == int(value):
        return f'{value:.0f}'
    return f'{value:.3g}' if abs(value) >= 1e-3 else f'{value:.0e}'.replace('e-0', 'e−')


def number(value: Any) -> float | None:
    """A finite number as it stands; None for whatever else a file may hold in its place."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
