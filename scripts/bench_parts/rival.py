"""What the rivals share: the size they score at, a session, and masks encoded by pycocotools.

Needs NumPy, ONNX Runtime and pycocotools only, because it runs in two environments. Knows no engine, nor unet_batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from pycocotools import mask as coco

SIDE_PX = 256
BATCH = 16


class Segmenter:
    """A session that scores tiles and encodes their masks."""

    def __init__(self, model: str, provider: str, *, threads: int) -> None:
        """threads: of the session; 0 leaves it to ONNX Runtime, which takes one for every core of the machine."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(model, options, providers=[provider])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, tiles_nchw: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        """Area in pixels and COCO RLE of every class but 0: one column of each per class."""
        (logits_nkhw,) = self._session.run(None, {self._input: np.ascontiguousarray(tiles_nchw)})
        labels_nhw = logits_nkhw.argmax(axis=1)
        columns: dict[str, npt.NDArray[Any]] = {}
        for k in range(1, logits_nkhw.shape[1]):
            masks_hwn = np.asfortranarray((labels_nhw == k).astype(np.uint8).transpose(1, 2, 0))
            columns[f"area_{k}"] = masks_hwn.sum(axis=(0, 1), dtype=np.int64)
            columns[f"rle_{k}"] = np.array([mask["counts"].decode() for mask in coco.encode(masks_hwn)], dtype=object)
        return columns


def tiles(pictures_nhwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [0, 1]."""
    return pictures_nhwc.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def classes(model: Path) -> int:
    """How many channels the model's output has."""
    (output,) = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_outputs()
    return int(output.shape[1])


def first_photos(photos: Path, images: int) -> list[str]:
    """Paths of the first pictures of a folder, which holds nothing else."""
    return [str(path) for path in sorted(photos.resolve().iterdir())[:images]]
