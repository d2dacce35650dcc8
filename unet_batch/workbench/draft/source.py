"""MODEL of `init` and `score`: from a file, a PyTorch factory or an importer's source to one ONNX file.

External data is merged into the file. An export or an import writes into the folder of the job; a plain file stays
where it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unet_batch.contract import Contract
from unet_batch.errors import JobError, ModelRefused, NotFound
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY, find_contract
from unet_batch.model.model import ModelFile
from unet_batch.session.model_files import MAX_MODEL_BYTES, contract_text
from unet_batch.store.storage import Storage, canonical
from unet_batch.table.scratch import scratch_folder
from unet_batch.workbench.draft.evidence import Layers
from unet_batch.workbench.draft.new_files import check_new, write_new
from unet_batch.workbench.draft.trained_layers import TrainedLayers
from unet_batch.workbench.graph_edit import end_in, without_metadata
from unet_batch.workbench.importers.difference import Difference
from unet_batch.workbench.importers.imported import Activation, Color, Fact, Fit, Options
from unet_batch.workbench.importers.sources import importer_of, not_a_model, read_source

HEADS: Mapping[str, str] = {"sigmoid": "Sigmoid", "softmax": "Softmax"}
"""Activation → the operator that makes it from logits."""
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SIDE = 256
"""Side of the tile that a factory is exported with, if --input does not say another: MONAI's and many papers' size."""


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A model as one ONNX file."""

    path: str
    """As written in the job file: as the user wrote it, or inside the job's folder."""
    data: bytes
    job: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the job file that belong to the model; from an importer."""
    notes: tuple[str, ...] = ()
    """What was done, a sentence each."""
    facts: tuple[Fact, ...] = ()
    """Of an importer: where each setting was read."""
    differences: tuple[Difference, ...] = ()
    """Of an importer: what the user allowed to differ from the framework."""
    layers: Layers | None = None
    """Normalisation layers of the network, which the export merged into convolutions."""
    made: bool = False
    """Whether the file was exported or imported just now, so that a contract beside it is of an earlier time."""

    @property
    def stem(self) -> str:
        """The model's name without its suffix."""
        return Path(self.path).name.removesuffix(".onnx") or "model"


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What the user said about MODEL."""

    model: str
    out: Path
    """The job's folder."""
    force: bool = False
    """Whether files of the same names may be replaced."""
    weights: Path | None = None
    arguments: tuple[str, ...] = ()
    """Of a factory: name=value."""
    input_text: str | None = None
    """CxHxW of a factory."""
    classes: tuple[str, ...] | None = None
    normalize: str | None = None
    """In one of NORMALIZE_FORMS."""
    color: Color | None = None
    fit: Fit | None = None
    activation: Activation | None = None
    trusted: bool = False
    """Of an importer's source, as in its `Options`; `allow_difference` too."""
    allow_difference: bool = False


def read_model_source(request: ModelRequest, say: Callable[[str], None] = lambda _: None) -> SourceModel:
    """The ONNX file of MODEL. say: takes a line before an export or an import.

    Raises JobError, ModelRefused or StorageError, with what MODEL may be.
    """
    path = Path(request.model).expanduser()
    if "://" not in request.model and not path.exists() and FACTORY.fullmatch(request.model):
        say(f"exporting {request.model} to ONNX, and comparing the file with PyTorch")
        return _exported(request)
    if "://" not in request.model and path.exists() and importer_of(path) is not None:
        say(f"importing {request.model} to ONNX, and comparing the file with PyTorch")
        return _imported(request, path)
    if request.weights is not None or request.arguments or request.input_text is not None:
        raise JobError(
            f"--weights, --arg and --input belong to MODULE:FACTORY, but {request.model} is not of that form: leave "
            "them out, or write for instance network:UNet"
        )
    if path.is_dir():
        raise JobError(f"{not_a_model(path)}. MODEL may also be an ONNX file, or MODULE:FACTORY")
    return _file(request)


