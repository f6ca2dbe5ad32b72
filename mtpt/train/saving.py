"""The saves of a run while it trains: one that fails is said aloud and does not end the run."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from mtpt.checkpoint import Checkpoints, SaveFailed
from mtpt.config import UserError


class Saving:
    """Saves when asked; what failed is tried again with the next one.

    Attributes:
      failed: why the last save failed, None where it did not.
    """

    def __init__(self, checkpoints: Checkpoints, say: Callable[[str], None]):
        self._checkpoints, self._say = checkpoints, say
        self.failed: SaveFailed | None = None

    def save(
        self,
        step: int,
        state: Any,
        position: Mapping[str, Any],
        provenance: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """As `Checkpoints.save`, but raises nothing that comes of writing."""
        self.wait()
        self.failed = None
        self._tried(self._checkpoints.save, step, state, position, provenance, metrics)

    def look(self) -> None:
        """Says of a save in flight that it has failed, once it has; waits for nothing."""
        self._tried(self._checkpoints.check)

    def wait(self) -> None:
        """Waits until the save in flight is whole or has failed."""
        self._tried(self._checkpoints.wait)

    def _tried(self, does: Callable[..., None], *args: Any) -> None:
        try:
            does(*args)
        except SaveFailed as error:
            self.failed = error
            self._say(f'WARNING: {error}; training goes on and saves again when it is due')


def let_finish(checkpoints: Checkpoints) -> None:
    """Lets a save in flight become whole, whatever ended the run; what failed was raised before."""
    with contextlib.suppress(UserError):
        checkpoints.wait()
