"""8-bit files and processors: which files give the same labels on every processor, and which need exact products.

Checks the stored weights of a graph and this machine's processor. Opens no session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unet_batch.errors import ModelRefused, ProviderMissing
from unet_batch.model import graph
from unet_batch.session.engines import find
from unet_batch.session.machine import int8_instruction, processor_name
from unet_batch.spec import Engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto, NodeProto, TensorProto

_WEIGHTS = {
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
    "QGemm": (3, 5),
    "ConvInteger": (1, 3),
    "MatMulInteger": (1, 3),
    "DequantizeLinear": (0, 2),
}
"""Operator → inputs with its quantised weights and their zero point."""
SEVEN_BITS = 64
"""Two products of 255 and 64 add up to 32640, which fits into 16 bits: such weights are exact on every processor."""


def wide_weights(model: ModelProto, engine: Engine) -> str | None:
    """The first tensor of 8-bit weights that needs exact products; None if every processor gives the same result.

    ONNX Runtime computes unsigned weights without saturation on every processor (its documentation of quantisation,
    "When and why do I need to try U8U8?"); for OpenVINO this is not known.
    """
    types = (np.int8, np.uint8) if find(engine, "cpu").onednn else (np.int8,)
    stored = graph.constants(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in stored and len(stored[node.input[0]].dims) > 1:
            if _wide_when_quantised(node, stored):
                return str(node.input[0])  # float weights that the engine quantises
            continue
        place, zero_place = _WEIGHTS.get(node.op_type, (0, 0))
        name = node.input[place] if node.op_type in _WEIGHTS and place < len(node.input) else ""
        if name not in stored or len(stored[name].dims) < 2:
            continue
        values = graph.array(stored[name])
        if values.dtype not in types:
            continue
        zero = node.input[zero_place] if zero_place < len(node.input) else ""
        middle = int(graph.array(stored[zero]).flat[0]) if zero in stored else 0
        if max(abs(int(values.min()) - middle), abs(int(values.max()) - middle)) > SEVEN_BITS:
            return name
    return None


def _wide_when_quantised(node: NodeProto, stored: Mapping[str, TensorProto]) -> bool:
    """Whether float weights need more than 7 bits when the engine quantises them; True if it cannot be computed."""
    scale = stored.get(node.input[1]) if len(node.input) > 1 else None
    if scale is None:
        return True
    values, scales = np.abs(graph.array(stored[node.input[0]])), graph.array(scale)
    if scales.ndim:
        axis = int(graph.attribute(node, "axis", 1)) % values.ndim
        scales = scales.reshape([-1 if n == axis else 1 for n in range(values.ndim)])
    return bool((np.rint(values / scales) > SEVEN_BITS).any())


def check_processor(data: bytes, engine: Engine, uri: str) -> None:
    """Raise ProviderMissing if this processor would compute other labels with an 8-bit file than other processors."""
    if int8_instruction(onednn=find(engine, "cpu").onednn) is not None:
        return
    try:
        name = wide_weights(graph.read(data, uri), engine)
    except ModelRefused:
        return
    if name is not None:
        raise ProviderMissing(
            f"{uri} has 8-bit weights ({name}) that {processor_name()} does not compute exactly: without AMX, "
            "AVX512-VNNI or AVX-VNNI, sums saturate and labels differ. Use other workers, or make a file for every "
            "processor with `unet-batch model quantize --any-cpu`"
        )
