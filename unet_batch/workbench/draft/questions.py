"""The open questions of a draft, and the few values that are tried for each.

A question is open where the file does not answer it and the values would give different masks on these pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import Normalize
from unet_batch.errors import JobError
from unet_batch.workbench.draft.known import OVERLAPPING, Draft, Known, normal
from unet_batch.workbench.draft.look import Seen, value_range
from unet_batch.workbench.export.arguments import parse_normalize
from unet_batch.worker.loaded import DIM

DEPTHS = (255, 1023, 4095, 16383)
"""Largest values of depths that cameras store in 16-bit files."""
SUM_SLACK = 0.01
LARGE_PX = 1536
"""Sides from which a picture is cut into tiles of TILE_PX where the model takes any size: memory grows with it."""
TILE_PX = 1024


@dataclass(frozen=True, slots=True)
class Option:
    """One value that is tried."""

    label: str
    value: Any


@dataclass(frozen=True, slots=True)
class Question:
    """A field with several possible values; the first is taken unless the pictures say otherwise."""

    field: str
    text: str
    options: tuple[Option, ...]


def open_questions(draft: Draft, seen: Seen, tile_hw: tuple[int, int] | None) -> list[Question]:
    """The questions in the order in which they are tried. tile_hw: of a model that takes one size."""
    found: list[Question] = []
    if not draft.has("input.normalize"):
        found.append(
            Question("input.normalize", "How did the training normalise pictures?", _normalisations(draft, seen))
        )
    colors = draft.value("input.channels") == 3 and not all(picture.is_gray for picture in seen.pictures)
    if colors and not draft.has("input.color"):
        options = (Option("rgb", "rgb"), Option("bgr (OpenCV)", "bgr"))
        found.append(Question("input.color", "In which order does the model take the colours?", options))
    fits = tile_hw is None or all(picture.size_hw == tile_hw for picture in seen.pictures)
    if not draft.has("input.fit") and tile_hw is not None and not fits:
        text = f"How does a picture become {tile_hw[0]}x{tile_hw[1]}?"
        whole = ("stretch", "letterbox")
        ways = tuple(Option(name, name) for name in (whole if draft.classifies else ("tile", *whole)))
        found.append(Question("input.fit", text, ways))
    known = draft.fields["output.activation"]
    if known.value == "logits" and known.others and known.origin != "given":
        place = "picture" if draft.classifies else "pixel"
        ways = (
            Option(f"one class per {place} (softmax)", "logits"),
            Option("classes may overlap (sigmoid)", "sigmoid"),
        )
        found.append(Question("output.activation", f"May several classes hold at one {place}?", ways))
    return found


def _normalisations(draft: Draft, seen: Seen) -> tuple[Option, ...]:
    high, largest = value_range(seen)
    if largest is None:  # signed integers: `unit` has no divisor
        return (Option("z-score of each picture", {"kind": "zscore"}), Option("values as stored", {"kind": "none"}))
    options = [Option(f"unit (divided by {largest:g})" if largest != 1 else "values as stored", {"kind": "unit"})]
    if largest == 65535 and high < DIM * largest * 2:
        top = next((depth for depth in DEPTHS if high <= depth), None)
        if top is not None:
            options.insert(0, Option(f"unit (divided by {top})", {"kind": "unit", "max": float(top)}))
    if draft.value("input.channels") == 3:
        options.append(Option("ImageNet mean and std", _named("imagenet", 3)))
    if largest == 255:
        options.append(Option("values 0 to 255", {"kind": "none"}))
    elif largest != 1:
        options.append(
            Option(f"values 0 to 255 (factor {255 / largest:.3g})", {"kind": "scale", "scale": 255 / largest})
        )
    options.append(Option("z-score of each picture", {"kind": "zscore"}))
    return tuple(options)


def _named(text: str, channels: int) -> dict[str, Any]:
    rule: Normalize = parse_normalize(text, channels)
    return normal(rule)


def measured_activation(draft: Draft, values: list[NDArray[Any]]) -> Draft:
    """What the output's values are, where the graph does not say it. values: (K, h, w) of tiles of pictures."""
    if draft.value("output.activation") == "labels":
        return _measured_labels(draft, values)
    if draft.has("output.activation") or draft.value("output.activation") == "masks":
        return draft
    low, high = (float(f([f(v) for v in values])) for f in (np.min, np.max))
    shown = f"values from {low:.3g} to {high:.3g} on {len(values)} pictures"
    one = len(draft.value("output.classes")) == 1
    if not np.isfinite([low, high]).all():
        raise JobError(
            f"the model returns values that are not finite on pictures of this archive ({shown}): it cannot be scored"
        )
    if low < -SUM_SLACK or high > 1 + SUM_SLACK:
        return draft.put("output.activation", Known("logits", "measured", shown, () if one else (OVERLAPPING,)))
    sums = np.concatenate([value.sum(axis=0).ravel() for value in values])
    if not one and bool((np.abs(sums - 1) < SUM_SLACK).all()):
        return draft.put("output.activation", Known("softmax", "measured", f"{shown} that add up to 1"))
    why = f"{shown}" + ("" if one else ", which do not add up to 1")
    return draft.put("output.activation", Known("sigmoid", "measured", why))


def _measured_labels(draft: Draft, values: list[NDArray[Any]]) -> Draft:
    """As many classes as there are labels on the pictures: a label map does not declare their number."""
    highest = int(max(value.max() for value in values))
    if draft.has("output.classes") or highest < len(draft.value("output.classes")):
        return draft
    names = ["background", *(f"class_{number}" for number in range(1, highest + 1))]
    why = f"labels up to {highest} on {len(values)} pictures; there may be more"
    return draft.put("output.classes", Known(names, "guessed", why))


def unasked(draft: Draft, seen: Seen, tile_hw: tuple[int, int] | None) -> tuple[Draft, dict[str, Any]]:
    """The draft with fields that need no trial, and settings of the job file that follow from sizes."""
    if draft.value("input.channels") == 3 and all(picture.is_gray for picture in seen.pictures):
        known = Known("rgb", "guessed", "the pictures are gray, so the order makes no difference on them", ("bgr",))
        draft = draft.put("input.color", known)
    if draft.has("input.fit"):
        return draft, {}
    if draft.classifies:  # `from_graph` guessed how whole pictures are fitted
        return draft, {}
    if tile_hw is not None:
        if all(picture.size_hw == tile_hw for picture in seen.pictures):
            known = Known("tile", "guessed", f"all pictures seen are {tile_hw[0]}x{tile_hw[1]}", ("stretch",))
            draft = draft.put("input.fit", known)
        return draft, {}
    largest = max(max(picture.size_hw) for picture in seen.pictures)
    multiple = draft.value("input.multiple") or 1
    if largest <= LARGE_PX:
        why = "the model takes any size, and each picture is scored whole"
        return draft.put("input.fit", Known("tile", "guessed", why)), {}
    size = -(-TILE_PX // multiple) * multiple + (draft.value("input.remainder") or 0)
    why = f"pictures have up to {largest} pixels, so they are cut into tiles (tiling.size)"
    return draft.put("input.fit", Known("tile", "guessed", why)), {"tiling": {"size": size}}
