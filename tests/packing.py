"""Helpers of the tests of packing: the two ways from pixels to labels, each run by plain ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from unet_batch.contract import Contract
from unet_batch.imaging.postprocess import Prediction, reduce
from unet_batch.imaging.preprocess import LARGEST, Geometry, normalize
from unet_batch.model.contract import resolve
from unet_batch.model.model import Model
from unet_batch.session.model_files import read_model
from unet_batch.spec import TilingSpec


def resolved(data: bytes, contract: Contract) -> Model:
    return resolve(contract, read_model(data, "m.onnx", None), TilingSpec())


def changed(contract: Contract, *, source: dict | None = None, target: dict | None = None) -> Contract:
    """The contract with other words, checked again."""
    tree = contract.model_dump()
    return Contract.model_validate({"input": tree["input"] | (source or {}), "output": tree["output"] | (target or {})})


def run(data: bytes, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a file, from an ordinary session."""
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def whole(size_hw: tuple[int, int]) -> Geometry:
    return Geometry(size_hw, size_hw, 0, 0, size_hw)


def scores_of(data: bytes, model: Model, pixels: np.ndarray) -> np.ndarray:
    """The unpacked way: `normalize`, then the network. pixels: (N, H, W, C). float32 (N, K, h, w)."""
    spec = model.contract.input
    tiles = np.stack([normalize(one, whole(one.shape[:2]), spec, largest=LARGEST[one.dtype.name]) for one in pixels])
    tiles = tiles if spec.layout == "nhwc" else np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))
    scores = run(data, {model.input_name: tiles})[model.output_name]
    scores = {"nchw": scores, "nhwc": scores.transpose(0, 3, 1, 2) if scores.ndim == 4 else scores}.get(
        model.output_layout, scores[:, None]
    )
    return np.ascontiguousarray(scores, np.float32)


def prediction_of(scores_khw: np.ndarray, model: Model) -> Prediction:
    geometry = whole(scores_khw.shape[1:])
    return reduce(scores_khw, geometry, model.contract.output, rle=True, confidence=False)


def noise(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Pixels of every value, without structure."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
