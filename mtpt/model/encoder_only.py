"""The encoder alone, for what its heads tell: no decoder, no text (EncT5, 2110.08426).

B row  S input position  G segments of a row  D model width  X width of a task's representation
"""

from collections.abc import Mapping
from typing import NoReturn

import jax
from flax import nnx

from mtpt.config import UserError
from mtpt.model import heads
from mtpt.model.blocks import Stack
from mtpt.model.config import ModelConfig
from mtpt.model.encoder_decoder import Encoded, EncoderDecoder
from mtpt.model.layers import Aux, param, whole
from mtpt.model.task_routing import TaskRepresentation, knows_tasks


class EncoderOnly(nnx.Module):
    """The whole model; `functional` calls its methods with a plain tree of parameters."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.token_embedding = param(rngs, 'VD', cfg, 1.0)
        self.encoder = Stack(cfg, rngs, cross=False)
        if knows_tasks(cfg):
            self.tasks = TaskRepresentation(cfg, rngs)
        self.heads = heads.Heads(cfg, rngs)

    embed = EncoderDecoder.embed
    embeds = EncoderDecoder.embeds
    represented = EncoderDecoder.represented
    look = heads.look
    told = heads.told

    def __call__(
        self, batch: Mapping[str, jax.Array], key: jax.Array | None
    ) -> tuple[None, dict[str, Aux]]:
        """No logits, and what the layers and the heads report."""
        keys = [None] * 2 if key is None else jax.random.split(key)
        segments_BS, tasks_BG = batch['encoder_segment_ids'], batch['segment_task_ids']
        layers, aux = self.look(batch['encoder_input_tokens'], segments_BS, tasks_BG, keys[0])
        return None, dict(encoder=aux) | heads.teach(self, layers, batch, keys[1])

    def encode(self, tokens_BS, segments_BS, tasks_BG) -> Encoded:
        """The inputs read, without dropout."""
        layers, _ = self.look(tokens_BS, segments_BS, tasks_BG, None)
        return Encoded(whole(layers.top_BSD), segments_BS, tasks_BG, None)

    def start(self, *_) -> NoReturn:
        raise UserError(
            "model.kind='encoder' writes no text; ask its heads, or train a model of "
            "model.kind='encoder_decoder'"
        )

    decode = step = start
