"""Registering tasks and mixtures in SeqIO's registries, and asking them what they hold.

`task('boolq', ...)` registers the Task `boolq`, which reads each example under a prompt drawn by example
and seed, and one Task a prompt, `boolq.exam`, for evaluation and for mixing by template. Registering opens
no file and counts nothing. Plain SeqIO Tasks and Mixtures are asked the same questions.
"""

import dataclasses
import fnmatch
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import seqio

from mtpt.config import UserError, nearest
from mtpt.tasks import mixing, pipeline
from mtpt.tasks.families import canonical_dataset, canonical_family
from mtpt.tasks.pipeline import Card, CardMixture, CardTask
from mtpt.tasks.prompts import Prompt
from mtpt.tasks.sources import Source


class Member(NamedTuple):
    """A task of a mixture: `rate` is its share of the draws, `kind` is 'pairs' or 'text'."""

    name: str
    rate: float
    family: str
    dataset: str
    kind: str
    objective: str | None
    objective_args: dict[str, Any]
    prompts: tuple[str, ...]
    held_out_prompt: bool


@dataclasses.dataclass(frozen=True)
class Definition:
    """What a mixture was made from, so that it can be made again when one of its tasks is."""

    members: tuple[str, ...]
    rule: str
    settings: tuple[tuple[str, Any], ...]
    inputs_eos: bool | None


def task(
    name: str,
    source: Source,
    prompts: Sequence[Prompt],
    *,
    family: str,
    dataset: str | None = None,
    metrics: Sequence[str] = ('accuracy',),
    held_out_prompts: Sequence[Prompt] = (),
    inputs_eos: bool = True,
    vocabulary: str = 'builtin',
    replace: bool = False,
) -> seqio.Task:
    """Registers a task and one Task a prompt.

    Training on `name` draws from `prompts` only; `held_out_prompts` are for evaluation. `dataset` is where the
    examples come from (by default the task's name); what a run holds out goes by it and by `family`.
    `vocabulary` and `inputs_eos` are what SeqIO itself loads with. Registering a name again with
    the same definition is harmless; with another one it needs `replace=True`, except from a prompt or a
    notebook, where the newest wins.

    Raises:
      UserError: a bad or taken name, no prompts, two prompts of one name, something that is no source.
    """
    prompts, held_out = tuple(prompts), tuple(held_out_prompts)
    if not isinstance(source, Source):
        raise UserError(f'task {name!r} needs a source (jsonl, csv, ... or function), got {source!r}')
    if not prompts:
        raise UserError(f'task {name!r} needs at least one prompt to train on')
    names = [prompt.name for prompt in prompts + held_out]
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise UserError(f'task {name!r} has two prompts named {twice[0]!r}')
    card = Card(
        kind='pairs',
        source=source,
        family=canonical_family(family),
        dataset=canonical_dataset(dataset or name),
        vocabulary=str(vocabulary),
        inputs_eos=inputs_eos,
        prompts=prompts,
        held_out_prompts=held_out,
        metrics=tuple(metrics),
    )
    exams = [dataclasses.replace(card, prompt=p, parent=name) for p in prompts + held_out]
    return _add_tasks({name: card} | {f'{name}.{exam.prompt.name}': exam for exam in exams}, replace)


def text_task(
    name: str,
    source: Source,
    *,
    objective: str = 'span_corruption',
    field: str = 'text',
    dataset: str | None = None,
    family: str = 'self_supervised',
    vocabulary: str = 'builtin',
    replace: bool = False,
    **objective_args: Any,
) -> seqio.Task:
    """Registers raw text for a self-supervised objective (a name in `mtpt.data.objectives.OBJECTIVES`).

    `field` of each example holds a document; `objective_args` go to the objective, such as `density=0.15`.
    """
    if not isinstance(source, Source):
        raise UserError(f'task {name!r} needs a source (text, jsonl, ...), got {source!r}')
    card = Card(
        kind='text',
        source=source,
        family=canonical_family(family),
        dataset=canonical_dataset(dataset or name),
        vocabulary=str(vocabulary),
        inputs_eos=None,
        field=field,
        objective=objective,
        objective_args=tuple(sorted(objective_args.items())),
    )
    return _add_tasks({name: card}, replace)


