"""A network with its pre- and postprocessing inside the graph: source pixels in, labels out.

A CPU session proves that the packed file gives the labels of the unpacked network, pixel by pixel.

Legend: N tiles, C channels, K classes, H, W pixels, h, w pixels of the output; P planes of labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from unet_batch.contract import Contract, Divide, MeanStd, ModelInput, Percentile, Raw, ZScore
from unet_batch.errors import ModelRefused
from unet_batch.gate import pack_reference
from unet_batch.gate.pack_reference import synthetic
from unet_batch.imaging.preprocess import LARGEST, source_value
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY
from unet_batch.model.model import Model
from unet_batch.model.packed import FINITE, LABELS, PACK_KEY, PIXELS, SourceType
from unet_batch.workbench import graph_edit
from unet_batch.workbench.packing.nodes import OLDEST_OPSET, Nodes, add_input, add_outputs
from unet_batch.workbench.packing.proof import Unpacked, prove, prove_input

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

SIDE = 256
"""Side of a reference picture if the model takes any size; rounded up to its multiple."""
MAX_LABELS = 256
"""Labels are uint8."""


@dataclass(frozen=True, slots=True)
class PackSpec:
    """What is packed into the graph."""

    pre: bool = True
    """Layout and normalisation: the model takes source pixels, (N, H, W, C)."""
    post: bool = True
    """The decision: the model returns labels, (N, h, w), or a mask per class for overlapping classes."""
    source_dtype: SourceType = "uint8"
    """Dtype of the source pixels; a packed model takes only this one."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed file that gives the labels of its network, as proven."""

    data: bytes
    model: Model
    notes: tuple[str, ...]
    """What changes for a job that runs the packed file, a sentence each."""
    bytes_before: int
    """Bytes into and out of a session for one tile, of the unpacked network."""
    bytes_after: int
    """The same for the packed file, with all outputs."""


def pack(data: bytes, model: Model, spec: PackSpec) -> Packed:
    """Build a model file with pre- and postprocessing in the graph, and prove it.

    data: the file of `model`, float, fp16 or quantised.
    The outputs are `labels`, uint8, and `finite`, (N,) uint8: 0 for a tile with NaN or infinity in its scores, which
    labels do not show.
    Raises ModelRefused if the model cannot be packed, or the packed file gives other labels.
    """
    shape_hwc = _reference_shape(model)
    if problems := [*_problems(model, spec)]:
        raise ModelRefused("the model cannot be packed: " + "; ".join(problems))
    source = graph.parse(data, "the model")
    if PACK_KEY in graph.metadata(source):
        raise ModelRefused("the model is already packed: pack the file that it was made from")
    if (opset := graph.opsets(source).get("", 0)) < OLDEST_OPSET:
        raise ModelRefused(f"the model is of opset {opset}: export it again with opset 17 or later")
    unpacked = Unpacked(data, model)
    entry = {
        "version": pack_reference.VERSION,
        "source_sha256": hashlib.sha256(data).hexdigest(),
        "spec": asdict(spec),
        "normalize": model.contract.input.normalize.model_dump(),
        "padding": model.contract.input.model_dump(mode="json", include={"pad_value", "pad_units"}),
        "activation": model.contract.output.activation,
        "batch": model.batch or 1,
        **pack_reference.references(unpacked.labels, shape_hwc, spec.source_dtype),
    }
    contract = _packed_contract(model, spec)
    assembled = _assemble(source, model, spec)
    text = yaml.safe_dump(contract.model_dump(mode="json"), sort_keys=False)
    graph_edit.set_metadata(assembled, {METADATA_KEY: text, PACK_KEY: json.dumps(entry, separators=(",", ":"))})
    graph_edit.check(assembled)
    packed: bytes = assembled.SerializeToString()
    packed_model = replace(
        model,
        sha256=hashlib.sha256(packed).hexdigest(),
        contract=contract,
        input_name=contract.input.name or model.input_name,
        output_name=contract.output.name or model.output_name,
        output_layout=contract.output.layout or model.output_layout,
    )
    if spec.pre:
        prove_input(model, spec.source_dtype, opset, source.ir_version)
    pictures = [synthetic(n, shape_hwc, spec.source_dtype) for n in range(pack_reference.PICTURES)]
    exact = graph.precision(source) == "fp32"
    before, after = prove(packed, packed_model, unpacked, pictures, exact=exact)
    varied = any(len(set(labels.ravel())) > 1 for labels in map(unpacked.labels, pictures) if labels is not None)
    return Packed(packed, packed_model, tuple(_notes(model, spec, varied=varied)), before, after)


