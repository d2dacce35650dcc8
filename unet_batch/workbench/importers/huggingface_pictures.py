"""What preprocessor_config.json of Hugging Face's transformers says, as the input of a contract.

Its order is ours: resize the source pixels, multiply, subtract the mean, divide by the standard deviation. Whatever
has no field in the contract is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_batch.contract import Kernel, MeanStd, Normalize, Scale
from unet_batch.errors import JobError, ModelRefused
from unet_batch.workbench.importers.folder import read_settings
from unet_batch.workbench.importers.import_settings import ImportSettings
from unet_batch.workbench.importers.imported import SIDE_PX, Color, Fact

PROCESSOR = "preprocessor_config.json"
KERNELS: dict[int, Kernel] = {2: "pil_bilinear_u8"}
"""By Pillow's number of a filter."""
FILTERS = {0: "nearest", 1: "Lanczos", 3: "bicubic", 4: "box", 5: "Hamming"}
"""Others, by the same numbers. Pillow's nearest takes the pixel at the centre, the contract's `nearest` torch's."""
DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"height": 512, "width": 512},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_reduce_labels": False,
}
"""Of transformers' SegformerImageProcessor, which processes pictures for SegFormer and UperNet."""
PROCESSORS = tuple(
    f"SegformerImageProcessor{suffix}" for suffix in ("", "Fast", "Pil")
)  # the same settings, by different libraries
OLD = "SegformerFeatureExtractor"
"""The same under the key `feature_extractor_type`, before version 4.26."""
UNDERSTOOD = DEFAULTS.keys() | {"do_convert_rgb"}
ROUNDING = (
    "pictures are resized as Pillow does it (SegformerImageProcessorPil); the processor that uses torchvision differs "
    "from it by at most one gray level"
)


class Pictures:
    """The settings of one preprocessor_config.json."""

    def __init__(self, source: Path) -> None:
        """Read the file of a folder. Raises ModelRefused for what no contract describes."""
        self.path = source / PROCESSOR
        self.exists = self.path.is_file()
        tree = read_settings(self.path) if self.exists else {}
        if "reduce_labels" in tree:  # the name before version 4.26
            tree = {"do_reduce_labels": tree["reduce_labels"], **tree}
        self._tree: Mapping[str, Any] = tree
        self._refuse_unknown()

    @property
    def reduces_labels(self) -> bool:
        """Whether class 0 of the model is label 1 of the training, so that there is no background class."""
        return bool(self._value("do_reduce_labels"))

    def tree(self, channels: int, said: ImportSettings, given_hw: tuple[int, int] | None) -> dict[str, Any]:
        """The contract's input as a tree. Raises JobError if neither file nor options hold the normalisation."""
        if not self.exists and said.options.normalize is None:
            raise JobError(
                f"{self.path.parent} has no {PROCESSOR}, which holds the normalisation of the training: give it with "
                "--normalize, or save the image processor into the folder"
            )
        normalize = said.normalize(self._normalize(), channels, f"{PROCESSOR}: image_mean, image_std, rescale_factor")
        found: Color | None = "rgb" if channels == 3 else None
        color = said.color(channels, found, "transformers reads pictures as RGB", how="default")
        resizes = self.exists and bool(self._value("do_resize"))
        fit = said.fit(
            "stretch" if resizes else "tile",
            f"{PROCESSOR}: do_resize" if self.exists else None,
            how="read" if self.exists else "guessed",
        )
        tree: dict[str, Any] = {"color": color, "channels": channels, "fit": fit, "normalize": normalize.model_dump()}
        if fit == "tile":
            return tree
        height, width = given_hw or (self._size() if resizes else (SIDE_PX, SIDE_PX))
        said.add("input.height, width", f"{height}, {width}", *self._origin("size", given=given_hw is not None))
        kernel = self._kernel()
        said.add("input.kernel", kernel, *self._origin("resample", given=False))
        return {**tree, "height": height, "width": width, "kernel": kernel}

    def notes(self, facts: list[Fact]) -> tuple[str, ...]:
        """Remarks for the user."""
        resized = any(fact.field == "input.kernel" and fact.value == "pil_bilinear_u8" for fact in facts)
        return (ROUNDING,) if resized else ()

    def _value(self, key: str) -> Any:
        """A setting, or its default. As in transformers, a step whose `do_…` is null is not done."""
        found = self._tree.get(key, DEFAULTS[key])
        return False if found is None and key.startswith("do_") else found

    def _origin(self, key: str, *, given: bool) -> tuple[str, Any]:
        if given:
            return "--input", "given"
        return (f"{PROCESSOR}: {key}", "read") if key in self._tree else ("SegformerImageProcessor", "default")

    def _refuse_unknown(self) -> None:
        name = self._tree.get("image_processor_type") or self._tree.get("feature_extractor_type")
        if name is not None and name not in (*PROCESSORS, OLD):
            raise self._refused(f"the image processor {name} is not known here: only {', '.join(PROCESSORS)}")
        if "auto_map" in self._tree:
            raise self._refused("it names code of the folder (auto_map), which is not run")
        active = sorted(
            key for key, value in self._tree.items() if key.startswith("do_") and value and key not in UNDERSTOOD
        )
        if active:
            raise self._refused(f"no field of a contract does {', '.join(active)}")
        for key in ("do_resize", "do_rescale", "do_normalize", "do_reduce_labels"):
            if not isinstance(self._value(key), bool):
                raise self._refused(f"{key} must be true or false, not {self._tree[key]!r}")

    def _normalize(self) -> Normalize | None:
        if not self.exists:
            return None
        factor = self._number("rescale_factor") if self._value("do_rescale") else 1.0
        if factor <= 0:
            raise self._refused(f"rescale_factor must be above 0, not {factor}")
        if not self._value("do_normalize"):
            return Scale(scale=factor)
        mean, std = self._numbers("image_mean"), self._numbers("image_std")
        bytes_to_unit = math.isclose(factor, 1 / 255, rel_tol=1e-6)
        return MeanStd(mean=mean, std=std, max=None if bytes_to_unit else 1 / factor)

    def _size(self) -> tuple[int, int]:
        size = self._value("size")
        if isinstance(size, int) and not isinstance(size, bool):  # files before version 4.26
            size = {"height": size, "width": size}
        if not isinstance(size, dict) or {key for key, side in size.items() if side} != {"height", "width"}:
            raise self._refused(
                f"size {size} does not stretch pictures to one height and width, and no field of a contract does that"
            )
        height, width = size["height"], size["width"]
        if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
            raise self._refused(f"size {size} has sides that are not positive numbers")
        return height, width

    def _kernel(self) -> Kernel:
        number = self._value("resample")
        if isinstance(number, bool) or not isinstance(number, int) or number not in KERNELS:
            name = FILTERS.get(number, repr(number)) if isinstance(number, int) else repr(number)
            raise self._refused(f"resample {name} has no kernel in the contract: only bilinear (2)")
        return KERNELS[number]

    def _number(self, key: str) -> float:
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refused(f"{key} must be a number, not {value!r}")
        return float(value)

    def _numbers(self, key: str) -> tuple[float, ...]:
        value = self._value(key)
        values = value if isinstance(value, list) else [value]
        if not values or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise self._refused(f"{key} must be a list of numbers, not {value!r}")
        return tuple(float(v) for v in values)

    def _refused(self, why: str) -> ModelRefused:
        return ModelRefused(f"{self.path}: {why}")
