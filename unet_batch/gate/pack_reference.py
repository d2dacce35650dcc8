"""Reference pictures: six synthetic pictures, and the labels of a network for them, in the metadata of a file.

The gate notices with them that a packed file was changed after it was packed, and `gate/choice.py` that an engine
computes on this machine what it computed where the file was optimised. The pictures are computed from integers only,
so every machine computes the same ones.

Legend: P planes of labels (1, or one per class where classes may overlap), H, W pixels, h, w pixels of the output.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import Contract
from unet_batch.errors import ImageError, ModelRefused, ShapeMismatch
from unet_batch.gate.parity import Tolerance, decide, label_parity
from unet_batch.imaging.preprocess import LARGEST, normalize, whole
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY, find_contract
from unet_batch.model.model import ModelFile
from unet_batch.model.packed import PACK_KEY, SourceType

VERSION = 2
"""Version of the metadata entry `unet_batch.pack`."""
PICTURES = 6
SAMPLED = 64
"""Largest number of rows and of columns of a stored label map; they are evenly spaced."""
MAX_LABEL_BYTES = 256 * SAMPLED**2
"""256 overlapping classes, the most that `pack` accepts."""
MAX_PIXELS = 1 << 28
"""Largest number of values in a batch of reference pictures; the metadata is untrusted."""


def references(
    labels_of: Callable[[NDArray[Any]], NDArray[np.uint8] | None], shape_hwc: tuple[int, int, int], dtype: SourceType
) -> dict[str, Any]:
    """The reference pictures and their labels, for the metadata entry.

    labels_of: returns the network's labels of a picture, (P, h, w); None for NaN or infinity: the picture is left out.
    Raises ModelRefused if every picture is left out.
    """
    kept: list[dict[str, Any]] = []
    for number in range(PICTURES):
        pixels = synthetic(number, shape_hwc, dtype)
        if (labels := labels_of(pixels)) is not None:
            text = base64.b64encode(zlib.compress(sample(labels).tobytes(), 9)).decode()
            kept.append({"number": number, "sha256": digest(pixels), "labels": text})
    if not kept:
        raise ModelRefused("the model returns NaN or infinity for every reference picture: check its precision")
    return {"shape_hwc": shape_hwc, "dtype": dtype, "pictures": kept}


def verify_references(
    data: bytes, uri: str, run: Callable[[NDArray[Any]], NDArray[Any]], tolerance: Tolerance
) -> list[str]:
    """Run the reference pictures of a packed file and compare the labels; returns a sentence for each difference.

    data, uri: the packed file. run: as `Session.run`, for tiles of the size of the reference pictures.
    tolerance: for each picture. Raises ModelRefused for a file without a valid entry, and the errors of `run`.
    """
    metadata = graph.metadata(graph.read(data, uri))
    if PACK_KEY not in metadata or METADATA_KEY not in metadata:
        raise ModelRefused(f"{uri} was not packed: it has no metadata {PACK_KEY}")
    file = ModelFile(data=data, sha256="", uri=uri, inputs=(), outputs=(), metadata=metadata)
    return compare_pictures(metadata[PACK_KEY], find_contract(file, None, uri), uri, run, tolerance)


def compare_pictures(
    text: str, contract: Contract, uri: str, run: Callable[[NDArray[Any]], NDArray[Any]], tolerance: Tolerance
) -> list[str]:
    """Run stored reference pictures and compare the labels; returns a sentence for each difference.

    text: a metadata entry with `references`, `version` and `batch`. Other arguments and errors: as `verify_references`.
    """
    batch, shape_hwc, dtype, pictures = _stored(text, uri)
    problems = []
    for number, sha256, labels in pictures:
        pixels = synthetic(number, shape_hwc, dtype)
        if digest(pixels) != sha256:
            problems.append(f"picture {number}: another version of unet-batch computed other pixels")
            continue
        tile = normalize(pixels, whole(pixels.shape[:2]), contract.input, largest=LARGEST[dtype])[None]
        values_khw = run(np.repeat(tile, batch, axis=0))[0]
        if not np.isfinite(values_khw).all():
            problems.append(f"picture {number}: the model returns NaN or infinity")
            continue
        try:
            found_phw = sample(decide(values_khw, contract.output))
            if len(labels) != found_phw.size:
                problems.append(f"picture {number}: there are {found_phw.size:,} labels, not {len(labels):,}")
                continue
            expected_phw = np.frombuffer(labels, np.uint8).reshape(found_phw.shape)
            parity = label_parity(expected_phw, found_phw, contract.output.classes)
        except (ImageError, ShapeMismatch) as error:
            problems.append(f"picture {number}: {error}")
            continue
        problems += [f"picture {number}: {breach}" for breach in tolerance.breaches(parity)]
    return problems


def sample(labels_phw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At most SAMPLED rows and columns of a label map."""
    step = -(-max(labels_phw.shape[1:]) // SAMPLED)
    return np.ascontiguousarray(labels_phw[:, ::step, ::step])


def _stored(text: str, uri: str) -> tuple[int, tuple[int, int, int], SourceType, list[tuple[int, str, bytes]]]:
    """Batch, size and type of the pictures; and number, SHA-256 and labels of each picture.

    Raises ModelRefused for an entry of another version, and for an entry that `pack` did not write.
    """
    problem = f"its metadata {PACK_KEY} was not written by `model pack`"
    try:
        entry = json.loads(text)
        if entry["version"] != VERSION:
            problem = "it was packed by another version of unet-batch: pack it again from its network"
        else:
            batch, (height, width, channels) = int(entry["batch"]), map(int, entry["shape_hwc"])
            sizes, dtype = (batch, height, width, channels), entry["dtype"]
            pictures = [(int(p["number"]), str(p["sha256"]), _unpacked(p["labels"])) for p in entry["pictures"]]
            within = min(sizes) >= 1 and math.prod(sizes) <= MAX_PIXELS and 1 <= len(pictures) <= PICTURES
            if within and dtype in ("uint8", "uint16"):
                return batch, (height, width, channels), dtype, pictures
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, zlib.error) as error:
        raise ModelRefused(f"{uri}: {problem} ({type(error).__name__} {error})") from error
    raise ModelRefused(f"{uri}: {problem}")


