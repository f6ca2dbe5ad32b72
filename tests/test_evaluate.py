"""Laws of evaluation: scores of choices, what a row says beside its value, tables and files."""

import dataclasses
import functools
import io
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import rich.console

from mtpt.config import UserError, read
from mtpt.evaluate import batches, table
from mtpt.evaluate.generate import generate
from mtpt.evaluate.rank_classification import NORMALISATIONS, predict, scores
from mtpt.evaluate.run import EvaluateConfig, empty_input, evaluate, limits, save
from mtpt.mesh import MeshConfig, make_mesh
from mtpt.model import decode, functional
from mtpt.model.config import ModelConfig, resolve

CFG = resolve(ModelConfig(size='micro'), V=128)
EOS = 1


class Words:
    """A vocabulary whose words are the ids."""

    eos, pad, modes = EOS, 0, {'[NLU]': 120, '[S2S]': 121}

    def decode(self, ids):
        ids = list(ids)
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        return ' '.join(f'w{i}' for i in ids if i)


@functools.cache
def mesh():
    return make_mesh(MeshConfig())


@functools.cache
def model():
    with jax.set_mesh(mesh()):
        params = jax.jit(functional.init, static_argnums=0)(CFG, jax.random.key(0))
        # Wider than at the start, so that choices differ by far more than rounding.
        return jax.tree.map(lambda x: 1.3 * x, params)


def ids(rng, low, high):
    return [*map(int, rng.integers(2, 100, rng.integers(low, high + 1))), EOS]


def items(count=12, seed=0, inputs=14, choices=(2, 5), length=3):
    rng = np.random.default_rng(seed)
    return [
        (
            ids(rng, 1, inputs),
            [ids(rng, 1, length) for _ in range(rng.integers(choices[0], choices[1] + 1))],
        )
        for _ in range(count)
    ]


def exam(name='colour.exam', count=12, seed=0, generation=False, kind='new_tasks', **fields):
    examples = []
    for inputs, choices in items(count, seed):
        answer = len(inputs) % len(choices)
        texts = [Words().decode(choice) for choice in choices]
        ranked = dict(
            choices=choices, answer=answer, choice_texts=texts, references=[texts[answer]]
        )
        free = dict(choices=None, answer=-1, choice_texts=None, references=[texts[answer], 'w7'])
        examples.append(dict(inputs=inputs) | (free if generation else ranked))
    task, prompt = name.split('.')
    base = dict(name=name, task=task, prompt=prompt, family='sense', dataset='made', kind=kind)
    base |= dict(metrics=('accuracy',), examples=tuple(examples))
    return SimpleNamespace(**base | fields)


QUICK = EvaluateConfig(bootstrap=30, batch_tokens=512, max_target_length=8)


def take(exams, cfg=QUICK, **kwargs):
    with jax.set_mesh(mesh()):
        return evaluate(CFG, model(), exams, Words(), cfg, **kwargs)


def padded(rows, length):
    return np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int32)


def logits_of(inputs, target):
    """The logits [T, V] of one pair by itself."""
    batch = dict(
        encoder_input_tokens=padded([inputs], 24),
        encoder_segment_ids=padded([[1] * len(inputs)], 24),
        decoder_input_tokens=padded([[0, *target[:-1]]], 40),
        decoder_segment_ids=padded([[1] * len(target)], 40),
    )
    with jax.set_mesh(mesh()):
        logits = jax.jit(functional.apply, static_argnums=0)(CFG, model(), batch)[0][0]
    return np.asarray(logits, np.float64)[: len(target)]


def by_hand(inputs, target):
    """The sum of log p over all tokens of the target, EOS too, in float64."""
    total = 0.0
    for row, token in zip(logits_of(inputs, target), target):
        top = row.max()
        total += row[token] - (top + math.log(sum(math.exp(x - top) for x in row)))
    return total


def test_the_score_is_the_sum_of_log_probabilities_with_eos_as_each_pair_alone_has_it():
    some = items(4)
    found = scores(CFG, model(), some, 512)
    for (inputs, choices), row in zip(some, found):
        assert row == pytest.approx([by_hand(inputs, choice) for choice in choices], abs=2e-4)
        assert np.ptp(row) > 0.1


