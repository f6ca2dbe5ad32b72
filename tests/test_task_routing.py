"""Routing that knows the task: who goes where, what of unseen tasks, and what it is used for."""

import json
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from mtpt.__main__ import main
from mtpt.config import UserError
from mtpt.data.manifest import ExamEntry, Manifest, TaskEntry
from mtpt.evaluate import run as evaluation
from mtpt.evaluate.rank_classification import scores
from mtpt.mesh import MeshConfig, make_mesh, place, rows
from mtpt.model.config import ModelConfig, MoeConfig, resolve
from mtpt.model.decode import greedy
from mtpt.model.dispatch import beside_experts
from mtpt.model.extract import extracted, representation, uses
from mtpt.model.functional import apply, init, module
from mtpt.model.moe import Moe
from mtpt.model.routing import Routing
from mtpt.model.task_routing import TaskLevel, TaskRepresentation, of_tokens
from mtpt.run import evaluate, read, train
from mtpt.score import score
from mtpt.specialisation import entropy, figures, mutual_information, tables
from mtpt.task_ids import check_asked, check_names, ids, resolved
from mtpt.train.state import _fitted
from mtpt.train.step import accumulated, make_part_loss

# Laws are about numbers, not speed: half of the time to compile.
jit = partial(jax.jit, compiler_options=dict(xla_backend_optimization_level=0))

V, M, E = 96, 3, 4
KINDS = dict(
    task_aware=dict(top_k=2, task_from='both'),
    task=dict(task_choice='hard', task_from='both'),
    gumbel=dict(task_choice='gumbel', task_from='id'),
    soft=dict(task_choice='soft', task_from='prompt'),
    enforced=dict(expert_of_task=(3, 1, 0, 1)),
)


def config(kind, M=M, layers=1, **changes):
    router = kind if kind in ('task_aware', 'enforced') else 'task'
    moe = dict(E=E, X=8, encoder=1, decoder=1, encoder_router=router, decoder_router=router)
    moe = MoeConfig(**moe | KINDS[kind] | changes)
    sizes = dict(encoder_layers=layers, decoder_layers=layers)
    return resolve(ModelConfig(size='micro', tied=False, moe=moe, remat='none', **sizes), V, M)


@pytest.fixture(scope='module', autouse=True)
def mesh():
    with jax.set_mesh(make_mesh()) as mesh:
        yield mesh


def batch_of(examples, S, T, packed):
    """Rows for (encoder ids, decoder ids, task) of each example: one row for all, or one each."""
    B, G = (1, len(examples)) if packed else (len(examples), 1)
    sides = dict(encoder_input_tokens=S, encoder_segment_ids=S)
    sides |= dict(decoder_input_tokens=T, decoder_segment_ids=T)
    batch = {name: np.zeros((B, n), np.int32) for name, n in sides.items()}
    batch['segment_task_ids'] = np.zeros((B, G), np.int32)
    used = np.zeros((B, 2), int)
    for i, (inputs, targets, task) in enumerate(examples):
        row, segment = (0, i) if packed else (i, 0)
        batch['segment_task_ids'][row, segment] = task
        for side, (where, text) in enumerate((('encoder', inputs), ('decoder', targets))):
            at = slice(used[row, side], used[row, side] + len(text))
            batch[f'{where}_input_tokens'][row, at] = text
            batch[f'{where}_segment_ids'][row, at] = segment + 1
            used[row, side] += len(text)
    return batch


def examples(lengths=((5, 3), (4, 4), (7, 2), (3, 3)), tasks=(1, 2, 3, 0), seed=0):
    rng = np.random.default_rng(seed)
    return [(*(rng.integers(3, V, n).tolist() for n in pair), m) for pair, m in zip(lengths, tasks)]


def parameters(cfg, seed=0):
    return jit(partial(init, cfg))(jax.random.key(seed))


@pytest.mark.parametrize('kind', KINDS)
def test_a_packed_row_of_several_tasks_equals_separate_rows(kind):
    cfg, shown = config(kind), examples()
    params, forward = parameters(cfg), jit(lambda p, b: apply(cfg, p, b)[0])
    packed = forward(params, batch_of(shown, 20, 12, packed=True))[0]
    separate = forward(params, batch_of(shown, 20, 12, packed=False))
    start = 0
    for row, (_, targets, _) in enumerate(shown):
        n = len(targets)
        np.testing.assert_allclose(packed[start : start + n], separate[row, :n], atol=2e-5)
        start += n


