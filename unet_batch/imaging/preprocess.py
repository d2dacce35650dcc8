"""From a decoded picture to the model's pixels: `fit` resizes in the source dtype, `normalize` runs beside the session.

Uses the contract's input; independent of decoders, tiles and sessions.
Legend: H, W pixels; C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import CtWindow, Divide, MeanStd, ModelInput, Percentile, Raw, Scale, ZScore
from unet_batch.errors import ContractError, ImageError, Reason
from unet_batch.imaging.resize import resize

LARGEST = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
"""Divisor of `unit` and `mean_std` if only the dtype of a source is known. A decoded page has the largest value of the
bit depth that its file declares."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and offsets from the source picture to the fitted picture, for padding and for the way back. In pixels."""

    source_hw: tuple[int, int]
    """Oriented source; larger than the decoded picture if a JPEG was decoded at reduced scale."""
    resized_hw: tuple[int, int]
    """Size of the content in the fitted picture."""
    top: int
    """First row of the content in the fitted picture."""
    left: int
    """First column of the content in the fitted picture."""
    fitted_hw: tuple[int, int]
    """Size of the content with its padding: the part of the picture that has an output."""
    margin: int = 0
    """Width of the border around the fitted picture that the model reads and that has no output."""
    cut: tuple[int, int, int, int] | None = None
    """Where `input.crop` cut the source out of the whole image: top, left, and the whole image's height and width."""

    @property
    def padded_hw(self) -> tuple[int, int]:
        """Size of the fitted picture with its border: of the result of `normalize`."""
        return self.fitted_hw[0] + 2 * self.margin, self.fitted_hw[1] + 2 * self.margin

    @property
    def content(self) -> tuple[slice, slice]:
        """Rows and columns of the content: `padded_hwc[geometry.content]` is the picture without padding and border."""
        (height, width), top, left = self.resized_hw, self.top + self.margin, self.left + self.margin
        return slice(top, top + height), slice(left, left + width)


def whole(size_hw: Sequence[int]) -> Geometry:
    """The geometry of a picture that is neither resized nor padded."""
    height, width = size_hw
    return Geometry((height, width), (height, width), 0, 0, (height, width))


def fit(
    image_hwc: NDArray[Any],
    spec: ModelInput,
    *,
    tile_hw: tuple[int, int] | None,
    source_hw: tuple[int, int],
    margin: int = 0,
) -> tuple[NDArray[Any], Geometry]:
    """The picture resized as the contract says, in its own dtype, and its place in the result of `normalize`.

    image_hwc: uint8, uint16 or float32 (H, W, C); returned unchanged if it needs no resize. Nothing is padded here.
    tile_hw: size of one tile; None if the model takes any size: `spec.takes` is then true of the result.
    source_hw: oriented size of the source; scales refer to it.
    margin: `output.margin`. Every fit then makes the size of the output, which is smaller than a tile, and the border
    is added around it.
    letterbox: Ultralytics' rule. tile: padded on all sides, the smaller half first (MONAI); with a margin at the right
    and bottom, so that the output does not depend on the size of tiles. pad: right and bottom.
    With `spec.crop`, the source is the box that it leaves, and the geometry says where it was (`crop.on_whole_image`).
    Raises ImageError if this picture does not fit, ContractError if no picture can fit.
    """
    if image_hwc.dtype.name not in LARGEST:
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"pixels are {image_hwc.dtype}, not uint8, uint16 or float32")
    if image_hwc.ndim != 3 or image_hwc.shape[2] != spec.channels:
        shape = " x ".join(map(str, image_hwc.shape))
        message = f"pixels are {shape}, the model takes {spec.channels} channel(s)"
        raise ImageError(Reason.IMAGE_CHANNELS_MISMATCH, message)
    height, width = image_hwc.shape[:2]
    if not height or not width:
        raise ImageError(Reason.IMAGE_SIZE_MISMATCH, f"the picture of {height} x {width} has no pixels")
    cut = None
    if spec.crop == "nonzero" and (box := _nonzero_box(image_hwc)) is not None:
        cut = box[0].start, box[1].start, height, width
        image_hwc = image_hwc[box]
        height, width = source_hw = image_hwc.shape[:2]
    geometry = replace(_geometry((height, width), spec, tile_hw, source_hw, margin), cut=cut)
    if geometry.fitted_hw != geometry.resized_hw and spec.padding == "refuse":
        sizes = [f"{height} x {width}" for height, width in (geometry.resized_hw, geometry.fitted_hw)]
        message = f"the picture is {sizes[0]} and would be padded to {sizes[1]}, but input.padding is refuse"
        raise ImageError(Reason.IMAGE_SIZE_MISMATCH, message)
    return resize(image_hwc, geometry.resized_hw, spec.kernel), geometry


