"""Scores a few pictures under variants of a contract, as the job would, in one session: mirrored, if the job mirrors.

Large pictures are scored on a part in their middle, because somebody waits. Nothing is written.
Legend: H, W pixels; C channels; K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelInput
from unet_batch.errors import ImageError
from unet_batch.imaging.classify import classify
from unet_batch.imaging.crop import on_whole_image
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import Geometry, fit
from unet_batch.imaging.tiling import Canvas
from unet_batch.job.cores import cores
from unet_batch.model import graph
from unet_batch.model.model import Model
from unet_batch.records import Unit
from unet_batch.session.combined.mirroring import scoring_session
from unet_batch.session.engines import file_precision
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, in_model_layout
from unet_batch.spec import JobSpec, SessionSpec
from unet_batch.workbench.draft.evidence import Layers, NormLayers, edge_ratio, is_trivial
from unet_batch.workbench.draft.known import Draft
from unet_batch.workbench.draft.look import Picture
from unet_batch.worker.loaded import Entry, Loaded, PixelBuffer
from unet_batch.worker.tiles import ModelImage
from unet_batch.worker.tiles import picture as model_image

PART_PX = 512
"""Sides of the part that is scored of a larger picture. `init` for a U-Net of 256² tiles and 8 pictures of 1024² takes
20 s of a processor, and took 51 s with two tiles along each side of every picture."""
SMALL_TILE_PX = 288
"""Tiles of at most this side are scored two by two, so that the sheet shows more than one of them."""
Head = Callable[[NDArray[Any]], NDArray[Any]] | None
TWO_TILES = 1.75
"""Sides of the part in tiles then: two, which overlap by a quarter."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The mask of one picture's part under one variant, or why there is none."""

    part_hwc: NDArray[Any]
    """The part in source values, in the order red, green, blue where it has colours."""
    labels_hw: NDArray[Any] | None
    """Label map of the part; None also for a classifier."""
    confidence: float | None = None
    why: str = ""
    label: str | None = None
    """Of a classifier: the class of the whole picture, and its probability."""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """One variant on all pictures."""

    label: str
    draft: Draft
    scored: tuple[Scored, ...]
    distance: float | None
    """From the statistics of the network's normalisation layers; None if there are none."""

    @property
    def masks(self) -> list[Scored]:
        return [scored for scored in self.scored if scored.labels_hw is not None]

    @property
    def useful(self) -> float:
        """Share of the pictures whose mask is neither empty nor full."""
        if not self.scored:
            return 0.0
        return sum(not is_trivial(s.labels_hw) for s in self.masks if s.labels_hw is not None) / len(self.scored)

    @property
    def edges(self) -> float:
        """Mean of `edge_ratio` over the pictures."""
        found = [edge_ratio(s.part_hwc, s.labels_hw) for s in self.masks if s.labels_hw is not None]
        return float(np.mean(found)) if found else 0.0

    @property
    def plausibility(self) -> float:
        """Higher is better: masks that are neither empty nor full, with borders on edges of the pictures."""
        return self.useful * self.edges

    @property
    def confidence(self) -> float | None:
        found = [scored.confidence for scored in self.masks if scored.confidence is not None]
        return float(np.mean(found)) if found else None

    @property
    def trouble(self) -> str:
        """Why some picture has no mask; empty if all have one."""
        return next((scored.why for scored in self.scored if scored.why), "")


