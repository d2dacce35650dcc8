"""How far an allowed difference moves labels: pictures scored as the job does, and with the framework's own step.

Legend: H, W pixels; C channels; K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelOutput, Raw
from unet_batch.errors import ImageError
from unet_batch.imaging.crop import on_whole_image
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import Geometry, normalize, whole
from unet_batch.imaging.resize import resize_logits
from unet_batch.model.model import Model
from unet_batch.session.model_files import model_at
from unet_batch.workbench.draft.look import Picture, archive_section, look, looking_job, spread
from unet_batch.workbench.draft.rehearsal import Rehearsal
from unet_batch.workbench.importers.difference import Difference, Way

MOST_PX = 1024
"""Sides of the part in the middle of a larger picture that is scored."""


@dataclass(frozen=True, slots=True)
class Size:
    """The share of pixels that get another label, or why it is not known."""

    text: str
    """Of the difference."""
    share: float | None
    """Of all pixels of the pictures."""
    largest: float | None = None
    """Of the picture with the largest share."""
    pictures: int = 0
    why: str = "how much cannot be computed from pictures"
    """Where there is no share."""

    def __str__(self) -> str:
        if self.share is None or self.largest is None:
            return f"{self.text}; {self.why}"
        return (
            f"{self.text}; it changes {self.share:.3%} of the labels of {self.pictures} pictures, and "
            f"{self.largest:.3%} of the one that it changes most"
        )

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {"difference": self.text, "share": self.share, "largest": self.largest, "pictures": self.pictures}


def sizes_on(
    archive: str, model_path: Path, settings: Mapping[str, Any], differences: Sequence[Difference]
) -> tuple[Size, ...]:
    """The sizes of differences on pictures of an archive, as `init` takes it.

    model_path: of the imported file, with its contract. settings: of the job file, from the importer.
    Raises JobError and StorageError for the archive.
    """
    section = archive_section(archive, [model_path])
    tree = {**settings, "name": "import", "model": {"path": str(model_path)}, "input": section}
    job = looking_job(tree, model_path.parent)
    data, model = model_at(str(model_path), None, job.tiling)
    pictures = spread(look(job, model, data).pictures)
    rehearsal = Rehearsal(data, model, job)
    return tuple(size_of(difference, rehearsal, model, pictures) for difference in differences)


def size_of(difference: Difference, rehearsal: Rehearsal, model: Model, pictures: Sequence[Picture]) -> Size:
    """The size of one difference on some pictures. model: with the contract of the job."""
    if difference.way is None or model.contract.output.decided:
        return Size(difference.text, None)
    shares: list[tuple[int, int]] = []
    for picture in pictures:
        try:
            ours, theirs = _labels(difference.way, rehearsal, model, picture)
        except ImageError:
            continue
        except Exception as error:  # noqa: BLE001 - a step of the framework's own may raise anything
            said = " ".join(str(error).split())[:200]
            return Size(difference.text, None, why=f"how much cannot be computed here ({said})")
        shares.append((int((ours != theirs).sum()), ours.size))
    if not shares:
        return Size(difference.text, None, why="how much is not known, because no picture can be scored")
    changed, pixels = np.sum(shares, axis=0)
    return Size(difference.text, float(changed / pixels), max(n / of for n, of in shares), len(shares))


def _labels(way: Way, rehearsal: Rehearsal, model: Model, picture: Picture) -> tuple[NDArray[Any], NDArray[Any]]:
    """The two label maps (H, W) that are compared."""
    spec, output = model.contract.input, model.contract.output
    pixels_hwc = rehearsal.in_order(picture.pixels_hwc[_middle(picture.size_hw)], spec)
    scores_khw, geometry = rehearsal.scores(pixels_hwc, picture.largest, model)
    ours_hw = _decided(*on_whole_image(scores_khw, geometry, output), output)
    taken = geometry
    if way.values is not None:

        def normalise(source_hwc: NDArray[Any]) -> NDArray[Any]:
            return normalize(source_hwc, whole(source_hwc.shape[:2]), spec, largest=picture.largest)

        values_hwc = np.ascontiguousarray(way.values(_cut(pixels_hwc, geometry), normalise), np.float32)
        plain = spec.model_copy(update={"normalize": Raw(), "crop": "none", "source_max": None})
        raw = rehearsal.with_input(model, plain)
        scores_khw, taken = rehearsal.scores(values_hwc, 1.0, raw, tile=way.tile)
    elif way.tile is not None:
        scores_khw, taken = rehearsal.scores(pixels_hwc, picture.largest, model, tile=way.tile)
    if way.blended is not None:
        scores_khw = way.blended(scores_khw)
    source_hw = geometry.source_hw
    scores_khw = (way.back or resize_logits)(_content(scores_khw, taken), source_hw)
    there = Geometry(source_hw, source_hw, 0, 0, source_hw, cut=geometry.cut)
    scores_khw, there = on_whole_image(scores_khw, there, output)
    theirs_hw = _decided(scores_khw, there, output)
    return (ours_hw, theirs_hw) if way.decided is None else way.decided(ours_hw, theirs_hw, scores_khw)


def _decided(scores_khw: NDArray[Any], geometry: Geometry, output: ModelOutput) -> NDArray[Any]:
    labels_hw = reduce(scores_khw, geometry, output, rle=False, confidence=False).labels_hw
    if labels_hw is None:
        raise MemoryError("there is not enough memory")
    return labels_hw


def _middle(size_hw: tuple[int, int]) -> tuple[slice, ...]:
    starts = [max(side - MOST_PX, 0) // 2 for side in size_hw]
    return tuple(slice(start, start + MOST_PX) for start in starts)


def _cut(pixels_hwc: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """The pixels that `input.crop` left."""
    if geometry.cut is None:
        return pixels_hwc
    top, left, _, _ = geometry.cut
    height, width = geometry.source_hw
    return pixels_hwc[top : top + height, left : left + width]


def _content(scores_khw: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """The scores without those of the padding."""
    if scores_khw.shape[1:] != geometry.fitted_hw:
        scores_khw = resize_logits(scores_khw, geometry.fitted_hw)
    (height, width), top, left = geometry.resized_hw, geometry.top, geometry.left
    return scores_khw[:, top : top + height, left : left + width]
