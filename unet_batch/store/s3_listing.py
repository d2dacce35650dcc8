"""Listings of S3: pages of keys, sizes and ETags, each read in one pass over its XML.

Knows the answer to ListObjectsV2, and nothing of the client that asks for it. Keys are exactly those of the server:
nothing is normalised, and `encoding-type=url` carries what XML cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus
from xml.etree.ElementTree import Element, ParseError, XMLParser

from unet_batch.errors import StorageError

FOUND = "Found"
"""Where a page's entries are in an answer, as a `Page`."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to ListObjectsV2."""

    objects: list[tuple[str, int, str]]
    """Key, bytes, ETag as it was sent."""
    prefixes: list[str]
    next: str | None
    """Continuation token of the page after this one; None at the end."""


def pages(page: Callable[..., Page], **query: str) -> Iterator[Page]:
    """All pages of a listing. page: makes one request for one, as often as it takes."""
    while True:
        found = page(**query)
        yield found
        if found.next is None:
            return
        query["ContinuationToken"] = found.next


def take(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Read a page out of an answer before botocore's own parser does, which takes seven times as long.

    Leaves errors to botocore, those with the status 200 too. Raises PageError.
    """
    if response_dict["status_code"] >= 300:
        return
    page = page_of(response_dict["body"])
    if page is not None:
        customized_response_dict[FOUND] = page
        response_dict["body"] = b""


def page_of(body: bytes) -> Page | None:
    """The page in an answer's body, or None where the server says there that the request failed.

    Raises PageError, and StorageError where entries lack what every server gives.
    """
    parser = XMLParser()  # noqa: S314 - the store that answers is trusted with the images too; botocore parses alike
    try:
        parser.feed(body)
        top: Element = parser.close()
    except ParseError as error:
        raise PageError(f"the answer to a listing is no XML: {error}") from error
    space, _, name = top.tag.rpartition("}")
    if name == "Error":
        return None
    if name != "ListBucketResult":
        raise PageError(f"the answer to a listing is <{name}>")
    mark = f"{space}}}" if space else ""
    decoded = _unquoted if top.findtext(f"{mark}EncodingType") == "url" else str
    key, size, etag = f"{mark}Key", f"{mark}Size", f"{mark}ETag"
    objects = []
    for entry in top.iterfind(f"{mark}Contents"):
        found = {field.tag: field.text or "" for field in entry}
        try:
            objects.append((decoded(found[key]), int(found[size]), found[etag]))
        except (KeyError, ValueError) as error:
            raise StorageError("an entry of the store's listing has no key, size or ETag") from error
    tops = [decoded(entry.findtext(f"{mark}Prefix") or "") for entry in top.iterfind(f"{mark}CommonPrefixes")]
    more = (top.findtext(f"{mark}IsTruncated") or "").strip() == "true"
    token = top.findtext(f"{mark}NextContinuationToken")
    if more and not token:
        raise StorageError("the store's listing says that it goes on, and has no continuation token")
    return Page(objects, tops, token if more else None)


def _unquoted(text: str) -> str:
    """The key behind `encoding-type=url`: as in a form, so that `+` is a space."""
    return unquote_plus(text) if "%" in text or "+" in text else text


class PageError(ValueError):
    """An answer to a listing that is none."""