def _file(request: ModelRequest) -> SourceModel:
    uri = canonical(request.model)
    try:
        data = Storage().read(uri, max_bytes=MAX_MODEL_BYTES)
    except NotFound as error:
        raise JobError(
            f"there is no model {request.model}: write the path of an ONNX file or of a model's folder, or "
            "MODULE:FACTORY with --weights"
        ) from error
    if data[:4] == b"PK\x03\x04" or request.model.endswith((".pt", ".pth", ".ckpt", ".safetensors")):
        raise JobError(
            f"{request.model} holds weights without a network: write the network's MODULE:FACTORY as MODEL, and "
            f"--weights {request.model}"
        )
    outside = graph.external(graph.read(data, uri))
    if not outside:
        return SourceModel(request.model, data)
    if not uri.startswith("file://"):
        raise JobError(
            f"{len(outside)} tensors of {request.model} lie in another file beside it: download both, and name the "
            "local file"
        )
    merged = _merged(data, Path(uri.removeprefix("file://")))
    target = request.out / Path(request.model).name
    if target.exists() and target.samefile(Path(uri.removeprefix("file://"))):
        target = target.with_name(f"{target.stem}-merged.onnx")
    write_new(target, merged, force=request.force)
    note = f"merged {len(outside)} tensors from the files beside {request.model} into {target}"
    return SourceModel(str(target), merged, notes=(note,))


def _merged(data: bytes, path: Path) -> bytes:
    """The model with the values that lie in files beside it. onnx refuses places outside the folder, and links."""
    import onnx
    from onnx import external_data_helper

    model = onnx.ModelProto()
    model.ParseFromString(data)
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
        merged: bytes = model.SerializeToString()
    except Exception as error:  # the errors of onnx and protobuf share no class
        said = " ".join(str(error).split())
        raise ModelRefused(f"the external data of {path} cannot be read: {said}; copy its files beside it") from error
    if len(merged) > MAX_MODEL_BYTES:
        raise ModelRefused(f"{path} has {len(merged)} bytes with its external data; one file has at most 2 GiB")
    return merged


def _exported(request: ModelRequest) -> SourceModel:
    """The file of a factory, by the export of `model export`, verified against PyTorch."""
    from unet_batch.workbench.export.arguments import parse_args, parse_input
    from unet_batch.workbench.export.export import ExportSpec, export, require_packages
    from unet_batch.workbench.export.network import build
    from unet_batch.workbench.export.weights import load_weights

    require_packages()
    args = parse_args(request.arguments)
    guesses: list[str] = []
    input_chw = parse_input(request.input_text) if request.input_text is not None else None
    classes = request.classes
    if input_chw is None or classes is None:
        found_chw, outputs = _measured(request.model, args, input_chw)
        if input_chw is None:
            input_chw = found_chw
            guesses.append(f"tiles of {SIDE}x{SIDE} pixels are a guess: --input CxHxW says another size")
        classes = classes or (("foreground",) if outputs == 1 else tuple(f"class_{k}" for k in range(outputs)))
    name = request.model.partition(":")[2].lower()
    out = request.out / f"{name}.onnx"
    check_new([out], force=request.force)
    report = export(
        ExportSpec(
            factory=request.model,
            out=out,
            input_chw=input_chw,
            classes=tuple(classes),
            args=args,
            weights=request.weights,
            activation=None if request.activation in HEADS else request.activation,  # added later to logits
        )  # without its normalisation, so that the only contract is the drafted one
    )
    parity = report.parity
    said = (
        f"wrote {out}: {len(report.trials)} trials against PyTorch, largest error {parity.max_abs_error:.2g}, "
        f"{parity.flipped_share:.4%} of labels flipped"
    )
    notes = [note for note in report.notes if "has no contract" not in note]
    network = build(request.model, args)
    if request.weights is not None:
        load_weights(network, request.weights)
    layers = TrainedLayers(network)
    found = layers if layers.found else None
    return SourceModel(str(out), out.read_bytes(), notes=(*notes, said, *guesses), layers=found, made=True)