@pytest.mark.parametrize('kind, decoder', [('task', 'task'), ('gumbel', 'enforced')])
def test_what_a_hard_routed_task_uses_is_a_dense_model_that_says_the_same(kind, decoder):
    changes = dict(shared=1, F=32, encoder=2, decoder=2, decoder_router=decoder)
    cfg = config(kind, layers=2, expert_of_task=(3, 1, 0, 1), **changes)
    params, shown = parameters(cfg), examples(lengths=[(6, 4)], tasks=[2])
    inputs, _, task = shown[0]
    batch = batch_of(shown, 6, 4, packed=False)
    used = uses(cfg, params, task, representation(cfg, params, task, inputs))
    assert [(u.stack, u.layer) for u in used] == [('encoder', 1), ('decoder', 1)]
    dense, own = extracted(cfg, params, used)
    assert dense.F == cfg.F and not dense.moe.E
    sparse_logits = jit(lambda p, b: apply(cfg, p, b)[0])(params, batch)
    dense_logits = jit(lambda p, b: apply(dense, p, b)[0])(own, batch)
    np.testing.assert_allclose(dense_logits, sparse_logits, atol=1e-5)
    if kind == 'task':
        assert used[0].gate < 1


def test_only_a_task_with_one_expert_a_layer_can_be_extracted():
    for cfg, said in (
        (config('soft'), "'soft' sums all experts"),
        (config('task_aware'), 'routes each token by itself'),
        (config('enforced', layers=2, F=32, decoder=2), 'one width'),
    ):
        shapes = jax.eval_shape(lambda cfg=cfg: init(cfg, jax.random.key(0)))
        params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
        with pytest.raises(UserError, match=said):
            extracted(cfg, params, uses(cfg, params, 1, np.zeros(8)))


def routed(cfg, task_BTX, ids_BT, key=None, seed=1):
    """What the router over tasks makes of positions, and the gradient of its gates."""

    def run(key):
        router = TaskLevel(cfg, nnx.Rngs(params=jax.random.key(seed)))
        routing = Routing(ids_BT > 0, rows(ids_BT), rows(task_BTX))
        graph, state = nnx.split(router)

        def gates(state):
            choice = nnx.merge(graph, state)(None, routing, key)
            return jnp.sum(choice.gate_BTk * (1 + choice.expert_BTk)), choice

        (_, choice), grads = jax.value_and_grad(gates, has_aux=True)(state)
        return choice, grads['kernel'][...]

    return jax.tree.map(np.asarray, jit(run)(key))


@pytest.mark.parametrize('source', ['id', 'both', 'prompt'])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(source):
    """JAX cannot add every operation's gradient to a sum in place; those of routing it can."""
    cfg = config('task', task_from=source, task_choice='soft', forget=0.0)
    params = init(cfg, 0)
    rng = np.random.default_rng(0)
    examples = [(rng.integers(3, V, 6), rng.integers(3, V, 4), task) for task in range(4)] * 4
    batch = batch_of(examples, 8, 6, packed=False)
    batch['decoder_target_tokens'] = batch['decoder_input_tokens']
    batch['decoder_loss_weights'] = np.minimum(batch['decoder_segment_ids'], 1)
    part = make_part_loss(cfg, M, z_loss=0.0, label_smoothing=0.0)

    def of(params, batch, key):
        return part(params, batch, key, 1.0, 64.0)

    def summed(params, batch):
        return accumulated(of, params, batch, jax.random.key(0))[2]

    whole = place(batch, jax.sharding.get_mesh())
    halves = {name: x.reshape(2, 8, *x.shape[1:]) for name, x in batch.items()}
    halves = place(halves, jax.sharding.get_mesh())
    whole = jit(jax.grad(lambda p: of(p, whole, jax.random.key(0))[0]))(params)
    for a, b in zip(jax.tree.leaves(jit(summed)(params, halves)), jax.tree.leaves(whole)):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_gumbel_is_hard_forward_soft_backward_and_one_draw_a_task():
    cfg = config('gumbel')
    ids_BT = np.array([[1, 2, 3, 1], [3, 3, 2, 1]])
    table_MX = np.random.default_rng(0).normal(size=(M + 1, 8)).astype(np.float32)
    drawn = set()
    for seed in range(8):
        choice, grad_XE = routed(cfg, table_MX[ids_BT], ids_BT, jax.random.key(seed))
        np.testing.assert_array_equal(choice.gate_BTk, 1.0)
        assert np.abs(grad_XE).min() > 0
        by_task = {i: set(choice.expert_BTk[ids_BT == i].ravel().tolist()) for i in (1, 2, 3)}
        assert all(len(experts) == 1 for experts in by_task.values())
        drawn.add(tuple(by_task[1]))
    assert len(drawn) > 1
    choice, _ = routed(cfg, table_MX[ids_BT], ids_BT)
    np.testing.assert_array_equal(choice.expert_BTk[..., 0], choice.logits_BTE.argmax(-1))


