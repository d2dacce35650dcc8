"""Manifests: lists of URIs that somebody else wrote, read as untrusted text.

Knows the rules a listed URI must keep, and asks the store for versions; reads no image.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import pyarrow.parquet as pq

from unet_batch.archive.local import is_link, real
from unet_batch.archive.objects import canonical, join, parent, redact, scheme_of
from unet_batch.archive.parquet import FOREIGN
from unet_batch.archive.storage import Object, Storage
from unet_batch.errors import Denied, JobError, Reason, TooLarge
from unet_batch.records import Source
from unet_batch.spec import InputSpec

MAX_MANIFEST_BYTES = 2 << 30
TOGETHER, BUNCHES = 64, 256
"""Rows that one thread looks at in a row, of a long manifest: on a disk handing over a row costs more than looking. A
short one is cut into as many bunches, so that every thread has some."""

log = logging.getLogger(__name__)
_BROKEN = (*FOREIGN, csv.Error, RecursionError)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a manifest, as written."""

    row: int
    """Number of the row, from 0, without a header."""
    uri: object
    sha256: object
    partition: object


class BrokenManifestError(Exception):
    """The manifest ends in, or holds, something that is no row: rows may be missing."""


def read_entries(storage: Storage, spec: InputSpec, manifest: Object) -> Iterator[Entry]:
    """The rows of a CSV (with header), JSONL or Parquet manifest.

    Raises BrokenManifestError behind the last row that can be read, JobError where a column is missing.
    """
    if manifest.size_bytes > MAX_MANIFEST_BYTES:
        raise TooLarge(f"{manifest.uri} has {manifest.size_bytes} bytes; split the manifest")
    body = storage.read(manifest.uri, version=manifest.version)
    name = manifest.uri.lower()
    try:
        if name.endswith(".parquet"):
            rows, names = _parquet(body)
        elif name.endswith((".jsonl", ".ndjson")):
            rows, names = _jsonl(body), None
        else:
            rows, names = _csv(body)
    except _BROKEN as error:
        raise BrokenManifestError(" ".join(str(error).split())[:200]) from error
    column = spec.column or "uri"
    for needed in (column, spec.partition_column):
        if needed is not None and names is not None and needed not in names:
            raise JobError(f"the manifest {manifest.uri} has no column {needed!r}; it has {', '.join(names)}")
    number = 0
    try:
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is no object")  # noqa: TRY004 - as the parsers below say it
            yield Entry(
                number, row.get(column), row.get("sha256"), spec.partition_column and row.get(spec.partition_column)
            )
            number += 1
    except _BROKEN as error:
        raise BrokenManifestError(f"after {number} rows: {' '.join(str(error).split())[:200]}") from error


def sources_of(storage: Storage, spec: InputSpec, manifest: Object, entries: Sequence[Entry]) -> list[Source]:
    """What the rows name, each with the version it has now; a row that may not be read becomes a problem.

    Allowed are objects below the manifest's folder and below `spec.roots`, by absolute or relative URIs; never chains,
    `..`, user info, queries, other schemes or links that lead out. The same object twice is one source.
    """
    folder = parent(manifest.uri)
    roots = [folder, *(canonical(root) for root in spec.roots)]
    named: dict[str, Source] = {}
    for entry in entries:
        source = _named(entry, manifest, folder, roots)
        if named.setdefault(source.key, source).sha256 != source.sha256:
            log.warning("%s names %s twice, with different digests; the first counts", manifest.uri, source.uri)
    links = [real(root) for root in roots if scheme_of(root) == "file"]
    real_folder, listed = cache(real), list(named.values())
    size = min(TOGETHER, len(listed) // BUNCHES + 1)
    bunches = (listed[begin : begin + size] for begin in range(0, len(listed), size))
    calls = (partial(_all_seen, storage, bunch, links, real_folder) for bunch in bunches)
    return [source for bunch in storage.ahead(calls) for source in bunch]


def _named(entry: Entry, manifest: Object, folder: str, roots: Sequence[str]) -> Source:
    def refused(reason: Reason, message: str, uri: str | None = None) -> Source:
        member = None if uri else f"row {entry.row}"
        return Source(uri or manifest.uri, manifest.version, member, problem=(reason, message))

    text = entry.uri
    if text is None or text == "":
        return refused(Reason.CELL_NULL if text is None else Reason.CELL_EMPTY, "the row names nothing")
    if not isinstance(text, str):
        return refused(Reason.CELL_TYPE, f"the row names a {type(text).__name__}, not a URI")
    relative = not _SCHEME.match(text) and not text.startswith("/")
    shown = redact(join(folder, text) if relative else text)
    if ".." in text.split("/"):
        return refused(Reason.READ_DENIED, "'..' is not allowed in a manifest", shown)
    try:
        uri = canonical(join(folder, text.removeprefix("./")) if relative else text)
        uri.encode()
    except (JobError, UnicodeEncodeError):
        shown = shown.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
        return refused(Reason.READ_DENIED, "the manifest names what jobs do not read", shown)
    if not _below(uri, roots):
        return refused(Reason.READ_DENIED, "outside the manifest's folder and input.roots", uri)
    digest = entry.sha256.strip().lower() if isinstance(entry.sha256, str) else None
    return Source(uri, "", sha256=digest or None)


def _all_seen(
    storage: Storage, sources: Sequence[Source], links: Sequence[str], real_folder: Callable[[str], str]
) -> list[Source]:
    """The sources with the versions and sizes that their objects have now.

    links: what the roots that are local folders lead to when all their links are followed; real_folder: what any does.
    """
    return [_seen(storage, source, links, real_folder) for source in sources]


def _seen(storage: Storage, source: Source, links: Sequence[str], real_folder: Callable[[str], str]) -> Source:
    if source.problem is not None:
        return source
    if scheme_of(source.uri) == "file" and not _below(_real_file(source.uri, real_folder), links):
        return replace(source, version="link", problem=(Reason.READ_DENIED, "a link that leads out of the archive"))
    try:
        found = storage.head(source.uri)
    except Denied as error:
        return replace(source, version="denied", problem=(Reason.READ_DENIED, str(error)))
    if found is None:
        return replace(source, version="missing", problem=(Reason.READ_NOT_FOUND, "there is no such object"))
    return replace(source, version=found.version, size_bytes=found.size_bytes)


def _real_file(uri: str, real_folder: Callable[[str], str]) -> str:
    """What a path leads to; only the first of a folder's files pays for the links above it."""
    return real(uri) if is_link(uri) else join(real_folder(parent(uri)), uri.rpartition("/")[2])


def _below(uri: str, roots: Sequence[str]) -> bool:
    return any(uri.startswith(root.removesuffix("/") + "/") for root in roots)


def _csv(body: bytes) -> tuple[Iterator[object], Sequence[str]]:
    reader = csv.DictReader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
    return iter(reader), reader.fieldnames or []


def _jsonl(body: bytes) -> Iterator[object]:
    for line in body.splitlines():
        if line.strip():
            yield json.loads(line)


def _parquet(body: bytes) -> tuple[Iterator[object], Sequence[str]]:
    file = pq.ParquetFile(io.BytesIO(body))
    return (row for batch in file.iter_batches() for row in batch.to_pylist()), file.schema_arrow.names
