"""Recognises rows that Ray lost by infrastructure faults, from Ray Data's log.

Ray Data drops the block of a failed task, and only its log has the cause. Without it, a full disk cannot be
distinguished from a process that an image killed. Uses the names of the logger and of Ray's exceptions, without
importing Ray.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from unet_batch.errors import HandoverFailed

LOGGER = "ray.data._internal.execution.streaming_executor_state"
"""Logger of `process_completed_tasks` in Ray 2.60, which drops blocks. If it were renamed, losses would count as dead
processes; a test with a full disk would fail."""

_MACHINERY = {
    "OutOfDiskError": "the object store and the disk that Ray spills to are full: free some space there, or lower "
    "limits.unit_images",
    "ObjectStoreFullError": "the object store is full: give Ray more memory for it, or lower limits.unit_images",
    "ObjectLostError": "pixels were lost with the node or the process that held them",
    "NodeDiedError": "a node was lost",
}
"""Name of Ray's exception, or of one of its base classes → message. Dead processes are not included.

ActorUnavailableError is not included either: Ray 2.60 raises it for every task of an actor whose process died
(measured), with the text "Socket closed". A short network failure looks the same, and gives the unit one more try."""


class Losses(logging.Handler):
    """A log handler for Ray Data that collects losses since the last call of `take`."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._heard: set[str] = set()
        self._hearing = threading.Lock()

    def listen(self) -> None:
        """Attach this handler to Ray Data's logger and stop propagation."""
        logger = logging.getLogger(LOGGER)
        for handler in [h for h in logger.handlers if isinstance(h, Losses)]:
            logger.removeHandler(handler)
        logger.addHandler(self)
        logger.setLevel(logging.ERROR)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one log record."""
        error = record.exc_info[1] if record.exc_info else None
        with self._hearing:
            self._heard.update(_told(error))

    def take(self) -> HandoverFailed | None:
        """The losses since the last call; None if there were none."""
        with self._hearing:
            heard, self._heard = sorted(self._heard), set()
        return HandoverFailed("; ".join(heard)) if heard else None


def _told(error: BaseException | None) -> Iterator[str]:
    """The messages for an exception and its causes."""
    for kind in type(error).__mro__:
        if kind.__name__ in _MACHINERY:
            yield _MACHINERY[kind.__name__]
