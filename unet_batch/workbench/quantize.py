"""Quantises a model to 8 or 16 bits within a tolerance of its float original.

Calibrates, measures, and returns the layers with the largest errors to fp32. Sessions run on the CPU.

Legend: N tiles, C channels, H, W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import JobError, ModelRefused
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.gate.resample import breaches_of, total
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY
from unet_batch.model.model import Model
from unet_batch.session.machine import int8_instruction
from unet_batch.session.plain_session import PlainSession
from unet_batch.session.session import as_nkhw, check_tiles, in_model_layout
from unet_batch.workbench import graph_edit
from unet_batch.workbench.doctor import machine
from unet_batch.workbench.export.contract import contract_text
from unet_batch.workbench.quantize_graph import FloatGraph

QUANTIZE_KEY = "unet_batch.quantize"
"""Metadata entry of the new file: settings, and the original file."""
VERSION = 1
"""Version of that entry."""
HELD_OUT = 3
"""Every third tile is not used for calibration, but to measure the result."""
MOST_GROUPS = 16
"""Most groups of layers that are measured and returned to fp32 one by one; each needs a quantisation and a session."""
HALF_LIMIT = 65504 / 4
"""Nodes with larger values stay fp32 in an fp16 file: half precision ends at 65504, and other tiles may have larger
values than the calibration tiles."""
SEED = "for comparison: TensorRT int8 on a Jetson AGX Xavier is 2.3 times faster with 65 % less memory"


TOLERANCE = Tolerance(max_flipped=0.001, min_dice=0.995)
"""The defaults of the job file's `check`, which compares the same two files later."""


@dataclass(frozen=True, slots=True)
class QuantizeSpec:
    """How a model is quantised. The defaults have the smallest error at full speed."""

    kind: Literal["int8", "fp16"] = "int8"
    """int8: for CPUs with VNNI, and OpenVINO. fp16: for GPUs."""
    per_channel: bool = True
    """A scale for each output channel of a weight, not one for all; int8 only."""
    keep_first: bool = True
    """The first layer stays fp32."""
    keep_last: bool = True
    """The last layer stays fp32; nodes after it always stay fp32 in int8."""
    operators: tuple[str, ...] | None = None
    """Operators to quantise, such as Conv; None: all that ONNX Runtime supports. int8 only."""
    reduce_range: bool | None = None
    """Weights in 7 bits, with the same results on every processor. With 8 bits, products saturate without VNNI or AMX,
    and sessions refuse the file on such processors. None: as needed on this processor. int8 only."""
    float_weights: bool = False
    """The file stores its weights in fp32, so it also holds the fp32 network and is as large; int8 only."""
    tolerance: Tolerance = TOLERANCE
    """Tolerance against fp32 on the held-out tiles."""
    gate_images: int = 0
    """Images that the gate of a job compares, which must hardly ever refuse the result; 0 for no such demand."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One mixture of precisions, measured on the held-out tiles."""

    kept: int
    """Number of layers in fp32."""
    parity: Parity
    breaches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """The quantisation, and the difference between the result and its original."""

    source_sha256: str
    spec: QuantizeSpec
    reduce_range: bool
    layers: int
    kept: tuple[str, ...]
    """Names of the layers that stay fp32."""
    calibration_tiles: int
    held_out_tiles: int
    attempts: tuple[Attempt, ...]
    """In order; the last one is the result."""
    sensitivity: tuple[tuple[str, float], ...]
    """First node of each group of layers, and the mean error of a value if only this group is quantised, largest first;
    empty if the first attempt passed."""
    source_bytes: int
    file_bytes: int
    notes: tuple[str, ...]
    """Remarks for the user, a sentence each."""

    @property
    def parity(self) -> Parity:
        """The parity of the result on the held-out tiles."""
        return self.attempts[-1].parity

    def to_json(self) -> dict[str, Any]:
        tree = asdict(self)
        tree["attempts"] = [
            {"kept": a.kept, "parity": a.parity.to_json(), "breaches": list(a.breaches)} for a in self.attempts
        ]
        return tree


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantised file and its report."""

    data: bytes
    model: Model
    report: QuantizeReport


def quantize(data: bytes, model: Model, images_nhwc: Iterable[NDArray[Any]], spec: QuantizeSpec) -> Quantized:
    """The model in fewer bits, within the tolerance on tiles that it was not calibrated with.

    data: the fp32 file of `model`. images_nhwc: tiles (H, W, C) of the contract's dtype and of one size, normalised, at
    least two. While the tolerance is exceeded, the group of layers with the largest error returns to fp32. The new file
    has the old metadata, the contract, and `unet_batch.quantize`.
    Raises JobError for too few tiles, ShapeMismatch for tiles that the model does not take, ModelRefused if the file
    cannot be quantised or no mixture passes.
    """
    tiles = list(images_nhwc)
    seen, judges = split(tiles)
    for tile in tiles:
        check_tiles(model, np.repeat(tile[None], model.batch or 1, axis=0))
    unit = int8_instruction()
    reduced = spec.kind == "int8" and (unit is None if spec.reduce_range is None else spec.reduce_range)
    feeds = [batch_of_one(model, tile) for tile in seen]
    with FloatGraph(data, model.input_name, feeds, reduce_range=reduced) as floats:
        if not floats.layers:
            raise ModelRefused("the model has no layer with weights, so there is nothing to quantise")
        trial = _Trial(floats, model, spec, expected=outputs(data, model, judges), tiles=judges)
        made, attempts, kept, ranking = trial.search()
    entry = {
        "version": VERSION,
        "source_sha256": model.sha256,
        "kind": spec.kind,
        "per_channel": spec.per_channel,
        "reduce_range": reduced,
        "verified_on": unit or "x86 without exact 8-bit products",
        "operators": spec.operators,
        "kept": list(kept),
        "flipped_share": attempts[-1].parity.flipped_share,
        "min_dice": min(attempts[-1].parity.dice),
    }
    result = _with_metadata(data, made, model, entry)
    report = QuantizeReport(
        source_sha256=model.sha256,
        spec=spec,
        reduce_range=reduced,
        layers=len(trial.layers),
        kept=kept,
        calibration_tiles=len(seen) if spec.kind == "int8" else 0,
        held_out_tiles=len(judges),
        attempts=tuple(attempts),
        sensitivity=tuple(ranking),
        source_bytes=len(data),
        file_bytes=len(result),
        notes=tuple(_notes(spec, model, attempts[-1].parity, reduced=reduced, kept=len(kept), of=len(trial.layers))),
    )
    return Quantized(result, replace(model, sha256=hashlib.sha256(result).hexdigest()), report)


def split(tiles: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The tiles to calibrate with, and the tiles to measure with: every third one, at least the last.

    Raises JobError for fewer than two tiles.
    """
    if len(tiles) < 2:
        raise JobError(f"{len(tiles)} tiles are too few: at least one to calibrate and one to measure are needed")
    judges = list(tiles[HELD_OUT - 1 :: HELD_OUT]) or [tiles[-1]]
    seen = [tile for n, tile in enumerate(tiles) if n % HELD_OUT != HELD_OUT - 1]
    return seen[: len(tiles) - len(judges)], judges


