"""The contract: what a model expects and returns. This module only defines its fields.

A contract is a YAML file beside the model (`nuclei.onnx` → `nuclei.yaml`) or part of the model's metadata. All of it
enters the fingerprint, because each field changes pixels or labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LATER: Mapping[str, object] = MappingProxyType(
    {
        "input.crop": "none",
        "input.remainder": 0,
        "output.margin": 0,
        "output.label_from": "largest",
        "output.label_above": 0.0,
        "output.top": 5,
    }
)
"""Fields of the contract that older versions lacked, and the value that means what those versions did. With this value
a field does not enter digests, so fingerprints stay when a field is added."""


class Section(BaseModel):
    """A frozen section of a job file or contract. Unknown keys and wrong types are errors; nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Divide(Section):
    """Divide by the largest value of the bit depth that a source declares: 2^bits − 1 for unsigned integers (255 for 8
    bits, 4095 for 12, 65535 for 16), 1 for floats and booleans. Signed integers have no such value: write `max`."""

    kind: Literal["unit"] = "unit"
    max: float | None = Field(default=None, gt=0)
    """Divide every source by this instead, e.g. 4095 for 12-bit values in a 16-bit file."""


class Scale(Section):
    """x · scale + offset."""

    kind: Literal["scale"] = "scale"
    scale: float = 1.0
    """Factor, applied first."""
    offset: float = 0.0
    """Added after the factor."""


class MeanStd(Section):
    """(x / max − mean) / std, with max as in `unit`."""

    kind: Literal["mean_std"] = "mean_std"
    max: float | None = Field(default=None, gt=0)
    """Divide every source by this instead of what `unit` divides by."""
    mean: tuple[float, ...] = Field(strict=False)
    """One per channel, of values in [0, 1] (of source values over `max`, where that is given)."""
    std: tuple[float, ...] = Field(strict=False)
    """One per channel, of the same values."""


class CtWindow(Section):
    """CT window: [center − width/2, center + width/2] → [low, high], clipped (MONAI ScaleIntensityRange)."""

    kind: Literal["window"] = "window"
    center: float
    """Middle of the window, in source units."""
    width: float = Field(gt=0)
    """Full width of the window, in source units."""
    low: float = 0.0
    """Value of the lower end."""
    high: float = 1.0
    """Value of the upper end."""


class Percentile(Section):
    """Percentiles [lower, upper] of the image → [low, high], clipped (MONAI ScaleIntensityRangePercentiles)."""

    kind: Literal["percentile"] = "percentile"
    lower: float = Field(default=1.0, ge=0, le=100)
    """Lower percentile, linearly interpolated."""
    upper: float = Field(default=99.0, ge=0, le=100)
    """Upper percentile, linearly interpolated."""
    low: float = 0.0
    """Value of the lower percentile."""
    high: float = 1.0
    """Value of the upper percentile."""
    per_channel: bool = False
    """Compute the percentiles for each channel."""


class ZScore(Section):
    """(x − mean) / std of the image itself; population std, and a std of 0 counts as 1 (MONAI NormalizeIntensity)."""

    kind: Literal["zscore"] = "zscore"
    per_channel: bool = False
    """Compute mean and std for each channel."""
    nonzero: bool = False
    """Compute mean and std over the pixels that are not 0; the others stay 0."""


class Raw(Section):
    """No normalisation here: the graph normalises."""

    kind: Literal["none"] = "none"


Normalize = Annotated[Divide | Scale | MeanStd | CtWindow | Percentile | ZScore | Raw, Field(discriminator="kind")]

Kernel = Literal["pil_bilinear_u8", "triangle_f32", "torch_bilinear", "nearest"]