def test_hard_gates_by_the_probability_and_temperature_sharpens_it():
    table_MX = np.random.default_rng(0).normal(size=(M + 1, 8)).astype(np.float32)
    ids_BT = np.array([[1, 2, 3]])
    warm, _ = routed(config('task'), table_MX[ids_BT], ids_BT)
    cold, _ = routed(config('task', temperature=0.1), table_MX[ids_BT], ids_BT)
    np.testing.assert_allclose(warm.gate_BTk[..., 0], warm.probs_BTE.max(-1))
    np.testing.assert_array_equal(warm.expert_BTk, cold.expert_BTk)
    assert (cold.gate_BTk > warm.gate_BTk).all()


def test_soft_routing_is_the_sum_of_all_experts_by_their_probabilities():
    cfg = config('soft')
    params = parameters(cfg)
    experts = jax.tree.map(
        lambda x: np.asarray(x[0], np.float64), params['decoder']['layers']['moe']
    )
    rng = np.random.default_rng(0)
    x_BTD, task_BTX = (rng.normal(size=(2, 3, n)).astype(np.float32) for n in (cfg.D, 8))

    @jit
    def whole(params, x_BTD, task_BTX):
        layer = module(cfg, params).decoder.layers
        moe = jax.tree.map(lambda x: x[0], layer).moe
        ids_BT = rows(jnp.ones((2, 3), jnp.int32))
        return moe(rows(x_BTD), Routing(ids_BT > 0, ids_BT, rows(task_BTX)))[0]

    logits = task_BTX @ experts['router']['kernel']
    p_BTE = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(p_BTE.sum(-1), 1)
    wanted = 0
    for e in range(E):
        h = np.asarray(jax.nn.gelu(x_BTD @ experts['gate'][e])) * (x_BTD @ experts['up'][e])
        wanted = wanted + p_BTE[..., e : e + 1] * (h @ experts['down'][e])
    np.testing.assert_allclose(whole(params, x_BTD, task_BTX), wanted, atol=1e-5)


def on(split, shape):
    return jax.NamedSharding(split, shape.sharding.spec)


@pytest.mark.parametrize('kind, decoder', [('task_aware', 'task_aware'), ('task', 'enforced')])
def test_a_split_mesh_changes_nothing_and_a_batch_of_one_expert_drops_no_token(kind, decoder):
    changes = dict(decoder_router=decoder, task_from='id', expert_of_task=(3, 1, 0, 1))
    cfg = config(kind, **changes)
    shown = examples(lengths=[(6, 4)] * 8, tasks=[1] * 8)
    batch, params = batch_of(shown, 8, 4, packed=False), jax.tree.map(np.asarray, parameters(cfg))
    told = []
    for sizes in ({}, dict(fsdp=2, expert=2, tensor=2)):
        split = make_mesh(MeshConfig(**sizes))
        with jax.set_mesh(split):
            shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
            placed = jax.device_put(params, jax.tree.map(partial(on, split), shapes))

            @jit
            def both(params, batch):
                def loss(params):
                    logits, aux = apply(cfg, params, batch)
                    return jnp.mean(jnp.square(logits)), (logits, aux)

                return jax.grad(loss, has_aux=True)(params)

            grads, (logits, aux) = both(placed, place(batch, split))
            told.append(jax.tree.map(np.asarray, (logits, aux, grads)))
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), *told)
    _, aux, _ = told[0]
    assert aux['moe/kept'] == 1
    for stack, tokens in (('encoder', 48), ('decoder', 32)):
        used = np.sort(aux[f'routing/{stack}'][0, 1])
        if kind != 'task_aware':
            np.testing.assert_array_equal(used, [0, 0, 0, tokens])
        assert used.sum() == tokens * (2 if kind == 'task_aware' else 1)


