"""The ways to run a model that `model optimize` builds and measures; each is one small function.

A way that cannot be built is left out with a sentence. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from unet_batch.errors import ModelRefused
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.model.model import Model
from unet_batch.model.optimized import fp32_network
from unet_batch.session import gpu
from unet_batch.session.engines import file_precision
from unet_batch.spec import Precision, SessionSpec
from unet_batch.workbench.packing.pack import PackSpec, pack
from unet_batch.workbench.quantize import QuantizeSpec, outputs, quantize, split
from unet_batch.workbench.variants import Variant, variants

SAME = Tolerance(max_flipped=1e-4, min_dice=0.999)
"""Of the fp32 network inside an 8-bit file, against the original: batch norms are folded, so last bits differ."""
UNTILED = ("pad", "none")
"""Fits of a contract with which no tiles overlap and no mask is resized, so that labels lose nothing."""


@dataclass(frozen=True, slots=True)
class Material:
    """What candidates are built from."""

    data: bytes
    """The fp32 file."""
    model: Model
    tiles: Sequence[NDArray[Any]]
    """Tiles (H, W, C) of the archive, of one size; `quantize.split` says which ones calibrate."""
    tolerance: Tolerance
    labels_suffice: bool
    """Whether the job stores no confidence, so that labels may be decided in the graph."""
    gate_images: int = 0
    """Images that the gate of the job compares."""


def candidates(material: Material, leave_out: Callable[[str], object]) -> list[Variant]:
    """All ways to run the model on this machine, fp32 in ONNX Runtime first.

    leave_out: gets a sentence for each file that could not be made.
    """
    found = variants(material.data, int8_file(material, leave_out))
    if gpu.ask_driver().memory_bytes is not None:
        found += gpu_candidates(material, leave_out)
    return found


def int8_file(material: Material, leave_out: Callable[[str], object]) -> bytes | None:
    """The model in 8 bits, calibrated from the archive, with layers back in fp32 until the tolerance is met.

    The file holds its fp32 network too. None if there is no such file.
    """
    asked = QuantizeSpec(
        tolerance=material.tolerance, gate_images=material.gate_images, keep_first=False, float_weights=True
    )
    try:
        made = quantize(material.data, material.model, material.tiles, asked)
    except ModelRefused as error:
        leave_out(f"int8: {error}")
        return None
    if file_precision(made.data) != "int8":
        leave_out("int8: the first and the last layer stay fp32, and there are no others")
        return None
    inside = fp32_network(made.data)
    if inside is None or SAME.breaches(_parity(material, inside)):
        leave_out("int8: the quantised file does not hold its fp32 network")
        return None
    return made.data


def gpu_candidates(material: Material, leave_out: Callable[[str], object]) -> Iterator[Variant]:
    """fp32, tf32 and fp16 on CUDA, in both layouts, and with the labels decided in the graph if the job allows it."""
    yield Variant("cuda fp32", material.data, "onnxruntime", "fp32", session=on_cuda())
    yield Variant("cuda tf32", material.data, "onnxruntime", "tf32", session=on_cuda())
    yield Variant("cuda tf32 nchw", material.data, "onnxruntime", "tf32", session=on_cuda(channels_last=False))
    half = fp16_file(material, leave_out)
    if half is not None:
        yield Variant("cuda fp16", half, "onnxruntime", "fp16", session=on_cuda())
        yield Variant("cuda fp16 nchw", half, "onnxruntime", "fp16", session=on_cuda(channels_last=False))
    if material.labels_suffice and material.model.contract.input.fit in UNTILED:
        yield from with_labels(material, half, leave_out)


def on_cuda(*, channels_last: bool = True) -> SessionSpec:
    """A session on CUDA; its layout inside is NHWC, which tensor cores take, or NCHW."""
    options: dict[str, dict[str, str | bool | int | float]] = {} if channels_last else {"cuda": {"prefer_nhwc": 0}}
    return SessionSpec(providers=("cuda",), provider_options=options)


def fp16_file(material: Material, leave_out: Callable[[str], object]) -> bytes | None:
    """The model in fp16, with layers back in fp32 until the tolerance is met; None if there is no such file."""
    try:
        asked = QuantizeSpec(kind="fp16", tolerance=material.tolerance, gate_images=material.gate_images)
        return quantize(material.data, material.model, material.tiles, asked).data
    except ModelRefused as error:
        leave_out(f"fp16: {error}")
        return None


def with_labels(material: Material, half: bytes | None, leave_out: Callable[[str], object]) -> Iterator[Variant]:
    """CUDA with ArgMax or the threshold in the graph: labels leave the GPU in place of scores."""
    files: list[tuple[Precision, bytes | None]] = [("tf32", material.data), ("fp16", half)]
    for precision, data in files:
        if data is None:
            continue
        try:
            packed = pack(data, material.model, PackSpec(pre=False))
        except ModelRefused as error:
            leave_out(f"{precision} with labels in the graph: {error}")
            continue
        name = f"cuda {precision} labels"
        yield Variant(name, packed.data, "onnxruntime", precision, session=on_cuda(), model=packed.model)


def _parity(material: Material, other: bytes) -> Parity:
    """The parity of another file with the fp32 file on the held-out tiles, both in ONNX Runtime."""
    judges = split(material.tiles)[1]
    one, two = (outputs(data, material.model, judges) for data in (material.data, other))
    return Parity.of(one, two, material.model.contract.output)