class ModelInput(Section):
    """The model's input tensor, and how an image becomes one."""

    name: str | None = None
    """Name of the input tensor; not needed if the model has one input."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Order of the axes."""
    dtype: Literal["float32", "float16", "uint8", "uint16"] = "float32"
    """Element type of the tensor."""
    color: Literal["gray", "rgb", "bgr", "bands"] = "rgb"
    """What the channels mean: gray has 1 channel, rgb and bgr have 3; bands keep the file's order."""
    channels: int = Field(default=3, ge=1)
    """Size of the channel axis."""
    height: int | None = Field(default=None, ge=1)
    """Rows of the tensor; not needed if the model fixes them or accepts any number."""
    width: int | None = Field(default=None, ge=1)
    """Columns of the tensor; not needed if the model fixes them or accepts any number."""
    multiple: int = Field(default=1, ge=1)
    """Rows and columns must be a multiple of this (2^levels of the U-Net) if they are not fixed."""
    remainder: int = Field(default=0, ge=0)
    """Added to the multiple: rows and columns are n · multiple + remainder. For a U-Net with unpadded convolutions they
    are 16 · n + 12, such as 572."""
    series_channels: Literal["bands", "pages"] | None = None
    """How to read an OME-TIFF, ImageJ or tifffile series that stores each channel in its own page: the channels are
    bands of one image, or each page is an image. Without this field such files are rejected."""
    crop: Literal["none", "nonzero"] = "none"
    """nonzero: an image is cut to the box around its pixels that are not 0 in every channel, before all else, and what
    lies outside is class 0, or no class (as in nnU-Net). An image that is 0 everywhere is not cut."""
    fit: Literal["tile", "stretch", "letterbox", "pad", "none"] = "tile"
    """How an image gets the model's size: tile cuts it into tiles (small images are padded), stretch resizes,
    letterbox resizes and keeps the aspect ratio, pad pads, none rejects other sizes."""
    kernel: Kernel = "pil_bilinear_u8"
    """Resize kernel of `stretch` and `letterbox`."""
    padding: Literal["constant", "reflect", "edge", "refuse"] = "constant"
    """What `tile`, `pad` and `letterbox` add around an image: a constant, its mirror image, or its repeated edge.
    refuse: images that need padding are rejected. With `output.margin` every image needs a border, and the default is
    reflect, as in the U-Net paper."""
    pad_value: float = 0.0
    """Value of constant padding."""
    pad_units: Literal["normalized", "source"] | None = None
    """Units of `pad_value`: after normalisation, as MONAI and nnU-Net pad, or of the source (letterbox models trained
    with Ultralytics' rule have pad_value 114 in source units). Not needed for 0, which then means 0 after
    normalisation."""
    source_max: float | None = Field(default=None, gt=0)
    """Largest value that sources must declare, as in `unit`; other sources are rejected. Packed models set it, because
    their graphs divide by it. Default: any."""
    scale_up: bool = True
    """Whether `letterbox` may enlarge."""
    exif: Literal["apply", "ignore"] = "apply"
    """Whether the EXIF orientation is applied; masks refer to the oriented image."""
    alpha: Literal["drop", "black", "white"] = "drop"
    """What happens to an alpha channel: it is dropped, or the image is composed over black or white."""
    reduced_jpeg: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size, never below the fitted size: less than half of the time, and other
    pixels. For `stretch` and `letterbox`."""
    normalize: Normalize = Divide()
    """How source values become the values that the model was trained on."""

    def side(self, least: int) -> int:
        """The smallest number of rows or columns that a model of open size takes, of at least `least` pixels."""
        return -(-(least - self.remainder) // self.multiple) * self.multiple + self.remainder

    def takes(self, size_hw: tuple[int, int]) -> bool:
        """Whether a model of open size takes tiles of this size."""
        return all(side == self.side(side) for side in size_hw)

    @property
    def sides(self) -> str:
        """The sizes that a model of open size takes, as text."""
        return f"a multiple of {self.multiple}" + (f" plus {self.remainder}" if self.remainder else "")

    @model_validator(mode="after")
    def _agrees(self) -> ModelInput:
        if self.remainder and self.remainder >= self.multiple:
            raise ValueError(
                f"remainder {self.remainder} must be below multiple {self.multiple}: write "
                f"{self.remainder % self.multiple}"
            )
        needed = {"gray": 1, "rgb": 3, "bgr": 3}.get(self.color)
        if needed is not None and self.channels != needed:
            raise ValueError(
                f"color {self.color} has {needed} channel(s), not {self.channels}: change channels, or use color: bands"
            )
        if isinstance(self.normalize, MeanStd):
            for name, values in (("mean", self.normalize.mean), ("std", self.normalize.std)):
                if len(values) not in (1, self.channels):
                    raise ValueError(
                        f"normalize.{name} has {len(values)} values for {self.channels} channels: write one per channel"
                    )
                if self.normalize.max is None and any(abs(v) > 1 for v in values):
                    raise ValueError(
                        f"normalize.{name} has {max(values, key=abs):g}, but pixels are divided by their largest value "
                        "first: divide it by 255, or write max: 1 if mean and std are in source units"
                    )
            if any(v == 0 for v in self.normalize.std):
                raise ValueError("normalize.std contains 0: write the standard deviation of the training data")
        if isinstance(self.normalize, Percentile) and self.normalize.lower >= self.normalize.upper:
            raise ValueError("normalize.lower must be below normalize.upper")
        if self.pad_value and self.pad_units is None:
            raise ValueError(
                f"pad_value {self.pad_value:g} needs pad_units: source if it is in source units (as before scoring "
                "revision 2), or normalized if it is a value after normalisation"
            )
        if self.crop != "none" and (self.fit in ("stretch", "letterbox") or self.reduced_jpeg):
            raise ValueError(f"crop {self.crop} needs images at full size: write fit: tile, without reduced_jpeg")
        if self.fit in ("stretch", "letterbox") and self.dtype == "float16":
            raise ValueError("a float16 input with resize is not supported: use float32 with a cast in the graph")
        return self


class ModelOutput(Section):
    """The model's output tensor, and what its channels mean."""

    name: str | None = None
    """Name of the output tensor; not needed if the model has one output."""
    layout: Literal["nchw", "nhwc", "nhw", "nk"] | None = None
    """Order of the axes; default: the input's (`nhw` for label maps, `nk` for classifiers that return one row of scores
    per image)."""
    activation: Literal["logits", "softmax", "sigmoid", "labels", "masks"] = "logits"
    """What the values are: raw scores, probabilities over the classes, one probability per class, labels, or masks (0
    or 1 per class; classes may overlap)."""
    classes: tuple[str, ...] = Field(default=("background", "foreground"), strict=False)
    """Names by channel; a single name means a binary model (one channel)."""
    background: int | None = 0
    """Class that is background and gets no entry in `classes`; null if every class counts (always so for one channel
    and sigmoid)."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to a class; for one-channel and sigmoid models."""
    margin: int = Field(default=0, ge=0)
    """Pixels of a tile on each side that have no output, because the convolutions are unpadded: 92 where a tile of 572
    x 572 gives 388 x 388. Images get a border of this width (`input.padding`), and tiles overlap by it."""
    label_from: Literal["largest", "any_above", "class_scores"] = "largest"
    """Where the columns `label` and `score` come from. largest: the class with the largest area. any_above: the same,
    if its share of the image is above `label_above`. class_scores: the model is a classifier, which returns one score
    per class and image, (N, K) or (N, K, 1, 1), and no mask."""
    label_above: float = Field(default=0.0, ge=0, lt=1)
    """Share of the image's pixels above which a class gives the label; for any_above."""
    top: int = Field(default=5, ge=1)
    """Number of most probable classes in the column `classes`; for class_scores."""

    @model_validator(mode="after")
    def _agrees(self) -> ModelOutput:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes needs at least one name, and each name once")
        if self.background is not None and self.background >= len(self.classes):
            raise ValueError(f"background is class {self.background}, but there are only {len(self.classes)} classes")
        if self.label_above and self.label_from != "any_above":
            raise ValueError(f"label_above is for label_from: any_above, not {self.label_from}")
        if self.classifies and self.activation in ("labels", "masks"):
            raise ValueError(
                f"label_from class_scores needs scores, but activation is {self.activation}: write logits, softmax or "
                "sigmoid"
            )
        if self.layout == "nk" and not self.classifies:
            raise ValueError("layout nk has no mask: write label_from: class_scores")
        if self.classifies and self.margin:
            raise ValueError(f"margin {self.margin} is for masks, and label_from class_scores has none: leave it out")
        return self

    @property
    def classifies(self) -> bool:
        """Whether the model returns scores of whole images instead of masks."""
        return self.label_from == "class_scores"

    @property
    def multi_label(self) -> bool:
        """Whether each class has its own threshold, so that classes may overlap."""
        return self.activation in ("sigmoid", "masks") or (len(self.classes) == 1 and self.activation != "labels")

    @property
    def in_rows(self) -> dict[int, str]:
        """Id → name of the classes that get an entry in a row: all but the background."""
        if len(self.classes) == 1:
            return {1: self.classes[0]}
        background = None if self.multi_label or self.classifies else self.background
        return {id_: name for id_, name in enumerate(self.classes) if id_ != background}

    @property
    def value_threshold(self) -> float:
        """`threshold` as a value of the output tensor: its logit, log(t / (1 − t)), where the output holds logits."""
        return math.log(self.threshold / (1 - self.threshold)) if self.activation == "logits" else self.threshold

    @property
    def decided(self) -> bool:
        """Whether the model returns labels or masks: there are no scores to blend, to resize or to average."""
        return self.activation in ("labels", "masks")