def mixture(
    name: str,
    members: Sequence[str],
    *,
    rule: str = 'proportional',
    inputs_eos: bool | None = None,
    replace: bool = False,
    **settings: Any,
) -> seqio.Mixture:
    """Registers a mixture of tasks and mixtures under a rule of `mixing.MIXING`.

    Members are names or globs; a nested mixture stands for its tasks. A glob matches tasks, or, where it
    matches none, the training prompts of tasks (`boolq.*`). Whether inputs end with EOS belongs to the
    mixture: members that differ are refused unless `inputs_eos` says what holds for all.

    Raises:
      UserError: an unknown member, rule or setting, members that differ in `inputs_eos`, a taken name.
    """
    mixing.check_settings(rule, settings)
    members = (members,) if isinstance(members, str) else tuple(members)
    definition = Definition(members, rule, tuple(sorted(settings.items())), inputs_eos)
    made = _make_mixture(name, definition)
    old = seqio.MixtureRegistry._REGISTRY.get(name)
    _refuse_taken(name, 'mixture', old, getattr(old, 'definition', None) == definition, replace)
    if name in seqio.TaskRegistry.names():
        raise UserError(f'{name!r} is a task already; give the mixture another name')
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add_provider(name, made)
    return made


def find(name: str) -> seqio.Task | seqio.Mixture:
    """The task or mixture of a name.

    Raises:
      UserError: there is none; the message has the nearest names.
    """
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        if name in registry.names():
            return registry.get(name)
    known = [*seqio.MixtureRegistry.names(), *task_names()]
    raise UserError(f'no task or mixture {name!r}; {nearest(name, known)}')


def task_names(prompts: bool = False) -> list[str]:
    """Names of all tasks, sorted; with `prompts`, those of single prompts too."""
    tasks = seqio.TaskRegistry._REGISTRY.items()
    return sorted(name for name, t in tasks if prompts or not getattr(card_of(t), 'parent', ''))


def mixture_names() -> list[str]:
    """Names of all mixtures, sorted."""
    return sorted(seqio.MixtureRegistry.names())


def card_of(provider: seqio.Task) -> Card | None:
    """The card of one of our tasks; None for a plain SeqIO Task."""
    return provider.card if isinstance(provider, CardTask) else None


def member_names(name: str) -> list[str]:
    """The tasks that a name stands for, each once, in the order of the mixture; reads nothing."""
    found = find(name)
    if isinstance(found, CardMixture):
        return _expanded(name, found.definition.members)
    return [t.name for t in found.tasks] if isinstance(found, seqio.Mixture) else [name]


def members(
    name: str, sizes: Mapping[str, int] | None = None, without: Iterable[str] = ()
) -> list[Member]:
    """The tasks of a mixture (or a task alone) with their shares of the draws, which add up to one.

    Sizes of the split `train` come from `sizes` where it has them and are counted otherwise. `without` leaves
    tasks out, as if the mixture had been registered without them.

    Raises:
      UserError: an unknown name, a task without training examples, a source that cannot be read.
    """
    found = find(name)
    left_out = set(without)
    tasks = [_task(n) for n in member_names(name) if n not in left_out]
    if not tasks:
        raise UserError(f'nothing is left of the mixture {name!r}')
    if isinstance(found, CardMixture):
        settings = dict(found.definition.settings)
        entries = [_entry(t, sizes or {}) for t in tasks]
        rates = mixing.shares(found.definition.rule, entries, settings)
    elif isinstance(found, seqio.Mixture):
        rates = [found.get_rate(t) for t in tasks]
        rates = [rate / sum(rates) for rate in rates]
    else:
        rates = [1.0]
    return [_member(t, rate) for t, rate in zip(tasks, rates)]


