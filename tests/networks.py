"""Small networks of many kinds as ONNX graphs, for tests of what a graph's wiring says. Weights are all alike.

A feature is named by a string; each method adds nodes and returns the name of what comes out.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper


class Network:
    """A graph in the making, NCHW, float32, from `image` (N, 3, H, W)."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, **settings) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **settings))
        return name

    def constant(self, values, dtype=np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def conv(self, source: str, channels: tuple[int, int], *, stride: int = 1, kernel: int = 3, group: int = 1) -> str:
        weight = self.constant(np.full((channels[1], channels[0] // group, kernel, kernel), 0.01))
        pads = [kernel // 2] * 4
        return self.add("Conv", source, weight, pads=pads, strides=[stride, stride], group=group)

    def up(self, source: str, channels: tuple[int, int]) -> str:
        weight = self.constant(np.full((*channels, 2, 2), 0.01))
        return self.add("ConvTranspose", source, weight, strides=[2, 2])

    def resize(self, source: str, factor: float = 2.0) -> str:
        return self.add("Resize", source, "", self.constant([1, 1, factor, factor]))

    def pool(self, source: str) -> str:
        return self.add("MaxPool", source, kernel_shape=[2, 2], strides=[2, 2])

    def squeeze_excite(self, source: str, channels: int) -> str:
        """Channels weighed by what the whole picture holds of them."""
        gate = self.conv(self.add("GlobalAveragePool", source), (channels, channels), kernel=1)
        return self.add("Mul", source, self.add("Sigmoid", gate))

    def model(self, result: str, *, layout: str = "nchw", channels: int = 3) -> ModelProto:
        axes = ["n", channels, "h", "w"] if layout == "nchw" else ["n", "h", "w", channels]
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [result], ["mask"])],
            "network",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, axes)],
            [helper.make_tensor_value_info("mask", TensorProto.FLOAT, None)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def classifier(rank: int = 2, *, size: int | None = 24) -> bytes:
    """Class 0, 1 or 2 is the channel with the highest mean. rank: 2 for (N, K), 4 for (N, K, 1, 1)."""
    graph = Network()
    name = graph.add("GlobalAveragePool", graph.add("Conv", "image", graph.constant(9 * np.eye(3)[:, :, None, None])))
    model = graph.model(name if rank == 4 else graph.add("Flatten", name, axis=1))
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:] if size else ():
        axis.dim_value = size
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 3, 1, 1][:rank]))
    checker.check_model(model)
    return model.SerializeToString()
