"""The two stages of a unit: Load reads, decodes and fits; Infer cuts, scores, reduces and stages the part.

Both are plain callables, run by a loop or by Ray actors alike; neither knows Ray. Between them a unit is one row: its
sources and geometry as JSON, and all fitted pixels in one buffer in their source dtype.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from unet_batch.archive.decode import Page, encode_png
from unet_batch.archive.isolate import DECODER, Decoder, IsolatedDecoder
from unet_batch.archive.pages import complete
from unet_batch.archive.shards import read_unit
from unet_batch.archive.storage import Storage
from unet_batch.errors import ImageError, OutOfMemory, Reason, SessionBroken, TooLate, UnetBatchError
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import Geometry, divisor, fit, normalize
from unet_batch.imaging.tiling import Canvas, grid
from unet_batch.job.loaded import Entry, Loaded, Pack, pixels_of
from unet_batch.model.batching import Batcher, BatchStats, Tile
from unet_batch.model.contract import Model
from unet_batch.model.session import Session
from unet_batch.records import Receipt, Unit
from unet_batch.spec import JobSpec
from unet_batch.table.layout import Layout
from unet_batch.table.parts import write_part
from unet_batch.table.rows import Provenance, prediction_row, rejection_row

log = logging.getLogger(__name__)

MAX_UNIT_PIXEL_BYTES = 1 << 30
"""A unit that decodes to more is handed back to be halved: a plan sees encoded sizes only."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A unit's encoded images, in the order of its sources."""

    unit: Unit
    contents: tuple[bytes | ImageError, ...]
    read_s: float = 0.0
    failure: tuple[str, str] | None = None


class Load:
    """Reads, decodes and fits the images of a unit."""

    def __init__(self, job: JobSpec, model: Model, *, decoder: str = DECODER, stop_at_s: float | None = None) -> None:
        """decoder: `module:function` with decode's signature, also run in isolation; tests name one that crashes.
        stop_at_s: seconds since 1970 after which no unit is begun."""
        self._stop_at_s = stop_at_s
        self._job = job
        self._model = model
        self._decoder = decoder
        module, _, name = decoder.partition(":")
        self._decode: Decoder = getattr(importlib.import_module(module), name)
        self._storage = Storage(job.input.options, threads=job.resources.fetch_threads)

    def __call__(self, unit: Unit) -> Loaded:
        """The unit with its pixels; a fault of the machinery comes back as `failure`, never as a row."""
        return self.decode(self.fetch(unit))

    def fetch(self, unit: Unit) -> Fetched:
        """The encoded images of a unit. Waits for the store and leaves the core to others."""
        started = time.perf_counter()
        try:
            if self._stop_at_s is not None and time.time() > self._stop_at_s:
                raise TooLate("the run's deadline came first")  # noqa: TRY301 - handed back as every other fault is
            contents = [found for _, found in read_unit(self._storage, self._job.input, unit, self._job.limits)]
        except Exception as error:  # noqa: BLE001 - the stage boundary, see _failure
            return Fetched(unit, (), failure=_failure(error, "Load", unit))
        return Fetched(unit, tuple(contents), time.perf_counter() - started)

    def decode(self, fetched: Fetched) -> Loaded:
        """The unit with its pixels, decoded and fitted."""
        if fetched.failure is not None:
            return Loaded(fetched.unit, (), np.empty(0, np.uint8), failure=fetched.failure)
        try:
            return self._decoded(fetched)
        except Exception as error:  # noqa: BLE001 - the stage boundary, see _failure
            return Loaded(fetched.unit, (), np.empty(0, np.uint8), failure=_failure(error, "Load", fetched.unit))

    def _decoded(self, fetched: Fetched) -> Loaded:
        unit, pack = fetched.unit, Pack()
        entries: list[Entry] = []
        read_bytes, clock = 0, time.perf_counter()
        isolated = self._isolated() if unit.isolate else None
        try:
            for position, found in enumerate(fetched.contents):
                if isinstance(found, ImageError):
                    entries.append(_rejected(position, found))
                else:
                    read_bytes += len(found)
                    entries += [self._entry(position, page, pack) for page in complete(self._pages(found, isolated))]
                if pack.size > MAX_UNIT_PIXEL_BYTES and len(unit.sources) > 1:
                    message = f"its pictures decode to more than {MAX_UNIT_PIXEL_BYTES} bytes"
                    return Loaded(unit, (), np.empty(0, np.uint8), failure=("unit.too_large", message))
        finally:
            if isolated is not None:
                isolated.close()
        decode_s = time.perf_counter() - clock
        return Loaded(unit, tuple(entries), pack.joined(), read_bytes, fetched.read_s, decode_s)

    def _pages(self, data: bytes, isolated: IsolatedDecoder | None) -> Iterator[Page]:
        if isolated is not None:
            yield from isolated.decode(data)
        else:
            yield from self._decode(data, self._model.contract.input, self._job.limits)

    def _isolated(self) -> IsolatedDecoder:
        return IsolatedDecoder(self._model.contract.input, self._job.limits, decoder=self._decoder)

    def _entry(self, position: int, page: Page, pack: Pack) -> Entry:
        if isinstance(page.content, ImageError):
            return replace(
                _rejected(position, page.content),
                page=page.page,
                pages=page.pages,
                height=page.height,
                width=page.width,
            )
        try:
            fitted, geometry = fit(
                page.content,
                self._model.contract.input,
                tile_hw=self._model.tile_hw,
                source_hw=(page.height, page.width),
            )
        except ImageError as error:
            return replace(
                _rejected(position, error), page=page.page, pages=page.pages, height=page.height, width=page.width
            )
        offset = pack.add(fitted)
        top = divisor(self._model.contract.input, page.largest)
        return Entry(
            position,
            page.page,
            page.pages,
            page.height,
            page.width,
            fitted.dtype.str,
            fitted.shape,
            offset,
            geometry,
            largest=page.largest,
            range_used=None if top is None else float(fitted.max()) / top,
        )


