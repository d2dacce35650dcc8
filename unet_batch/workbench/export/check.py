"""Compares an exported file with its network: run as in a job, with several batches and sizes.

A file beyond the tolerance is refused; the message names the first node that diverges.

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
from unet_batch.workbench.export.network import outputs_by_module, run, runs, share
from unet_batch.workbench.export.sides import smallest_multiple

Array = npt.NDArray[Any]
Size = tuple[int, int]

BATCHES = (1, 2, 5)
"""A single image, the batch size of the export, and a prime number."""
GIVEN_BATCH = 4
SAME = 1e-2
"""Coarse tolerance, as a share of the largest value, while the multiple is searched; `verify` uses the strict one."""
MAX_FLIPPED, MIN_DICE = 1e-4, 0.999
RELATIVE_ERROR = 1e-4
"""Largest error of a value, as a share of the largest value (at least 1): both sides compute in float32."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One batch that both PyTorch and ONNX Runtime scored."""

    images: Literal["random", "given"]
    batch: int
    size: Size
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {"images": self.images, "batch": self.batch, "size": list(self.size), "parity": self.parity.to_json()}


def random_images(count: int, channels: int, size: Size, *, seed: int) -> Array:
    """float32 (count, channels, H, W): values in [0, 1); every second image is normal noise, like z-scores."""
    random = np.random.default_rng(seed)
    images = random.random((count, channels, *size), np.float32)
    images[1::2] = random.standard_normal(images[1::2].shape, np.float32)
    return images


def multiple_of(data: bytes, network: Any, images_nchw: Array, *, ratio: float, margin: int, least: int) -> int | None:
    """The multiple for the sides of images with which a file gives PyTorch's results; None if unknown.

    At least the network's multiple. It may be larger: code that branches on sizes is captured for one branch only.
    """
    session = PlainSession(data)

    def scores(image_1chw: Array) -> Array:
        found = next(iter(session.run({INPUT_NAME: image_1chw}).values()))
        expected = run(network, image_1chw)
        if share(expected, found.reshape(expected.shape)) > SAME:
            raise ModelRefused("another result than PyTorch's")
        return expected

    return smallest_multiple(scores, images_nchw, ratio=ratio, margin=margin, least=least)


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
    """Run all trials of a file: 1, 2 and 5 random images, more sizes if sides are open, and the given images.

    data: the file with its contract, opened as in a job: from bytes, on the CPU. tolerance: default: this module's
    constants. given_nchw: float32, normalised as in training.
    Raises ModelRefused if a trial exceeds the tolerance or cannot run; the message names the first wrong node.
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
            where = _first_wrong_node(data, captured, network, images[:1])
            raise ModelRefused(_refusal(kind, images, str(error), where)) from error
        breaches = (tolerance or _tolerance(parity)).breaches(parity)
        if breaches:
            worst = int(np.abs(np.nan_to_num(expected - found, nan=np.inf)).max(axis=(1, 2, 3)).argmax())
            where = _first_wrong_node(data, captured, network, images[worst : worst + 1])
            raise ModelRefused(_refusal(kind, images, "; ".join(breaches), where))
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
        least = contract.input.side(2 * contract.output.margin + 1)
        half_h, half_w = (contract.input.side(side // 2 - multiple + 1) for side in size)
        smaller = (max(half_h, least), max(half_w, least))
        for other in (larger, smaller):
            images = random_images(2, channels, other, seed=seed)
            if runs(network, images):  # a small one may be too small for the deepest level
                yield "random", images
    if given_nchw is not None:
        for first in range(0, len(given_nchw), GIVEN_BATCH):
            yield "given", given_nchw[first : first + GIVEN_BATCH]


def _tolerance(parity: Parity) -> Tolerance:
    return Tolerance(MAX_FLIPPED, MIN_DICE, RELATIVE_ERROR * max(1.0, parity.reference_peak))


def _refusal(kind: str, images: Array, problem: str, where: str) -> str:
    count, _, height, width = images.shape
    return f"the exported file differs from PyTorch for {count} {kind} image(s) of {height}x{width}: {problem}; {where}"


def _first_wrong_node(data: bytes, captured: Captured, network: Any, image_1chw: Array) -> str:
    """Where the results of a file first differ on an image."""
    if captured.program is None:
        return "TorchScript does not say in which module"
    try:
        module = captured_otherwise(outputs_by_module(network, image_1chw), captured.program, image_1chw)
        if module is not None:
            first = f", first in module {module}" if module else ""
            return f"the program that PyTorch captured differs from the network{first}"
        found = first_divergence(read(data, "the exported file"), captured.program, image_1chw)
    except ModelRefused as error:
        return str(error)
    return str(found) if found else "each single node is right, so ONNX Runtime's optimiser changes the result"
