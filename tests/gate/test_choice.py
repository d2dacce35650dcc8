"""`model.engine: auto` follows the file's recommendation where this machine agrees, else it says why not."""

from __future__ import annotations

import hashlib
import logging
import sys

import pytest
from optimized_files import in_8_bits, recommending, resolved, small_unet

from unet_batch.errors import ContractError, JobError, ModelRefused
from unet_batch.model.optimized import contract_digest
from unet_batch.planning.prepare import prepare, without_recommendation
from unet_batch.session import opening
from unet_batch.spec import ModelSpec, load_job

pytestmark = pytest.mark.usefixtures("cache")

ELSEWHERE = "openvino"


@pytest.fixture(scope="module")
def tiny():
    return small_unet()


@pytest.fixture(scope="module")
def eight_bits(tiny):
    return in_8_bits(tiny)


@pytest.fixture
def prepared(project, tiny):
    """Writes a model with a recommendation, and prepares a job with `engine: auto`."""

    def make(data: bytes, *overrides: str):
        (project.folder / "model.onnx").write_bytes(data)
        (project.folder / "model.yaml").write_text(tiny.contract_yaml)
        return prepare(load_job(project.folder / "job.yaml", ("model.engine=auto", *overrides)))

    return make


def test_what_the_file_recommends_runs(prepared, tiny, eight_bits):
    """Engine, precision and batches of the recommendation; every row and the fingerprint name them."""
    made = prepared(recommending(eight_bits, resolved(tiny), precision="int8"))
    assert (made.job.model.engine, made.job.model.precision, made.job.session.batch_max) == ("onnxruntime", "int8", 2)
    assert made.recommended_for is not None


def test_the_fingerprint_is_that_of_the_engine_and_precision_written_out(project, prepared, tiny, eight_bits):
    """`auto` is a way to choose and not a way to compute, so rows of both jobs are the same."""
    chosen = prepared(recommending(eight_bits, resolved(tiny), precision="int8"))
    written = prepare(load_job(project.folder / "job.yaml", ("model.precision=int8",)))
    in_fp32 = prepare(load_job(project.folder / "job.yaml"))
    assert chosen.fingerprint == written.fingerprint != in_fp32.fingerprint


def test_what_the_job_file_says_is_not_overruled(prepared, tiny):
    """A recommendation fills only the keys that are not written."""
    made = prepared(recommending(tiny.data, resolved(tiny), threads=2), "session.batch_max=16", "session.threads=1")
    assert (made.job.session.batch_max, made.job.session.threads) == (16, 1)


def test_an_engine_that_is_not_installed_is_named_and_fp32_runs(prepared, tiny, eight_bits, monkeypatch, caplog):
    """The fp32 network of the file itself, in ONNX Runtime."""
    monkeypatch.setitem(sys.modules, ELSEWHERE, None)
    made = prepared(recommending(eight_bits, resolved(tiny), precision="int8", engine=ELSEWHERE))
    assert (made.job.model.engine, made.job.model.precision) == ("onnxruntime", "fp32")
    assert "runs in onnxruntime in fp32, because OpenVINO cannot be imported" in caplog.text
    assert made.recommended_for is None


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({"engine": "abacus"}, (), "this version does not know abacus on cpu in fp32"),
        ({"provider": "cuda"}, ("session.providers=[cpu]",), "session.providers says cpu"),
    ],
)
def test_why_a_recommendation_is_not_followed_is_said(prepared, tiny, caplog, changes, overrides, said):
    """Each reason is a clause of the same warning."""
    made = prepared(recommending(tiny.data, resolved(tiny), **changes), *overrides)
    assert (made.job.model.engine, made.job.model.precision) == ("onnxruntime", "fp32")
    assert said in caplog.text


def test_a_file_without_a_recommendation_runs_as_it_is_and_nobody_is_warned(prepared, tiny, caplog):
    """`init` writes `auto` into every job; the log says at level DEBUG how to get a recommendation."""
    caplog.set_level(logging.DEBUG)
    assert prepared(tiny.data).job.model.engine == "onnxruntime"
    assert "`unet-batch model optimize JOB` finds one" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_8_bit_file_without_a_recommendation_is_not_replaced_by_its_reference(project, prepared, tiny):
    """The gate compares it with the reference, as with `engine: onnxruntime`."""
    (project.folder / "fp32.onnx").write_bytes(tiny.data)
    (project.folder / "fp32.yaml").write_text(tiny.contract_yaml)
    made = prepared(_stored_weights(tiny).SerializeToString(), f"check.reference={project.folder}/fp32.onnx")
    assert (made.job.model.path.endswith("/model.onnx"), made.job.model.precision) == (True, "int8")
    assert made.job.check.reference is not None


# The optimised file beside the model ----------------------------------------------------------------------------------