class Infer:
    """Scores a loaded unit and leaves its part."""

    def __init__(self, job: JobSpec, session: Session, batcher: Batcher, provenance: Provenance) -> None:
        self._job = job
        self._batcher = batcher
        self._model = session.model
        self._provider = session.provider
        self._provenance = provenance
        self._storage = Storage(job.output.options)
        self._layout = Layout(job.output.uri)

    def __call__(self, loaded: Loaded) -> Receipt:
        """The receipt of the unit's part; a fault of the machinery comes back as `failure`.

        Raises SessionBroken: the process must be replaced.
        """
        if loaded.failure is not None:
            return _failed(loaded.unit, loaded.failure)
        try:
            return self._score(loaded)
        except SessionBroken:
            raise
        except Exception as error:  # noqa: BLE001 - the stage boundary, see _failure
            return _failed(loaded.unit, _failure(error, "Infer", loaded.unit))

    def _score(self, loaded: Loaded) -> Receipt:
        start = time.perf_counter()
        used = BatchStats()
        rows: list[dict[str, Any] | None] = [None] * len(loaded.entries)
        images: dict[int, _Image] = {}
        for tile, result in self._batcher.run(self._tiles(loaded, images, rows), stats=used):
            image = images[tile.image]
            if isinstance(result, OutOfMemory):
                image.error = ImageError(Reason.MODEL_OUT_OF_MEMORY, "one tile alone does not fit into memory")
            elif image.error is None:
                image.canvas.add(tile.box, result)
            image.waiting -= 1
            if not image.waiting:
                rows[tile.image] = self._row(loaded, tile.image, image)
                del images[tile.image]
        done = [row for row in rows if row is not None]
        write_part(
            self._storage, self._layout, loaded.unit, done, self._provenance, compression=self._job.output.compression
        )
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
            encode_s=max(0.0, time.perf_counter() - start - used.session_s),
            batches=tuple(sorted(used.batches.items())),
            out_of_memory=used.out_of_memory,
            reasons=tuple(sorted(rejected.items())),
            pid=os.getpid(),
            peak_rss_bytes=_peak_rss_bytes(),
            dim_images=sum(entry.is_dim for entry in loaded.entries),
            range_used=max(
                (entry.range_used for entry in loaded.entries if entry.range_used is not None), default=None
            ),
        )

    def _tiles(self, loaded: Loaded, images: dict[int, _Image], rows: list[dict[str, Any] | None]) -> Iterator[Tile]:
        """Every tile of every picture, lazily; rejections become rows on the way."""
        for index, entry in enumerate(loaded.entries):
            if entry.error is not None:
                rows[index] = self._rejection(loaded, index, entry.error)
                continue
            geometry = cast(Geometry, entry.geometry)  # an entry has one or the other
            picture = pixels_of(loaded, entry)
            try:
                picture = normalize(picture, geometry, self._model.contract.input, largest=entry.largest)
            except ImageError as error:
                rows[index] = self._rejection(loaded, index, error)
                continue
            tile_hw = self._model.tile_hw or geometry.fitted_hw
            boxes = grid(geometry.fitted_hw, tile_hw, self._job.tiling.overlap)
            if self._job.output.geometry == "model":
                geometry = replace(geometry, source_hw=geometry.resized_hw)
            output = self._model.contract.output
            canvas = Canvas(geometry.fitted_hw, tile_hw, self._job.tiling, decided=output.decided)
            images[index] = _Image(canvas, geometry, len(boxes))
            for box in boxes:
                yield Tile(index, box, picture[box.slices])

    def _row(self, loaded: Loaded, index: int, image: _Image) -> dict[str, Any]:
        entry = loaded.entries[index]
        if image.error is not None:
            return self._rejection(loaded, index, image.error)
        output = self._job.output
        try:
            prediction = reduce(
                image.canvas.finished(),
                image.geometry,
                self._model.contract.output,
                rle="rle" in output.masks,
                confidence=output.confidence,
            )
        except ImageError as error:
            return self._rejection(loaded, index, error)
        png = None
        if "png" in output.masks and prediction.labels_hw is not None:
            png = encode_png(prediction.labels_hw)
        row = prediction_row(loaded.unit.sources[entry.source], entry.page, entry.pages, prediction, png)
        return {**row, "height": entry.height, "width": entry.width}

    def _rejection(self, loaded: Loaded, index: int, error: ImageError) -> dict[str, Any]:
        entry = loaded.entries[index]
        source = loaded.unit.sources[entry.source]
        return rejection_row(source, entry.page, entry.pages, error, height=entry.height, width=entry.width)


