"""mtpt: scalable multi-task pretraining of encoder-decoders in JAX and Flax.

In a checkout the folders `configs/` and `mixtures/` stand at the top level; installed, they are
packages of mtpt. Either way they are imported as `mtpt.configs` and `mtpt.mixtures`.
"""

import pathlib

_checkout = pathlib.Path(__file__).resolve().parents[1]
if (_checkout / 'mixtures').is_dir() and (_checkout / 'pyproject.toml').is_file():
    __path__.append(str(_checkout))

__version__ = '0.1.0'
