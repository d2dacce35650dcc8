"""Checks of an answer to a GET: the planned version, not too large, and complete. The same for all stores."""

from __future__ import annotations

from unet_batch.errors import Changed, TooLarge
from unet_batch.store.faults import ShortReadError


def before(uri: str, now: str, size_bytes: int, *, version: str | None, max_bytes: int | None) -> None:
    """Check an answer's headers before its body is transferred.

    now: the version of the body. Raises Changed if `version` is another one, TooLarge.
    """
    if version is not None and now != version:
        raise Changed(f"{uri} is {now} now, planned was {version}; plan the run again")
    if max_bytes is not None and size_bytes > max_bytes:
        raise TooLarge(f"{uri} has {size_bytes} bytes; at most {max_bytes} are allowed")


def whole(uri: str, body: bytes, size_bytes: int, span: tuple[int, int] | None) -> bytes:
    """The body, if it is complete.

    size_bytes: from the headers. Raises Changed if the object ends inside the span, ShortReadError if bytes are
    missing.
    """
    if span is not None and size_bytes < span[1] - span[0]:
        raise Changed(f"{uri} is shorter than planned; plan the run again")
    if len(body) != size_bytes:
        raise ShortReadError(f"{len(body)} of {size_bytes} bytes came")
    return body


def range_of(span: tuple[int, int] | None, header: str = "Range") -> dict[str, str]:
    """The header for the bytes [start, stop); empty for the whole object."""
    return {} if span is None else {header: f"bytes={span[0]}-{span[1] - 1}"}


def version_of(etag: str) -> str:
    """The version text of an ETag, with or without quotes; weak tags keep `W/`."""
    return "etag:" + etag.replace('"', "")
