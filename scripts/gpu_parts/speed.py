"""(b) Tiles per second of the bare session: by batch size, precision, labels or logits, and way of copying."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpu_parts import card, networks
from gpu_parts.networks import Network
from gpu_parts.results import Results
from gpu_parts.settings import Settings
from numpy.typing import NDArray

from unet_batch.session.ladder import KNEE, sizes_up_to
from unet_batch.session.onnxruntime_options import cuda_options
from unet_batch.session.onnxruntime_session import _preload
from unet_batch.session.session import Device, in_model_layout
from unet_batch.spec import SessionSpec

LEAST_RUNS = 3
A_ROW_S = 3.0
"""Least time for another row of the table."""


@dataclass(frozen=True, slots=True)
class Way:
    """How batches reach the network."""

    name: str
    options: Mapping[str, str]
    """Of the CUDA provider, instead of the product's."""
    every_size: bool
    """Whether all sizes are timed, or three."""


PLAIN_LAYOUT = {"cuda": {"prefer_nhwc": False}}
WAYS = (
    Way("session", {}, True),
    Way("pinned", {}, False),
    Way("on device", {}, False),
    Way("graph", {"enable_cuda_graph": "1"}, False),
    Way("nchw", {}, False),
)
"""session: the product's own, with its copies. pinned: input and output bound to page-locked memory. on device: input
and output stay on the GPU, so nothing is copied. graph: the same, replayed as a CUDA graph. nchw: as session, not
channels-last."""


def run(settings: Settings, results: Results) -> None:
    """A row for each way, precision and kind of output under `rows`; the knees under `knees`."""
    for way in WAYS:
        for precision in reversed(settings.precisions):  # the fastest first
            for packed in (True, False):
                name = f"{way.name} {precision} {'labels' if packed else 'logits'}"
                if results.found.get("rows") and not results.has_time(name, A_ROW_S):
                    continue
                with results.attempt(name):
                    make = networks.packed if packed else networks.in_precision
                    _row(settings, results, way, make(settings, precision))
    results.put("knees", {row["name"]: row["knee"] for row in results.found.get("rows", []) if row["knee"]})
    results.put("best", max((row["best"] for row in results.found.get("rows", [])), default=None))


def _row(settings: Settings, results: Results, way: Way, net: Network) -> None:
    name = f"{way.name} {net.precision} {'labels' if net.packed else 'logits'}"
    sizes = sizes_up_to(settings.cap)
    chosen = sizes if way.every_size else sorted({1, min(8, settings.cap), settings.cap})
    tiles = networks.tiles_for(net, settings.cap, settings.size)
    row: dict[str, Any] = {"name": name, "way": way.name, "precision": net.precision, "packed": net.packed}
    row |= {"tiles_per_s": {}, "first_ms": {}, "knee": None, "best": 0.0}
    results.add("rows", row)  # filled in place: a section that is killed leaves the sizes that it had
    with contextlib.ExitStack() as stack:
        prepare = _way(settings, way, net, stack)
        for size in chosen:
            first, later = timed(prepare(tiles[:size]), settings.run_s)
            row["first_ms"][str(size)] = round(first * 1e3, 2)
            row["tiles_per_s"][str(size)] = round(size / later, 1)
            row["best"] = max(row["tiles_per_s"].values())
            results.put("rows", results.found["rows"])
    if way.every_size:
        row["knee"] = knee({int(size): rate for size, rate in row["tiles_per_s"].items()})


def knee(rates: Mapping[int, float]) -> int:
    """The smallest size with nearly the best rate, by the rule of the product's ladder."""
    top = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= KNEE * top)


