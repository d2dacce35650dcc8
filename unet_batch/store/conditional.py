"""What the conditional puts of all stores share: the words for a condition, refusals, sizes and bodies.

Each store's own `put` says "only if nothing is there" and "only if it is still this version" in its protocol. It raises
AlreadyExists or Conflict where the condition does not hold, else whatever the store raises; it never retries. A body
is always one single put: several stores ignore conditions on multipart uploads, and report success.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from unet_batch.errors import AlreadyExists, Conflict, TooLarge
from unet_batch.store.faults import StatusError, meaning

ANYTHING = "anything"
"""Expect nothing: an unconditional put. None expects that no object is there; any other text, that version."""

PIECE_BYTES = 1 << 20
"""A file is sent in pieces of this size."""


@contextmanager
def refusals(uri: str, expect: str | None) -> Iterator[None]:
    """Raise AlreadyExists or Conflict where the store says that the condition of a put does not hold.

    Every other error stays as the store raised it.
    """
    try:
        yield
    except (OSError, StatusError) as error:
        # s3fs says FileExistsError, or EINVAL where the server's error names no condition: 412 is in their cause.
        what = meaning(error)
        if what == "refused" and expect is None:
            raise AlreadyExists(f"{uri} is already there") from error
        if what == "refused" or (what == "absent" and expect not in (None, ANYTHING)):
            raise Conflict(f"{uri} is no longer the version it was: another writer was here") from error
        raise


@contextmanager
def removals(uri: str, expect: str) -> Iterator[None]:
    """Raise Conflict where the store says that the condition of a removal does not hold; other errors stay."""
    try:
        yield
    except (OSError, StatusError) as error:
        if expect != ANYTHING and meaning(error) == "refused":
            raise Conflict(f"{uri} is no longer the version it was: another writer was here") from error
        raise


def check(uri: str, now: str | None, expect: str | None) -> None:
    """Compare the version that is there (None: no object) with the expected one. Raises AlreadyExists, Conflict."""
    if expect is None and now is not None:
        raise AlreadyExists(f"{uri} is already there")
    if expect not in (None, ANYTHING, now):
        raise Conflict(f"{uri} is {now or 'gone'}, expected was {expect}: another writer was here")


def size_of(uri: str, body: bytes | Path, most: int) -> int:
    """Bytes of a body. most: what one put of this store takes. Raises TooLarge."""
    size = body.stat().st_size if isinstance(body, Path) else len(body)
    if size > most:
        raise TooLarge(f"{uri} would have {size} bytes; one put takes at most {most}: use more buckets")
    return size


async def once(body: bytes | Path, first: bytes = b"", last: bytes = b"") -> AsyncIterator[bytes]:
    """A body in pieces, between `first` and `last`. It can be taken once, so no HTTP client sends it a second time."""
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
