"""What can go wrong around a run, each once: it ends as if nothing had been, or says what it was.

`benchmarks/faults.py` does the same over and over, with seeds.
"""

import random

import pytest
from disturbances import DISTURBANCES, Outcome, hanging_lab, hung
from labs import ROOT, micro


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    return micro(tmp_path_factory.mktemp('faults'))


@pytest.fixture
def done(lab, tmp_path, request):
    """Does a disturbance once, as a seed of its name says."""

    def do(name):
        disturbance, _ = DISTURBANCES[name]
        return disturbance(lab, tmp_path / 'run', random.Random(name))

    return do


def test_a_run_that_was_killed_ends_as_one_that_was_not(done):
    assert done('kill').ended == 'same'


def test_two_processes_that_were_killed_in_a_save_end_as_two_that_were_not(done):
    assert done('kill_two_in_a_save').ended == 'same'


def test_two_processes_of_which_one_is_killed_start_again_by_themselves(done):
    """The other does not go on alone, and does not wait for ever."""
    found = done('kill_one_of_two_with_restarts')
    assert found.times == 1 and 'starting it again' in found.said


def test_sigterm_to_one_process_of_two_saves_both_and_asks_for_another_start(done):
    assert 'SIGTERM' in done('sigterm_of_one_of_two').said


@pytest.mark.parametrize('name', ['full_disk', 'full_disk_with_its_log'])
def test_a_disk_that_fills_stops_saving_and_not_training(done, name):
    try:
        assert done(name).ended == 'same'
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize('how', ['cut', 'flipped'])
def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(done, how):
    assert done(f'{how}_checkpoint').ended == 'same'


@pytest.mark.parametrize('how', ['cut', 'flipped'])
def test_a_damaged_shard_is_named_and_not_trained_on(done, how):
    found = done(f'{how}_shard')
    assert found.ended == 'sentence' and '.shard' in found.said


@pytest.mark.parametrize('how', ['cut', 'flipped'])
def test_a_damaged_manifest_is_named_and_not_trained_by(done, how):
    found = done(f'{how}_manifest')
    assert found.ended == 'sentence' and 'manifest.json' in found.said


def test_a_source_that_hangs_is_named_and_the_run_asks_to_be_started_again(tmp_path):
    found = hung(hanging_lab(tmp_path), tmp_path / 'run', random.Random(0), to_the_end=False)
    assert 'watchdog' in found.said


def test_a_host_that_never_starts_is_named(done):
    assert done('missing_host').ended == 'sentence'


def test_a_second_run_in_a_folder_is_refused(done):
    found = done('two_runs_in_one_folder')
    assert 'is being trained in' in found.said


def test_a_clock_that_jumps_changes_nothing(done):
    assert done('clock_jumps').ended == 'same'


def test_the_benchmark_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import faults

    drawn = []

    def does(lab, place, rng):
        drawn.append(rng.random())
        assert len(drawn) != 4, 'it ended otherwise'
        return Outcome('same', 1, back=(2.0,))

    monkeypatch.setattr(faults, 'ALL', dict(kill=(does, 1)))
    monkeypatch.setattr(faults, 'lab_of', lambda name, work: None)
    out = tmp_path / 'out.jsonl'
    for times, number, status in ((2, 2, 0), (3, 3, 0), (3, 3, 0), (4, 4, 1)):
        flags = [f'--times={times}', f'--out={out}', f'--work={tmp_path}']
        monkeypatch.setattr('sys.argv', ['faults', *flags])
        assert faults.main() == status and len(set(drawn)) == number
        with open(out, 'a') as file:
            file.write('{"name": "kill", ')  # the machine went down while it was written
    said = capsys.readouterr().out.splitlines()
    assert '| kill | 3 | 3 | 0 | 0 | 2.0 (2.0) |' in said
    assert '| kill | 4 | 3 | 0 | 1 | 2.0 (2.0) |' in said
