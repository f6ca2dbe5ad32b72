"""`mtpt score`: the log-probabilities that Hugging Face gives on the same weights; bad lines."""

import dataclasses
import io
import json
from functools import partial

import jax
import numpy as np
import pytest
import ready

from mtpt.__main__ import main
from mtpt.config import UserError
from mtpt.convert.names import from_hugging_face
from mtpt.evaluate.likelihood import by_token
from mtpt.mesh import MeshConfig, make_mesh, weight
from mtpt.model.config import ModelConfig, resolve
from mtpt.model.functional import dims, init
from mtpt.opened import restored
from mtpt.score import score
from mtpt.vocabulary import open_vocabulary

VOCABULARY = open_vocabulary('bytes')
MODEL = dict(size='micro', tied=False)
CFG = resolve(ModelConfig(**MODEL), VOCABULARY.padded_size)
LINES = [
    dict(inputs='2 + 2 =', targets='4', mine=[1, None]),
    dict(inputs='Say it in French: a house', targets='une maison', task='words'),
    dict(inputs='A <extra_id_0> b', targets='<extra_id_0> long answer to it'),
    dict(inputs='nothing', targets=''),
]


def text(lines):
    return ''.join(json.dumps(line) + '\n' for line in lines)


@pytest.fixture(scope='module', autouse=True)
def quick_to_compile():
    with ready.quick_to_compile():
        yield


@pytest.fixture(scope='module')
def params():
    with jax.set_mesh(make_mesh()):
        return jax.jit(partial(init, CFG))(jax.random.key(0))


@pytest.fixture(scope='module')
def workdir(params, tmp_path_factory):
    """A run of random weights."""
    folder = tmp_path_factory.mktemp('score') / 'run'
    return ready.write(folder, params, MODEL, tasks=['sums', 'words'])


