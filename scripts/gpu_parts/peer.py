"""(c) The same network in PyTorch: eager, channels-last in fp16, and compiled, with the copies of the session."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gpu_parts import networks
from gpu_parts.results import Results, Skipped
from gpu_parts.settings import Settings
from gpu_parts.speed import knee, timed

from unet_batch.session.ladder import sizes_up_to

EAGER_S, COMPILED_S = 5.0, 45.0
"""Least time for another way, and for one that is compiled first."""


def run(settings: Settings, results: Results) -> None:
    """A row for each way under `rows`: pixels go to the device and labels come back, as in a packed file.

    Raises Skipped where PyTorch lacks.
    """
    if (why := networks.from_pytorch(settings)) is not None:
        raise Skipped(f"the network is not PyTorch's: {why}")
    import torch

    torch.set_num_threads(1)
    device = "cuda" if settings.on_gpu else "cpu"
    if settings.on_gpu and not torch.cuda.is_available():
        raise Skipped(f"PyTorch {torch.__version__} sees no GPU here")
    results.put("torch", torch.__version__)
    pixels = networks.tiles_for(networks.packed(settings, "fp32"), settings.cap, settings.size)
    reference = networks.opened(settings, networks.packed(settings, "fp32")).run(pixels[:2])[:, 0]
    ways: list[tuple[str, str, bool]] = [("eager", "fp32", False), ("eager", "fp16", True), ("compile", "fp16", True)]
    if settings.on_gpu:
        ways.insert(1, ("eager", "tf32", True))
    for way, precision, channels_last in ways:
        name = f"{way} {precision}{' channels-last' if channels_last else ''}"
        if way == "compile" and not settings.on_gpu:
            results.add("left_out", f"{name}: it takes minutes on a CPU")
            continue
        if not results.has_time(name, COMPILED_S if way == "compile" else EAGER_S):
            continue
        with results.attempt(name):
            once = _network(settings, device, way, precision, channels_last=channels_last)
            same = float((once(torch.from_numpy(pixels[:2])).numpy() == reference).mean())
            row: dict[str, Any] = {"name": name, "same_labels": same, "tiles_per_s": {}, "first_ms": {}, "knee": None}
            results.add("rows", row)
            sizes = sizes_up_to(settings.cap) if way == "eager" else (settings.cap,)
            for size in sizes:
                batch = torch.from_numpy(np.ascontiguousarray(pixels[:size]))
                batch = batch.pin_memory() if settings.on_gpu else batch
                first, later = timed(partial(once, batch), settings.run_s)
                row["first_ms"][str(size)] = round(first * 1e3, 2)
                row["tiles_per_s"][str(size)] = round(size / later, 1)
                results.put("rows", results.found["rows"])
            row["knee"] = knee({int(size): rate for size, rate in row["tiles_per_s"].items()})
    rates = [rate for row in results.found.get("rows", []) for rate in row["tiles_per_s"].values()]
    results.put("best", max(rates, default=None))


def _network(settings: Settings, device: str, way: str, precision: str, *, channels_last: bool) -> Callable[[Any], Any]:
    """From pixels uint8 (N, H, W, 3) on the host to labels uint8 (N, H, W) on the host."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = torch.float16 if precision == "fp16" else torch.float32
    net = networks.torch_unet(settings).to(device=device, dtype=dtype)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    net = torch.compile(net) if way == "compile" else net

    @torch.inference_mode()
    def once(pixels: Any) -> Any:
        on_device = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
        scaled = on_device.to(dtype) / 255
        logits = net(scaled if channels_last else scaled.contiguous())
        return logits.argmax(dim=1).to(torch.uint8).cpu()

    return once
