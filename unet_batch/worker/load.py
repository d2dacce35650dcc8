"""The stage Load: reads, decodes and fits a unit's sources; see `loaded` for the result.

A plain callable, used by the loop, by worker processes and by Ray actors. Bad bytes reject only their image; a fault of
the infrastructure is the `failure` of the unit, not a row.
"""

from __future__ import annotations

import functools
import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unet_batch.archive.shards import read_unit
from unet_batch.decode.decode import Page
from unet_batch.decode.effort import processor_s
from unet_batch.decode.isolate import DECODER, START_S, Decoder, IsolatedDecoder
from unet_batch.decode.pages import complete
from unet_batch.errors import ImageError, OutOfMemory, Reason, TooLate, UnetBatchError
from unet_batch.imaging.preprocess import divisor, fit
from unet_batch.model.model import Model
from unet_batch.records import Unit
from unet_batch.spec import JobSpec
from unet_batch.store.storage import Storage
from unet_batch.worker.faults import TOO_LARGE, UNEXPECTED
from unet_batch.worker.loaded import Entry, Loaded, PixelBuffer
from unet_batch.worker.watchdog import Step, unwatched

log = logging.getLogger(__name__)

MAX_UNIT_PIXEL_BYTES = 1 << 30
"""A unit that decodes to more bytes is returned to be halved; the plan knows only encoded sizes."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A unit's encoded images, in the order of its sources."""

    unit: Unit
    contents: tuple[bytes | ImageError, ...]
    read_s: float = 0.0
    failure: tuple[str, str] | None = None


class Load:
    """Reads, decodes and fits the images of a unit.

    The result is `Loaded`: one buffer with the fitted images, (H, W, C) each in its source dtype (uint8, uint16 or
    float32), resized but neither normalised nor padded, and one `Entry` per page.
    """

    def __init__(self, job: JobSpec, model: Model, *, decoder: str = DECODER, stop_at_s: float | None = None) -> None:
        """decoder: `module:function` with decode's signature, also used in isolation; tests use one that crashes.
        stop_at_s: seconds since 1970 after which no unit is started."""
        self._stop_at_s = stop_at_s
        self._job = job
        self._model = model
        self._decoder = decoder
        module, _, name = decoder.partition(":")
        self._decode: Decoder = getattr(importlib.import_module(module), name)
        self._storage = Storage(job.input.options, threads=job.resources.fetch_threads)

    def __call__(self, unit: Unit) -> Loaded:
        """The unit with its pixels. A fault of the infrastructure is its `failure`; nothing is raised."""
        return self.decode(self.fetch(unit))

    def fetch(self, unit: Unit, step: Step = unwatched) -> Fetched:
        """The encoded images of a unit. Waits for the store and uses no core meanwhile."""
        started = time.perf_counter()
        try:
            if self._stop_at_s is not None and time.time() > self._stop_at_s:
                raise TooLate("the run's deadline came first")  # noqa: TRY301 - returned like every other fault
            contents: list[bytes | ImageError] = []
            for _, found in read_unit(self._storage, self._job.input, unit, self._job.limits):
                contents.append(found)
                step(None, len(contents), len(unit.sources))
        except Exception as error:  # noqa: BLE001 - the stage boundary, see failure_of
            return Fetched(unit, (), failure=failure_of(error, "Load", unit))
        return Fetched(unit, tuple(contents), time.perf_counter() - started)

    def decode(self, fetched: Fetched, step: Step = unwatched) -> Loaded:
        """The unit with its pixels, decoded and fitted."""
        if fetched.failure is not None:
            return Loaded(fetched.unit, (), np.empty(0, np.uint8), failure=fetched.failure)
        try:
            return self._decoded(fetched, step)
        except Exception as error:  # noqa: BLE001 - the stage boundary, see failure_of
            return Loaded(fetched.unit, (), np.empty(0, np.uint8), failure=failure_of(error, "Load", fetched.unit))

    def _decoded(self, fetched: Fetched, step: Step) -> Loaded:
        unit, pixels = fetched.unit, PixelBuffer()
        entries: list[Entry] = []
        read_bytes, clock = 0, time.perf_counter()
        isolated = self._isolated() if unit.isolate else None
        try:
            for position, found in enumerate(fetched.contents):
                if isinstance(found, ImageError):
                    entries.append(_rejected(position, found))
                else:
                    read_bytes += len(found)
                    listen = functools.partial(
                        step, position, position, len(unit.sources), allow_s=processor_s(found, self._job.limits)
                    )
                    starts = functools.partial(step, None, position, len(unit.sources), allow_s=START_S)
                    found_pages = self._pages(found, isolated, starts, listen)
                    entries += self._entries(position, complete(found_pages), pixels, listen)
                if pixels.size > MAX_UNIT_PIXEL_BYTES and len(unit.sources) > 1:
                    message = f"its images decode to more than {MAX_UNIT_PIXEL_BYTES} bytes"
                    return Loaded(unit, (), np.empty(0, np.uint8), failure=(TOO_LARGE, message))
        finally:
            if isolated is not None:
                isolated.close()
        decode_s = time.perf_counter() - clock
        return Loaded(unit, tuple(entries), pixels.joined(), read_bytes, fetched.read_s, decode_s)

    def _entries(
        self, position: int, pages: Iterator[Page], pixels: PixelBuffer, listen: Callable[[], None]
    ) -> Sequence[Entry]:
        """All pages of one source. If the decoder raises, the source is rejected."""
        found: list[Entry] = []
        while True:
            listen()
            try:
                page = next(pages)
            except StopIteration:
                return found
            except UnetBatchError:
                raise
            except MemoryError:
                return [_rejected(position, ImageError(Reason.DECODE_OUT_OF_MEMORY, "not enough memory to decode it"))]
            except Exception as error:
                log.warning("the decoder raised on image %d of a unit", position, exc_info=error)
                message = f"the decoder raised {type(error).__name__}: {error}"
                return [_rejected(position, ImageError(Reason.DECODE_CRASHED, message))]
            found.append(self._entry(position, page, pixels))

    def _pages(
        self, data: bytes, isolated: IsolatedDecoder | None, starts: Callable[[], None], listen: Callable[[], None]
    ) -> Iterator[Page]:
        if isolated is not None:
            starts()  # the start of a process is no work on the image: its time limit begins with `listen`
            yield from isolated.decode(data, listen)
        else:
            yield from self._decode(data, self._model.contract.input, self._job.limits)

    def _isolated(self) -> IsolatedDecoder:
        return IsolatedDecoder(self._model.contract.input, self._job.limits, decoder=self._decoder)

    def _entry(self, position: int, page: Page, pixels: PixelBuffer) -> Entry:
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
                margin=self._model.contract.output.margin,
            )
        except ImageError as error:
            return replace(
                _rejected(position, error), page=page.page, pages=page.pages, height=page.height, width=page.width
            )
        offset = pixels.add(fitted)
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


def _rejected(position: int, error: ImageError) -> Entry:
    return Entry(position, 0, 1, 0, 0, reason=str(error.reason), message=error.message)


def failure_of(error: Exception, stage: str, unit: Unit) -> tuple[str, str]:
    """Code and message of an error that stopped a stage; no exception leaves the stage."""
    if isinstance(error, UnetBatchError):
        return error.code, str(error)
    if isinstance(error, MemoryError):
        return OutOfMemory.code, f"{stage} had not enough memory for it"
    log.error("%s failed on unit %s", stage, unit.unit_id, exc_info=error)
    return UNEXPECTED, f"{type(error).__name__}: {error}"
