"""Checks a contract against the operators of its file: the meaning of the values, and the size of the output.

Works on graphs and resolved contracts. Opens no session.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

from unet_batch.errors import ModelRefused
from unet_batch.model import graph
from unet_batch.model.meaning import contradictions, meaning
from unet_batch.model.model import Model
from unet_batch.model.shapes import shapes
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
    step = math.lcm(model.contract.input.multiple, UNKNOWN_MULTIPLE)
    # Two sizes: an output that is smaller by a border may by chance be half of the tile at one size, not at both.
    tiles = [model.tile_hw] if model.tile_hw else [(n * step, n * step) for n in PROBES]
    found = (unplaceable(tile_hw, _returned(proto, model, tile_hw)) for tile_hw in tiles if None in declared)
    return [*problems, *islice(filter(None, found), 1)]


def _returned(proto: ModelProto, model: Model, tile_hw: tuple[int, int]) -> Size:
    """The size of the output for a tile, by shape inference; None if unknown."""
    spec, batch = model.contract.input, model.batch or 1
    dims = (batch, *tile_hw, spec.channels) if spec.layout == "nhwc" else (batch, spec.channels, *tile_hw)
    try:
        found = shapes(proto, {model.input_name: dims}).get(model.output_name)
    except ModelRefused:
        return None, None
    axes = AXES[model.output_layout]
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