def test_scores_agree_with_transformers():
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    cfg = transformers.T5Config(
        vocab_size=CFG.V, d_model=CFG.D, d_kv=CFG.K, d_ff=CFG.F, num_layers=CFG.encoder_layers,
        num_decoder_layers=CFG.decoder_layers, num_heads=CFG.H, feed_forward_proj='gated-gelu',
        tie_word_embeddings=True, dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(cfg).eval()
    theirs.load_state_dict(hugging_face_names(torch), strict=True)
    some = items(2, seed=3)
    for (inputs, choices), row in zip(some, scores(CFG, model(), some, 512)):
        for choice, value in zip(choices, row):
            with torch.no_grad():
                loss = theirs(input_ids=torch.tensor([inputs]), labels=torch.tensor([choice])).loss
            assert value == pytest.approx(-float(loss) * len(choice), rel=1e-4)


def hugging_face_names(torch):
    """Our parameters under the names that transformers gives them, for one layer a stack."""
    tree = jax.tree.map(np.asarray, model())
    out = {'shared.weight': tree['token_embedding'], 'lm_head.weight': tree['token_embedding']}
    for side in ('encoder', 'decoder'):
        stack, layers = tree[side], {k: v for k, v in tree[side]['layers'].items()}
        out[f'{side}.embed_tokens.weight'] = tree['token_embedding']
        out[f'{side}.final_layer_norm.weight'] = stack['norm']['scale']
        parts = ['attention', 'cross', 'mlp'] if side == 'decoder' else ['attention', 'mlp']
        for place, part in enumerate(parts):
            path = f'{side}.block.0.layer.{place}'
            out[f'{path}.layer_norm.weight'] = layers[f'{part}_norm']['scale'][0]
            weights = {name: weight[0] for name, weight in layers[part].items()}
            if part == 'mlp':
                names = dict(gate='wi_0', up='wi_1', down='wo')
                for ours, name in names.items():
                    out[f'{path}.DenseReluDense.{name}.weight'] = weights[ours].T
            else:
                name = 'EncDecAttention' if part == 'cross' else 'SelfAttention'
                for letter in 'qkv':
                    out[f'{path}.{name}.{letter}.weight'] = weights[letter].reshape(CFG.D, -1).T
                out[f'{path}.{name}.o.weight'] = weights['o'].reshape(-1, CFG.D).T
        path = f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
        out[path] = stack['relative_bias']
    return {name: torch.tensor(np.array(weight)) for name, weight in out.items()}


def test_batch_size_order_and_company_do_not_change_scores():
    some = items(30, seed=1, inputs=40, choices=(1, 9))
    whole = scores(CFG, model(), some, 8192)
    for other in (scores(CFG, model(), some, 200), scores(CFG, model(), some[::-1], 1000)[::-1]):
        for a, b in zip(whole, other):
            assert a == pytest.approx(b, abs=3e-4)
    alone = scores(CFG, model(), some[7:8], 8192)[0]
    assert alone == pytest.approx(whole[7], abs=3e-4)


def test_shuffled_choices_move_the_answer_with_them():
    some = items(10, seed=2)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(choices)) for _, choices in some]
    moved = [(x, [choices[i] for i in order]) for (x, choices), order in zip(some, orders)]
    pairs = zip(scores(CFG, model(), some, 512), scores(CFG, model(), moved, 512), orders)
    for before, after, order in pairs:
        assert after == pytest.approx(before[order], abs=3e-4)
        assert order[predict(after)] == predict(before)


def test_one_more_choice_changes_no_other_score_and_an_unlikely_one_no_prediction():
    some = items(10, seed=4)
    unlikely = [*range(2, 9), EOS]
    more = [(x, [*choices, unlikely]) for x, choices in some]
    for few, many in zip(scores(CFG, model(), some, 512), scores(CFG, model(), more, 512)):
        assert many[:-1] == pytest.approx(few, abs=3e-4)
        assert predict(many) == predict(few)


def test_equal_choices_tie_exactly_and_the_first_wins():
    x, twice, other = [5, 6, EOS], [9, 8, EOS], [7, EOS]
    (found,) = scores(CFG, model(), [(x, [twice, other, twice]), *items(4)], 512)[:1]
    assert len(found) == 3 and found[0] == found[2] != found[1]
    assert found[1] == pytest.approx(by_hand(x, other), abs=2e-4)
    assert predict(np.array([-2.0, -1.0, -1.0])) == 1


