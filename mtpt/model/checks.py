"""What goes together in a model and what does not, said before anything is compiled."""

import dataclasses
import math
import re
from typing import Any

from mtpt.config import UserError, choose
from mtpt.model.parts import (
    DTYPES,
    HEAD_ROUTERS,
    HEADS,
    KERNELS,
    KINDS,
    MLPS,
    MOE_CHOICES,
    NEGATIVES,
    POOLINGS,
    POSITIONS,
    REMAT,
    ROUTERS,
    AttentionConfig,
    HeadConfig,
    MoeConfig,
    named_experts,
    routers,
)


def check(cfg: Any) -> None:
    """Checks a `ModelConfig` whose size and vocabulary are filled in.

    Raises:
      UserError: one sentence that says what to change.
    """
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
    choose('remat policy', cfg.remat, dict.fromkeys(REMAT))
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


def _check_attention(cfg: Any, place: str) -> None:
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


def _check_moe(cfg: Any) -> None:
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


def _check_kind(cfg: Any) -> None:
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


def _check_head(cfg: Any, head: HeadConfig) -> None:
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