def normalize(
    content_hwc: NDArray[Any], geometry: Geometry, spec: ModelInput, *, largest: float | None
) -> NDArray[Any]:
    """The fitted picture with its border, normalised and padded: (H, W, C) of `spec.dtype`, C-contiguous.

    content_hwc: uint8, uint16 or float32, as `fit` returns it. largest: largest value of the bit depth that the source
    declares, the divisor of `unit` and `mean_std`; None if it declares none.
    Statistics (percentile, zscore) are those of the content. Padding is added after normalisation, as in MONAI and
    nnU-Net, except constants in source units. Arithmetic is float32, within 1e-6 of float64. The result may share
    memory with `content_hwc` if nothing changes.
    Raises ImageError if the model cannot take the source, ContractError for impossible contracts.
    """
    if spec.source_max is not None and largest != spec.source_max:
        declared = "no largest value" if largest is None else f"a largest value of {largest:g}"
        message = f"the source declares {declared}, the model divides by {spec.source_max:g} (input.source_max)"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, message)
    if spec.padding == "constant" and spec.pad_units == "source":
        padded_hwc = _padded(content_hwc, geometry, spec)
        normal = _as_input(padded_hwc, padded_hwc[geometry.content], spec, largest)
    else:
        normal = _padded(_as_input(content_hwc, content_hwc, spec, largest), geometry, spec)
    return np.ascontiguousarray(normal)


def _nonzero_box(image_hwc: NDArray[Any]) -> tuple[slice, slice] | None:
    """Rows and columns of the box around all pixels that are not 0 in every channel; None if nothing is to be cut."""
    found_hw = (image_hwc != 0).any(axis=2)
    rows, columns = np.flatnonzero(found_hw.any(axis=1)), np.flatnonzero(found_hw.any(axis=0))
    if not rows.size or (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == found_hw.shape:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def source_value(spec: ModelInput, dtype: str) -> int | None:
    """The source value, the same in every channel, that normalisation turns into `spec.pad_value`, within 1e-6.

    dtype: uint8 or uint16. None if there is no such value: padding before normalisation then cannot replace it.
    """
    values = np.arange(int(LARGEST[dtype]) + 1, dtype=dtype)[None, :, None].repeat(spec.channels, axis=2)
    normal = _normalized(values, values, spec, LARGEST[dtype])[0]
    equal = np.flatnonzero((np.abs(normal - spec.pad_value) <= 1e-6).all(axis=1))
    return int(equal[0]) if equal.size else None


def divisor(spec: ModelInput, largest: float | None) -> float | None:
    """The divisor of `unit` and `mean_std` for a source; None for other rules, and if it is not defined."""
    rule = spec.normalize
    return (rule.max or largest) if isinstance(rule, Divide | MeanStd) else None


def _as_input(
    image_hwc: NDArray[Any], content_hwc: NDArray[Any], spec: ModelInput, largest: float | None
) -> NDArray[Any]:
    """All pixels of an image, normalised, in the model's dtype; statistics are those of content_hwc."""
    if spec.dtype in ("uint8", "uint16"):
        if not isinstance(spec.normalize, Raw):
            kind = spec.normalize.kind
            raise ContractError(f"input.dtype {spec.dtype} cannot hold normalize {kind}: write kind: none")
        if image_hwc.dtype.name != spec.dtype:
            message = f"pixels are {image_hwc.dtype}, the model takes {spec.dtype}"
            raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, message)
        return image_hwc
    normal = _normalized(np.ascontiguousarray(image_hwc), content_hwc, spec, largest)
    if spec.dtype == "float32":
        return normal
    with np.errstate(over="ignore"):
        half = normal.astype(np.float16)
    if not np.isfinite(half).all():
        raise ImageError(Reason.IMAGE_NON_FINITE, "normalised pixels do not fit into float16 (they reach 65520)")
    return half


