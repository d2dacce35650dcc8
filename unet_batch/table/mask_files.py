"""Mask files that lie beside the table (`output.mask_files`): their places, and whether they are those of the rows.

A marker says that the files of one version of a published object are complete. It is put last, so a kill before it
leaves files that the next run writes again. Rows are published before; no file decides anything about a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unet_batch.errors import NotFound
from unet_batch.spec import MaskFile
from unet_batch.table.output import Output

SUFFIXES: Mapping[MaskFile, str] = {"png": ".png", "tiff": ".tif", "overlay": ".jpg", "geojson": ".geojson"}
"""Suffix of the files of each format."""
REVISION = 2
"""Raise when code changes the files that are made from the same masks: all of them are then written again."""
MANIFEST = "manifest-{format}.csv"
"""Name of the file that says which file belongs to which image."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What lies in a folder of complete mask files, besides the manifest."""

    files: int
    size_bytes: int
    """Of all files together."""

    def to_json(self) -> bytes:
        """The text of the marker."""
        return json.dumps(asdict(self)).encode()


def marker_uri(output: Output, format_: str, name: str, version: str) -> str:
    """Where the marker lies for one version of a published object."""
    digest = hashlib.sha256(f"{REVISION} {version}".encode()).hexdigest()[:16]
    return f"{output.mask_markers(format_)}/{name}/{digest}.json"


def published_versions(output: Output) -> dict[str, str]:
    """Name → version of all published objects."""
    root, end = output.predictions + "/", "/data.parquet"
    return {
        found.uri.removeprefix(root).removesuffix(end): found.version
        for found in output.store.list(output.predictions)
        if found.uri.startswith(root) and found.uri.endswith(end)
    }


def problem_of(output: Output, format_: str, name: str, version: str) -> str | None:
    """What is wrong with the mask files of a published object, as a phrase; None if they are complete."""
    try:
        tree: Mapping[str, Any] = json.loads(output.store.read(marker_uri(output, format_, name, version)))
        wanted = Marker(int(tree["files"]), int(tree["size_bytes"]))
    except NotFound:
        return f"the {format_} mask files are not those of the published rows"
    except (ValueError, KeyError, TypeError):
        return f"the marker of the {format_} mask files is damaged"
    folder = output.mask_folder(format_, name)
    manifest = f"{folder}/{MANIFEST.format(format=format_)}"
    sizes = [found.size_bytes for found in output.store.list(folder) if found.uri != manifest]
    if Marker(len(sizes), sum(sizes)) != wanted:
        return (
            f"{len(sizes)} {format_} mask files of {sum(sizes)} bytes, but {wanted.files} of {wanted.size_bytes} were "
            "written"
        )
    return None
