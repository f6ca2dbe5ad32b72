"""What a model's parts may be: attention, experts and heads, each a section of the config.

D model width  H heads  E experts  M tasks  X width of a task's representation
"""

import dataclasses
from typing import Any

from mtpt.config import UserError

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """How the attention of one place (encoder, decoder, cross) makes its heads.

    kv_heads: heads of keys and values, which groups of query heads share (GQA, 2305.13245); 1 is
      multi-query attention (1911.02150); 0 as many as query heads.
    kv_layers: so many neighbouring layers use the keys and values of the first of them (CLA,
      2405.12981).
    routed_heads: of the heads, the last so many are experts (MoH, 2410.11842); 0 turns it off.
    top_heads: how many of the routed heads a position uses.
    head_router: 'learnt', a router of its own (MoH, section 3), or 'query', by the norm of each
      head's query, with no weights: for going on from a multi-head checkpoint (section 4.3).
    head_balance: the weight of the load-balance loss of the routed heads.
    """

    kv_heads: int = 0
    kv_layers: int = 1
    routed_heads: int = 0
    top_heads: int = 0
    head_router: str = 'learnt'
    head_balance: float = 1e-2


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """The sparse layers: how many experts, in which layers, and who goes where.

    E: routed experts of a sparse layer; 0 is a dense model.
    F: hidden width of an expert; 0: the model's.
    encoder, decoder: which layers are sparse: every so many (2: the second, the fourth, ...; 0:
      none), or a tuple of layers counted from 0.
    encoder_router, decoder_router: how tokens find experts (`moe.ROUTERS`).
    top_k: experts a token.
    normalise: whether the gates of the chosen experts are scaled to sum to 1 (ST-MoE).
    dispatch: 'capacity', where an expert takes a bounded number of tokens and drops the rest, or
      'dropless'. Routing by task is dropless and so is decoding step by step; expert choice always
      has slots.
    capacity, eval_capacity: slots of an expert, as a multiple of an even share of the tokens, in
      training and without dropout (evaluation).
    group: tokens that share the slots of an expert, one after the other in the rows of a batch; 0:
      all of a device's, so that which tokens are dropped depends on the number of devices. In
      training it must divide the tokens of a device.
    shared: experts that take every token, beside the routed ones.
    balance, z_loss: weights of the load-balance loss (2101.03961, 2.2) and of the router z-loss
      (2202.08906, 3.2).
    jitter: the router's input is multiplied by uniform noise of 1 - jitter to 1 + jitter.
    dropout: of an expert's hidden features; None: the model's (Switch fine-tunes with 0.4, and 0.1
      elsewhere).
    prioritised: slots go to the tokens of the highest gates first (2106.05974; encoder only).
    X: width of a task's representation, for the routers that know the task.
    task_from: what a task's representation is made of: 'id', 'prompt' or 'both'.
    forget: with 'both', how often in training a segment's id is left out, so that the prompt alone
      comes to do for tasks that are not known.
    task_choice: how 'task' routes a whole task: 'soft', 'gumbel' or 'hard'.
    temperature: of task-level routing.
    local: a promise that in training every row is of one task and lies on the device of its expert
      (`dispatch.beside_experts` orders rows so): nothing is exchanged then, and tokens of which it
      is not true are dropped ('moe/kept' tells). Evaluation goes by no promise.
    experts_of: for 'enforced', entries such as 'summarization=2': a family, data set or task, and
      its expert; '*=0' for all others.
    expert_of_task: what `experts_of` says for each task id (0 first); filled in by `resolve`.
    """

    E: int = 0
    F: int = 0
    encoder: int | tuple[int, ...] = 2
    decoder: int | tuple[int, ...] = 2
    encoder_router: str = 'top_k'
    decoder_router: str = 'top_k'
    top_k: int = 1
    normalise: bool = False
    dispatch: str = 'capacity'
    capacity: float = 1.25
    eval_capacity: float = 2.0
    group: int = 0
    shared: int = 0
    balance: float = 1e-2
    z_loss: float = 1e-3
    jitter: float = 0.0
    dropout: float | None = None
    prioritised: bool = False
    X: int = 64
    task_from: str = 'both'
    forget: float = 0.1
    task_choice: str = 'gumbel'
    temperature: float = 1.0
    local: bool = False
    experts_of: tuple[str, ...] = ()
    expert_of_task: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """A head on the encoder: what it reads of each segment's inputs, and what it is taught.

    name: what its weights and figures are called.
    kind: 'classification', one label of several; 'multi_label', any of them; 'token_labels', one
      label a word; 'contrastive', inputs beside their targets, both encoded (`heads.KINDS`).
    tasks: globs over task names and families: whose segments teach it, whose exams it answers.
    depth: after which layer of the encoder it reads, counted from 1 (HMTL, 1811.06031); 0: the
      top, after the last norm.
    weight: of its loss in the objective.
    pooling: how a segment is read: 'query', by a decoder of one layer over learnt queries (EncT5,
      2110.08426); 'attention', a softmax over its positions; 'mean'; '': 'mean' for 'contrastive',
      else 'query'.
    labels: the texts of the labels, `|` between those that mean the same: 'yes|true'.
    separator: between the labels of a 'multi_label' target.
    nothing: the 'multi_label' target that holds no label.
    temperature: what cosines are divided by.
    negatives: the targets that a contrastive head sets against the right one: those of the whole
      'batch', or of the same 'task'.
    """

    name: str = 'head'
    kind: str = 'classification'
    tasks: tuple[str, ...] = ('*',)
    depth: int = 0
    weight: float = 1.0
    pooling: str = ''
    labels: tuple[str, ...] = ()
    separator: str = ', '
    nothing: str = 'none'
    temperature: float = 0.05
    negatives: str = 'batch'

    @property
    def columns(self) -> int:
        """How many columns of a batch's 'segment_labels' are this head's."""
        return len(self.labels) if self.kind == 'multi_label' else 1


