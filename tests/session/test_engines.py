"""The table of engines and providers: choices that go together, files of the right precision, what enters a mark."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from models import TinyModel, threshold_model, unet_model
from onnx import TensorProto, helper, numpy_helper

from unet_batch.errors import ContractError, JobError
from unet_batch.model.contract import resolve
from unet_batch.model.model import Model
from unet_batch.session.engines import (
    TABLE,
    check_choice,
    check_file,
    check_model,
    file_precision,
    find,
    fingerprint_marks,
    on_cpu,
    on_gpu,
)
from unet_batch.session.model_files import read_model
from unet_batch.spec import Engine, ModelSpec, Precision, ProviderName, SessionSpec, TilingSpec, load_job
from unet_batch.strict import validate


def held(tiny: TinyModel) -> Model:
    return resolve(tiny.contract, read_model(tiny.data, "tiny.onnx", None), TilingSpec())


# The table --------------------------------------------------------------------------------------------------------


def test_the_table_and_the_job_file_list_the_same_names() -> None:
    """A row without its Literal cannot be asked for, a Literal without a row cannot run."""
    assert {row.engine for row in TABLE} == set(get_args(Engine))
    assert {row.name for row in TABLE} == set(get_args(ProviderName))
    assert {precision for row in TABLE for precision in row.precisions} == set(get_args(Precision))


def test_labels_tell_rows_apart() -> None:
    """A ladder that was climbed on one engine must not be remembered for another."""
    labels = [row.label for row in TABLE]
    assert sorted(labels) == ["cpu", "cuda", "openvino", "tensorrt"]


def test_a_provider_is_found_by_both_of_its_names() -> None:
    """The job file's, and ONNX Runtime's."""
    assert find("onnxruntime", "cuda") is find("onnxruntime", "CUDAExecutionProvider")


def test_a_name_without_a_row_becomes_one() -> None:
    """It runs the file's precision, takes any option, and is reported neither as a CPU nor as a GPU."""
    row = find("onnxruntime", "CoreMLExecutionProvider")
    assert (row.label, row.options, row.precisions) == ("CoreMLExecutionProvider", None, ("fp32", "fp16", "int8"))
    assert not on_cpu(row.label)
    assert not on_gpu(row.label)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("cpu", False), ("openvino", False), ("cuda", True), ("tensorrt", True), ("TensorrtExecutionProvider", True)],
)
def test_who_needs_a_gpu(name: str, *, gpu: bool) -> None:
    """By the name in a job file, and by the name on a session."""
    assert (on_gpu(name), on_cpu(name)) == (gpu, not gpu)


# Choices ----------------------------------------------------------------------------------------------------------


def choice(session: dict[str, object], **model: str) -> None:
    check_choice(validate(ModelSpec, {"path": "m.onnx", **model}, "job"), validate(SessionSpec, session, "job"))


@pytest.mark.parametrize(
    ("session", "model"),
    [
        ({}, {}),
        ({"providers": ["tensorrt", "cuda", "cpu"]}, {"precision": "fp16"}),
        ({"providers": ["cuda"]}, {"precision": "tf32"}),
        ({}, {"engine": "openvino", "precision": "bf16"}),
        ({"providers": ["CoreMLExecutionProvider"], "provider_options": {"CoreMLExecutionProvider": {"a": "b"}}}, {}),
        ({"providers": ["cuda"], "provider_options": {"cuda": {"prefer_nhwc": False}}}, {}),
        ({"custom_ops": ["libfoo.so"]}, {}),
    ],
)
def test_what_goes_together_is_accepted(session: dict[str, object], model: dict[str, str]) -> None:
    """Before anything is opened."""
    choice(session, **model)


