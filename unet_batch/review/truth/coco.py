"""The truth of images from one COCO JSON file: RLE and polygons, as masks by class name.

Polygons and uncompressed RLE become masks by pycocotools, which defines what they cover; compressed RLE is read here.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import JobError, NotFound, ShapeMismatch, TooLarge
from unet_batch.imaging.masks import runs_by_label, unrle
from unet_batch.planning.prepare import Prepared
from unet_batch.review.agreement import Masks, MasksOrReason
from unet_batch.review.masks.names import archive_root, relative_name
from unet_batch.review.masks.rows import Labels
from unet_batch.review.originals import Row
from unet_batch.review.truth.images import NO_TRUTH
from unet_batch.store.storage import canonical

LARGEST_BYTES = 2 << 30
"""Of the file: its text is in memory at once."""


class CocoTruth:
    """The annotations of a COCO file by image.

    An image belongs to a row if its `image_key` is the row's (files of `unet-batch masks --to coco` have it), else if
    its `file_name` is the row's name below the archive, else if it is the last part of that name and no other image of
    the file ends with it. One image of the file never belongs to two rows. Categories and classes have the same names.
    An image without annotations has an empty truth.
    """

    def __init__(self, prepared: Prepared, uri: str) -> None:
        """uri: read with `input.options`. Raises JobError for a file that is no COCO file of this model."""
        self._uri = canonical(uri)
        self._root = archive_root(prepared.job.input.uri)
        found = _parsed(prepared, self._uri)
        images = found["images"]
        whole, last = Counter(i["file_name"] for i in images), Counter(_last(i["file_name"]) for i in images)
        self._images: dict[str, dict[str, Any]] = {}
        for image in images:
            name = image["file_name"]
            keys = [image.get("image_key"), name if whole[name] == 1 else None]
            for key in (*keys, _last(name) if last[_last(name)] == 1 else None):
                if key is not None:
                    self._images.setdefault(key, image)
        self._owners: dict[int | str, str] = {}
        """Id of an image of the file → the image key of the row that it belongs to."""
        names = set(Labels.of(prepared.model.contract.output).names.values())
        categories = {category["id"]: category["name"] for category in found["categories"]}
        self._annotations: dict[Any, list[tuple[str, Any]]] = defaultdict(list)
        foreign: Counter[str] = Counter()
        for annotation in found["annotations"]:
            name = categories.get(annotation["category_id"], f"category {annotation['category_id']}")
            if name in names:
                self._annotations[annotation["image_id"]].append((name, annotation.get("segmentation")))
            else:
                foreign[name] += 1
        if foreign and not names & set(categories.values()):
            raise JobError(
                f"--truth {self._uri}: none of its categories ({', '.join(sorted(foreign))}) is a class of the model "
                f"({', '.join(sorted(names))}): give them the same names"
            )
        self.notes = tuple(
            f"{count} annotation(s) of {name} do not count: the model has no such class"
            for name, count in foreign.most_common()
        )

    def of(self, row: Row, partition: str) -> MasksOrReason:  # noqa: ARG002 - of the protocol
        """The masks of a row's image, or a word why there are none. Raises JobError for the truth of two rows."""
        name = relative_name(row, self._root)
        found = (self._images.get(key) for key in (row["image_key"], name, _last(name)))
        image = next((image for image in found if image is not None), None)
        if image is None:
            return NO_TRUTH
        owner = self._owners.setdefault(image["id"], row["image_key"])
        if owner != row["image_key"]:
            raise JobError(
                f"--truth {self._uri}: {image['file_name']} belongs to {owner} and to {row['image_key']}: write "
                "file_name with its folders below the archive, or image_key"
            )
        size_hw = image["height"], image["width"]
        masks: dict[str, NDArray[np.bool_]] = {}
        try:
            for class_, segmentation in self._annotations.get(image["id"], ()):
                mask_hw = mask_of(segmentation, size_hw)
                masks[class_] = masks[class_] | mask_hw if class_ in masks else mask_hw
        except ShapeMismatch as error:
            return f"truth cannot be read: {error}"
        runs = {class_: runs_by_label(mask_hw).get(1) for class_, mask_hw in masks.items()}
        return Masks({class_: found.edges() for class_, found in runs.items() if found}, size_hw)


def mask_of(segmentation: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The bool mask (H, W) of a COCO segmentation: compressed or plain RLE, or polygons.

    Raises ShapeMismatch for another size or form, and JobError where pycocotools is needed and not installed.
    """
    if isinstance(segmentation, Mapping):
        if tuple(segmentation.get("size", ())) != size_hw:
            raise ShapeMismatch(f"an RLE has the size {segmentation.get('size')}, and its image {list(size_hw)}")
        if isinstance(segmentation.get("counts"), str):
            return unrle(segmentation["counts"], size_hw)
        counts: Any = segmentation.get("counts")
        whole = isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts)
        if not whole or sum(counts) != size_hw[0] * size_hw[1]:
            raise ShapeMismatch("the counts of an RLE are not the pixels of its image")
    elif not (segmentation and isinstance(segmentation, list)) or not all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation
    ):
        raise ShapeMismatch("a segmentation is neither RLE nor a list of polygons")
    try:
        from pycocotools import mask as pycoco
    except ImportError as error:
        raise JobError("--truth has polygons: install pycocotools, which defines the pixels of a polygon") from error
    height, width = size_hw
    try:
        found = pycoco.frPyObjects(segmentation, height, width)
        decoded_hw = np.asarray(pycoco.decode(pycoco.merge(found) if isinstance(found, list) else found), bool)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise ShapeMismatch(f"a segmentation cannot be read: {error}") from error
    return decoded_hw


def _parsed(prepared: Prepared, uri: str) -> dict[str, list[dict[str, Any]]]:
    """The lists of a COCO file, with the fields that are used here. Raises JobError."""
    try:
        content = json.loads(prepared.archive.read(uri, max_bytes=LARGEST_BYTES))
    except NotFound as error:
        raise JobError(f"--truth {uri} does not exist") from error
    except TooLarge as error:
        raise JobError(f"--truth {uri} is larger than {LARGEST_BYTES >> 30} GiB: split it by image") from error
    except (ValueError, RecursionError) as error:
        raise JobError(f"--truth {uri} is no JSON: {error}") from error
    needed: dict[str, dict[str, Any]] = {
        "images": {"id": (int, str), "file_name": str, "height": int, "width": int},
        "annotations": {"image_id": (int, str), "category_id": int},
        "categories": {"id": int, "name": str},
    }
    for name, fields in needed.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise JobError(f"--truth {uri} is no COCO file: it has no list `{name}`")
        for number, entry in enumerate(entries):
            for field, type_ in fields.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(field), type_):
                    raise JobError(f"--truth {uri} is no COCO file: {name}[{number}] has no valid `{field}`")
    return content  # type: ignore[no-any-return]


def _last(name: str) -> str:
    return name.rpartition("/")[2]
