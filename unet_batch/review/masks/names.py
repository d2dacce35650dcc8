"""Names of exported files: those of the images, with their folders and another extension, and never one for two images.

Knows rows and text; knows no store. Names hold nothing that a file system refuses, and none leads out of its folder.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping

from unet_batch.archive.names import suffix_of
from unet_batch.review.originals import Row
from unet_batch.store.objects import canonical, path_of

LONGEST_BYTES = 180
"""Of a folder's or file's name; file systems take 255, and an extension and a page number follow."""

_REFUSED = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
"""What Windows, or a terminal, does not take in a name."""


def archive_root(input_uri: str) -> str:
    """The folder of an archive, with its slash; of a URI with a date, the folder before the date."""
    before = canonical(input_uri).partition("{")[0]
    return before.rpartition("/")[0] + "/" if "{" in input_uri else before.removesuffix("/") + "/"


def relative_name(row: Row, root: str) -> str:
    """The image's name below its archive: `2026/11/21/a.png`, `day.tar/a.png`, `rows.parquet/17`."""
    uri = row["uri"]
    name = uri.removeprefix(root) if uri.startswith(root) else path_of(uri).lstrip("/")
    return name if row["member"] is None else f"{name}/{row['member']}"


def candidates(row: Row, root: str, extension: str) -> Iterator[str]:
    """Names that a row's file may have, the best first; the last one is the image's alone.

    The image's extension is replaced: `a.jpg` becomes `a.png`. If another image has that name, the extension is kept
    (`a.jpg.png`), then a digest of the image key is added.
    """
    *folders, last = [_cleaned(step) for step in relative_name(row, root).split("/") if step] or ["image"]
    page = f"-page-{row['page']}" if (row["pages"] or 1) > 1 else ""
    stem = last[: len(last) - len(suffix_of(last))] or last
    digest = hashlib.sha256(row["image_key"].encode()).hexdigest()[:12]
    for name in (f"{stem}{page}", f"{last}{page}", f"{stem}{page}-{digest}"):
        yield "/".join((*folders, name + extension))


class Names:
    """Which file belongs to which image. A name that was given once stays its image's."""

    def __init__(self, given: Mapping[str, str]) -> None:
        """given: image key → file, from earlier exports to the same place."""
        self._files = dict(given)
        self._owners = {_same(file): key for key, file in given.items()}

    def of(self, row: Row, root: str, extension: str) -> str:
        """The file of a row's image, relative to the export's folder."""
        key = row["image_key"]
        if key not in self._files:
            free = (name for name in candidates(row, root, extension) if _same(name) not in self._owners)
            self._files[key] = name = next(free)
            self._owners[_same(name)] = key
        return self._files[key]


def _cleaned(step: str) -> str:
    """One folder's or file's name without what is refused, and not longer than allowed."""
    name = _REFUSED.sub("_", step)
    if name.strip(".") == "" or name[-1] in ". ":
        name = name.rstrip(". ") + "_"
    if len(name.encode()) <= LONGEST_BYTES:
        return name
    suffix = suffix_of(name)
    digest = hashlib.sha256(step.encode()).hexdigest()[:12]
    return name.encode()[: LONGEST_BYTES - 30].decode(errors="ignore") + f"-{digest}{suffix}"


def _same(name: str) -> str:
    """Equal for names that some file systems do not tell apart."""
    return unicodedata.normalize("NFC", name).casefold()
