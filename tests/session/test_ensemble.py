"""Ensembles: one session made of several, right for everything behind it, and refused where members do not agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from contracts.session_suite import FakeSession, SessionSuite, tiles_of
from models import TinyModel, nan_model, threshold_model

from unet_batch.contract import Contract, ModelOutput
from unet_batch.errors import ContractError, ProviderMissing, ShapeMismatch
from unet_batch.imaging.postprocess import Prediction, reduce
from unet_batch.imaging.preprocess import Geometry
from unet_batch.model.contract import resolve
from unet_batch.model.model import Model
from unet_batch.session.combined.ensemble import Combine, Ensemble, combined_model, probabilities, votes
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import SessionSpec, TilingSpec


def held(tiny: TinyModel, **output: object) -> Model:
    contract = tiny.contract.model_copy(update={"output": tiny.contract.output.model_copy(update=output)})
    return resolve(contract, read_model(tiny.data, "tiny.onnx", None), TilingSpec())


def opened(tiny: TinyModel, model: Model | None = None) -> Session:
    return open_session(tiny.data, model or held(tiny), SessionSpec(), Device(threads=1))


def together(members: Sequence[TinyModel], combine: Combine, **output: object) -> Ensemble:
    models = [held(tiny, **output) for tiny in members]
    sessions = [opened(tiny, model) for tiny, model in zip(members, models, strict=True)]
    return Ensemble(sessions, combined_model(models, combine), combine)


def seen(session: Session, tiles: np.ndarray) -> Prediction:
    """The first tile as a whole picture."""
    size = tiles.shape[1:3]
    return reduce(
        session.run(tiles)[0],
        Geometry(source_hw=size, resized_hw=size, fitted_hw=size, top=0, left=0),
        session.model.contract.output,
        rle=False,
        confidence=True,
    )


class TestEnsembleOfLogits(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return together([threshold_model(), threshold_model("nhwc"), threshold_model()], "logits")


class TestEnsembleOfProbabilities(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return together([threshold_model(), threshold_model(activation="softmax")], "probabilities")


class TestEnsembleByVote(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return together([threshold_model(), threshold_model("nhwc"), threshold_model()], "vote")


# Members that answer as they are told -------------------------------------------------------------------------------


class Told:
    """A session that always returns the same array."""

    provider = "cpu"
    device_name = "Told 1"

    def __init__(self, model: Model, output_nkhw: np.ndarray) -> None:
        self.model = model
        self._output = output_nkhw

    def run(self, tiles: np.ndarray) -> np.ndarray:
        return self._output.copy()


def model_with(digit: str = "0", **output: object) -> Model:
    return Model(
        sha256=digit * 64,
        contract=Contract(output=ModelOutput.model_validate(output)),
        input_name="image",
        output_name="mask",
        tile_hw=None,
        batch=None,
        output_layout="nchw",
    )


def combined(outputs: Sequence[object], combine: Combine, **output: object) -> tuple[np.ndarray, ModelOutput]:
    """What an ensemble returns of members with these (K, h, w) outputs, and as what it is to be read."""
    models = [model_with(str(n), **output) for n in range(len(outputs))]
    arrays = [np.asarray(o, np.float32)[None] for o in outputs]
    model = combined_model(models, combine)
    ensemble = Ensemble([Told(m, a) for m, a in zip(models, arrays, strict=True)], model, combine)
    result = ensemble.run(np.zeros((1, *arrays[0].shape[2:], 3), np.float32))
    assert result.dtype == np.float32
    return result[0], model.contract.output


A_B = {"classes": ["a", "b"], "background": 0}


def test_the_mean_of_logits_stays_logits() -> None:
    """Member by member, value by value."""
    result, output = combined([[[[1.0]], [[3.0]]], [[[2.0]], [[-5.0]]]], "logits", **A_B)
    np.testing.assert_array_equal(result, [[[1.5]], [[-1.0]]])
    assert output.activation == "logits"


def test_the_mean_of_probabilities_is_over_softmaxes() -> None:
    """Logits of 0 and log 3 are ½ : ½ and ¼ : ¾; their mean is ⅜ : ⅝."""
    result, output = combined([[[[0.0]], [[0.0]]], [[[0.0]], [[np.log(3)]]]], "probabilities", **A_B)
    np.testing.assert_allclose(result, [[[3 / 8]], [[5 / 8]]], rtol=1e-6)
    assert output.activation == "softmax"


def test_a_sure_member_outweighs_two_unsure_ones_in_probabilities_only() -> None:
    """Two members lean to a, one is certain of b: the vote says a, the mean of probabilities b."""
    lean, sure = [[[0.2]], [[0.0]]], [[[0.0]], [[9.0]]]
    by_vote, _ = combined([lean, lean, sure], "vote", **A_B)
    by_mean, _ = combined([lean, lean, sure], "probabilities", **A_B)
    assert by_vote.argmax() == 0
    assert by_mean.argmax() == 1


def test_votes_are_shares_of_members() -> None:
    """Three of four say b."""
    b, a = [[[0.0]], [[1.0]]], [[[1.0]], [[0.0]]]
    result, output = combined([b, b, a, b], "vote", **A_B)
    np.testing.assert_array_equal(result, [[[0.25]], [[0.75]]])
    assert output.activation == "softmax"


@pytest.mark.parametrize("activation", ["logits", "sigmoid"])
def test_one_class_votes_by_its_own_threshold(activation: str) -> None:
    """p > 0.8 is a vote; more than half of the votes is a pixel of the class, for every threshold."""
    values = [0.7, 0.9, 0.9]
    outputs = [[[[v if activation == "sigmoid" else np.log(v / (1 - v))]]] for v in values]
    result, output = combined(outputs, "vote", classes=["cell"], threshold=0.8, activation=activation)
    np.testing.assert_allclose(result, [[[2 / 3]]], rtol=1e-6)
    assert (output.activation, output.threshold) == ("sigmoid", 0.5)


def test_one_class_of_logits_becomes_a_probability() -> None:
    """Logits 0 and log 3 are ½ and ¾."""
    result, output = combined([[[[0.0]]], [[[np.log(3)]]]], "probabilities", classes=["cell"], threshold=0.6)
    np.testing.assert_allclose(result, [[[5 / 8]]], rtol=1e-6)
    assert (output.activation, output.threshold) == ("sigmoid", 0.6)


def test_classes_that_may_overlap_stay_apart() -> None:
    """With sigmoid every class is decided by itself, in every member."""
    result, output = combined(
        [[[[0.9]], [[0.8]]], [[[0.7]], [[0.2]]]], "vote", activation="sigmoid", classes=["a", "b"], background=None
    )
    np.testing.assert_array_equal(result, [[[1.0]], [[0.5]]])
    assert output.multi_label


def test_finished_labels_can_vote() -> None:
    """Label maps have one channel; the shares have one per class."""
    result, output = combined([[[[0, 2]]], [[[2, 2]]]], "vote", activation="labels", classes=["a", "b", "c"])
    np.testing.assert_array_equal(result, [[[0.5, 0.0]], [[0.0, 0.0]], [[0.5, 1.0]]])
    assert output.activation == "softmax"


def test_finished_labels_of_one_class_can_vote() -> None:
    """0 and 1 are votes against and for it."""
    result, output = combined([[[[0, 1]]], [[[1, 1]]]], "vote", activation="labels", classes=["cell"])
    np.testing.assert_array_equal(result, [[[0.5, 1.0]]])
    assert output.activation == "sigmoid"


@pytest.mark.parametrize("value", [3.0, -1.0, 0.5])
def test_labels_that_are_no_class_are_a_shape_mismatch(value: float) -> None:
    """A wrong list of classes is not voted away."""
    with pytest.raises(ShapeMismatch, match=r"correct output\.classes"):
        combined([[[[value]]]] * 2, "vote", activation="labels", classes=["a", "b", "c"])


@pytest.mark.parametrize("combine", ["logits", "probabilities", "vote"])
@pytest.mark.parametrize("ill", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_one_member_is_not_finite_in_the_whole(combine: Combine, ill: float) -> None:
    """An argmax would turn NaN into class 0, and a sigmoid infinity into certainty: the image must be rejected."""
    result, _ = combined([[[[1.0, 1.0]], [[0.0, 0.0]]], [[[ill, 1.0]], [[0.0, 0.0]]]], combine, **A_B)
    assert not np.isfinite(result[:, 0, 0]).all()
    assert np.isfinite(result[:, 0, 1]).all()


def test_members_with_masks_of_other_sizes_are_a_shape_mismatch() -> None:
    """One returns half the size: neither is stretched in silence."""
    with pytest.raises(ShapeMismatch, match="masks of 2x2 and 1x1"):
        combined([np.zeros((2, 2, 2)), np.zeros((2, 1, 1))], "logits", **A_B)


def test_logits_far_from_zero_overflow_nowhere() -> None:
    """exp(1000) is infinite; the probability is 1."""
    with np.errstate(all="raise", under="ignore"):
        two = probabilities(np.array([[[[1000.0]], [[-1000.0]]]], np.float32), ModelOutput())
        one = probabilities(np.array([[[[1000.0, -1000.0]]]], np.float32), ModelOutput(classes=("cell",)))
    np.testing.assert_array_equal(two, [[[[1.0]], [[0.0]]]])
    np.testing.assert_array_equal(one, [[[[1.0, 0.0]]]])


def test_equal_logits_vote_for_the_first_class() -> None:
    """As reduce decides them."""
    np.testing.assert_array_equal(
        votes(np.zeros((1, 3, 1, 1), np.float32), ModelOutput(classes=("a", "b", "c")))[0, 0], 1
    )


def test_finished_masks_vote_as_they_are() -> None:
    """1 is a vote for every threshold; they have no probabilities to average."""
    output = ModelOutput(activation="masks", classes=("a", "b"), threshold=0.9)
    masks = np.array([[[[1, 0]], [[1, 1]]]], np.float32)
    np.testing.assert_array_equal(votes(masks, output), masks)
    contract = Contract(output=output)
    models = [Model(n * 64, contract, "image", "mask", None, None, "nchw") for n in "12"]
    with pytest.raises(ContractError, match="masks, which have no probabilities: combine by vote"):
        combined_model(models, "probabilities")
    assert combined_model(models, "vote").contract.output.activation == "sigmoid"


# Against ONNX Runtime -----------------------------------------------------------------------------------------------


def test_our_softmax_is_onnxruntimes() -> None:
    """The same network with and without a Softmax node: ours on the one is theirs on the other."""
    tiles = tiles_of(1, 2, side=16)
    ours = probabilities(
        opened(threshold_model(classes=4)).run(tiles), held(threshold_model(classes=4)).contract.output
    )
    theirs = opened(threshold_model(classes=4, activation="softmax")).run(tiles)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_our_sigmoid_is_onnxruntimes() -> None:
    """One class, with and without a Sigmoid node."""
    tiles = tiles_of(2, 2, side=16)
    ours = probabilities(
        opened(threshold_model(classes=1)).run(tiles), held(threshold_model(classes=1)).contract.output
    )
    theirs = opened(threshold_model(classes=1, activation="sigmoid")).run(tiles)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("combine", ["logits", "probabilities", "vote"])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_an_ensemble_of_copies_sees_what_one_of_them_sees(combine: Combine, classes: int) -> None:
    """Through `reduce`: the same labels and areas; and the same certainty where probabilities are kept."""
    tiny, tiles = threshold_model(classes=classes), tiles_of(3, 1, side=32)
    alone, among = seen(opened(tiny), tiles), seen(together([tiny] * 3, combine), tiles)
    np.testing.assert_array_equal(among.labels_hw, alone.labels_hw)
    assert [(c.name, c.area_px) for c in among.classes] == [(c.name, c.area_px) for c in alone.classes]
    if combine != "vote":
        assert among.confidence == pytest.approx(alone.confidence, abs=1e-5)
        assert among.entropy == pytest.approx(alone.entropy, abs=1e-5)
    else:
        assert among.confidence == 1.0


def test_a_nan_of_one_member_reaches_the_caller() -> None:
    """A real graph with a logarithm of a negative number, beside a sound one."""
    ensemble = together([threshold_model(), nan_model()], "vote")
    tiles = np.array([[[[0.25] * 3, [0.75] * 3]]], np.float32)
    np.testing.assert_array_equal(np.isnan(ensemble.run(tiles)), [[[[False, True]]] * 2])


# Agreement ----------------------------------------------------------------------------------------------------------


def changed(**update: object) -> Model:
    """A member whose contract differs in the named keys of input or output."""
    contract = model_with().contract
    for key, value in update.items():
        section, _, name = key.partition("_")
        part = getattr(contract, section).model_copy(update={name: value})
        contract = contract.model_copy(update={section: part})
    return Model("1" * 64, contract, "image", "mask", None, None, "nchw")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (changed(input_color="bgr"), r"member 2 differs in input.color \(bgr, not rgb\)"),
        (changed(input_multiple=16), "member 2 differs in input.multiple"),
        (changed(output_classes=("background", "cell")), "member 2 differs in output.classes"),
        (changed(output_background=None), "member 2 differs in output.background"),
        (changed(output_activation="sigmoid"), "member 2 differs in whether classes are exclusive"),
        (Model("1" * 64, Contract(), "image", "mask", (64, 64), None, "nchw"), "differs in the size of its tiles"),
    ],
)
def test_members_that_expect_or_mean_other_things_are_refused(other: Model, sentence: str) -> None:
    """The sentence names the member, the key, and both values."""
    with pytest.raises(ContractError, match=sentence):
        combined_model([model_with(), other], "probabilities")


def test_names_and_layouts_of_tensors_are_each_members_own() -> None:
    """A fold that was exported by another tool is still a fold."""
    other = changed(input_name="input:0", input_layout="nhwc", output_name="y", output_layout="nhwc")
    combined_model([model_with(), other], "logits")


def test_a_fixed_batch_axis_binds_the_whole() -> None:
    """1 and open is 1; 1 and 4 is nothing."""
    models = [Model("1" * 64, Contract(), "image", "mask", None, batch, "nchw") for batch in (None, 1, 4)]
    assert combined_model(models[:2], "logits").batch == 1
    with pytest.raises(ContractError, match="fix their batch axes at 1 and 4"):
        combined_model(models, "logits")


@pytest.mark.parametrize(
    ("activation", "combine", "sentence"),
    [
        ("softmax", "logits", "member 1 returns softmax and not logits"),
        ("labels", "logits", "member 1 returns labels"),
        ("labels", "probabilities", "labels, which have no probabilities: combine by vote"),
    ],
)
def test_an_output_that_cannot_be_combined_so_is_refused(activation: str, combine: Combine, sentence: str) -> None:
    """With the combination that would do."""
    with pytest.raises(ContractError, match=sentence):
        combined_model([model_with(activation=activation)] * 2, combine)


def test_the_digest_is_over_members_contracts_order_and_combination() -> None:
    """What changes a result changes the digest, and so the fingerprint."""
    a, b = model_with("a"), model_with("b")
    told = Model("b" * 64, b.contract, "image", "other", None, None, "nchw")
    digests = [
        combined_model(models, combine).sha256
        for models, combine in [
            ([a, b], "logits"),
            ([b, a], "logits"),
            ([a, b], "vote"),
            ([a, a], "logits"),
            ([a, told], "logits"),
        ]
    ]
    assert len(set(digests)) == 5
    assert all(len(digest) == 64 for digest in digests)
    assert combined_model([a, b], "logits").sha256 == digests[0]


def test_members_on_different_providers_are_refused() -> None:
    """A session half on the GPU and half on the CPU is refused."""
    models = [model_with("a"), model_with("b")]
    sessions = [FakeSession(model=models[0], provider="cuda"), FakeSession(model=models[1], provider="cpu")]
    with pytest.raises(ProviderMissing, match="run on cpu and cuda"):
        Ensemble(sessions, combined_model(models, "logits"), "logits")
