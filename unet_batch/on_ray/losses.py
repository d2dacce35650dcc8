"""Why Ray dropped rows, where Ray says so and no image can have done it.

Ray Data drops the block of a failed task and only writes to its log why; nothing else tells a full disk from a process
that an image took down. Knows the name of that logger and of Ray's exceptions, and imports nothing of Ray.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

from unet_batch.errors import HandoverFailed

LOGGER = "ray.data._internal.execution.streaming_executor_state"
"""Of Ray 2.60, where `process_completed_tasks` drops a block. Were it renamed, losses would count as those of a process
that died; a test with a full disk would tell."""

_MACHINERY = {
    "OutOfDiskError": "the object store is full, and so is the disk that Ray spills to: make room there, or lower "
    "limits.unit_images",
    "ObjectStoreFullError": "the object store is full: give Ray more memory for it, or lower limits.unit_images",
    "ObjectLostError": "pixels were lost with the node or the process that held them",
    "NodeDiedError": "a node was lost",
}
"""By the name of Ray's exception or of a class above it; the death of a process is not among them.

Nor is ActorUnavailableError: Ray 2.60 raises it for every task of an actor whose process died (measured), and says
"Socket closed". A network that breaks off for a moment looks the same, and costs the unit one more try alone."""


class Losses(logging.Handler):
    """Listens to Ray Data's log, and keeps what it heard since it was last asked."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._heard: set[str] = set()
        self._hearing = threading.Lock()

    def listen(self) -> None:
        """Hear what Ray Data of this process has to say; nobody else does."""
        logger = logging.getLogger(LOGGER)
        for handler in [h for h in logger.handlers if isinstance(h, Losses)]:
            logger.removeHandler(handler)
        logger.addHandler(self)
        logger.setLevel(logging.ERROR)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take one of the log's records."""
        error = record.exc_info[1] if record.exc_info else None
        with self._hearing:
            self._heard.update(_told(error))

    def take(self) -> HandoverFailed | None:
        """What was heard since the last call; None where nothing speaks against an image."""
        with self._hearing:
            heard, self._heard = sorted(self._heard), set()
        return HandoverFailed("; ".join(heard)) if heard else None


def _told(error: BaseException | None) -> Iterator[str]:
    """Sentences for an exception, which Ray derives from its cause; behind it stands Ray's own bookkeeping."""
    for kind in type(error).__mro__:
        if kind.__name__ in _MACHINERY:
            yield _MACHINERY[kind.__name__]
