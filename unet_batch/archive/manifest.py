"""Manifests: lists of URIs, read as untrusted text.

Checks the URIs against the rules of manifests and reads the versions of their objects; reads no image.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from unet_batch.archive.container import Listing, check_readable
from unet_batch.archive.parquet import FOREIGN
from unet_batch.archive.window import Window, parse_day
from unet_batch.errors import Denied, JobError, Reason, TooLarge
from unet_batch.records import Source, version_with_digest
from unet_batch.spec import InputSpec
from unet_batch.store.local import is_link, real
from unet_batch.store.objects import SCHEMES, canonical, join, parent, redact, scheme_of
from unet_batch.store.storage import Object, Storage

MAX_MANIFEST_BYTES = 2 << 30
TOGETHER, BUNCHES = 64, 256
"""Rows that one thread checks per call in a long manifest: on a local disk a call costs more than checking a row. A
short manifest is cut into BUNCHES calls, so that every thread has work."""

log = logging.getLogger(__name__)
_BROKEN = (*FOREIGN, csv.Error, RecursionError)
_BEFORE_COLON = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SCHEMES = frozenset(
    (*SCHEMES, "s3a", "s3n", "gcs", "http", "https", "ftp", "ftps", "sftp", "ssh", "scp", "hdfs", "webhdfs", "adl",
     "wasb", "wasbs", "dbfs", "hf", "oss", "oci", "smb", "gdrive", "dropbox", "lakefs", "dvc", "git", "github", "zip",
     "tar", "jar", "libarchive", "local", "dir", "cached", "simplecache", "filecache", "blockcache", "reference",
     "root", "dask", "pipe", "data", "urn", "mailto", "javascript", "blob", "about", "doi")
)  # fmt: skip
"""Words before a colon that are schemes. Other words are part of a name, such as cam-2026-11-21T10:15:00.png."""
_BARE = frozenset(("pipe", "data", "urn", "mailto", "javascript", "about", "doi"))
"""Schemes without a slash after the colon (RFC 2397 and others). With any other scheme, such a text is a name."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
"""Byte order marks (Unicode standard, 23.8), the longer ones first."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One row of a manifest, as written."""

    row: int
    """Number of the row, from 0, without a header."""
    uri: object
    sha256: object
    partition: object


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is not an object with columns."""

    what: str


class BrokenManifestError(Exception):
    """The manifest holds or ends with data that is not a row: rows may be missing."""


def listed_images(listing: Listing) -> dict[str, list[Source]]:
    """The images that manifests list, by partition. With `spec.partition_column`, the manifests name the partitions."""
    check_readable(listing.objects)
    storage, spec, partition, window = listing.storage, listing.spec, listing.partition, listing.window
    wanted: dict[str, dict[Object, list[ManifestRow]]] = {} if spec.partition_column else {partition: {}}
    broken: list[Source] = []
    for manifest in listing.objects:
        try:
            for entry in read_entries(storage, spec, manifest):
                name = partition if spec.partition_column is None else _partition_of(spec, manifest, entry)
                wanted.setdefault(name, {}).setdefault(manifest, []).append(entry)
        except BrokenManifestError as error:
            if spec.partition_column is not None:
                text = f"{manifest.uri} is broken ({error}), so partitions may miss rows: repair it"
                raise JobError(text) from error
            broken.append(Source(manifest.uri, manifest.version, problem=(Reason.SHARD_CORRUPT, str(error))))
    if spec.partition_column is not None and window is not None:
        kept = _in_window(list(wanted), window)
        wanted = {name: entries for name, entries in wanted.items() if name in kept}
    found: dict[str, list[Source]] = {}
    for name, of_manifest in sorted(wanted.items()):
        listed = (sources_of(storage, spec, manifest, entries) for manifest, entries in of_manifest.items())
        unique = {source.key: source for source in chain.from_iterable(listed)}
        found[name] = [*unique.values(), *broken]
    return found


def _partition_of(spec: InputSpec, manifest: Object, entry: ManifestRow) -> str:
    value = entry.partition.isoformat() if isinstance(entry.partition, date) else entry.partition
    text = str(value) if isinstance(value, str | int) else ""
    # The value becomes the name of a folder.
    if not text or not set(text) <= _FOLDER_LETTERS or text.startswith("."):
        raise JobError(
            f"{manifest.uri}, row {entry.row}: {value!r} cannot be the partition {spec.partition_column}; "
            "use letters, digits, '-', '_' and '.'"
        )
    return f"{spec.partition_column}={text}"


_FOLDER_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def _in_window(names: Sequence[str], window: Window) -> set[str]:
    if window.kind == "all":
        return set(names)
    days = {name: day for name in names if (day := parse_day(name.partition("=")[2])) is not None}
    if window.kind == "last":
        return {max(days, key=lambda name: days[name])} if days else set()
    return {name for name, day in days.items() if window.holds(day)}


def read_entries(storage: Storage, spec: InputSpec, manifest: Object) -> Iterator[ManifestRow]:
    """The rows of a CSV (with header), JSONL or Parquet manifest. A line that is not a JSON object becomes a BadRow.

    Raises BrokenManifestError after the last readable row, JobError if a column is missing or duplicate, digests are
    binary, or the text is not UTF-8.
    """
    if manifest.size_bytes > MAX_MANIFEST_BYTES:
        raise TooLarge(f"{manifest.uri} has {manifest.size_bytes} bytes, which is too large: split the manifest")
    body = storage.read(manifest.uri, version=manifest.version)
    name = manifest.uri.lower()
    try:
        if name.endswith(".parquet"):
            rows, names = _parquet(body, manifest.uri)
        elif name.endswith((".jsonl", ".ndjson")):
            rows, names = _jsonl(_text(body, manifest.uri)), None
        else:
            rows, names = _csv(_text(body, manifest.uri))
    except _BROKEN as error:
        raise BrokenManifestError(" ".join(str(error).split())[:200]) from error
    column = spec.column or "uri"
    for used in (column, spec.partition_column, "sha256"):
        if names is not None and list(names).count(str(used)) > 1:
            raise JobError(f"the manifest {manifest.uri} has several columns {used!r}: keep one of them")
    for needed in (column, spec.partition_column):
        if needed is not None and names is not None and needed not in names:
            raise JobError(f"the manifest {manifest.uri} has no column {needed!r}; it has {', '.join(names)}")
    number = 0
    try:
        for row in rows:
            found = (
                row
                if isinstance(row, dict)
                else {column: row if isinstance(row, BadRow) else BadRow(f"a {type(row).__name__}")}
            )
            partition = spec.partition_column and found.get(spec.partition_column)
            yield ManifestRow(number, found.get(column), found.get("sha256"), partition)
            number += 1
    except _BROKEN as error:
        raise BrokenManifestError(f"after {number} rows: {' '.join(str(error).split())[:200]}") from error


def sources_of(storage: Storage, spec: InputSpec, manifest: Object, entries: Sequence[ManifestRow]) -> list[Source]:
    """The sources of the rows, each with its current version. A row that is not allowed gives a source with a problem.

    Allowed: objects below the manifest's folder and below `spec.roots`, by absolute or relative URIs. Not allowed:
    chains, `..`, user info, queries, other schemes, and links that lead out of these folders. Two rows for the same
    object are one source.
    """
    folder = parent(manifest.uri)
    roots = [folder, *(canonical(root) for root in spec.roots)]
    named: dict[str, Source] = {}
    for entry in entries:
        source = _named(entry, manifest, folder, roots)
        if named.setdefault(source.key, source).sha256 != source.sha256:
            log.warning("%s has two rows for %s with different digests; the first counts", manifest.uri, source.uri)
    links = [real(root) for root in roots if scheme_of(root) == "file"]
    real_folder, listed = cache(real), list(named.values())
    size = min(TOGETHER, len(listed) // BUNCHES + 1)
    bunches = (listed[begin : begin + size] for begin in range(0, len(listed), size))
    calls = (partial(_all_seen, storage, bunch, links, real_folder) for bunch in bunches)
    return [source for bunch in storage.map_bounded(calls) for source in bunch]


def _named(entry: ManifestRow, manifest: Object, folder: str, roots: Sequence[str]) -> Source:
    def refused(reason: Reason, message: str, uri: str | None = None) -> Source:
        member = None if uri else f"row {entry.row}"
        return Source(uri or manifest.uri, manifest.version, member, problem=(reason, message))

    text = entry.uri
    if text is None or text == "":
        return refused(Reason.CELL_NULL if text is None else Reason.CELL_EMPTY, "the row has no URI")
    if isinstance(text, BadRow):
        return refused(Reason.CELL_TYPE, f"the line is not a JSON object but {text.what}")
    if not isinstance(text, str):
        return refused(Reason.CELL_TYPE, f"the row holds a {type(text).__name__}, not a URI")
    if not _is_unicode(text):
        shown = redact(join(folder, text)).encode("utf-8", "backslashreplace").decode()
        return refused(Reason.READ_DENIED, "the name holds half a character (a lone surrogate)", shown)
    relative = not _has_scheme(text) and not text.startswith("/")
    shown = redact(join(folder, text) if relative else text)
    if ".." in text.split("/"):
        return refused(Reason.READ_DENIED, "'..' is not allowed in a manifest", shown)
    try:
        uri = canonical(join(folder, text.removeprefix("./")) if relative else text)
    except JobError:
        return refused(Reason.READ_DENIED, "a manifest cannot refer to such a URI", shown.replace("\0", "\\0"))
    if not _below(uri, roots):
        return refused(Reason.READ_DENIED, "outside the manifest's folder and input.roots", uri)
    if entry.sha256 is None or entry.sha256 == "":
        return Source(uri, "")
    digest = entry.sha256.strip().lower() if isinstance(entry.sha256, str) else ""
    if not _SHA256.fullmatch(digest):
        return refused(Reason.CELL_TYPE, f"its sha256 is {_shown(entry.sha256)}, not 64 hex digits", uri)
    return Source(uri, "", sha256=digest)


def _all_seen(
    storage: Storage, sources: Sequence[Source], links: Sequence[str], real_folder: Callable[[str], str]
) -> list[Source]:
    """The sources with the current versions and sizes of their objects.

    links: the real paths of local roots, with all links resolved. real_folder: resolves the links of any folder.
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
        return replace(source, version="missing", problem=(Reason.READ_NOT_FOUND, "the object does not exist"))
    version = version_with_digest(found.version, source.sha256)
    return replace(source, version=version, size_bytes=found.size_bytes)