def sparse_layers(cfg: Any, place: str) -> tuple[int, ...]:
    """The layers of the encoder or the decoder that have experts, counted from 0."""
    absent = dict(prefix_lm='encoder', encoder='decoder').get(cfg.kind)
    asked, count = getattr(cfg.moe, place), getattr(cfg, f'{place}_layers')
    if not cfg.moe.E or place == absent:
        return ()
    if isinstance(asked, int):
        return tuple(range(asked - 1, count, asked)) if asked else ()
    return tuple(sorted(set(asked)))


def routers(cfg: Any) -> dict[str, str]:
    """The routers that a model has: of those of its stacks that have sparse layers."""
    places = [place for place in ('encoder', 'decoder') if sparse_layers(cfg, place)]
    return {place: getattr(cfg.moe, f'{place}_router') for place in places}


def named_experts(experts_of: tuple[str, ...]) -> dict[str, int]:
    """From a name to its expert, of entries 'NAME=EXPERT'.

    Raises:
      UserError: an entry of another form, or a name with two experts.
    """
    found: dict[str, int] = {}
    for entry in experts_of:
        name, _, number = entry.rpartition('=')
        name = name.strip()
        if not name or not number.strip().isdecimal():
            raise UserError(
                f'model.moe.experts_of has {entry!r}; an entry is NAME=EXPERT, such as '
                "'summarisation=2' or '*=0'"
            )
        if found.setdefault(name, int(number)) != int(number):
            raise UserError(f'model.moe.experts_of sends {name!r} to two experts')
    return found


KINDS = ('encoder_decoder', 'prefix_lm', 'encoder')
# The kinds of heads, and which of the fields after `pooling` they have.
HEADS = dict(
    classification=('labels',),
    multi_label=('labels', 'separator', 'nothing'),
    token_labels=('labels',),
    contrastive=('temperature', 'negatives'),
)
POOLINGS = ('query', 'attention', 'mean')
NEGATIVES = ('batch', 'task')
MLPS = ('relu', 'gelu', 'reglu', 'geglu', 'swiglu')
POSITIONS = ('relative', 'rope', 'none')
KERNELS = ('xla', 'cudnn')
REMAT = (  # `remat.POLICIES`
    'none',
    'dots',
    'dots_with_no_batch_dims',
    'attention',
    'full',
    'offload_dots',
    'offload_layers',
)
HEAD_ROUTERS = ('learnt', 'query')
ROUTERS = ('top_k', 'expert_choice', 'task_aware', 'task', 'enforced')
MOE_CHOICES = dict(
    dispatch=('capacity', 'dropless'),
    task_from=('id', 'prompt', 'both'),
    task_choice=('soft', 'gumbel', 'hard'),
)
