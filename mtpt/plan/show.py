"""A plan on a terminal of 80 columns."""

from collections.abc import Iterable, Iterator
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

GIB = 2**30
CLOSE = 0.9  # of the memory: what estimates are wrong by may take the rest, as in `search.ROOM`


def show(figures: dict[str, Any]) -> None:
    """Prints a plan as `planned.plan` gives it."""
    console = rich.console.Console(highlight=False)
    for part in _parts(figures):
        console.print(part, soft_wrap=isinstance(part, rich.text.Text))
    for note in figures['notes']:
        console.print(rich.text.Text(f'note: {note}', style='dim'), soft_wrap=True)


def _parts(figures: dict[str, Any]) -> Iterator[Any]:
    target = figures['topology']
    slices = f' x {target["slices"]} slices' if target['slices'] > 1 else ''
    yield rich.text.Text.assemble(
        '\n',
        (f'{figures["name"]} on {target["name"]}{slices}', 'bold'),
        f': {_count(target["devices"], "device")}, {_count(target["hosts"], "host")}\n',
    )
    if 'search' in figures:
        yield from searched(figures['search'])
    if 'legs' not in figures:
        return
    yield model(figures)
    for leg in figures['legs']:
        yield memory(leg, figures)
        yield step(leg, figures)
        if leg['communication']:
            yield traffic(leg)
    yield run(figures)
    if 'compiled' in figures:
        yield from compiled(figures['compiled'])


def searched(told: dict[str, Any]) -> Iterator[Any]:
    """The best layouts, and the lines of a config that ask for the first of them."""
    usable = f'nine tenths of {told["available"] / GIB:,.2f} GiB a device'
    columns = ('parts', 'remat', 'GiB', 'a step', 'MFU')
    table = _table(f'{told["tried"]:,} layouts, {told["fit"]:,} fit', *columns)
    table.columns[2].justify, table.columns[2].no_wrap = 'left', True
    for row in told['best'] or [told['smallest']]:
        mesh = ', '.join(f'{axis}={n}' for axis, n in row['mesh'].items() if n > 1) or 'data=1'
        took = _seconds(row['seconds']['expected'])
        cells = (str(row['accumulation']), row['remat'], f'{row["peak"] / GIB:,.2f}', took)
        table.add_row(mesh, *cells, f'{row["mfu"]:.1%}')
    yield table
    if not told['best']:
        yield rich.text.Text(
            f'nothing fits in {usable}; the layout above needs least: take more chips, larger '
            'ones, or an optimizer with less state',
            style='bold red',
        )
        return
    yield rich.text.Text(f'fit: in {usable}; a tenth is kept free\n', style='dim')
    best = told['best'][0]
    mesh = ', '.join(f'{axis}={n}' for axis, n in best['mesh'].items() if n > 1)
    yield rich.text.Text(
        f'config.mesh = dict({mesh})\nconfig.data.accumulation = {best["accumulation"]}\n'
        f'config.model.remat = {best["remat"]!r}\n',
        style='bold',
    )


def model(figures: dict[str, Any]) -> rich.table.Table:
    """The layout, and the parameters."""
    table, sizes, has = _table(), figures['mesh'], figures['parameters']
    mesh = ', '.join(f'{axis}={n}' for axis, n in sizes.items() if n > 1) or 'data=1'
    table.add_row('mesh', mesh)
    table.add_row('remat', figures['remat'])
    table.add_row('compute, optimizer', f'{figures["dtype"]}, {figures["optimizer"]}')
    told = f'{_number(has["total"])} in all'
    if has['active'] != has['total']:
        told += f', {_number(has["active"])} active on the path of a token'
    table.add_row('parameters', told)
    parts = {k: v for k, v in has.items() if k not in ('total', 'active', 'expert') and v}
    table.add_row('', ', '.join(f'{name} {_number(n)}' for name, n in parts.items()))
    if has['expert']:
        table.add_row('one expert', _number(has['expert']))
    return table