def _real_file(uri: str, real_folder: Callable[[str], str]) -> str:
    """The real path of a file; the links above it are resolved once per folder."""
    return real(uri) if is_link(uri) else join(real_folder(parent(uri)), uri.rpartition("/")[2])


def _below(uri: str, roots: Sequence[str]) -> bool:
    return any(uri.startswith(root.removesuffix("/") + "/") for root in roots)


def _has_scheme(text: str) -> bool:
    """Whether a text begins with a scheme; a name may contain a colon too."""
    found = _BEFORE_COLON.match(text)
    if found is None or text.startswith(("//", ":"), found.end()):
        return found is not None  # `a://b`, and a chain `a::b`
    return found[1].lower() in _SCHEMES and (found[1].lower() in _BARE or text.startswith("/", found.end()))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """A cell for a message: the beginning of a text, or the type of another value."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    return repr(value[:80].encode("utf-8", "backslashreplace").decode())


def _text(body: bytes, uri: str) -> bytes:
    """The UTF-8 text of a manifest without its byte order mark. Raises JobError, which names another encoding."""
    for mark, name in _ENCODINGS:
        if body.startswith(mark):
            raise JobError(f"the manifest {uri} is {name} text; write it as UTF-8")
    if body.startswith(b"\x1f\x8b"):
        raise JobError(f"the manifest {uri} is compressed with gzip; unpack it")
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        guess = "UTF-16 without a mark" if b"\0" in body[:256] else "perhaps Latin-1 or Windows-1252"
        raise JobError(
            f"the manifest {uri} is not UTF-8 text ({guess}): line {line} holds the byte 0x{body[error.start]:02X}; "
            "write it as UTF-8"
        ) from error
    if b"\0" in body[:256] and body[:256].count(b"\0") > len(body[:256]) // 4:
        raise JobError(f"the manifest {uri} is UTF-16 text without a mark; write it as UTF-8")
    return body


def _csv(body: bytes) -> tuple[Iterator[object], Sequence[str]]:
    reader = csv.DictReader(io.StringIO(body.decode(), newline=""), strict=True)
    return iter(reader), reader.fieldnames or []


def _jsonl(body: bytes) -> Iterator[object]:
    """Each line's value. A line that is not JSON is a BadRow; if it is the last line, the file was truncated."""
    lines = [line for line in body.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) - 1:
                raise
            yield BadRow("text that is not JSON")


def _parquet(body: bytes, uri: str) -> tuple[Iterator[object], Sequence[str]]:
    file = pq.ParquetFile(io.BytesIO(body))
    if "sha256" in file.schema_arrow.names:
        kind = file.schema_arrow.field("sha256").type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (
            pa.types.is_null(plain)
            or pa.types.is_string(plain)
            or pa.types.is_large_string(plain)
            or pa.types.is_string_view(plain)
        ):
            raise JobError(f"the column sha256 of {uri} holds {kind}, not text: write 64 hex digits")
    return (row for batch in file.iter_batches() for row in batch.to_pylist()), file.schema_arrow.names
