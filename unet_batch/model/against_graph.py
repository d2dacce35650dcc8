"""Checks a contract against the operators of its file: the meaning of the values, and the size of the output.

Works on graphs and resolved contracts. Opens no session.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

from unet_batch.errors import ModelRefused
from unet_batch.model import graph
from unet_batch.model.margin import lost_row
from unet_batch.model.meaning import contradictions, meaning
from unet_batch.model.model import Model
from unet_batch.model.shapes import InferredTensor, shapes
from unet_batch.model.tile_size import AXES, UNKNOWN_MULTIPLE, Size, unplaceable

if TYPE_CHECKING:
    from onnx import ModelProto

PROBES = (4, 7)
"""Tile sizes to try for an open size, in multiples of `UNKNOWN_MULTIPLE`."""


def against_graph(model: Model, data: bytes, uri: str, declared: Size) -> list[str]:
    """Contradictions between the file's operators and the contract; empty if the file cannot be parsed here.

    data, uri: the file. declared: size of the output, as far as the file declares it.
    """
    try:
        proto = graph.read(data, uri)
    except ModelRefused:
        return []
    problems = contradictions(meaning(proto, model.output_name), model.contract.output, model.output_layout)
    if model.contract.output.classifies:
        return problems
    spec, margin = model.contract.input, model.contract.output.margin
    step = math.lcm(spec.multiple, UNKNOWN_MULTIPLE)
    # Two sizes: an output that is smaller by a border may by chance be half of the tile at one size, not at both.
    sides = [spec.side(n * step + 2 * margin) for n in PROBES]
    tiles = [model.tile_hw] if model.tile_hw else [(side, side) for side in sides]
    found = (_misplaced(proto, model, tile_hw) for tile_hw in tiles if margin or None in declared)
    return [*problems, *islice(filter(None, found), 1)]


def _misplaced(proto: ModelProto, model: Model, tile_hw: tuple[int, int]) -> str | None:
    """Why the place of the output's pixels in a tile is unknown, by shape inference."""
    spec, batch, margin = model.contract.input, model.batch or 1, model.contract.output.margin
    dims = (batch, *tile_hw, spec.channels) if spec.layout == "nhwc" else (batch, spec.channels, *tile_hw)
    try:
        sizes = shapes(proto, {model.input_name: dims})
    except ModelRefused:
        return None
    if margin and (lost := lost_row(proto, sizes)):
        return (
            f"with a tile of {tile_hw[0]}x{tile_hw[1]} {lost}, so the place of its output is unknown: correct "
            "input.multiple and input.remainder, or export the model with another size"
        )
    return unplaceable(tile_hw, _returned(model, sizes), margin)


def _returned(model: Model, sizes: Mapping[str, InferredTensor]) -> Size:
    """The size of the output; None if unknown."""
    found, axes = sizes.get(model.output_name), AXES[model.output_layout]
    if found is None or found.dims is None or len(found.dims) != len(axes):
        return None, None
    return found.dims[axes["height"]], found.dims[axes["width"]]


def proven(model: Model, data: bytes) -> bool:
    """Whether the graph alone proves the contract's activation; logits are always proven."""
    if model.contract.output.activation == "logits":
        return True
    try:
        found = meaning(graph.read(data, "the model"), model.output_name)
    except ModelRefused:
        return False
    said, (low, high) = model.contract.output.activation, found.bounds
    if said == "labels":
        return False  # an ArgMax may be over more classes than the contract has
    return low >= 0 and high <= 1 and (said != "masks" or found.decided)
