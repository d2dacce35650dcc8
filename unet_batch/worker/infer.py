"""The stage Infer, after `load`: cuts a loaded unit into tiles, scores and reduces them, and stages the part.

A plain callable, used by the loop, by worker processes and by Ray actors. It returns a receipt.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from unet_batch.decode.effort import pixels_s
from unet_batch.errors import ImageError, OutOfMemory, Reason, SessionBroken
from unet_batch.imaging.classify import classify
from unet_batch.imaging.crop import on_whole_image
from unet_batch.imaging.encode import encode_png
from unet_batch.imaging.postprocess import Prediction, reduce
from unet_batch.imaging.preprocess import Geometry
from unet_batch.imaging.tiling import Canvas
from unet_batch.records import DoubtfulSource, Receipt, Unit
from unet_batch.session.batching import Batcher, BatchStats, Tile
from unet_batch.session.session import Session
from unet_batch.spec import JobSpec
from unet_batch.table.output import Output
from unet_batch.table.parts import write_part
from unet_batch.table.rows import Provenance, prediction_row, rejection_row
from unet_batch.worker.faults import doubtful
from unet_batch.worker.load import failure_of
from unet_batch.worker.loaded import Entry, Loaded
from unet_batch.worker.tiles import picture
from unet_batch.worker.watchdog import Step, unwatched

log = logging.getLogger(__name__)

PASSES = 4
"""Passes over the pixels of an image between two steps of the watchdog: normalise, resize, measure, encode."""


class Infer:
    """Scores a loaded unit and stages its part.

    Pixels come in as views into `Loaded.pixels`: uint8, uint16 or float32 (H, W, C) of each fitted image. Tiles go to
    the session as (N, H, W, C) of the contract's `input.dtype`; logits come back as float32 (N, K, h, w).
    """

    def __init__(self, job: JobSpec, session: Session, batcher: Batcher, provenance: Provenance) -> None:
        self._job = job
        self._batcher = batcher
        self._model = session.model
        self._provider = session.provider
        self._provenance = provenance
        self._output = Output.of(job.output)

    def __call__(self, loaded: Loaded, step: Step = unwatched) -> Receipt:
        """The receipt of the unit. A fault of the infrastructure is its `failure`, and there is no part.

        Raises SessionBroken if the process must be replaced.
        """
        if loaded.failure is not None:
            return _failed(loaded.unit, loaded.failure)
        try:
            return self._score(loaded, step)
        except SessionBroken:
            raise
        except Exception as error:  # noqa: BLE001 - the stage boundary, see failure_of
            return _failed(loaded.unit, failure_of(error, "Infer", loaded.unit))

    def _score(self, loaded: Loaded, step: Step) -> Receipt:
        start = time.perf_counter()
        used = BatchStats()
        rows: list[dict[str, Any] | None] = [None] * len(loaded.entries)
        images: dict[int, _Image] = {}
        for tile, result in self._batcher.run(self._tiles(loaded, images, rows, step), stats=used):
            image = images[tile.image]
            if isinstance(result, OutOfMemory):
                image.error = ImageError(Reason.MODEL_OUT_OF_MEMORY, "a single tile does not fit into memory")
            elif isinstance(result, ImageError):
                image.error = result
            elif image.error is None:
                image.canvas.add(tile.box, result)
            image.waiting -= 1
            alone = loaded.entries[tile.image].source if len(images) == 1 else None
            step(alone, image.tiles - image.waiting, image.tiles)
            if not image.waiting:
                with _passes(step, loaded.entries[tile.image], image.geometry.source_hw):
                    rows[tile.image] = self._row(loaded, tile.image, image)
                del images[tile.image]
        held = () if loaded.unit.settle else _held(loaded, rows)
        positions = {found.position for found in held}
        unit = loaded.unit.without(positions)
        done = [r for r, e in zip(rows, loaded.entries, strict=True) if r is not None and e.source not in positions]
        if unit.sources:
            compression = self._job.output.compression
            pairs = zip(loaded.entries, rows, strict=True)
            dim = sum(e.is_dim for e, row in pairs if e.source not in positions and row and row["status"] == "ok")
            write_part(self._output, unit, done, self._provenance, compression=compression, dim=dim)
        rejected = Counter(row["reason"] for row in done if row["status"] == "rejected")
        return Receipt(
            unit_id=loaded.unit.unit_id,
            partition=loaded.unit.partition,
            rows=len(done),
            ok=len(done) - rejected.total(),
            rejected=rejected.total(),
            images_read_bytes=loaded.read_bytes,
            provider=self._provider,
            read_s=loaded.read_s,
            decode_s=loaded.decode_s,
            session_s=used.session_s,
            encode_s=max(0.0, time.perf_counter() - start - used.session_s - used.waited_s),
            batches=tuple(sorted(used.batches.items())),
            out_of_memory=used.out_of_memory,
            reasons=tuple(sorted(rejected.items())),
            held=held,
            pid=os.getpid(),
            peak_rss_bytes=_peak_rss_bytes(),
            dim_images=sum(entry.is_dim for entry in loaded.entries),
            range_used=max(
                (entry.range_used for entry in loaded.entries if entry.range_used is not None), default=None
            ),
        )

    def _tiles(
        self, loaded: Loaded, images: dict[int, _Image], rows: list[dict[str, Any] | None], step: Step
    ) -> Iterator[Tile]:
        """Every tile of every image, lazily; rejections are recorded on the way."""
        for index, entry in enumerate(loaded.entries):
            if entry.error is not None:
                rows[index] = self._rejection(loaded, index, entry.error)
                continue
            geometry = cast(Geometry, entry.geometry)  # an entry has a geometry or an error
            step(entry.source, allow_s=PASSES * pixels_s(math.prod(geometry.fitted_hw)))
            try:
                found = picture(loaded, entry, geometry, self._model, self._job.tiling, largest_side=None)
                if self._job.output.geometry == "model":
                    geometry = replace(geometry, source_hw=geometry.resized_hw)
                canvas = Canvas(
                    geometry.fitted_hw,
                    found.output_hw,
                    self._job.tiling,
                    decided=self._model.contract.output.decided,
                    halo=found.halo,
                )
            except (ImageError, MemoryError) as error:
                rows[index] = self._rejection(loaded, index, _without_room(error))
                continue
            step()
            images[index] = _Image(canvas, geometry, len(found.boxes), len(found.boxes))
            for box in found.boxes:
                yield Tile(index, box, found.tile(box))

    def _row(self, loaded: Loaded, index: int, image: _Image) -> dict[str, Any]:
        entry = loaded.entries[index]
        if image.error is not None:
            return self._rejection(loaded, index, image.error)
        output = self._job.output
        try:
            prediction = self._prediction(image)
        except (ImageError, MemoryError) as error:
            return self._rejection(loaded, index, _without_room(error))
        png = None
        if "png" in output.masks and prediction.labels_hw is not None:
            png = encode_png(prediction.labels_hw)
        row = prediction_row(loaded.unit.sources[entry.source], entry.page, entry.pages, prediction, png)
        return {**row, "height": entry.height, "width": entry.width}

    def _prediction(self, image: _Image) -> Prediction:
        wanted, output = self._job.output, self._model.contract.output
        scores_khw = image.canvas.finished()
        if not output.classifies:
            scores_khw, geometry = on_whole_image(scores_khw, image.geometry, output)
            return reduce(scores_khw, geometry, output, rle="rle" in wanted.masks, confidence=wanted.confidence)
        found = classify(scores_khw, image.geometry.source_hw, output)
        return found if wanted.confidence else replace(found, confidence=None, entropy=None)

    def _rejection(self, loaded: Loaded, index: int, error: ImageError) -> dict[str, Any]:
        entry = loaded.entries[index]
        source = loaded.unit.sources[entry.source]
        return rejection_row(source, entry.page, entry.pages, error, height=entry.height, width=entry.width)


def reject_unit(job: JobSpec, unit: Unit, error: ImageError, provenance: Provenance) -> Receipt:
    """Write the part of a unit with a single image that gets this rejection, without scoring; returns the receipt."""
    rows = [rejection_row(source, 0, 1, error) for source in unit.sources]
    write_part(Output.of(job.output), unit, rows, provenance, compression=job.output.compression)
    reasons = ((str(error.reason), len(rows)),)
    return Receipt(unit.unit_id, unit.partition, len(rows), 0, len(rows), reasons=reasons)


@dataclass(slots=True)
class _Image:
    """An image whose tiles are being scored."""

    canvas: Canvas
    geometry: Geometry
    tiles: int
    waiting: int
    error: ImageError | None = None


@contextlib.contextmanager
def _passes(step: Step, entry: Entry, source_hw: tuple[int, int]) -> Iterator[None]:
    """A block that works on all pixels of an image without steps in between, with more time for the watchdog."""
    step(entry.source, allow_s=PASSES * pixels_s(math.prod(source_hw)))
    yield
    step()


def _without_room(error: ImageError | MemoryError) -> ImageError:
    """The same rejection; for a MemoryError, the rejection MODEL_OUT_OF_MEMORY."""
    if isinstance(error, ImageError):
        return error
    return ImageError(Reason.MODEL_OUT_OF_MEMORY, "there was not enough memory for the image or its mask")


def _held(loaded: Loaded, rows: Sequence[dict[str, Any] | None]) -> tuple[DoubtfulSource, ...]:
    """Sources with a rejection that another process must confirm."""
    verdicts = [Reason(row["reason"]) if row is not None and row.get("reason") else None for row in rows]
    doubts = doubtful(verdicts, confirms=loaded.unit.confirms)
    held: dict[int, DoubtfulSource] = {}
    for entry, verdict, row in zip(loaded.entries, verdicts, rows, strict=True):
        known = loaded.unit.sources[entry.source].problem is not None  # known from the listing
        if verdict in doubts and row is not None and entry.source not in held and not known:
            held[entry.source] = DoubtfulSource(entry.source, entry.pages, str(verdict), row["message"] or "")
    return tuple(held.values())


def _failed(unit: Unit, failure: tuple[str, str]) -> Receipt:
    return Receipt(unit.unit_id, unit.partition, 0, 0, 0, failure=failure)


def _peak_rss_bytes() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
