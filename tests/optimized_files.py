"""Files with a recommendation, for tests: small, and without a measurement."""

from __future__ import annotations

import numpy as np
from models import TinyModel, unet_model

from unet_batch.gate.parity import Tolerance
from unet_batch.model.contract import resolve
from unet_batch.model.model import Model
from unet_batch.model.optimized import Recommendation
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import SessionSpec, TilingSpec
from unet_batch.workbench.optimize.optimize import reference_pictures, with_recommendation
from unet_batch.workbench.quantize import QuantizeSpec, quantize

SIDE = 32
ANYTHING = Tolerance(max_flipped=1.0, min_dice=0.0)


def small_unet() -> TinyModel:
    """A U-Net of 32² with one channel and two classes, as the project's archive needs it."""
    return unet_model(SIDE, base=4, levels=1, in_channels=1, classes=2)


def resolved(tiny: TinyModel) -> Model:
    return resolve(tiny.contract, read_model(tiny.data, "the model", None), TilingSpec())


def pictures(count: int) -> list[np.ndarray]:
    """Tiles with a bright band, as the project's archive holds them."""
    random = np.random.default_rng(0)
    tiles = [random.random((SIDE, SIDE, 1)).astype(np.float32) * 0.3 for _ in range(count)]
    for tile in tiles:
        tile[:8] = 1.0
    return tiles


def in_8_bits(tiny: TinyModel) -> bytes:
    """The 8-bit file that holds its fp32 network."""
    spec = QuantizeSpec(float_weights=True, tolerance=ANYTHING)
    return quantize(tiny.data, resolved(tiny), pictures(3), spec).data


def recommending(
    data: bytes, model: Model, *, precision: str = "fp32", engine: str = "onnxruntime", **changes: object
) -> bytes:
    """The file with a recommendation; its reference pictures are those of ONNX Runtime on the CPU."""
    session = open_session(data, model, SessionSpec(), Device(1), precision=precision)  # type: ignore[arg-type]
    fields: dict[str, object] = {
        "provider": "cpu",
        "provider_options": {},
        "threads": 1,
        "ladder": {"1": 0.01, "2": 0.015},
        "speed": 2.0,
        "flipped_share": 0.0,
        "min_dice": 1.0,
        "machine": "a processor",
        "versions": {},
        "source_sha256": "ab" * 32,
        "references": reference_pictures(session, (SIDE, SIDE)),
    }
    found = Recommendation(engine=engine, precision=precision, **{**fields, **changes})  # type: ignore[arg-type]
    return with_recommendation(data, model, found)