def _assemble(source: ModelProto, model: Model, spec: PackSpec) -> ModelProto:
    """The packed graph with the source's metadata; the source is not changed."""
    import onnx

    packed = onnx.ModelProto()
    packed.CopyFrom(source)
    ours = {PIXELS} if spec.pre else set()
    ours |= {LABELS, FINITE} if spec.post else set()
    inside = {name: f"{name}/net" for name in ours}
    graph_edit.rename(packed, inside)
    graphs = packed.graph
    taken = next(v for v in graphs.input if v.name == inside.get(model.input_name, model.input_name))
    returned = next(v for v in graphs.output if v.name == inside.get(model.output_name, model.output_name))
    opset = graph.opsets(packed)[""]
    before, after = Nodes(opset, "unet_batch/in"), Nodes(opset, "unet_batch/out")
    del graphs.output[:]
    if spec.post:
        dtype = graph.tensor(returned)[1]
        add_outputs(after, returned.name, dtype, model.contract.output, model.output_layout)
        graphs.output.extend(_outputs(taken, returned, model))
    else:
        graphs.output.append(_with_axes(returned, {"nhw": 3, "nk": 2}.get(model.output_layout, 4)))
    if spec.pre:
        add_input(before, model.contract.input, spec.source_dtype, to=taken.name)
        kept = [value for value in graphs.input if value.name != taken.name]
        del graphs.input[:]
        graphs.input.extend([_pixels(taken, model, spec), *kept])
    else:
        kept = [_with_axes(value, 4) if value.name == taken.name else value for value in graphs.input]
        del graphs.input[:]
        graphs.input.extend(kept)
    network = list(graphs.node)
    del graphs.node[:]
    graphs.node.extend([*before.made, *network, *after.made])
    graph_edit.prune(packed)
    return packed


def _problems(model: Model, spec: PackSpec) -> Iterator[str]:
    taken, returned = model.contract.input, model.contract.output
    if not spec.pre and not spec.post:
        yield "neither its input nor its output is to be packed"
    if spec.pre and isinstance(taken.normalize, Percentile | ZScore):
        yield (
            f"normalize {taken.normalize.kind} needs statistics of the whole image, but a graph gets tiles: "
            "pack only the output"
        )
    elif spec.pre and taken.fit == "letterbox" and _source_changes(taken, spec.source_dtype).get("padding") == "refuse":
        yield (
            f"its padding of {taken.pad_value:g} after normalisation is not a {spec.source_dtype} value: write "
            "pad_units: source with a value of the source, if the model was trained with it"
        )
    if spec.pre and returned.margin and _source_changes(taken, spec.source_dtype).get("padding") == "refuse":
        yield (
            f"its border of {taken.pad_value:g} after normalisation is not a {spec.source_dtype} value: write "
            "input.padding: reflect, or pad_units: source with a value of the source"
        )
    if taken.dtype in ("uint8", "uint16") and taken.dtype != spec.source_dtype:
        yield f"it takes {taken.dtype} pixels, not {spec.source_dtype}"
    if spec.post and returned.classifies:
        yield "it returns scores of whole images, and labels alone would have no score: pack only the input"
    if spec.post and returned.decided:
        yield f"it already returns {returned.activation}: pack only the input"
    if spec.post and len(returned.classes) > MAX_LABELS:
        yield f"{len(returned.classes)} classes do not fit into uint8 labels: pack only the input"


