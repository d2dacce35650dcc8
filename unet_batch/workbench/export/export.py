"""A PyTorch network becomes one ONNX file with its contract inside, and is only written when it gives the same masks.

`export` is the whole of it: build, load weights, examine, capture, verify, write. Knows the order of these steps, the
contract of the file and what the file says of its origin. PyTorch and onnx are imported by the steps that need them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from unet_batch import __version__
from unet_batch.contract import Contract, Divide, Normalize
from unet_batch.errors import JobError, ModelRefused
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.model.contract import METADATA_KEY
from unet_batch.model.meaning import Meaning, contradictions, meaning
from unet_batch.strict import validate
from unet_batch.workbench.export.check import Trial, multiple_of, random_images, verify
from unet_batch.workbench.export.contract import contract_path, contract_text, refuse_another_contract, without_contract
from unet_batch.workbench.export.graph import INPUT_NAME, Captured, capture, without_traces
from unet_batch.workbench.export.network import Examined, build, examine, with_one_output
from unet_batch.workbench.export.weights import Weights, load_weights
from unet_batch.workbench.files import replace_file
from unet_batch.workbench.graph_edit import set_metadata, without_metadata

Array = npt.NDArray[Any]

PROVENANCE_KEY = "unet_batch.export"
OUTPUT_NAMES = {"logits": "logits", "softmax": "probabilities", "sigmoid": "probabilities", "labels": "labels"}
NEEDED = ("torch", "onnx", "onnxscript")


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """What is exported, and into which file."""

    factory: str
    """MODULE:FACTORY, a callable that returns a `torch.nn.Module`; MODULE may lie in the current folder."""
    out: Path
    """The ONNX file; its report is written beside it as `<name>.export.json`. Both are replaced."""
    input_chw: tuple[int, int, int]
    """Channels, height and width of the network's input."""
    classes: tuple[str, ...]
    """Names by channel of the output; one name alone is a binary model."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""
    weights: Path | None = None
    """A file of `torch.save` or safetensors; None: the weights that the factory gives."""
    activation: Literal["logits", "softmax", "sigmoid", "labels"] | None = None
    """What the network's numbers are; None: what the exported graph says, where it is certain."""
    threshold: float = 0.5
    """Probability above which a pixel belongs to a class, where every class stands for itself."""
    background: int | None = 0
    """Which class is nothing."""
    normalize: Normalize | None = None
    """From pixels to what the network was trained on; enters the contract, and happens outside of the graph. Nothing in
    a network says it: None leaves the file without a contract."""
    color: Literal["gray", "rgb", "bgr", "bands"] | None = None
    """What the channels mean; None: gray for one, bands for other numbers than three, and unknown for three."""
    fit: Literal["tile", "stretch", "letterbox", "pad", "none"] = "tile"
    """How a picture meets the network's size."""
    any_size: bool = False
    """Whether height and width are open; the batch always is."""
    opset: int = 20
    """Version of ONNX's operators."""
    output: str | None = None
    """Which of several outputs is the mask: a dict's key, or a place in a tuple."""
    images_nchw: Array | None = None
    """float32 images to verify with, normalised as the network was trained, beside random ones."""
    tolerance: Tolerance | None = None
    """How far ONNX Runtime may be from PyTorch; None: the constants of `export_check`."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and how it was found to be right."""

    path: Path
    sha256: str
    size_bytes: int
    contract: Contract | None
    """Inside the file and beside it; None where something that it must say was not given."""
    parameters: int
    nodes: int
    opset: int
    input_shape: tuple[int | str, ...]
    """Of the file: numbers, and the names of open axes."""
    output_shape: tuple[int | str, ...]
    provenance: Mapping[str, Any]
    """What the file itself says of its origin."""
    parity: Parity
    """Of all trials together."""
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]
    """What the person who exports should know, a sentence each."""
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


