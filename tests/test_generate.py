"""Answers token for token as Hugging Face's `generate` writes them, and the verb that gives them.

`python tests/test_generate.py` writes the reference again (PyTorch and transformers needed): the
weights of a tiny T5 1.1, inputs, choices, and what beam search finds in all its settings.
"""

import itertools
import pathlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ready

from mtpt.__main__ import main
from mtpt.config import UserError
from mtpt.convert.names import from_hugging_face
from mtpt.evaluate import rank_classification
from mtpt.evaluate.generate import Decoding, answers
from mtpt.evaluate.likelihood import by_token
from mtpt.mesh import MeshConfig, make_mesh, weight
from mtpt.model.config import AttentionConfig, ModelConfig, resolve
from mtpt.model.decode import Sampling, kept, sample
from mtpt.model.functional import apply, dims, init
from mtpt.model.search import beam_search
from mtpt.vocabulary import open_vocabulary

REFERENCE = pathlib.Path(__file__).parent / 'data' / 'generate_reference.npz'
SIZES = dict(V=48, D=16, H=2, K=8, F=24, encoder_layers=2, decoder_layers=2)
CFG = resolve(ModelConfig(**SIZES, tied=False))
B, S, T, EOS = 6, 20, 10, 1
BEAMS, PENALTIES = (2, 3, 4), (0.6, 1.0, 2.0)
CHOSEN = ((2, 0.0), (4, 1.0))  # beams and penalties of searches among choices
SETTINGS = list(itertools.product(BEAMS, PENALTIES, (False, True)))