def reject_unit(job: JobSpec, unit: Unit, error: ImageError, provenance: Provenance) -> Receipt:
    """The part of a unit whose one image no process survived, written without scoring."""
    rows = [rejection_row(source, 0, 1, error) for source in unit.sources]
    write_part(
        Storage(job.output.options), Layout(job.output.uri), unit, rows, provenance, compression=job.output.compression
    )
    reasons = ((str(error.reason), len(rows)),)
    return Receipt(unit.unit_id, unit.partition, len(rows), 0, len(rows), reasons=reasons)


@dataclass(slots=True)
class _Image:
    """A picture whose tiles are under way."""

    canvas: Canvas
    geometry: Geometry
    waiting: int
    error: ImageError | None = None


def _rejected(position: int, error: ImageError) -> Entry:
    return Entry(position, 0, 1, 0, 0, reason=str(error.reason), message=error.message)


def _failure(error: Exception, stage: str, unit: Unit) -> tuple[str, str]:
    """Code and message of what stopped a stage: one unit's surprise must not look like a dead process."""
    if isinstance(error, UnetBatchError):
        return error.code, str(error)
    log.error("%s failed on unit %s", stage, unit.unit_id, exc_info=error)
    return "unexpected", f"{type(error).__name__}: {error}"


def _failed(unit: Unit, failure: tuple[str, str]) -> Receipt:
    return Receipt(unit.unit_id, unit.partition, 0, 0, 0, failure=failure)


def _peak_rss_bytes() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
