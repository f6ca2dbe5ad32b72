"""What `mtpt plan` says beside what compilers say of the same step, and which models fit on what.

    python benchmarks/plan.py [--out=FOLDER] [--groups=held_out,large,configs] [--limit=1800]

Every case is the real train step of a config, compiled ahead of time for chips that are not here
(`mtpt.plan.compiled`; needs libtpu for TPUs and JAX's CUDA plug-in for GPUs; a case whose compiler
is not installed is named and left for another time). A result goes to FOLDER/CASE.json at once and
is not made again; one that failed or took too long is tried again with --again. FOLDER/table.md has
the tables of all that is there: --groups='' writes them anew and compiles nothing.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any, NamedTuple

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

GIB = 2**30


class Case(NamedTuple):
    """A config on a topology; overrides are 'section.key=value', as flags have them."""

    name: str
    config: str
    topology: str
    overrides: tuple[str, ...] = ()
    slices: int = 1
    effort: str = 'quick'
    search: bool = False  # the fastest layout that is estimated to fit, or the smallest


def mesh(**sizes: int) -> tuple[str, ...]:
    return tuple(
        f'mesh.{axis}={sizes.get(axis, 1)}' for axis in ('data', 'fsdp', 'expert', 'tensor')
    )


def base(remat: str, rows: int, *more: str) -> tuple[str, ...]:
    return (f'model.remat={remat}', f'data.batch_size={rows}', 'data.row_groups=4', *more)


SPARSE = 'model.size=switch_base_8'

# What the estimate of memory was made to agree with; `BY_HAND` was looked at too.
TUNED = (
    Case('tuned-none', 't5_base_c4', 'v5e:2x2', base('none', 32) + mesh(fsdp=4)),
    Case('tuned-dots', 't5_base_c4', 'v4:2x2x1', base('dots', 64) + mesh(fsdp=2, tensor=2)),
    Case('tuned-sparse', 't5_base_c4', 'v5e:2x2', base('full', 64, SPARSE) + mesh(expert=4)),
    Case('tuned-h100', 't5_base_c4', 'h100:1x8', base('dots', 64) + mesh(fsdp=8)),
    Case('tuned-parts', 't5_base_c4', 'v6e:2x2',
         base('full', 256, 'data.accumulation=4') + mesh(fsdp=4)),
)  # fmt: skip

# Beside the models and configs below: policies and meshes that those lack.
HELD_OUT = (
    Case('none-v6e', 't5_base_c4', 'v6e:2x4', base('none', 32, 'model.size=large') + mesh(fsdp=8)),
    Case('none-v5p', 't5_base_c4', 'v5p:2x2x1', base('none', 64, SPARSE) + mesh(data=2, expert=2)),
    Case('dots-v4', 't5_base_c4', 'v4:2x2x2',
         base('dots', 64, 'model.size=switch_base_16') + mesh(fsdp=2, expert=4)),
    Case('no_batch-v5e', 't5_base_c4', 'v5e:2x4',
         base('dots_with_no_batch_dims', 128, 'model.size=large') + mesh(fsdp=4, tensor=2)),
    Case('none-h100', 't5_base_c4', 'h100:1x8', base('none', 64) + mesh(data=2, fsdp=4)),
)  # fmt: skip

# By hand, before there was a search.
BY_HAND = (
    Case('ul2-v5p', 'ul2_20b', 'v5p:4x4x4', mesh(fsdp=64)),
    Case('switch_c-v5p', 'switch_c', 'v5p:8x8x8', mesh(expert=512)),
)

XXL = ('model.size=xxl', 'data.batch_size=1024', 'data.row_groups=64')


def large() -> tuple[Case, ...]:
    """T5 XXL, UL2 20B, ST-MoE 32B and Switch-C on published slices, as a search lays them out."""
    slices = dict(
        ul2=dict(v5p='4x4x4', v6e='8x16', h100='8x8', v4='4x4x8'),
        switch_c=dict(v5p='8x8x8', v4='8x8x16', v6e='16x16', h100='8x8'),
        st_moe=dict(v4='8x8x8', h100='8x8', v6e='16x16', v5p='4x4x8'),
        xxl=dict(v6e='8x8', h100='8x8', v4='4x4x4', v5p='4x4x4'),
    )
    named = dict(ul2='ul2_20b', switch_c='switch_c', st_moe='st_moe_32b', xxl='t5_base_c4')
    found = []
    for turn in range(4):  # every model once before any is there twice
        for model, places in slices.items():
            chip, shape = list(places.items())[turn]
            more = XXL if model == 'xxl' else ()
            name = f'search-{model}-{chip}'
            found.append(Case(name, named[model], f'{chip}:{shape}', more, search=True))
    return tuple(found)


def configs() -> tuple[Case, ...]:
    """Every config on the topology that it declares, where it declares none on a CPU."""
    import importlib

    from mtpt import flags
    from mtpt.mesh import MeshConfig

    found = []
    for name in flags.names():
        topology = getattr(importlib.import_module(f'mtpt.configs.{name}'), 'TOPOLOGY', 'cpu:1')
        if topology != 'cpu:1' and flags.load(name).mesh == MeshConfig():
            topology = 'cpu:1'  # declared for its larger models
        found.append(Case(f'config-{name}', name, topology))
    return tuple(sorted(found, key=lambda case: case.topology == 'cpu:1'))


def run(case: Case, folder: pathlib.Path, limit_s: float, again: bool) -> dict[str, Any] | None:
    """The result of a case, from the folder or made now; None where its compiler is missing."""
    from mtpt import files, flags
    from mtpt.chips import topology
    from mtpt.config import UserError
    from mtpt.plan import abstract, compiled, search

    file = folder / f'{case.name}.json'
    if file.exists():
        before = json.loads(file.read_text())
        if not again or before['result']['status'] not in compiled.AGAIN:
            return before
    settings = flags.load(case.config, [f'--config.{o}' for o in case.overrides])
    known, target = abstract.sizes(settings), topology(case.topology, case.slices)
    print(f'{time.strftime("%H:%M:%S")} {case.name}: {case.topology}', flush=True)
    try:
        compiled.package(target)
        layout = laid_out(settings, target, known) if case.search else None
        if layout:
            settings = search.applied(settings, layout)
        job = compiled.job(settings, target, known.V, known.M, effort=case.effort)
    except UserError as error:
        print(f'  left out: {error}', flush=True)
        return None
    result = compiled.compile_step(job, limit_s, folder / f'{case.name}.log')
    done = dict(case=case._asdict(), job=job.run, V=known.V, M=known.M, result=result)
    if layout:
        done['layout'] = layout
    files.write(file, json.dumps(done, indent=1))
    print(f'  {said(result)} ({result["process_s"]} s)', flush=True)
    return done


def laid_out(settings: Any, target: Any, known: Any) -> dict[str, Any]:
    """The layout that a search finds best, or where none fits the one that needs least."""
    from mtpt.plan import search

    found = search.search(settings, target, known, mfu=0.4)
    best = found['best'][0] if found['best'] else found['smallest']
    return best | dict(tried=found['tried'], fit=found['fit'])


def said(result: dict[str, Any]) -> str:
    if result['status'] != 'compiled':
        return f'{result["status"]}: {result["why"]}'
    return f'peak {result["bytes"]["peak"] / GIB:.2f} of {result["available"] / GIB:.2f} GiB'


def estimated(done: dict[str, Any]) -> dict[str, Any]:
    """What the estimate says of a case, and of which layout."""
    from mtpt import stages
    from mtpt.chips import topology
    from mtpt.config import read
    from mtpt.plan import abstract, memory
    from mtpt.settings import Run

    case, settings = done['case'], read(Run, done['job'])
    target = topology(case['topology'], case['slices'])
    laid = abstract.abstract_mesh(abstract.mesh_sizes(settings.mesh, target))
    known, platform = abstract.Sizes(done['V'], done['M']), target.chip.platform
    problem = abstract.problem(stages.legs(settings)[0], settings, laid, known, platform)
    began = time.process_time()
    found = memory.estimate(problem, platform)
    spent = time.process_time() - began
    sizes = (
        ', '.join(f'{axis}={n}' for axis, n in dict(laid.shape).items() if n > 1) or 'one device'
    )
    sparse = 'sparse' if problem.model.moe.E else 'dense'
    data = settings.data
    return found | dict(
        layout=sizes, sparse=sparse, remat=problem.model.remat, parts=data.accumulation,
        size=settings.model.size, seconds=spent,
    )  # fmt: skip


def tables(results: list[dict[str, Any]]) -> str:
    """What was compiled as Markdown."""
    own = {'tuned': TUNED + BY_HAND, 'configs': configs(), 'large': large(), 'held out': HELD_OUT}
    group = {case.name: name for name, cases in own.items() for case in cases}
    rows = [(done, estimated(done)) for done in results if done['case']['name'] in group]
    lines = [
        '| step | chips | layout | handed in, est. / compiled | peak, est. / compiled, GiB | |'
    ]
    lines.append('|---|---|---|---|---|---|')
    for tuned in (False, True):
        for done, told in rows:
            if (group[done['case']['name']] == 'tuned') == tuned and done['result'].get('needed'):
                lines.append(_compared(done, told, ' (tuned on)' * tuned))
    lines += ['', spread([r for r in rows if group[r[0]['case']['name']] != 'tuned']), '']
    for name in ('large', 'configs'):
        lines += ['', '| config | chips | layout | fits | compiled peak of what there is, GiB |']
        lines.append('|---|---|---|---|---|')
        lines += [_fitted(*r) for r in rows if group[r[0]['case']['name']] == name]
    return '\n'.join(lines) + '\n'


def _layout(told: dict[str, Any]) -> str:
    parts = f', {told["parts"]} parts' if told['parts'] > 1 else ''
    return f'{told["layout"]}{parts}, `{told["remat"]}`'


def _chips(done: dict[str, Any]) -> str:
    case = done['case']
    return case['topology'] + f' x {case["slices"]}' * (case['slices'] > 1)


def _compared(done: dict[str, Any], told: dict[str, Any], note: str) -> str:
    result = done['result']
    given = sum(told[name] for name in ('parameters', 'optimizer', 'batch'))
    has = result.get('bytes', {}).get('arguments')
    ratio = f'{given / has:.3f}' if has else ''
    peak = f'{told["peak"] / GIB:.2f} / {result["needed"] / GIB:.2f}'
    return (
        f'| {done["case"]["name"]}: {told["size"]}, {told["sparse"]}{note} | {_chips(done)} | '
        f'{_layout(told)} | {ratio} | {peak} | {told["peak"] / result["needed"]:.2f} |'
    )


def _fitted(done: dict[str, Any], told: dict[str, Any]) -> str:
    result, case = done['result'], done['case']
    name = case['config'] if case['config'] != 't5_base_c4' else f't5_base_c4, {told["size"]}'
    answer = {True: 'yes', False: 'no', None: result['status']}[result['fits']]
    available = f'{result["available"] / GIB:.2f}' if result.get('available') else ''
    much = f'{result["needed"] / GIB:.2f} of {available}' if result.get('needed') else ''
    return f'| {name} | {_chips(done)} | {_layout(told)} | {answer} | {much or result["why"]} |'


def spread(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """How far estimates are from compilers, over steps that compiled."""
    found = [(d, t) for d, t in rows if d['result']['status'] == 'compiled']
    if not found:
        return 'Nothing was compiled yet.'
    peaks = [t['peak'] / d['result']['needed'] for d, t in found]
    near = sum(abs(p - 1) <= 0.2 for p in peaks)
    chips = {d['case']['topology'].partition(':')[0] for d, _ in found}
    policies = {t['remat'] for _, t in found}
    given = [
        sum(t[n] for n in ('parameters', 'optimizer', 'batch')) / d['result']['bytes']['arguments']
        for d, t in found
    ]
    return (
        f'{len(found)} steps that nothing was tuned on, chips {", ".join(sorted(chips))}, policies '
        f'{", ".join(sorted(policies))}: peaks {min(peaks):.2f} to {max(peaks):.2f} of the '
        f"compiler's, {near} within 20 %; parameters, optimizer and batch {min(given):.3f} to "
        f'{max(given):.3f}.'
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='runs/plan')
    parser.add_argument('--groups', default='tuned,by_hand,held_out,large,configs')
    parser.add_argument('--only', default='', help='names of cases, with commas')
    parser.add_argument('--limit', type=float, default=1800, help='seconds a compile may take')
    parser.add_argument('--again', action='store_true', help='what failed or took too long')
    args = parser.parse_args(arguments)
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    groups = dict(
        tuned=lambda: TUNED,
        by_hand=lambda: BY_HAND,
        large=large,
        configs=configs,
        held_out=lambda: HELD_OUT,
    )
    for group in filter(None, args.groups.split(',')):
        for case in groups[group]():
            if not args.only or case.name in args.only.split(','):
                run(case, folder, args.limit, args.again)
    results = [json.loads(file.read_text()) for file in sorted(folder.glob('*.json'))]
    text = tables(results)
    (folder / 'table.md').write_text(text)
    print(text, flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
