"""A training step against Hugging Face's PyTorch T5 of the same shape, weights and batch.

    python benchmarks/train_step.py [--size=small,mini] [--dtype=float32] [--steps=5]

Forward, backward and AdamW on full rows without dropout, on every core. Both start from the same
weights, so that the first loss must agree; then they step in turn, so that what else the machine
does touches both alike. Theirs runs as installed (`sdpa` attention) and with plain attention
(`eager`); the ratio is to the faster of the two. Tokens are those of inputs and targets.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time
import warnings

SHAPES = dict(  # rows, inputs, targets, vocabulary
    small=(8, 512, 114, 32128),
    mini=(16, 64, 32, 2048),
)
REPEATS = dict(small=1, mini=20)  # steps of one between steps of the other
ADAMW = dict(b1=0.9, b2=0.999, weight_decay=0.01)
RATE = 1e-3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--size', default=','.join(SHAPES))
    parser.add_argument('--dtype', default='float32', help='of our compute; theirs is float32')
    parser.add_argument('--steps', type=int, default=5)
    args = parser.parse_args()
    for size in args.size.split(','):
        measure(size, args.dtype, args.steps)


def measure(size: str, dtype: str, steps: int) -> None:
    """Prints a line for each contestant, and how the first losses compare."""
    B, S, T, V = SHAPES[size]
    batch = rows(B, S, T, V)
    theirs = {kind: hugging_face(size, V, kind) for kind in ('sdpa', 'eager')}
    run = {'mtpt': ours(size, V, dtype, theirs['sdpa'], batch)}
    run |= {f'transformers, {kind}': pytorch(model, batch) for kind, model in theirs.items()}
    first = {name: step() for name, step in run.items()}
    seconds = {name: [] for name in run}
    for _ in range(steps):
        for name, step in run.items():
            start = time.perf_counter()
            for _ in range(REPEATS[size]):
                step()
            seconds[name].append((time.perf_counter() - start) / REPEATS[size])
    print(f'{size}: {B} rows of {S}/{T}, V={V}, {len(os.sched_getaffinity(0))} cores, {dtype}')
    rates = {}
    for name, values in seconds.items():
        rates[name] = B * (S + T) / statistics.median(values)
        spread = f'{1e3 * min(values):.1f} to {1e3 * max(values):.1f}'
        print(
            f'  {name:<20} {1e3 * statistics.median(values):9.1f} ms a step ({spread}), '
            f'{rates[name]:8.0f} tokens/s, first loss {first[name]:.5f}'
        )
    ratio = rates['mtpt'] / max(rate for name, rate in rates.items() if name != 'mtpt')
    print(f'  mtpt makes {ratio:.2f} times the tokens/s', flush=True)


def rows(B: int, S: int, T: int, V: int) -> dict:
    """Full rows of one segment each."""
    import numpy as np

    rng = np.random.default_rng(0)
    targets = rng.integers(3, V, (B, T))
    batch = dict(
        encoder_input_tokens=rng.integers(3, V, (B, S)),
        encoder_segment_ids=np.ones((B, S)),
        encoder_positions=np.tile(np.arange(S), (B, 1)),
        decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        decoder_target_tokens=targets,
        decoder_loss_weights=np.ones((B, T)),
        decoder_segment_ids=np.ones((B, T)),
        decoder_positions=np.tile(np.arange(T), (B, 1)),
        segment_task_ids=np.ones((B, 1)),
    )
    return {name: x.astype(np.int32) for name, x in batch.items()}


def config(size: str, V: int, dtype: str = 'float32'):
    from mtpt.model.config import ModelConfig, resolve

    return resolve(ModelConfig(size=size, tied=False, dtype=dtype), V)


def ours(size, V, dtype, model, batch):
    """A function that takes a step of ours, from the weights of `model`, and gives the loss."""
    import jax

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'tests'))
    from test_parity import from_hugging_face

    from mtpt.mesh import make_mesh, place
    from mtpt.model import functional
    from mtpt.train.optimizer import OptimizerConfig, ScheduleConfig, make_optimizer
    from mtpt.train.state import TrainState, new_state
    from mtpt.train.step import make_train_step

    cfg = config(size, V, dtype)
    schedule = ScheduleConfig(name='constant', rate=RATE)
    optimizer = OptimizerConfig(name='adamw', schedule=schedule, **ADAMW)
    tx = make_optimizer(optimizer, functional.dims(cfg), 1000)
    weights = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    jax.set_mesh(make_mesh())
    fresh = new_state(cfg, tx, 0)
    params = jax.tree.map(
        lambda x, like: jax.device_put(x.copy(), like.sharding),
        from_hugging_face(weights, cfg),
        fresh.params,
    )
    state: list[TrainState] = [fresh._replace(params=params)]
    placed = place(batch, make_mesh())
    step = make_train_step(
        cfg, tx, 1, z_loss=0.0, label_smoothing=0.0, loss_normalizing_factor='tokens'
    )

    def take():
        state[0], metrics = step(state[0], placed)
        return float(jax.block_until_ready((metrics, state[0]))[0]['train/loss'])

    return take


def hugging_face(size: str, V: int, attention: str):
    """Their T5 1.1 of the size; the same random weights for every kind of attention."""
    import torch
    import transformers

    warnings.filterwarnings('ignore')
    cfg = config(size, V)
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    theirs = transformers.T5Config(
        vocab_size=V,
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
        use_cache=False,
        attn_implementation=attention,
    )
    model = transformers.T5ForConditionalGeneration(theirs).train()
    # Some versions tie the head all the same: give it weights of its own.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(V, cfg.D) * cfg.D**-0.5)
    return model


def pytorch(model, batch):
    """A function that takes a step of theirs and gives the loss."""
    import torch

    betas = ADAMW['b1'], ADAMW['b2']
    decay = ADAMW['weight_decay']
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=betas, weight_decay=decay, fused=True
    )
    inputs = torch.from_numpy(batch['encoder_input_tokens']).long()
    targets = torch.from_numpy(batch['decoder_target_tokens']).long()
    mask = torch.ones_like(inputs)

    def take():
        loss = model(input_ids=inputs, attention_mask=mask, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return take


if __name__ == '__main__':
    main()