def batch_of_one(model: Model, tile_hwc: NDArray[Any]) -> NDArray[Any]:
    """A batch of one tile for the model; a fixed batch axis is filled with copies."""
    return in_model_layout(model, np.repeat(tile_hwc[None], model.batch or 1, axis=0))


class _Trial:
    """The search for a mixture of precisions of one model."""

    def __init__(
        self,
        floats: FloatGraph,
        model: Model,
        spec: QuantizeSpec,
        *,
        expected: NDArray[Any],
        tiles: Sequence[NDArray[Any]],
    ) -> None:
        self._floats, self._model, self._spec = floats, model, spec
        self._expected, self._tiles = expected, tiles
        self.layers = floats.layers
        # The CPU computes most of an fp16 file in fp32, so a CPU session may not show an overflow.
        self._large = floats.beyond(HALF_LIMIT) if spec.kind == "fp16" else ()
        self._make: Callable[[Collection[str]], bytes] = self._int8 if spec.kind == "int8" else self._fp16

    def search(self) -> tuple[bytes, list[Attempt], tuple[str, ...], list[tuple[str, float]]]:
        """The first file within the tolerance, all attempts, the layers that stay fp32, and the ranking of groups."""
        spec, layers = self._spec, set(self.layers)
        keep = set(self.layers[:1] if spec.keep_first else ()) | set(self.layers[-1:] if spec.keep_last else ())
        made, attempts = self._make(keep), list[Attempt]()
        attempts.append(self._judged(made, keep))
        ranking: list[tuple[str, float]] = []
        if attempts[0].breaches:
            ranked = self._ranked(keep)
            ranking = [(group[0], error) for error, group in ranked]
            for _, group in ranked:
                keep |= set(group)
                if layers <= keep:
                    break
                made = self._make(keep)
                attempts.append(self._judged(made, keep))
                if not attempts[-1].breaches:
                    break
        if attempts[-1].breaches:
            raise ModelRefused(
                f"no mixture of {spec.kind} and fp32 is within the tolerance: even with {attempts[-1].kept} of "
                f"{len(layers)} layers in fp32, {'; '.join(attempts[-1].breaches)}. Use the fp32 file, more "
                "calibration images, or a wider tolerance"
            )
        return made, attempts, tuple(name for name in self.layers if name in keep), ranking

    def _ranked(self, keep: set[str]) -> list[tuple[float, tuple[str, ...]]]:
        """Groups of nodes with the mean error of a value if only this group is quantised, largest first."""
        everything = {name for group in self._floats.groups(MOST_GROUPS) for name in group}
        found = []
        for group in self._floats.groups(MOST_GROUPS):
            if set(group) - keep:
                made = self._make((everything - set(group)) | keep)
                [parity] = self._parities(made, most=1)
                found.append((parity.mean_abs_error, group))
        return sorted(found, key=lambda pair: -pair[0])

    def _judged(self, made: bytes, keep: Collection[str]) -> Attempt:
        tiles = self._parities(made, most=len(self._tiles))
        kept = len(set(keep).intersection(self.layers))
        return Attempt(kept, total(tiles), tuple(breaches_of(tiles, self._spec.tolerance, self._spec.gate_images)))

    def _parities(self, made: bytes, *, most: int) -> list[Parity]:
        """The parity of each tile."""
        found = outputs(made, self._model, self._tiles[:most])
        output = self._model.contract.output
        return [Parity.of(a[None], b[None], output) for a, b in zip(self._expected, found, strict=False)]

    def _int8(self, keep: Collection[str]) -> bytes:
        spec = self._spec
        return self._floats.static(
            per_channel=spec.per_channel, operators=spec.operators, keep=keep, float_weights=spec.float_weights
        )

    def _fp16(self, keep: Collection[str]) -> bytes:
        return self._floats.half(keep={*keep, *self._large})


