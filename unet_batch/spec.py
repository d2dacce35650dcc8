"""The job file: one typed tree that says what is scored and where the rows go.

Unknown keys are errors that name the nearest valid key. `--set a.b=c` uses the same validation. A job file holds no
secrets, only names of environment variables (`{env: NAME}`), which are read on use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from unet_batch.contract import Section
from unet_batch.errors import JobError
from unet_batch.limits_spec import LimitsSpec as LimitsSpec  # noqa: PLC0414 - a re-export
from unet_batch.options import Options, refuse_literal_secrets
from unet_batch.session_spec import ProviderName as ProviderName  # noqa: PLC0414 - a re-export
from unet_batch.session_spec import SessionSpec as SessionSpec  # noqa: PLC0414
from unet_batch.strict import parse_yaml, set_value, validate

MAX_JOB_FILE_BYTES = 1 << 20

ShardFormat = Literal["images", "webdataset", "parquet", "manifest"]
Engine = Literal["onnxruntime", "openvino"]
EngineChoice = Literal["auto", Engine]
MaskOutput = Literal["rle", "png"]
MaskFile = Literal["png", "tiff", "overlay", "geojson"]
"""Of the formats of `unet-batch masks`, those with one file for each image."""
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
"""The table of engines, providers and precisions is in `session/engines.py`."""
Placement = Literal["stride", "even"]
Tta = Literal["none", "mirror", "mirror_horizontal", "mirror_vertical"]

PICTURE_SUFFIXES = (
    "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "tif", "tiff", "btf", "tf8", "webp", "bmp", "dib", "gif",
    "npy", "svs", "ndpi", "scn", "lsm", "dng", "cr2", "cr3", "nef", "arw", "raf", "orf", "rw2", "ppm", "pgm", "pbm",
    "pnm", "jp2", "j2k", "j2c", "jpf", "jpx", "jxl", "jxr", "heic", "heif", "hif", "avif", "tga", "pcx", "psd",
    "dds", "ktx", "exr", "hdr", "svg", "eps", "fits", "fit", "dcm", "dicom", "nii", "nii.gz", "nrrd", "mha", "mhd",
    "mrc", "czi", "nd2", "lif", "oib", "oir",
)  # fmt: skip
"""Suffixes of image files. Formats that are not supported become rejections."""


class EnsembleSpec(Section):
    """Models that score together with `model.path`, the first member."""

    members: tuple[str, ...] = Field(min_length=1, strict=False)
    """URIs or paths of the other ONNX files. A member without a contract uses the contract of the first."""
    combine: Literal["logits", "probabilities", "vote"] = "probabilities"
    """Mean of the logits, mean of the probabilities, or the share of members that choose a class."""
    sha256: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = Field(default=(), strict=False)
    """Digests that the members must have, in their order; default: not checked."""

    @model_validator(mode="after")
    def _agrees(self) -> EnsembleSpec:
        if self.sha256 and len(self.sha256) != len(self.members):
            raise ValueError(f"sha256 has {len(self.sha256)} digests for {len(self.members)} members")
        return self


class ModelSpec(Section):
    """The model of the job."""

    path: str
    """URI or path of the ONNX file. Relative paths, here and in all other keys, are relative to the working directory,
    not to the job file."""
    engine: EngineChoice = "onnxruntime"
    """What runs the model; enters the fingerprint. `auto`: what `unet-batch model optimize` recommends, in the file or
    in the `.optimized.onnx` that it made beside it, if it works on the machine that plans the run; else fp32 in ONNX
    Runtime, and a warning says why. The engine that was chosen enters the fingerprint."""
    precision: Precision = "fp32"
    """Arithmetic; enters the fingerprint. `engine: auto` chooses it. fp32 is exact; tf32 is CUDA's faster convolution,
    bf16 OpenVINO's; fp16 and int8 are properties of the file and must be given for such a file."""
    ensemble: EnsembleSpec | None = None
    """More models, whose outputs are combined with this model's."""
    contract: str | None = None
    """URI or path of the contract; default: `<model>.yaml` beside the model, else the model's metadata."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Digest the file must have."""
    options: Options = {}
    """Options of the store that holds the model."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every model file; `model.path` is the first."""
        return (self.path, *(self.ensemble.members if self.ensemble else ()))

    @property
    def resolved_engine(self) -> Engine:
        """The engine that runs the model. Raises JobError while it is still `auto`; `planning.prepare` resolves it."""
        if self.engine == "auto":
            raise JobError("model.engine is still auto: prepare the job first")
        return self.engine

    @model_validator(mode="after")
    def _chooses_once(self) -> ModelSpec:
        if self.engine == "auto" and self.precision != "fp32":
            raise ValueError(
                f"engine auto chooses the precision: remove precision: {self.precision}, or name the engine"
            )
        return self

    @model_validator(mode="after")
    def _names_each_file_once(self) -> ModelSpec:
        twice = [path for path in self.paths if self.paths.count(path) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is in the ensemble twice: model.path is its first member already")
        return self


class InputSpec(Section):
    """The archive."""

    uri: str
    """Where the images are; with `{date:%Y/%m/%d}` in it, each day is one partition."""
    format: ShardFormat = "images"
    """Loose images, tars, Parquet files with an image column, or lists of URIs (CSV, JSONL, Parquet)."""
    pattern: str = "**"
    """Glob below `uri` that selects objects, e.g. `**/*.{png,tif}`; upper and lower case suffixes match. Names that
    start with a dot never match."""
    exclude: tuple[str, ...] = Field(default=(), strict=False)
    """Globs of objects and tar members to leave out, e.g. `*_mask.png` (in any folder) or `thumbs/**`."""
    members: tuple[str, ...] = Field(default=tuple(f"*.{suffix}" for suffix in PICTURE_SUFFIXES), strict=False)
    """Globs of the tar members that are images (`*` crosses folders); other members are counted, not scored. Default:
    names with the suffix of an image format, and names without a suffix whose first bytes are those of an image."""
    column: str | None = None
    """Column with the image bytes (Parquet; default `image`) or the URI (manifest; default `uri`)."""
    partition_column: str | None = None
    """Column of a manifest whose value is the partition."""
    roots: tuple[str, ...] = Field(default=(), strict=False)
    """URI prefixes that a manifest may refer to; default: only the folder of the manifest."""
    options: Options = {}
    """Options of the store that holds the archive."""


class OutputSpec(Section):
    """Where rows go and what they hold."""

    uri: str
    """Folder or prefix for `predictions/` (the published table) and `_work/`."""
    masks: tuple[MaskOutput, ...] = Field(default=("rle",), strict=False)
    """How masks are stored: COCO RLE per class, and a PNG of the label map."""
    mask_files: tuple[MaskFile, ...] = Field(default=(), strict=False)
    """Formats of `unet-batch masks` whose files a run leaves in `masks/<format>/<partition>/` after it has published.
    They are written by the process that drives the run, for every published partition that lacks them."""
    geometry: Literal["source", "model"] = "source"
    """Whether masks, areas and boxes are in pixels of the source image or of the resized image that the model saw
    (faster if `fit` resizes; `rle.size` holds the size)."""
    confidence: bool = True
    """Mean confidence and entropy per image, and mean probability per class (one exponential per pixel)."""
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    """Codec of the Parquet files."""
    buckets: int = Field(default=1, ge=1, le=4096)
    """Objects per partition. Use more than one above 2 GiB of rows per day: rows are split by a hash of the image key,
    and each bucket is replaced on its own."""
    single_writer: bool = False
    """Your guarantee that two runs never write here at once: allows stores that ignore conditional writes."""
    options: Options = {}
    """Options of the store that receives the rows."""

    @model_validator(mode="after")
    def _has_masks_for_files(self) -> OutputSpec:
        if self.mask_files and not self.masks:
            raise ValueError("mask_files are made from the masks in the rows: write masks: [rle], too")
        return self


class TilingSpec(Section):
    """How images larger than the model's input are cut into tiles and blended."""

    size: int | None = Field(default=None, ge=16)
    """Side of a tile in pixels if the model accepts any size; default: the whole image is one tile."""
    overlap: float = Field(default=0.25, ge=0, lt=1)
    """Share of a tile that its neighbour also covers."""
    placement: Placement = "stride"
    """Where tiles lie: at a fixed stride with the last one pulled back (MONAI), or at equal distances (nnU-Net)."""
    blend: Literal["constant", "gaussian", "gaussian_nnunet"] = "gaussian"
    """Weight of a tile's pixels where tiles overlap: the same, MONAI's Gaussian or nnU-Net's."""
    sigma: float = Field(default=0.125, gt=0)
    """Width of the Gaussian, as a share of the tile's side."""


class ResourcesSpec(Section):
    """How much of the cluster a run uses; default: planned from the cluster's resources."""

    load_actors: int | None = Field(default=None, ge=1)
    """Maximum number of actors that read and decode; default: the cores that session actors on GPUs do not use, and
    none on CPUs, where each session actor loads its own units."""
    infer_actors: int | None = Field(default=None, ge=1)
    """Number of actors with a session."""
    fetch_threads: int = Field(default=16, ge=1, le=256)
    """Objects that one actor reads in parallel."""


class CheckSpec(Section):
    """The gate: a session is compared with a reference before it scores, unless it is fp32 in ONNX Runtime on CPU."""

    images: int = Field(default=16, ge=0, le=64)
    """Number of images from the archive to compare, one tile of each; 0 switches the gate off. With few images, one
    object that the model is unsure of decides over a Dice."""
    reference: str | None = None
    """URI or path of the trusted fp32 model; default: the same file. An int8 or fp16 file needs it, or `images: 0`."""
    references: tuple[str, ...] = Field(default=(), strict=False)
    """For an ensemble: the trusted fp32 model of each file, in the order of `model.path` and its members."""
    max_flipped: float = Field(default=0.001, ge=0, le=1)
    """Largest share of labels that may differ."""
    min_dice: float = Field(default=0.995, ge=0, le=1)
    """Smallest Dice of any class."""
    max_abs_error: float | None = Field(default=None, gt=0)
    """Largest error of a single output value; default: only labels are compared."""


class JobSpec(Section):
    """A job: an archive, a model and an output table."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Short name, used in records and reports."""
    model: ModelSpec
    """The model."""
    input: InputSpec
    """The archive."""
    output: OutputSpec
    """Where rows go and what they hold."""
    window: str = "last"
    """Partitions of a run without `--window`: `last`, `all`, `today`, `yesterday`, `A` or `A..B`, where A and B are
    days (2026-11-21) or months (2026-11)."""
    tiling: TilingSpec = TilingSpec()
    """How large images are cut into tiles."""
    tta: Tta = "none"
    """Test-time augmentation: each model also scores mirrored tiles, and the results are averaged after mirroring
    back (logits, or probabilities where the model returns those). `mirror_horizontal` swaps left and right, two passes
    of the model; `mirror_vertical` swaps top and bottom; `mirror` does both, separately and together, four passes."""
    session: SessionSpec = SessionSpec()
    """How the model runs."""
    check: CheckSpec = CheckSpec()
    """The comparison with a reference before scoring."""
    limits: LimitsSpec = LimitsSpec()
    """Limits of a run."""
    resources: ResourcesSpec = ResourcesSpec()
    """How much of the cluster a run uses."""

    @field_validator("window", mode="before")
    @classmethod
    def _a_day_is_a_window(cls, value: object) -> object:
        return value.isoformat() if type(value) is date else value  # YAML reads 2026-11-21 as a date

    @property
    def trusted_paths(self) -> tuple[str, ...]:
        """The reference models of the gate, one for each model file; empty if the files are their own references."""
        return self.check.references or ((self.check.reference,) if self.check.reference is not None else ())

    @model_validator(mode="after")
    def _agrees(self) -> JobSpec:
        if self.trusted_paths and len(self.trusted_paths) != len(self.model.paths):
            raise ValueError(
                f"check has {len(self.trusted_paths)} reference(s) for {len(self.model.paths)} model(s): write one "
                "in check.reference, or one for each file of the ensemble in check.references"
            )
        if self.input.partition_column is not None and self.input.format != "manifest":
            raise ValueError("input.partition_column needs input.format: manifest")
        for where in ("model", "input", "output"):
            refuse_literal_secrets(f"{where}.options", getattr(self, where).options)
        return self


# Loading ---------------------------------------------------------------------------------------------------------


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job of a YAML file, with `section.key=value` overrides. Raises JobError with one sentence per mistake."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror or error}") from error
    if len(text) > MAX_JOB_FILE_BYTES:
        raise JobError(f"the job file {path} has {len(text)} bytes; at most {MAX_JOB_FILE_BYTES} are read")
    tree = parse_yaml(text, str(path))
    for override in overrides:
        set_value(tree, override)
    return validate(JobSpec, tree, str(path))


def job_digest(job: JobSpec) -> str:
    """12 hex digits over the whole job, for run records."""
    return hashlib.sha256(job.model_dump_json().encode()).hexdigest()[:12]
