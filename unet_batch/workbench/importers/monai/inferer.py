"""The inferer of a MONAI bundle: the whole image at once, or windows, as this job's tiles (`imaging.tiling`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unet_batch.errors import ModelRefused
from unet_batch.workbench.importers.monai.config import BundleConfig, Component
from unet_batch.workbench.importers.monai.targets import INFERERS

_OF_MACHINE = (
    *("sw_batch_size", "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps"),
    "buffer_dim",
)
"""Arguments that decide where and in which portions MONAI works."""
_PADDING: Mapping[str, str] = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@dataclass(frozen=True, slots=True)
class Window:
    """How the network is applied to an image."""

    roi: tuple[int, int] | None = None
    """Sides of a window, in the order of the network's axes; None: the whole image."""
    tiling: Mapping[str, Any] = field(default_factory=dict)
    """The job's section `tiling`."""
    padding: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the contract's input."""
    notes: tuple[str, ...] = ()

    @property
    def slides(self) -> bool:
        return self.roi is not None

    def size_hw(self, *, transposed: bool) -> tuple[int, int] | None:
        """Height and width of a tile. transposed: whether the network sees the width first."""
        if self.roi is None:
            return None
        return (self.roi[1], self.roi[0]) if transposed else self.roi


def window(config: BundleConfig) -> Window:
    """The key `inferer`. Raises ModelRefused for inferers and arguments that are not understood."""
    if "inferer" not in config.tree:
        return Window()
    found = config.component(config.tree["inferer"], "inferer", INFERERS)
    if found.name == "SimpleInferer":
        found.only()
        return Window()
    if found.name != "SlidingWindowInferer":
        raise ModelRefused(f"{found.where}: {found.target} is neither SimpleInferer nor SlidingWindowInferer")
    found.only("roi_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "with_coord", *_OF_MACHINE)
    if found.take("with_coord", default=False):
        raise ModelRefused(f"{found.where}: with_coord is not understood")
    roi = _pair(found, "roi_size", None)
    if any(not isinstance(side, int) or side < 1 for side in roi):
        raise ModelRefused(f"{found.where}: roi_size {list(roi)!r} has a side that depends on the image")
    overlaps, sigmas = _pair(found, "overlap", 0.25), _pair(found, "sigma_scale", 0.125)
    if overlaps[0] != overlaps[1] or sigmas[0] != sigmas[1]:
        raise ModelRefused(f"{found.where}: overlap and sigma_scale must be the same on both axes")
    mode, padding = found.take("mode", "constant"), found.take("padding_mode", "constant")
    if mode not in ("constant", "gaussian") or padding not in _PADDING:
        raise ModelRefused(f"{found.where}: mode {mode!r} with padding_mode {padding!r} is not understood")
    tiling = {"overlap": float(overlaps[0]), "blend": mode}
    if mode == "gaussian":
        tiling["sigma"] = float(sigmas[0])
    value = found.number("cval", 0.0)
    pad = {"padding": _PADDING[padding], **({"pad_value": value, "pad_units": "normalized"} if value else {})}
    return Window((int(roi[0]), int(roi[1])), tiling, pad)


def _pair(component: Component, key: str, default: float | None) -> tuple[Any, Any]:
    value = component.take(key, default)
    values = value if isinstance(value, list) else [value, value]
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ModelRefused(f"{component.where}: {key} must be a number or two, not {value!r}")
    return values[0], values[1]
