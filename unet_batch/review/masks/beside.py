"""Writes mask files beside the table after a run: of every published object whose files are not there yet.

A kill at any moment leaves published rows as they are, and the next run writes what is missing.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from unet_batch.archive.window import Window
from unet_batch.planning.prepare import Prepared
from unet_batch.review.masks.export import LEFT, Exported, export_objects
from unet_batch.review.masks.manifest import Manifest
from unet_batch.review.masks.rows import Without, published_names
from unet_batch.store.storage import join
from unet_batch.table.mask_files import MANIFEST, Marker, marker_uri, problem_of, published_versions

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Beside:
    """What was written."""

    written: Counter[str] = field(default_factory=Counter)
    """Format → files."""
    without: Counter[tuple[str, Without]] = field(default_factory=Counter)
    """Images without a file, by format and reason; rejections do not count."""


def write_beside(prepared: Prepared, window: Window) -> Beside:
    """Write the missing mask files of all published objects, and remove those of rows that are gone.

    Objects of the window are looked at file by file, the others only by their marker: a run of one night completes what
    an earlier run was killed in, and repairs its own night. Raises StorageError where a store fails.
    """
    done = Beside()
    formats = prepared.job.output.mask_files
    if not formats:
        return done
    output = prepared.output
    inside = set(published_names(output, window))
    versions = published_versions(output)
    for format_ in formats:
        there = {found.uri for found in output.store.list(output.mask_markers(format_))}
        for name, version in sorted(versions.items()):
            marked = marker_uri(output, format_, name, version) in there
            if marked and (name not in inside or problem_of(output, format_, name, version) is None):
                continue
            _write(prepared, format_, name, version, done)
    return done


def _write(prepared: Prepared, format_: str, name: str, version: str, done: Beside) -> None:
    """The files of one published object, and its marker."""
    output = prepared.output
    folder = output.mask_folder(format_, name)
    exported: Exported = export_objects(prepared, [name], format_, folder)
    marker = _without_leftovers(prepared, format_, folder)
    done.written[format_] += exported.written
    unfinished = False
    for reason, count in exported.without.items():
        if not reason.expected:
            done.without[format_, reason] += count
            unfinished = unfinished or reason.may_pass
    if not unfinished:
        output.store.put(marker_uri(output, format_, name, version), marker.to_json())
    log.info("%s: %d mask files (%s)", name, exported.written, format_)


def _without_leftovers(prepared: Prepared, format_: str, folder: str) -> Marker:
    """Remove the files that belong to no row with masks; returns what is left."""
    store = prepared.output.store
    manifest = Manifest(store, join(folder, MANIFEST.format(format=format_)))
    for key, entry in list(manifest.entries.items()):
        if entry.file and not entry.content:
            manifest.entries[key] = entry.without_file()
            if entry.note == LEFT:
                del manifest.entries[key]
    kept = {join(folder, entry.file): entry.bytes for entry in manifest.entries.values() if entry.file}
    for found in list(store.list(folder)):
        if found.uri not in kept and found.uri != manifest.uri:
            store.delete(found.uri)
    manifest.save()
    return Marker(len(kept), sum(kept.values()))