class Rehearsal:
    """Scores pictures with one model."""

    def __init__(self, data: bytes, model: Model, job: JobSpec, layers: Layers | None = None) -> None:
        """job: of its settings, `tiling` and `tta` count. `tiling.size` is that of `model`, if any.
        layers: of the network before its export; None: those in the graph, if it has any.

        Raises ContractError, OutOfMemory and other errors of opening a session.
        """
        self._model, self._tiling = model, job.tiling
        precision: Any = file_precision(data)
        plain = open_session(data, model, SessionSpec(), Device(threads=cores()), precision=precision)
        self._session = scoring_session([plain], model, job)
        self._layers: Layers = layers or NormLayers(graph.read(data, "the model"), model.input_name)

    def values(self, draft: Draft, picture: Picture) -> NDArray[Any]:
        """The model's output (K, h, w) for one tile in the middle of a picture."""
        return self._run(self._middle(picture, self.under(draft)))

    def tried(
        self,
        label: str,
        draft: Draft,
        pictures: Sequence[Picture],
        head: Head = None,
    ) -> Tried:
        """A variant on all pictures. head: what the variant's file would do behind the logits (K, h, w) of this one."""
        model = self.under(draft)
        scored = tuple(self._scored(picture, model, head) for picture in pictures)
        distance = None
        if self._layers.found and not any(entry.why for entry in scored):
            tiles = [self._repeated(self._middle(picture, model)) for picture in pictures[:3]]
            batches = [in_model_layout(self._model, tile_nhwc) for tile_nhwc in tiles]
            distance = self._layers.distance(batches)
        return Tried(label, draft, scored, distance)

    def under(self, draft: Draft) -> Model:
        """The model with the variant's contract."""
        contract, known = draft.contract(), self._model.contract.input
        spec = contract.input.model_copy(update={"height": known.height, "width": known.width})
        return self.with_input(replace(self._model, contract=contract), spec)

    def with_input(self, model: Model, spec: ModelInput) -> Model:
        """A model with another contract of its input."""
        return replace(model, contract=model.contract.model_copy(update={"input": spec}))

    def scores(
        self,
        pixels_hwc: NDArray[Any],
        largest: float | None,
        model: Model,
        *,
        tile: Head = None,
    ) -> tuple[NDArray[Any], Geometry]:
        """What the model returns for a whole picture (K, h, w), and its geometry. Raises ImageError.

        pixels_hwc: in the contract's order of channels. tile: changes the output (K, h, w) of each tile.
        """
        page, geometry = self._page(pixels_hwc, largest, model)
        decided = model.contract.output.decided
        canvas = Canvas(geometry.fitted_hw, page.output_hw, self._tiling, decided=decided, halo=page.halo)
        for box in page.boxes:
            values_khw = self._run(page.tile(box))
            canvas.add(box, values_khw if tile is None else tile(values_khw))
        return canvas.finished(), geometry

    def in_order(self, pixels_hwc: NDArray[Any], spec: ModelInput) -> NDArray[Any]:
        """Pixels in red, green, blue as the contract orders its channels."""
        return np.ascontiguousarray(pixels_hwc[..., ::-1] if spec.color == "bgr" else pixels_hwc)

    def _part(self, picture: Picture) -> tuple[slice, slice]:
        """Rows and columns of the picture's part, in its middle."""
        most = (PART_PX, PART_PX) if self._model.tile_hw is None else _of_tiles(self._model.tile_hw)
        cuts = []
        for size, limit in zip(picture.size_hw, most, strict=True):
            start = max(size - limit, 0) // 2
            cuts.append(slice(start, start + min(size, limit)))
        return cuts[0], cuts[1]

    def _input(self, picture: Picture, spec: ModelInput) -> NDArray[Any]:
        """The pixels in the contract's order of channels; those of a part where they are not resized."""
        pixels_hwc = picture.pixels_hwc
        if spec.fit in ("tile", "pad", "none") and not self._model.contract.output.classifies:
            pixels_hwc = pixels_hwc[self._part(picture)]
        return self.in_order(pixels_hwc, spec)

    def _page(self, pixels_hwc: NDArray[Any], largest: float | None, model: Model) -> tuple[ModelImage, Geometry]:
        """Pixels as input of the model, by the functions that a run uses. Raises ImageError."""
        spec = model.contract.input
        height, width = pixels_hwc.shape[:2]
        margin = model.contract.output.margin
        content, geometry = fit(pixels_hwc, spec, tile_hw=model.tile_hw, source_hw=(height, width), margin=margin)
        buffer = PixelBuffer()
        place = buffer.add(content)
        entry = Entry(0, 0, 1, height, width, content.dtype.str, content.shape, place, geometry, largest)
        loaded = Loaded(Unit("draft", "all", "images", ()), (entry,), buffer.joined())
        return model_image(loaded, entry, geometry, model, self._tiling, largest_side=None), geometry

    def _middle(self, picture: Picture, model: Model) -> NDArray[Any]:
        """The middle tile (H, W, C) of a picture's part."""
        page, _ = self._page(self._input(picture, model.contract.input), picture.largest, model)
        return page.tile(page.boxes[len(page.boxes) // 2])

    def _scored(self, picture: Picture, model: Model, head: Head) -> Scored:
        if model.contract.output.classifies:
            return self._classified(picture, model, head)
        shown = picture.pixels_hwc[self._part(picture)]
        try:
            labels_hw, confidence = self._labels(picture, model, head)
        except (ImageError, MemoryError) as error:
            why = error.message if isinstance(error, ImageError) else "there is not enough memory"
            return Scored(shown, None, why=why)
        if labels_hw.shape != shown.shape[:2]:
            labels_hw = labels_hw[self._part(picture)]
        return Scored(shown, labels_hw, confidence)

    def _classified(self, picture: Picture, model: Model, head: Head) -> Scored:
        """The label of a whole picture and its probability."""
        shown = picture.pixels_hwc
        try:
            pixels_hwc = self._input(picture, model.contract.input)
            scores_k11, _ = self.scores(pixels_hwc, picture.largest, model, tile=head)
            found = classify(scores_k11, picture.size_hw, model.contract.output)
        except (ImageError, MemoryError) as error:
            why = error.message if isinstance(error, ImageError) else "there is not enough memory"
            return Scored(shown, None, why=why)
        return Scored(shown, None, found.confidence, label=found.label, score=found.score)

    def _labels(self, picture: Picture, model: Model, head: Head) -> tuple[NDArray[Any], float | None]:
        output = model.contract.output
        pixels_hwc = self._input(picture, model.contract.input)
        scores_khw, geometry = self.scores(pixels_hwc, picture.largest, model, tile=head)
        scores_khw, geometry = on_whole_image(scores_khw, geometry, output)
        found = reduce(scores_khw, geometry, output, rle=False, confidence=True)
        if found.labels_hw is None:
            raise MemoryError
        return found.labels_hw, found.confidence

    def _run(self, tile_hwc: NDArray[Any]) -> NDArray[Any]:
        result: NDArray[Any] = self._session.run(self._repeated(tile_hwc))[0]
        return result

    def _repeated(self, tile_hwc: NDArray[Any]) -> NDArray[Any]:
        """The tile as a batch of the size that the model demands."""
        return np.ascontiguousarray(np.repeat(tile_hwc[None], self._model.batch or 1, axis=0))


def sigmoid(values_khw: NDArray[Any]) -> NDArray[Any]:
    """One probability per class, from logits."""
    with np.errstate(over="ignore"):
        probabilities: NDArray[Any] = 1 / (1 + np.exp(-values_khw))
    return probabilities


def _of_tiles(tile_hw: tuple[int, int]) -> tuple[int, int]:
    """Sides of a part of a picture that is cut into tiles."""
    height, width = (int(side * TWO_TILES) if max(tile_hw) <= SMALL_TILE_PX else side for side in tile_hw)
    return height, width
