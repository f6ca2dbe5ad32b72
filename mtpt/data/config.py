"""What a run reads, and in which shape."""

import dataclasses

from mtpt.config import UserError
from mtpt.data.packing import Shape


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run reads, and the shape of its batches.

    Lengths are in tokens; `batch_size` is in rows, over all hosts and accumulation steps.
    `long_targets` says what becomes of targets longer than `targets_length`: 'fail', 'trim' or
    'drop'. `on_broken` says what becomes of a task that cannot be read: 'fail' or 'skip'.
    `lookahead` is how many examples of a row group may wait for a later batch (more of them pack
    more tightly).
    """

    mixture: str = ''
    vocabulary: str = 'builtin'
    mode: str = 'cached'
    cache: str = ''
    batch_size: int = 32
    accumulation: int = 1
    row_groups: int = 4
    inputs_length: int = 512
    targets_length: int = 128
    segments: int = 16
    pack: bool = True
    lookahead: int = 16
    on_broken: str = 'fail'
    long_targets: str = 'fail'

    def __post_init__(self):
        sizes = ('batch_size', 'accumulation', 'row_groups', 'segments', 'lookahead')
        for name in (*sizes, 'inputs_length', 'targets_length'):
            least = 2 if name.endswith('length') else 1
            if getattr(self, name) < least:
                raise UserError(f'data.{name} must be at least {least}, got {getattr(self, name)}')
        if self.batch_size % (self.row_groups * self.accumulation):
            raise UserError(
                f'data.batch_size={self.batch_size} rows do not split over row_groups='
                f'{self.row_groups} times accumulation={self.accumulation}; make it a multiple of '
                f'{self.row_groups * self.accumulation}'
            )
        options = dict(
            mode=('cached', 'stream'),
            on_broken=('fail', 'skip'),
            long_targets=('fail', 'trim', 'drop'),
        )
        for name, known in options.items():
            if getattr(self, name) not in known:
                raise UserError(f'data.{name} must be one of {known}, got {getattr(self, name)!r}')

    def shape(self) -> Shape:
        """The shape of one row group's part of the batch."""
        rows = self.batch_size // self.row_groups
        segments = self.segments if self.pack else 1
        return Shape(
            rows, self.inputs_length, self.targets_length, segments, self.lookahead, self.pack
        )
