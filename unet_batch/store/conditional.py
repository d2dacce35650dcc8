"""Shared parts of the conditional puts of all stores: conditions, refusals, sizes and bodies.

Each store's `put` expresses "only if it does not exist" and "only if it is still this version" in its protocol. It
raises AlreadyExists or Conflict if the condition does not hold, or the store's error, and never retries. A body is
always a single put: several stores ignore conditions on multipart uploads and report success.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from unet_batch.errors import AlreadyExists, Conflict, TooLarge
from unet_batch.store.faults import meaning

ANYTHING = "anything"
"""Expected version of an unconditional put. None: no object must exist; any other text: this version must exist."""

PIECE_BYTES = 1 << 20
"""A file is sent in pieces of this size."""


@contextmanager
def refusals(uri: str, expect: str | None) -> Iterator[None]:
    """Convert the store's error for a failed condition of a put to AlreadyExists or Conflict.

    Other errors are raised unchanged.
    """
    try:
        yield
    except Exception as error:  # every SDK has classes of its own
        what = meaning(error)
        if what == "refused" and expect is None:
            raise AlreadyExists(f"{uri} already exists") from error
        if what == "refused" or (what == "absent" and expect not in (None, ANYTHING)):
            raise Conflict(f"{uri} has another version now: another writer changed it") from error
        raise


@contextmanager
def removals(uri: str, expect: str) -> Iterator[None]:
    """Convert the store's error for a failed condition of a removal to Conflict; other errors are unchanged."""
    try:
        yield
    except Exception as error:  # every SDK has classes of its own
        if expect != ANYTHING and meaning(error) == "refused":
            raise Conflict(f"{uri} has another version now: another writer changed it") from error
        raise


def check(uri: str, now: str | None, expect: str | None) -> None:
    """Compare the current version (None: no object) with the expected one. Raises AlreadyExists, Conflict."""
    if expect is None and now is not None:
        raise AlreadyExists(f"{uri} already exists")
    if expect not in (None, ANYTHING, now):
        raise Conflict(f"{uri} is {now or 'deleted'}, not the expected {expect}: another writer changed it")


def size_of(uri: str, body: bytes | Path, most: int) -> int:
    """Size of a body in bytes. most: the store's limit for one put. Raises TooLarge."""
    size = body.stat().st_size if isinstance(body, Path) else len(body)
    if size > most:
        raise TooLarge(f"{uri} would have {size} bytes; one put allows at most {most}: use more buckets")
    return size


async def once(body: bytes | Path, first: bytes = b"", last: bytes = b"") -> AsyncIterator[bytes]:
    """A body in pieces, between `first` and `last`. It can be read only once, so no HTTP client can send it twice."""
    if first:
        yield first
    if isinstance(body, Path):
        with body.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
    elif body:
        yield body
    if last:
        yield last