def _imported(request: ModelRequest, path: Path) -> SourceModel:
    """The file of an importer's source, verified against the network in PyTorch."""
    from unet_batch.workbench.export.arguments import parse_input
    from unet_batch.workbench.export.export import require_packages
    from unet_batch.workbench.importers.write import write

    if request.arguments:
        raise JobError(f"--arg belongs to MODULE:FACTORY, but {request.model} is a model to import: leave it out")
    require_packages()
    options = Options(
        weights=request.weights,
        classes=request.classes,
        normalize=request.normalize,
        color=request.color,
        fit=request.fit,
        activation=request.activation,
        input_chw=None if request.input_text is None else parse_input(request.input_text),
        trusted=request.trusted,
        allow_difference=request.allow_difference,
    )
    name = path.resolve().stem if path.is_file() else path.resolve().name
    out = request.out / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}.onnx"
    check_new([out], force=request.force)
    importer, imported = read_source(path, options)
    with scratch_folder() as folder:  # its contract becomes the drafted one
        written = write(importer.name, imported, folder / out.name, allow_difference=request.allow_difference)
        data = written.exported.path.read_bytes()
    write_new(out, data, force=request.force)
    parity = written.exported.parity
    said = (
        f"wrote {out}, read as {importer.name}: {len(written.exported.trials)} trials against PyTorch, largest error "
        f"{parity.max_abs_error:.2g}, {parity.flipped_share:.4%} of labels flipped"
    )
    return SourceModel(
        str(out),
        data,
        job=imported.job,
        notes=(*written.notes, said),
        facts=imported.facts,
        differences=imported.differences,
        made=True,
    )


def _measured(
    factory: str, args: Mapping[str, Any], input_chw: tuple[int, int, int] | None
) -> tuple[tuple[int, int, int], int]:
    """Channels and tile that the network takes, by its first convolution, and the channels of its output."""
    from unet_batch.workbench.export.check import random_images
    from unet_batch.workbench.export.network import build, run, with_one_output

    network = build(factory, args)
    if input_chw is None:
        takes = [m.in_channels for m in network.modules() if isinstance(getattr(m, "in_channels", None), int)]
        if not takes:
            raise JobError(f"the channels that {factory} takes cannot be seen: give --input, such as --input 3x256x256")
        input_chw = (takes[0], SIDE, SIDE)
    images = random_images(1, input_chw[0], (input_chw[1], input_chw[2]), seed=0)
    try:
        found = run(with_one_output(network, images, None), images)
    except (ModelRefused, JobError):
        raise
    except Exception as error:  # the user's own code
        size = "x".join(map(str, input_chw))
        said = " ".join(str(error).split())[:200]
        raise ModelRefused(
            f"{factory} does not run on an input of {size} ({type(error).__name__}: {said}): give its own size with "
            "--input CxHxW"
        ) from error
    return input_chw, int(found.shape[1]) if found.ndim == 4 else 2


def with_probabilities(
    source_model: SourceModel, output: str, axis: int, request: ModelRequest, activation: str
) -> tuple[SourceModel, str]:
    """A file in the job's folder that turns the logits of a model into probabilities, and the name of its output.

    output: with the logits. axis: of the classes. Raises JobError if there is such a file already.
    """
    model = graph.read(source_model.data, source_model.path)
    if activation == "softmax" and graph.opsets(model).get("", 1) < 13:
        raise JobError(
            f"{source_model.path} is of an opset below 13, where a Softmax means something else: leave out "
            "--activation softmax, because logits give the same labels"
        )
    name = end_in(model, output, HEADS[activation], axis=axis if activation == "softmax" else None)
    for key in graph.metadata(model):
        if key.startswith("unet_batch."):  # a contract or references of the file with logits
            without_metadata(model, key)
    target = request.out / f"{source_model.stem}-{activation}.onnx"
    data: bytes = model.SerializeToString()
    write_new(target, data, force=request.force)
    note = f"wrote {target}: {source_model.path} returns logits, and a {HEADS[activation]} follows them there"
    return replace(source_model, path=str(target), data=data, notes=(*source_model.notes, note), made=True), name


def contract_of(source_model: SourceModel) -> tuple[Contract, str] | None:
    """The contract that lies beside a model or in its metadata, and where; None if there is none.

    Raises ContractError for one that cannot be read.
    """
    uri = canonical(source_model.path)
    text, where = (None, uri) if source_model.made else contract_text(Storage(), uri, named=None)
    metadata = graph.metadata(graph.read(source_model.data, uri))
    if text is None and METADATA_KEY not in metadata:
        return None
    file = ModelFile(source_model.data, hashlib.sha256(source_model.data).hexdigest(), uri, (), (), metadata)
    shown = "in the model's metadata" if text is None else f"in {where.removeprefix('file://')}"
    return find_contract(file, text, where), shown
