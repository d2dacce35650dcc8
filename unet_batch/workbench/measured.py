"""What a graph makes of one tile: the sizes of its tensors, its cost, its multiple, and the margin of its output.

By shape inference; a session gives sizes that are computed inside the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import ModelRefused, ShapeMismatch, UnetBatchError
from unet_batch.model.margin import Sides, lost_row, unpadded_sides
from unet_batch.model.model import ModelFile
from unet_batch.model.shapes import InferredTensor, shapes, unknowable, with_outputs
from unet_batch.model.tile_size import margin_of
from unet_batch.session.plain_session import PlainSession
from unet_batch.workbench.cost import Cost, cost
from unet_batch.workbench.multiple import multiple_hw, output_stride

if TYPE_CHECKING:
    from onnx import ModelProto

DEFAULT_SIDE = 256
"""Side of the tile for the figures if file, contract and caller leave it open; rounded up to the multiple."""


@dataclass(frozen=True, slots=True)
class Measured:
    tile_hw: tuple[int, int]
    multiple_hw: tuple[int, int] | None
    cost: Cost
    output_dims: tuple[int, ...]
    """() if unknown."""
    output_stride: int | None
    """Rows of the input in one row of the output, by its layers; None if unknown."""
    unpadded: Sides | None = None
    """The margin, and the sides of tiles, of a network with unpadded convolutions."""
    lost: str | None = None
    """Why the output of a tile of this size has no known place."""

    def output_hw(self, layout: str) -> tuple[int, int] | None:
        """Size of the output; None if unknown."""
        dims = self.output_dims
        if len(dims) not in (3, 4):
            return None
        return (dims[1], dims[2]) if layout == "nhwc" or len(dims) == 3 else (dims[2], dims[3])


def measure(
    model: ModelProto, file: ModelFile, layout: str, tile_hw: tuple[int, int] | None, session: PlainSession | None
) -> Measured | None:
    """Multiple and cost at one tile; None for a model whose first input is not an image. Raises ModelRefused."""
    if not takes_pictures(file):
        return None
    source = file.inputs[0]
    fixed = source.fixed("height", layout), source.fixed("width", layout)
    if tile_hw is not None and any(f not in (None, n) for f, n in zip(fixed, tile_hw, strict=True)):
        raise ShapeMismatch(f"{file.uri} fixes its tiles at {fixed[0]}x{fixed[1]}: leave the tile's size out")
    wanted = tile_hw or (fixed[0] or DEFAULT_SIDE, fixed[1] or DEFAULT_SIDE)
    measured = _at(model, file, layout, wanted, session)
    multiple = measured.multiple_hw
    if tile_hw is None and multiple is not None:
        rounded = tuple(f or math.ceil(n / m) * m for f, n, m in zip(fixed, wanted, multiple, strict=True))
        if rounded != wanted:
            measured = _at(model, file, layout, (rounded[0], rounded[1]), session)
    return _with_margin(measured, model, file, layout, session, sought=tile_hw is None and fixed == (None, None))


def _with_margin(
    measured: Measured,
    model: ModelProto,
    file: ModelFile,
    layout: str,
    session: PlainSession | None,
    *,
    sought: bool,
) -> Measured:
    """The same with the margin of its output, if that is smaller than its tile and no smaller picture of it.

    sought: whether the tile may have another size; then it gets one with which no level loses a row.
    """
    returned, multiple = measured.output_hw(layout), measured.multiple_hw
    if multiple is None or returned == measured.tile_hw or measured.output_stride != 1:
        return measured
    if not sought:
        margin = margin_of(measured.tile_hw, returned) if returned is not None else None
        rows = measured.tile_hw[0] % math.lcm(*multiple), measured.tile_hw[1] % math.lcm(*multiple)
        known = bool(margin) and rows[0] == rows[1] and measured.lost is None
        return replace(measured, unpadded=Sides(math.lcm(*multiple), rows[0], margin or 0)) if known else measured

    def missing(side: int) -> int | None:
        try:
            # Where the first size fails, others are tried without a run: most of them fail too.
            found = _at(model, file, layout, (side, side), session if returned else None).output_hw(layout)
        except ModelRefused:
            return None
        return side - found[0] if found is not None and found[0] == found[1] else None

    sides = unpadded_sides(missing, math.lcm(*multiple), least=max(measured.tile_hw))
    if sides is None:
        return measured
    side = max(measured.tile_hw) + (sides.remainder - max(measured.tile_hw)) % sides.multiple
    return replace(_at(model, file, layout, (side, side), session), unpadded=sides)


def takes_pictures(file: ModelFile) -> bool:
    """Whether the first input has four axes, or no declared shape."""
    return bool(file.inputs) and len(file.inputs[0].shape) in (0, 4)


def _at(
    model: ModelProto, file: ModelFile, layout: str, tile_hw: tuple[int, int], session: PlainSession | None
) -> Measured:
    source, others = file.inputs[0], file.inputs[1:]
    batch = source.fixed("batch", layout) or 1
    channels = source.fixed("channels", layout) or 3
    dims = (batch, *tile_hw, channels) if layout == "nhwc" else (batch, channels, *tile_hw)
    feed = {t.name: tuple(d if isinstance(d, int) and d > 0 else 1 for d in t.shape) for t in others}
    feed[source.name] = dims
    sizes = shapes(model, feed)
    # For sizes that are computed inside the graph and that inference cannot know, one run on zeros gives them.
    hidden = unknowable(model)
    if session is not None and hidden and any(size.known is None for size in sizes.values()):
        sizes = shapes(model, feed, _computed(model, file, feed, hidden))
    found = cost(model, sizes)
    return Measured(
        tile_hw=tile_hw,
        multiple_hw=multiple_hw(model, sizes),
        cost=Cost(found.multiply_adds // batch, found.uncounted, found.peak_bytes // batch, found.unsized),
        output_dims=_output_dims(file, sizes),
        output_stride=output_stride(model, sizes, file.outputs[0].name if file.outputs else ""),
        lost=lost_row(model, sizes),
    )


def _computed(
    model: ModelProto, file: ModelFile, feed: Mapping[str, tuple[int, ...]], names: list[str]
) -> dict[str, Any]:
    types = {tensor.name: tensor.dtype for tensor in file.inputs}
    try:
        session = PlainSession(with_outputs(model, names))
        return session.run({name: np.zeros(dims, types[name]) for name, dims in feed.items()}, names)
    except UnetBatchError:
        return {}


def _output_dims(file: ModelFile, sizes: Mapping[str, InferredTensor]) -> tuple[int, ...]:
    name = file.outputs[0].name if file.outputs else ""
    return (sizes[name].known if name in sizes else None) or ()
