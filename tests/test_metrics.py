"""Laws of metrics and intervals."""

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from rouge_score import rouge_scorer

from mtpt.config import UserError
from mtpt.evaluate import intervals
from mtpt.evaluate.metrics import METRICS, score
from mtpt.tasks import answers

SAID = ['the cat sat on the mat today', 'a dog', '', 'rain in Spain falls mainly']
WANTED = [
    ['a cat sat on the mat today', 'nothing'],
    ['Dog!'],
    ['silence'],
    ['the rain in Spain stays mainly there', 'rain falls in Spain', 'snow'],
]


@pytest.mark.parametrize('name', METRICS)
def test_a_perfect_answer_scores_one_and_a_foreign_one_nothing(name):
    texts = ['one two three four five', 'six seven eight nine ten']
    assert score(name, texts, [[t, 'other'] for t in texts]) == pytest.approx(1)
    assert score(name, ['x y z u v'] * 2, [[t] for t in texts]) == pytest.approx(0)


@pytest.mark.parametrize('name', METRICS)
def test_the_order_of_references_and_of_examples_does_not_matter(name):
    value = score(name, SAID, WANTED)
    assert score(name, SAID, [refs[::-1] for refs in WANTED]) == pytest.approx(value)
    assert score(name, SAID[::-1], WANTED[::-1]) == pytest.approx(value)


@pytest.mark.parametrize('name', [n for n in METRICS if n != 'bleu'])
def test_one_more_reference_never_lowers_a_score(name):
    less = score(name, SAID, [refs[:1] for refs in WANTED])
    assert score(name, SAID, WANTED) >= less


def test_exact_match_ignores_case_and_punctuation_and_accuracy_only_space():
    said, wanted = ['The  Answer, is 42!', ' yes '], [['the answer is 42'], ['yes']]
    assert score('exact_match', said, wanted) == 1
    assert score('accuracy', said, wanted) == 0.5


def test_an_article_is_an_answer_but_for_squad():
    # Super-NaturalInstructions has answers A and B; its own script keeps articles.
    for said in ('the', 'an', '', 'B'):
        assert score('exact_match', [said], [['A']]) == 0
    assert score('exact_match', ['a.'], [['A']]) == 1
    assert score('exact_match', ['the cat'], [['cat']]) == 0
    assert score('squad_exact_match', ['The cat!', 'the'], [['cat'], ['A']]) == 1


def test_answers_of_punctuation_alone_are_compared_as_they_stand():
    assert score('exact_match', ['!', ' ? ', '', '-'], [['?'], ['?'], [''], ['']]) == 0.5


@pytest.mark.parametrize('name', answers.METRIC_FNS)
def test_seqios_own_evaluator_sees_the_same_numbers(name):
    wanted = [['a cat sat on a mat'], ['Dog!'], [''], ['rain in Spain']]
    said = [*SAID[:3], 'rain in spain.']
    assert answers.METRIC_FNS[name](wanted, said) == {name: score(name, said, wanted)}


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall():
    # 2 words shared, 4 said, 3 wanted
    assert score('token_f1', ['red red blue green'], [['red blue black']]) == pytest.approx(
        2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3)
    )
    assert score('token_f1', [''], [['the']]) == 1  # nothing is left of either


def test_rouge_is_the_best_stemmed_f1_over_references():
    scorer = rouge_scorer.RougeScorer(['rouge1', 'rouge2', 'rougeL'], use_stemmer=True)
    for kind in ('rouge1', 'rouge2', 'rougeL'):
        best = [max(scorer.score(r, s)[kind].fmeasure for r in rs) for s, rs in zip(SAID, WANTED)]
        assert score(kind, SAID, WANTED) == pytest.approx(np.mean(best))
    assert score('rouge1', ['walking dogs'], [['walks dog']]) == 1


@pytest.mark.parametrize('count', [4, 2])
def test_bleu_is_that_of_sacrebleu_over_the_corpus_also_with_uneven_references(count):
    said, wanted = SAID[:count], WANTED[:count]
    columns = [[refs[i] if i < len(refs) else None for refs in wanted] for i in range(3)]
    columns = [column for column in columns if any(column)]
    expected = sacrebleu.corpus_bleu(said, columns).score
    assert score('bleu', said, wanted) == pytest.approx(expected / 100)
    assert 0 < expected < 100


def test_a_wrong_metric_name_says_which_was_meant():
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        score('acuracy', ['a'], [['a']])


def mean(total, count):
    return float(total[0] / count)


def test_the_interval_of_a_constant_is_itself():
    assert intervals.over_examples(np.full((50, 1), 0.25), mean, 300, 0) == (0.25, 0.25)
    assert intervals.over_tasks([0.5] * 8) == (0.5, 0.5)
    assert intervals.of_difference([0.5] * 4, [0.25] * 4) == (0.25, 0.25)


