"""Checkpoints: whole or absent, kept by age and score, on any mesh, and clear about what is wrong.

N layers  D model width  H heads  K head width  F hidden width
"""

import functools
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtpt.checkpoint import CheckpointConfig, Checkpoints
from mtpt.config import UserError
from mtpt.mesh import MeshConfig, make_mesh, weight
from mtpt.train.optimizer import OptimizerConfig, make_optimizer
from mtpt.train.state import abstract_state, new_state

DIMS = {'up': 'DF', 'layers': {'scale': 'ND', 'q': 'NDHK'}}
SPLIT, OTHER = MeshConfig(fsdp=2, tensor=2), MeshConfig(data=8)


def weights(F, key):
    """A model of nothing but weights; F is its config."""
    sizes = dict(N=2, D=64, H=4, K=8, F=F)
    leaves, tree = jax.tree.flatten(DIMS)
    made = [
        jax.random.normal(k, [sizes[d] for d in letters], out_sharding=weight(letters))
        for k, letters in zip(jax.random.split(key, len(leaves)), leaves)
    ]
    return jax.tree.unflatten(tree, made)


@functools.cache
def optimizer(name='adafactor'):
    return make_optimizer(OptimizerConfig(name=name), DIMS, 10)


@functools.cache
def state(mesh=SPLIT):
    with jax.set_mesh(make_mesh(mesh)):
        return new_state(128, optimizer(), 0, weights)


def abstract(mesh=OTHER, F=128, name='adafactor'):
    return abstract_state(F, optimizer(name), make_mesh(mesh), weights)


def save(folder, steps, cfg=None, scores=()):
    """A folder with a checkpoint at each step, some of them judged."""
    checkpoints = Checkpoints(folder, cfg or CheckpointConfig())
    for step in steps:
        metrics = {'valid/loss': dict(scores)[step]} if step in dict(scores) else None
        position = dict(drawn=np.arange(3), epoch=np.int64(step))
        checkpoints.save(step, state(), position, dict(tasks=['a', 'b'], seed=7), metrics)
    checkpoints.wait()
    return checkpoints


def test_a_checkpoint_loads_onto_any_mesh_with_every_bit(tmp_path):
    checkpoints = save(tmp_path, [5])
    loaded, position, provenance = checkpoints.load(5, abstract(OTHER))
    for old, new, wanted in zip(*map(jax.tree.leaves, (state(), loaded, abstract(OTHER)))):
        assert new.sharding == wanted.sharding and new.dtype == old.dtype
        if not jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(old, new)
    keys = [np.asarray(jax.random.key_data(s.key)) for s in (state(), loaded)]
    np.testing.assert_array_equal(*keys)
    assert position == dict(drawn=[0, 1, 2], epoch=5)
    assert provenance == dict(tasks=['a', 'b'], seed=7)


def test_the_latest_and_the_best_are_kept(tmp_path):
    scores = [(1, 3.0), (2, 1.0), (3, 2.0), (5, float('nan'))]
    checkpoints = save(tmp_path, range(7), CheckpointConfig(keep=2, keep_best=1), scores)
    assert checkpoints.steps() == [2, 5, 6]
    assert (checkpoints.latest(), checkpoints.best()) == (6, 2)
    again = Checkpoints(tmp_path, CheckpointConfig(keep=2, keep_best=1, higher_is_better=True))
    assert (again.latest(), again.steps(), again.best()) == (6, [2, 5, 6], 2)


def test_parameters_alone_are_read_as_numpy_or_onto_a_mesh(tmp_path):
    save(tmp_path, [1, 2])
    reader = Checkpoints(tmp_path, read_only=True)
    params = reader.load_params()
    assert isinstance(params['layers']['q'], np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, params, state().params)
    placed = reader.load_params(1, abstract().params)
    assert placed['up'].sharding == abstract().params['up'].sharding
    assert reader.load_provenance()['seed'] == 7


def test_a_checkpoint_of_another_model_is_named_by_the_first_path_that_differs(tmp_path):
    checkpoints = save(tmp_path, [1])
    with pytest.raises(
        UserError, match=r'another model: up is \(64, 128\) there and \(64, 99\) here'
    ):
        checkpoints.load(1, abstract(MeshConfig(), F=99))
    with pytest.raises(UserError, match=r'another optimizer: opt_state/.* absent'):
        checkpoints.load(1, abstract(name='adamw'))


def test_missing_foreign_and_damaged_checkpoints_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r'no checkpoints in .*train there first'):
        Checkpoints(tmp_path / 'nowhere', read_only=True)
    with pytest.raises(UserError, match=r'no checkpoints in'):
        Checkpoints(tmp_path / 'fresh').load_params()
    checkpoints = save(tmp_path, [1, 2])
    with pytest.raises(UserError, match=r'no checkpoint 3 in .*; there are: 1, 2'):
        checkpoints.load(3, abstract())
    (tmp_path / 'checkpoints' / '9').mkdir()
    (tmp_path / 'checkpoints' / '9' / 'holiday.txt').write_text('not a checkpoint')
    with pytest.raises(UserError, match=r'9 .*damaged or foreign'):
        Checkpoints(tmp_path, read_only=True).load_params(9)
    shutil.rmtree(tmp_path / 'checkpoints' / '2' / 'params')
    with pytest.raises(UserError, match=r'2 .*damaged or foreign'):
        Checkpoints(tmp_path, read_only=True).load_params(2)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_full_disk_is_said_in_a_sentence_and_earlier_checkpoints_stay_whole(tmp_path):
    checkpoints = save(tmp_path, [1, 2])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r'free some space.*whole checkpoints: 1, 2'):
            checkpoints.save(3, state(), {}, {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = Checkpoints(tmp_path)
    assert again.steps() == [1, 2]
    again.load(2, abstract())
    save(tmp_path, [3])
    assert Checkpoints(tmp_path).latest() == 3


def test_what_is_saved_is_the_state_before_the_next_step_uses_it_up(tmp_path):
    """The step that follows an asynchronous save overwrites the buffers that are being saved."""
    grow = jax.jit(lambda x: x + 1, donate_argnums=0)
    with jax.set_mesh(make_mesh(MeshConfig())):
        big = state(MeshConfig())._replace(params=dict(x=jnp.zeros((2048, 1024))))
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=9, keep_best=0))
        for step in range(3):
            checkpoints.save(step, big, {}, {})
            for _ in range(4):
                big = big._replace(params=dict(x=grow(big.params['x'])))
        checkpoints.wait()
    for step in range(3):
        assert np.unique(checkpoints.load_params(step)['x']).tolist() == [4 * step]
