"""A model's file with its declarations, and the model that results from file and contract.

Axes of an open size keep their symbols here; only numbers are compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unet_batch.contract import Contract
from unet_batch.model.tile_size import AXES

Layout = Literal["nchw", "nhwc", "nhw", "nk"]
Shape = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output as declared in the file."""

    name: str
    dtype: str
    """NumPy's name of the type, or ONNX's if NumPy has none."""
    shape: Shape
    """Per axis a number, a symbol, or None for an unnamed open axis; () if the file declares no shape."""

    def fixed(self, axis: str, layout: str) -> int | None:
        """The size of an axis if the file fixes it, else None (a declared 0 or -1 fixes nothing)."""
        place = AXES[layout].get(axis)
        size = self.shape[place] if place is not None and place < len(self.shape) else None
        return size if isinstance(size, int) and size > 0 else None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An ONNX file and its declarations."""

    data: bytes
    sha256: str
    uri: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """A file and its contract after the check, with all values that the file decides."""

    sha256: str
    contract: Contract
    input_name: str
    output_name: str
    tile_hw: tuple[int, int] | None
    """Fixed size of a tile; None: any multiple of `contract.input.multiple`."""
    batch: int | None
    """Fixed batch axis; None: any."""
    output_layout: Layout

    @property
    def planes(self) -> int:
        """K: channels of the output; 1 for labels."""
        return 1 if self.contract.output.activation == "labels" else len(self.contract.output.classes)

    def to_json(self) -> bytes:
        fields = {**{name: getattr(self, name) for name in self.__slots__}, "contract": self.contract.for_digests()}
        return json.dumps(fields, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> Model:
        fields: dict[str, Any] = json.loads(text)
        fields["contract"] = Contract.model_validate(fields["contract"])
        fields["tile_hw"] = tuple(fields["tile_hw"]) if fields["tile_hw"] else None
        return Model(**fields)
