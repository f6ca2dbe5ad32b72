"""Intervals: how far a score would move had other examples, tasks or seeds been drawn.

All are percentile bootstraps at 95 %, seeded. Over examples: N examples are drawn again with
replacement from the N there are. Over tasks and seeds: tasks and seeds are each drawn again, and
every drawn task counts with every drawn seed, since all seeds are judged on the same tasks. Of
tasks and of seeds, one fewer is drawn than there are: as many would make intervals of a few too
narrow, by a fifth for three seeds (McCarthy and Snowden 1985, "The bootstrap and finite population
sampling").

L draws  N examples  M tasks  W seeds
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtpt.config import UserError

LEVEL = 0.95
DRAWS = 2000


def percentiles(values_L: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of draws."""
    low, high = np.quantile(values_L, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def over_examples(
    statistics: np.ndarray, reduce: Callable[[np.ndarray, int], float], draws: int, seed: int
) -> tuple[float, float]:
    """The interval of a metric over its examples.

    Args:
      statistics: one row an example, as `Metric.measure` gives them.
      reduce: from the sum of rows and their number to the score, as in `Metric`.
      draws: how many resamples.
      seed: of the resampling; equal arguments give equal intervals.
    """
    # How often each of K equal rows is drawn is multinomial: the same law as drawing examples, and
    # fast where scores take few values, such as right and wrong.
    rows, counts = np.unique(statistics, axis=0, return_counts=True)
    rng, total = np.random.default_rng(seed), counts.sum()
    step, values = max(1, 4_000_000 // len(rows)), []
    for start in range(0, draws, step):
        size = min(step, draws - start)
        sums = rng.multinomial(total, counts / total, size=size) @ rows
        values += [reduce(drawn, total) for drawn in sums]
    return percentiles(np.array(values))


def over_tasks(values_WM: Any, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean over tasks, and over seeds where there are several.

    Args:
      values_WM: a score for each seed and task; a flat list is one seed. Of a single task and
        seed, the interval is the score itself, which says nothing: give the one over its examples
        instead.
      draws: how many resamples.
      seed: of the resampling.
    """
    values_WM = np.atleast_2d(np.asarray(values_WM, np.float64))
    rng = np.random.default_rng(seed)
    return percentiles(_drawn(values_WM, _task_counts(values_WM, draws, rng), rng))


def of_difference(
    left_WM: Any, right_WM: Any, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The interval of the mean of `left` less that of `right`: same tasks, seeds drawn apart."""
    left_WM, right_WM = (np.atleast_2d(np.asarray(v, np.float64)) for v in (left_WM, right_WM))
    if left_WM.shape[1] != right_WM.shape[1]:
        raise UserError(
            f'{left_WM.shape[1]} tasks cannot be compared with {right_WM.shape[1]}; '
            'give both the same tasks'
        )
    rng = np.random.default_rng(seed)
    counts_LM = _task_counts(left_WM, draws, rng)
    return percentiles(_drawn(left_WM, counts_LM, rng) - _drawn(right_WM, counts_LM, rng))


def _task_counts(values_WM, draws, rng):
    return _counts(values_WM.shape[1], draws, rng)


def _counts(number, draws, rng):
    """How often each of so many is drawn, in each draw of one fewer (of one: itself)."""
    return rng.multinomial(max(1, number - 1), np.full(number, 1 / number), size=draws)


def _drawn(values_WM, counts_LM, rng):
    counts_LW = _counts(len(values_WM), len(counts_LM), rng)
    sums_L = np.einsum('lw,wm,lm->l', counts_LW, values_WM, counts_LM)
    return sums_L / (counts_LW.sum(1) * counts_LM.sum(1))


Scores = Mapping[int, Mapping[str, Sequence[tuple[float, float]]]]


def across_seeds(by_seed: Scores, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The macro average of runs that differ by seed, with its interval over tasks and seeds.

    Args:
      by_seed: for each seed and task, (value, chance) of each prompt; a task counts by the mean of
        these. Tasks that some seed lacks are left out.
      draws: how many resamples.
      seed: of the resampling.

    Returns:
      value, low, high; chance; gain = value - chance with gain_low, gain_high; tasks; seeds.

    Raises:
      UserError: the seeds share no task.
    """
    tasks, values_WM, chances_WM = _shared(by_seed)
    low, high = over_tasks(values_WM, draws, seed)
    gains_WM = values_WM - chances_WM
    gain_low, gain_high = over_tasks(gains_WM, draws, seed)
    return dict(
        value=float(values_WM.mean()),
        low=low,
        high=high,
        chance=float(chances_WM.mean()),
        gain=float(gains_WM.mean()),
        gain_low=gain_low,
        gain_high=gain_high,
        tasks=len(tasks),
        seeds=len(values_WM),
    )


def difference(left: Scores, right: Scores, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """How much better `left` is than `right` on the tasks that all share, with its interval."""
    shared = _shared([*left.values(), *right.values()])[0]

    def keep(scores):
        return {s: {t: tasks[t] for t in shared} for s, tasks in scores.items()}

    left_WM, right_WM = _shared(keep(left))[1], _shared(keep(right))[1]
    low, high = of_difference(left_WM, right_WM, draws, seed)
    value = float(left_WM.mean() - right_WM.mean())
    return dict(value=value, low=low, high=high, tasks=len(shared))


def _shared(by_seed):
    """The tasks that every seed has, and the mean value and chance over prompts [W, M]."""
    runs = list(by_seed.values()) if isinstance(by_seed, Mapping) else by_seed
    tasks = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not tasks:
        raise UserError('the runs to average share no task; evaluate them on the same mixture')
    means_WM2 = np.array([[np.mean(run[t], axis=0) for t in tasks] for run in runs])
    return tasks, means_WM2[..., 0], means_WM2[..., 1]