def test_the_interval_over_examples_is_the_percentile_bootstrap():
    values = np.random.default_rng(0).random(60) ** 2
    low, high = intervals.over_examples(values[:, None], mean, 20_000, 1)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method='percentile', random_state=2
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.005)


def test_the_interval_of_right_and_wrong_is_binomial_and_covers_the_truth():
    right = np.repeat([1.0, 0.0], [70, 30])[:, None]
    low, high = intervals.over_examples(right, mean, 20_000, 0)
    assert (low, high) == pytest.approx(
        scipy.stats.binom.ppf([0.025, 0.975], 100, 0.7) / 100, abs=0.011
    )
    rng, covered = np.random.default_rng(5), 0
    for seed in range(200):
        low, high = intervals.over_examples((rng.random((100, 1)) < 0.6) * 1.0, mean, 300, seed)
        covered += low <= 0.6 <= high
    assert covered >= 0.9 * 200


def test_intervals_depend_on_the_seed_alone():
    rows = np.random.default_rng(0).random((40, 1))
    assert intervals.over_examples(rows, mean, 100, 7) == intervals.over_examples(
        rows, mean, 100, 7
    )
    assert intervals.over_examples(rows, mean, 100, 7) != intervals.over_examples(
        rows, mean, 100, 8
    )
    # Draws in pieces are as good as all at once.
    many = intervals.over_examples(np.random.default_rng(0).random((30_000, 1)), mean, 150, 0)
    assert many == pytest.approx((0.497, 0.503), abs=0.004)


def test_a_corpus_metric_is_resampled_by_its_counts():
    bleu = METRICS['bleu']
    statistics = bleu.measure(SAID * 5, WANTED * 5)
    low, high = intervals.over_examples(statistics, bleu.reduce, 200, 0)
    assert low < score('bleu', SAID * 5, WANTED * 5) < high


def test_more_tasks_and_more_seeds_narrow_an_interval_and_their_spread_widens_it():
    def width(tasks, seeds):
        low, high = intervals.over_tasks(np.add.outer(seeds, tasks))
        return high - low

    tasks, seeds = np.linspace(0, 0.2, 5), np.array([0, 0.1, 0.2])
    assert width(np.tile(tasks, 9), [0]) < 0.5 * width(tasks, [0])
    assert width(tasks, np.tile(seeds, 9)) < 0.8 * width(tasks, seeds)
    assert width(tasks, seeds) > 1.2 * width(tasks, [0, 0, 0])


def test_an_interval_over_few_tasks_and_seeds_covers_the_truth_nine_times_in_ten():
    covered = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        values_WM = (
            rng.normal(size=(1, 12)) + 0.5 * rng.normal(size=(3, 1)) + rng.normal(size=(3, 12)) / 3
        )
        low, high = intervals.over_tasks(values_WM, 300, seed)
        covered += low <= 0 <= high
    assert 0.9 * 300 <= covered <= 0.98 * 300


def runs(shift=0.0, seeds=3):
    rng, level = np.random.default_rng(0), np.random.default_rng(1).random(6)
    return {
        s: {
            f't{t}': [(level[t] + shift + rng.normal(0, 0.01) + d, 0.25) for d in (-0.1, 0.1)]
            for t in range(6)
        }
        for s in range(seeds)
    }


def test_across_seeds_a_task_counts_by_the_mean_of_its_prompts_over_chance():
    found = runs()
    result = intervals.across_seeds(found)
    pairs = [pair for tasks in found.values() for prompts in tasks.values() for pair in prompts]
    assert result['value'] == pytest.approx(np.mean([v for v, _ in pairs]))
    assert (result['chance'], result['tasks'], result['seeds']) == (0.25, 6, 3)
    assert result['low'] < result['value'] < result['high']
    for name in ('', '_low', '_high'):
        bound = dict(zip(('', '_low', '_high'), ('value', 'low', 'high')))[name]
        assert result['gain' + name] == pytest.approx(result[bound] - 0.25)
    found[2]['lonely'] = [(1.0, 0.0)]
    assert intervals.across_seeds(found) == result
    with pytest.raises(UserError, match='share no task'):
        intervals.across_seeds({0: {'a': [(1.0, 0.5)]}, 1: {'b': [(1.0, 0.5)]}})


def test_a_difference_on_the_same_tasks_is_surer_than_the_scores_themselves():
    left, right = runs(0.1), runs()
    result = intervals.difference(left, right)
    assert result['value'] == pytest.approx(0.1) and result['tasks'] == 6
    assert 0.05 < result['low'] < 0.1 < result['high'] < 0.15
    own = intervals.across_seeds(left)
    assert result['high'] - result['low'] < 0.2 * (own['high'] - own['low'])
    back = intervals.difference(right, left)
    assert (back['low'], back['high']) == pytest.approx((-result['high'], -result['low']), abs=0.01)
