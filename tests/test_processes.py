"""Several real processes are one run: the same batches, losses and weights as one process has."""

import numpy as np
import pytest
from labs import ONE, TWO, Layout, check_same, losses, micro

from mtpt.log import read_metrics

# What the order of a sum costs in float32: after 12 steps at most 2e-7 of a loss and 2e-6 of the
# largest weight of a leaf were found; AdamW makes a step as long however small the gradient is.
LOSS, WEIGHT = 2e-6, 2e-5
FOUR = Layout(4, fsdp=2, tensor=2)
DEVICES = Layout(2, 2, data=2, tensor=2)


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    return micro(tmp_path_factory.mktemp('processes'))


def same_to_rounding(lab, workdir):
    one = lab.undisturbed(ONE)
    ours, theirs = losses(workdir), losses(one)
    assert list(ours) == list(theirs) == list(range(1, lab.steps + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=LOSS)
    check_same(workdir, one, lab.steps, WEIGHT)


@pytest.mark.parametrize('layout', [TWO, FOUR, DEVICES], ids=str)
def test_several_processes_have_the_losses_of_one(lab, layout):
    same_to_rounding(lab, lab.undisturbed(layout))


def test_two_processes_have_the_very_weights_of_one_with_two_devices(lab):
    one = lab.undisturbed(TWO._replace(processes=1, devices=2))
    check_same(lab.undisturbed(TWO), one, lab.steps)


def test_validation_over_two_processes_sees_what_one_process_sees(lab):
    last = [read_metrics(lab.undisturbed(layout))[-1] for layout in (ONE, TWO)]
    valid = [{k: v for k, v in line.items() if k.startswith('valid/')} for line in last]
    assert valid[0] and valid[0].keys() == valid[1].keys()
    np.testing.assert_allclose(list(valid[0].values()), list(valid[1].values()), rtol=1e-4)


def test_a_run_goes_from_one_process_to_two_and_back(lab, tmp_path):
    """With the same global batches: 4 steps on one, 4 on two, 4 on one are 12 on one."""
    for steps, layout in ((4, ONE), (8, TWO), (12, ONE)):
        lab.finish(tmp_path / 'moved', layout, f'--config.train.steps={steps}')
    same_to_rounding(lab, tmp_path / 'moved')
