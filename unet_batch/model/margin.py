"""What unpadded convolutions take from a tile: the margin of the output, and sides with which no row is lost.

Works on graphs and on the sizes of tensors, as `shapes` found them. Opens no session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unet_batch.model.graph import attribute
from unet_batch.model.shapes import InferredTensor

if TYPE_CHECKING:
    from onnx import ModelProto

_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})


@dataclass(frozen=True, slots=True)
class Sides:
    """The sides of the tiles of a network with unpadded convolutions, as the contract's fields say them."""

    multiple: int
    remainder: int
    margin: int


def unpadded_sides(missing: Callable[[int], int | None], multiple: int, *, least: int) -> Sides | None:
    """The sides with which the output is smaller by the same smallest margin; None if there is no margin.

    missing: rows of a square tile of this side that its output lacks; None if unknown. multiple: of the network's
    levels. least: the smallest side to try. With other sides a level has an odd size, and its last row is lost.
    """
    found = {side: rows for side in range(least, least + multiple) if (rows := missing(side)) is not None}
    side = min(found, key=lambda side: found[side], default=None)
    if side is None or found[side] < 2 or found[side] % 2:
        return None
    return Sides(multiple, side % multiple, found[side] // 2)


def lost_row(model: ModelProto, sizes: Mapping[str, InferredTensor]) -> str | None:
    """A phrase about a level of odd size, whose last row is lost; None if there is none.

    Only unpadded pooling whose windows do not overlap is looked at: it is what halves a U-Net.
    """
    for node in model.graph.node:
        if node.op_type not in _POOLS or any(attribute(node, "pads", ())):
            continue
        windows, strides = attribute(node, "kernel_shape", ()), attribute(node, "strides", ())
        came = sizes[node.input[0]].known if node.input[0] in sizes else None
        if came is None or len(came) != 4 or tuple(windows) != tuple(strides):
            continue
        if any(side % stride for side, stride in zip(came[2:], strides, strict=True)):
            return f"{node.op_type} {node.name or node.output[0]} loses a row or column of {came[2]}x{came[3]}"
    return None
