"""Corrupted graphs: the node that was changed is the node that is named, wherever it sits."""

from typing import Any

import numpy as np
import pytest

from unet_batch.workbench.export.check import random_images
from unet_batch.workbench.export.divergence import WRONG, captured_otherwise, first_divergence
from unet_batch.workbench.export.graph import Captured, capture
from unet_batch.workbench.export.network import build, outputs_by_module

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.oracle

IMAGE = random_images(1, 1, (32, 32), seed=7)


def captured(factory: str, **args: Any) -> tuple[Any, Captured]:
    torch.manual_seed(0)
    network = build(factory, args)
    images = random_images(2, 1, (32, 32), seed=0)
    return network, capture(network, images, any_size=True, same_size=True, opset=20, output_name="logits")


@pytest.fixture(scope="module")
def attention() -> Captured:
    return captured("unet_batch.architectures:attention_unet", base=4, depth=2)[1]


@pytest.fixture(scope="module")
def interpolating() -> Captured:
    return captured("export_networks:interpolates")[1]


def copied(model: Any) -> Any:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def nodes(model: Any, operator: str) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == operator]


def add_to_weights(model: Any, node: Any, amount: float) -> None:
    """Changes a node's weights: all, because the channel that one belongs to may be dead on an image."""
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    values = onnx.numpy_helper.to_array(tensor) + np.float32(amount)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def test_a_graph_as_exported_diverges_nowhere(attention: Captured, interpolating: Captured) -> None:
    """At the exported size and at another one."""
    assert first_divergence(attention.model, attention.program, IMAGE) is None
    larger = random_images(1, 1, (40, 48), seed=1)
    assert first_divergence(attention.model, attention.program, larger) is None
    assert first_divergence(interpolating.model, interpolating.program, larger) is None


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_every_convolution_with_a_wrong_weight_is_named(attention: Captured, operator: str) -> None:
    """Each by itself."""
    convolutions = nodes(attention.model, operator)
    assert len(convolutions) > 1
    for number, node in enumerate(convolutions):
        model = copied(attention.model)
        add_to_weights(model, nodes(model, operator)[number], 0.5)
        found = first_divergence(model, attention.program, IMAGE)
        assert found is not None
        assert (found.node, found.operator) == (node.name, operator)


@pytest.mark.parametrize(
    ("operator", "other"),
    [("Relu", "Abs"), ("Sigmoid", "Tanh"), ("Mul", "Add"), ("Concat", None), ("MaxPool", "AveragePool")],
)
def test_an_operator_that_was_replaced_is_named(attention: Captured, operator: str, other: str | None) -> None:
    """The last of its kind; None: its inputs change places."""
    model = copied(attention.model)
    node = nodes(model, operator)[-1]
    if other:
        node.op_type = other
        del node.attribute[2 if other == "AveragePool" else len(node.attribute) :]
    else:
        node.input[0], node.input[1] = node.input[1], node.input[0]
    found = first_divergence(model, attention.program, IMAGE)
    assert found is not None
    assert (found.node, found.operator) == (node.name, other or operator)


def test_the_module_and_the_line_of_code_are_named(attention: Captured) -> None:
    """A convolution that swallowed its batch normalisation is that of the normalisation, inside its own module."""
    model = copied(attention.model)
    add_to_weights(model, nodes(model, "Conv")[0], 0.5)
    found = first_divergence(model, attention.program, IMAGE)
    assert found is not None
    assert found.place.module.startswith("encoder.levels.0.")
    assert found.place.line is not None
    assert found.place.line.startswith("architectures.py:")
    assert str(found).startswith(f"the first node that diverges is Conv {found.node}, from module encoder.levels.0.")


def test_the_first_of_two_wrong_nodes_is_named(attention: Captured) -> None:
    """In the graph's order; what follows is fed with right values and not blamed."""
    model = copied(attention.model)
    convolutions = nodes(model, "Conv")
    add_to_weights(model, convolutions[3], 0.5)
    add_to_weights(model, convolutions[6], 50.0)
    found = first_divergence(model, attention.program, IMAGE)
    assert found is not None
    assert found.node == convolutions[3].name


def test_a_small_error_is_named_where_none_is_large(attention: Captured) -> None:
    """Below the bound of a wrong node, above that of rounding."""
    model = copied(attention.model)
    node = nodes(model, "Conv")[4]
    add_to_weights(model, node, 2e-6)
    found = first_divergence(model, attention.program, IMAGE)
    assert found is not None
    assert found.node == node.name
    assert found.share < WRONG


def test_of_an_operation_that_is_several_nodes_all_suspects_are_named(interpolating: Captured) -> None:
    """PyTorch knows the result of a group normalisation only; its scale is applied in a node before the last."""
    model = copied(interpolating.model)
    scale = nodes(model, "Mul")[0]
    add_to_weights(model, scale, 3.0)
    found = first_divergence(model, interpolating.program, IMAGE)
    assert found is not None
    assert found.place.kind == "GroupNorm"
    assert scale.name in found.with_nodes
    assert scale.name in str(found)


def test_another_interpolation_is_named(interpolating: Captured) -> None:
    """An attribute of Resize that an exporter once got wrong."""
    model = copied(interpolating.model)
    node = nodes(model, "Resize")[-1]
    attribute = next(a for a in node.attribute if a.name == "coordinate_transformation_mode")
    attribute.s = b"asymmetric"
    found = first_divergence(model, interpolating.program, IMAGE)
    assert found is not None
    assert (found.node, found.place.module) == (node.name, "middle")


def test_the_last_node_is_known_although_its_output_was_renamed(attention: Captured) -> None:
    """The graph calls it logits, PyTorch does not."""
    model = copied(attention.model)
    head = model.graph.node[-1]
    assert list(head.output) == ["logits"]
    add_to_weights(model, head, 0.5)
    found = first_divergence(model, attention.program, IMAGE)
    assert found is not None
    assert (found.node, found.place.module) == (head.name, "head")


def test_a_node_with_another_shape_is_named(attention: Captured) -> None:
    """A stride that changed: the shapes are in the message."""
    model = copied(attention.model)
    node = nodes(model, "MaxPool")[0]
    next(a for a in node.attribute if a.name == "strides").ints[:] = [1, 1]
    found = first_divergence(model, attention.program, IMAGE)
    assert found is not None
    assert found.node == node.name
    assert "1x4x31x31, where PyTorch has 1x4x16x16" in str(found)


def test_a_node_that_cannot_run_is_named(attention: Captured) -> None:
    """Weights of the wrong number of channels."""
    model = copied(attention.model)
    node = nodes(model, "Conv")[2]
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((4, 9, 3, 3), np.float32), tensor.name))
    found = first_divergence(model, attention.program, IMAGE)
    assert found is not None
    assert found.node == node.name
    assert "cannot run" in str(found)


def test_what_pytorch_captured_wrongly_is_blamed_on_its_module() -> None:
    """A module that does something else while it is exported."""
    network, graph = captured("export_networks:otherwise_while_exporting")
    assert captured_otherwise(outputs_by_module(network, IMAGE), graph.program, IMAGE) == "middle"
    assert first_divergence(graph.model, graph.program, IMAGE) is None


def test_what_pytorch_captured_rightly_blames_nobody() -> None:
    """Modules that work in place, return what they did not compute last, or run twice."""
    network, graph = captured("export_networks:normalises_after")
    assert captured_otherwise(outputs_by_module(network, IMAGE), graph.program, IMAGE) is None