def library(seed):
    """A T5 1.1 of theirs with random weights, whose answers end early and late; and inputs."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    theirs = transformers.T5Config(
        vocab_size=CFG.V,
        d_model=CFG.D,
        d_kv=CFG.K,
        d_ff=CFG.F,
        num_heads=CFG.H,
        num_layers=CFG.encoder_layers,
        num_decoder_layers=CFG.decoder_layers,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    # Some versions tie the head all the same: give it weights of its own.
    model.lm_head.weight = torch.nn.Parameter(torch.empty(CFG.V, CFG.D))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            table = any(word in name for word in ('shared', 'bias', 'lm_head'))
            x.copy_(torch.from_numpy(rng.normal(size=x.shape) * (0.6 if table else 0.3)))
            x += 'norm' in name
        model.lm_head.weight[EOS] *= 1.5
    inputs = rng.integers(2, CFG.V, (B, S)).astype(np.int32)
    inputs[1, S // 2 :] = 0
    inputs[2, 3:] = 0
    choices = rng.integers(2, CFG.V, (B, 5, 4)).astype(np.int32)
    choices[:, 1, :2] = choices[:, 0, :2]  # two that begin alike, and one that begins another
    choices[:, 2, 2:] = EOS, 0
    choices[:, 3, 0] = choices[:, 2, 0]
    choices[:, 3, 1:] = choices[:, 3, 1:] * 0 + [EOS, 0, 0]
    choices[:, [0, 1, 4], 3] = EOS
    return model, inputs, choices


def asked(model, inputs, **how):
    """What their `generate` writes: tokens [B, a, T] up to the end, and scores [B, a]."""
    torch = pytest.importorskip('torch')
    inputs_pt = torch.from_numpy(inputs).long()
    out = model.generate(
        input_ids=inputs_pt,
        attention_mask=(inputs_pt > 0).long(),
        do_sample=False,
        max_new_tokens=how.pop('max_new_tokens', T),
        return_dict_in_generate=True,
        output_scores=True,
        **how,
    )
    tokens = out.sequences[:, 1:].numpy()
    ended = np.cumsum(tokens == EOS, 1) - (tokens == EOS) > 0
    tokens = np.where(ended, 0, tokens).reshape(len(inputs), -1, tokens.shape[1])
    tokens = np.pad(tokens, ((0, 0), (0, 0), (0, T - tokens.shape[2])))
    return tokens.astype(np.int32), out.sequences_scores.numpy().reshape(tokens.shape[:2])


def label(beams, penalty, early):
    return f'{beams} {penalty} {early}'


def found(seed, settings=SETTINGS):
    """Everything that a reference holds, by the live library."""
    model, inputs, choices = library(seed)
    out = dict(inputs=inputs, choices=choices)
    for beams, penalty, early in settings:
        tokens, scores = asked(
            model,
            inputs,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=penalty,
            early_stopping=early,
        )
        out[f'tokens {label(beams, penalty, early)}'] = tokens
        out[f'scores {label(beams, penalty, early)}'] = scores

    def allowed(row, written):
        so_far = written.tolist()[1:]
        n = len(so_far)
        fits = [c for c in choices[row].tolist() if c[:n] == so_far and c[n : n + 1] > [0]]
        return [c[n] for c in fits] or [0]

    for beams, penalty in CHOSEN:
        tokens, scores = asked(
            model,
            inputs,
            num_beams=beams,
            length_penalty=penalty,
            max_new_tokens=choices.shape[-1],
            prefix_allowed_tokens_fn=allowed,
        )
        out[f'chosen {beams} {penalty}'] = tokens[:, :, : choices.shape[-1]]
        out[f'chosen scores {beams} {penalty}'] = scores
    weights = {f'weight/{n}': x.detach().numpy().copy() for n, x in model.named_parameters()}
    return out | weights


def weights_of(reference):
    named = {n.removeprefix('weight/'): x for n, x in reference.items() if n.startswith('weight/')}
    return jax.tree.map(jnp.asarray, from_hugging_face(named, CFG))


def check(reference, settings=SETTINGS):
    """Every hypothesis and score of every setting is the one of the reference."""
    params, inputs = weights_of(reference), reference['inputs']
    for beams, penalty, early in settings:
        tokens, scores = beam_search(CFG, params, inputs, T, beams, penalty, early, answers=beams)
        name = label(beams, penalty, early)
        np.testing.assert_array_equal(tokens, reference[f'tokens {name}'], err_msg=name)
        np.testing.assert_allclose(scores, reference[f'scores {name}'], atol=2e-5, err_msg=name)


def check_chosen(reference):
    """The best choice and its score are those of the reference."""
    params, choices = weights_of(reference), reference['choices']
    for beams, penalty in CHOSEN:
        tokens, scores = beam_search(
            *(CFG, params, reference['inputs'], choices.shape[-1], beams, penalty),
            choices_BOT=choices,
        )
        name = f'{beams} {penalty}'
        np.testing.assert_array_equal(tokens, reference[f'chosen {name}'], err_msg=name)
        np.testing.assert_allclose(scores, reference[f'chosen scores {name}'], atol=2e-5)


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh, ready.quick_to_compile():
        yield mesh


@pytest.fixture(scope='module')
def reference():
    with np.load(REFERENCE) as stored:
        return dict(stored)


@pytest.fixture(scope='module')
def params(reference, mesh):
    return weights_of(reference)


def asked_of_us(params, inputs, how, cfg=CFG, choices=None, batch_tokens=10_000):
    asked = [row[row > 0].tolist() for row in inputs]
    return answers(cfg, params, asked, T, batch_tokens, EOS, how, choices)


def options(choices):
    return [[c[c > 0].tolist() for c in row] for row in choices]


def test_beams_find_what_the_stored_run_found(reference):
    ends = (reference['tokens 4 1.0 False'] == EOS).any(-1)
    assert ends.any() and not ends.all(), 'the reference should have answers that end and others'
    check(reference)


def test_beams_find_what_the_live_library_finds():
    live = found(seed=3, settings=SETTINGS[1::4])
    check(live, SETTINGS[1::4])
    check_chosen(live)


def test_one_compilation_serves_every_penalty_and_both_ways_of_stopping(params, reference):
    beam_search(CFG, params, reference['inputs'], T, 2, 1.0, False)
    before = beam_search._cache_size()
    beam_search(CFG, params, reference['inputs'], T, 2, 0.3, True)
    beam_search(CFG, params, reference['inputs'], T, 2, 1.7, False)
    assert beam_search._cache_size() == before


def test_constrained_beams_find_what_the_stored_run_found(reference):
    check_chosen(reference)


def test_as_many_beams_as_choices_rank_them_as_rank_classification_does(params, reference):
    choices, inputs = options(reference['choices']), reference['inputs']
    asked = [row[row > 0].tolist() for row in inputs]
    ranked = rank_classification.scores(CFG, params, list(zip(asked, choices)), 10_000)
    said = asked_of_us(params, inputs, Decoding(number=5), choices=choices)
    for score_O, row, offered in zip(ranked, said, choices):
        order = np.argsort(-score_O)
        assert [answer.ids for answer in row] == [offered[i] for i in order]
        np.testing.assert_allclose([a.score for a in row], score_O[order], atol=1e-4)


def test_one_beam_among_choices_takes_the_likeliest_token_that_a_choice_has(params, reference):
    choices, inputs = reference['choices'], reference['inputs']
    said = asked_of_us(params, inputs, Decoding(beams=1), choices=options(choices))
    width = choices.shape[-1]
    for row, (answer,) in enumerate(said):
        before = np.zeros((B, width), np.int32)
        fits = choices[row]
        for t in range(width):
            batch = dict(
                encoder_input_tokens=inputs,
                encoder_segment_ids=(inputs > 0).astype(np.int32),
                decoder_input_tokens=before,
                decoder_segment_ids=np.ones_like(before),
            )
            logits_V = np.asarray(forward(params, batch))[row, t]
            best = max(set(fits[:, t].tolist()), key=lambda token: logits_V[token])
            assert answer.ids[t] == best
            fits = fits[fits[:, t] == best]
            if best == EOS:
                break
            before[row, t + 1 :] = [best, *[0] * (width - t - 2)]


@jax.jit
def forward(params, batch):
    return apply(CFG, params, batch)[0]


def test_nothing_but_the_choices_comes_out_however_many_beams_there_are(params, reference):
    choices = [[[7, 9, EOS], [7, EOS]], [[5, EOS]], *[[[9, EOS], [9, 9, 9, EOS]]] * (B - 2)]
    for how in (Decoding(beams=6), Decoding(beams=6, length_penalty=1.0)):
        for answer, offered in zip(
            asked_of_us(params, reference['inputs'], how, choices=choices), choices
        ):
            assert len(answer) == 1 and answer[0].ids in offered
    tokens, scores = beam_search(
        *(CFG, params, reference['inputs'], 4, 4, 1.0),
        choices_BOT=np.array([[[5, EOS, 0, 0], [0, 0, 0, 0]]] * B, np.int32),
        answers=4,
    )
    assert np.isfinite(scores[:, 0]).all() and np.isneginf(scores[:, 1:]).all()
    assert (tokens[:, 1:] == 0).all()


FEW = AttentionConfig(kv_heads=1, kv_layers=2)
VARIANTS = dict(
    few_keys=dict(decoder_attention=FEW, cross_attention=FEW, positions='rope'),
    prefix_lm=dict(kind='prefix_lm'),
)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_score_of_an_answer_is_its_log_probability_over_its_length(variant, reference):
    """Were the cache of one hypothesis taken for that of another, it would not be."""
    cfg = resolve(ModelConfig(**SIZES, tied=False, **VARIANTS[variant]))
    params = jax.jit(partial(init, cfg))(jax.random.key(3))
    params['logits']['kernel'] = params['logits']['kernel'] * 4
    inputs = reference['inputs']
    said = asked_of_us(params, inputs, Decoding(beams=4, number=4, length_penalty=0.6), cfg)
    # To be scored, an answer must not hold the id of padding.
    kept = [(i, a) for i, row in enumerate(said) for a in row if 0 not in a.ids]
    pairs = [(inputs[i][inputs[i] > 0].tolist(), a.ids) for i, a in kept]
    scores = [a.score for _, a in kept]
    assert len({tuple(ids) for _, ids in pairs}) >= 2 * B
    for log_p_T, score, (_, ids) in zip(by_token(cfg, params, pairs, 10_000), scores, pairs):
        np.testing.assert_allclose(log_p_T.sum() / len(ids) ** 0.6, score, atol=1e-4)


WAYS = dict(
    drawn=Decoding(sample=True, temperature=2.0, top_k=20, top_p=0.9, number=2),
    searched=Decoding(beams=3, number=2, length_penalty=0.8),
    chosen=Decoding(number=2),
)
MESHES = dict(
    drawn=MeshConfig(data=2, fsdp=2, tensor=2),
    searched=MeshConfig(fsdp=2, expert=2, tensor=2),
    chosen=MeshConfig(data=4, tensor=2),
)


@pytest.mark.parametrize('way', WAYS)
def test_answers_do_not_depend_on_batches_and_devices(way, params, reference):
    offered = options(reference['choices']) if way == 'chosen' else None
    inputs = reference['inputs']
    whole = asked_of_us(params, inputs, WAYS[way], choices=offered)
    apart = asked_of_us(params, inputs, WAYS[way], choices=offered, batch_tokens=160)
    mesh = make_mesh(MESHES[way])
    shardings = jax.tree.map(lambda d: jax.NamedSharding(mesh, weight(d)), dims(CFG))
    with jax.set_mesh(mesh):
        split = jax.device_put(jax.device_get(params), shardings)
        over_devices = asked_of_us(split, inputs, WAYS[way], choices=offered)
    for other in (apart, over_devices):
        assert [[a.ids for a in row] for row in other] == [[a.ids for a in row] for row in whole]


def test_what_is_drawn_hangs_on_the_seed_and_the_place_among_the_inputs(params, reference):
    same = np.tile(reference['inputs'][:1], (6, 1))

    def drawn(**how):
        return asked_of_us(params, same, Decoding(sample=True, **how))

    first = drawn(number=3, temperature=2.0)
    assert len({tuple(a.ids) for row in first for a in row}) > 12
    assert drawn(number=3, temperature=2.0) == first != drawn(number=3, temperature=2.0, seed=1)
    assert [row[:2] for row in first] == drawn(number=2, temperature=2.0)


def test_every_place_has_a_draw_of_its_own(params, reference):
    flat = params | dict(logits=dict(kernel=jnp.zeros((CFG.D, CFG.V))))
    drawn = asked_of_us(flat, reference['inputs'], Decoding(sample=True, number=4))
    longest = max((answer.ids for row in drawn for answer in row), key=len)
    assert len(longest) > 5 and len(set(longest)) > len(longest) // 2


def test_drawing_from_the_likeliest_token_alone_is_greedy(params, reference):
    best = [row[0].ids for row in asked_of_us(params, reference['inputs'], Decoding())]
    said = asked_of_us(params, reference['inputs'], Decoding(sample=True, top_k=1))
    assert [row[0].ids for row in said] == best


def test_tokens_are_drawn_as_often_as_they_are_likely(params, reference):
    """The first tokens of many answers, against the softmax of what may be drawn, in float64."""
    inputs = np.tile(reference['inputs'][:1], (8, 1))
    how, number = Sampling(temperature=1.5, top_k=12, top_p=0.8), 500
    tokens = sample(CFG, params, inputs, 1, jax.random.key(5), np.arange(8), how, number)
    batch = dict(
        encoder_input_tokens=inputs[:1],
        encoder_segment_ids=np.ones((1, S), np.int32),
        decoder_input_tokens=np.zeros((1, 1), np.int32),
        decoder_segment_ids=np.ones((1, 1), np.int32),
    )
    logits_V = np.asarray(forward(params, batch), np.float64)[0, 0] / how.temperature
    order = np.argsort(-logits_V)[: how.top_k]
    p = np.exp(logits_V[order] - logits_V.max())
    p /= p.sum()
    likely = order[: 1 + int((np.cumsum(p) < how.top_p).sum())]
    assert 2 < len(likely) < 12
    expected = np.exp(logits_V[likely] - logits_V.max())
    expected *= tokens.size / expected.sum()
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=CFG.V)
    assert counts.sum() == counts[likely].sum()
    chi_square = ((counts[likely] - expected) ** 2 / expected).sum()
    assert chi_square < 3 * len(likely) + 10


def test_what_may_be_drawn_is_what_the_live_library_leaves():
    torch = pytest.importorskip('torch')
    library = pytest.importorskip('transformers').generation.logits_process
    logits = np.random.default_rng(0).normal(size=(5, 50)).astype(np.float32) * 3
    for temperature, k, p in ((0.7, 0, 1.0), (1.3, 7, 1.0), (1.0, 0, 0.8), (2.0, 9, 0.5)):
        scores = torch.from_numpy(logits)
        scores = library.TemperatureLogitsWarper(temperature)(None, scores)
        scores = library.TopKLogitsWarper(k)(None, scores) if k else scores
        scores = library.TopPLogitsWarper(p)(None, scores) if p < 1 else scores
        ours = kept(jnp.asarray(logits), Sampling(temperature, k, p))
        np.testing.assert_allclose(ours, scores.numpy(), rtol=1e-5)


def test_an_answer_may_end_at_once(params, reference):
    flat = params | dict(logits=dict(kernel=jnp.zeros((CFG.D, CFG.V))))
    tokens, scores = beam_search(CFG, flat, reference['inputs'], T, 2, 0.0, eos=0, answers=2)
    assert (np.asarray(tokens)[:, 0] == 0).all()
    np.testing.assert_allclose(scores[:, 0], -np.log(CFG.V), rtol=1e-5)


CONTRADICTIONS = {
    'beams': dict(sample=True, beams=4),
    'temperature': dict(temperature=0.5),
    'top_p': dict(beams=2, top_p=0.9),
    'length_penalty': dict(length_penalty=2.0),
    'early_stopping': dict(early_stopping=True),
    'number=3': dict(number=3, beams=2),
    'number=2': dict(number=2),
    'beams=30': dict(beams=30),
    'temperature=0': dict(sample=True, temperature=0.0),
    'top_k=-1': dict(sample=True, top_k=-1),
    'top_p=1.5': dict(sample=True, top_p=1.5),
    'seed=-1': dict(sample=True, seed=-1),
    'seed=4294967296': dict(sample=True, seed=1 << 32),
    'temperature=nan': dict(sample=True, temperature=float('nan')),
    'temperature=inf': dict(sample=True, temperature=float('inf')),
    'length_penalty=-inf': dict(beams=2, length_penalty=-float('inf')),
    'length_penalty=1e': dict(beams=2, length_penalty=1e30),
}


@pytest.mark.parametrize('named', CONTRADICTIONS)
def test_settings_that_do_not_go_together_are_refused(named):
    with pytest.raises(UserError, match=named):
        answers(CFG, None, [[5, EOS]], T, 100, EOS, Decoding(**CONTRADICTIONS[named]))


@pytest.mark.parametrize('how', [Decoding(beams=2), Decoding()])
def test_an_input_without_an_answer_is_told_of(params, reference, how):
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    choices = [[[5, EOS], [6, EOS]]] * B
    with pytest.raises(UserError, match='input 1 has no answer of finite probability'):
        asked_of_us(broken, reference['inputs'], how, choices=choices)


def test_choices_and_settings_that_do_not_go_together_are_refused():
    for how, named in ((dict(sample=True), 'sample'), (dict(number=3), 'number=3')):
        with pytest.raises(UserError, match=named):
            answers(CFG, None, [[5]], T, 100, EOS, Decoding(**how), [[[5, EOS], [6, EOS]]])
    with pytest.raises(UserError, match='at least one choice'):
        answers(CFG, None, [[5]], T, 100, EOS, choices=[[]])


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ready')
    cfg = resolve(ModelConfig(size='micro'), open_vocabulary('bytes').padded_size)
    with jax.set_mesh(make_mesh()):
        params = jax.jit(partial(init, cfg))(jax.random.key(0))
    return ready.write(folder / 'run', params, dict(size='micro'), tasks=['sums'])


def test_the_verb_answers_in_every_way(workdir, capsys):
    words = ['generate', f'--workdir={workdir}', '--input=2 + 2 =', '--max_length=5']
    assert main([*words, '--sample', '--temperature=0.8', '--top_k=20', '--number=3']) == 0
    assert len(capsys.readouterr().out.split('\n')) >= 4
    assert main([*words, '--beams=3', '--length_penalty=0.6', '--number=2']) == 0
    capsys.readouterr()
    assert main([*words[:3], '--choices=four,five,three', '--task=sums']) == 0
    assert capsys.readouterr().out.strip() in ('four', 'five', 'three')
    assert main([*words[:3], '--choices=four,five,three', '--number=3']) == 0
    assert sorted(capsys.readouterr().out.split()) == ['five', 'four', 'three']


@pytest.mark.parametrize(
    'flags,named',
    [
        (['--sample', '--beams=2'], 'sample'),
        (['--temperature=0.5'], 'temperature'),
        (['--number=2'], 'number=2'),
        (['--choices=a,b', '--max_length=3'], 'max_length'),
        (['--choices=a,b', '--sample'], 'sample'),
        (['--max_length=-1'], 'max_length=-1'),
        (['--task=summs'], 'summs'),
        (['--choices='], 'a choice is empty'),
        (['--choices=a,'], 'a choice is empty'),
        (['--max_length=1000000000'], 'max_length=1000000000 must be at most 16384'),
    ],
)
def test_the_verb_refuses_flags_that_do_not_go_together(workdir, capsys, flags, named):
    assert main(['generate', f'--workdir={workdir}', '--input=x', *flags]) == 2
    said = capsys.readouterr().err
    assert named in said and said.count('\n') == 1


if __name__ == '__main__':
    np.savez_compressed(REFERENCE, **found(0))
    print(f'{REFERENCE}: {REFERENCE.stat().st_size} bytes', file=sys.stderr)