class Contract(Section):
    """What a model expects and returns."""

    input: ModelInput = ModelInput()
    """The input tensor."""
    output: ModelOutput = ModelOutput()
    """The output tensor."""

    @model_validator(mode="after")
    def _has_a_border(self) -> Contract:
        if self.output.classifies and self.input.fit == "tile":
            raise ValueError(
                "input.fit tile cuts images, but output.label_from class_scores is about whole images: write stretch, "
                "letterbox, pad or none"
            )
        if not self.output.margin:
            return self
        if self.input.padding == "refuse":
            raise ValueError(
                f"input.padding refuse rejects every image, because output.margin {self.output.margin} needs a border: "
                "write reflect"
            )
        if "padding" not in self.input.model_fields_set:  # frozen: a validator cannot return another object
            object.__setattr__(self, "input", self.input.model_copy(update={"padding": "reflect"}))
        return self

    def for_digests(self) -> dict[str, Any]:
        """The contract as a tree for digests: without the fields of `LATER` that have their value of before."""
        return without_later(self.model_dump(mode="json"), LATER)


def without_later(tree: dict[str, Any], later: Mapping[str, object], above: str = "") -> dict[str, Any]:
    """The tree without every field that has the value in `later` for its path, such as `tiling.placement`."""
    return {
        name: without_later(value, later, f"{above}{name}.") if isinstance(value, dict) else value
        for name, value in tree.items()
        if f"{above}{name}" not in later or value != later[f"{above}{name}"]
    }
