"""Checkpoints from and to the world: what `mtpt convert` does.

A folder of Hugging Face's or a checkpoint of T5X becomes the folder of a run, with a checkpoint at
step 0; the folder of a run becomes one of Hugging Face's. Tensors pass one at a time, so that a
model far larger than memory converts; what is written appears whole or not at all.
"""

import dataclasses
import json
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mtpt import record
from mtpt.checkpoint import Checkpoints, plain
from mtpt.checkpoint import leaves as leafwise
from mtpt.checkpoint.leaves import Leaf
from mtpt.config import UserError, choose
from mtpt.convert import hugging_face, t5x, tokenizers
from mtpt.convert.names import from_hugging_face
from mtpt.data import manifest as manifests
from mtpt.data.config import DataConfig
from mtpt.files import write, write_folder
from mtpt.mesh import make_mesh
from mtpt.model.config import ModelConfig, resolve
from mtpt.settings import Run
from mtpt.vocabulary import Vocabulary, load

__all__ = ['convert', 'from_hugging_face']

DTYPES = dict(float32=np.dtype(np.float32), bfloat16=np.dtype(ml_dtypes.bfloat16), stored=None)


def convert(
    source: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    vocabulary: str | None = None,
    dtype: str = 'stored',
    mlp: str | None = None,
    step: int | None = None,
    shard: int = hugging_face.SHARD,
) -> list[str]:
    """Converts a checkpoint into another folder; what the source is tells in which direction.

    Args:
      source: a folder of Hugging Face's, a checkpoint of T5X, the folder of a run, or one of its
        checkpoints.
      out: a folder that does not exist yet.
      vocabulary: a SentencePiece model or 'bytes', for sources without one beside them.
      dtype: of the weights that are written: 'float32', 'bfloat16', or 'stored' for no change.
      mlp: for T5X, whose checkpoints do not tell it, the kind of hidden layer.
      step: of a run, the checkpoint; the last one by default.
      shard: bytes of a file of weights in a folder of Hugging Face's, at most.

    Returns:
      Sentences on what was done.

    Raises:
      UserError: whatever keeps a checkpoint from being converted, in a sentence; nothing is left.
    """
    source, out = pathlib.Path(source), pathlib.Path(os.path.abspath(out))
    wanted = choose('dtype', dtype, DTYPES)
    if source.parent.name == 'checkpoints' and source.name.isdigit():
        _refuse('one checkpoint of a run', step=step)
        source, step = source.parent.parent, int(source.name)
    if not source.is_dir():
        raise UserError(f'no folder {source}; --source takes the folder of a checkpoint')

    def import_(beside):
        _refuse('a folder of Hugging Face', mlp=mlp, step=step)
        return _import(source, beside, out, wanted, vocabulary)

    def import_t5x(beside):
        _refuse('a checkpoint of T5X', step=step)
        return _import_t5x(source, beside, out, wanted, vocabulary, mlp)

    def export(beside):
        _refuse('a run', vocabulary=vocabulary, mlp=mlp)
        return _export(source, beside, out, wanted, step, shard)

    if hugging_face.is_folder(source):  # first, since theirs may hold anything beside it
        return write_folder(out, import_)
    if is_run(source):
        return write_folder(out, export)
    if t5x.is_checkpoint(source):
        return write_folder(out, import_t5x)
    if (source / 'config.json').is_file():
        return write_folder(out, import_)
    raise UserError(
        f'{source} is none of what can be converted: a folder of Hugging Face (config.json and '
        'model.safetensors), a checkpoint of T5X (a file called checkpoint), the folder of a run'
    )


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is that of a run of mtpt."""
    return (folder / 'checkpoints').is_dir()


def _refuse(source: str, **flags: Any) -> None:
    """Refuses flags that were given and mean nothing for a source of this kind."""
    for name, value in flags.items():
        if value is not None:
            raise UserError(f'--{name}={value} means nothing for {source}; leave it out')


def _import(source, beside, out, dtype, named) -> list[str]:
    cfg, leaves, told = hugging_face.read(source)
    vocabulary, notes = tokenizers.vocabulary_of(source, named, cfg.V)
    kept = dict(format='hugging_face', config=told)
    return _write_run(beside, out, source, cfg, leaves, vocabulary, dtype, kept) + notes


def _import_t5x(source, beside, out, dtype, named, mlp) -> list[str]:
    if not named:
        raise UserError(
            'a checkpoint of T5X has no vocabulary beside it; name its SentencePiece model with '
            "--vocabulary=FILE, or 'bytes' for ByT5"
        )
    cfg, leaves = t5x.read(source, mlp)
    vocabulary, notes = tokenizers.vocabulary_of(source, named, cfg.V)
    kept = dict(format='t5x', config={})
    return _write_run(beside, out, source, cfg, leaves, vocabulary, dtype, kept) + notes


def _write_run(
    folder: pathlib.Path,
    out: pathlib.Path,
    source: pathlib.Path,
    cfg: ModelConfig,
    leaves: Mapping[str, Leaf],
    vocabulary: Vocabulary,
    dtype: np.dtype | None,
    kept: Mapping[str, Any],
) -> list[str]:
    """Writes the folder of a run that has taken no step."""
    if dtype is not None:
        leaves = {path: dataclasses.replace(leaf, dtype=dtype) for path, leaf in leaves.items()}
    run = Run(name=out.name, data=DataConfig(vocabulary=str(out / 'vocabulary')), model=cfg)
    vocabulary.save(folder / 'vocabulary')
    vocabulary.save(folder / 'cache' / 'vocabulary')
    # A table without tasks, to which evaluation adds its sets.
    table = manifests.Manifest(str(folder / 'cache'), '', True, manifests.facts(vocabulary), ())
    manifests.write(table)
    told = record.provenance(run, table, cfg, types.SimpleNamespace(problems=()))
    told |= dict(converted=kept | dict(source=source.name))
    leafwise.write(folder, leaves, plain(told))
    record.write_config(run, folder, cfg, make_mesh())
    count = sum(int(np.prod(leaf.shape)) for leaf in leaves.values())
    write(folder / 'metrics.jsonl', json.dumps({'step': 0, 'convert/parameters': count}) + '\n')
    held = sorted({leaf.dtype.name for leaf in leaves.values()})
    return [f'{out}: {count:,} parameters in {" and ".join(held)}, {vocabulary!r}']


def _export(source, beside, out, dtype, step, shard) -> list[str]:
    run = record.run_of(source)
    checkpoints = Checkpoints(source, run.checkpoint, read_only=True)
    step = checkpoints.latest() if step is None else step
    told = checkpoints.load_provenance(step)
    vocabulary = load(source / 'vocabulary')
    cfg = resolve(
        run.model, vocabulary.padded_size, max((t['id'] for t in told['tasks']), default=0)
    )
    stored = leafwise.read(source, step)
    theirs = told.get('converted', {}).get('config', {})
    hugging_face.write(beside, cfg, stored, vocabulary, theirs, dtype, shard)
    count = sum(int(np.prod(leaf.shape)) for leaf in stored.values())
    notes = [f'{out}: {count:,} parameters of step {step}']
    return notes + tokenizers.differences_there(vocabulary)