@pytest.mark.parametrize('inputs_eos', [True, False])
def test_log_probabilities_are_those_of_the_live_library(inputs_eos, tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    theirs = transformers.T5Config(
        vocab_size=CFG.V,
        d_model=CFG.D,
        d_kv=CFG.K,
        d_ff=CFG.F,
        num_heads=CFG.H,
        num_layers=CFG.encoder_layers,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    # Some versions tie the head all the same: give it weights of its own.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(CFG.V, CFG.D) * 0.5)
    state = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    with jax.set_mesh(make_mesh()):
        params = jax.tree.map(jax.numpy.asarray, from_hugging_face(state, CFG))
    folder = ready.write(tmp_path / 'run', params, MODEL, inputs_eos)
    lines = [{k: v for k, v in line.items() if k != 'task'} for line in LINES]
    for line, told in zip(lines, score(folder, text(lines).splitlines())):
        inputs = VOCABULARY.encode(line['inputs'], specials=True) + [1] * inputs_eos
        targets = VOCABULARY.encode(line['targets'], specials=True) + [1]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([inputs]), labels=torch.tensor([targets])
            ).logits.double()
        log_p = torch.log_softmax(logits, -1)[0, range(len(targets)), targets].numpy()
        assert log_p.std() > 0.1 or len(targets) == 1
        np.testing.assert_allclose(told['token_log_probabilities'], log_p, atol=1e-4)
        np.testing.assert_allclose(told['log_probability'], log_p.sum(), atol=1e-4)


def test_the_verb_gives_lines_back_with_what_it_found(workdir, tmp_path, monkeypatch, capsys):
    source, out = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
    source.write_text(text(LINES[:2]) + '\n' + text(LINES[2:]))
    assert main(['score', f'--workdir={workdir}', f'--input={source}', f'--out={out}']) == 0
    told = [json.loads(line) for line in out.read_text().splitlines()]
    for line, one in zip(LINES, told, strict=True):
        assert line.items() <= one.items()
        assert one['log_probability'] == pytest.approx(sum(one['token_log_probabilities']))
        assert len(one['tokens']) == len(one['token_log_probabilities'])
        assert one['tokens'][-1] == '</s>' and max(one['token_log_probabilities']) < 0
    assert told[0]['tokens'] == [VOCABULARY.name(i) for i in VOCABULARY.encode('4')] + ['</s>']
    assert told[2]['tokens'][0] == '<extra_id_0>'
    monkeypatch.setattr('sys.stdin', io.StringIO(text(LINES)))
    assert main(['score', f'--workdir={workdir}']) == 0
    assert capsys.readouterr().out == out.read_text()


def test_lines_scored_together_are_scored_as_alone(workdir):
    together = score(workdir, text(LINES).splitlines())
    for line, one in zip(LINES, together):
        (alone,) = score(workdir, [json.dumps(line)])
        np.testing.assert_allclose(alone['log_probability'], one['log_probability'], atol=1e-4)


@pytest.mark.parametrize(
    'sizes', [dict(data=2, fsdp=2, tensor=2), dict(fsdp=2, expert=2, tensor=2)]
)
def test_log_probabilities_are_the_same_when_everything_is_split(params, sizes):
    pairs = [([5, 6, 7, 1], [8, 9, 1]), ([5, 1], [1]), ([9] * 20, [5] * 9)]
    with jax.set_mesh(make_mesh()):
        whole = by_token(CFG, params, pairs, 1000)
    mesh = make_mesh(MeshConfig(**sizes))
    split = jax.tree.map(lambda d: jax.NamedSharding(mesh, weight(d)), dims(CFG))
    with jax.set_mesh(mesh):
        again = by_token(CFG, jax.device_put(jax.device_get(params), split), pairs, 1000)
    for one, other in zip(whole, again):
        np.testing.assert_allclose(one, other, atol=1e-5)


BAD = {
    'line 3 is not JSON': '{"inputs": "a", ',
    "line 3 has no 'targets'; did you mean 'target'": '{"inputs": "a", "target": "b"}',
    'line 3 must be an object': '["a", "b"]',
    "line 3: 'targets' must be a text, got 4": '{"inputs": "2 + 2 =", "targets": 4}',
    'line 3: the input has 41 tokens': json.dumps(dict(inputs='x' * 40, targets='y')),
    'line 3: inputs and targets have': json.dumps(dict(inputs='x', targets='y' * 20_000)),
    'line 3: the task must be a name': json.dumps(dict(inputs='x', targets='y', task=['sums'])),
    'line 3 is not JSON: maximum recursion': '[' * 100_000,
    "line 3: the model was not trained on a task 'word'; did you mean 'words'": json.dumps(
        dict(inputs='x', targets='y', task='word')
    ),
}


@pytest.mark.parametrize('named', BAD)
def test_a_bad_line_is_named_and_nothing_is_written(named, workdir, tmp_path, capsys):
    source, out = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
    source.write_text(text(LINES[:1]) + '\n' + BAD[named] + '\n')
    out.write_text('what was there')
    assert main(['score', f'--workdir={workdir}', f'--input={source}', f'--out={out}']) == 2
    said = capsys.readouterr()
    assert named in said.err and said.err.count('\n') == 1 and not said.out
    assert out.read_text() == 'what was there' and len(list(tmp_path.iterdir())) == 2


def test_an_empty_input_is_scored_only_where_an_end_stands_behind_it(params, workdir, tmp_path):
    lines = ['{"inputs": "", "targets": "y"}']
    assert np.isfinite(score(workdir, lines)[0]['log_probability'])
    with pytest.raises(UserError, match='line 1: the input is empty'):
        score(ready.write(tmp_path / 'run', params, MODEL, inputs_eos=False), lines)


def test_half_a_surrogate_pair_and_a_mark_before_the_file_do_no_harm(workdir, tmp_path, capsys):
    source, line = tmp_path / 'in.jsonl', dict(inputs='a', targets='b', note='\ud800')
    source.write_text('\ufeff' + text([line]), encoding='utf-8')
    assert main(['score', f'--workdir={workdir}', f'--input={source}']) == 0
    said = capsys.readouterr().out
    assert said.isascii() and line.items() <= json.loads(said).items()


def test_a_token_that_the_model_has_no_row_for_is_named(workdir, monkeypatch):
    monkeypatch.setattr('mtpt.opened.restored', restored_with_fewer_rows)
    with pytest.raises(UserError, match=r"line 1: the model has no row for '\[S2S\]'"):
        score(workdir, [json.dumps(dict(inputs='[S2S] a', targets='b'))])


def restored_with_fewer_rows(*args):
    vocabulary, cfg, *rest = restored(*args)
    return vocabulary, dataclasses.replace(cfg, V=vocabulary.size - 1), *rest


def test_missing_files_and_folders_are_named(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'))
    for words, named in (
        ([f'--workdir={workdir}', '--input=nowhere.jsonl'], 'nowhere.jsonl'),
        ([f'--workdir={tmp_path}', '--input=nowhere.jsonl'], 'nowhere.jsonl'),
        ([f'--workdir={workdir}'], 'nothing to score'),
        (['--input=nowhere.jsonl'], '--workdir'),
    ):
        assert main(['score', *words]) == 2
        assert named in capsys.readouterr().err
