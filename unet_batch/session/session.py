"""The protocol of sessions: scores batches of tiles on the requested provider. Independent of engines and images.

Arrays: N tiles, C channels, K classes, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_batch.errors import ContractError, ShapeMismatch
from unet_batch.model.model import Model
from unet_batch.model.tile_size import unplaceable

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Device:
    """The resources of an actor for its session."""

    threads: int
    """Threads of a session on the CPU, at least 1."""
    gpu_memory_bytes: int | None = None
    """Bytes of GPU memory of this actor; None on the CPU, and if only the share is known."""
    gpu_share: float | None = None
    """This actor's share of the GPU, if its memory is not known; then the driver is asked. None: no limit."""

    def divided(self, sessions: int) -> Device:
        """The resources of each of several sessions in one actor: they run in turn, but all hold memory."""
        memory, share = self.gpu_memory_bytes, self.gpu_share
        return replace(
            self,
            gpu_memory_bytes=None if memory is None else memory // sessions,
            gpu_share=None if share is None else share / sessions,
        )


class Session(Protocol):
    """Runs one model. All sessions, and the fake of the tests, pass `tests/contracts/session_suite.py`."""

    @property
    def provider(self) -> str:
        """The provider that really runs, as in `Provider.label`: `cpu`, `cuda`, `openvino` …"""

    @property
    def device_name(self) -> str:
        """The maker's name of the processor or GPU."""

    @property
    def model(self) -> Model:
        """The model that runs."""

    def run(self, tiles: Array) -> Array:
        """Score a batch of tiles. Thread-safe.

        tiles: (N, H, W, C) of the contract's `input.dtype`, N ≥ 1; cut from the result of `preprocess.normalize`.
        Returns float32 (N, K, h, w), contiguous and owned by the caller; label maps are (N, 1, h, w). h and w are
        smaller than H and W if the model returns smaller masks. A tile for which a packed model reports scores that
        are not finite is NaN everywhere.
        Raises ShapeMismatch, OutOfMemory, SessionBroken, or ModelFailed if the model itself fails.
        """


def warm(session: Session, tile_hw: tuple[int, int], batches: Iterable[int], *, dtype: str | None = None) -> None:
    """Run each batch size once on zeros: the first run of a shape is slow and must not be timed.

    dtype: of the tiles; default: the contract's.
    """
    spec = session.model.contract.input
    for size in batches:
        tiles = np.zeros((size, *tile_hw, spec.channels), dtype or spec.dtype)
        check_placeable(session.model, tiles, session.run(tiles))


def check_tiles(model: Model, tiles: Array) -> None:
    """Raise ShapeMismatch if the model does not take this array as a batch; an empty batch is not allowed."""
    spec = model.contract.input
    if tiles.ndim != 4 or tiles.dtype != np.dtype(spec.dtype) or tiles.shape[3] != spec.channels or not len(tiles):
        raise ShapeMismatch(
            f"the model takes {spec.dtype} tiles of shape (N, H, W, {spec.channels}) with N ≥ 1, "
            f"not {tiles.dtype} of shape {tiles.shape}"
        )
    height, width = tiles.shape[1:3]
    if model.tile_hw not in (None, (height, width)):
        raise ShapeMismatch(f"every tile of this model is {model.tile_hw[0]}x{model.tile_hw[1]}, not {height}x{width}")
    if model.tile_hw is None and not spec.takes((height, width)):
        raise ShapeMismatch(f"tiles must be {spec.sides} on each side, not {height}x{width}: pad them")
    if model.batch not in (None, len(tiles)):
        raise ShapeMismatch(f"the model's batch axis is fixed at {model.batch}, but {len(tiles)} tiles were sent")


def stacked(model: Model, tiles_hwc: Sequence[Array]) -> Array:
    """Tiles of one shape and dtype as a batch (N, H, W, C), in memory with the model's order of axes.

    So `in_model_layout` takes the batch as it is: this is the only copy. Raises MemoryError.
    """
    if model.contract.input.layout == "nhwc":
        return np.stack(tiles_hwc)
    height, width, channels = tiles_hwc[0].shape
    batch_nchw = np.empty((len(tiles_hwc), channels, height, width), tiles_hwc[0].dtype)
    for place_chw, tile_hwc in zip(batch_nchw, tiles_hwc, strict=True):
        place_chw[:] = tile_hwc.transpose(2, 0, 1)
    return batch_nchw.transpose(0, 2, 3, 1)


def in_model_layout(model: Model, tiles: Array) -> Array:
    """The (N, H, W, C) tiles with the model's order of axes, contiguous."""
    return np.ascontiguousarray(
        tiles if model.contract.input.layout == "nhwc" else tiles.transpose(0, 3, 1, 2),
    )


def as_nkhw(model: Model, output: Array, tiles: int) -> Array:
    """float32 (N, K, h, w), contiguous, from an output in the model's layout. Raises ShapeMismatch."""
    rank = {"nhw": 3, "nk": 2}.get(model.output_layout, 4)
    planes = model.planes
    if output.ndim == rank:
        output = {
            "nchw": lambda a: a,
            "nhwc": lambda a: a.transpose(0, 3, 1, 2),
            "nhw": lambda a: a[:, None],
            "nk": lambda a: a[:, :, None, None],
        }[model.output_layout](output)
    if output.ndim != 4 or output.shape[:2] != (tiles, planes):
        raise ShapeMismatch(
            f"output {model.output_name} should be {model.output_layout} with {tiles} tiles and {planes} channel(s), "
            f"but has shape {output.shape}: correct output.layout or output.classes in the contract"
        )
    return np.ascontiguousarray(output, dtype=np.float32)


def mask_nonfinite_tiles(result_nkhw: Array, finite_n: Array) -> Array:
    """Set every tile to NaN whose scores were not finite; labels and masks cannot show it otherwise.

    finite_n: 0 or 1 per tile, the output `finite` of a packed model. Changes `result_nkhw` and returns it.
    """
    result_nkhw[np.asarray(finite_n).reshape(-1)[: len(result_nkhw)] == 0] = np.nan
    return result_nkhw


def check_placeable(model: Model, tiles_nhwc: Array, output_nkhw: Array) -> None:
    """Raise ContractError if the place of the output's pixels in their tiles is unknown (`unplaceable`)."""
    margin, (height, width) = model.contract.output.margin, output_nkhw.shape[2:]
    strange = unplaceable((tiles_nhwc.shape[1], tiles_nhwc.shape[2]), (height, width), margin)
    if strange is not None:
        raise ContractError(strange)


def batch_name(tiles: Array) -> str:
    """The description of a batch in errors."""
    return f"batch of {len(tiles)} tiles of {tiles.shape[1]}x{tiles.shape[2]}"