def timed(once: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Seconds of the first run, and the median of the later ones, which take at least `seconds` together."""
    start = time.perf_counter()
    once()
    first = time.perf_counter() - start
    once()  # a second one that is not timed: plans and graphs are complete after it
    spent: list[float] = []
    while len(spent) < LEAST_RUNS or sum(spent) < seconds:
        start = time.perf_counter()
        once()
        spent.append(time.perf_counter() - start)
    return first, float(np.median(spent))


Prepare = Callable[[NDArray[Any]], Callable[[], object]]
"""From a batch (N, H, W, C) to a function that runs it once."""


def _way(settings: Settings, way: Way, net: Network, stack: contextlib.ExitStack) -> Prepare:
    if way.name in ("session", "nchw"):
        plain = way.name == "nchw" and settings.on_gpu
        session = networks.opened(settings, net, **({"provider_options": PLAIN_LAYOUT} if plain else {}))
        return lambda tiles: lambda: session.run(tiles)
    bare = _bare(settings, net, way.options)
    kind = "cuda" if settings.on_gpu else "cpu"
    if way.name == "pinned":
        return lambda tiles: _pinned(settings, bare, net, in_model_layout(net.model, tiles), stack)
    return lambda tiles: _on_device(bare, net, in_model_layout(net.model, tiles), kind)


def _bare(settings: Settings, net: Network, options: Mapping[str, str]) -> Any:
    """An `onnxruntime.InferenceSession` with the product's options but these."""
    import onnxruntime as ort

    wanted = ort.SessionOptions()
    wanted.intra_op_num_threads = wanted.inter_op_num_threads = 1
    wanted.log_severity_level = 3
    if settings.on_gpu:
        _preload(tensorrt=False)
        ours = cuda_options(SessionSpec(providers=("cuda",)), Device(threads=1), precision=net.precision)
        wanted.add_provider("CUDAExecutionProvider", ours | options)
    return ort.InferenceSession(net.data, wanted, enable_fallback=0)


def _bound(bare: Any, binding: Any, size: int, kept: object) -> Callable[[], object]:
    """A function that runs a binding and waits for its outputs.

    size: tells the graphs of several sizes apart. kept: the arrays, of which the binding has only addresses.
    """
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(size))

    def once() -> object:
        bare.run_with_iobinding(binding, options)
        binding.synchronize_outputs()
        return kept

    return once


def _pinned(
    settings: Settings, bare: Any, net: Network, pixels: NDArray[Any], stack: contextlib.ExitStack
) -> Callable[[], object]:
    expected = _expected(net, pixels)
    outputs = {name: np.empty((len(pixels), *first.shape[1:]), first.dtype) for name, first in expected.items()}
    source = pixels.copy()
    if settings.on_gpu:
        stack.enter_context(card.page_locked(source, *outputs.values()))
    binding = bare.io_binding()
    name = net.model.input_name
    binding.bind_input(name, "cpu", 0, source.dtype.type, source.shape, source.ctypes.data)
    for output, array in outputs.items():
        binding.bind_output(output, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    once = _bound(bare, binding, len(pixels), (source, outputs))
    once()
    _check(expected, outputs)
    return once


def _on_device(bare: Any, net: Network, pixels: NDArray[Any], kind: str) -> Callable[[], object]:
    import onnxruntime as ort

    expected = _expected(net, pixels)
    binding = bare.io_binding()
    binding.bind_ortvalue_input(net.model.input_name, ort.OrtValue.ortvalue_from_numpy(pixels, kind, 0))
    outputs = {
        name: ort.OrtValue.ortvalue_from_shape_and_type([len(pixels), *first.shape[1:]], first.dtype.type, kind, 0)
        for name, first in expected.items()
    }
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    once = _bound(bare, binding, len(pixels), outputs)
    once()
    _check(expected, {name: value.numpy() for name, value in outputs.items()})
    return once


def _expected(net: Network, pixels: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """All outputs of the first tile, from the CPU."""
    import onnxruntime as ort

    one = ort.InferenceSession(net.data, providers=["CPUExecutionProvider"])
    names = [value.name for value in one.get_outputs()]
    return dict(zip(names, one.run(names, {net.model.input_name: pixels[:1]}), strict=True))


def _check(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> None:
    """Raises RuntimeError if bound outputs do not hold the results: a fast run of nothing is no figure."""
    for name, first in expected.items():
        wanted, got = first.astype(np.float32), found[name][:1].astype(np.float32)
        share = float((np.abs(wanted - got) > 0.05 * max(float(np.abs(wanted).max()), 1.0)).mean())
        if not share <= 0.01:
            raise RuntimeError(f"the bound output {name} differs from the CPU's in {share:.1%} of its values")
