"""Mirroring as test-time augmentation: a model runs on each flip of its tiles, and its results are averaged.

Arrays: N tiles, C channels, K classes, H and W pixels of the tile, h and w of the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from unet_batch.errors import ContractError, OutOfMemory
from unet_batch.model.model import Model
from unet_batch.session.combined.ensemble import Ensemble
from unet_batch.session.session import Array, Session, check_tiles
from unet_batch.spec import JobSpec, Tta

ROWS, COLUMNS = 0, 1
FLIPS: Mapping[Tta, tuple[tuple[int, ...], ...]] = MappingProxyType(
    {
        "none": ((),),
        "mirror": ((), (ROWS,), (COLUMNS,), (ROWS, COLUMNS)),
        "mirror_vertical": ((), (ROWS,)),
        "mirror_horizontal": ((), (COLUMNS,)),
    }
)
"""`tta` → the axes that each pass flips, the unchanged tile first: nnU-Net's order, and so its order of sums."""


def passes(job: JobSpec) -> int:
    """How often each model of the job runs on each tile."""
    return len(FLIPS[job.tta])


def scoring_session(parts: Sequence[Session], model: Model, job: JobSpec) -> Session:
    """The session that scores: with the job's flips, and its ensemble.

    parts: the session of each file. model: of the file, or the combined model. Each member averages its own flips
    before the members are combined, so that probabilities and votes are those of the averaged logits.
    """
    sessions = parts if job.tta == "none" else [Mirrored(part, job.tta, job.session.batch_max) for part in parts]
    return sessions[0] if job.model.ensemble is None else Ensemble(sessions, model, job.model.ensemble.combine)


def check_mirroring(job: JobSpec, models: Sequence[Model]) -> None:
    """Raise ContractError if a model returns labels or masks, which cannot be averaged."""
    if job.tta == "none":
        return
    for path, model in zip(job.model.paths, models, strict=True):
        output = model.contract.output
        if output.decided:
            raise ContractError(
                f"tta: {job.tta} averages scores, and {path} returns {output.activation}: leave tta out, or export the "
                "model with its logits"
            )


class Mirrored:
    """A session that runs each batch on the flips of `tta` and returns the mean after flipping back.

    The mean is of what the model returns: logits, or probabilities if the graph ends with them.
    """

    def __init__(self, inner: Session, tta: Tta, batch_max: int) -> None:
        """batch_max: most tiles, flipped ones included, of one run of `inner`; a batch of the caller is never split."""
        self.model = inner.model
        self.provider = inner.provider
        self.device_name = inner.device_name
        self._inner = inner
        self._flips = FLIPS[tta]
        self._most = batch_max

    def run(self, tiles: Array) -> Array:
        """As in `Session`. Raises OutOfMemory if one pass does not fit, or all passes of several tiles do not."""
        check_tiles(self.model, tiles)
        results = self._passes(tiles)
        total = next(results)
        for result in results:
            total += result
        total /= np.float32(len(self._flips))
        return total

    def _passes(self, tiles: Array) -> Iterator[Array]:
        """The result of each pass, float32 (N, K, h, w), flipped back; as many passes as fit are one batch."""
        waiting = self._flips
        while waiting:
            together = max(1, self._most // len(tiles)) if self.model.batch is None else 1
            now = waiting[:together]
            try:
                results = self._inner.run(np.concatenate([_flipped(tiles, flip, rows_axis=1) for flip in now]))
            except OutOfMemory:
                if len(now) == 1 or len(tiles) > 1:  # with several tiles, the ladder tries a smaller batch
                    raise
                self._most = len(now) // 2
                continue
            waiting = waiting[len(now) :]
            for flip, result in zip(now, np.split(results, len(now)), strict=True):
                yield _flipped(result, flip, rows_axis=2)


def _flipped(array: Array, flip: tuple[int, ...], *, rows_axis: int) -> Array:
    """A view with these axes of the picture reversed. rows_axis: position of the rows; the columns follow them."""
    view: Array = np.flip(array, tuple(rows_axis + axis for axis in flip))
    return view
