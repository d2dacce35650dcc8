"""Actors that could not start: which, on which node, why, and whether any is left that can.

An actor whose start failed gives its units back; that is no try of them. Nodes on which every start failed are left out
of the next passes. Where no actor of a pass can start, the run ends with what the first of them said. Pure counting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from unet_batch.errors import UnetBatchError, class_of
from unet_batch.records import Receipt
from unet_batch.worker.faults import NOT_STARTED

log = logging.getLogger(__name__)

BACK_OFF_MOST_S = 20.0
"""An actor that could not start answers its first unit at once, and the next after 1, 2, 4, … seconds, at most these:
always free, it would take all units of a pass and give them back."""


def back_off_s(answers: int) -> float:
    """Seconds that an actor waits before it gives another unit back, after so many."""
    return 0.0 if answers == 0 else float(min(2 ** min(answers - 1, 10), BACK_OFF_MOST_S))


class Starts:
    """Counts, over the passes of one run."""

    def __init__(self, name_of: Callable[[str], str]) -> None:
        """name_of: host name and address of a node's id."""
        self._name_of = name_of
        self._started: set[str] = set()
        self._failed: dict[str, str] = {}
        """Why, by node."""
        self._actors = 0
        self._hopeless: set[tuple[str, int]] = set()

    def begin(self, actors: int) -> None:
        """A pass with so many actors begins."""
        self._actors, self._hopeless = actors, set()

    def take(self, receipt: Receipt) -> None:
        """Note what a receipt says about its actor's start.

        Raises the error of the first start that failed, where no actor of this pass could start.
        """
        if receipt.failure is None or receipt.failure[0] != NOT_STARTED:
            if receipt.pid:
                self._started.add(receipt.node)
                self._actors = -1  # one can
            return
        if receipt.node not in self._failed:
            self._failed[receipt.node] = receipt.failure[1]
            log.error("node %s cannot score: %s", self._name_of(receipt.node), receipt.failure[1])
        self._hopeless.add((receipt.node, receipt.pid))
        if len(self._hopeless) == self._actors:
            raise self._error(*next(iter(self._failed.items())))

    def left_out(self) -> frozenset[str]:
        """Ids of nodes on which no actor ever started, and some failed."""
        return frozenset(self._failed.keys() - self._started - {""})

    def _error(self, node: str, why: str) -> UnetBatchError:
        code, _, text = why.partition(": ")
        return class_of(code)(f"no session could start, on no node; on {self._name_of(node)}: {text or why}")
