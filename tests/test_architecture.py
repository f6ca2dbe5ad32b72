"""The floors of the house: imports go downward, siblings stay apart, heavy things stay put."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]

FLOORS = {
    4: '__main__ convert flags run training plan layout stages opened settings prepare record '
    'exams task_ids specialisation extract inspect_tasks checking overlap scaffold shares beside '
    'diagnosis follow lineage sweep report score synthesise prompt_search wordings doctor versions '
    'supervise',
    3: 'train',
    2: 'evaluate',
    1: 'model tasks data checkpoint',
    0: 'allocator chips comparing config files folders hosts lock log mesh ngrams statuses trees '
    'vocabulary watch',
}
FLOORS = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
ALLOWED_SIBLINGS = {
    (f'data/{name}.py', 'tasks') for name in ('cache', 'jobs', 'exam_sets', 'fingerprints')
}


def _imports(path):
    """Every module that a file imports, also inside functions, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _room(dotted):
    parts = dotted.split('.')
    return parts[1] if parts[0] == 'mtpt' and len(parts) > 1 and parts[1] in FLOORS else None


def test_imports_only_go_down_the_floors():
    wrong = []
    for path in sorted((ROOT / 'mtpt').rglob('*.py')):
        inside = path.relative_to(ROOT / 'mtpt')
        room = inside.parts[0].removesuffix('.py')
        if room == '__init__':
            continue
        assert room in FLOORS, f'{inside} stands on no floor: add it to FLOORS'
        for other in {_room(name) for name in _imports(path)} - {None, room}:
            sibling = FLOORS[other] == FLOORS[room] and FLOORS[room] in (1, 2, 3)
            if FLOORS[other] > FLOORS[room] or sibling:
                if (str(inside), other) not in ALLOWED_SIBLINGS:
                    wrong.append(f'{inside} imports {other}')
    assert not wrong, wrong


def test_mixtures_import_only_tasks_and_the_ground_floor():
    wrong = []
    for path in sorted((ROOT / 'mixtures').rglob('*.py')):
        for name in _imports(path):
            room = _room(name)
            if room and room not in ('tasks', 'config', 'vocabulary', 'data'):
                wrong.append(f'{path.name} imports {name}')
            if room == 'data' and not name.startswith('mtpt.data.objectives'):
                wrong.append(f'{path.name} imports {name}')
    assert not wrong, wrong


def test_only_tasks_imports_seqio_and_tensorflow():
    heavy = {'seqio', 'tensorflow', 'tensorflow_datasets'}
    for path in sorted((ROOT / 'mtpt').rglob('*.py')):
        if path.relative_to(ROOT / 'mtpt').parts[0] == 'tasks':
            continue
        assert not heavy & {name.split('.')[0] for name in _imports(path)}, path


def test_training_evaluation_and_generation_leave_tensorflow_out():
    code = (
        'import sys, mtpt.train.loop, mtpt.evaluate.run, mtpt.model.decode, mtpt.data.loader;'
        "bad = {'tensorflow', 'seqio', 'tensorflow_datasets'} & set(sys.modules);"
        'assert not bad, bad'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from mtpt.__main__ import main; assert main(['--help']) == 0;"
        "bad = {'jax', 'numpy', 'absl', 'tensorflow', 'ml_collections'} & set(sys.modules);"
        'assert not bad, bad'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