def test_rows_that_lie_with_their_expert_are_trained_on_without_an_exchange():
    enforced_by = dict(expert_of_task=(0, 0, 2, 3))
    split = make_mesh(MeshConfig(fsdp=2, expert=2))
    tasks = np.array([1, 2, 3, 1, 1, 3, 2, 1])
    order = beside_experts(np.array(enforced_by['expert_of_task'])[tasks], E, split)
    shown = examples(lengths=[(6, 4)] * 8, tasks=tasks[order])
    batch = batch_of(shown, 8, 4, packed=False)
    told, text = [], []
    with jax.set_mesh(split):
        for local in (False, True):
            cfg = config('enforced', local=local, **enforced_by)
            graph, params = jax.jit(
                lambda key, cfg=cfg: nnx.split(Moe(cfg, nnx.Rngs(params=key), decoder=True))
            )(jax.random.key(0))

            def loss(params, batch, graph=graph):
                segments_BT, ids_BG = (
                    rows(batch[n]) for n in ('decoder_segment_ids', 'segment_task_ids')
                )
                x_BTD = rows(jnp.sin(jnp.arange(8 * 4 * 32).reshape(8, 4, 32)))
                layer, routing = nnx.merge(graph, params), of_tokens(segments_BT, ids_BG)
                y_BTD, aux = layer(x_BTD, routing, jax.random.key(0))
                return jnp.sum(jnp.square(y_BTD)), aux

            step = jit(jax.grad(loss, has_aux=True)).lower(params, place(batch, split)).compile()
            text.append(step.as_text())
            told.append(jax.tree.map(np.asarray, step(params, place(batch, split))))
    assert told[1][1]['moe/kept'] == 1
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), *told)
    over_experts = re.compile(r'(all-to-all|all-gather|reduce-scatter)\(.*replica_groups=\{\{0,1\}')
    assert over_experts.search(text[0]) and not over_experts.search(text[1])
    assert 'all-to-all' not in text[1]


def test_enforced_routing_sends_each_task_where_the_table_says():
    cfg = config('enforced')
    batch = batch_of(examples(), 20, 12, packed=True)
    _, aux = jit(lambda p, b: apply(cfg, p, b))(parameters(cfg), batch)
    wanted = np.zeros((M + 1, E))
    for inputs, _, task in examples():
        wanted[task, cfg.moe.expert_of_task[task]] += len(inputs)
    np.testing.assert_array_equal(aux['routing/encoder'][0], wanted)


def represented(cfg, tasks, prompts, seeds=(None,)):
    """Representations [G, X] of the segments of one row for each key, and the weights."""
    batch = batch_of([(p, [1], m) for p, m in zip(prompts, tasks)], 20, len(tasks), packed=True)
    segments_BS, ids_BG = (
        jnp.asarray(batch[n]) for n in ('encoder_segment_ids', 'segment_task_ids')
    )
    words_VD = np.random.default_rng(0).normal(size=(V, cfg.D)).astype(np.float32)
    graph, state = nnx.split(TaskRepresentation(cfg, nnx.Rngs(params=jax.random.key(0))))

    @jit
    def run(key):
        x_BSD = jnp.asarray(words_VD[batch['encoder_input_tokens']])
        return nnx.merge(graph, state)(rows(x_BSD), rows(segments_BS), rows(ids_BG), key)[0]

    keys = [None if seed is None else jax.random.key(seed) for seed in seeds]
    return [np.asarray(run(key)) for key in keys], nnx.to_pure_dict(state)