def inputs_eos(name: str) -> bool:
    """Whether inputs of a task or mixture end with EOS.

    Raises:
      UserError: its tasks differ.
    """
    found = find(name)
    if isinstance(found, CardMixture) and found.definition.inputs_eos is not None:
        return found.definition.inputs_eos
    return _agreed_eos(name, [_task(n) for n in member_names(name)])


def exam_names(name: str, held_out_prompts: bool = True) -> list[str]:
    """The Tasks of single prompts (and plain SeqIO Tasks) that evaluate a task or a mixture."""
    names = []
    for member in member_names(name):
        card = card_of(_task(member))
        if card is None or card.parent:
            names.append(member)
        else:
            prompts = card.prompts + (card.held_out_prompts if held_out_prompts else ())
            names += [f'{member}.{prompt.name}' for prompt in prompts]
    return list(dict.fromkeys(names))


def exam_info(name: str) -> dict[str, Any]:
    """What the results of one exam are filed under: task, prompt, family, dataset, metrics, held_out_prompt."""
    found = _task(name)
    card = card_of(found)
    if card is None:
        fns = tuple(fn.__name__ for fn in found.metric_fns) or ('exact_match',)
        return dict(task=name, prompt='', family='', dataset=name, metrics=fns, held_out_prompt=False)
    return dict(
        task=card.parent or name,
        prompt=card.prompt.name if card.prompt else '',
        family=card.family,
        dataset=card.dataset,
        metrics=card.metrics,
        held_out_prompt=card.prompt in card.held_out_prompts,
    )


def bind_objectives(
    objectives: Mapping[str, Callable], lengths: Mapping[str, Callable[..., tuple[int, int]]]
) -> None:
    """Lends the self-supervised objectives of `mtpt.data` to the SeqIO Tasks of text.

    The two packages do not import each other; a module above both calls this once.
    """
    pipeline.OBJECTIVES.update(objectives)
    pipeline.OBJECTIVE_LENGTHS.update(lengths)


def _task(name: str) -> seqio.Task:
    found = find(name)
    if isinstance(found, seqio.Mixture):
        raise UserError(f'{name!r} is a mixture; a task is needed here')
    return found


def _member(found: seqio.Task, rate: float) -> Member:
    card = card_of(found)
    if card is None:
        return Member(found.name, rate, '', found.name, 'pairs', None, {}, (), False)
    return Member(
        found.name,
        rate,
        card.family,
        card.dataset,
        card.kind,
        card.objective,
        dict(card.objective_args),
        tuple(prompt.name for prompt in card.drawn),
        card.prompt in card.held_out_prompts,
    )


def _entry(found: seqio.Task, sizes: Mapping[str, int]) -> mixing.Entry:
    card = card_of(found)
    size = sizes[found.name] if found.name in sizes else _training_size(found)
    if not size:
        raise UserError(f"task {found.name!r} has no examples in its split 'train'")
    if card is None:
        return mixing.Entry(size)
    return mixing.Entry(size, len(card.prompts) or 1, card.kind == 'text', len(card.drawn) or 1)


def _training_size(found: seqio.Task) -> int:
    if 'train' not in found.splits:
        splits = ', '.join(found.splits)
        raise UserError(f"task {found.name!r} has no split 'train' to mix by; it has: {splits}")
    try:
        size = found.num_input_examples('train')
    except UserError as error:
        raise UserError(f'task {found.name!r}: {error}') from error
    except KeyError:  # a TFDS set that is not prepared
        size = None
    if size is None:
        raise UserError(f'SeqIO does not know the size of task {found.name!r}: hand it in (sizes=...)')
    return size


def _add_tasks(cards: dict[str, Card], replace: bool) -> seqio.Task:
    registry = seqio.TaskRegistry
    parent = next(iter(cards))
    for name in cards:
        if not seqio.dataset_providers._VALID_TASK_NAME_REGEX.match(name):
            raise UserError(f'task name {name!r} may have letters, digits and _ . : # only')
        if name in seqio.MixtureRegistry.names():
            raise UserError(f'{name!r} is a mixture already; give the task another name')
        old = registry._REGISTRY.get(name)
        _refuse_taken(name, 'task', old, old is not None and card_of(old) == cards[name], replace)
    gone = [n for n in task_names(True) if getattr(card_of(registry.get(n)), 'parent', '') == parent]
    again = parent in registry.names()
    for name in [*gone, *cards]:
        registry.remove(name)
    made = [pipeline.make_task(name, card) for name, card in cards.items()]
    for one in made:
        registry.add_provider(one.name, one)
    if again:
        _renew_mixtures()
    return made[0]