def outputs(data: bytes, model: Model, tiles: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """The outputs of a file for tiles one by one: (N, K, h, w)."""
    session = PlainSession(data)
    found = []
    for tile in tiles:
        feed = batch_of_one(model, tile)
        output = session.run({model.input_name: feed}, [model.output_name])[model.output_name]
        found.append(as_nkhw(model, output, len(feed))[:1])
    return np.concatenate(found)


def _with_metadata(source: bytes, made: bytes, model: Model, entry: dict[str, Any]) -> bytes:
    """The new file with the old metadata and declared axes, and with its contract; checked."""
    old, new = graph.read(source, "the model"), graph.read(made, "the quantised model")
    own = {METADATA_KEY: contract_text(model.contract), QUANTIZE_KEY: json.dumps(entry, separators=(",", ":"))}
    graph_edit.set_metadata(new, graph.metadata(old) | own)
    if [value[:2] for value in graph.inputs(old)] != [value[:2] for value in graph.inputs(new)]:
        raise ModelRefused("the quantiser changed the model's inputs: this is a bug of unet-batch")
    used = {node.domain for node in new.graph.node}
    imported = [entry for entry in new.opset_import if entry.domain in used or not entry.domain]
    del new.opset_import[:]
    new.opset_import.extend(imported)  # the optimiser declares all domains that ONNX Runtime was built with
    graph_edit.check(new)
    data: bytes = new.SerializeToString()
    return data


def _notes(spec: QuantizeSpec, model: Model, parity: Parity, *, reduced: bool, kept: int, of: int) -> Iterable[str]:
    yield (
        f"write model.precision: {spec.kind}, and the fp32 file in check.reference, so that every machine compares "
        "both on images of the archive before it scores"
    )
    if spec.kind == "int8":
        here = machine()
        if not here.int8:
            yield f"{here.processor} has no VNNI: int8 is not faster here"
        if not reduced:
            yield (
                "the file is right on processors with AMX, AVX512-VNNI or AVX-VNNI, and on ARM; sessions on other "
                "processors refuse it: `--any-cpu` makes a file for all processors"
            )
        yield SEED
    else:
        yield (
            "fp16 is for GPUs, but was measured on the CPU, which computes most of it in fp32: `check` is the first "
            "comparison on a GPU"
        )
    if parity.images < 4:
        yield f"the result was measured on only {parity.images} held-out tile(s): use more images"
    if all(count in (0, parity.pixels) for count in parity.reference_px):
        same, images = "the same label in every pixel of the held-out tiles", "with more than one class"
        if model.contract.output.classifies:  # one label for each image, and no pixels
            same, images = "every held-out image the same label", "of more than one class"
        yield f"the fp32 file gives {same}, so Dice is no evidence: use images {images}"
    limit = spec.tolerance
    if 2 * parity.flipped_share > limit.max_flipped > 0 or 2 * (1 - min(parity.dice)) > 1 - limit.min_dice > 0:
        yield "the result is near a limit of the tolerance, so `check` may refuse it on other images"
    if kept > of / 2:
        yield f"{kept} of {of} layers stay fp32, so the gain is small"


def rows(report: QuantizeReport) -> list[list[str]]:
    """The attempts as a table of at most 80 columns: layers in fp32, flipped labels, least Dice of a class, verdict."""
    found = [["layers in fp32", "labels flipped", "least Dice", "verdict"]]
    for attempt in report.attempts:
        verdict = "not within the tolerance" if attempt.breaches else "within the tolerance"
        share, dice = f"{attempt.parity.flipped_share:.4%}", f"{min(attempt.parity.dice):.5f}"
        found.append([f"{attempt.kept} of {report.layers}", share, dice, verdict])
    return found
