"""What a model is: its letters, and a field for every way in which its layers can differ.

V vocabulary  D model width  H heads  J key/value heads  K head width  F hidden width
N layers of a stack  E experts  M tasks  X width of a task's representation
"""

import dataclasses
import math
import re
from typing import Any

from mtpt.config import UserError, choose
from mtpt.model.sizes import SIZES

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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model of the T5 family, dense or sparse.

    `size` names a line of `SIZES`; a field that is 0, '' or None, and a field of `moe` that has its
    default, is taken from that line, any other overrides it; with `moe.encoder` and `moe.decoder`
    both 0 a sparse size is dense. `V` comes from the vocabulary, `M` from the table of tasks.
    `resolve` fills them in.

    kind: 'encoder_decoder'; 'prefix_lm', one stack (the decoder's layers) that reads inputs and
      then targets; or 'encoder', for heads alone.
    heads: what else than text the encoder is to give.
    mlp: the hidden layer's activation (`layers.MLPS`).
    positions: 'relative' (T5's learnt bias), 'rope' (2104.09864) or 'none'.
    kernel: how attention is computed: 'xla', or 'cudnn' (GPU, bfloat16).
    scan: whether the layers of a stack are compiled once and scanned over, or one by one.
    """

    size: str = 'mini'
    kind: str = 'encoder_decoder'
    V: int = 0
    M: int = 0
    D: int = 0
    H: int = 0
    K: int = 0
    F: int = 0
    encoder_layers: int = 0
    decoder_layers: int = 0
    mlp: str = ''
    positions: str = 'relative'
    buckets: int = 32
    max_distance: int = 128
    encoder_attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    decoder_attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    cross_attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    moe: MoeConfig = dataclasses.field(default_factory=MoeConfig)
    dropout: float = 0.0
    tied: bool | None = None
    dtype: str = 'float32'
    remat: str = 'full'
    kernel: str = 'xla'
    scan: bool = True
    heads: tuple[HeadConfig, ...] = ()

    @property
    def letters(self) -> dict[str, int]:
        """The sizes of the dimensions that weights have, by letter."""
        own = dict(V=self.V, D=self.D, H=self.H, K=self.K, F=self.F, U=self.buckets)
        return own | dict(E=self.moe.E, Y=self.moe.E, M=self.M + 1, X=self.moe.X)


def resolve(cfg: ModelConfig, V: int = 0, M: int = 0) -> ModelConfig:
    """Fills in what the size, the vocabulary and the tasks determine, and checks the rest.

    Args:
      cfg: a config, resolved or not.
      V: ids of the vocabulary, sentinels and padding included.
      M: tasks of the run's table; their ids are 1 to M.

    Raises:
      UserError: an unknown name, a missing vocabulary, a value out of range, fields that do not go
        together.
    """
    line = choose('model size', cfg.size, SIZES)
    filled: dict[str, Any] = {k: v for k, v in line.items() if not getattr(cfg, k)}
    if cfg.tied is not None:
        filled.pop('tied', None)
    filled['V'] = cfg.V or V or line.get('V', 0)
    if 'moe' in line and (cfg.moe.encoder, cfg.moe.decoder) != (0, 0):
        said = {f.name: getattr(cfg.moe, f.name) for f in dataclasses.fields(MoeConfig)}
        said = {name: x for name, x in said.items() if x != getattr(MoeConfig, name)}
        filled['moe'] = MoeConfig(**line['moe'] | said)
    cfg = dataclasses.replace(cfg, **filled, M=cfg.M or M)
    if cfg.moe.E and not cfg.moe.F:
        cfg = dataclasses.replace(cfg, moe=dataclasses.replace(cfg.moe, F=cfg.F))
    _check(cfg)
    return cfg


def sparse_layers(cfg: ModelConfig, place: str) -> tuple[int, ...]:
    """The layers of the encoder or the decoder that have experts, counted from 0."""
    absent = dict(prefix_lm='encoder', encoder='decoder').get(cfg.kind)
    asked, count = getattr(cfg.moe, place), getattr(cfg, f'{place}_layers')
    if not cfg.moe.E or place == absent:
        return ()
    if isinstance(asked, int):
        return tuple(range(asked - 1, count, asked)) if asked else ()
    return tuple(sorted(set(asked)))


def routers(cfg: ModelConfig) -> dict[str, str]:
    """The routers that a model has: of those of its stacks that have sparse layers."""
    places = [place for place in ('encoder', 'decoder') if sparse_layers(cfg, place)]
    return {place: getattr(cfg.moe, f'{place}_router') for place in places}


def _check(cfg: ModelConfig) -> None:
    decoder = () if cfg.kind == 'encoder' else ('decoder_layers',)
    for name in ('V', 'D', 'H', 'K', 'F', *decoder):
        if getattr(cfg, name) < 1:
            raise UserError(f'model.{name}={getattr(cfg, name)} must be at least 1')
    if cfg.kind != 'prefix_lm' and cfg.encoder_layers < 1:
        raise UserError(f'model.encoder_layers={cfg.encoder_layers} must be at least 1')
    if cfg.buckets < 4 or cfg.buckets % 4:
        raise UserError(f'model.buckets={cfg.buckets} must be a multiple of 4, at least 4')
    if cfg.max_distance <= cfg.buckets // 2:
        raise UserError(
            f'model.max_distance={cfg.max_distance} must be above half of '
            f'model.buckets={cfg.buckets}'
        )
    if not 0 <= cfg.dropout < 1:
        raise UserError(f'model.dropout={cfg.dropout} must be at least 0 and below 1')
    if cfg.dtype == 'float16':
        raise UserError("model.dtype='float16' overflows in T5; use 'bfloat16' or 'float32'")
    choose('compute dtype', cfg.dtype, dict.fromkeys(DTYPES))
    choose('remat policy', cfg.remat, REMAT)
    choose('model kind', cfg.kind, dict.fromkeys(KINDS))
    choose('mlp', cfg.mlp, dict.fromkeys(MLPS))
    choose('position scheme', cfg.positions, dict.fromkeys(POSITIONS))
    choose('attention kernel', cfg.kernel, dict.fromkeys(KERNELS))
    if cfg.kernel == 'cudnn' and cfg.dtype != 'bfloat16':
        raise UserError(
            f"model.kernel='cudnn' computes in bfloat16 and model.dtype={cfg.dtype!r}; set "
            "model.dtype='bfloat16', or model.kernel='xla'"
        )
    if cfg.kernel == 'cudnn' and cfg.dropout:
        raise UserError(
            f"model.kernel='cudnn' drops no attention weights and model.dropout={cfg.dropout}; set "
            "model.dropout=0, or model.kernel='xla'"
        )
    if cfg.kernel == 'cudnn' and (cfg.K % 8 or cfg.K > 256):
        raise UserError(
            f"model.K={cfg.K} must be a multiple of 8, at most 256, for model.kernel='cudnn'"
        )
    if cfg.positions == 'rope' and cfg.K % 2:
        raise UserError(f"model.K={cfg.K} must be even for model.positions='rope'")
    for place in ('encoder', 'decoder', 'cross'):
        _check_attention(cfg, place)
    if cfg.moe.E < 0 or cfg.moe.F < 0:
        raise UserError(
            f'model.moe.E={cfg.moe.E} experts of width model.moe.F={cfg.moe.F}: neither may be '
            'below 0'
        )
    if cfg.moe.E:
        _check_moe(cfg)
    _check_kind(cfg)
    for head in cfg.heads:
        _check_head(cfg, head)


def _check_attention(cfg: ModelConfig, place: str) -> None:
    attention, where = getattr(cfg, f'{place}_attention'), f'model.{place}_attention'
    J, routed, top = attention.kv_heads, attention.routed_heads, attention.top_heads
    if J < 0 or cfg.H % (J or 1):
        raise UserError(
            f'{where}.kv_heads={J} does not divide the H={cfg.H} heads into groups; choose a '
            f'divisor of {cfg.H}'
        )
    if attention.kv_layers < 1:
        raise UserError(f'{where}.kv_layers={attention.kv_layers} must be at least 1')
    choose('head router', attention.head_router, dict.fromkeys(HEAD_ROUTERS))
    if not 0 <= routed <= cfg.H:
        raise UserError(f'{where}.routed_heads={routed} must be at most the H={cfg.H} heads')
    if routed and not 1 <= top <= routed:
        raise UserError(f'{where}.top_heads={top} must be from 1 to {where}.routed_heads={routed}')
    if attention.head_router != 'learnt' and not routed:
        raise UserError(
            f'{where}.head_router={attention.head_router!r} routes no heads; set '
            f'{where}.routed_heads too'
        )
    if top and not routed:
        raise UserError(
            f'{where}.top_heads={top} chooses among no heads; set {where}.routed_heads too'
        )
    if attention.head_balance < 0:
        raise UserError(f'{where}.head_balance={attention.head_balance} must be at least 0')


def _check_moe(cfg: ModelConfig) -> None:
    moe = cfg.moe
    absent = dict(prefix_lm='encoder', encoder='decoder').get(cfg.kind)
    for place in ('encoder', 'decoder'):
        router = getattr(moe, f'{place}_router')
        choose(f'{place} router', router, dict.fromkeys(ROUTERS))
        if place == absent:
            if router != 'top_k':
                raise UserError(
                    f'model.moe.{place}_router={router!r} is of a part that '
                    f'model.kind={cfg.kind!r} does not have; leave it out'
                )
            continue
        layers, count = getattr(moe, place), getattr(cfg, f'{place}_layers')
        if isinstance(layers, int) and layers < 0:
            raise UserError(f'model.moe.{place}={layers} must be 0 (none) or more')
        if isinstance(layers, tuple) and any(not 0 <= i < count for i in layers):
            raise UserError(
                f'model.moe.{place}={layers} names layers that are not there; the {place} has '
                f'{count}, counted from 0'
            )
    has = routers(cfg)
    if not has:
        raise UserError(
            f'model.moe.E={moe.E} experts, and no layer is sparse: model.moe.encoder={moe.encoder} '
            f'and model.moe.decoder={moe.decoder} name none of the {cfg.encoder_layers} and '
            f'{cfg.decoder_layers} layers; set 1 for every layer'
        )
    if has.get('decoder') == 'expert_choice':
        raise UserError(
            "model.moe.decoder_router='expert_choice' lets an expert choose among all positions of "
            "a row, the future included; use 'top_k' in the decoder"
        )
    if not 1 <= moe.top_k <= moe.E:
        raise UserError(
            f'model.moe.top_k={moe.top_k} must be from 1 to the model.moe.E={moe.E} experts'
        )
    for name, table in MOE_CHOICES.items():
        choose(f'model.moe.{name}', getattr(moe, name), dict.fromkeys(table))
    for name, least in dict(group=0, shared=0, balance=0, z_loss=0, X=1).items():
        if not least <= getattr(moe, name) < math.inf:
            raise UserError(f'model.moe.{name}={getattr(moe, name)} must be at least {least}')
    for name in ('capacity', 'eval_capacity', 'temperature'):
        if not 0 < getattr(moe, name) < math.inf:
            raise UserError(f'model.moe.{name}={getattr(moe, name)} must be above 0, and finite')
    for name in ('jitter', 'forget'):
        if not 0 <= getattr(moe, name) < 1:
            raise UserError(f'model.moe.{name}={getattr(moe, name)} must be at least 0 and below 1')
    if moe.dropout is not None and not 0 <= moe.dropout < 1:
        raise UserError(f'model.moe.dropout={moe.dropout} must be at least 0 and below 1')
    _check_slots(moe, has)
    _check_experts_of(moe, 'enforced' in has.values())
    apart = set(has.values()) - {'task', 'enforced'}
    if moe.local and (apart or moe.task_choice == 'soft'):
        raise UserError(
            'model.moe.local promises that a row lies with the one expert of its task; '
            f'{sorted(apart)[0] if apart else "task_choice=soft"!r} sends a task to several: set '
            'model.moe.local=False'
        )


def _check_slots(moe: MoeConfig, has: dict[str, str]) -> None:
    """Settings of slots, where no experts have slots."""
    bounded = moe.dispatch == 'capacity'
    if moe.prioritised and not (bounded and has.get('encoder') == 'top_k'):
        raise UserError(
            'model.moe.prioritised orders who gets a slot in the encoder (in the decoder later '
            'positions would push out earlier ones), so it needs sparse encoder layers with '
            "encoder_router='top_k' and dispatch='capacity'"
        )
    slots = [r for r in has.values() if r == 'expert_choice' or (bounded and r == 'top_k')]
    if moe.group and not slots:
        raise UserError(
            f'model.moe.group={moe.group} shares slots, and none of the experts has any; set it to '
            "0, or use dispatch='capacity' with the router 'top_k'"
        )


def _check_experts_of(moe: MoeConfig, enforced: bool) -> None:
    if enforced and not (moe.experts_of or moe.expert_of_task):
        raise UserError(
            "the router 'enforced' needs model.moe.experts_of, such as ('summarisation=2', '*=0')"
        )
    if moe.experts_of and not enforced:
        raise UserError(
            'model.moe.experts_of sends tasks to experts, and no router of the model is '
            "'enforced'; set model.moe.encoder_router='enforced', or leave it out"
        )
    sent = [*named_experts(moe.experts_of).items(), *enumerate(moe.expert_of_task)]
    for name, expert in sent:
        if not 0 <= expert < moe.E:
            raise UserError(
                f'model.moe.experts_of sends {name!r} to expert {expert}, and model.moe.E={moe.E} '
                f'experts are counted from 0 to {moe.E - 1}'
            )


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


def _check_kind(cfg: ModelConfig) -> None:
    if cfg.kind == 'prefix_lm':
        for place in ('encoder', 'cross'):
            if getattr(cfg, f'{place}_attention') != AttentionConfig():
                raise UserError(
                    f"model.{place}_attention says something of a part that model.kind='prefix_lm' "
                    'does not have; set model.decoder_attention'
                )
        if cfg.heads:
            raise UserError(
                "model.heads read an encoder, which model.kind='prefix_lm' does not have; set "
                "model.kind='encoder_decoder' or 'encoder'"
            )
    if cfg.kind == 'encoder' and not cfg.heads:
        raise UserError(
            "model.kind='encoder' gives nothing without heads; add one to model.heads, or set "
            "model.kind='encoder_decoder'"
        )
    names = [head.name for head in cfg.heads]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f'two of model.heads are called {twice[0]!r}; give each its own name')


def _check_head(cfg: ModelConfig, head: HeadConfig) -> None:
    where = f'model.heads: {head.name!r}'
    if not re.fullmatch(r'[A-Za-z_]\w*', head.name):
        raise UserError(f'{where} is no name for a head; use letters, digits and _')
    choose(f'kind of head (of {head.name!r})', head.kind, HEADS)
    if not 0 <= head.depth <= cfg.encoder_layers:
        raise UserError(
            f'{where} has depth={head.depth}, and the encoder has {cfg.encoder_layers} layers; '
            f'choose 1 to {cfg.encoder_layers}, or 0 for the top'
        )
    if head.weight < 0:
        raise UserError(f'{where} has weight={head.weight}, which must be at least 0')
    choose(f'pooling (of head {head.name!r})', head.pooling or 'query', dict.fromkeys(POOLINGS))
    if head.kind == 'token_labels' and head.pooling not in ('', 'query'):
        raise UserError(
            f"{where} labels every word, and pooling={head.pooling!r} makes one of all; set 'query'"
        )
    for field in dataclasses.fields(head)[6:]:
        if field.name not in HEADS[head.kind] and getattr(head, field.name) != field.default:
            raise UserError(f'{where} is of kind {head.kind!r}, which has no {field.name}')
    if 'labels' in HEADS[head.kind] and len(head.labels) < (head.kind != 'multi_label') + 1:
        raise UserError(f'{where} has {len(head.labels)} labels; list the texts of its labels')
    texts = [text for label in head.labels for text in label.split('|')]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    if twice:
        raise UserError(f'{where} has {twice[0]!r} twice among its labels')
    if not head.tasks or not head.separator or not all(texts):
        raise UserError(f'{where} has empty tasks, labels or separator; give each a text')
    if head.nothing in texts and head.kind == 'multi_label':
        raise UserError(
            f'{where} has {head.nothing!r} as a label and for having none; rename one of them'
        )
    if head.temperature <= 0:
        raise UserError(f'{where} has temperature={head.temperature}, which must be above 0')
    choose(f'negatives (of head {head.name!r})', head.negatives, dict.fromkeys(NEGATIVES))


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
HEAD_ROUTERS = ('learnt', 'query')
ROUTERS = ('top_k', 'expert_choice', 'task_aware', 'task', 'enforced')
MOE_CHOICES = dict(
    dispatch=('capacity', 'dropless'),
    task_from=('id', 'prompt', 'both'),
    task_choice=('soft', 'gumbel', 'hard'),
)

# What a layer keeps for its backward pass, from all to nothing (`jax.checkpoint_policies`). On a
# CPU 'full' is also the fastest: to compute again costs less than to store and fetch.
REMAT = dict(
    none=None,
    dots='dots_saveable',
    dots_with_no_batch_dims='dots_with_no_batch_dims_saveable',
    full='nothing_saveable',
)
