"""Laws of following a run: every checkpoint is judged once, whatever is pruned, cut or ended."""

import json
import shutil
import threading

import pytest
import tiny

from mtpt import checkpoint as ckpt
from mtpt import follow as module
from mtpt.__main__ import main
from mtpt.checkpoint import Checkpoints
from mtpt.config import UserError
from mtpt.follow import FollowConfig, Follower, mark
from mtpt.log import read_metrics
from mtpt.mesh import MeshConfig
from mtpt.opened import mesh_at_hand

QUICK = FollowConfig(poll=0.05, patience=0.3)


def make(folder, *flags, **changes):
    changes = (
        dict(
            exams=dict(tiny_new=dict(split='test', max_examples=8, elsewhere=True, at_start=True)),
            checkpoint=dict(every=2, keep=9),
            log=dict(every=2, tensorboard=False, profile=[3]),
        )
        | changes
    )
    config = tiny.write(folder, **changes)
    assert main(['train', f'--config={config}', f'--workdir={folder / "run"}', *flags]) == 0
    return folder / 'run'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run whose checkpoints after 2, 4 and 6 steps wait for a follower."""
    return make(tmp_path_factory.mktemp('followed'))


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'run')


def follow(run, **changes):
    told = []
    count = Follower(
        run, cfg=QUICK, say=told.append, sleep=lambda seconds: None, **changes
    ).follow()
    return count, told


def judged(run):
    return sorted(int(path.name[:8]) for path in (run / 'eval').glob('*-tiny_new.json'))


def measured(run):
    lines = (run / 'eval_metrics.jsonl').read_text().splitlines()
    return {line['step']: line['eval/tiny_new/accuracy'] for line in map(json.loads, lines)}


def test_what_is_left_to_a_follower_the_trainer_does_not_take(whole):
    assert not (whole / 'eval').exists()
    assert not any('eval/' in key for line in read_metrics(whole) for key in line)


def test_every_checkpoint_is_judged_once_also_over_restarts(run):
    assert follow(run) == (3, []) and judged(run) == [2, 4, 6]
    before = (run / 'eval/00000004-tiny_new.json').read_bytes()
    assert follow(run) == (0, [])
    (run / 'eval/00000002-tiny_new.json').unlink()
    assert follow(run) == (1, [])
    assert (run / 'eval/00000004-tiny_new.json').read_bytes() == before
    told = {line['step']: line for line in read_metrics(run)}
    for step, value in measured(run).items():
        assert told[step]['eval/tiny_new/accuracy'] == value and 'train/loss' in told[step]


def test_a_follower_gives_the_scores_that_evaluate_gives(run):
    follow(run)
    found = json.loads((run / 'eval/00000006-tiny_new.json').read_text())
    (run / 'eval/00000006-tiny_new.json').unlink()
    assert main(['evaluate', f'--workdir={run}', '--mixture=tiny_new', '--step=6']) == 0
    again = json.loads((run / 'eval/00000006-tiny_new.json').read_text())
    assert again['rows'] == found['rows'] and found['checkpoint'] == mark(run, 6)


@pytest.mark.parametrize('mesh', [dict(data=64), dict(data=16, fsdp=2), dict(fsdp=3, tensor=5)])
def test_a_run_is_judged_on_whatever_devices_are_at_hand(mesh):
    here = mesh_at_hand(MeshConfig(**mesh))
    assert here.devices.size <= 8
    kept = here.shape['fsdp'] == mesh.get('fsdp', 1)
    assert kept or (here.shape['fsdp'], here.shape['tensor']) == (1, 1)


def test_a_follower_has_devices_of_its_own(run):
    path = run / 'config.json'
    told = json.loads(path.read_text())
    told['config']['mesh'] = dict(data=64)
    path.write_text(json.dumps(told))
    assert follow(run, overrides=['max_examples=2'])[0] == 3


def test_a_checkpoint_that_was_trained_anew_is_judged_anew(run):
    follow(run)
    path = run / 'eval/00000004-tiny_new.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(checkpoint='another')))
    assert follow(run)[0] == 1


def test_a_checkpoint_that_is_pruned_meanwhile_stops_nothing(run, monkeypatch):
    real = module.opened.restored

    def pruned(asked, workdir, step, manifest):
        if step == 4:
            shutil.rmtree(workdir / 'checkpoints' / '4')
        return real(asked, workdir, step, manifest)

    monkeypatch.setattr(module.opened, 'restored', pruned)
    count, told = follow(run)
    assert count == 2 and judged(run) == [2, 6]
    assert len(told) == 1 and 'checkpoint 4 was removed' in told[0]


def test_a_checkpoint_that_goes_while_the_folder_is_opened_stops_nothing(run, monkeypatch):
    real, opened = ckpt._Manager, []

    def manager(folder, **kept):
        opened.append(folder)
        if len(opened) == 2:  # the run's last: the step was listed, and then it went
            shutil.rmtree(folder / '2')
            raise FileNotFoundError(folder / '2')
        return real(folder, **kept)

    monkeypatch.setattr(ckpt, '_Manager', manager)
    count, told = follow(run)
    assert count == 2 and judged(run) == [4, 6] and len(told) == 1 and 'removed' in told[0]


def test_a_folder_that_cannot_be_opened_and_does_not_change_is_said(run, monkeypatch):
    def manager(folder, **kept):
        raise FileNotFoundError(folder / '2')

    monkeypatch.setattr(ckpt, '_Manager', manager)
    with pytest.raises(UserError, match='checkpoint cannot be opened'):
        Checkpoints(run, read_only=True)


def test_a_damaged_checkpoint_is_named_and_left_out(run):
    for path in (run / 'checkpoints/4/params').rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    count, told = follow(run)
    assert count == 2 and judged(run) == [2, 6]
    assert len(told) == 1 and 'checkpoint 4 is left out' in told[0]


def test_a_checkpoint_that_is_not_whole_yet_is_not_looked_at(run):
    whole = run / 'checkpoints/4'
    whole.rename(run / 'checkpoints/4.orbax-checkpoint-tmp')
    (run / 'checkpoints/4.partial').mkdir()
    assert follow(run)[0] == 2 and judged(run) == [2, 6]


def test_a_follower_waits_for_a_run_that_is_still_going(run, tmp_path):
    """The run comes into being, its checkpoints one by one, under the follower's eyes."""
    later, kept = tmp_path / 'later', tmp_path / 'kept'
    shutil.move(run / 'checkpoints', kept)
    comes = [
        lambda: shutil.copytree(run, later),
        lambda: (later / 'checkpoints').mkdir(),
        *[lambda step=step: (kept / step).rename(later / 'checkpoints' / step) for step in '246'],
    ]
    seen = []

    def sleep(seconds):
        seen.append(judged(later))
        if comes:
            comes.pop(0)()

    cfg = FollowConfig(poll=1, patience=3)
    assert Follower(later, cfg=cfg, say=print, sleep=sleep).follow() == 3
    assert [2] in seen and [2, 4] in seen and judged(later) == [2, 4, 6]