@pytest.fixture
def beside(project, prepared, tiny, eight_bits):
    """Prepares a job whose model has the optimised file beside it; changes: of its recommendation."""

    def make(*overrides: str, **changes: object):
        made_from = {
            "source_sha256": hashlib.sha256(tiny.data).hexdigest(),
            "source_contract": contract_digest(resolved(tiny).contract),
        }
        data = recommending(eight_bits, resolved(tiny), precision="int8", **{**made_from, **changes})
        (project.folder / "model.optimized.onnx").write_bytes(data)
        return prepared(tiny.data, *overrides)

    return make


def test_the_optimised_file_beside_the_model_runs_without_an_edit_of_the_job(project, beside):
    """The fingerprint is that of a job that names the file."""
    made = beside()
    assert made.job.model.path.endswith("/model.optimized.onnx")
    assert (made.job.model.precision, made.recommended_for is not None) == ("int8", True)
    named = ("model.engine=auto", f"model.path={project.folder}/model.optimized.onnx")
    assert made.fingerprint == prepare(load_job(project.folder / "job.yaml", named)).fingerprint


def test_fp32_as_the_fastest_scores_nothing_again(project, tiny, prepared):
    """The optimised file has the model's graph: the model itself runs, with the recommended batches."""
    before = prepared(tiny.data)
    made_from = {
        "source_sha256": hashlib.sha256(tiny.data).hexdigest(),
        "source_contract": contract_digest(resolved(tiny).contract),
    }
    (project.folder / "model.optimized.onnx").write_bytes(recommending(tiny.data, resolved(tiny), **made_from))
    after = prepared(tiny.data)
    assert (after.fingerprint, after.job.session.batch_max) == (before.fingerprint, 2)
    assert after.recommended_for is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_sha256": "ab" * 32}, "model.optimized.onnx was made from another file: optimise the model again"),
        ({"source_contract": ""}, "model.optimized.onnx was made with another contract: optimise the model again"),
    ],
)
def test_an_optimised_file_of_an_earlier_model_or_contract_does_not_count(beside, caplog, changes, said):
    """A retrained model, or a corrected contract: fp32 runs, and a warning says why."""
    made = beside(**changes)
    assert (made.job.model.path.endswith("/model.onnx"), made.job.model.precision) == (True, "fp32")
    assert said in caplog.text
    with pytest.raises(ModelRefused, match=said):
        beside("session.strict=true", **changes)


def test_a_contract_that_was_corrected_after_the_optimisation_is_noticed(project, beside, prepared, tiny, caplog):
    """The file holds the contract of before in its metadata."""
    beside()
    assert not caplog.text
    (project.folder / "model.yaml").write_text(tiny.contract_yaml.replace("kind: unit", "kind: zscore"))
    made = prepare(load_job(project.folder / "job.yaml", ("model.engine=auto",)))
    assert made.job.model.precision == "fp32"
    assert made.model.contract.input.normalize.kind == "zscore"
    assert "with another contract" in caplog.text


def test_a_pinned_digest_allows_no_other_file(beside, tiny, caplog):
    made = beside(f"model.sha256={hashlib.sha256(tiny.data).hexdigest()}")
    assert (made.job.model.path.endswith("/model.onnx"), caplog.text) == (True, "")


def test_a_file_beside_the_model_that_was_not_optimised_does_not_count(project, prepared, tiny):
    (project.folder / "model.optimized.onnx").write_bytes(b"anything")
    assert prepared(tiny.data).job.model.path.endswith("/model.onnx")


def test_a_refusal_of_the_optimised_file_leads_to_the_model_itself(beside):
    """And is remembered."""
    second = without_recommendation(beside(), ModelRefused("5 % of labels flipped"))
    assert (second.job.model.path.endswith("/model.onnx"), second.job.model.precision) == (True, "fp32")
    assert beside().fingerprint == second.fingerprint


# Other models and machines --------------------------------------------------------------------------------------------


def test_an_ensemble_runs_in_fp32(project, prepared, tiny, caplog):
    """A recommendation is measured with one model in memory."""
    (project.folder / "other.onnx").write_bytes(tiny.data)
    data = recommending(tiny.data, resolved(tiny))
    made = prepared(data, f"model.ensemble={{members: [{project.folder}/other.onnx]}}")
    assert made.job.model.engine == "onnxruntime"
    assert "for a single model, not for an ensemble" in caplog.text


def test_strict_runs_the_recommendation_or_nothing(prepared, tiny):
    """The sentence is the error then."""
    data = recommending(tiny.data, resolved(tiny), engine="abacus")
    with pytest.raises(ModelRefused, match=r"does not know abacus.*session\.strict allows nothing else"):
        prepared(data, "session.strict=true")
    assert prepared(recommending(tiny.data, resolved(tiny)), "session.strict=true").recommended_for is not None


