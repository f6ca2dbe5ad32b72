"""Folders of Hugging Face: T5, mT5, ByT5, UL2 and Switch, their config and safetensors.

V vocabulary  E experts  N layers of a stack
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mtpt.checkpoint.leaves import Leaf, Stored
from mtpt.config import UserError, choose
from mtpt.config import read as read_config
from mtpt.convert import names, safetensors
from mtpt.convert.tokenizers import json_of, write_tokenizer
from mtpt.model.blocks import kinds
from mtpt.model.config import SIZES, AttentionConfig, ModelConfig, resolve
from mtpt.vocabulary import Vocabulary

SHARD = 5_000_000_000  # bytes of a file of weights, at most
CAPACITY = 1 << 16  # tokens of a row for an expert: more than any row has, so that none drops

# Their activation, `gated-` before it where there is a gate, beside ours. Their gated-gelu is the
# approximate one (T5 1.1), and so is their gelu_new; their plain gelu is exact.
MLPS = {
    'relu': 'relu',
    'gelu_new': 'gelu',
    'gated-relu': 'reglu',
    'gated-gelu': 'geglu',
    'gated-gelu_new': 'geglu',
    'gated-silu': 'swiglu',
}
THEIRS = {ours: theirs for theirs, ours in reversed(MLPS.items())}
SAME = dict(
    vocab_size='V', d_model='D', num_heads='H', d_kv='K', d_ff='F', num_layers='encoder_layers'
)
# What a model must say of itself, where it says anything, to be computed as we compute it.
FIXED = dict(
    layer_norm_epsilon=1e-6,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
    is_encoder_decoder=True,
    router_bias=False,
    router_dtype='float32',
    num_selected_experts=1,
)
KINDS = ('t5', 'mt5', 'switch_transformers')
ARCHITECTURES = dict(
    t5='T5ForConditionalGeneration',
    mt5='MT5ForConditionalGeneration',
    switch_transformers='SwitchTransformersForConditionalGeneration',
)
LM_HEAD, EMBEDDING = 'lm_head.weight', 'shared.weight'
# Copies of the embedding that older files hold, and a table that no model of theirs reads.
COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
UNREAD = ('decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',)
PICKLED = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.msgpack', '*.h5')


def read(folder: pathlib.Path) -> tuple[ModelConfig, dict[str, Leaf], dict[str, Any]]:
    """A model's config, its leaves, to be read one by one, and what its config.json says.

    Raises:
      UserError: what the folder holds is not a model of a known kind, is incomplete or damaged.
    """
    told = config_of(folder)
    _check_weights(folder)
    tensors = safetensors.read(folder)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in UNREAD}
    _check_counts(told, len(tensors))
    _join_copies(tensors, folder)
    cfg = model_config(told, tied=_is_tied(told, tensors))
    places = names.places(cfg)
    named = {p: names.hugging_face(cfg, p) for p in places}
    if not cfg.tied and LM_HEAD not in tensors and EMBEDDING in tensors:  # one, and not scaled
        tensors[LM_HEAD] = tensors[EMBEDDING]
    wanted = {named[p]: names.linear_shape(p) for p in places}
    safetensors.compare(tensors, wanted, str(folder))
    return cfg, leaves(cfg, {p: tensors[name] for p, name in named.items()}), told


def leaves(cfg: ModelConfig, tensors: Mapping[names.Place, safetensors.Tensor]) -> dict[str, Leaf]:
    """Our leaves, made of tensors of PyTorch's layout as they are asked for."""
    shapes = names.shapes(cfg)
    at: dict[str, dict[tuple[int, ...], names.Place]] = {}
    for place in tensors:
        at.setdefault(place.path, {})[place.index] = place

    def leaf(path):
        def part(index):
            place = at[path][index]
            return names.from_linear(place, tensors[place].read())

        dtypes = {tensors[place].dtype for place in at[path].values()}
        both = np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)
        dtype = dtypes.pop() if len(dtypes) == 1 else both
        return Leaf(shapes[path], dtype, len(next(iter(at[path]))), part)

    return {path: leaf(path) for path in shapes}


def is_folder(folder: pathlib.Path) -> bool:
    """Whether a folder says that it is one of Hugging Face's."""
    return (folder / 'config.json').is_file() and 'model_type' in config_of(folder)


