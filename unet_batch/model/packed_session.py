"""A session for each type of source pixels, as one: pixels that a packed graph takes as they are, and the others.

Knows sessions and types of pixels. Knows no engine, no file and not how a graph was packed: whoever does brings a
function that opens the session of one type.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from unet_batch.errors import ModelRefused
from unet_batch.model.contract import Model
from unet_batch.model.session import Array, Device, Session

log = logging.getLogger(__name__)

Open = Callable[[str, Device], Session]
"""Opens the session that takes tiles of a type, NumPy's name. Raises ModelRefused where no graph takes that one."""


class PackedSession:
    """One session for tiles of source pixels and for normalised ones; each is opened at its first tile.

    Sessions run in turn but hold their memory at once: on a GPU each has an equal part of the actor's, so the others
    are opened again when one more is needed.
    """

    def __init__(self, model: Model, open_for: Open, device: Device, *, first: str) -> None:
        """model: what everything behind the session sees; its input is that of normalised tiles.

        first: the type whose session is opened now. Raises what opening raises; where nothing takes it, normalised
        tiles are the first.
        """
        self.model = model
        self._open_for = open_for
        self._device = device
        self._opened: dict[str, Session] = {}
        self._known: list[str] = []
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        self._normal = model.contract.input.dtype
        session = self._session(first if self.takes(first) else self._normal)
        self.provider = session.provider
        self.device_name = session.device_name

    def takes(self, dtype: str) -> bool:
        """Whether source pixels of this type are run as they are; others are normalised first. Opens their session."""
        if dtype == self._normal or dtype in self._refused:
            return False
        try:
            self._session(dtype)
        except ModelRefused as error:
            log.warning("%s pixels are normalised before the session, because %s", dtype, error)
            self._refused.add(dtype)
            return False
        return True

    def run(self, tiles: Array) -> Array:
        dtype = tiles.dtype.name
        return self._session(dtype if self.takes(dtype) else self._normal).run(tiles)

    def _session(self, dtype: str) -> Session:
        with self._lock:
            if dtype not in self._opened:
                known = list(dict.fromkeys([*self._known, dtype]))
                if known != self._known and self._device.divided(2) != self._device:
                    self._opened.clear()
                self._opened[dtype] = self._open_for(dtype, self._device.divided(len(known)))
                self._known = known
            return self._opened[dtype]


def takes(session: Session, dtype: str) -> bool:
    """Whether a session runs tiles of source pixels of this type as they are."""
    return isinstance(session, PackedSession) and session.takes(dtype)
