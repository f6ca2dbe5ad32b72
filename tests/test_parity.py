"""Parity with Hugging Face's T5 1.0, T5 1.1, mT5, ByT5, UL2 and Switch.

`python tests/test_parity.py` writes the reference again (PyTorch and transformers needed): inputs,
logits, loss, gradients and greedy outputs of tiny models. Their random weights are not kept but
drawn again, from NumPy's `RandomState`, whose numbers are the same in every version.
"""

import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtpt import trees
from mtpt.convert import names
from mtpt.convert.hugging_face import config_from
from mtpt.mesh import make_mesh
from mtpt.model.config import ModelConfig, resolve
from mtpt.model.decode import greedy, log_probs
from mtpt.model.functional import apply, dims

REFERENCE = pathlib.Path(__file__).parent / 'data' / 'parity.npz'
WRITTEN = 12

# Every size differs from every other, so that no axis can stand in for another.
SIZES = dict(V=20, D=8, H=2, K=3, F=10, encoder_layers=2, decoder_layers=2, tied=False, mlp='geglu')
SWITCH = dict(E=3, encoder=2, decoder=2, dispatch='dropless')
KINDS = dict(
    t5=dict(mlp='relu', tied=True),
    t5_1_1=dict(),
    mt5=dict(V=24),
    byt5=dict(V=22, encoder_layers=3, decoder_layers=1),
    ul2=dict(mlp='swiglu', tied=True),
    switch=dict(mlp='relu', tied=True, moe=SWITCH),
)
# Other sizes, and a row long enough for the last bucket of distances.
LARGER = dict(V=50, D=24, H=3, K=8, F=20, encoder_layers=4, decoder_layers=2)

jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))


def config(kind, **changes):
    from mtpt.config import read

    fields = SIZES | KINDS[kind] | changes
    return resolve(read(ModelConfig, dict(size='base', **fields)))


def drawn(cfg, seed):
    """Random weights by Hugging Face's names, in their layout."""
    rng, found = np.random.RandomState(seed), {}
    for place in names.places(cfg):
        name = names.hugging_face(cfg, place)
        # Deviations at which attention and the router choose, and nothing overflows.
        table = any(word in name for word in ('shared', 'bias', 'lm_head', 'classifier'))
        noise = rng.standard_normal(names.linear_shape(place)) * (0.6 if table else 0.2)
        found[name] = (noise + ('norm' in name)).astype(np.float32)
    return found


