"""Objects in stores, the grammar of their URIs, and the store protocol. No file system, no network, no credentials."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unet_batch.errors import JobError

SCHEMES = ("file", "s3", "gs", "az", "abfs", "abfss")
"""Allowed schemes; http, ftp, shell and chained file systems are not allowed."""

Names = list[str]
"""For classes whose method `list` hides the type."""

_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
# A web address may have only a token before its host. In Azure's abfs://container@account there is no user info.
_USER_INFO = re.compile(r"(?<=://)[^/\s'\"@]*:[^/\s'\"@]*@|(?:(?<=http://)|(?<=https://))[^/\s'\"@]+@")
_QUERY = re.compile(r"(?P<uri>[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"?]*)\?[^\s'\"]*")


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a store, as in a listing."""

    uri: str
    """Canonical URI."""
    size_bytes: int
    version: str
    """`etag:<unquoted>` or `generation:<n>` if the store has one, else `size:<bytes>,mtime:<ns or s>`."""
    problem: tuple[str, str] | None = None
    """Reason and message if the listing shows that the object must not or cannot be read."""


class Store(Protocol):
    """One store. Errors are those of its SDK; `Storage` converts them.

    list: every object below a folder, in any order; a missing folder gives nothing.
    folders: names of the folders directly in a folder.
    head: the object's current size in bytes and version; raises if it does not exist.
    read: all bytes of an object, or of span [start, stop). Raises Changed if `version` is not the current one, TooLarge
    above `max_bytes`.
    put: writes a whole object; returns its new version. expect: None: it must not exist; a version: it must be this
    one; ANYTHING: no condition. Raises AlreadyExists or Conflict.
    delete: removes an object, with the same `expect`. Raises Conflict.
    """

    def list(self, folder: str) -> Iterator[Object]: ...
    def folders(self, folder: str) -> Names: ...
    def head(self, uri: str) -> Object: ...
    def read(self, uri: str, *, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes: ...
    def put(self, uri: str, body: bytes | Path, expect: str | None) -> str: ...
    def delete(self, uri: str, expect: str) -> None: ...


def canonical(uri_or_path: str) -> str:
    """The absolute URI of an object or folder. Plain paths become `file:///…`, relative to the working directory.

    `~/` is the home folder of the process's user. Keys are kept verbatim (`#`, `%` and spaces are legal in them).
    Raises JobError for user info, queries, chained URLs (`a::b`), `..` in object stores, and unknown schemes: they
    could contain a secret or lead elsewhere.
    """
    text = str(uri_or_path)
    shown = redact(text)
    if not text or "\0" in text:
        raise JobError(f"{shown!r} is not a URI or a path")
    if "::" in text:
        raise JobError(f"chained URLs such as {shown!r} are refused; name the object itself")
    if not _HAS_SCHEME.match(text):
        return "file://" + os.path.abspath(os.path.expanduser(text))
    scheme, slashes, rest = text.partition("://")
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if not slashes:
        raise JobError(f"{shown!r} is not a URI: write scheme://… or a plain path")
    if scheme not in SCHEMES:
        raise JobError(f"the scheme of {shown!r} is not allowed; use one of {', '.join(SCHEMES)}, or a plain path")
    if scheme == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise JobError(f"{shown!r} names a host; a local file is file:///absolute/path")
        return "file://" + os.path.abspath("/" + path)
    bucket = rest.partition("/")[0]
    # In Azure's abfs://container@account.host/key the "@" is part of the name; a ":" before it is not allowed.
    if "@" in bucket and (":" in bucket or not scheme.startswith("abfs")):
        raise JobError(f"{shown!r} contains user info; give credentials in `options`, by {{env: NAME}}")
    if "?" in rest:
        raise JobError(f"{shown!r} carries a query; signed URLs are refused, give credentials in `options`")
    if ".." in rest.split("/"):
        raise JobError(f"{shown!r} contains '..', which has no meaning in an object store; write the key itself")
    if not bucket:
        raise JobError(f"{shown!r} has no bucket")
    return f"{scheme}://{rest}"


def scheme_of(uri: str) -> str:
    """`s3` of `s3://bucket/key`."""
    return uri.partition("://")[0]


def path_of(uri: str) -> str:
    """`bucket/key` of `s3://bucket/key`; `/a/b` of `file:///a/b`."""
    return uri.partition("://")[2]


def split(uri: str, *, folder: bool = False) -> tuple[str, str]:
    """Bucket and key of an object, or bucket and prefix of a folder."""
    bucket, _, key = path_of(uri).partition("/")
    return bucket, key + "/" if folder and key and not key.endswith("/") else key


def join(folder: str, name: str) -> str:
    """The URI of `name` in a folder; the folder may end in a slash."""
    return f"{folder.removesuffix('/')}/{name}"


def parent(uri: str) -> str:
    """The folder of an object."""
    return uri.rpartition("/")[0] or uri


def redact(text: str) -> str:
    """The text without user info and queries in its URLs, for messages and logs."""
    if "@" not in text and "?" not in text:
        return text
    return _QUERY.sub(r"\g<uri>?…", _USER_INFO.sub("", text))