def memory(leg: dict[str, Any], figures: dict[str, Any]) -> rich.table.Table:
    """Bytes of a device by category."""
    table = _table('memory of a device' + _stage(leg), 'GiB')
    for name, n in leg['memory'].items():
        if name != 'peak' and isinstance(n, (int, float)):
            table.add_row(name.replace('_', ' '), f'{n / GIB:,.3f}')
    table.add_section()
    said, style = verdict(leg['memory']['peak'], leg['available'])
    mark = rich.text.Text(f'peak, {said}', style=style)
    table.add_row(mark, f'{leg["memory"]["peak"] / GIB:,.3f}')
    cache = figures['kv_cache']
    if cache['rows']:
        what = f'KV cache of {_count(cache["rows"], "row")}, when decoding'
        table.add_row(rich.text.Text(what, style='dim'), f'{cache["bytes"] / GIB:,.3f}')
    return table


def verdict(peak: float, available: float) -> tuple[str, str]:
    """Whether an estimate fits, and the style in which that is said."""
    much = f'{available / GIB:,.2f}'
    if peak > available:
        return f'does not fit in {much}', 'bold red'
    if peak > CLOSE * available:
        return f'close to {much}: only --compile can tell whether it fits', 'bold yellow'
    return f'fits in {much}', 'green'


def step(leg: dict[str, Any], figures: dict[str, Any]) -> rich.table.Table:
    """FLOPs and time of a step, and what bounds it."""
    table, done, took, has = (
        _table(f'a step{_stage(leg)}'), leg['flops'], leg['seconds'], leg['intensity']
    )  # fmt: skip
    parts = f', in {leg["accumulation"]} parts' if leg['accumulation'] > 1 else ''
    lengths = f'{leg["inputs_length"]:,} + {leg["targets_length"]:,}'
    table.add_row('batch', f'{leg["rows"]:,} rows of {lengths} positions{parts}')
    least = '' if done['exact'] else ' at least (a loop has no known length)'
    table.add_row('FLOPs of the model', f'{_number(done["model"])}{least}')
    if done['slots'] > 0.01 * done['model']:
        table.add_row('with empty slots', _number(done['model'] + done['slots']))
    again = done['recomputed'] / done['model'] if done['model'] else 0.0
    mean = ', as routing is expected' if done['expected'] else ''
    table.add_row('with recomputation', f'{_number(done["hardware"])} (+{again:.1%}){mean}')
    table.add_row('of a device', _number(done['device']))
    mfu = figures['mfu']
    table.add_row('FLOPs a byte of HBM', _ridge(has['memory'], has['memory_ridge'], mfu))
    if has['links']:
        table.add_row('FLOPs a byte sent', _ridge(has['links'], has['links_ridge'], mfu))
    table.add_row(f'products at {mfu:.0%} of peak', _seconds(took['products']))
    table.add_row('reading, writing HBM', _seconds(took['memory']))
    if took['weights']:
        table.add_row('sending weights, gradients', f'{_seconds(took["weights"])} meanwhile')
    if took['host']:
        table.add_row('to and from the host', f'{_seconds(took["host"])} meanwhile')
    if took['activations']:
        table.add_row('sending activations', f'{_seconds(took["activations"])} in between')
    table.add_row('expected', f'{_seconds(took["expected"])}, by {_bound(took)}')
    return table


def _ridge(has: float, ridge: float, mfu: float) -> str:
    """FLOPs a byte beside the number from which on products take longer than the bytes."""
    return f'{has:,.0f} (ridge: {ridge:,.0f} at peak, {ridge * mfu:,.0f} at {mfu:.0%})'


def _bound(took: dict[str, float]) -> str:
    """What a step waits for: the longest of all that goes on at once, and what comes between."""
    names = dict(products='products', memory='HBM', weights='weights', host='the host')
    longest = names[max(names, key=took.get)]
    return longest + (' and activations' if took['activations'] else '')


def traffic(leg: dict[str, Any]) -> rich.table.Table:
    """What a device sends in a step."""
    slow = any(line['slow'] for line in leg['communication'])
    columns = ('along', 'GB', *(['GB over the slow link'] if slow else []), 'ms')
    table = _table('sent by a device in a step' + _stage(leg), *columns)
    for line in leg['communication']:
        far = [f'{line["slow"] / 1e9:,.3f}'] if slow else []
        cells = [f'{line["sent"] / 1e9:,.3f}', *far, f'{line["seconds"] * 1e3:,.1f}']
        table.add_row(line['kind'], ' x '.join(line['axes']), *cells)
    return table


