"""Names in a packed file: its tensors and its metadata entry."""

from __future__ import annotations

from typing import Literal

PACK_KEY = "unet_batch.pack"
"""Metadata entry with the reference pictures; every packed file has it."""
PIXELS, LABELS, FINITE = "pixels", "labels", "finite"
"""Names of the input, of the label map, and of the output that is 1 for each tile with finite scores, else 0."""

SourceType = Literal["uint8", "uint16"]
