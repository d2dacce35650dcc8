"""What a packed file is called by: the names of its tensors and of its metadata entry."""

from __future__ import annotations

from typing import Literal

PACK_KEY = "unet_batch.pack"
"""Of the metadata entry that holds the reference pictures; a file with it was packed."""
PIXELS, LABELS, FINITE = "pixels", "labels", "finite"
"""The input, the label map, and 0 or 1 for each tile: whether its scores were finite."""

SourceType = Literal["uint8", "uint16"]