def config_of(folder: pathlib.Path) -> dict[str, Any]:
    """What a folder's config.json says."""
    return json_of(folder / 'config.json')


def _check_weights(folder: pathlib.Path) -> None:
    if any((folder / name).is_file() for name in (safetensors.SINGLE, safetensors.INDEX)):
        return
    pickled = sorted(p.name for pattern in PICKLED for p in folder.glob(pattern))
    if pickled:
        raise UserError(
            f'{folder} holds {pickled[0]}, which only running code of its own would open; fetch '
            'model.safetensors (many repositories have it, some on a branch refs/pr/N), or write '
            'it with transformers, where you trust the file: from_pretrained(A).save_pretrained(B)'
        )
    raise UserError(f'{folder} holds a config.json and no model.safetensors; fetch it too')


def _check_counts(told: Mapping[str, Any], tensors: int) -> None:
    """Checks the sizes in config.json, before anything is made that takes as long as they say."""
    parts = ('num_layers', 'num_decoder_layers', 'num_experts')  # each with tensors of its own
    for name in (*SAME, *parts[1:], 'relative_attention_num_buckets'):
        count = told.get(name)
        if count is None:
            continue
        if type(count) is not int or count < 1:
            raise UserError(
                f'config.json has {name}={count!r}, which must be a whole number of at least 1'
            )
        if name in parts and count > tensors:
            raise UserError(
                f'config.json has {name}={count}, and the folder no more than {tensors} tensors; '
                'fetch both again'
            )


def _join_copies(tensors: dict[str, safetensors.Tensor], folder: pathlib.Path) -> None:
    """Leaves one embedding, under its usual name, of several that must be equal."""
    held = [name for name in (EMBEDDING, *COPIES) if name in tensors]
    for name in held[1:]:
        if not _equal(tensors[name], tensors[held[0]]):
            raise UserError(f'{folder}: {name} and {held[0]} differ, and T5 has one embedding')
    if held:
        kept = tensors[held[0]]
        for name in held:
            del tensors[name]
        tensors[EMBEDDING] = kept