def _unpacked(labels: str) -> bytes:
    """The decompressed labels of a picture, with a limit on their bytes: the text may be a decompression bomb."""
    return zlib.decompressobj().decompress(base64.b64decode(labels, validate=True), MAX_LABEL_BYTES)


def digest(pixels: NDArray[Any]) -> str:
    """SHA-256 over dtype, shape and values of an array."""
    text = f"{pixels.dtype} {pixels.shape} ".encode()
    return hashlib.sha256(text + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def synthetic(number: int, shape_hwc: tuple[int, int, int], dtype: SourceType) -> NDArray[Any]:
    """Picture `number`, (H, W, C): clouds, discs or strokes; from number 3 on with half the brightness."""
    height, width, channels = shape_hwc
    (i, y), (j, x) = np.divmod(np.arange(height)[:, None], 32), np.divmod(np.arange(width)[None], 32)
    cells = (height // 32 + 1, width // 32 + 1)
    draws = _random(cells, seed=number)[i, j]  # places and sizes are the same in every channel
    radius, turned = 4 + draws % 11, draws % 2 == 1
    along, across = np.where(turned, abs(y - 16), abs(x - 16)), np.where(turned, abs(x - 16), abs(y - 16))
    disc, stroke = along**2 + across**2 <= radius**2, (along <= radius) & (across <= 2)
    planes = []
    for channel in range(channels):
        seed = 1000 * number + 100 * channel
        plane = _clouds(height, width, seed)
        if number % 3:
            value = 40 + _random(cells, seed=seed + 10)[i, j] % 216
            plane = np.where(disc if number % 3 == 1 else stroke, value, plane // 2)
        # Channels differ in brightness, so another channel order changes the labels.
        planes.append(plane * (255 - 40 * (channel % 4)) // (255 if number < 3 else 510))
    pixels = np.stack(planes, axis=2)
    return (pixels * 257 if dtype == "uint16" else pixels).astype(dtype)


def _clouds(height: int, width: int, seed: int) -> NDArray[np.int64]:
    """Values 0 to 255: three octaves of random values, interpolated between the corners of their cells."""
    total = np.zeros((height, width), np.int64)
    for octave, (cell, weight) in enumerate(((64, 4), (16, 2), (4, 1))):
        corners = _random((height // cell + 2, width // cell + 2), seed=seed + octave) % 256
        (i, y), (j, x) = np.divmod(np.arange(height)[:, None], cell), np.divmod(np.arange(width)[None], cell)
        upper = corners[i, j] * (cell - x) + corners[i, j + 1] * x
        lower = corners[i + 1, j] * (cell - x) + corners[i + 1, j + 1] * x
        total += (upper * (cell - y) + lower * y) // cell**2 * weight
    return total // 7


def _random(shape: Sequence[int], *, seed: int) -> NDArray[np.int64]:
    """Numbers of 0 to 2^31 − 1: splitmix64 (Steele, Lea and Flood 2014) of a counter."""
    state = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64((seed * 0xD1342543DE82EF95) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return (state >> np.uint64(33)).astype(np.int64).reshape(shape)
