"""Describe an ONNX file: its tensors, its network, its cost, and a draft of its contract.

Opens one CPU session, for facts that the file does not declare. The statement about CUDA is an estimate from a list of
operators, without a GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from unet_batch.errors import ModelRefused, UnetBatchError
from unet_batch.model import graph
from unet_batch.model.contract import MAX_CONTRACT_BYTES, METADATA_KEY, draft, find_contract
from unet_batch.model.graph import Precision
from unet_batch.model.meaning import Meaning, contradictions, meaning
from unet_batch.model.model import ModelFile, Tensor
from unet_batch.session.plain_session import PlainSession
from unet_batch.workbench.cost import Cost
from unet_batch.workbench.measured import Measured, measure, takes_pictures

if TYPE_CHECKING:
    from onnx import ModelProto

NOT_ON_CUDA = frozenset(
    """
    Acos Acosh Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Col2Im ConvInteger Cosh Det
    DynamicQuantizeLinear DynamicQuantizeMatMul GlobalLpPool Hardmax LpPool MatMulIntegerToFloat MaxRoiPool MaxUnpool
    Multinomial QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu
    QLinearMatMul QLinearMul QLinearSigmoid QLinearSoftmax QLinearWhere Sinh Tan Unique
    """.split()  # noqa: SIM905 - a column of quoted names reads worse
)
"""Operators without a CUDA kernel: not in ONNX Runtime's docs/OperatorKernels.md under CUDAExecutionProvider, and
without a kernel class in the provider library of onnxruntime-gpu 1.31.1 (by its type names; nothing was run)."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The description of one ONNX file. Figures are per tile of `tile_hw`; None if unknown."""

    uri: str
    sha256: str
    bytes: int
    producer: str
    ir_version: int
    opset: int
    domains: dict[str, int]
    """Version of every other operator set of the file."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: tuple[str, ...]
    """Keys of the file's metadata."""
    nodes: int
    operators: dict[str, int]
    """Operator → number of nodes, most frequent first."""
    parameters: int
    """Number of trained values, with running statistics of normalisation."""
    precision: Precision
    refusals: tuple[str, ...]
    """Why a job would refuse this file; such a file is not opened."""
    tile_hw: tuple[int, int] | None
    multiple_hw: tuple[int, int] | None
    """The rows and columns of a tile must be multiples of these, so that every level has whole pixels."""
    cost: Cost | None
    contract: str
    """The contract in the file's metadata, else a draft, as YAML text."""
    contract_embedded: bool
    cpu_nodes: dict[str, int]
    """Operator → number of nodes on ONNX Runtime's CPU provider, in a session that was really opened."""
    cpu_problem: str | None
    """Why no CPU session could be opened or run."""
    cuda_estimate: dict[str, int]
    """ESTIMATE, without a GPU: operators without a CUDA kernel, which run on the CPU."""
    findings: tuple[str, ...]
    """Facts that matter for the contract, a sentence each."""

    def to_json(self) -> dict[str, Any]:
        """All fields, for `json.dumps`."""
        return {**asdict(self), "levels": self.levels}

    @property
    def levels(self) -> int | None:
        """How often the network halves its input."""
        return None if self.multiple_hw is None else math.ceil(math.log2(max(self.multiple_hw)))


def inspect(data: bytes, uri: str, *, tile_hw: tuple[int, int] | None = None) -> Inspection:
    """Describe the file in these bytes. tile_hw: tile size for the figures, if the file leaves it open.

    Raises ModelRefused if the bytes are not a model, ShapeMismatch for a tile that the file cannot take. Other unusual
    properties of a model become findings.
    """
    model = graph.read(data, uri)
    refusals = tuple(graph.refusals(model))
    file = ModelFile(
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        uri=uri,
        inputs=tuple(Tensor(*value) for value in graph.inputs(model)),
        outputs=tuple(Tensor(*value) for value in graph.outputs(model)),
        metadata=graph.metadata(model),
    )
    layout = _layout(file)
    session, problem = (None, "the file is refused") if refusals else _open(data)
    unmeasured: tuple[str, ...] = ()
    try:
        measured = measure(model, file, layout, tile_hw, session)
    except ModelRefused as error:
        measured, unmeasured = None, (str(error),)
    operators = Counter(node.op_type for node in model.graph.node)
    opsets = graph.opsets(model)
    target = file.outputs[0].name if file.outputs else ""
    says = meaning(model, target)
    return Inspection(
        uri=uri,
        sha256=file.sha256,
        bytes=len(data),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        ir_version=model.ir_version,
        opset=opsets.pop("", 0),
        domains=opsets,
        inputs=file.inputs,
        outputs=file.outputs,
        metadata=tuple(file.metadata),
        nodes=len(model.graph.node),
        operators=dict(operators.most_common()),
        parameters=sum(graph.elements(tensor) for tensor in graph.weights(model).values()),
        precision=graph.precision(model),
        refusals=refusals,
        tile_hw=measured.tile_hw if measured else None,
        multiple_hw=measured.multiple_hw if measured else None,
        cost=measured.cost if measured else None,
        contract=_embedded(file) or _completed(file, layout, measured, says.activation),
        contract_embedded=_embedded(file) is not None,
        cpu_nodes=dict(session.placement().get("CPUExecutionProvider", {})) if session else {},
        cpu_problem=problem,
        cuda_estimate={name: count for name, count in operators.items() if name in NOT_ON_CUDA},
        findings=(*unmeasured, *_findings(model, file, layout, measured), *_against_contract(model, file, says)),
    )


