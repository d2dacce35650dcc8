"""Exports a PyTorch network to one ONNX file with its contract; writes it only if it gives the same masks.

`export` runs all steps: build, load weights, examine, capture, verify, write. The steps import PyTorch and onnx.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from unet_batch import __version__, extras
from unet_batch.contract import Contract, Divide, Normalize
from unet_batch.errors import JobError, ModelRefused
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.model.contract import METADATA_KEY
from unet_batch.model.meaning import Meaning, contradictions, meaning
from unet_batch.strict import validate
from unet_batch.workbench.export.check import Trial, multiple_of, random_images, verify
from unet_batch.workbench.export.contract import (
    as_classifier,
    contract_path,
    contract_text,
    refuse_another_contract,
    with_margin,
    with_multiple,
    without_contract,
)
from unet_batch.workbench.export.graph import INPUT_NAME, Captured, capture, declared_shape, without_traces
from unet_batch.workbench.export.network import Examined, build, examine, with_one_output
from unet_batch.workbench.export.script import capture_script, has_script
from unet_batch.workbench.export.weights import Weights, load_weights
from unet_batch.workbench.files import replace_file
from unet_batch.workbench.graph_edit import set_metadata, without_metadata

Array = npt.NDArray[Any]

PROVENANCE_KEY = "unet_batch.export"
OUTPUT_NAMES = {"logits": "logits", "softmax": "probabilities", "sigmoid": "probabilities", "labels": "labels"}
NEEDED = ("torch", "onnx", "onnxscript")


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """The settings of an export."""

    factory: str
    """MODULE:FACTORY, a callable that returns a `torch.nn.Module`; MODULE may be in the current folder. For a network
    that is built already: its origin, for the file's metadata."""
    out: Path
    """The ONNX file; its report is written beside it as `<name>.export.json`. Both are replaced."""
    input_chw: tuple[int, int, int]
    """Channels, height and width of the network's input."""
    classes: tuple[str, ...]
    """Names by channel of the output; a single name means a binary model."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""
    weights: Path | None = None
    """A file of `torch.save` or safetensors; None: the weights of the factory."""
    activation: Literal["logits", "softmax", "sigmoid", "labels"] | None = None
    """Meaning of the network's values; None: taken from the exported graph if certain."""
    threshold: float = 0.5
    """Probability above which a pixel belongs to a class, for independent classes."""
    background: int | None = 0
    """The background class."""
    normalize: Normalize | None = None
    """Normalisation of the training; part of the contract, not of the graph. A network does not hold it: None leaves
    the file without a contract."""
    color: Literal["gray", "rgb", "bgr", "bands"] | None = None
    """What the channels mean; None: gray for one channel, unknown for three, bands for other numbers."""
    fit: Literal["tile", "stretch", "letterbox", "pad", "none"] = "tile"
    """How an image gets the network's size."""
    any_size: bool = False
    """Whether height and width are open; the batch always is."""
    opset: int = 20
    """Version of ONNX's operators."""
    output: str | None = None
    """The output with the mask, if there are several: a dict's key, or a position in a tuple."""
    images_nchw: Array | None = None
    """float32 (N, C, H, W) images to verify with, normalised as in training, in addition to random ones."""
    contract: Contract | None = None
    """The whole contract of an imported network, with the least multiple; None: made from the fields above."""
    tolerance: Tolerance | None = None
    """Tolerance between ONNX Runtime and PyTorch; None: the constants of `export.check`."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The exported file and its verification."""

    path: Path
    sha256: str
    size_bytes: int
    contract: Contract | None
    """In the file and beside it; None if a required option was not given."""
    parameters: int
    nodes: int
    opset: int
    input_shape: tuple[int | str, ...]
    """Numbers, and names of open axes."""
    output_shape: tuple[int | str, ...]
    provenance: Mapping[str, Any]
    """The file's metadata about its origin."""
    parity: Parity
    """Over all trials."""
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]
    """Remarks for the user, a sentence each."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "contract": None if self.contract is None else self.contract.model_dump(mode="json"),
            "parameters": self.parameters,
            "nodes": self.nodes,
            "opset": self.opset,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "provenance": dict(self.provenance),
            "parity": self.parity.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 2),
        }


def export(spec: ExportSpec, network: Any = None, weights: Sequence[Weights] = ()) -> ExportReport:
    """Export a network, verify the file against it, and write the file and its report.

    network: a `torch.nn.Module` in evaluation mode with its weights loaded; None: built and loaded as `spec` says.
    weights: the files that were loaded into it. Nothing is written unless every trial is within the tolerance.
    Raises JobError for wrong arguments and missing packages; ModelRefused, with the place in the network, if it cannot
    be exported or the file would give other masks.
    """
    began = time.perf_counter()
    require_packages()
    size = (spec.input_chw[1], spec.input_chw[2])
    given = _given_images(spec)
    contract = _contract(spec)  # report wrong arguments before the long steps
    if network is None:
        network = build(spec.factory, spec.args)
        weights = [load_weights(network, spec.weights)] if spec.weights else []
    images = random_images(2, spec.input_chw[0], size, seed=0)
    network = with_one_output(network, images, spec.output)
    examined = examine(network, images, contract.output)
    contract = as_classifier(contract, examined.scores_rank, size, any_size=spec.any_size)
    if spec.any_size and examined.multiple is None and spec.contract is not None:
        spec = replace(spec, any_size=False)  # an importer cannot know it; `examined.notes` says so
    elif spec.any_size and examined.multiple is None:
        raise ModelRefused(f"the network runs at {size[0]}x{size[1]} only: leave height and width fixed")
    captured = (capture_script if has_script(network) else capture)(
        network,
        images,
        any_size=spec.any_size,
        same_size=examined.ratio == 1 and not examined.margin and examined.scores_rank is None,
        opset=spec.opset,
        output_name=OUTPUT_NAMES[spec.activation or "logits"],
    )
    without_traces(captured.model)
    found = meaning(captured.model, captured.model.graph.output[0].name)
    if spec.activation is None and found.activation in ("softmax", "sigmoid", "labels"):
        # Names and trials depend on it.
        return export(replace(spec, activation=cast(Any, found.activation)), network, weights)
    missing = _missing(spec, found, contract)
    contract = with_margin(contract, examined.margin, captured.model, size)
    set_metadata(captured.model, {METADATA_KEY: contract_text(contract)})  # the file is verified with its contract
    multiple, notes = _multiple(spec, examined, captured, network, images)
    contract = with_multiple(contract, multiple, given, size if examined.margin else None)
    set_metadata(captured.model, {METADATA_KEY: contract_text(contract)})
    if not missing:
        refuse_another_contract(spec.out, contract)
    trials = verify(
        captured.model.SerializeToString(),
        captured,
        network,
        size=size,
        any_size=spec.any_size,
        given_nchw=given,
        tolerance=spec.tolerance,
    )
    parity = functools.reduce(Parity.__add__, (trial.parity for trial in trials))
    provenance = _provenance(spec, weights, parity, dynamo=captured.program is not None)
    set_metadata(captured.model, {PROVENANCE_KEY: json.dumps(provenance)})
    if missing:
        without_metadata(captured.model, METADATA_KEY)
    data = captured.model.SerializeToString()
    report = ExportReport(
        path=spec.out,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        contract=None if missing else contract,
        parameters=sum(p.numel() for p in network.parameters()),
        nodes=len(captured.model.graph.node),
        opset=spec.opset,
        input_shape=declared_shape(captured.model.graph.input[0]),
        output_shape=declared_shape(captured.model.graph.output[0]),
        provenance=provenance,
        parity=parity,
        trials=tuple(trials),
        notes=(
            *(dict.fromkeys(note for file in weights for note in file.notes)),
            *([] if weights else ["no weights file was given: the weights are the factory's own"]),
            *examined.notes,
            *captured.notes,
            *notes,
            *([without_contract(missing)] if missing else ()),
        ),
        seconds=time.perf_counter() - began,
    )
    replace_file(spec.out, data)
    if not missing:
        replace_file(contract_path(spec.out), contract_text(contract).encode())
    replace_file(report_path(spec.out), json.dumps(report.to_json(), indent=2).encode())
    return report


def report_path(out: Path) -> Path:
    """The path of the report of an exported file."""
    return out.with_suffix(".export.json")


def require_packages() -> None:
    """Raise JobError if a package that exports need is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise JobError(f"exporting needs {', '.join(missing)}: run {extras.command('export')}")