def test_an_unknown_task_is_the_mean_of_the_learnt_ones_or_what_its_prompt_says():
    prompts = [[5, 6, 7], [5, 6, 7], [8, 9]]
    (by_id,), weights = represented(config('gumbel'), [0, M + 1, 2], prompts)
    mean_X = np.asarray(weights['table'])[1:].mean(0)
    np.testing.assert_allclose(by_id[0], mean_X / np.sqrt(np.mean(mean_X**2)), rtol=1e-4)
    np.testing.assert_array_equal(by_id[0], by_id[1])
    assert np.abs(by_id[2] - by_id[0]).max() > 0.1
    (both,), _ = represented(config('task'), [0, 1, 0], prompts)
    assert np.abs(both[0] - both[1]).max() > 0.1 and np.abs(both[0] - both[2]).max() > 0.1
    (by_prompt,), _ = represented(config('soft'), [0, 1, 0], prompts)
    np.testing.assert_allclose(by_prompt[0], by_prompt[1], atol=1e-6)


def test_training_forgets_the_id_of_some_segments_so_that_the_prompt_learns_to_do():
    prompts, cfg = [[5, 6, 7]] * 4, config('task', forget=0.5)
    (told,), _ = represented(cfg, [1] * 4, prompts)
    (bare,), _ = represented(cfg, [0] * 4, prompts)
    found, _ = represented(cfg, [1] * 4, prompts, range(8))
    as_told, as_bare = (
        np.array([np.isclose(x, wanted, atol=1e-6).all(-1) for x in found])
        for wanted in (told, bare)
    )
    assert (as_told != as_bare).all()
    assert 4 < as_bare.sum() < 28


def test_a_batch_without_task_ids_is_refused_in_words():
    cfg, batch = config('task'), batch_of(examples(), 20, 12, packed=True)
    del batch['segment_task_ids']
    shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
    with pytest.raises(UserError, match='segment_task_ids'):
        jax.eval_shape(lambda p: apply(cfg, p, batch), shapes)


def test_decoding_step_by_step_routes_by_the_task_of_its_row():
    cfg = config('enforced')
    params, prompt, tasks = parameters(cfg), [5, 6, 7, 8], [1, 2, 0]
    moe = params['decoder']['layers']['moe']
    moe['down'] = 300 * moe['down']  # fresh experts say little
    tokens_BS = np.array([prompt] * 3, np.int32)
    answers = greedy(cfg, params, tokens_BS, 4, V + 1, tasks_BG=np.array([[m] for m in tasks]))
    answers = np.asarray(answers).tolist()
    rows_of = [(prompt, [0, *answer[:-1]], m) for answer, m in zip(answers, tasks)]
    logits = jit(lambda p, b: apply(cfg, p, b)[0])(params, batch_of(rows_of, 4, 4, packed=False))
    assert np.asarray(logits).argmax(-1).tolist() == answers
    assert len(set(map(tuple, answers))) > 1


def test_choices_are_scored_and_answers_written_by_the_task_of_their_item():
    cfg = config('enforced')
    params, prompt, tasks = parameters(cfg), [5, 6, 7, 8], [1, 2, 0]
    moe = params['decoder']['layers']['moe']
    moe['down'] = 300 * moe['down']
    found = scores(cfg, params, [(prompt, [[9, 10]])] * 3, 256, tasks=tasks)
    batch = batch_of([(prompt, [0, 9], m) for m in tasks], 4, 2, packed=False)
    logits = jit(lambda p, b: apply(cfg, p, b)[0])(params, batch)
    log_p = np.asarray(jax.nn.log_softmax(logits, -1))
    wanted = log_p[:, 0, 9] + log_p[:, 1, 10]
    np.testing.assert_allclose(np.concatenate(found), wanted, atol=1e-4)
    assert len({round(float(x), 3) for x in wanted}) == 3


# Which experts serve which families.


def test_mutual_information_is_0_of_independent_things_and_the_entropy_of_equal_ones():
    assert mutual_information(np.outer([1, 2, 3], [4, 5])) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.eye(4) * 7) == pytest.approx(math.log(4))
    counts = np.array([[5, 1, 0], [2, 2, 9]])
    p = counts / counts.sum()
    wanted = entropy(counts.sum(0)) + entropy(counts.sum(1)) - entropy(counts)
    assert mutual_information(counts) == pytest.approx(wanted)
    assert mutual_information(counts) == pytest.approx(
        sum(
            p[i, j] * math.log(p[i, j] / (p[i].sum() * p[:, j].sum()))
            for i in range(2)
            for j in range(3)
            if p[i, j]
        )
    )
    assert mutual_information(np.zeros((2, 3))) == 0


