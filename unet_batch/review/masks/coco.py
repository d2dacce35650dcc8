"""Masks as one COCO JSON file: images with their sizes, categories, and one annotation with RLE per class and image.

Written piece by piece to the local disk, so that the memory does not grow with the number of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unet_batch.imaging.masks import bbox, rle
from unet_batch.review.masks.rows import Labels, Masked

FILE = "annotations.json"


class CocoFile:
    """A COCO file that grows image by image. Ids are numbers from 1, in the order of the images."""

    def __init__(self, folder: Path, labels: Labels, description: str) -> None:
        """folder: of this object alone. description: goes into the file's `info`."""
        self._folder, self._labels, self._description = folder, labels, description
        self._files = {name: (folder / name).open("w", encoding="utf-8") for name in ("images", "annotations")}
        self._counts = dict.fromkeys(self._files, 0)

    def add(self, image: Masked, file_name: str) -> None:
        """Add an image and its masks. file_name: the image's, relative to the archive."""
        height, width = image.size_hw
        number = self._counts["images"] + 1
        row = image.row
        self._write(
            "images",
            {
                "id": number,
                "file_name": file_name,
                "width": width,
                "height": height,
                "image_key": row["image_key"],
                "page": row["page"],
            },
        )
        for annotation in _annotations(image):
            self._write("annotations", {"id": self._counts["annotations"] + 1, "image_id": number, **annotation})

    def finish(self) -> Path:
        """The whole file, on the local disk."""
        for file in self._files.values():
            file.close()
        whole = self._folder / FILE
        categories = [{"id": value, "name": name, "supercategory": ""} for value, name in self._labels.names.items()]
        with whole.open("w", encoding="utf-8") as out:
            out.write(f'{{"info": {json.dumps({"description": self._description})}, "licenses": [],\n')
            out.write(f'"categories": {json.dumps(categories)}')
            for name in self._files:
                out.write(f',\n"{name}": [')
                with (self._folder / name).open(encoding="utf-8") as lines:
                    out.writelines(lines)
                out.write("]")
            out.write("}\n")
        return whole

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self._files[name].write((",\n" if self._counts[name] else "\n") + json.dumps(value))
        self._counts[name] += 1


def _annotations(image: Masked) -> Iterator[dict[str, Any]]:
    for mask in image.masks:
        yield {
            "category_id": mask.value,
            "segmentation": {"size": list(image.size_hw), "counts": rle(mask.pixels_hw)},
            "area": int(mask.pixels_hw.sum()),
            "bbox": list(bbox(mask.pixels_hw)),
            "iscrowd": 0,
        }
