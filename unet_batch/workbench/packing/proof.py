"""The proof of packing: compares the packed file with the network and the NumPy code that it replaces.

Legend: N tiles, C channels, K classes, H, W pixels; P planes of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import ContractError, ImageError, ModelRefused, Reason
from unet_batch.gate.pack_reference import digest
from unet_batch.gate.parity import decide, label_parity
from unet_batch.imaging.preprocess import LARGEST, normalize, whole
from unet_batch.job.cores import cores
from unet_batch.model.model import Model
from unet_batch.model.packed import FINITE, PIXELS, SourceType
from unet_batch.session.plain_session import PlainSession
from unet_batch.session.session import as_nkhw, in_model_layout
from unet_batch.workbench import graph_edit
from unet_batch.workbench.packing.nodes import Nodes, add_input

HALF_FLIPPED = 1e-3
"""Largest share of labels that may differ for a network in fp16 or int8: ONNX Runtime fuses its first and last nodes
differently, which changes the last bits. For fp32 no label may differ."""


class Unpacked:
    """The unpacked network as in a job: NumPy, one CPU session, NumPy."""

    def __init__(self, data: bytes, model: Model) -> None:
        self.model = model
        self._session = PlainSession(data, threads=cores())
        self._known: dict[str, tuple[NDArray[np.float32], int]] = {}

    def run(self, pixels: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
        """Scores (K, h, w) of (H, W, C) source pixels, and the bytes into and out of the session for the tile.

        Results are cached by picture: the references and the proof use the same pictures.
        """
        key = digest(pixels)
        if key not in self._known:
            scores_nkhw, moved = self.run_batch([pixels])
            self._known[key] = scores_nkhw[0], moved
        return self._known[key]

    def run_batch(self, pictures: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float32], int]:
        """The same for several pictures in one batch: (N, K, h, w), and bytes per tile."""
        tiles = _tiles(self.model, pictures)
        output = self._session.run({self.model.input_name: tiles}, [self.model.output_name])[self.model.output_name]
        return as_nkhw(self.model, output, len(tiles)), (tiles.nbytes + output.nbytes) // len(tiles)

    def labels(self, pixels: NDArray[Any]) -> NDArray[np.uint8] | None:
        """Labels (P, h, w); None if a score is NaN or infinite."""
        try:
            return decide(self.run(pixels)[0], self.model.contract.output)
        except ImageError as error:
            if error.reason is not Reason.MODEL_NON_FINITE_OUTPUT:
                raise ContractError(error.message) from error
            return None


def prove(
    packed: bytes, model: Model, unpacked: Unpacked, pictures: Sequence[NDArray[Any]], *, exact: bool
) -> tuple[int, int]:
    """Check a packed file on these pictures; returns the bytes per tile, unpacked and packed.

    model: the packed one. pictures: (H, W, C) source pixels. Checks single tiles, and two in one batch.

    Raises ModelRefused if labels differ (not exact: more than HALF_FLIPPED of them) or a NaN is not detected.
    """
    session = PlainSession(packed, threads=cores())
    problems: list[str] = []
    moved = 0, 0
    for number, pixels in enumerate(pictures):
        scores_khw, before = unpacked.run(pixels)
        result, after = _run(session, model, [pixels])
        moved = before, after
        found = _compare(scores_khw, result, 0, unpacked=unpacked, model=model, exact=exact)
        problems += [f"picture {number}: {problem}" for problem in found]
    if model.batch is None:
        scores_nkhw, _ = unpacked.run_batch(pictures[:2])
        result, _ = _run(session, model, pictures[:2])
        for place, scores_khw in enumerate(scores_nkhw):
            found = _compare(scores_khw, result, place, unpacked=unpacked, model=model, exact=exact)
            problems += [f"tile {place} of a batch: {problem}" for problem in found]
    if problems:
        raise ModelRefused("the packed model gives other labels than the network: " + "; ".join(problems))
    return moved


def prove_input(model: Model, source: SourceType, opset: int, ir_version: int) -> None:
    """Check that the input's nodes equal `normalize` bit by bit, for every value of a source pixel.

    Raises ModelRefused if a value differs.
    """
    spec = model.contract.input
    side = 16 if source == "uint8" else 256
    values = np.arange(side * side, dtype=source).reshape(1, side, side, 1)
    pixels = np.repeat(values, spec.channels, axis=3)
    nodes = Nodes(opset, "input")
    add_input(nodes, spec, source, to="normal")
    data = graph_edit.build(
        nodes.made,
        graph_edit.declare(PIXELS, source, (None, None, None, spec.channels)),
        graph_edit.declare("normal", spec.dtype, (None,) * 4),
        opset=opset,
        ir_version=ir_version,
    )
    try:
        expected = normalize(pixels[0], whole((side, side)), spec, largest=LARGEST[source])[None]
    except ImageError as error:
        raise ModelRefused(f"the model cannot be packed: {error.message}") from error
    found = PlainSession(data).run({PIXELS: pixels})["normal"]
    if not np.array_equal(found, in_model_layout(model, expected)):
        raise ModelRefused("the packed input differs from imaging.preprocess.normalize: this is a bug of unet-batch")


def _tiles(model: Model, pictures: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """A batch for the model; a fixed batch axis is filled with copies of the single picture."""
    spec = model.contract.input
    try:
        largest = LARGEST[pictures[0].dtype.name]
        tiles = np.stack([normalize(one, whole(one.shape[:2]), spec, largest=largest) for one in pictures])
    except ImageError as error:
        raise ModelRefused(f"its normalisation refuses {pictures[0].dtype} pixels: {error.message}") from error
    return in_model_layout(model, np.repeat(tiles, model.batch or 1, axis=0))


def _run(session: PlainSession, model: Model, pictures: Sequence[NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], int]:
    feed = _tiles(model, pictures)
    result = session.run({model.input_name: feed})
    return result, (feed.nbytes + sum(values.nbytes for values in result.values())) // len(feed)


def _compare(
    scores_khw: NDArray[np.float32],
    result: dict[str, NDArray[Any]],
    place: int,
    *,
    unpacked: Unpacked,
    model: Model,
    exact: bool,
) -> list[str]:
    """What is wrong with one tile of a result, a phrase each."""
    output = unpacked.model.contract.output
    finite = bool(np.isfinite(scores_khw).all())
    if FINITE in result and bool(result[FINITE][place]) != finite:
        return ["finite scores are reported as NaN" if finite else "NaN or infinity in the scores is not detected"]
    if not finite:
        return []
    expected_phw = decide(scores_khw, output)
    found = as_nkhw(model, result[model.output_name], len(result[model.output_name]))[place]
    found_phw = found.astype(np.uint8) if FINITE in result else decide(found, output)
    parity = label_parity(expected_phw, found_phw, output.classes)
    if parity.flipped_share > (0 if exact else HALF_FLIPPED):
        return [f"{parity.flipped:,} of {parity.decisions:,} labels differ"]
    return []