def entry(name, number, family, dataset, **more):
    return TaskEntry(name, number, family, dataset, 'pairs', 1.0, **more)


def test_counts_of_tasks_become_tables_of_families_by_sparse_layer():
    cfg = config('enforced', layers=4, encoder=2)  # sparse: 1 and 3 of the encoder
    tasks = [entry('a', 1, 'f', 'x'), entry('b', 2, 'g', 'x'), entry('c', 3, 'f', 'y')]
    counts = np.zeros((2, M + 1, E))
    counts[0, 1:, 0] = 5
    counts[1, 1, 1], counts[1, 2, 2], counts[1, 3, 1], counts[1, 0, 3] = 4, 6, 2, 99
    flat, apart = told = tables(cfg, tasks, {'routing/encoder': counts})
    assert [(t['stack'], t['layer']) for t in told] == [('encoder', 1), ('encoder', 3)]
    assert apart['families'] == ['f', 'g'] and apart['counts'] == [[0, 6, 0, 0], [0, 0, 6, 0]]
    assert flat['information'] == pytest.approx(0) and apart['share'] == pytest.approx(1)
    assert figures(told) == {'valid/moe/information/encoder': pytest.approx(math.log(2) / 2)}


# From names in a config to ids and experts.


def exam(name, task, family, dataset):
    return ExamEntry(name, 'test', '', 1, '', task, 'p', family, dataset, (), '', False, ('mix',))


TABLE = [
    entry('rte.exam', 1, 'natural_language_inference', 'rte'),
    entry('xsum', 2, 'summarisation', 'xsum'),
    entry('boolq', 4, 'closed_book_qa', 'boolq'),
    entry('gone', 3, 'other', 'other', status='unused'),
]
EXAMS = [
    exam('rte.exam', 'rte', 'natural_language_inference', 'rte'),
    exam('cnn.short', 'cnn', 'summarisation', 'cnn'),
    exam('boolq.new', 'boolq', 'closed_book_qa', 'boolq'),
    exam('anli.one', 'anli', 'natural_language_inference', 'anli'),
]


def enforced(*experts_of):
    moe = MoeConfig(
        E=E, encoder_router='enforced', decoder_router='enforced', experts_of=experts_of
    )
    return ModelConfig(size='tiny', moe=moe)


def test_enforced_experts_go_by_task_then_family_then_data_set_then_the_rest():
    cfg = enforced(
        'boolq=1', 'Summarization=2', 'super_glue/rte=3', 'natural_language_inference=0', '*=1'
    )
    found = ids(TABLE, EXAMS)
    assert found == {'rte.exam': 1, 'xsum': 2, 'boolq': 4, 'gone': 3, 'anli': 5, 'cnn': 6}
    solved = resolved(cfg, V, 4, TABLE, EXAMS)
    assert solved.M == 4
    assert solved.moe.expert_of_task == (1, 0, 2, 1, 1, 0, 2)
    by_data = resolved(enforced('super_glue/rte=3', '*=1'), V, 4, TABLE, EXAMS)
    assert by_data.moe.expert_of_task == (1, 3, 1, 1, 1, 1, 1)


def test_an_enforced_name_that_nothing_has_and_a_task_sent_nowhere_are_refused(tmp_path):
    manifest = Manifest(str(tmp_path), 'mix', True, {}, tuple(TABLE), tuple(EXAMS))
    check_names(enforced('nli=1', 'xsum=2', 'cnn.short=1', '*=0'), manifest)
    with pytest.raises(UserError, match=r"names 'sumarisation'.*did you mean 'summarisation'"):
        check_names(enforced('sumarisation=1'), manifest)
    with pytest.raises(UserError, match=r"the task 'xsum'.*nowhere"):
        resolved(enforced('nli=1', 'boolq=1'), V, 4, TABLE)
    with pytest.raises(UserError, match=r"the task 'cnn'.*nowhere"):
        resolved(enforced('nli=1', 'boolq=1', 'xsum=2'), V, 4, TABLE, EXAMS)
    check_asked(resolve(enforced('nli=1', '*=0'), 64), None)
    with pytest.raises(UserError, match='--task=NAME'):
        check_asked(resolve(enforced('nli=1'), 64), None)
    for wrong, said in (
        (('nli',), 'NAME=EXPERT'),
        (('nli=9',), 'counted from 0 to 3'),
        (('nli=1', 'nli=2'), 'two experts'),
        ((), 'experts_of'),
    ):
        with pytest.raises(UserError, match=said):
            resolve(enforced(*wrong), V)


