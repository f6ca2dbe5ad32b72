"""Mixture of experts in place of the hidden layer. (Written next.)"""

from flax import nnx


class Moe(nnx.Module):
    def __init__(self, cfg, rngs, decoder):
        raise NotImplementedError

    def __call__(self, x_BTD, routing, key=None, decoding=False):
        raise NotImplementedError
