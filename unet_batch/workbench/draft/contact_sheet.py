"""The contact sheet of a draft: the pictures that were tried, with the masks of every variant side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelOutput
from unet_batch.imaging.overlay import Color, displayed, label_color, thumbnail
from unet_batch.imaging.sheet import Cell, Column, sheet
from unet_batch.workbench.draft.evidence import is_trivial
from unet_batch.workbench.draft.explore import Explored
from unet_batch.workbench.draft.look import spread
from unet_batch.workbench.draft.rehearsal import Scored, Tried

SIDE_PX = 288
EDGES = "edges: contrast along the borders of masks, as a multiple of the picture's usual contrast."


def contact_sheet(explored: Explored) -> bytes:
    """The PNG: a column with the pictures, and one for each variant, grouped by question."""
    output = explored.draft.contract().output
    columns = [_pictures(explored)]
    for answer in explored.answers:
        for number, tried in enumerate(answer.tried):
            taken = number == answer.taken
            head = (answer.question.field, tried.label, _figures(tried), "taken: a guess" if taken else "")
            columns.append(_column(tried, head, chosen=taken))
    if not explored.answers:
        columns.append(_column(explored.final, ("as drafted", "", _figures(explored.final), ""), chosen=True))
    of = "labels" if output.classifies else "outlines"
    title = [
        f"{explored.source_model.path}: the same pictures under every variant. Choose the columns with the right {of}.",
        *(() if output.classifies else (EDGES,)),
        "Each question was tried with what was taken for the questions to its left.",
    ]
    return sheet(title, columns, SIDE_PX)


def _pictures(explored: Explored) -> Column:
    """The pictures without masks."""
    pairs = zip(spread(explored.seen.pictures), explored.final.scored, strict=True)
    cells = []
    for picture, scored in pairs:
        height, width = picture.size_hw
        part = "" if scored.part_hwc.shape[:2] == picture.size_hw else ", its middle"
        depth = {"uint8": "8 bit", "uint16": "16 bit"}.get(picture.pixels_hwc.dtype.name, "float")
        cells.append(Cell(_drawn(scored, []), f"{picture.name}  {height}x{width}, {depth}{part}"))
    return Column(("", "picture", "", ""), tuple(cells))


def _column(tried: Tried, head: tuple[str, ...], *, chosen: bool) -> Column:
    output, cells = tried.draft.contract().output, []
    for scored in tried.scored:
        if output.classifies and not scored.why:
            label = "no class above its threshold" if scored.label is None else f"{scored.label} {scored.score:.1%}"
            cells.append(Cell(_drawn(scored, []), label))
            continue
        if scored.labels_hw is None:
            cells.append(Cell(_drawn(scored, []) // 3, scored.why))
            continue
        found = _classes(scored.labels_hw, output)
        masks = [(mask_hw, label_color(label)) for label, _, mask_hw in found]
        shares = ", ".join(f"{name} {mask_hw.mean():.1%}" for _, name, mask_hw in found[:3]) or "empty"
        cells.append(Cell(_drawn(scored, masks), shares))
    return Column(head, tuple(cells), chosen)


def _figures(tried: Tried) -> str:
    if tried.draft.classifies:
        labels = {scored.label for scored in tried.scored if scored.label is not None}
        return f"labels: {', '.join(sorted(labels)) or 'none'}"
    filled = sum(not is_trivial(s.labels_hw) for s in tried.masks if s.labels_hw is not None)
    return f"masks {filled} of {len(tried.scored)}, edges {tried.edges:.1f}"


def _classes(labels_hw: NDArray[Any], output: ModelOutput) -> list[tuple[int, str, NDArray[np.bool_]]]:
    """Label, name and mask of the classes in a label map, without background."""
    offset = 1 if output.multi_label or len(output.classes) == 1 else 0
    nothing = 0 if offset else output.background
    labels = [int(label) for label in np.unique(labels_hw) if label != nothing]
    names = output.classes
    return [
        (label, names[label - offset] if label - offset < len(names) else str(label), labels_hw == label)
        for label in labels
    ]


def _drawn(scored: Scored, masks: list[tuple[NDArray[np.bool_], Color]]) -> NDArray[np.uint8]:
    """A thumbnail; pictures are stretched for display where they are dark or deep."""
    picture_hwc = displayed(scored.part_hwc, "rgb")
    return thumbnail(picture_hwc, SIDE_PX, masks)