@pytest.mark.parametrize(
    ("session", "model", "sentence"),
    [
        (
            {"providers": ["cuda", "cpu"]},
            {"precision": "tf32"},
            "onnxruntime on cpu does not support model.precision tf32",
        ),
        ({}, {"precision": "bf16"}, "bf16 runs with openvino on cpu"),
        (
            {"providers": ["tensorrt"]},
            {"precision": "int8"},
            "onnxruntime on tensorrt does not support model.precision int8",
        ),
        ({"providers": ["cuda"]}, {"engine": "openvino"}, "model.engine openvino does not run on cuda"),
        ({"custom_ops": ["libfoo.so"]}, {"engine": "openvino"}, "custom_ops work only in ONNX Runtime"),
        (
            {"providers": ["cuda"], "provider_options": {"cuda": {"prefer_nwhc": True}}},
            {},
            "provider_options.cuda.prefer_nwhc cannot be set by a job; did you mean prefer_nhwc?",
        ),
        (
            {"providers": ["tensorrt"], "provider_options": {"tensorrt": {"trt_fp16_enable": True}}},
            {},
            "trt_fp16_enable cannot be set by a job",
        ),
        (
            {"providers": ["cuda"], "provider_options": {"cuda": {"use_tf32": 1}}},
            {},
            "use_tf32 cannot be set by a job",
        ),
        ({"provider_options": {"cpu": {"threads": 3}}}, {}, "cpu.threads cannot be set by a job; a job may set: none"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    session: dict[str, object], model: dict[str, str], sentence: str
) -> None:
    """It names the key and what to write instead; precision is never changed through an option."""
    with pytest.raises(JobError) as raised:
        choice(session, **model)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("session.providers=[cudda]", "there is no provider cudda; did you mean cuda?"),
        ("session.providers=[tpu]", "there is no provider tpu; write cpu, cuda, tensorrt, or ONNX Runtime's own name"),
        ("session.provider_options={tensorrt: {}}", "provider_options.tensorrt belongs to no provider"),
        ("session.precision=fp32", "unknown key session.precision"),
        ("model.precision=fp64", "model.precision"),
        ("model.engine=tvm", "model.engine"),
        ("model.ensemble={members: []}", "model.ensemble.members"),
        ("model.ensemble={members: [model.onnx]}", "model.onnx is in the ensemble twice"),
        ("model.ensemble={members: [b.onnx], combine: median}", "model.ensemble.combine"),
        (f"model.ensemble={{members: [b.onnx, c.onnx], sha256: [{'a' * 64}]}}", "1 digests for 2 members"),
    ],
)
def test_a_job_file_with_a_wrong_engine_or_session_is_refused(tmp_path, line: str, sentence: str) -> None:
    """Through the same validation as the file."""
    path = tmp_path / "job.yaml"
    path.write_text("name: a\nmodel: {path: model.onnx}\ninput: {uri: in}\noutput: {uri: out}\n")
    with pytest.raises(JobError) as raised:
        load_job(path, [line])
    assert sentence in str(raised.value)


def test_tensorrt_needs_one_size_of_tile_and_a_name_it_can_read() -> None:
    """Its profiles are text: a name with a colon would be read as another input of another shape."""
    row = find("onnxruntime", "tensorrt")
    check_model(row, held(threshold_model(size=32)))
    check_model(row, held(threshold_model("nhwc", size=32, batch=1)))
    with pytest.raises(JobError, match=r"write tiling\.size"):
        check_model(row, held(threshold_model()))
    with pytest.raises(JobError, match="do not allow the input name input:0"):
        check_model(row, held(threshold_model("nhwc", size=32)))


def test_most_sessions_leave_no_mark() -> None:
    """Providers and the options we know change last bits only, so old fingerprints stay what they were."""
    assert fingerprint_marks(SessionSpec()) == {}
    known = {"cuda": {"prefer_nhwc": False}}
    assert fingerprint_marks(SessionSpec(providers=("cuda",), provider_options=known)) == {}


def test_what_nobody_here_can_judge_enters_the_fingerprint(tmp_path: Path) -> None:
    """Options of a provider without a row, and operators of one's own: name and digest, wherever the library lies."""
    name, library = "CoreMLExecutionProvider", tmp_path / "libfoo.so"
    library.write_bytes(b"first build")
    spec = SessionSpec(providers=(name,), provider_options={name: {"a": "b"}}, custom_ops=(str(library),))
    marks = fingerprint_marks(spec)
    digest = hashlib.sha256(b"first build").hexdigest()
    assert marks == {"provider_options": {name: {"a": "b"}}, "custom_ops": [["libfoo.so", digest]]}
    library.write_bytes(b"second build")
    assert fingerprint_marks(spec) != marks
    library.unlink()
    with pytest.raises(JobError, match=r"custom_ops: .*libfoo\.so cannot be read"):
        fingerprint_marks(spec)


# Files ------------------------------------------------------------------------------------------------------------


def changed(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString()


def in_half(data: bytes) -> bytes:
    """Every weight as float16; good enough to look at, not to run."""
    model = onnx.load_from_string(data)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return changed(model)


def quantized(data: bytes, operator: str = "QuantizeLinear") -> bytes:
    model = onnx.load_from_string(data)
    model.graph.node.append(helper.make_node(operator, ["mask", "scale"], ["eight_bits"]))
    return changed(model)


def quantized_inside(data: bytes) -> bytes:
    """The quantising node hides in a branch."""
    model = onnx.load_from_string(data)
    body = helper.make_graph([helper.make_node("DequantizeLinear", ["a", "b"], ["c"])], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["flag"], ["c"], then_branch=body, else_branch=body))
    return changed(model)


def quantized_in_a_function(data: bytes) -> bytes:
    model = onnx.load_from_string(data)
    node = helper.make_node("QLinearConv", ["a"], ["b"])
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 17)]))
    return changed(model)


def cast_weights(data: bytes) -> bytes:
    """Weights that are kept as fp32 and used as fp16."""
    model = onnx.load_from_string(data)
    model.graph.node.append(helper.make_node("Cast", ["weight"], ["small"], to=TensorProto.FLOAT16))
    return changed(model)


def cast_pixels(data: bytes) -> bytes:
    """fp32 arithmetic behind an input that comes as float16."""
    model = onnx.load_from_string(data)
    model.graph.node.append(helper.make_node("Cast", ["image"], ["small"], to=TensorProto.FLOAT16))
    return changed(model)


