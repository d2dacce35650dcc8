"""The truth of an image as masks by class name: what a truth is, and label images that lie where a pattern says."""

from __future__ import annotations

import re
from typing import Any, Protocol

from numpy.typing import NDArray

from unet_batch.archive.names import suffix_of
from unet_batch.decode.labels import read_labels
from unet_batch.errors import Changed, ImageError, JobError, NotFound, TooLarge
from unet_batch.imaging.masks import runs_by_label
from unet_batch.planning.prepare import Prepared
from unet_batch.review.agreement import Masks, MasksOrReason
from unet_batch.review.masks.names import archive_root, relative_name
from unet_batch.review.masks.rows import Labels
from unet_batch.review.originals import Row
from unet_batch.store.storage import canonical
from unet_batch.table.rows import partition_values

NO_TRUTH = "no truth"
FIELDS = ("stem", "case", "name", "folder", "page")
"""Of a pattern, besides the columns of the partition: `{date}`, `{site}` …"""
ALL = 255
"""What tools paint masks with that have one class only."""

_CHANNEL = re.compile(r"_\d{4}$")
"""What nnU-Net writes at the end of an image's name: the number of its channel, which no label image has."""
_FIELD = re.compile(r"\{(\w*)\}")


class Truth(Protocol):
    """The true masks of published rows."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the truth, a sentence each."""

    def of(self, row: Row, partition: str) -> MasksOrReason:
        """The true masks of a row, or a word why there are none. Raises StorageError where the store fails."""


class LabelImages:
    """Where the label image of a row lies, and what it holds. One label image never belongs to two rows."""

    def __init__(self, prepared: Prepared, pattern: str) -> None:
        """pattern: a URI or path with FIELDS or columns of the partition in braces; read with `input.options`."""
        if "{" not in pattern:
            raise JobError(f"--truth {pattern} is one file for all images: write e.g. truth/{{date}}/{{stem}}.png")
        self._pattern = canonical(pattern)
        self._prepared = prepared
        self._labels = Labels.of(prepared.model.contract.output)
        self._root = archive_root(prepared.job.input.uri)
        self._owners: dict[str, str] = {}
        """URI of a label image → the image key of the row that it belongs to."""
        self._missing: str | None = None
        """The first URI at which no label image lies."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the first label image is missing, as far as they were read; of nnU-Net's names, how to write them."""
        if self._missing is None:
            return ()
        stem, hint = self._missing.rpartition("/")[2].rpartition(".")[0], ""
        if _CHANNEL.search(stem) and "{stem}" in self._pattern:
            hint = ": nnU-Net's label images have no channel number, so write {case} in the place of {stem}"
        return (f"there is no label image at {self._missing.removeprefix('file://')}{hint}",)

    def uri(self, row: Row, partition: str) -> str:
        """The URI of a row's label image. Raises JobError for a field that there is not."""
        return filled(self._pattern, row, partition, self._root)

    def of(self, row: Row, partition: str) -> MasksOrReason:
        """The masks of a row's label image, or a word why there are none.

        Raises StorageError where the store fails, and JobError for the truth of two rows.
        """
        limits, uri = self._prepared.job.limits, self.uri(row, partition)
        try:
            data = self._prepared.archive.read(uri, max_bytes=limits.max_image_bytes)
            self._take(uri, row["image_key"])
            labels_hw = read_labels(data, limits, turned=self._prepared.model.contract.input.exif == "apply")
        except NotFound:
            self._missing = self._missing or uri
            return NO_TRUTH
        except (TooLarge, Changed) as error:
            return f"truth cannot be read: {error.code}"
        except ImageError as error:
            return f"truth cannot be read: {error.message} ({error.reason})"
        return masks_in(labels_hw, self._labels)

    def _take(self, uri: str, key: str) -> None:
        """Note the row of a label image. Raises JobError if another row has it."""
        owner = self._owners.setdefault(uri, key)
        if owner != key:
            shown = uri.removeprefix("file://")
            raise JobError(
                f"--truth: {shown} belongs to {owner} and to {key}: write {{folder}}, {{name}}, {{page}} or {{date}} "
                "in the pattern, so that each image has its own"
            )


def filled(pattern: str, row: Row, partition: str, root: str) -> str:
    """A pattern with the values of a row in place of its fields. Raises JobError for a field that there is not.

    root: of the archive, from `archive_root`.
    """
    name = relative_name(row, root)
    folder, _, last = name.rpartition("/")
    stem = last[: len(last) - len(suffix_of(last))]
    values = {
        "stem": stem,
        "case": _CHANNEL.sub("", stem),
        "name": last,
        "folder": folder,
        "page": str(row["page"]),
        **partition_values(partition),
    }
    unknown = [field for field in _FIELD.findall(pattern) if field not in values]
    if unknown:
        known = ", ".join(f"{{{field}}}" for field in sorted(values))
        raise JobError(f"--truth has a field {{{unknown[0]}}}; there are {known}")
    return _FIELD.sub(lambda found: values[found[1]], pattern)


def masks_in(labels_hw: NDArray[Any], labels: Labels) -> MasksOrReason:
    """The masks of a label image by class name, or a word where it has a value that is no class.

    Values are those of `unet-batch masks --to png`. Where the contract has one class beside the background, an image of
    0 and 255 alone is one of that class.
    """
    found = runs_by_label(labels_hw)
    if len(labels.names) == 1 and ALL not in labels.names and found.keys() <= {0, ALL} and labels.background == 0:
        found = {next(iter(labels.names)) if value == ALL else value: runs for value, runs in found.items()}
    unknown = sorted(found.keys() - labels.names.keys() - {labels.background})
    if unknown:
        return f"truth has the value {unknown[0]}, which is no class"
    edges = {labels.names[value]: runs.edges() for value, runs in found.items() if value in labels.names}
    return Masks(edges, (labels_hw.shape[0], labels_hw.shape[1]))