def _equal(a: safetensors.Tensor, b: safetensors.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y, rows = a.read(), b.read(), 1 << 12
    return all(
        x[i : i + rows].tobytes() == y[i : i + rows].tobytes() for i in range(0, len(x), rows)
    )


def _is_tied(told: Mapping[str, Any], tensors: dict[str, safetensors.Tensor]) -> bool:
    """Whether the head is the embedding, scaled; a copy of it under the head's name is dropped.

    Their T5 scales what the head reads exactly where the two were tied, and says so in
    `scale_decoder_outputs` or, in older files, in `tie_word_embeddings`; mT5 never does.
    """
    scaled = told.get('scale_decoder_outputs', told.get('tie_word_embeddings', True))
    if not isinstance(scaled, bool):
        raise UserError(
            'config.json must say true or false in scale_decoder_outputs and tie_word_embeddings, '
            f'not {scaled!r}'
        )
    if told.get('model_type') == 'mt5':
        scaled = False
    if not scaled:
        return False
    if LM_HEAD in tensors:
        if EMBEDDING in tensors and not _equal(tensors[LM_HEAD], tensors[EMBEDDING]):
            raise UserError(
                f'config.json ties the head to the embedding, and {LM_HEAD} and {EMBEDDING} '
                'differ; set "tie_word_embeddings": false there if the head is its own'
            )
        del tensors[LM_HEAD]
    return True


def model_config(told: Mapping[str, Any], tied: bool) -> ModelConfig:
    """Our config of a model, from what its config.json says.

    Raises:
      UserError: a model of another kind, or with parts that ours do not have.
    """
    kind = told.get('model_type')
    if kind not in KINDS:
        raise UserError(
            f'config.json is of a model of type {kind!r}; those that can be converted are '
            f'{", ".join(KINDS)} (T5, Flan-T5, T0, ByT5 and UL2 are of type t5)'
        )
    architectures = told.get('architectures') or []
    if not isinstance(architectures, list):
        raise UserError(f'config.json has architectures={architectures!r}, which must be a list')
    for name in architectures:
        if name not in (*ARCHITECTURES.values(), 'T5Model', 'T5WithLMHeadModel'):
            raise UserError(
                f'config.json is of the architecture {name!r}; {ARCHITECTURES[kind]} is what can '
                'be converted'
            )
    for name, value in FIXED.items():
        if told.get(name) not in (None, value):
            raise UserError(
                f'config.json has {name}={told[name]!r}, and only {value!r} is supported'
            )
    fields = {ours: told[theirs] for theirs, ours in SAME.items() if theirs in told}
    missing = [theirs for theirs in SAME if theirs not in told]
    if missing:
        raise UserError(f'config.json does not say {missing[0]}; fetch it again')
    decoder = told.get('num_decoder_layers')
    fields |= dict(
        decoder_layers=fields['encoder_layers'] if decoder is None else decoder,
        mlp=_mlp(told, kind),
        buckets=told.get('relative_attention_num_buckets', 32),
        max_distance=told.get('relative_attention_max_distance', 128),
        dropout=told.get('dropout_rate', 0.1),
        tied=tied,
    )
    if kind == 'switch_transformers':
        fields['moe'] = _moe(told, fields)
    return sized(fields)


def sized(fields: Mapping[str, Any]) -> ModelConfig:
    """The config of a model whose fields are all known, under the name of its size."""
    same = [
        name
        for name, line in SIZES.items()
        if 'moe' not in line and all(fields.get(k, v) == v for k, v in line.items())
    ]
    name = same[0] if same and 'moe' not in fields else 'base'
    return resolve(read_config(ModelConfig, dict(size=name, **fields), 'config.json'))


def _mlp(told: Mapping[str, Any], kind: str) -> str:
    if kind == 'switch_transformers':
        name = told.get('dense_act_fn', 'relu')
        if str(name).startswith('gated'):
            raise UserError(f'config.json has dense_act_fn={name!r}; Switch models have no gate')
    else:
        name = told.get('feed_forward_proj', 'relu' if kind == 't5' else 'gated-gelu')
    return choose('hidden layer (feed_forward_proj in config.json)', str(name), MLPS)


def _moe(told: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Their sparse layers; nothing drops, where they drop what is above `expert_capacity` a row."""
    sparse = {}
    for stack in ('encoder', 'decoder'):
        wanted = told.get(f'num_sparse_{stack}_layers', 3)
        sparse[stack] = list(_sparse(fields[f'{stack}_layers'], wanted))
    return dict(
        E=told.get('num_experts', 8),
        top_k=1,
        dispatch='dropless',
        jitter=told.get('router_jitter_noise', 0.01),
        balance=told.get('router_aux_loss_coef', 0.001),
        z_loss=told.get('router_z_loss_coef', 0.001),
        **sparse,
    )


def _sparse(layers: int, wanted: int) -> tuple[int, ...]:
    """Which layers are sparse in a model of theirs that asks for so many."""
    if type(layers) is not int or type(wanted) is not int:
        raise UserError('config.json counts layers in something else than whole numbers')
    step = layers // wanted if wanted > 0 else layers
    return tuple(i for i in range(layers) if step == 1 or (step > 1 and i % step == 1))


# --- to Hugging Face ---


def write(
    folder: pathlib.Path,
    cfg: ModelConfig,
    stored: Mapping[str, Stored],
    vocabulary: Vocabulary,
    told: Mapping[str, Any],
    dtype: np.dtype | None = None,
    shard: int = SHARD,
) -> None:
    """Writes a model as a folder of theirs.

    Args:
      folder: an empty folder.
      cfg: the model's config.
      stored: its parameters, by path.
      vocabulary: what its ids mean.
      told: further entries of config.json, such as a converted model came with.
      dtype: of the weights; that in which each is stored by default.
      shard: bytes of a file of weights, at most.

    Raises:
      UserError: they have no such model.
    """
    settings = config_from(cfg, told)
    places = names.places(cfg)
    named = {(p.path, p.index): (names.hugging_face(cfg, p), p) for p in places}
    have = {path: tuple(leaf.shape) for path, leaf in stored.items()}
    safetensors.compare(stored, names.shapes(cfg), 'the checkpoint')
    assert have == dict(names.shapes(cfg))
    plans = {
        name: safetensors.Plan(dtype or stored[p.path].dtype, names.linear_shape(p))
        for name, p in sorted(named.values())
    }

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for path, leaf in stored.items():
            lead = len(next(p.index for p in places if p.path == path))
            for index, x in leaf.parts(lead):
                name, place = named[path, index]
                yield name, names.to_linear(place, x)

    safetensors.write(folder, plans, tensors(), shard)
    kinds_held = {plan.dtype.name for plan in plans.values()}
    settings['dtype'] = kinds_held.pop() if len(kinds_held) == 1 else 'float32'
    (folder / 'config.json').write_text(json.dumps(settings, indent=2, sort_keys=True) + '\n')
    start = dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    (folder / 'generation_config.json').write_text(json.dumps(start, indent=2) + '\n')
    write_tokenizer(folder, vocabulary, cfg.V)


def config_from(cfg: ModelConfig, told: Mapping[str, Any]) -> dict[str, Any]:
    """Their config.json of a model.

    Raises:
      UserError: it has parts that theirs do not have.
    """
    plain = dict(kind='encoder_decoder', positions='relative', heads=())
    plain |= {f'{place}_attention': AttentionConfig() for place in ('encoder', 'decoder', 'cross')}
    for name, value in plain.items():
        if getattr(cfg, name) != value:
            raise UserError(
                f'Hugging Face has no model with model.{name}={getattr(cfg, name)!r}; the model '
                'stays with mtpt'
            )
    theirs = {theirs: getattr(cfg, ours) for theirs, ours in SAME.items()}
    theirs |= dict(
        num_decoder_layers=cfg.decoder_layers,
        relative_attention_num_buckets=cfg.buckets,
        relative_attention_max_distance=cfg.max_distance,
        layer_norm_epsilon=1e-6,
        is_encoder_decoder=True,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=bool(cfg.tied),
    )
    kind = told.get('model_type', 't5')
    if cfg.moe.E:
        kind = 'switch_transformers'
        theirs |= _their_moe(cfg, told)
    else:
        kind = 't5' if kind not in ('t5', 'mt5') or cfg.tied else kind
        theirs |= dict(feed_forward_proj=choose('hidden layer', cfg.mlp, THEIRS))
        if kind == 't5':
            theirs |= dict(scale_decoder_outputs=bool(cfg.tied))
    theirs |= dict(model_type=kind, architectures=[ARCHITECTURES[kind]])
    free = {k: v for k, v in told.items() if k not in ('torch_dtype', 'dtype')}
    return dict(dropout_rate=cfg.dropout) | free | theirs


def _their_moe(cfg: ModelConfig, told: Mapping[str, Any]) -> dict[str, Any]:
    moe, theirs = cfg.moe, {}
    wanted = dict(
        encoder_router='top_k', decoder_router='top_k', top_k=1, normalise=False, shared=0, F=cfg.F
    )
    for name, value in wanted.items():
        if getattr(moe, name) != value:
            raise UserError(
                f'Hugging Face has no Switch model with model.moe.{name}={getattr(moe, name)!r}; '
                'the model stays with mtpt'
            )
    if cfg.mlp not in ('relu', 'gelu'):
        raise UserError(f'Hugging Face has no Switch model with model.mlp={cfg.mlp!r}')
    for stack in ('encoder', 'decoder'):
        have = tuple(i for i, k in enumerate(kinds(cfg, stack == 'decoder')) if k.sparse)
        layers = getattr(cfg, f'{stack}_layers')
        counts = [n for n in range(layers + 2) if _sparse(layers, n) == have]
        if not counts:
            raise UserError(
                f'Hugging Face has no Switch model whose {stack} is sparse in the layers {have}'
            )
        theirs[f'num_sparse_{stack}_layers'] = max(counts, key=lambda n: n == len(have))
    return theirs | dict(
        num_experts=moe.E,
        expert_capacity=told.get('expert_capacity', CAPACITY),
        router_jitter_noise=moe.jitter,
        router_aux_loss_coef=moe.balance,
        router_z_loss_coef=moe.z_loss,
        router_bias=False,
        router_dtype='float32',
        dense_act_fn=THEIRS[cfg.mlp],
    )