def _geometry(
    image_hw: tuple[int, int],
    spec: ModelInput,
    tile_hw: tuple[int, int] | None,
    source_hw: tuple[int, int],
    margin: int,
) -> Geometry:
    """Sizes and offsets for this size of picture."""
    if spec.fit in ("tile", "pad", "none"):
        output_hw = None if tile_hw is None else (tile_hw[0] - 2 * margin, tile_hw[1] - 2 * margin)
        fitted_hw = (
            _enough(image_hw[0], spec, output_hw and output_hw[0], margin),
            _enough(image_hw[1], spec, output_hw and output_hw[1], margin),
        )
        if spec.fit == "none" and image_hw != (output_hw or fitted_hw):
            wanted = f"{output_hw[0]} x {output_hw[1]}" if output_hw else spec.sides
            beyond = f" without the border of {margin}" if margin else ""
            message = (
                f"the picture is {image_hw[0]} x {image_hw[1]}, the model takes {wanted}{beyond}: choose another fit"
            )
            raise ImageError(Reason.IMAGE_SIZE_MISMATCH, message)
        centred = spec.fit == "tile" and not margin
        top, left = ((f - n) // 2 if centred else 0 for f, n in zip(fitted_hw, image_hw, strict=True))
        return Geometry(source_hw, image_hw, top, left, fitted_hw, margin)
    target_hw = _target(spec, tile_hw, margin)
    if spec.fit == "stretch":
        return Geometry(source_hw, target_hw, 0, 0, target_hw, margin)
    ratio = min(target_hw[0] / source_hw[0], target_hw[1] / source_hw[1])
    ratio = ratio if spec.scale_up else min(ratio, 1.0)
    height, width = max(round(source_hw[0] * ratio), 1), max(round(source_hw[1] * ratio), 1)
    # Ultralytics: the smaller half of an odd padding is above and to the left.
    top, left = round((target_hw[0] - height) / 2 - 0.1), round((target_hw[1] - width) / 2 - 0.1)
    return Geometry(source_hw, (height, width), top, left, target_hw, margin)


def _enough(length: int, spec: ModelInput, output: int | None, margin: int) -> int:
    """The size of the fitted picture along an axis, at least `length`.

    output: rows or columns of the output of a tile of fixed size. With a margin, all tiles then start at a multiple of
    `spec.multiple`, so that a tile's output equals that of the whole picture.
    """
    if output is None:
        return spec.side(length + 2 * margin) - 2 * margin
    if not margin:
        multiple = spec.multiple if spec.fit == "pad" else 1
        return max(-(-length // multiple) * multiple, output)
    step = spec.multiple if output >= spec.multiple else 1
    return output + max(-(-(length - output) // step), 0) * step


def _target(spec: ModelInput, tile_hw: tuple[int, int] | None, margin: int) -> tuple[int, int]:
    height, width = spec.height or (tile_hw or (0, 0))[0], spec.width or (tile_hw or (0, 0))[1]
    size = f"input.height and width ({height} x {width})"
    if not height or not width:
        raise ContractError(f"fit: {spec.fit} needs a size: write input.height and input.width")
    if tile_hw is not None and (height < tile_hw[0] or width < tile_hw[1]):
        raise ContractError(f"{size} are smaller than a tile, {tile_hw[0]} x {tile_hw[1]}: enlarge them")
    if tile_hw is None and not spec.takes((height, width)):
        raise ContractError(f"{size} must each be {spec.sides} (input.multiple, input.remainder): round them up")
    return height - 2 * margin, width - 2 * margin


def _padded(image_hwc: NDArray[Any], geometry: Geometry, spec: ModelInput) -> NDArray[Any]:
    """The picture with its padding and border; the same array if it needs none."""
    (height, width), (full_height, full_width) = geometry.resized_hw, geometry.padded_hw
    if (height, width) == (full_height, full_width):
        return image_hwc
    if spec.padding == "constant":
        fitted = np.full(
            (full_height, full_width, image_hwc.shape[2]), _padding(spec, image_hwc.dtype), image_hwc.dtype
        )
        fitted[geometry.content] = image_hwc
        return fitted
    above, left = geometry.top + geometry.margin, geometry.left + geometry.margin
    sides = ((above, full_height - height - above), (left, full_width - width - left), (0, 0))
    return np.pad(image_hwc, sides, mode="reflect" if spec.padding == "reflect" else "edge")


def _padding(spec: ModelInput, dtype: np.dtype[Any]) -> float:
    value = spec.pad_value
    if dtype.kind == "u" and not (value.is_integer() and 0 <= value <= np.iinfo(dtype).max):
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"pixels are {dtype} and cannot hold pad_value {value:g}")
    return value


def _normalized(
    image_hwc: NDArray[Any], content_hwc: NDArray[Any], spec: ModelInput, largest: float | None
) -> NDArray[np.float32]:
    rule = spec.normalize
    if isinstance(rule, Raw):
        return image_hwc.astype(np.float32, copy=False)
    top = divisor(spec, largest) or 0.0
    if isinstance(rule, Divide | MeanStd) and not top:
        message = f"signed integers have no largest value that normalize {rule.kind} divides by: write normalize.max"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, message)
    if isinstance(rule, Divide):
        return _affine(image_hwc, factor=1 / top)
    if isinstance(rule, Scale):
        return _affine(image_hwc, factor=rule.scale, add=rule.offset)
    if isinstance(rule, MeanStd):
        mean, std = np.array(rule.mean), np.array(rule.std)
        return _affine(image_hwc, factor=1 / (top * std), add=-mean / std)
    if isinstance(rule, CtWindow):
        gain = (rule.high - rule.low) / rule.width
        return _clip(_affine(image_hwc, shift=rule.center - rule.width / 2, factor=gain, add=rule.low), rule)
    if isinstance(rule, Percentile):
        over = (0, 1) if rule.per_channel else None
        lowest, highest = np.percentile(content_hwc, (rule.lower, rule.upper), axis=over)
        flat = highest <= lowest  # a constant picture is shifted and not scaled, as in MONAI
        factor = np.where(flat, 1.0, (rule.high - rule.low) / np.where(flat, 1.0, highest - lowest))
        return _clip(_affine(image_hwc, shift=lowest, factor=factor, add=rule.low), rule)
    return _zscore(image_hwc, content_hwc, rule)


def _zscore(fitted_hwc: NDArray[Any], content: NDArray[Any], rule: ZScore) -> NDArray[np.float32]:
    groups = [content[:, :, channel] for channel in range(content.shape[2])] if rule.per_channel else [content]
    mean, std = np.array([_mean_std(group, nonzero=rule.nonzero) for group in groups]).T
    normal = _affine(fitted_hwc, shift=mean, factor=1 / std)
    if rule.nonzero:
        normal[fitted_hwc == 0] = 0
    return normal


def _mean_std(values: NDArray[Any], *, nonzero: bool) -> tuple[float, float]:
    if nonzero:
        values = values[values != 0]
    if not values.size:
        return 0.0, 1.0
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)) or 1.0


def _affine(image_hwc: NDArray[Any], *, shift: Any = 0.0, factor: Any = 1.0, add: Any = 0.0) -> NDArray[np.float32]:
    """(x − shift) · factor + add in float32; each a number, or one per channel. Steps without effect are skipped.

    The shift is a separate step: merged into `add`, a large shift (16-bit windows) would lose digits by cancellation.
    """
    height, width, channels = image_hwc.shape
    rows = image_hwc.reshape(height, width * channels)
    result: NDArray[np.float32] | None = None
    for operation, value, neutral in ((np.subtract, shift, 0), (np.multiply, factor, 1), (np.add, add, 0)):
        if np.all(np.asarray(value) == neutral):
            continue
        operand = _along_row(value, width, channels)
        result = operation(rows if result is None else result, operand, out=result, dtype=np.float32)
    return (rows.astype(np.float32) if result is None else result).reshape(image_hwc.shape)


def _along_row(value: Any, width: int, channels: int) -> NDArray[np.float32]:
    """One number, or a whole row of values, so that NumPy's inner loop covers a row and not three channels."""
    values = np.broadcast_to(np.asarray(value, np.float32), channels)
    return values[:1] if (values == values[0]).all() else np.tile(values, width)


def _clip(normal: NDArray[np.float32], rule: CtWindow | Percentile) -> NDArray[np.float32]:
    return np.clip(normal, min(rule.low, rule.high), max(rule.low, rule.high), out=normal)