def test_hundreds_of_choices_and_a_long_one_beside_short_ones_are_scored():
    choices = [[2 + i % 90, 2 + i // 90, EOS] for i in range(200)]
    some = [([4, 5, EOS], choices), ([7, EOS], [[3, EOS], [*range(2, 40), EOS]])]
    found = scores(CFG, model(), some, 1024)
    assert [len(row) for row in found] == [200, 2]
    for i in (0, 63, 64, 199):
        assert found[0][i] == pytest.approx(by_hand([4, 5, EOS], choices[i]), abs=2e-4)
    assert found[1] == pytest.approx([by_hand([7, EOS], c) for c in some[1][1]], rel=1e-4)


def test_scores_and_answers_are_the_same_on_a_mesh_of_eight():
    some, inputs = items(9, seed=5), [x for x, _ in items(8, seed=6)]
    alone = scores(CFG, model(), some, 512)
    said = generate(CFG, model(), inputs, 8, 512, EOS)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        specs = jax.tree.map(
            lambda x: x.sharding,
            jax.eval_shape(lambda: functional.init(CFG, jax.random.key(0))),
        )
        params = jax.tree.map(lambda x, s: jax.device_put(np.asarray(x), s.spec), model(), specs)
        split = scores(CFG, params, some, 512)
        said_split = generate(CFG, params, inputs, 8, 512, EOS)
    for a, b in zip(alone, split):
        assert a == pytest.approx(b, abs=3e-4)
    assert said == said_split


def test_a_few_rows_join_a_larger_shape_and_many_keep_their_own():
    def shapes(count, extra):
        group = batches.grouped(
            [(16,)] * count + [(extra,)], [1] * (count + 1), lambda a, b: a <= b, lambda s: s[0]
        )
        assert sorted(i for own in group.values() for i in own) == list(range(count + 1))
        return set(group)

    assert shapes(10, 64) == {(64,)}
    assert shapes(10_000, 64) == {(16,), (64,)}
    assert shapes(10, 2**20) == {(16,), (2**20,)}
    for steps in (1, 2):
        lengths = {batches.rounded(n, 16, steps) for n in range(1, 1025)}
        assert len(lengths) == 1 + 6 * steps and max(lengths) == 1024
        assert all(n <= batches.rounded(n, 16, steps) for n in range(1, 1025))


def test_normalisations_are_what_their_names_say():
    given = dict(
        score_O=np.array([-6.0, -4.0]),
        empty_O=np.array([-9.0, -4.0]),
        tokens_O=np.array([3, 1]),
        bytes_O=np.array([12, 2]),
    )
    found = {name: list(fn(**given)) for name, fn in NORMALISATIONS.items()}
    assert found == dict(sum=[-6, -4], mean=[-2, -4], bytes=[-0.5, -2], pmi=[3, 0])


def test_a_row_ranks_by_the_normalisation_that_it_names():
    one = exam(count=20)
    raw = scores(CFG, model(), [(e['inputs'], e['choices']) for e in one.examples], 512)
    bare = scores(CFG, model(), [([EOS], e['choices']) for e in one.examples], 512)
    values = {}
    for name, compare in NORMALISATIONS.items():
        (row,) = take([one], dataclasses.replace(QUICK, normalisation=name))
        right = []
        for e, score, empty in zip(one.examples, raw, bare):
            tokens = np.array([len(c) for c in e['choices']])
            sizes = np.array([len(t) for t in e['choice_texts']])
            right.append(np.argmax(compare(score, empty, tokens, sizes)) == e['answer'])
        assert row['normalisation'] == name and row['value'] == pytest.approx(np.mean(right))
        values[name] = row['label_shares']
    assert values['sum'] != values['mean'] and values['sum'] != values['pmi']


def test_beside_the_value_stand_chance_the_majority_and_the_empty_input():
    one = exam(count=25, metrics=('accuracy', 'token_f1'))
    for example in one.examples[:9]:  # nine times the same right answer, at changing places
        example['choices'][example['answer']] = [50, 51, EOS]
        example['choice_texts'][example['answer']] = 'w50 w51'
        example['references'] = ['w50 w51']
    row, f1 = take([one])
    assert row['chance'] == pytest.approx(np.mean([1 / len(e['choices']) for e in one.examples]))
    assert row['majority'] == 9 / 25 and row['answer_shares']['w50 w51'] == 9 / 25
    assert row['examples'] == 25 and row['low'] <= row['value'] <= row['high']
    assert row['choices'] == np.mean([len(e['choices']) for e in one.examples])
    assert sum(row['position_shares'].values()) == pytest.approx(1)
    blind = scores(CFG, model(), [([EOS], e['choices']) for e in one.examples], 512)
    right = [predict(s) == e['answer'] for s, e in zip(blind, one.examples)]
    assert row['empty'] == pytest.approx(np.mean(right))
    assert f1['value'] >= row['value'] and f1['chance'] >= row['chance']
    (bare,) = take([exam()], dataclasses.replace(QUICK, empty_input=False))
    assert bare['empty'] is None and bare['value'] is not None


def test_the_empty_input_keeps_what_is_no_text():
    def empty(*inputs):
        return empty_input([dict(inputs=x) for x in inputs], Words())

    assert empty([5, 6, EOS], [5, EOS]) == (EOS,)
    assert empty([120, 6, EOS], [120, EOS]) == (120, EOS)
    assert empty([120, 6], [120, 7]) == (120,)
    assert empty([5, 6], [5]) == (EOS,)
    assert empty([120, 6], [121, 7]) == (EOS,)


def test_generated_answers_are_greedy_and_judged_against_all_references():
    one = exam(count=7, generation=True, metrics=('accuracy', 'rougeL', 'bleu'))
    with jax.set_mesh(mesh()):
        for example in one.examples[:3]:
            tokens = batches.spread(padded([example['inputs']] * 8, 16), mesh())
            said = np.asarray(decode.greedy(CFG, model(), tokens, 8, EOS))[0].tolist()
            example['references'] = ['w7', Words().decode(said)]
    rows = take([one])
    assert [row['metric'] for row in rows] == ['accuracy', 'rougeL', 'bleu']
    for row in rows:
        assert row['chance'] == 0 and row['normalisation'] is None and 0 <= row['unfinished'] <= 1
        assert row['low'] <= row['value'] <= row['high']
    assert rows[0]['value'] >= 3 / 7
    assert rows[0]['majority'] > 0 and rows[0]['method'] == 'greedy decoding'


def test_exams_of_both_kinds_come_back_in_order_and_progress_reaches_the_end():
    seen = []
    given = [exam('a.x'), exam('b.x', generation=True), exam('c.x', seed=3)]
    given.append(exam('d.x', seed=4, generation=True))
    rows = take(given, progress=lambda *now: seen.append(now))
    assert [row['exam'] for row in rows] == ['a.x', 'b.x', 'c.x', 'd.x']
    assert seen[-1][0] == seen[-1][1] > 0 and [a for a, _ in seen] == sorted(a for a, _ in seen)
    assert [take([one])[0] for one in given] == rows
    json.dumps(rows, allow_nan=False)


def test_limits_take_the_first_examples_and_share_a_budget_evenly():
    def sizes(*counts, **cfg):
        return limits(counts, EvaluateConfig(**cfg))

    assert sizes(3, 50) == [3, 50]
    assert sizes(3, 50, max_examples=10) == [3, 10]
    assert sizes(3, 50, 90, budget=43) == [3, 20, 20]
    assert sizes(3, 50, 90, budget=1000) == [3, 50, 90]
    assert sizes(5, 5, 5, budget=1) == [1, 1, 1]
    one = exam(count=20)
    (row,) = take([one], dataclasses.replace(QUICK, max_examples=4))
    first = SimpleNamespace(**vars(one) | dict(examples=one.examples[:4]))
    assert take([first]) == [row | dict(of=4)] and (row['examples'], row['of']) == (4, 20)


def test_prompts_are_summed_up_to_tasks_and_tasks_to_averages():
    def row(task, prompt, value, kind='new_tasks', metric='accuracy', empty=0.4):
        return dict(
            exam=f'{task}.{prompt}', task=task, prompt=prompt, kind=kind, family=task[0],
            dataset='d', metric=metric, value=value, low=value - 0.1, high=value + 0.1, chance=0.5,
            majority=0.6, empty=empty, examples=10, normalisation='sum',
            label_shares={'a|b': 0.75, 'c': 0.25},
        )  # fmt: skip

    rows = [row('xa', f'p{i}', value) for i, value in enumerate((0.2, 0.6, 0.7))]
    rows += [row('xb', 'p0', 0.9), row('y', 'p0', 0.3, kind='new_wordings', empty=None)]
    rows += [row('y', 'p0', 0.1, kind='new_wordings', metric='bleu')]
    summary = table.summarise(rows)
    first = summary['tasks'][0]
    assert (first['task'], first['prompts'], first['median']) == ('xa', 3, 0.6)
    assert (first['min'], first['max']) == (0.2, 0.7)
    assert [first[k] for k in ('value', 'std', 'low')] == pytest.approx(
        [0.5, np.std([0.2, 0.6, 0.7], ddof=1), 0.4]
    )
    macro = {(m['over'], m['name'], m['metric']): m for m in summary['macro']}
    everything = macro['all', 'all', 'accuracy']
    assert everything['value'] == pytest.approx((0.5 + 0.9 + 0.3) / 3) and everything['tasks'] == 3
    assert everything['gain'] == pytest.approx(everything['value'] - 0.5)
    assert (
        everything['low'] < everything['value'] < everything['high'] and everything['empty'] is None
    )
    assert macro['family', 'x', 'accuracy']['value'] == pytest.approx(0.7)
    lonely = macro['kind', 'new_wordings', 'accuracy']
    assert (lonely['low'], lonely['high']) == pytest.approx((0.2, 0.4))
    assert macro['all', 'all', 'bleu']['tasks'] == 1
    console = rich.console.Console(width=200, record=True, file=io.StringIO())
    console.print(table.table(rows))
    shown, lines = console.export_text(), table.markdown(rows, prompts=False).splitlines()
    assert 'mean of 3' in shown and 'above chance' in shown
    assert any('| xa |' in line and 'median 0.600' in line for line in lines)
    assert any('a\\|b 75%' in line for line in lines)
    assert all(line.replace('\\|', '').count('|') == 11 for line in lines if line.startswith('|'))
    assert not any('| p0 |' in line for line in lines)


def test_files_are_written_whole_and_say_what_was_said(tmp_path):
    one, path = exam(count=5), tmp_path / 'eval' / 'predictions.jsonl'
    rows = take([one, exam('b.x', generation=True)], predictions=path)
    said = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(said) == 5 + 12
    right = [line['said'] == line['wanted'] for line in said if line['exam'] == one.name]
    assert np.mean(right) == pytest.approx(rows[0]['value'])
    for line in said[:5]:
        assert line['choices'][int(np.argmax(line['scores']))] == line['said']
    save(tmp_path / 'eval' / 'x.json', rows, table.summarise(rows), dict(step=7, mixture='m'))
    found = json.loads((tmp_path / 'eval' / 'x.json').read_text())
    assert (
        found['step'] == 7 and found['rows'] == rows and found['summary'] == table.summarise(rows)
    )
    assert sorted(p.name for p in path.parent.iterdir()) == ['predictions.jsonl', 'x.json']
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write'):
        save(tmp_path / 'file' / 'x.json', rows, {}, {})


def test_bad_exams_and_settings_are_told_in_one_sentence():
    def broken(**change):
        one = exam(count=3)
        one.examples[1].update(change)
        return [one]

    for exams, words in (
        ([], 'nothing to evaluate'),
        ([exam(count=0)], "'colour.exam' has no examples"),
        ([exam(metrics=())], 'names no metric'),
        ([exam(metrics=('rougel',))], "did you mean 'rougeL'"),
        (broken(choices=None), 'example 1 .* differ in having choices'),
        (broken(choices=[]), 'example 1 .* empty list of choices'),
        (broken(answer=-1), 'example 1 .* has answer -1'),
        (broken(choices=[[], [5, EOS]], choice_texts=['', 'w5'], answer=0), 'without tokens'),
    ):
        with pytest.raises(UserError, match=words):
            take(exams)
    with pytest.raises(UserError, match='not finite'):
        scores(CFG, jax.tree.map(lambda x: x * np.nan, model()), items(2), 512)
    with pytest.raises(UserError, match="no normalisation 'men'; did you mean 'mean'"):
        EvaluateConfig(normalisation='men')
    with pytest.raises(UserError, match='bootstrap=0 must be at least 1'):
        read(EvaluateConfig, dict(bootstrap=0))
    assert dataclasses.asdict(EvaluateConfig())['normalisation'] == 'sum'
