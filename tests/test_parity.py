"""Parity with Hugging Face's T5 1.1.

`python tests/test_parity.py` writes the reference again (PyTorch and transformers needed): weights,
inputs, logits, loss, gradients and greedy outputs of a tiny model with random weights.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtpt import trees
from mtpt.mesh import make_mesh
from mtpt.model.config import ModelConfig, resolve
from mtpt.model.decode import greedy, log_probs
from mtpt.model.functional import apply, dims

REFERENCE = pathlib.Path(__file__).parent / 'data' / 't5_v1_1_reference.npz'
SIZES = dict(V=40, D=16, H=2, K=8, F=24, encoder_layers=2, decoder_layers=2)
WRITTEN = 12


def config(**changes):
    return resolve(ModelConfig(**(SIZES | dict(tied=False) | changes)))


def from_hugging_face(state, cfg):
    """Our tree from the names and layouts of Hugging Face's T5 1.1; gradients convert alike."""

    def kernel(path, *shape):
        weight = state[path + '.weight'].T
        return weight.reshape(shape) if shape else weight

    def attention(path):
        q, k, v = (kernel(f'{path}.{name}', cfg.D, cfg.H, cfg.K) for name in 'qkv')
        return dict(q=q, k=k, v=v, o=kernel(f'{path}.o', cfg.H, cfg.K, cfg.D))

    def layer(stack, i):
        path = f'{stack}.block.{i}.layer'
        found = dict(attention=attention(f'{path}.0.SelfAttention'))
        names = ['attention', 'mlp']
        if stack == 'decoder':
            found['cross'] = attention(f'{path}.1.EncDecAttention')
            names.insert(1, 'cross')
        last = f'{path}.{len(names) - 1}.DenseReluDense'
        inner = dict(gate='wi_0', up='wi_1', down='wo')
        found['mlp'] = {ours: kernel(f'{last}.{theirs}') for ours, theirs in inner.items()}
        for j, name in enumerate(names):
            found[f'{name}_norm'] = dict(scale=state[f'{path}.{j}.layer_norm.weight'])
        return found

    def stack(name, layers):
        bias = f'{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
        stacked = jax.tree.map(lambda *x: np.stack(x), *[layer(name, i) for i in range(layers)])
        norm = dict(scale=state[f'{name}.final_layer_norm.weight'])
        return dict(relative_bias=state[bias], layers=stacked, norm=norm)

    tree = dict(
        token_embedding=state['shared.weight'],
        encoder=stack('encoder', cfg.encoder_layers),
        decoder=stack('decoder', cfg.decoder_layers),
    )
    return tree if cfg.tied else tree | dict(logits=dict(kernel=state['lm_head.weight'].T))


def hugging_face(seed, S, T, B=3, **changes):
    """A random T5 1.1 of theirs run once: everything that a reference holds, as NumPy arrays."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    cfg = config(**changes)
    theirs = transformers.T5Config(
        vocab_size=cfg.V,
        d_model=cfg.D,
        d_kv=cfg.K,
        d_ff=cfg.F,
        num_heads=cfg.H,
        num_layers=cfg.encoder_layers,
        num_decoder_layers=cfg.decoder_layers,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    # Some versions tie the head all the same: give it weights of its own.
    model.lm_head.weight = torch.nn.Parameter(torch.empty(cfg.V, cfg.D))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            table = any(word in name for word in ('shared', 'bias', 'lm_head'))
            noise = torch.from_numpy(rng.normal(size=x.shape) * (0.6 if table else 0.2))
            x.copy_(noise + ('norm' in name))
    inputs = rng.integers(2, cfg.V, (B, S))
    inputs[-1, S // 2 :] = 0
    targets = rng.integers(2, cfg.V, (B, T))
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
    out = {'inputs': inputs, 'targets': targets}
    out |= {'logits': run.logits.detach().numpy(), 'loss': run.loss.detach().numpy()}
    out['written'] = np.pad(written.numpy(), ((0, 0), (0, WRITTEN - written.shape[1])))
    for name, x in model.named_parameters():
        out[f'weight/{name}'] = x.detach().numpy()
        out[f'gradient/{name}'] = x.grad.numpy()
    narrow = {'int64': np.int32, 'float64': np.float32}
    return {name: x.astype(narrow.get(str(x.dtype), x.dtype)) for name, x in out.items()}


def check(reference, **changes):
    """Logits, loss, every gradient and the greedy outputs agree with the reference."""
    cfg = config(**changes)
    weights, gradients = (
        from_hugging_face(
            {n.removeprefix(kind): x for n, x in reference.items() if n.startswith(kind)}, cfg
        )
        for kind in ('weight/', 'gradient/')
    )
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
        (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        written = greedy(cfg, params, inputs, WRITTEN)
    assert np.std(reference['logits']) > 0.5
    np.testing.assert_allclose(np.asarray(logits)[real], reference['logits'][real], atol=1e-4)
    np.testing.assert_allclose(value, reference['loss'], rtol=1e-5)
    for path, grad in trees.flatten(grads).items():
        expected = trees.flatten(gradients)[path]
        assert np.abs(expected).max() > 1e-4, path
        np.testing.assert_allclose(grad, expected, atol=1e-4 * np.abs(expected).max(), err_msg=path)
    np.testing.assert_array_equal(written, reference['written'])


def test_the_stored_run_of_t5_1_1_is_reproduced():
    with np.load(REFERENCE) as stored:
        reference = dict(stored)
    assert (reference['written'] == 1).any(), 'the reference should have a row that ends'
    check(reference)


def test_the_live_library_is_reproduced():
    """Other weights and sizes, and a row long enough for the last bucket of distances."""
    changes = dict(D=24, H=3, F=20, encoder_layers=3, decoder_layers=1)
    check(hugging_face(seed=1, S=150, T=20, **changes), **changes)


if __name__ == '__main__':
    REFERENCE.parent.mkdir(exist_ok=True)
    seed = next(s for s in range(100) if (hugging_face(s, S=140, T=10)['written'] == 1).any())
    np.savez_compressed(REFERENCE, **hugging_face(seed, S=140, T=10))
    print(f'{REFERENCE}: seed {seed}, {REFERENCE.stat().st_size} bytes', file=sys.stderr)