def test_an_engine_that_computes_something_else_here_is_not_followed(prepared, tiny, eight_bits, caplog):
    """The reference pictures are those of another network: this machine does not agree."""
    other = recommending(small_unet().data, resolved(tiny))
    [text] = [e for e in _metadata(other) if e.key == "unet_batch.optimize"]
    model = _parsed(eight_bits)
    entry = model.metadata_props.add()
    entry.key, entry.value = text.key, text.value.replace('"precision":"fp32"', '"precision":"int8"')
    _weaken(model)
    prepared(model.SerializeToString())
    assert "onnxruntime in int8 computes other labels here: picture" in caplog.text


def test_damaged_reference_pictures_are_a_fault_of_the_file(prepared, tiny, caplog):
    """They say nothing about this machine, so fp32 runs; text that is no recommendation is refused."""
    prepared(recommending(tiny.data, resolved(tiny), references={"shape_hwc": [32, 32, 1]}))
    assert "is damaged: optimise the model again" in caplog.text
    model = _parsed(recommending(tiny.data, resolved(tiny)))
    for entry in model.metadata_props:
        entry.value = "no JSON" if entry.key == "unet_batch.optimize" else entry.value
    with pytest.raises(ContractError, match="was not written by `model optimize`"):
        prepared(model.SerializeToString())


def test_an_agreement_is_found_out_once_on_a_machine(prepared, tiny, monkeypatch):
    """The second command opens no session to decide."""
    data = recommending(tiny.data, resolved(tiny))
    prepared(data)

    def closed(*_: object, **__: object) -> None:
        raise AssertionError("a session was opened again")

    monkeypatch.setattr("unet_batch.gate.choice.open_session", closed)
    assert opening.open_session is not closed
    assert prepared(data).recommended_for is not None


def test_a_refusal_by_the_gate_leads_to_fp32_and_is_remembered(prepared, tiny, eight_bits, caplog):
    """So `status` and `verify` choose what the run chose."""
    data = recommending(eight_bits, resolved(tiny), precision="int8")
    first = prepared(data)
    second = without_recommendation(first, ModelRefused("5 % of labels flipped"))
    assert (second.job.model.precision, second.recommended_for) == ("fp32", None)
    assert "because the gate refused what its file recommends: 5 % of labels flipped" in caplog.text
    assert prepared(data).fingerprint == second.fingerprint
    assert prepared(data, "check.max_flipped=0.5").fingerprint == first.fingerprint


def test_a_refusal_stays_an_error_where_nothing_was_recommended(prepared, tiny):
    """A job that named its engine, or runs in fp32 already, has nothing to fall back to."""
    with pytest.raises(ModelRefused, match="no masks"):
        without_recommendation(prepared(tiny.data), ModelRefused("no masks"))


def test_a_file_without_its_fp32_network_falls_back_to_the_reference(project, prepared, tiny, eight_bits):
    """`check.reference` is the fp32 file."""
    model = _parsed(recommending(eight_bits, resolved(tiny), precision="int8", engine="abacus"))
    (project.folder / "fp32.onnx").write_bytes(tiny.data)
    (project.folder / "fp32.yaml").write_text(tiny.contract_yaml)
    stored = _stored_weights(tiny)
    entry = stored.metadata_props.add()
    [text] = [e for e in model.metadata_props if e.key == "unet_batch.optimize"]
    entry.key, entry.value = text.key, text.value
    made = prepared(stored.SerializeToString(), f"check.reference={project.folder}/fp32.onnx")
    assert made.job.model.path.endswith("/fp32.onnx")
    assert (made.job.model.precision, made.job.check.reference) == ("fp32", None)


def test_auto_chooses_the_precision_and_is_resolved_before_anything_runs():
    """A precision beside it would be ignored, so it is refused."""
    with pytest.raises(ValueError, match="engine auto chooses the precision: remove precision: int8"):
        ModelSpec(path="m.onnx", engine="auto", precision="int8")
    with pytest.raises(JobError, match="still auto"):
        ModelSpec(path="m.onnx", engine="auto").resolved_engine  # noqa: B018


def _parsed(data: bytes):
    import onnx

    return onnx.load_from_string(data)


def _metadata(data: bytes):
    return _parsed(data).metadata_props


def _weaken(model) -> None:
    """Another network: the last bias prefers the other class."""
    import numpy as np
    from onnx import numpy_helper

    last = [t for t in model.graph.initializer if len(t.dims) == 1 and t.dims[0] == 2][-1]
    last.CopyFrom(numpy_helper.from_array(np.float32([9.0, -9.0]), last.name))


def _stored_weights(tiny):
    from optimized_files import ANYTHING, pictures

    from unet_batch.workbench.quantize import QuantizeSpec, quantize

    return _parsed(quantize(tiny.data, resolved(tiny), pictures(3), QuantizeSpec(tolerance=ANYTHING)).data)
