"""The manifest of an export: which file belongs to which image, or why there is none. A CSV file beside the files.

It is also how an export is resumed: it holds what each file was made from. It is put under the condition that it is
still the version that was read, so two exports never overwrite each other's entries.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from unet_batch.errors import Conflict, JobError, NotFound, StorageError
from unet_batch.store.storage import Storage

EARLIER = "; the file is of an earlier export"


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of an export."""

    image_key: str
    partition: str
    file: str
    """Relative to the manifest's folder; empty where there is none."""
    note: str = ""
    """Why there is no file, or what is the matter with it."""
    bytes: int = 0
    """Size of the file."""
    content: str = ""
    """Digest of what the file was made from; empty for the file of an earlier export that is no longer right."""

    def without_file(self) -> Entry:
        """The entry after its file was removed."""
        return Entry(self.image_key, self.partition, "", self.note.removesuffix(EARLIER))


HEADER = [field.name for field in fields(Entry)]


class Manifest:
    """The entries of one export's folder and format, by image key."""

    def __init__(self, store: Storage, uri: str) -> None:
        """Reads what is there. Raises JobError for a file that is no manifest, else StorageError."""
        self._store = store
        self.uri = uri
        self.entries: dict[str, Entry] = {}
        self._version: str | None = None
        self._saved: list[Entry] = []
        found = store.head(uri)
        if found is not None:
            self._version = found.version
            self.entries = {entry.image_key: entry for entry in _parsed(self._read(), uri)}
            self._saved = list(self.entries.values())

    def save(self) -> None:
        """Put the entries, if they changed, over the version that was read or put last. Raises Conflict."""
        entries = sorted(self.entries.values(), key=lambda entry: (entry.partition, entry.image_key))
        if entries == self._saved and self._version is not None:
            return
        try:
            self._version = self._store.replace(self.uri, _text(entries), version=self._version)
        except Conflict as error:
            raise StorageError(
                f"{self.uri} was changed meanwhile: another export writes to the same folder; run this one again when "
                "the other one has ended"
            ) from error
        self._saved = entries

    def _read(self) -> bytes:
        try:
            return self._store.read(self.uri, version=self._version)
        except NotFound:
            self._version = None
            return _text([])


def _text(entries: Iterable[Entry]) -> bytes:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(HEADER)
    rows.writerows(astuple(entry) for entry in entries)
    return out.getvalue().encode()


def _parsed(body: bytes, uri: str) -> list[Entry]:
    try:
        rows = list(csv.reader(io.StringIO(body.decode(), newline="")))
        if rows[0] != HEADER:
            raise ValueError("other columns")  # noqa: TRY301 - one sentence for every way to be no manifest
        return [
            Entry(key, partition, file, note, int(size), content)
            for key, partition, file, note, size, content in rows[1:]
        ]
    except (ValueError, IndexError, csv.Error) as error:
        raise JobError(f"{uri} is no manifest of `unet-batch masks` ({error}): choose another folder") from error
