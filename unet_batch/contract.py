"""What a model expects and returns: the words of a contract, and nothing that reads one.

A contract lies in a YAML file beside the model (`nuclei.onnx` → `nuclei.yaml`) or in the model's own metadata.
Everything in it changes pixels or labels, so all of it enters the fingerprint.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen block of a job file or contract: unknown keys and guessed types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Unit(Section):
    """Divide by the largest value of the depth that a source declares: 2^bits − 1 for unsigned integers (255 for 8
    bits, 4095 for 12, 65535 for 16), 1 for floats and booleans. Signed integers have none: write `max`."""

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


class Window(Section):
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
    """The image's own percentiles [lower, upper] → [low, high], clipped (MONAI ScaleIntensityRangePercentiles)."""

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
    """Percentiles of each channel by itself."""


class ZScore(Section):
    """(x − mean) / std of the image itself; population std, and a std of 0 counts as 1 (MONAI NormalizeIntensity)."""

    kind: Literal["zscore"] = "zscore"
    per_channel: bool = False
    """Statistics of each channel by itself."""
    nonzero: bool = False
    """Statistics of the pixels that are not 0; the others stay 0."""


class Raw(Section):
    """Pixels as they are: for graphs that normalise inside."""

    kind: Literal["none"] = "none"


Normalize = Annotated[Unit | Scale | MeanStd | Window | Percentile | ZScore | Raw, Field(discriminator="kind")]

Kernel = Literal["pil_bilinear_u8", "triangle_f32", "torch_bilinear", "nearest"]


class ModelInput(Section):
    """What the model's input tensor is, and how a picture becomes one."""

    name: str | None = None
    """Input tensor; may be left out where the model has one input."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Order of the axes."""
    dtype: Literal["float32", "float16", "uint8", "uint16"] = "float32"
    """Element type of the tensor."""
    color: Literal["gray", "rgb", "bgr", "bands"] = "rgb"
    """What the channels mean: gray is 1, rgb and bgr are 3, bands are taken as they come."""
    channels: int = Field(default=3, ge=1)
    """Size of the channel axis."""
    height: int | None = Field(default=None, ge=1)
    """Rows of the tensor; may be left out where the model fixes it, or accepts any."""
    width: int | None = Field(default=None, ge=1)
    """Columns of the tensor; may be left out where the model fixes it, or accepts any."""
    multiple: int = Field(default=1, ge=1)
    """Rows and columns must be a multiple of this (2^levels of the U-Net), where they are not fixed."""
    series_channels: Literal["bands", "pages"] | None = None
    """What the channels of an OME-TIFF, ImageJ or tifffile series are whose channels lie in pages of their own: bands
    of one image, or images by themselves; left out: such files are rejected."""
    fit: Literal["tile", "stretch", "letterbox", "pad", "none"] = "tile"
    """How a picture meets the model's size: cut into tiles (small ones padded), resized,
    resized with its shape kept, padded, or refused."""
    kernel: Kernel = "pil_bilinear_u8"
    """Resize kernel of `stretch` and `letterbox`."""
    padding: Literal["constant", "reflect", "edge", "refuse"] = "constant"
    """What `tile`, `pad` and `letterbox` add around a picture: a value, its mirror image, its edge repeated; refuse:
    pictures that need padding are rejected."""
    pad_value: float = 0.0
    """Value of constant padding."""
    pad_units: Literal["normalized", "source"] | None = None
    """What `pad_value` is: a value after normalisation, as MONAI and nnU-Net pad, or one of the source (letterbox
    models trained with Ultralytics' rule have pad_value 114 in source units). May be left out where it is 0: then it
    is 0 after normalisation."""
    source_max: float | None = Field(default=None, gt=0)
    """Largest value that sources must declare, as `unit` counts it; others are rejected. Packed models have it,
    because their graphs divide by it. Left out: any."""
    scale_up: bool = True
    """Whether `letterbox` may enlarge."""
    exif: Literal["apply", "ignore"] = "apply"
    """Whether an EXIF orientation turns the picture; masks come back in the turned one."""
    alpha: Literal["drop", "black", "white"] = "drop"
    """What becomes of an alpha channel: dropped, or composed over a colour."""
    reduced_jpeg: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 where the fitted size allows it: faster, and changes pixels."""
    normalize: Normalize = Unit()
    """From source units to what the model was trained on."""

    @model_validator(mode="after")
    def _agrees(self) -> ModelInput:
        wanted = {"gray": 1, "rgb": 3, "bgr": 3}.get(self.color)
        if wanted is not None and self.channels != wanted:
            raise ValueError(
                f"color {self.color} has {wanted} channel(s), not {self.channels}: change channels, or use color: bands"
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
                        "first: divide it by 255, or write max: 1 where mean and std are in source units"
                    )
            if any(v == 0 for v in self.normalize.std):
                raise ValueError("normalize.std contains 0: write the standard deviation of the training data")
        if isinstance(self.normalize, Percentile) and self.normalize.lower >= self.normalize.upper:
            raise ValueError("normalize.lower must be below normalize.upper")
        if self.pad_value and self.pad_units is None:
            raise ValueError(
                f"pad_value {self.pad_value:g} needs pad_units: source where it is a value of the source, as before "
                "scoring revision 2, or normalized where it is one after normalisation"
            )
        if self.fit in ("stretch", "letterbox") and self.dtype == "float16":
            raise ValueError("a float16 input with resize is not supported: use float32 with a cast in the graph")
        return self


class ModelOutput(Section):
    """What the model's output tensor is, and what its channels mean."""

    name: str | None = None
    """Output tensor; may be left out where the model has one output."""
    layout: Literal["nchw", "nhwc", "nhw"] | None = None
    """Order of the axes; left out: the input's (`nhw` for label maps)."""
    activation: Literal["logits", "softmax", "sigmoid", "labels", "masks"] = "logits"
    """What the numbers are: raw scores, probabilities over the classes, a probability per class, finished labels, or
    finished masks (0 or 1 per class, and classes may overlap)."""
    classes: tuple[str, ...] = Field(default=("background", "foreground"), strict=False)
    """Names by channel; one name alone is a binary model (one channel)."""
    background: int | None = 0
    """Which class is nothing and gets no entry in `classes`; null where every
    class counts (always so for one channel and sigmoid)."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to a class: one-channel and sigmoid models."""

    @model_validator(mode="after")
    def _agrees(self) -> ModelOutput:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be named, each once")
        if self.background is not None and self.background >= len(self.classes):
            raise ValueError(f"background is class {self.background}, but there are only {len(self.classes)} classes")
        return self

    @property
    def multi_label(self) -> bool:
        """Whether every class is decided by its own threshold, so that classes may overlap."""
        return self.activation in ("sigmoid", "masks") or (len(self.classes) == 1 and self.activation != "labels")

    @property
    def decided(self) -> bool:
        """Whether the model decides itself: there are no scores to blend, to resize or to take a confidence from."""
        return self.activation in ("labels", "masks")


class Contract(Section):
    """What a model expects and returns."""

    input: ModelInput = ModelInput()
    """The input tensor."""
    output: ModelOutput = ModelOutput()
    """The output tensor."""
