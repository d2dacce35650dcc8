"""An exported file held against the network it came from: run as a job would run it, at several batches and sizes.

Knows sessions, parity and tolerances. Changes nothing; a file that is out of tolerance is refused with the first node
that diverges.

Legend: N images, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_batch.contract import Contract
from unet_batch.errors import ModelRefused, UnetBatchError
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.job.cores import cores
from unet_batch.model.contract import find_contract, resolve
from unet_batch.model.graph import read
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.plain_session import PlainSession
from unet_batch.session.session import Device, Session
from unet_batch.spec import SessionSpec, TilingSpec
from unet_batch.workbench.export.divergence import captured_otherwise, first_divergence
from unet_batch.workbench.export.graph import INPUT_NAME, Captured
from unet_batch.workbench.export.network import outputs_by_module, run, runs, share, smallest_multiple

Array = npt.NDArray[Any]
Size = tuple[int, int]

BATCHES = (1, 2, 5)
"""One alone, the size that was exported with, and one that nothing divides."""
GIVEN_BATCH = 4
SAME = 1e-2
"""Share of the largest value below which two outputs are of the same sizes; how equal they are is tried afterwards."""
MAX_FLIPPED, MIN_DICE = 1e-4, 0.999
RELATIVE_ERROR = 1e-4
"""Largest error of a value, as a share of the largest one (of 1 where that is smaller): float32 on both sides."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One batch that PyTorch and ONNX Runtime both scored."""

    images: Literal["random", "given"]
    batch: int
    size: Size
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {"images": self.images, "batch": self.batch, "size": list(self.size), "parity": self.parity.to_json()}


def random_images(count: int, channels: int, size: Size, *, seed: int) -> Array:
    """float32 (count, channels, H, W): values in [0, 1), and in every second image normal noise, as z-scores are."""
    random = np.random.default_rng(seed)
    images = random.random((count, channels, *size), np.float32)
    images[1::2] = random.standard_normal(images[1::2].shape, np.float32)
    return images


def multiple_of(data: bytes, network: Any, images_nchw: Array, *, ratio: float, least: int) -> int | None:
    """What the sides of a file's images must be a multiple of, so that it gives PyTorch's results; None: unknown.

    At least the network's own multiple: Python code that branches on sizes is captured for one kind of sizes only.
    """
    session = PlainSession(data)

    def scores(image_1chw: Array) -> Array:
        found = next(iter(session.run({INPUT_NAME: image_1chw}).values()))
        expected = run(network, image_1chw)
        if share(expected, found.reshape(expected.shape)) > SAME:
            raise ModelRefused("another result than PyTorch's")
        return expected

    return smallest_multiple(scores, images_nchw, ratio=ratio, least=least)


def verify(
    data: bytes,
    captured: Captured,
    network: Any,
    *,
    size: Size,
    any_size: bool,
    given_nchw: Array | None = None,
    tolerance: Tolerance | None = None,
    seed: int = 0,
) -> list[Trial]:
    """Every trial of a file: 1, 2 and 5 random images, more sizes where sides are open, and the given images.

    data: the file with its contract inside, opened as a job opens it: from bytes, on the CPU. tolerance: left out, the
    one of this module's constants. given_nchw: float32, normalised as the network was trained.
    Raises ModelRefused where a trial is out of tolerance or cannot run, with the first node that diverges.
    """
    session = _opened(data)
    output = session.model.contract.output
    trials = []
    for kind, images in _batches(
        session.model.contract, network, size, any_size=any_size, given_nchw=given_nchw, seed=seed
    ):
        expected = run(network, images)
        try:
            found = session.run(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
            parity = Parity.of(expected, found, output)
        except UnetBatchError as error:
            culprit = _culprit(data, captured, network, images[:1])
            raise ModelRefused(_refusal(kind, images, str(error), culprit)) from error
        breaches = (tolerance or _tolerance(parity)).breaches(parity)
        if breaches:
            worst = int(np.abs(np.nan_to_num(expected - found, nan=np.inf)).max(axis=(1, 2, 3)).argmax())
            culprit = _culprit(data, captured, network, images[worst : worst + 1])
            raise ModelRefused(_refusal(kind, images, "; ".join(breaches), culprit))
        trials.append(Trial(kind, len(images), (images.shape[2], images.shape[3]), parity))
    return trials


def _opened(data: bytes) -> Session:
    file = read_model(data, "the exported file", None)
    model = resolve(find_contract(file, None, "the exported file"), file, TilingSpec())
    return open_session(data, model, SessionSpec(), Device(threads=cores()))


def _batches(
    contract: Contract, network: Any, size: Size, *, any_size: bool, given_nchw: Array | None, seed: int
) -> Iterator[tuple[Literal["random", "given"], Array]]:
    channels, multiple = contract.input.channels, contract.input.multiple
    for batch in BATCHES:
        yield "random", random_images(batch, channels, size, seed=seed + batch)
    if any_size:
        larger = (size[0] + multiple, size[1] + 2 * multiple)
        smaller = (max(size[0] // 2 // multiple, 1) * multiple, max(size[1] // 2 // multiple, 1) * multiple)
        for other in (larger, smaller):
            images = random_images(2, channels, other, seed=seed)
            if runs(network, images):  # a small one may be too small for the deepest level
                yield "random", images
    if given_nchw is not None:
        for first in range(0, len(given_nchw), GIVEN_BATCH):
            yield "given", given_nchw[first : first + GIVEN_BATCH]


def _tolerance(parity: Parity) -> Tolerance:
    return Tolerance(MAX_FLIPPED, MIN_DICE, RELATIVE_ERROR * max(1.0, parity.reference_peak))


def _refusal(kind: str, images: Array, problem: str, culprit: str) -> str:
    count, _, height, width = images.shape
    return (
        f"the exported file does not give PyTorch's results for {count} {kind} image(s) of {height}x{width}: "
        f"{problem}; {culprit}"
    )


def _culprit(data: bytes, captured: Captured, network: Any, image_1chw: Array) -> str:
    """Where the results of a file go astray on an image."""
    try:
        module = captured_otherwise(outputs_by_module(network, image_1chw), captured.program, image_1chw)
        if module is not None:
            first = f", first in module {module}" if module else ""
            return f"PyTorch captured something else than the network computes{first}"
        found = first_divergence(read(data, "the exported file"), captured.program, image_1chw)
    except ModelRefused as error:
        return str(error)
    return str(found) if found else "each node by itself is right, so ONNX Runtime's optimiser changes the result"
