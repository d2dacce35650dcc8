"""Export the masks of published rows: which images need a file, what is there already, and what could not be written.

Scores nothing and changes nothing of the job's output. An export is resumed by running it again: a file is written only
where the manifest does not say that it was made from the same masks, or where it is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unet_batch.archive.discovery import reaches
from unet_batch.archive.window import Window
from unet_batch.errors import ExitCode, JobError, ShapeMismatch, StorageError, overall
from unet_batch.planning.prepare import Prepared
from unet_batch.review.masks.coco import FILE, CocoFile
from unet_batch.review.masks.formats import FORMATS, FileFormat
from unet_batch.review.masks.manifest import EARLIER, Entry, Manifest
from unet_batch.review.masks.names import Names, archive_root, relative_name
from unet_batch.review.masks.rows import (
    Labels,
    Without,
    fault_of,
    masked,
    partition_of,
    published_names,
    published_rows,
    refuse_classifier,
)
from unet_batch.review.originals import NoPicture, Row, originals
from unet_batch.store.storage import canonical, join
from unet_batch.table.mask_files import MANIFEST, REVISION
from unet_batch.table.scratch import scratch_folder

log = logging.getLogger(__name__)

SAVE_EVERY_S = 30.0
"""What a killed export does again at most."""
AT_ONCE = 4
"""Files that are encoded and put at once: their masks are in memory as arrays."""
LEFT = "left by an earlier export: its image has no row any more"
OVERLAP = "classes overlap: each pixel has the first of its classes"

Work = tuple[dict[str, Any], str, str]
"""A row whose file must be written, the file, and the digest of what it is made from."""


@dataclass(slots=True)
class Exported:
    """What an export did."""

    format: str
    out: str
    manifest: str
    partitions: int = 0
    """Published partitions of the window."""
    images: int = 0
    """Their rows. Each is in one of the next three."""
    written: int = 0
    unchanged: int = 0
    """Files that were there already, made from the same masks."""
    without: Counter[Without] = field(default_factory=Counter)
    """Images without a file, by the reason."""
    overlapping: int = 0
    """Files of this export in which classes overlap and the format keeps one of them."""
    left: int = 0
    """Files of earlier exports whose image has no row any more."""

    @property
    def exit_code(self) -> ExitCode:
        """3 where nothing is published, or another try may write more; 5 where a person must act first."""
        problems = [w for w in self.without if not w.expected]
        codes = [ExitCode.UNFINISHED if w.may_pass else ExitCode.NEEDS_ACTION for w in problems]
        if not self.images:
            codes.append(ExitCode.UNFINISHED)
        elif not self.files:
            codes.append(ExitCode.NEEDS_ACTION)
        return overall(codes)

    @property
    def files(self) -> int:
        """Images that have a file now: written by this export, or before and unchanged."""
        return self.written + self.unchanged

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "format": self.format,
            "out": self.out,
            "manifest": self.manifest,
            "partitions": self.partitions,
            "images": self.images,
            "written": self.written,
            "unchanged": self.unchanged,
            "without": {w.why: count for w, count in self.without.most_common()},
            "overlapping": self.overlapping,
            "left": self.left,
        }


def export(prepared: Prepared, window: Window, format_: str, out: str) -> Exported:
    """Write the masks of a window's published rows to the folder `out`, and a manifest beside them.

    format_: a name in FORMATS, or `coco`. out: a URI or path; read and written with the job's `output.options`.
    Raises JobError for a folder that must not be written to, Damaged for a published object that cannot be read, and
    StorageError where a store fails; the manifest then holds what was written.
    """
    return export_objects(prepared, published_names(prepared.output, window), format_, out)


def export_objects(prepared: Prepared, names: Sequence[str], format_: str, out: str) -> Exported:
    """The same for some published objects, by name."""
    refuse_classifier(prepared)
    out = canonical(out).rstrip("/")
    _check_apart(prepared, out)
    manifest = Manifest(prepared.output.store, join(out, MANIFEST.format(format=format_)))
    one = _Coco if format_ == "coco" else _Files
    return one(prepared, format_, out, manifest).run(names)


class _Export(ABC):
    """What the two ways to export share: the rows of a window, the entries, and what is said at the end."""

    def __init__(self, prepared: Prepared, format_: str, out: str, manifest: Manifest) -> None:
        self._prepared, self._format, self._out, self._manifest = prepared, format_, out, manifest
        self._store = prepared.output.store
        self._labels = Labels.of(prepared.model.contract.output)
        self._root = archive_root(prepared.job.input.uri)
        self._done = Exported(format_, out, manifest.uri)
        self._seen: set[str] = set()

    def run(self, names: Sequence[str]) -> Exported:
        """Export the rows of these published objects."""
        self._done.partitions = len({partition_of(name) for name in names})
        try:
            self._write(names)
        except BaseException:
            with contextlib.suppress(StorageError):  # the error that ends the export is the one to tell
                self._manifest.save()
            raise
        self._mark_left({partition_of(name) for name in names})
        self._manifest.save()
        return self._done

    @abstractmethod
    def _write(self, names: Sequence[str]) -> None:
        """Write the files of these published objects."""

    def _rows(self, name: str) -> Iterator[Sequence[dict[str, Any]]]:
        """The rows of a published object that can be exported; the others are noted."""
        for rows in published_rows(self._prepared.output, name):
            self._done.images += len(rows)
            self._seen.update(row["image_key"] for row in rows)
            exportable = []
            for row in rows:
                fault = fault_of(row, self._labels)
                if fault is None:
                    exportable.append(row)
                else:
                    self._note(row, name, fault)
            yield exportable

    def _note(self, row: Row, name: str, fault: Without) -> None:
        """An image without a file. One that an earlier export wrote stays there, and the entry says so."""
        self._done.without[fault] += 1
        key = row["image_key"]
        before = self._manifest.entries.get(key)
        file = before.file if before is not None else ""
        note = f"{fault.why}{EARLIER}" if file else fault.why
        self._manifest.entries[key] = Entry(key, partition_of(name), file, note)

    def _mark_left(self, partitions: set[str]) -> None:
        """Entries of these partitions whose images have no row any more; their files stay."""
        for key, entry in list(self._manifest.entries.items()):
            if entry.partition in partitions and key not in self._seen:
                if entry.file and self._format != "coco":
                    self._done.left += 1
                    self._manifest.entries[key] = replace(entry, note=LEFT, content="")
                else:
                    del self._manifest.entries[key]


class _Files(_Export):
    """One file for each image."""

    def __init__(self, prepared: Prepared, format_: str, out: str, manifest: Manifest) -> None:
        super().__init__(prepared, format_, out, manifest)
        self._kind: FileFormat = FORMATS[format_]
        self._names = Names({key: entry.file for key, entry in manifest.entries.items() if entry.file})
        self._there = {found.uri: found.size_bytes for found in self._store.list(out)} if manifest.entries else {}
        self._saved_at = time.monotonic()

    def _write(self, names: Sequence[str]) -> None:
        for name in names:
            before = self._done.written
            for rows in self._rows(name):
                work = [found for row in rows if (found := self._work(row, name)) is not None]
                calls = self._with_images(name, work) if self._kind.needs_image else self._alone(name, work)
                for row, written in self._store.map_bounded(calls, depth=AT_ONCE):
                    if isinstance(written, Without):
                        self._note(row, name, written)
                    else:
                        self._done.written += 1
                        self._done.overlapping += written.note == OVERLAP
                        self._manifest.entries[written.image_key] = written
                if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                    self._manifest.save()
                    self._saved_at = time.monotonic()
            log.info("%s: wrote %d files", name, self._done.written - before)

    def _work(self, row: dict[str, Any], name: str) -> Work | None:
        """What must be done for a row; None where its file is there, made from the same masks."""
        file = self._names.of(row, self._root, self._kind.extension)
        content = _digest(row, self._labels, self._format, with_image=self._kind.needs_image)
        before = self._manifest.entries.get(row["image_key"])
        uri = join(self._out, file)
        same = before is not None and (before.file, before.content) == (file, content)
        if before is not None and same and self._there.get(uri) == before.bytes:
            self._done.unchanged += 1
            self._done.overlapping += before.note == OVERLAP
            self._manifest.entries[row["image_key"]] = replace(before, partition=partition_of(name))
            return None
        if reaches(self._prepared.job.input, uri):
            raise JobError(_inside(self._prepared, self._out))
        return row, file, content

    def _alone(self, name: str, work: Sequence[Work]) -> Iterator[Callable[[], tuple[Row, Entry | Without]]]:
        return (partial(self._put, name, one, None) for one in work)

    def _with_images(self, name: str, work: Sequence[Work]) -> Iterator[Callable[[], tuple[Row, Entry | Without]]]:
        for number, image in originals(self._prepared, [(name, row) for row, _, _ in work]):
            yield partial(self._put, name, work[number], image)

    def _put(self, name: str, work: Work, original: NDArray[Any] | NoPicture | None) -> tuple[Row, Entry | Without]:
        """Encode and put one file: the row, and its entry or why there is none."""
        row, file, content = work
        if isinstance(original, NoPicture):
            return row, Without(f"its image {original.why}", may_pass=original.may_pass)
        image = masked(self._prepared, row, self._labels)
        if isinstance(image, Without):
            return row, image
        try:
            body = self._kind.encode(image, original, self._prepared.model.contract.input.color)
        except ShapeMismatch as error:
            return row, Without(f"its file cannot be written: {error}")
        note = OVERLAP if self._kind.one_class_per_pixel and image.label_map()[1] else ""
        self._store.put(join(self._out, file), body)
        return row, Entry(row["image_key"], partition_of(name), file, note, len(body), content)


class _Coco(_Export):
    """One file for all images; it is put where it differs from what the manifest says is there."""

    def _write(self, names: Sequence[str]) -> None:
        description = f"masks of {self._prepared.output.uri}"
        uri = join(self._out, FILE)
        if reaches(self._prepared.job.input, uri):
            raise JobError(_inside(self._prepared, self._out))
        keys: list[tuple[str, str]] = []
        with scratch_folder() as folder:
            file = CocoFile(folder, self._labels, description)
            for name in names:
                for rows in self._rows(name):
                    for row in rows:
                        image = masked(self._prepared, row, self._labels)
                        if isinstance(image, Without):
                            self._note(row, name, image)
                        else:
                            file.add(image, relative_name(row, self._root))
                            keys.append((row["image_key"], partition_of(name)))
            self._put(file.finish(), uri, keys)

    def _note(self, row: Row, name: str, fault: Without) -> None:
        self._done.without[fault] += 1
        self._manifest.entries[row["image_key"]] = Entry(row["image_key"], partition_of(name), "", fault.why)

    def _put(self, whole: Path, uri: str, keys: Sequence[tuple[str, str]]) -> None:
        """Put the file, unless it is there, and note it for all its images."""
        with whole.open("rb") as body:
            content = hashlib.file_digest(body, "sha256").hexdigest()
        size = whole.stat().st_size
        there = self._store.head(uri)
        before = {entry.content for entry in self._manifest.entries.values() if entry.file}
        same = there is not None and there.size_bytes == size and before == {content}
        if keys and not same:
            self._store.put(uri, whole)
        self._done.written, self._done.unchanged = (0, len(keys)) if same else (len(keys), 0)
        # Other windows' images are not in the file that lies there now.
        self._manifest.entries = {key: entry for key, entry in self._manifest.entries.items() if not entry.file}
        self._manifest.entries |= {key: Entry(key, name, FILE, "", size, content) for key, name in keys}


def _digest(row: Row, labels: Labels, format_: str, *, with_image: bool) -> str:
    """Digest of all that decides a file's bytes."""
    classes = row["classes"] or ()
    runs = [(area["id"], (area["rle"] or {}).get("size"), (area["rle"] or {}).get("counts")) for area in classes]
    facts = [REVISION, format_, sorted(labels.names.items()), labels.background, row["height"], row["width"], runs]
    digest = hashlib.sha256(json.dumps([*facts, row["source_version"] if with_image else ""]).encode())
    if any(counts is None for _, _, counts in runs):
        digest.update((row["mask"] or {}).get("bytes") or b"")
    return digest.hexdigest()


def _check_apart(prepared: Prepared, out: str) -> None:
    """Raise JobError where files would lie among published rows, or become the next run's images."""
    for folder in (prepared.output.predictions, prepared.output.work):
        if f"{out}/".startswith(f"{folder}/"):
            raise JobError(f"{out} lies in {folder}, which holds the job's rows: choose another folder")
    for name in ("manifest.csv", FILE):
        if reaches(prepared.job.input, join(out, name)):
            raise JobError(_inside(prepared, out))


def _inside(prepared: Prepared, out: str) -> str:
    return (
        f"{out} lies inside the archive {prepared.job.input.uri}, so the next run would take the files for images: "
        "choose a folder beside it"
    )