def test_a_promise_that_rows_lie_with_their_expert_needs_one_expert_a_task():
    resolve(ModelConfig(moe=MoeConfig(E=E, local=True, **dict.fromkeys(ROUTED, 'task'))), V)
    for wrong in (
        dict(encoder_router='task'),
        dict.fromkeys(ROUTED, 'task') | dict(task_choice='soft'),
    ):
        with pytest.raises(UserError, match='promises'):
            resolve(ModelConfig(moe=MoeConfig(E=E, local=True, **wrong)), V)


ROUTED = ('encoder_router', 'decoder_router')


def test_what_was_learnt_of_a_task_goes_with_its_name_into_another_table():
    old, fresh = np.arange(12.0).reshape(3, 4), -np.ones((5, 4))
    moved = _fitted('tasks/table', old, fresh, 'MX', dict(V=None, M={0: 0, 1: 4, 2: 2}))
    np.testing.assert_array_equal(moved[[0, 4, 2]], old)
    np.testing.assert_array_equal(moved[[1, 3]], -1)


# Whole runs.


@pytest.mark.parametrize('encoder, decoder', [('task_aware', 'task'), ('task', 'enforced')])
def test_a_run_routes_by_task_and_examines_tasks_it_never_saw(
    encoder, decoder, tmp_path, capsys, monkeypatch
):
    asked_of, real = set(), evaluation.scores
    monkeypatch.setattr(evaluation, 'scores', lambda *a: asked_of.update(a[5]) or real(*a))
    moe = dict(E=3, X=8, encoder=1, decoder=1, encoder_router=encoder, decoder_router=decoder)
    if decoder == 'enforced':
        moe |= dict(experts_of=('copying=1', 'tiny_last=2', '*=0'), task_from='id')
    steps = dict(train__steps=2, train__validate_every=2, checkpoint__every=0, log__every=1)
    settings = read(str(tiny.write(tmp_path, model__moe=moe, **steps)))
    scored = train(settings, tmp_path / 'run')
    assert {row['task'] for row in scored} == {'tiny_unseen', 'tiny_first'}
    table = {t['name']: t['id'] for t in json.loads((tmp_path / 'run' / 'tasks.json').read_text())}
    assert asked_of == {table['tiny_first'], len(table) + 1}
    layers = json.loads((tmp_path / 'run' / 'routing.json').read_text())['layers']
    assert [(told['stack'], told['layer']) for told in layers] == [('encoder', 0), ('decoder', 0)]
    assert layers[0]['families'] == ['copying', 'editing', 'self_supervised']
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text()
    assert 'valid/moe/information/encoder' in lines
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert 'Experts and families' in page and 'encoder, layer 0' in page
    if decoder == 'enforced':
        assert layers[1]['share'] == pytest.approx(1)
        _extract_and_compare(tmp_path, capsys)
    else:
        again = evaluate(tmp_path / 'run', 'tiny_new', split='test')
        assert [row['value'] for row in again] == [row['value'] for row in scored]


def _extract_and_compare(folder, capsys):
    words = [f'--workdir={folder / "run"}', f'--out={folder / "dense"}', '--task=tiny_last']
    assert main(['extract', *words]) == 0
    assert 'decoder layer 0: expert 2' in capsys.readouterr().out
    asked = dict(inputs='Last of red blue (3)?', targets='blue', task='tiny_last')
    whole, part = (
        score(folder / name, [json.dumps(asked)])[0]['log_probability'] for name in ('run', 'dense')
    )
    assert whole == pytest.approx(part, abs=1e-4)
    assert main(['report', f'--workdir={folder / "dense"}']) == 0
    assert main(['extract', *words]) == 2
    assert 'is there already' in capsys.readouterr().err