def _notes(model: Model, spec: PackSpec, *, varied: bool) -> Iterator[str]:
    """What changes for a job with the packed file. varied: whether the reference labels have more than one value."""
    if spec.pre:
        yield f"it takes {spec.source_dtype} images and rejects others"
        if _source_changes(model.contract.input, spec.source_dtype).get("padding") == "refuse":
            yield (
                f"it rejects images that need padding, because no {spec.source_dtype} value becomes "
                f"{model.contract.input.pad_value:g} after normalisation"
            )
    if spec.post:
        if model.contract.input.fit in ("stretch", "letterbox"):
            yield (
                "labels are resized to the image's size by nearest pixel, scores were resized bilinearly: at 4 times "
                "the size 1.6 to 1.9 % of labels differ"
            )
        else:
            yield (
                "labels cannot be blended where tiles overlap, as in every image that is not an exact grid of "
                "tiles: for such images pack only the input"
            )
        yield "it returns no probabilities: classes have no mean_probability, images no confidence and no entropy"
    if not varied:
        yield (
            "the network gives the same label to every pixel of the reference pictures, so the gate cannot notice a "
            "changed file: write the unpacked model in `check.reference`"
        )


def _packed_contract(model: Model, spec: PackSpec) -> Contract:
    # Names and layouts are explicit: defaults would be derived from another input.
    taken = model.contract.input.model_copy(update={"name": model.input_name})
    returned = model.contract.output.model_copy(update={"name": model.output_name, "layout": model.output_layout})
    if spec.pre:
        changes = {"name": PIXELS, "layout": "nhwc", "dtype": spec.source_dtype, "normalize": Raw()}
        taken = taken.model_copy(update=changes | _source_changes(taken, spec.source_dtype))
    if spec.post and returned.multi_label and len(returned.classes) > 1:
        returned = returned.model_copy(
            update={"name": LABELS, "layout": "nchw", "activation": "masks", "threshold": 0.5}
        )
    elif spec.post:
        returned = returned.model_copy(
            update={"name": LABELS, "layout": "nhw", "activation": "labels", "threshold": 0.5}
        )
    return model.contract.model_copy(update={"input": taken, "output": returned})


def _source_changes(taken: ModelInput, source: SourceType) -> dict[str, Any]:
    """Changes of the contract because the graph divides, and because padding must be in source pixels."""
    changes: dict[str, Any] = {}
    if isinstance(taken.normalize, Divide | MeanStd) and taken.normalize.max is None:
        changes["source_max"] = LARGEST[source]
    if taken.padding == "constant" and taken.pad_units != "source" and taken.fit in ("tile", "pad", "letterbox"):
        value = source_value(taken, source)
        if value is None:
            return changes | {"padding": "refuse", "pad_value": 0.0, "pad_units": None}
        return changes | {"pad_value": float(value), "pad_units": "source"}
    return changes


def _reference_shape(model: Model) -> tuple[int, int, int]:
    """Rows, columns and channels of the pictures for the proof."""
    side = model.contract.input.side(SIDE + 2 * model.contract.output.margin)
    return (*(model.tile_hw or (side, side)), model.contract.input.channels)


def _with_axes(value: ValueInfoProto, rank: int) -> ValueInfoProto:
    """The declaration, with open axes if it has none: ONNX's checker requires them."""
    name, dtype, shape = graph.tensor(value)
    return value if shape else graph_edit.declare(name, dtype, (None,) * rank)


def _pixels(taken: ValueInfoProto, model: Model, spec: PackSpec) -> ValueInfoProto:
    """The declaration of the packed input: the network's axes in another order."""
    shape = graph.tensor(taken)[2] or (None,) * 4
    batch, height, width = (
        shape[place] for place in ((0, 2, 3) if model.contract.input.layout == "nchw" else (0, 1, 2))
    )
    return graph_edit.declare(PIXELS, spec.source_dtype, (batch, height, width, model.contract.input.channels))


def _outputs(taken: ValueInfoProto, returned: ValueInfoProto, model: Model) -> Iterator[ValueInfoProto]:
    """The declarations of the packed outputs, without a symbol that the file repeats on the wrong axis."""
    batch = (graph.tensor(taken)[2] or (None,))[0]
    shape = graph.tensor(returned)[2]
    places = {"nchw": (2, 3), "nhwc": (1, 2), "nhw": (1, 2)}[model.output_layout]
    sides = [shape[place] if shape else None for place in places]
    height, width = (None if isinstance(side, str) and side in (batch, *shape[:1]) else side for side in sides)
    classes = model.contract.output.classes
    several = model.contract.output.multi_label and len(classes) > 1
    yield graph_edit.declare(
        LABELS, "uint8", (batch, len(classes), height, width) if several else (batch, height, width)
    )
    yield graph_edit.declare(FINITE, "uint8", (batch,))