def export(spec: ExportSpec) -> ExportReport:
    """Exports a network, verifies the file against it, and writes the file and its report.

    Nothing is written unless every trial is within tolerance.
    Raises JobError for wrong arguments and missing packages; ModelRefused, with the place in the network, where it
    cannot be exported or the file would give other masks.
    """
    began = time.perf_counter()
    _require_packages()
    size = (spec.input_chw[1], spec.input_chw[2])
    given = _given_images(spec)
    contract = _contract(spec)  # wrong arguments are found before the long steps
    network = build(spec.factory, spec.args)
    weights = load_weights(network, spec.weights) if spec.weights else None
    images = random_images(2, spec.input_chw[0], size, seed=0)
    network = with_one_output(network, images, spec.output)
    examined = examine(network, images, contract.output)
    if spec.any_size and examined.multiple is None:
        raise ModelRefused(f"the network runs at {size[0]}x{size[1]} only: leave height and width fixed")
    captured = capture(
        network,
        images,
        any_size=spec.any_size,
        same_size=examined.ratio == 1,
        opset=spec.opset,
        output_name=OUTPUT_NAMES[spec.activation or "logits"],
    )
    without_traces(captured.model)
    found = meaning(captured.model, captured.model.graph.output[0].name)
    if spec.activation is None and found.activation in ("softmax", "sigmoid", "labels"):
        return export(replace(spec, activation=cast(Any, found.activation)))  # names and trials depend on it
    missing = _missing(spec, found, contract)
    set_metadata(captured.model, {METADATA_KEY: contract_text(contract)})  # what the file is verified under
    multiple, notes = _multiple(spec, examined, captured, network, images)
    contract = _with_multiple(contract, multiple, given)
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
    provenance = _provenance(spec, weights, parity)
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
        input_shape=_shape(captured.model.graph.input[0]),
        output_shape=_shape(captured.model.graph.output[0]),
        provenance=provenance,
        parity=parity,
        trials=tuple(trials),
        notes=(
            *(weights.notes if weights else ("no weights file was given: the weights are the factory's own",)),
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
    """Where the report of an exported file lies."""
    return out.with_suffix(".export.json")


def _require_packages() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise JobError(f"exporting needs {', '.join(missing)}: run `pip install unet-batch[export]`")


def missing_words(spec: ExportSpec) -> list[str]:
    """What nobody but the person who trained the network knows, and has not said: options of `model export`."""
    found = [] if spec.normalize is not None else ["--normalize"]
    return [*found, "--color"] if spec.color is None and spec.input_chw[0] == 3 else found


def _missing(spec: ExportSpec, found: Meaning, contract: Contract) -> list[str]:
    """The same, after the graph was asked what its numbers are. Raises ModelRefused where it contradicts."""
    if problems := contradictions(found, contract.output, "nchw"):
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
        raise JobError(f"{spec.out} cannot be written: {folder} is no folder that you may write to")
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
    """What sides must be a multiple of in the file, and what there is to say about it."""
    of_network = examined.multiple or 1
    if not spec.any_size:
        return of_network, []
    data = captured.model.SerializeToString()
    of_file = multiple_of(data, network, images, ratio=examined.ratio, least=of_network)
    if of_file is None:
        _, height, width = spec.input_chw
        # A file that is wrong at its own size too is refused for that, with the node that is.
        verify(data, captured, network, size=(height, width), any_size=False, tolerance=spec.tolerance)
        raise ModelRefused(
            f"the file would give PyTorch's results at {height}x{width} only, because the network's code branches on "
            "sizes: leave height and width fixed, or export with sides of another multiple"
        )
    if of_file == of_network:
        return of_file, []
    return of_file, [
        f"sides must be multiples of {of_file} in the file, of {of_network} in PyTorch: its code branches on sizes"
    ]


def _with_multiple(contract: Contract, multiple: int, given: Array | None) -> Contract:
    if given is not None and any(side % multiple for side in given.shape[2:]):
        raise JobError(f"the given images are {given.shape[2]}x{given.shape[3]}, no multiples of {multiple}")
    return contract.model_copy(update={"input": contract.input.model_copy(update={"multiple": multiple})})


def _given_images(spec: ExportSpec) -> Array | None:
    if spec.images_nchw is None:
        return None
    images = np.ascontiguousarray(spec.images_nchw, dtype=np.float32)
    channels, height, width = spec.input_chw
    fits = images.ndim == 4 and images.shape[1] == channels and (spec.any_size or images.shape[2:] == (height, width))
    if not fits:
        raise JobError(f"the given images have the shape {images.shape}, not (N, {channels}, {height}, {width})")
    return images


def _provenance(spec: ExportSpec, weights: Weights | None, parity: Parity) -> dict[str, Any]:
    return {
        "unet_batch": __version__,
        "torch": version("torch"),
        "onnxscript": version("onnxscript"),
        "exporter": "torch.onnx.export(dynamo=True)",
        "opset": spec.opset,
        "factory": spec.factory,
        "args": {
            name: value if isinstance(value, str | int | float) else repr(value) for name, value in spec.args.items()
        },
        "weights_sha256": weights.sha256 if weights else None,
        "parity": {
            "images": parity.images,
            "max_abs_error": parity.max_abs_error,
            "reference_peak": parity.reference_peak,
            "flipped": parity.flipped,
            "decisions": parity.decisions,
            "dice": dict(zip(parity.classes, parity.dice, strict=True)),
        },
    }


def _shape(value: Any) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