def constant_in_half(data: bytes) -> bytes:
    """Weights may lie in a Constant node."""
    model = onnx.load_from_string(data)
    value = numpy_helper.from_array(np.ones(4, np.float16))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))
    return changed(model)


THRESHOLD = threshold_model().data


@pytest.mark.parametrize(
    ("data", "precision"),
    [
        pytest.param(THRESHOLD, "fp32", id="as exported"),
        pytest.param(unet_model(32, base=2, levels=1).data, "fp32", id="U-Net"),
        pytest.param(threshold_model(dtype="uint8", activation="labels").data, "fp32", id="uint8 in and out"),
        pytest.param(in_half(THRESHOLD), "fp16", id="half weights"),
        pytest.param(constant_in_half(THRESHOLD), "fp16", id="half constant"),
        pytest.param(cast_weights(THRESHOLD), "fp16", id="weights cast to half"),
        pytest.param(cast_pixels(THRESHOLD), "fp32", id="pixels cast to half"),
        pytest.param(quantized(THRESHOLD), "int8", id="QDQ"),
        pytest.param(quantized(THRESHOLD, "ConvInteger"), "int8", id="dynamic"),
        pytest.param(quantized(in_half(THRESHOLD)), "int8", id="QDQ around half"),
        pytest.param(quantized_inside(THRESHOLD), "int8", id="QDQ in a branch"),
        pytest.param(quantized_in_a_function(THRESHOLD), "int8", id="QDQ in a function"),
    ],
)
def test_a_file_says_its_precision(data: bytes, precision: str) -> None:
    """By its nodes and its weights, wherever they are kept."""
    assert file_precision(data) == precision


@pytest.mark.parametrize(
    ("data", "precision"),
    [
        (THRESHOLD, "fp32"),
        (THRESHOLD, "tf32"),
        (THRESHOLD, "bf16"),
        (in_half(THRESHOLD), "fp16"),
        (quantized(THRESHOLD), "int8"),
    ],
)
def test_a_file_of_the_right_precision_is_accepted(data: bytes, precision: Precision) -> None:
    """tf32 and bf16 are arithmetic on fp32 weights."""
    check_file(data, precision, "m.onnx")


@pytest.mark.parametrize(
    ("data", "precision", "sentence"),
    [
        (
            in_half(THRESHOLD),
            "fp32",
            "m.onnx is a model in fp16, but model.precision says fp32: write model.precision: fp16",
        ),
        (quantized(THRESHOLD), "fp32", "m.onnx is a model in int8, but model.precision says fp32"),
        (quantized(THRESHOLD), "bf16", "write model.precision: int8, or use a file in fp32"),
        (THRESHOLD, "fp16", "m.onnx is a model in fp32, but model.precision says fp16"),
        (THRESHOLD, "int8", "or use a file in int8"),
    ],
)
def test_a_file_of_another_precision_is_refused(data: bytes, precision: Precision, sentence: str) -> None:
    """Nothing is silently quantised, and no fp32 result is called int8."""
    with pytest.raises(ContractError) as raised:
        check_file(data, precision, "m.onnx")
    assert sentence in str(raised.value)


def outside(tensor: TensorProto) -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


def external(how: str) -> bytes:
    """The threshold model with a tensor that lies in another file."""
    model = onnx.load_from_string(THRESHOLD)
    one = numpy_helper.from_array(np.ones(4, np.float32), "one")
    if how == "initializer":
        outside(model.graph.initializer[0])
    elif how == "constant":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside(one)))
    elif how == "sparse initializer":
        indices = numpy_helper.from_array(np.arange(4), "indices")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(one, indices, [8]))
        outside(model.graph.sparse_initializer[0].values)
    elif how == "sparse constant":
        indices = numpy_helper.from_array(np.arange(4), "indices")
        model.graph.node.append(
            helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(one, indices, [8]))
        )
        outside(model.graph.node[-1].attribute[0].sparse_tensor.indices)
    else:
        body = helper.make_graph([helper.make_node("Identity", ["one"], ["c"])], "body", [], [], [outside(one)])
        model.graph.node.append(helper.make_node("If", ["flag"], ["c"], then_branch=body, else_branch=body))
    return changed(model)


@pytest.mark.parametrize("how", ["initializer", "constant", "sparse initializer", "sparse constant", "branch"])
def test_weights_in_another_file_are_refused(how: str) -> None:
    """Five places where a file may hide one; an engine may read what it names."""
    with pytest.raises(ContractError, match="in another file: export it as one file"):
        file_precision(external(how), "m.onnx")


@pytest.mark.parametrize("data", [b"", b"junk", THRESHOLD[:50]], ids=["empty", "junk", "cut"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    """Protobuf takes empty bytes for an empty model; we do not."""
    with pytest.raises(ContractError, match=r"m\.onnx cannot be opened as an ONNX model"):
        file_precision(data, "m.onnx")
