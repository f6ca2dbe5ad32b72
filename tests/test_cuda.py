"""What can be known of a GPU without one: the step is lowered for CUDA, and not run."""

import re
import types

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from mtpt.mesh import MeshConfig, make_mesh
from mtpt.model import functional
from mtpt.model.config import AttentionConfig, ModelConfig, resolve

B, S, T = 8, 16, 8
TENSOR = re.compile(r'tensor<([0-9x]+)xbf16>')


def fused_calls(monkeypatch, mesh, **changes):
    """(forward calls, backward calls) of cuDNN in the gradient of a model, each its shapes."""
    version = types.SimpleNamespace(cudnn_get_version=lambda: 91400)
    monkeypatch.setattr(fused_attention_stablehlo, 'cuda_versions', version)
    cfg = resolve(ModelConfig(size='micro', H=4, kernel='cudnn', dtype='bfloat16', **changes), 96)
    names = ('encoder_input_tokens', 'encoder_segment_ids')
    names += ('decoder_input_tokens', 'decoder_segment_ids')
    batch = {
        name: jax.ShapeDtypeStruct((B, S if name.startswith('encoder') else T), jnp.int32)
        for name in names
    }

    def loss(params, batch):
        return functional.apply(cfg, params, batch)[0].mean()

    with jax.set_mesh(make_mesh(mesh)):
        params = jax.eval_shape(lambda: functional.init(cfg, jax.random.key(0)))
        lowered = jax.jit(jax.grad(loss)).trace(params, batch).lower(lowering_platforms=('cuda',))
    calls = [line for line in lowered.as_text().splitlines() if '__cudnn$' in line]
    shapes = [TENSOR.findall(line.rpartition(' : ')[2]) for line in calls]
    backward = ['Backward' in line for line in calls]
    return [[s for s, back in zip(shapes, backward) if back is way] for way in (False, True)]


@pytest.mark.parametrize('mesh', [MeshConfig(), MeshConfig(data=2, tensor=2)])
def test_cudnn_takes_every_attention_with_its_bias_and_gives_the_gradient_of_the_bias(
    monkeypatch, mesh
):
    forward, backward = fused_calls(monkeypatch, mesh)
    b, h, K = B // mesh.data, 4 // mesh.tensor, 16
    q = {
        'encoder': f'{b}x{S}x{h}x{K}',
        'decoder': f'{b}x{T}x{h}x{K}',
    }
    bias = {'encoder': f'{b}x{h}x{S}x{S}', 'decoder': f'{b}x{h}x{T}x{T}', 'cross': f'{b}x1x{T}x{S}'}
    expected = [
        [q['encoder']] * 3 + [bias['encoder']],
        [q['decoder']] * 3 + [bias['decoder']],
        [q['decoder']] + [q['encoder']] * 2 + [bias['cross']],
    ]
    for operands in expected:
        assert any(call[:4] == operands for call in forward), (operands, forward)
    for place in ('encoder', 'decoder'):
        assert any(call.count(bias[place]) == 2 for call in backward), (place, backward)


def test_cudnn_takes_grouped_heads(monkeypatch):
    grouped = AttentionConfig(kv_heads=1)
    places = ('encoder_attention', 'decoder_attention', 'cross_attention')
    forward, _ = fused_calls(monkeypatch, MeshConfig(), **dict.fromkeys(places, grouped))
    assert all(call[1].split('x')[2] == '1' for call in forward) and len(forward) >= 3


def test_what_cudnn_gave_is_kept_where_products_are(monkeypatch):
    calls = {
        policy: [len(found) for found in fused_calls(monkeypatch, MeshConfig(), remat=policy)]
        for policy in ('dots', 'full')
    }
    assert calls['dots'] == [3, 3] and calls['full'] == [6, 3]