def _refuse_taken(name: str, what: str, old: Any, same: bool, replace: bool) -> None:
    """A name may be taken over by the same definition, on request, or at an interactive prompt."""
    interactive = hasattr(sys, 'ps1') and isinstance(old, (CardTask, CardMixture))
    if old is not None and not (same or replace or interactive):
        raise UserError(
            f'{what} {name!r} is registered already, with another definition: choose another name, '
            'or pass replace=True'
        )


def _renew_mixtures() -> None:
    """Mixtures hold Task objects: those of ours are made again when tasks have been replaced."""
    for name, old in list(seqio.MixtureRegistry._REGISTRY.items()):
        if isinstance(old, CardMixture):
            seqio.MixtureRegistry._REGISTRY[name] = _make_mixture(name, old.definition)


def _make_mixture(name: str, definition: Definition) -> CardMixture:
    tasks = [_task(n) for n in _expanded(name, definition.members)]
    if definition.inputs_eos is None:
        eos = _agreed_eos(name, tasks)
    else:
        eos = definition.inputs_eos

    def shares():
        return {member.name: member.rate for member in members(name)}

    tasks = [with_inputs_eos(t, eos) for t in tasks]
    return CardMixture(definition=definition, shares=shares, name=name, tasks=tasks)


def _agreed_eos(name: str, tasks: Sequence[seqio.Task]) -> bool:
    told = {t.name: inputs_add_eos(t) for t in tasks}
    told = {n: eos for n, eos in told.items() if eos is not None}
    with_eos = [n for n, eos in told.items() if eos]
    without = [n for n, eos in told.items() if not eos]
    if with_eos and without:
        raise UserError(
            f'inputs of {with_eos[0]!r} end with EOS and those of {without[0]!r} do not: '
            f'give the mixture {name!r} inputs_eos=True or inputs_eos=False'
        )
    return not without


def inputs_add_eos(found: seqio.Task) -> bool | None:
    """Whether SeqIO appends EOS to the inputs of a task; None where it follows the mixture."""
    card = card_of(found)
    if card is not None:
        return card.inputs_eos
    if not {'inputs', 'targets'} <= set(found.output_features):
        names = ', '.join(found.output_features)
        raise UserError(f'task {found.name!r} has the features {names}; training needs inputs and targets')
    return found.output_features['inputs'].add_eos


def with_inputs_eos(found: seqio.Task, eos: bool) -> seqio.Task:
    """The task itself, or a copy of it whose inputs end with EOS or do not."""
    feature = found.output_features['inputs']
    if feature.add_eos == eos:
        return found
    changed = dict(found.output_features, inputs=dataclasses.replace(feature, add_eos=eos))
    return found.replace(output_features=changed)


def _expanded(name: str, patterns: Sequence[str]) -> list[str]:
    """Task names of members, globs and nested mixtures, each once."""
    found: list[str] = []
    for pattern in patterns:
        if not any(mark in pattern for mark in '*?['):
            if pattern == name:
                raise UserError(f'mixture {name!r} cannot hold itself')
            found += member_names(pattern)
            continue
        matches = fnmatch.filter(task_names(), pattern)
        matches = matches or [n for n in fnmatch.filter(task_names(True), pattern) if not _held_out(n)]
        if not matches:
            raise UserError(f'mixture {name!r}: no task matches {pattern!r}')
        found += matches
    return list(dict.fromkeys(found))


def _held_out(name: str) -> bool:
    card = card_of(seqio.TaskRegistry.get(name))
    return card is not None and card.prompt in card.held_out_prompts
