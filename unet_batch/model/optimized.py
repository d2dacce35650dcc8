"""What `model optimize` writes into a file: its recommendation, and how the fp32 network is found again.

An optimised 8-bit file keeps its weights in fp32, each followed by QuantizeLinear and DequantizeLinear; engines fold
these when a session opens. Without the pairs the file is the fp32 network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from unet_batch.contract import Contract
from unet_batch.errors import ContractError
from unet_batch.model import graph

if TYPE_CHECKING:
    from onnx import ModelProto

OPTIMIZE_KEY = "unet_batch.optimize"
"""Metadata entry of an optimised file: a `Recommendation`."""
VERSION = 1
"""Version of that entry."""
SUFFIX = ".optimized.onnx"
"""Of the file that `model optimize` writes beside the model."""
PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The fastest engine that passed on the machine where the file was optimised, and the measurements."""

    engine: str
    precision: str
    provider: str
    """Name in `session.providers`."""
    provider_options: Mapping[str, str | bool | int | float]
    """Options of the provider."""
    threads: int
    """Threads of one session on a CPU."""
    ladder: Mapping[str, float]
    """Batch size → seconds of the fastest batch, in ascending order; the last is the largest that pays."""
    speed: float
    """Speed relative to fp32 in ONNX Runtime on the CPU: the median of interleaved runs."""
    flipped_share: float
    """Share of labels that differ from fp32, on images that were not used for calibration."""
    min_dice: float
    """Least Dice of any class against fp32, on the same images."""
    machine: str
    """The maker's name of the processor or GPU."""
    versions: Mapping[str, str]
    """Versions of the engines."""
    source_sha256: str
    """Digest of the file that was optimised."""
    references: Mapping[str, Any]
    """Reference pictures with the labels that this engine gave: `gate/pack_reference.py`."""
    source_contract: str = ""
    """`contract_digest` of the contract that the optimised file had; empty in files of older versions."""

    @property
    def batch_max(self) -> int:
        """The largest batch of the ladder."""
        return max(int(size) for size in self.ladder)

    def to_text(self) -> str:
        """The metadata entry."""
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":"))


def optimized_path(path: str) -> str:
    """Where `model optimize` puts the file that it makes of a model: `cells.onnx` becomes `cells.optimized.onnx`."""
    return path if path.endswith(SUFFIX) else path.removesuffix(PurePosixPath(path).suffix) + SUFFIX


def contract_digest(contract: Contract) -> str:
    """64 hex digits over all that a contract says."""
    return hashlib.sha256(json.dumps(contract.for_digests(), sort_keys=True).encode()).hexdigest()


def recommendation(metadata: Mapping[str, str], uri: str) -> Recommendation | None:
    """The recommendation in a file's metadata; None if there is none.

    Raises ContractError for an entry that `model optimize` did not write, or wrote in another version.
    """
    text = metadata.get(OPTIMIZE_KEY)
    if text is None:
        return None
    problem = f"its metadata {OPTIMIZE_KEY} was not written by `model optimize`"
    try:
        tree = dict(json.loads(text))
        if tree.pop("version", None) != VERSION:
            problem = "it was optimised by another version of unet-batch: optimise it again"
        else:
            found = Recommendation(**tree)
            words = (found.engine, found.precision, found.provider, found.machine, found.source_sha256)
            figures = (found.speed, found.flipped_share, found.min_dice)
            if (
                all(isinstance(word, str) for word in words)
                and all(isinstance(figure, int | float) for figure in figures)
                and all(isinstance(m, dict) for m in (found.ladder, found.provider_options, found.references))
                and isinstance(found.threads, int)
                and min(found.batch_max, found.threads) >= 1
            ):
                return found
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ContractError(f"{uri}: {problem} ({type(error).__name__}: {error})") from error
    raise ContractError(f"{uri}: {problem}")


def holds_fp32(data: bytes) -> bool:
    """Whether a file that `model optimize` quantised holds its fp32 network."""
    return OPTIMIZE_KEY.encode() in data and fp32_network(data) is not None


def fp32_network(data: bytes) -> bytes | None:
    """The fp32 network of a file that was quantised with its weights in fp32; None for any other file."""
    model = graph.read(data, "the model")
    return data_of(model) if graph.precision(model) == "int8" and _without_pairs(model) else None


def data_of(model: ModelProto) -> bytes:
    """The bytes of a graph."""
    data: bytes = model.SerializeToString()
    return data


def _without_pairs(model: ModelProto) -> bool:
    """Remove each QuantizeLinear that is followed by DequantizeLinear; False if quantised operators are left."""
    made = {node.output[0]: node for node in model.graph.node}
    source: dict[str, str] = {}
    removed = set[str]()
    for node in model.graph.node:
        before = made.get(node.input[0]) if node.op_type == PAIR[1] else None
        if before is not None and before.op_type == PAIR[0]:
            source[node.output[0]] = before.input[0]
            removed |= {node.output[0], before.output[0]}
    returned = {value.name for value in model.graph.output}
    kept = []
    for node in model.graph.node:
        if node.output[0] in returned and node.output[0] in source:
            node.op_type, original = "Identity", _first(source, node.output[0])
            del node.attribute[:], node.input[:]
            node.input.append(original)
        elif node.output[0] in removed:
            continue
        else:
            for place, name in enumerate(node.input):
                node.input[place] = _first(source, name)
        kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | returned
    stored = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(stored)
    known = used | {name for node in kept for name in node.output}
    described = [value for value in model.graph.value_info if value.name in known]
    del model.graph.value_info[:]
    model.graph.value_info.extend(described)
    return graph.precision(model) == "fp32"


def _first(source: Mapping[str, str], name: str) -> str:
    """The tensor before all pairs in a row."""
    while name in source:
        name = source[name]
    return name
