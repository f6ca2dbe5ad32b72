"""Whether a run can be laid out on a mesh: every dimension splits, and the kernels are there.

B rows  D model width  E experts  F hidden width  H heads  V vocabulary
"""

import math
from typing import Any

from mtpt import mesh as meshes
from mtpt.config import UserError
from mtpt.model.attention import check_kernel
from mtpt.model.config import ModelConfig
from mtpt.model.layers import check_split
from mtpt.model.remat import check_remat
from mtpt.settings import Run


def check(run: Run, model_cfg: ModelConfig, mesh: Any, platform: str) -> None:
    """Checks that a run trains on a mesh, which may be abstract, of a platform's devices.

    Raises:
      UserError: a dimension that does not split over its axes, with the cure.
    """
    lengths = {f'data.{n}': getattr(run.data, n) for n in ('inputs_length', 'targets_length')}
    check_kernel(model_cfg, platform, lengths)
    check_remat(model_cfg.remat, platform, math.prod(mesh.shape.values()))
    if model_cfg.kind == 'prefix_lm':
        lengths = {' + '.join(lengths): sum(lengths.values())}
    check_split(model_cfg, mesh.shape['tensor'], lengths)
    sizes = {letter: getattr(model_cfg, letter) for letter in 'DHFV'}
    meshes.check_divides(sizes | dict(B=run.data.batch_size // run.data.accumulation), mesh)
    if model_cfg.moe.E:
        meshes.check_divides(dict(E=model_cfg.moe.E, F=model_cfg.moe.F), mesh)
        _check_experts(run, model_cfg, mesh)


def _check_experts(run: Run, model_cfg: ModelConfig, mesh: Any) -> None:
    moe, split = model_cfg.moe, math.prod(mesh.shape[axis] for axis in meshes.BATCH)
    rows = run.data.batch_size // run.data.accumulation // split
    for side in ('inputs_length', 'targets_length'):
        tokens = rows * getattr(run.data, side)
        if moe.group and tokens % moe.group:
            raise UserError(
                f'model.moe.group={moe.group} does not divide the {tokens} tokens of a device '
                f'({rows} rows of data.{side}); choose a divisor, or 0 for all of them'
            )
    if moe.local and mesh.shape['expert'] > 1:
        raise UserError(
            'model.moe.local promises rows that lie with the expert of their task, and the loader '
            f'does not order them so; with mesh.expert={mesh.shape["expert"]} set '
            'model.moe.local=False'
        )