def run(figures: dict[str, Any]) -> rich.table.Table:
    """How long the run takes and what it costs, as stated and as expected."""
    told, mfu, legs = figures['run'], figures['mfu'], figures['legs']
    table = _table(
        f'{told["steps"]:,} steps, {_number(told["tokens"])} positions',
        f'at MFU {mfu:.0%}', 'expected',
    )  # fmt: skip
    rows = {'': told['days'] * 86400, 'expected_': told['expected_days'] * 86400}
    if len(legs) == 1:
        table.add_row('a step', *(_seconds(s / told['steps']) for s in rows.values()))
    table.add_row('MFU', f'{mfu:.1%}', f'{mfu * rows[""] / rows["expected_"]:.1%}')
    table.add_row('positions a second', *(_number(told['tokens'] / s) for s in rows.values()))
    table.add_row('days', *(f'{s / 86400:,.2f}' for s in rows.values()))
    table.add_row('chip-hours', *(_amount(told[f'{p}chip_hours']) for p in rows))
    if 'dollars' in told:
        price = f'dollars, at {figures["price"]:,g} a chip-hour'
        table.add_row(price, *(_amount(told[f'{p}dollars']) for p in rows))
    return table


def compiled(told: dict[str, Any]) -> Iterator[Any]:
    """What the compiler says: peak memory, whether it fits, collectives."""
    table = _table(f'compiled for {told["topology"]}')
    table.add_row('status', told['status'] + (f': {told["why"]}' if told.get('why') else ''))
    if told.get('needed'):
        much = f'{told["needed"] / GIB:,.2f} GiB of {told["available"] / GIB:,.2f} a device'
        table.add_row('peak memory', much)
    if told.get('fits') is not None:
        style = 'green' if told['fits'] else 'bold red'
        table.add_row('', rich.text.Text('fits' if told['fits'] else 'does not fit', style=style))
    if 'seconds' in told:
        spent = ', '.join(f'{name} {_seconds(s)}' for name, s in told['seconds'].items())
        table.add_row('took', spent)
    yield table
    if not told.get('collectives'):
        return
    table = _table('collectives of the program', 'along', 'in it', 'run in a step', 'GB held')
    for row in told['collectives']:
        where = 'in a loop' if row['loop'] else 'once'
        ran = (f'{row["count"]:,}', f'{row["times"]:,}', f'{row["bytes"] / 1e9:,.3f}')
        table.add_row(row['kind'], where, *ran)
    table.columns[1].header = ''
    yield table
    yield rich.text.Text(
        'GB held: on a device the larger of operands and results, in all runs of a step\n',
        style='dim',
    )


def _table(title: str = '', *columns: str) -> rich.table.Table:
    """A table whose first column has names; the others numbers, unless they have no heads."""
    table = rich.table.Table(
        title, *columns, box=rich.box.SIMPLE_HEAD, pad_edge=False, show_header=bool(title),
        header_style='bold',
    )  # fmt: skip
    if not columns:
        table.add_column('')
    for i, column in enumerate(columns, 1):
        table.columns[i].justify = 'left' if column == 'along' else 'right'
        table.columns[i].overflow = 'fold'  # a name that is cut cannot be pasted
    return table


def _stage(leg: dict[str, Any]) -> str:
    return f', stage {leg["name"]}' if leg['name'] else ''


def _count(n: int, noun: str) -> str:
    return f'{n:,} {noun}{"s" * (n != 1)}'


def _number(n: float) -> str:
    """Four digits and a word: 19.46 billion."""
    for size, word in WORDS:
        if n >= size:
            return f'{n / size:.4g} {word}'
    return f'{n:,.4g}'


WORDS: Iterable[tuple[float, str]] = (
    (1e24, 'x 10^24'), (1e21, 'x 10^21'), (1e18, 'x 10^18'), (1e15, 'x 10^15'), (1e12, 'trillion'),
    (1e9, 'billion'), (1e6, 'million'), (1e3, 'thousand'),
)  # fmt: skip


def _amount(n: float) -> str:
    return f'{n:,.0f}' if n >= 100 else f'{n:,.3g}'


def _seconds(s: float) -> str:
    return f'{s:,.2f} s' if s >= 1 else f'{s * 1e3:,.3g} ms'
