"""What a graph says about its output, and what a contract may not say against it."""

from __future__ import annotations

import models
import numpy as np
import pytest
from networks import Network
from onnx import helper, load_from_string

from unet_batch.contract import ModelOutput
from unet_batch.model.meaning import Meaning, contradictions, meaning


def of(net: Network, last: str) -> Meaning:
    model = net.model(last)
    return meaning(model, model.graph.output[0].name)


@pytest.mark.parametrize("kind", ["logits", "softmax", "sigmoid", "labels"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_last_operator_says_what_the_numbers_are(kind, layout):
    """Through transposes, casts and identities."""
    model = load_from_string(models.threshold_model(layout, activation=kind).data)
    assert meaning(model, model.graph.output[0].name).activation == kind


def test_a_softmax_in_its_parts_is_one():
    """TensorFlow 2 writes exp(x − max) / Σ."""
    net = Network()
    scores = net.conv("image", (3, 4))
    parts = net.add("Exp", net.add("Sub", scores, net.add("ReduceMax", scores, axes=[1])))
    total = net.add("ReduceSum", parts, net.constant([1], "int64"))
    assert of(net, net.add("Div", parts, total)).activation == "softmax"


def test_an_operator_that_decides_nothing_says_nothing():
    """A Tanh may be anything."""
    net = Network()
    assert of(net, net.add("Tanh", "image")).activation is None
    assert of(net, net.add("Div", "image", "image")).activation is None


ONE = ("thing",)
TWO = ("background", "thing")


def said_against(net: Network, last: str, activation: str, classes: tuple[str, ...] = TWO) -> str:
    output = ModelOutput.model_validate({"activation": activation, "classes": classes, "background": None})
    return "; ".join(contradictions(of(net, last), output, "nchw"))


def sigmoid(net: Network) -> str:
    return net.add("Sigmoid", net.conv("image", (3, 2)))


def softmax(net: Network) -> str:
    return net.add("Softmax", net.conv("image", (3, 2)), axis=1)


def argmax(net: Network) -> str:
    return net.add("Cast", net.add("ArgMax", net.conv("image", (3, 2)), axis=1, keepdims=1), to=1)


def by_exponentials(net: Network) -> str:
    """1 / (1 + exp(−x))."""
    grown = net.add("Exp", net.add("Neg", net.conv("image", (3, 2))))
    return net.add("Reciprocal", net.add("Add", net.constant(1), grown))


def by_a_tanh(net: Network) -> str:
    """(tanh(x / 2) + 1) / 2."""
    half = net.add("Tanh", net.add("Mul", net.conv("image", (3, 2)), net.constant(0.5)))
    return net.add("Mul", net.add("Add", half, net.constant(1)), net.constant(0.5))


def mean_of_two(net: Network) -> str:
    """As test-time augmentation inside a graph ends."""
    return net.add("Div", net.add("Add", sigmoid(net), sigmoid(net)), net.constant(2))


def foreground_beside_background(net: Network) -> str:
    front = net.add("Sigmoid", net.conv("image", (3, 1)))
    return net.add("Concat", net.add("Sub", net.constant(1), front), front, axis=1)


def clipped(net: Network) -> str:
    return net.add("Clip", net.conv("image", (3, 2)), net.constant(0), net.constant(1))


def compared(net: Network) -> str:
    return net.add("Cast", net.add("Greater", net.conv("image", (3, 2)), net.constant(0)), to=1)


PROBABILITIES = [
    sigmoid, softmax, by_exponentials, by_a_tanh, mean_of_two, foreground_beside_background, clipped, compared
]  # fmt: skip


@pytest.mark.parametrize("ending", PROBABILITIES, ids=lambda f: f.__name__)
def test_numbers_between_0_and_1_are_no_logits(ending):
    """A sigmoid of a sigmoid is above one half in every pixel."""
    net = Network()
    assert "output.activation says logits" in said_against(net, ending(net), "logits")


BEHIND = {
    "Identity": {},
    "Transpose": {"perm": [0, 1, 2, 3]},
    "Cast": {"to": 10},
    "Squeeze": {},
    "Dropout": {},
}


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("ending", [sigmoid, softmax, argmax], ids=lambda f: f.__name__)
def test_operators_that_only_move_numbers_are_looked_through(ending, behind):
    """However many of them follow."""
    net = Network()
    last = net.add(behind, net.add(behind, ending(net), **BEHIND[behind]), **BEHIND[behind])
    operator = {"sigmoid": "Sigmoid", "softmax": "Softmax", "argmax": "ArgMax"}[ending.__name__]
    assert said_against(net, last, "logits").startswith(f"the file ends in {operator}, which gives ")
    assert "says logits: write output.activation: " in said_against(net, net.resize(last), "logits")


def logits(net: Network) -> str:
    return net.conv("image", (3, 2))


def normalised(net: Network) -> str:
    two = [net.constant(np.ones(2)) for _ in range(4)]
    return net.add("BatchNormalization", net.conv("image", (3, 2)), *two)


def enlarged(net: Network) -> str:
    return net.resize(logits(net))


def with_a_bias(net: Network) -> str:
    return net.add("Add", logits(net), net.constant(np.ones((1, 2, 1, 1))))


def sum_of_two(net: Network) -> str:
    return net.add("Add", logits(net), logits(net))


def residual(net: Network) -> str:
    """As MONAI's UNet ends."""
    below = net.add("PRelu", logits(net), net.constant(0.2))
    return net.add("Add", net.conv(below, (2, 2)), below)


@pytest.mark.parametrize(
    "ending", [logits, normalised, enlarged, with_a_bias, sum_of_two, residual], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("word", ["softmax", "sigmoid", "labels", "masks"])
def test_a_convolution_gives_no_probabilities(ending, word):
    """Nothing bounds what it returns."""
    net = Network()
    assert said_against(net, ending(net), word).endswith(f"says {word}: write output.activation: logits")


@pytest.mark.parametrize(
    ("ending", "word"),
    [
        (logits, "logits"),
        (sum_of_two, "logits"),
        (sigmoid, "sigmoid"),
        (softmax, "softmax"),
        (argmax, "labels"),
        (mean_of_two, "sigmoid"),
        (mean_of_two, "softmax"),
        (by_a_tanh, "sigmoid"),
        (clipped, "sigmoid"),
        (compared, "masks"),
        (compared, "labels"),
    ],
)
def test_a_contract_that_fits_is_not_spoken_against(ending, word):
    """Nor one that the graph says nothing about."""
    net = Network()
    assert said_against(net, ending(net), word) == ""


@pytest.mark.parametrize("word", ["logits", "softmax", "sigmoid"])
def test_what_the_graph_leaves_open_is_left_to_a_measurement(word):
    """A filter over probabilities may give probabilities, and a Relu anything that is not negative."""
    net = Network()
    assert said_against(net, net.add("Relu", net.conv("image", (3, 2))), word) == ""
    net = Network()
    smoothed = net.conv(sigmoid(net), (2, 2))
    assert said_against(net, smoothed, word) == ""


@pytest.mark.parametrize(("ending", "word"), [(sigmoid, "softmax"), (softmax, "sigmoid"), (argmax, "softmax")])
def test_one_kind_of_probability_is_not_the_other(ending, word):
    """Over the classes, or per class: another decision, and another confidence."""
    net = Network()
    assert f"says {word}: write output.activation: " in said_against(net, ending(net), word)


def test_a_logarithm_of_probabilities_is_logits():
    """Their softmax is what went in."""
    net = Network()
    last = net.add("LogSoftmax", net.conv("image", (3, 2)), axis=1)
    assert said_against(net, last, "logits") == ""
    assert "the file ends in LogSoftmax" in said_against(net, last, "softmax")


def test_a_softmax_over_one_class_says_nothing():
    """It is 1 everywhere."""
    net = Network()
    last = net.add("Softmax", net.conv("image", (3, 1)), axis=1)
    assert "1 everywhere" in said_against(net, last, "softmax", ONE)


def test_a_softmax_along_the_rows_is_none_over_the_classes():
    """Seen through a transpose, too."""
    net = Network()
    last = net.add("Softmax", net.conv("image", (3, 2)), axis=-1)
    assert said_against(net, last, "softmax") == "its Softmax runs along axis 3, but the classes are on axis 1"
    net = Network()
    moved = net.add("Transpose", net.conv("image", (3, 2)), perm=[0, 2, 3, 1])
    back = net.add("Transpose", net.add("Softmax", moved, axis=-1), perm=[0, 3, 1, 2])
    assert said_against(net, back, "softmax") == ""


def drawn(net: Network) -> str:
    return net.add("Add", logits(net), net.add("RandomNormalLike", logits(net)))


def sampled(net: Network) -> str:
    return net.conv(net.add("Bernoulli", sigmoid(net)), (2, 2))


def dropped(net: Network) -> str:
    return net.conv(net.add("Dropout", logits(net), net.constant(0.5), net.constant(True, bool)), (2, 2))


def trained(net: Network) -> str:
    two = [net.constant(np.ones(2)) for _ in range(4)]
    net.nodes.append(
        helper.make_node("BatchNormalization", [logits(net), *two], ["norm", "mean", "var"], training_mode=1)
    )
    return "norm"


@pytest.mark.parametrize("ending", [drawn, sampled, dropped, trained], ids=lambda f: f.__name__)
def test_a_result_that_chance_or_neighbours_decide_is_refused(ending):
    """Two runs of one tile differ, under every contract."""
    net = Network()
    assert "its result is not repeatable" in said_against(net, ending(net), "logits")


def test_a_dropout_that_is_off_or_leads_elsewhere_is_none():
    """Most exporters leave one behind."""
    net = Network()
    off = net.add("Dropout", logits(net), net.constant(0.5), net.constant(False, bool))
    net.add("RandomNormalLike", off)
    assert said_against(net, net.conv(off, (2, 2)), "logits") == ""


def by_its_size_alone(net: Network) -> str:
    return net.conv(net.add("ConstantOfShape", net.add("Shape", "image")), (3, 2))


def without_weights(net: Network) -> str:
    return net.add("Conv", "image", net.constant(np.zeros((2, 3, 1, 1))), net.constant(np.ones(2)))


def clipped_to_nothing(net: Network) -> str:
    return net.add("Clip", logits(net), net.constant(0), net.constant(0))


@pytest.mark.parametrize("ending", [by_its_size_alone, without_weights, clipped_to_nothing], ids=lambda f: f.__name__)
def test_an_output_that_no_picture_changes_is_refused(ending):
    """An empty mask of every image, status ok, is what would come of it."""
    net = Network()
    assert "the same for every image" in said_against(net, ending(net), "logits")


def test_a_graph_that_never_ends_is_left_alone():
    """A circle, and a long way back."""
    net = Network()
    last = logits(net)
    for _ in range(3000):
        last = net.add("Add", last, last)
    assert of(net, last).activation in ("logits", None)
