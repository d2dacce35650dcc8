"""(a) Logits and labels of the provider against fp32 on the CPU, by network and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from gpu_parts import networks
from gpu_parts.networks import ANY, Network
from gpu_parts.results import Results
from gpu_parts.settings import Settings

from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.session.onnxruntime_session import elsewhere
from unet_batch.spec import Precision
from unet_batch.workbench.quantize import QuantizeSpec, quantize

TILES = 4
LARGE_PX = 512 * 512
"""Of a larger tile the CPU, which computes the reference, gets only one."""
FP32_ERROR = 1e-4
"""Largest error of an fp32 logit that counts as agreement, times the largest magnitude of the CPU's if above 1."""
LABELS = Tolerance(max_flipped=0.001, min_dice=0.995)
"""The defaults of the job's gate, for the other precisions."""
A_NETWORK_S = 5.0
"""Least time for another network."""


def run(settings: Settings, results: Results) -> None:
    """A row for each network and precision under `rows`."""
    subjects: list[tuple[str, Callable[[], Network]]] = [("unet", partial(networks.main_network, settings))]
    subjects += [(path.stem, partial(networks.of_file, path)) for path in settings.models]
    others = [name for name in settings.architectures if name != "unet"]
    subjects += [(name, partial(networks.exported, settings, name)) for name in others]
    for number, (name, make) in enumerate(subjects):
        if number and not results.has_time(name, A_NETWORK_S):
            continue
        with results.attempt(name):
            _compare(settings, results, make())
    with results.attempt("labels in the graph"):
        _packed(settings, results)


def _compare(settings: Settings, results: Results, net: Network) -> None:
    """All precisions of one network against the same reference."""
    tiles = networks.tiles_for(net, TILES if net.model.batch is None else net.model.batch, settings.size)
    if tiles[0, :, :, 0].size > LARGE_PX and net.model.batch is None:
        tiles = tiles[:1]
    reference = networks.on_cpu(net).run(tiles)
    for precision, file in _files(settings, net, tiles):
        with results.attempt(f"{net.name} {precision}"):
            session = networks.opened(settings, file)
            parity = Parity.of(reference, session.run(tiles), net.model.contract.output)
            results.add("rows", _row(net.name, precision, parity, session))


def _files(settings: Settings, net: Network, tiles: Any) -> Iterator[tuple[Precision, Network]]:
    for precision in settings.precisions:
        if precision != "fp16":
            yield precision, net.in_precision(precision)
            continue
        feed = [tiles[n % len(tiles)] for n in range(2)]
        made = quantize(net.data, net.model, feed, QuantizeSpec(kind="fp16", tolerance=ANY))
        yield precision, replace(net, data=made.data, model=made.model, precision=precision)


def _row(name: str, precision: Precision, parity: Parity, session: Any) -> dict[str, Any]:
    allowed = FP32_ERROR * max(1.0, parity.reference_peak)
    breaches = list(LABELS.breaches(parity))
    if precision == "fp32" and parity.max_abs_error > allowed:
        breaches.append(f"a logit differs by {parity.max_abs_error:.2g}, more than {allowed:.2g}")
    return {
        "network": name,
        "precision": precision,
        "provider": session.provider,
        "device": session.device_name,
        "max_abs_error": parity.max_abs_error,
        "mean_abs_error": parity.mean_abs_error,
        "largest_logit": parity.reference_peak,
        "flipped_share": parity.flipped_share,
        "least_dice": min(parity.dice),
        "pixels": parity.pixels,
        "breaches": breaches,
        "elsewhere": dict(elsewhere(session._ort, networks.find("onnxruntime", session.provider).execution_provider)),
    }


def _packed(settings: Settings, results: Results) -> None:
    """Labels decided in the graph against those of the packed file on the CPU, pixel by pixel."""
    for precision in settings.precisions:
        with results.attempt(f"labels of unet {precision}"):
            net = networks.packed(settings, precision)
            tiles = networks.tiles_for(net, TILES, settings.size)
            expected = networks.on_cpu(networks.packed(settings, "fp32")).run(tiles)
            found = networks.opened(settings, net).run(tiles)
            same, nan = float((found == expected).mean()), int(np.isnan(found).sum())
            results.add("labels_in_the_graph", {"precision": precision, "same_share": same, "nan": nan})
