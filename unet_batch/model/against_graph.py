"""A contract held against the operators of its file: what the numbers are, and where its pixels lie.

Knows graphs and resolved contracts. Opens no session.
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
"""Sizes of tile that an open size is tried with, in steps of `UNKNOWN_MULTIPLE`."""


def against_graph(model: Model, data: bytes, uri: str, declared: Size) -> list[str]:
    """What the file's own operators say against the contract; nothing where they cannot be read here.

    data, uri: the file. declared: size of the output, as far as the file declares it.
    """
    try:
        proto = graph.read(data, uri)
    except ModelRefused:
        return []
    problems = contradictions(meaning(proto, model.output_name), model.contract.output, model.output_layout)
    step = math.lcm(model.contract.input.multiple, UNKNOWN_MULTIPLE)
    # An output that is smaller by a border is half of its tile at one size by chance, and at the next one it is not.
    tiles = [model.tile_hw] if model.tile_hw else [(n * step, n * step) for n in PROBES]
    found = (unplaceable(tile_hw, _returned(proto, model, tile_hw)) for tile_hw in tiles if None in declared)
    return [*problems, *islice(filter(None, found), 1)]


def _returned(proto: ModelProto, model: Model, tile_hw: tuple[int, int]) -> Size:
    """The size of the output for a tile, by shape inference; None where that does not know it."""
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
    """Whether the graph alone says that the output is what the contract calls it; logits may be anything."""
    if model.contract.output.activation == "logits":
        return True
    try:
        found = meaning(graph.read(data, "the model"), model.output_name)
    except ModelRefused:
        return False
    said, (low, high) = model.contract.output.activation, found.bounds
    if said == "labels":
        return False  # an ArgMax may be over more classes than the contract names
    return low >= 0 and high <= 1 and (said != "masks" or found.decided)