def hugging_face(kind, cfg, seed, S, T, B=3):
    """A model of theirs with those weights run once: what a reference holds, as NumPy arrays."""
    torch = pytest.importorskip('torch')
    model = live_model(kind, cfg)
    weights = drawn(cfg, seed)
    with torch.no_grad():
        held = dict(model.named_parameters())
        assert held.keys() == weights.keys()
        for name, x in held.items():
            x.copy_(torch.from_numpy(weights[name]))
    rng = np.random.RandomState(seed + 1)
    inputs, targets = (rng.randint(2, cfg.V, (B, n)) for n in (S, T))
    inputs[-1, S // 2 :] = 0
    targets[0, T - 3 :] = 0
    inputs_pt, targets_pt = torch.from_numpy(inputs), torch.from_numpy(targets)
    mask = (inputs_pt > 0).long()
    labels = torch.where(targets_pt > 0, targets_pt, -100)
    run = model(input_ids=inputs_pt, attention_mask=mask, labels=labels)
    run.loss.backward()
    written = model.generate(
        input_ids=inputs_pt,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        max_new_tokens=WRITTEN,
    )[:, 1:]
    out = {'inputs': inputs, 'targets': targets, 'seed': np.array(seed)}
    out |= {'logits': run.logits.detach().numpy(), 'loss': run.loss.detach().numpy()}
    out['written'] = np.pad(written.numpy(), ((0, 0), (0, WRITTEN - written.shape[1])))
    for name, x in model.named_parameters():
        # An expert that no token went to has none.
        out[f'gradient/{name}'] = np.zeros(x.shape) if x.grad is None else x.grad.numpy()
    narrow = {'int64': np.int32, 'float64': np.float32}
    return {name: x.astype(narrow.get(str(x.dtype), x.dtype)) for name, x in out.items()}


def live_model(kind, cfg):
    """A model of theirs of our config, for evaluation."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    theirs = dict(mt5='MT5', switch='SwitchTransformers').get(kind, 'T5')
    told = config_from(cfg, dict(model_type=theirs.lower()))
    theirs_cfg = getattr(transformers, f'{theirs}Config')(**told)
    model = getattr(transformers, f'{theirs}ForConditionalGeneration')(theirs_cfg).eval()
    if not cfg.tied:  # some versions tie the head all the same: give it weights of its own
        model.lm_head.weight = torch.nn.Parameter(torch.empty(cfg.V, cfg.D))
    return model


def check(reference, cfg):
    """Logits, loss, every gradient and the greedy outputs agree with the reference."""
    gradients = {
        n.removeprefix('gradient/'): x for n, x in reference.items() if n.startswith('gradient/')
    }
    gradients = trees.flatten(names.from_hugging_face(gradients, cfg))
    weights = names.from_hugging_face(drawn(cfg, int(reference['seed'])), cfg)
    inputs, targets = reference['inputs'], reference['targets']
    real = targets > 0
    batch = dict(
        encoder_input_tokens=inputs,
        encoder_segment_ids=(inputs > 0).astype(np.int32),
        decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        decoder_segment_ids=np.ones_like(targets),
    )

    def loss(params):
        logits_BTV, _ = apply(cfg, params, batch)
        loss_BT = -log_probs(logits_BTV, targets)
        return jnp.sum(jnp.where(real, loss_BT, 0)) / real.sum(), logits_BTV

    with jax.set_mesh(make_mesh()):
        params = jax.tree.map(jnp.asarray, weights)
        assert trees.flatten(params).keys() == trees.flatten(dims(cfg)).keys()
        (value, logits), grads = jit(jax.value_and_grad(loss, has_aux=True))(params)
        written = greedy(cfg, params, inputs, WRITTEN)
    assert np.std(reference['logits']) > 0.5
    np.testing.assert_allclose(np.asarray(logits)[real], reference['logits'][real], atol=1e-4)
    np.testing.assert_allclose(value, reference['loss'], rtol=1e-5)
    for path, grad in trees.flatten(grads).items():
        expected = gradients[path]
        assert np.abs(expected).max() > 1e-4, path
        np.testing.assert_allclose(grad, expected, atol=1e-4 * np.abs(expected).max(), err_msg=path)
    np.testing.assert_array_equal(written, reference['written'])


def stored(kind):
    with np.load(REFERENCE) as held:
        return {n.removeprefix(f'{kind}/'): held[n] for n in held if n.startswith(f'{kind}/')}


@pytest.mark.parametrize('kind', KINDS)
def test_the_stored_run_is_reproduced(kind):
    reference = stored(kind)
    assert (reference['written'] == 1).any(), 'the reference should have a row that ends'
    check(reference, config(kind))


@pytest.mark.parametrize('kind', KINDS)
def test_the_live_library_is_reproduced(kind):
    cfg = config(kind, **LARGER)
    check(hugging_face(kind, cfg, seed=1, S=150, T=20), cfg)


if __name__ == '__main__':
    REFERENCE.parent.mkdir(exist_ok=True)
    held = {}
    for kind in KINDS:
        make = partial(hugging_face, kind, config(kind), S=140, T=10)
        seed = next(s for s in range(100) if (make(s)['written'] == 1).any())
        held |= {f'{kind}/{name}': x for name, x in make(seed).items()}
        print(f'{kind}: seed {seed}', file=sys.stderr)
    np.savez_compressed(REFERENCE, **held)
    print(f'{REFERENCE}: {REFERENCE.stat().st_size} bytes', file=sys.stderr)
