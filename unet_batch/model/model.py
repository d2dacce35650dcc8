"""What is known of a model: what its file declares, and what the file and the contract agree on.

Knows no engine and no store. Axes of an open size keep their symbols here; only numbers are compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unet_batch.contract import Contract
from unet_batch.model.tile_size import AXES

Layout = Literal["nchw", "nhwc", "nhw"]
Shape = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output, as the file declares it."""

    name: str
    dtype: str
    """NumPy's name, or ONNX's own text where NumPy has none."""
    shape: Shape
    """A number, a symbol, or None for an unnamed open axis; () where the file declares no shape."""

    def fixed(self, axis: str, layout: str) -> int | None:
        """The size of an axis where the file fixes it (a declared 0 or -1 fixes nothing)."""
        place = AXES[layout].get(axis)
        size = self.shape[place] if place is not None and place < len(self.shape) else None
        return size if isinstance(size, int) and size > 0 else None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An ONNX file that was opened once to learn what it declares."""

    data: bytes
    sha256: str
    uri: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Model:
    """A contract that was held against its file, with everything filled in that the file decides."""

    sha256: str
    contract: Contract
    input_name: str
    output_name: str
    tile_hw: tuple[int, int] | None
    """The size every tile has; None: any multiple of `contract.input.multiple`."""
    batch: int | None
    """Fixed batch axis; None: any."""
    output_layout: Layout

    @property
    def planes(self) -> int:
        """K: channels of the output; 1 for finished labels."""
        return 1 if self.contract.output.activation == "labels" else len(self.contract.output.classes)

    def to_json(self) -> bytes:
        fields = {**{name: getattr(self, name) for name in self.__slots__}, "contract": self.contract.model_dump()}
        return json.dumps(fields, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> Model:
        fields: dict[str, Any] = json.loads(text)
        fields["contract"] = Contract.model_validate(fields["contract"])
        fields["tile_hw"] = tuple(fields["tile_hw"]) if fields["tile_hw"] else None
        return Model(**fields)