def _embedded(file: ModelFile) -> str | None:
    """The contract in the file's metadata; None if there is none, or if it is too long."""
    text = file.metadata.get(METADATA_KEY)
    return text if text and len(text.encode()) <= MAX_CONTRACT_BYTES else None


def _layout(file: ModelFile) -> str:
    """The layout of the input: from an embedded contract, else from the draft."""
    if METADATA_KEY in file.metadata:
        with contextlib.suppress(UnetBatchError):
            return find_contract(file, None, file.uri).input.layout
    return "nhwc" if "\n  layout: nhwc\n" in draft(file).partition("\noutput:")[0] else "nchw"


def _open(data: bytes) -> tuple[PlainSession | None, str | None]:
    try:
        return PlainSession(data), None
    except UnetBatchError as error:
        return None, str(error)


def _completed(file: ModelFile, layout: str, measured: Measured | None, says: str | None) -> str:
    """The draft with the multiple and activation from the graph; by itself, the draft has 32 and logits."""
    if measured is None:
        return draft(file)
    target, channels = file.outputs[0], 3 if layout == "nhwc" else 1
    if len(target.shape) == len(measured.output_dims) == 4 and not isinstance(target.shape[channels], int):
        counted = *target.shape[:channels], measured.output_dims[channels], *target.shape[channels + 1 :]
        file = replace(file, outputs=(replace(target, shape=counted), *file.outputs[1:]))
    multiple = measured.multiple_hw
    multiples = None if multiple is None else math.lcm(*multiple)
    return draft(file, multiple=multiples, activation=says, unpadded=measured.unpadded)


def _findings(model: ModelProto, file: ModelFile, layout: str, measured: Measured | None) -> Iterator[str]:
    if not takes_pictures(file):
        shape = list(file.inputs[0].shape) if file.inputs else "none"
        yield f"the first input is not a batch of images (its shape: {shape}), so tiles have no size or cost"
    if len(file.inputs) > 1:
        yield f"the model needs {len(file.inputs)} inputs; a job feeds one: export it with one input"
    if len(file.outputs) > 1 and METADATA_KEY not in file.metadata:  # a contract in the file has chosen one
        yield f"the model has {len(file.outputs)} outputs: choose one with output.name"
    for source in file.inputs[:1]:
        if batch := source.fixed("batch", layout):
            yield f"the batch axis is fixed at {batch}: every run takes exactly {batch} tile(s)"
        first = source.shape[0] if source.shape else None
        for target in file.outputs:
            if isinstance(first, str) and first in target.shape[1:]:
                yield f"output {target.name} has the batch's symbol on another axis: the file's declaration is wrong"
    returned = measured.output_hw(layout) if measured is not None else None
    if measured is not None and returned is None and measured.lost and measured.output_stride == 1:
        yield f"with a tile of {by(measured.tile_hw)} {measured.lost}, and its output has no known size"
    if measured is not None and returned not in (None, measured.tile_hw):
        yield f"the output of a tile of {by(measured.tile_hw)} is {by(returned)}" + _unpadded_words(measured)
    if any(node.op_type in ("ConvInteger", "DynamicQuantizeLinear") for node in model.graph.node):
        yield (
            "activations are quantised dynamically for each batch: a tile's labels depend on other tiles, and it runs "
            "slower than fp32 on CPUs; quantise it statically"
        )


def _unpadded_words(measured: Measured) -> str:
    if measured.unpadded is None:
        return f": {measured.lost}" if measured.lost and measured.output_stride == 1 else ""
    found = measured.unpadded
    sides = f"{found.multiple} · n" + (f" + {found.remainder}" if found.remainder else "")
    return f": its convolutions are unpadded, with a margin of {found.margin} on each side; sides are {sides}"


def _against_contract(model: ModelProto, file: ModelFile, says: Meaning) -> Iterator[str]:
    """Contradictions between the graph and the contract in its metadata, and problems with any contract."""
    embedded = None
    try:
        embedded = find_contract(file, None, file.uri) if METADATA_KEY in file.metadata else None
    except UnetBatchError as error:
        yield f"the contract in its metadata cannot be used: {error}"
    if embedded is None:
        yield from (f"its result is not repeatable: {phrase}" for phrase in says.unstable)
        if says.constant is not None:
            yield f"its output is the same for every image: {says.constant}"
        return
    output = embedded.output
    if output.name is not None and output.name in {value.name for value in model.graph.output}:
        says = meaning(model, output.name)
    yield from contradictions(says, output, output.layout or embedded.input.layout)


def by(size_hw: tuple[int, int] | None) -> str:
    """A size as text, e.g. 256x256."""
    return "x".join(map(str, size_hw or ()))