def missing_words(spec: ExportSpec) -> list[str]:
    """Options of `model export` that are missing and that only the user knows."""
    found = [] if spec.normalize is not None else ["--normalize"]
    return [*found, "--color"] if spec.color is None and spec.input_chw[0] == 3 else found


def _missing(spec: ExportSpec, found: Meaning, contract: Contract) -> list[str]:
    """The same, with the activation from the graph. Raises ModelRefused if the graph contradicts the options."""
    if problems := contradictions(found, contract.output, contract.output.layout or "nchw"):
        raise ModelRefused(f"{'; '.join(problems)} (--activation of this command)")
    unsaid = spec.activation is None and found.activation is None
    return [*missing_words(spec), *(["--activation"] if unsaid else [])]


def _contract(spec: ExportSpec) -> Contract:
    channels, height, width = spec.input_chw
    if min(channels, height, width) < 1:
        raise JobError(f"the input {channels}x{height}x{width} has an empty axis")
    if not spec.out.name.endswith(".onnx"):
        raise JobError(f"{spec.out} does not end in .onnx")
    folder = next(parent for parent in spec.out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise JobError(f"{spec.out} cannot be written: {folder} is not a writable folder")
    if spec.contract is not None:
        source = spec.contract.input.model_copy(update={"name": INPUT_NAME})
        target = spec.contract.output.model_copy(update={"name": OUTPUT_NAMES[spec.activation or "logits"]})
        return Contract(input=source, output=target)
    tree = {
        "input": {
            "name": INPUT_NAME,
            "layout": "nchw",
            "dtype": "float32",
            "color": spec.color or {1: "gray", 3: "rgb"}.get(channels, "bands"),
            "channels": channels,
            "fit": spec.fit,
            "normalize": (spec.normalize or Divide()).model_dump(),
        },
        "output": {
            "name": OUTPUT_NAMES[spec.activation or "logits"],
            "activation": spec.activation or "logits",
            "classes": list(spec.classes),
            "background": spec.background,
            "threshold": spec.threshold,
        },
    }
    return validate(Contract, tree, "the contract of the exported file")


def _multiple(
    spec: ExportSpec, examined: Examined, captured: Captured, network: Any, images: Array
) -> tuple[int, list[str]]:
    """The multiple for the sides of images in the file, and notes about it."""
    of_network = math.lcm(examined.multiple or 1, spec.contract.input.multiple if spec.contract else 1)
    if not spec.any_size or examined.scores_rank is not None:
        return of_network, []
    data = captured.model.SerializeToString()
    of_file = multiple_of(data, network, images, ratio=examined.ratio, margin=examined.margin, least=of_network)
    if of_file is None:
        _, height, width = spec.input_chw
        # A file that is wrong at its own size too is refused later, with the wrong node.
        verify(data, captured, network, size=(height, width), any_size=False, tolerance=spec.tolerance)
        raise ModelRefused(
            f"the file would be right at {height}x{width} only, because the network's code branches on "
            "sizes: leave height and width fixed, or export with sides of another multiple"
        )
    if of_file == of_network:
        return of_file, []
    return of_file, [
        f"sides must be multiples of {of_file} in the file, of {of_network} in PyTorch: its code branches on sizes"
    ]


def _given_images(spec: ExportSpec) -> Array | None:
    if spec.images_nchw is None:
        return None
    images = np.ascontiguousarray(spec.images_nchw, dtype=np.float32)
    channels, height, width = spec.input_chw
    fits = images.ndim == 4 and images.shape[1] == channels and (spec.any_size or images.shape[2:] == (height, width))
    if not fits:
        raise JobError(f"the given images have the shape {images.shape}, not (N, {channels}, {height}, {width})")
    return images


def _provenance(spec: ExportSpec, weights: Sequence[Weights], parity: Parity, *, dynamo: bool) -> dict[str, Any]:
    return {
        "unet_batch": __version__,
        "torch": version("torch"),
        "onnxscript": version("onnxscript"),
        "exporter": f"torch.onnx.export(dynamo={dynamo})",
        "opset": spec.opset,
        "factory": spec.factory,
        "args": {
            name: value if isinstance(value, str | int | float) else repr(value) for name, value in spec.args.items()
        },
        "weights_sha256": weights[0].sha256 if len(weights) == 1 else [file.sha256 for file in weights] or None,
        "parity": {
            "images": parity.images,
            "max_abs_error": parity.max_abs_error,
            "reference_peak": parity.reference_peak,
            "flipped": parity.flipped,
            "decisions": parity.decisions,
            "dice": dict(zip(parity.classes, parity.dice, strict=True)),
        },
    }
