"""Counts actors that could not start, by node.

An actor whose start failed returns its units; that does not count as a try. Nodes on which every start failed are left
out of the next passes. If no actor of a pass can start, the run ends with the error of the first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from unet_batch.errors import UnetBatchError, class_of
from unet_batch.records import Receipt
from unet_batch.worker.faults import NOT_STARTED

log = logging.getLogger(__name__)

BACK_OFF_MOST_S = 20.0
"""Longest back-off. An actor that could not start returns its first unit at once, the next after 1, 2, 4, … seconds;
otherwise it would always be free, and would take and return all units of a pass."""


def back_off_s(answers: int) -> float:
    """Seconds that an actor waits before it returns the next unit. answers: units returned before."""
    return 0.0 if answers == 0 else float(min(2 ** min(answers - 1, 10), BACK_OFF_MOST_S))


class Starts:
    """Counts, over the passes of one run."""

    def __init__(self, name_of: Callable[[str], str]) -> None:
        """name_of: host name and address of a node's id."""
        self._name_of = name_of
        self._started: set[str] = set()
        self._failed: dict[str, str] = {}
        """Node → error."""
        self._actors = 0
        self._hopeless: set[tuple[str, int]] = set()

    def begin(self, actors: int) -> None:
        """Begin a pass with this number of actors."""
        self._actors, self._hopeless = actors, set()

    def take(self, receipt: Receipt) -> None:
        """Count the start of a receipt's actor. Raises the first failed start's error if no actor could start."""
        if receipt.failure is None or receipt.failure[0] != NOT_STARTED:
            if receipt.pid:
                self._started.add(receipt.node)
                self._actors = -1  # one actor has started
            return
        if receipt.node not in self._failed:
            self._failed[receipt.node] = receipt.failure[1]
            log.error("node %s cannot score: %s", self._name_of(receipt.node), receipt.failure[1])
        self._hopeless.add((receipt.node, receipt.pid))
        if len(self._hopeless) == self._actors:
            raise self._error(*next(iter(self._failed.items())))

    def left_out(self) -> frozenset[str]:
        """Ids of nodes on which starts failed and no actor ever started."""
        return frozenset(self._failed.keys() - self._started - {""})

    def _error(self, node: str, why: str) -> UnetBatchError:
        code, _, text = why.partition(": ")
        return class_of(code)(f"no session could start on any node; on {self._name_of(node)}: {text or why}")