def test_patience_ends_with_a_sentence_and_what_is_judged_stays(run):
    shutil.rmtree(run / 'checkpoints/6')
    with pytest.raises(UserError, match='no new checkpoint'):
        follow(run)
    assert judged(run) == [2, 4]


def test_a_mixture_can_be_named_and_settings_changed(run):
    count, _ = follow(run, mixture='tiny_new', overrides=['max_examples=3'])
    assert count == 3 and len(list((run / 'eval').glob('*@max_examples=3.json'))) == 3
    assert (run / 'eval_metrics.jsonl').read_text() == ''  # they are of another exam


def test_a_follower_keeps_up_with_a_run_in_another_thread(tmp_path):
    """Trainer and follower at once, one folder; the trainer keeps but one checkpoint."""
    failed = []
    told = []
    follower = Follower(tmp_path / 'run', cfg=FollowConfig(0.05, 120), say=told.append)

    def work():
        try:
            follower.follow()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    checkpoint = dict(every=1, keep=1, keep_best=0)
    make(tmp_path, checkpoint=checkpoint, train=dict(steps=8, validate_every=0))
    thread.join(timeout=300)
    assert not failed and not thread.is_alive()
    steps = judged(tmp_path / 'run')
    assert steps[-1] == 8 and set(measured(tmp_path / 'run')) == set(steps)
    assert all('was removed' in text for text in told)
    assert Checkpoints(tmp_path / 'run', read_only=True).latest() == 8


@pytest.mark.parametrize(
    'flags, said',
    [
        (['--step=2'], '--follow examines every checkpoint'),
        (['--poll=0'], '--poll=0.0 must be above 0'),
    ],
)
def test_flags_that_do_not_go_together_are_refused(run, capsys, flags, said):
    assert main(['evaluate', f'--workdir={run}', '--follow', *flags]) == 2
    assert said in capsys.readouterr().err


def test_the_verb_follows_to_the_end(run, capsys):
    assert main(['evaluate', f'--workdir={run}', '--follow', '--poll=0.1']) == 0
    assert '3 checkpoints were examined' in capsys.readouterr().out
    assert main(['report', f'--workdir={run}']) == 0
    page = (run / 'report.html').read_text()
    assert 'The course of tiny_new' in page and 'Where the time went' in page
    assert 'Profile: step 3' in page
