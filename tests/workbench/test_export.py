"""Networks exported as a user exports them: files that give PyTorch's masks, and a sentence for every other one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_batch.contract import Contract, Divide, MeanStd
from unet_batch.errors import JobError, ModelRefused, UnetBatchError
from unet_batch.gate.parity import Tolerance
from unet_batch.model.contract import METADATA_KEY, find_contract, resolve
from unet_batch.session.model_files import read_model
from unet_batch.spec import TilingSpec
from unet_batch.strict import parse_yaml, validate
from unet_batch.workbench.export.arguments import parse_args, parse_input
from unet_batch.workbench.export.check import random_images, verify
from unet_batch.workbench.export.export import PROVENANCE_KEY, ExportReport, ExportSpec, export, report_path
from unet_batch.workbench.export.graph import capture
from unet_batch.workbench.export.network import build

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.oracle

CLASSES = ("background", "cell", "edge")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "net.onnx"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The plainest network, exported with the fewest words; its file is not changed."""
    return exported("small", tmp_path_factory.mktemp("small") / "net.onnx")


def spec(factory: str, out: Path, **fields: Any) -> ExportSpec:
    """A network of `export_networks`, or of another module."""
    where = factory if ":" in factory else f"export_networks:{factory}"
    return ExportSpec(
        **{
            "factory": where,
            "out": out,
            "input_chw": (1, 32, 32),
            "classes": CLASSES,
            "normalize": Divide(),
            "color": {1: "gray", 3: "rgb"}.get(fields.get("input_chw", (1,))[0]),
            **fields,
        }
    )


def exported(factory: str, out: Path, **fields: Any) -> ExportReport:
    torch.manual_seed(0)
    return export(spec(factory, out, **fields))


def refused(factory: str, out: Path, kind: type[UnetBatchError] = ModelRefused, **fields: Any) -> str:
    """The message, and nothing is written."""
    with pytest.raises(kind) as caught:
        exported(factory, out, **fields)
    assert not out.exists()
    assert not report_path(out).exists()
    return str(caught.value)


def in_pytorch(factory: str, images: np.ndarray) -> np.ndarray:
    """What the network gives that `exported` made."""
    torch.manual_seed(0)
    module, _, name = (factory if ":" in factory else f"export_networks:{factory}").partition(":")
    network = getattr(__import__(module), name)().eval()
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def in_onnxruntime(path: Path, images: np.ndarray) -> np.ndarray:
    """Plain ONNX Runtime, from bytes."""
    return ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


# What is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "factory",
    [
        *("small", "attends"),
        *(
            pytest.param(name, marks=pytest.mark.more_models)
            for name in ("interpolates", "squeezes", "normalises_first", "normalises_after")
        ),
    ],
)
def test_plain_onnx_runtime_gives_pytorch_s_logits_at_any_batch_and_size(out: Path, factory: str) -> None:
    """Group norm, transposed convolution, interpolation, attention, squeeze: three images of another size.

    ONNX's own checker has nothing against the file either, with shape inference.
    """
    exported(factory, out, any_size=True)
    onnx.checker.check_model(str(out), full_check=True)
    images = random_images(3, 1, (24, 40), seed=3)
    np.testing.assert_allclose(in_onnxruntime(out, images), in_pytorch(factory, images), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["unet", *(pytest.param(name, marks=pytest.mark.more_models) for name in ("unet_plus_plus", "attention_unet"))],
)
def test_our_own_architectures_export_with_every_axis_open(out: Path, name: str) -> None:
    """Their multiple is 2^depth, and no batch normalisation is left."""
    report = exported(f"unet_batch.architectures:{name}", out, args={"base": 4, "depth": 2}, any_size=True)
    assert report.contract.input.multiple == 4
    assert (report.input_shape, report.output_shape) == (
        ("batch", 1, "height", "width"),
        ("batch", 3, "height", "width"),
    )
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(out).graph.node}


def test_a_job_opens_the_file_without_a_contract_beside_it(out: Path) -> None:
    """The contract in the metadata says all that the arguments said."""
    exported(
        "small", out, classes=("nothing", "cell", "edge"), background=None, normalize=MeanStd(mean=(0.5,), std=(0.1,))
    )
    file = read_model(out.read_bytes(), "net.onnx", None)
    contract = find_contract(file, None, "net.yaml")
    assert (contract.input.color, contract.input.channels, contract.input.multiple) == ("gray", 1, 2)
    assert contract.input.normalize == MeanStd(mean=(0.5,), std=(0.1,))
    assert (contract.output.classes, contract.output.background) == (("nothing", "cell", "edge"), None)
    model = resolve(contract, file, TilingSpec())
    assert (model.tile_hw, model.batch, model.input_name, model.output_name) == ((32, 32), None, "image", "logits")


def test_the_file_says_where_it_comes_from(out: Path, tmp_path: Path) -> None:
    """Versions, factory, arguments, digest of the weights, and what the verification found."""
    torch.manual_seed(1)
    torch.save(build("export_networks:sized", {"base": 8}).state_dict(), tmp_path / "w.pt")
    report = exported("sized", out, args={"base": 8}, weights=tmp_path / "w.pt", opset=18)
    said = json.loads(read_model(out.read_bytes(), "m", None).metadata[PROVENANCE_KEY])
    assert (said["factory"], said["args"], said["opset"]) == ("export_networks:sized", {"base": 8}, 18)
    assert said["torch"] == torch.__version__
    assert len(said["weights_sha256"]) == 64
    assert said["parity"]["flipped"] == 0
    assert said == report.provenance
    assert {o.domain: o.version for o in onnx.load(out).opset_import} == {"": 18}


def test_the_weights_of_the_file_are_exported(out: Path, tmp_path: Path) -> None:
    """Not those that the factory made."""
    torch.manual_seed(5)
    trained = build("export_networks:small", {})
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "w.pt")
    exported("small", out, weights=tmp_path / "w.pt")
    images = random_images(2, 1, (32, 32), seed=3)
    with torch.no_grad():
        wanted = trained(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(in_onnxruntime(out, images), wanted, rtol=1e-3, atol=1e-5)


def test_the_report_lies_beside_the_file_and_has_every_trial(out: Path) -> None:
    """Batches of 1, 2 and 5, two more sizes, and the person's own images in batches of 4."""
    own = random_images(6, 1, (32, 32), seed=9)
    report = exported("small", out, any_size=True, images_nchw=own)
    tree = json.loads(report_path(out).read_text())
    assert tree == json.loads(json.dumps(report.to_json()))
    assert report_path(out).name == "net.export.json"
    assert [(t.images, t.batch, t.size) for t in report.trials] == [
        ("random", 1, (32, 32)),
        ("random", 2, (32, 32)),
        ("random", 5, (32, 32)),
        ("random", 2, (34, 36)),
        ("random", 2, (16, 16)),
        ("given", 4, (32, 32)),
        ("given", 2, (32, 32)),
    ]
    assert report.parity.images == 18
    assert report.parity.max_abs_error < 1e-5


def test_the_file_holds_no_path_of_the_machine_it_was_made_on(small: ExportReport) -> None:
    """The exporter notes stack traces; the module of each node is all that stays."""
    assert str(Path(__file__).parent).encode() not in small.path.read_bytes()
    model = onnx.load(small.path)
    assert {entry.key for node in model.graph.node for entry in node.metadata_props} == {"pkg.torch.onnx.name_scopes"}
    assert not model.graph.value_info


def test_exporting_twice_gives_the_same_bytes(small: ExportReport, tmp_path: Path) -> None:
    """So that a digest means something."""
    assert exported("small", tmp_path / "other.onnx").sha256 == small.sha256


# Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "size", "multiple"),
    [("divides_by_three", 33, 3), ("pads_by_itself", 31, 1)],
)
def test_the_multiple_that_sides_need_is_found(out: Path, factory: str, size: int, multiple: int) -> None:
    """By trying sizes in PyTorch."""
    assert exported(factory, out, input_chw=(1, size, size)).contract.input.multiple == multiple


def test_a_network_that_pads_by_itself_takes_any_size_in_the_file_too(out: Path) -> None:
    """An odd size, and another one than it was exported with."""
    assert exported("pads_by_itself", out, any_size=True).contract.input.multiple == 1
    images = random_images(1, 1, (21, 35), seed=3)
    wanted = in_pytorch("pads_by_itself", images)
    np.testing.assert_allclose(in_onnxruntime(out, images), wanted, rtol=1e-3, atol=1e-5)


def test_code_that_branches_on_sizes_narrows_the_sizes_of_the_file(out: Path) -> None:
    """PyTorch takes any, the file only those of the branch that was captured; it is said, and the contract is right."""
    report = exported("branches_on_sizes", out, any_size=True)
    assert report.contract.input.multiple == 2
    assert "sides must be multiples of 2 in the file, of 1 in PyTorch: its code branches on sizes" in report.notes


def test_code_that_branches_on_sizes_is_refused_where_no_other_size_is_right(out: Path) -> None:
    """Exported at odd sides, the file would pad even ones too."""
    message = refused("branches_on_sizes", out, any_size=True, input_chw=(1, 33, 33))
    assert "would be right at 33x33 only" in message


def test_a_file_that_is_wrong_at_every_size_is_not_blamed_on_sizes(out: Path) -> None:
    """The module that is wrong is named all the same."""
    assert "first in module middle" in refused("otherwise_while_exporting", out, any_size=True)


def test_a_size_that_does_not_divide_says_by_what_it_has_to(out: Path) -> None:
    """The line of the user's code that fails, and the multiple."""
    message = refused("small", out, input_chw=(1, 31, 32))
    assert message.startswith("the network fails on an image of 31x32 at export_networks.py:")
    assert message.endswith("its sides must be multiples of 2")


def test_a_network_of_one_size_exports_with_that_size_only(out: Path) -> None:
    """A positional parameter: fine while sides are fixed, refused where they are to be open."""
    assert "the network runs at 32x32 only" in exported("adds_position", out).notes
    out.unlink()
    report_path(out).unlink()
    message = refused("adds_position", out, any_size=True)
    assert message == "the network runs at 32x32 only: leave height and width fixed"


def test_a_rectangle_is_exported_with_fixed_sides(out: Path) -> None:
    """The batch alone is open."""
    report = exported("small", out, input_chw=(1, 32, 48))
    assert report.input_shape == ("batch", 1, 32, 48)
    assert [t.size for t in report.trials] == [(32, 48)] * 3


def test_a_mask_of_half_the_size_is_exported_as_it_is(out: Path) -> None:
    """The way back to the picture's size is the job's; sides must be even."""
    report = exported("halves", out)
    assert (report.output_shape, report.contract.input.multiple) == (("batch", 3, 16, 16), 2)


def test_a_mask_that_does_not_cover_its_image_has_a_margin(out: Path) -> None:
    """Unpadded convolutions: the contract says how many pixels have no output, and borders are mirrored."""
    report = exported("shrinks", out, any_size=True)
    assert (report.contract.output.margin, report.contract.input.padding) == (2, "reflect")
    assert "the mask has a margin of 2: it does not cover that many pixels on each side of a tile" in report.notes


def test_a_mask_that_is_cut_off_unevenly_is_refused(out: Path) -> None:
    """Its place in the image is unknown."""
    message = refused("shrinks", out, args={"kernel": (3, 5)})
    assert "a mask of 28x24 for an image of 32x32, which does not cover it" in message


@pytest.mark.slow
def test_the_published_unet_is_exported_with_its_sides(out: Path) -> None:
    """The U-Net of 2015, small: 8 · n + 4 with depth 3."""
    factory, args = "unet_batch.architectures:original_unet", {"base": 2, "depth": 3, "classes": 3}
    contract = exported(factory, out, args=args, input_chw=(1, 100, 100), activation="logits").contract
    assert contract is not None
    assert (contract.input.multiple, contract.input.remainder, contract.output.margin) == (8, 4, 44)


@pytest.mark.slow
def test_a_side_with_which_a_level_loses_a_row_is_refused(out: Path) -> None:
    """102 becomes 98, 49, 45: its mask lacks more rows below than above."""
    factory, args = "unet_batch.architectures:original_unet", {"base": 2, "depth": 3, "classes": 3}
    message = refused(factory, out, args=args, input_chw=(1, 102, 102), activation="logits")
    assert message.startswith("at 102x102 MaxPool ")
    assert message.endswith("loses a row or column of 45x45, so the place of the mask is unknown: export another size")


@pytest.mark.slow
def test_a_classifier_is_exported_for_whole_images(out: Path) -> None:
    """Its contract says class_scores, and images are stretched unless another fit is chosen."""
    report = exported("classifier", out, activation="logits")
    assert report.output_shape == ("batch", 3)
    assert (report.contract.output.label_from, report.contract.input.fit) == ("class_scores", "stretch")
    assert "the network is a classifier: it returns one score per class and image, and no mask" in report.notes


def test_a_classifier_of_open_size_needs_a_fit(out: Path) -> None:
    """Nothing says to which size images are stretched."""
    message = refused("classifier", out, JobError, any_size=True)
    assert "fit stretch needs the network's size, 32x32: leave height and width fixed" in message


def test_adaptive_pooling_is_refused_where_it_would_be_wrong_at_other_sizes(out: Path) -> None:
    """The exporter bakes the exported size in. The module and the line are named."""
    message = refused("pools_to", out, args={"size": 4}, any_size=True)
    assert "adaptive pooling to 4x4 in module middle.pool (AdaptiveAvgPool2d), export_networks.py:" in message
    assert "leave height and width fixed" in message


def test_adaptive_pooling_that_does_not_divide_is_refused(out: Path) -> None:
    """It becomes one node per window."""
    message = refused("pools_to", out, args={"size": 6})
    assert "adaptive pooling from 16x16 to 6x6 in module middle.pool" in message
    assert "thousands of nodes" in message


def test_adaptive_pooling_that_divides_a_fixed_size_is_fine(out: Path) -> None:
    """A plain average pooling, verified like everything else."""
    exported("pools_to", out, args={"size": 4})
    assert "AveragePool" in {node.op_type for node in onnx.load(out).graph.node}


# Outputs ---------------------------------------------------------------------------------------------------------


def test_one_of_several_outputs_is_chosen_by_name(out: Path) -> None:
    """The file has that one alone."""
    exported("two_outputs", out, output="twice")
    images = random_images(1, 1, (32, 32), seed=3)
    np.testing.assert_allclose(in_onnxruntime(out, images), 2 * in_pytorch("small", images), rtol=1e-3, atol=1e-5)


def test_several_outputs_need_a_choice(out: Path) -> None:
    """Their names are in the message, and a wrong choice is answered with them."""
    assert "returns 2 outputs (mask, twice): choose the mask with --output" in refused("two_outputs", out)
    assert "no output depth; it has: mask, twice" in refused("two_outputs", out, JobError, output="depth")


def test_a_single_output_in_a_list_is_taken(out: Path) -> None:
    """Deep supervision that is switched off."""
    assert exported("one_in_a_list", out).output_shape == ("batch", 3, 32, 32)


def test_finished_labels_are_exported_as_labels(out: Path) -> None:
    """The network ends in an argmax."""
    assert exported("labels", out, activation="labels").output_shape == ("batch", 32, 32)
    images = random_images(2, 1, (32, 32), seed=3)
    np.testing.assert_array_equal(in_onnxruntime(out, images), in_pytorch("labels", images))


def test_a_binary_network_has_one_channel_and_one_class(out: Path) -> None:
    """Its class is decided by the threshold, in the parity too."""
    report = exported("one_class", out, classes=("cell",), threshold=0.3)
    assert report.contract.output.threshold == 0.3
    assert report.parity.classes == ("cell",)


def test_a_wrong_number_of_classes_is_a_sentence(out: Path) -> None:
    """How many channels there are."""
    assert "returns 3 channels (2x3x32x32), but there are 2 class name(s)" in refused("small", out, classes=("a", "b"))


def test_a_background_that_a_binary_network_does_not_return_is_named_in_vain(out: Path) -> None:
    """The sentence says which name to keep."""
    said = refused("one_class", out, classes=("background", "cell"))
    assert said.endswith("one channel scores one class against the rest, so name only that class: cell")


def test_logits_that_are_called_probabilities_are_refused(out: Path) -> None:
    """Their range says so."""
    assert "are not probabilities: the activation is logits, not softmax" in refused("small", out, activation="softmax")


def test_probabilities_are_not_called_logits(out: Path) -> None:
    """The graph says what they are; who says otherwise is refused."""
    contract = exported("probabilities", out).contract
    assert contract is not None
    assert contract.output.activation == "softmax"
    assert "ends in Softmax" in refused("probabilities", out.with_name("other.onnx"), activation="logits")


# Networks whose results cannot be trusted ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("drops_out", "the network's result is random: module middle gives another output in every run"),
        (
            "normalises_batches",
            "a mask depends on other images of the batch: module middle computes over the whole",
        ),
        ("never_evaluates", "the network itself stays in training mode after eval()"),
        ("holds_nan", "the network returns NaN or infinity in PyTorch"),
        ("freezes_batch", "the network fixes its batch axis at 2"),
        ("branches_on_pixels", r"the network branches on the values of its pixels (export_networks.py:"),
        ("leaves_torch", "PyTorch cannot capture the network (export_networks.py:"),
        (
            "otherwise_while_exporting",
            "the program that PyTorch captured differs from the network, first in module middle",
        ),
    ],
)
def test_a_network_that_cannot_be_exported_is_refused_with_its_reason(out: Path, factory: str, sentence: str) -> None:
    """What is wrong, and in which module or line."""
    assert sentence in refused(factory, out)


@pytest.mark.parametrize(
    ("factory", "function", "advice"),
    [
        ("kth_value", "kthvalue", "ONNX has TopK since opset 1, but PyTorch's exporter does not use it here; use topk"),
        ("singular_values", "linalg_svd", "remove it from the network, or replace it by other operators"),
        ("inverts", "linalg_inv", "no opset has an operator for it; compute the inverse beforehand"),
        ("cumulates", "cumprod", "ONNX has CumProd since opset 26, but"),
    ],
)
def test_an_operator_that_cannot_be_written_is_named(out: Path, factory: str, function: str, advice: str) -> None:
    """As the user called it (cumprod becomes prims.prod), with its module, line, opset, and what to use instead."""
    message = refused(factory, out)
    assert message.startswith(f"{function} in module middle (Call), export_networks.py:")
    assert f"cannot be written as ONNX: {advice}" in message


def test_batch_normalisation_before_a_convolution_stays_and_is_noted(out: Path) -> None:
    """Nothing can absorb it."""
    assert "1 batch normalisation(s) follow no convolution" in " ".join(exported("normalises_first", out).notes)


# Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "fields", "sentence"),
    [
        ("nocolon:", {}, "not of the form MODULE:FACTORY"),
        ("no_such_module:build", {}, "no_such_module cannot be imported"),
        ("export_networks:no_such_factory", {}, "export_networks has no no_such_factory"),
        ("no_network", {}, "returned int, not a torch.nn.Module"),
        ("lazy", {}, "export_networks:lazy() returned a network that cannot be float32 on the CPU"),
        ("fails", {}, "export_networks:fails() failed: ValueError: no such backbone"),
        ("sized", {"args": {"depth": 3}}, "export_networks:sized(depth=3) failed: TypeError"),
        ("sized", {"args": {"depth": 3}}, "Its arguments are (base: int = 4)"),
        ("export_networks:Needs", {}, "Its arguments are (channels: int, base: int = 4)"),
        ("export_networks:Needs", {}, "as --arg NAME=VALUE"),
        ("unet_batch.architectures:unet", {"args": {"up": "nearest"}}, "up is 'nearest'"),
        ("small", {"opset": 11}, "opset 11 is not supported: write one of 16 to 25"),
        ("small", {"input_chw": (1, 0, 32)}, "the input 1x0x32 has an empty axis"),
        ("small", {"classes": ("a", "a", "b")}, "classes needs at least one name, and each name once"),
        ("small", {"weights": Path("no.pt")}, "weights no.pt cannot be read"),
        ("small", {"images_nchw": np.zeros((1, 1, 16, 16))}, r"shape (1, 1, 16, 16), not (N, 1, 32, 32)"),
    ],
)
def test_wrong_arguments_are_a_sentence(out: Path, factory: str, fields: dict[str, Any], sentence: str) -> None:
    """Before anything is written."""
    assert sentence in refused(factory, out, JobError, **fields)


def test_a_file_is_named_onnx(tmp_path: Path) -> None:
    """The report's name follows from it."""
    assert "does not end in .onnx" in refused("small", tmp_path / "net.pb", JobError)


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    """A file where a folder is needed; not even the factory is called."""
    (tmp_path / "file").write_text("")
    message = refused("fails", tmp_path / "file" / "deep" / "net.onnx", JobError)
    assert "is not a writable folder" in message


def test_a_module_of_the_current_folder_is_found(tmp_path: Path) -> None:
    """As a person calls it from their own project, in a process of its own; nothing of PyTorch's is printed."""
    (tmp_path / "mine.py").write_text("import torch\ndef net(k): return torch.nn.Conv2d(1, k, 3, padding=1)\n")
    code = (
        "from pathlib import Path; from unet_batch.workbench.export.export import ExportSpec, export; "
        "export(ExportSpec('mine:net', Path('deep/net.onnx'), (1, 16, 16), ('a', 'b'), args={'k': 2}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "deep" / "net.onnx").exists()
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"net.onnx", "net.export.json"}


def test_without_pytorch_the_message_says_what_to_install() -> None:
    """The module itself can be imported, because the command line does so for its help."""
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
        "from unet_batch.workbench.export.export import ExportSpec, export\n"
        "export(ExportSpec('m:f', Path('n.onnx'), (1, 8, 8), ('a', 'b')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "JobError: exporting needs torch: run `pip install -e '.[export]'` in a checkout" in done.stderr


def test_factory_arguments_are_python_literals() -> None:
    """Tuples, numbers, truth; anything else is a text."""
    parsed = parse_args(["depth=4", "strides=(2, 2)", "norm=batch", "bias=False", "up=None", "path=a=b"])
    assert parsed == {"depth": 4, "strides": (2, 2), "norm": "batch", "bias": False, "up": None, "path": "a=b"}


@pytest.mark.parametrize("text", ["depth", "=4", "a b=4", "bias=false", "up=null"])
def test_a_factory_argument_that_would_be_misread_is_refused(text: str) -> None:
    """`false` would be a text, and so true."""
    with pytest.raises(JobError, match="factory argument"):
        parse_args([text])


def test_an_input_is_channels_height_and_width() -> None:
    """And nothing else."""
    assert parse_input("3x256x512") == (3, 256, 512)
    with pytest.raises(JobError, match="CxHxW"):
        parse_input("256x256")


# Verification ----------------------------------------------------------------------------------------------------


def test_a_corrupted_file_is_refused_with_the_node_that_is_wrong(small: ExportReport) -> None:
    """One weight of one convolution changed in the file itself."""
    model = onnx.load(small.path)
    node = [n for n in model.graph.node if n.op_type == "Conv"][1]
    weight = next(t for t in model.graph.initializer if t.name == node.input[1])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, 1, 1] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    torch.manual_seed(0)
    network = build("export_networks:small", {})
    graph = capture(
        network,
        random_images(2, 1, (32, 32), seed=0),
        any_size=False,
        same_size=True,
        opset=20,
        output_name="logits",
    )
    assert verify(small.path.read_bytes(), graph, network, size=(32, 32), any_size=False)
    with pytest.raises(ModelRefused, match=f"first node that diverges is Conv {node.name}, from module low"):
        verify(model.SerializeToString(), graph, network, size=(32, 32), any_size=False)


def test_a_tolerance_that_nothing_meets_refuses_and_says_how_far_it_was(out: Path) -> None:
    """Bit equality is not promised: each node is right, and still the last bits differ."""
    strict = Tolerance(max_flipped=0.0, min_dice=1.0, max_abs_error=0.0)
    message = refused("attends", out, tolerance=strict)
    assert "the largest error of a value is" in message
    assert "each single node is right" in message


def test_the_contract_is_yaml_in_the_metadata(small: ExportReport) -> None:
    """Readable by a person with any ONNX viewer."""
    assert "normalize:\n    kind: unit" in read_model(small.path.read_bytes(), "m", None).metadata[METADATA_KEY]


# Other people's networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "args", "multiple"),
    [
        ("UNet", ["channels=(4, 8, 16)", "strides=(2, 2)", "num_res_units=1"], 4),
        pytest.param("BasicUNet", ["features=(4, 4, 8, 8, 16, 4)"], 16, marks=pytest.mark.more_models),
        pytest.param("AttentionUnet", ["channels=(4, 8, 16)", "strides=(2, 2)"], 4, marks=pytest.mark.more_models),
    ],
)
def test_monai_s_networks_export_with_every_axis_open(out: Path, factory: str, args: list[str], multiple: int) -> None:
    """BasicUNet pads in PyTorch to any size, by a branch that the file does not have."""
    pytest.importorskip("monai")
    common = ["spatial_dims=2", "in_channels=1", "out_channels=3"]
    report = exported(f"monai.networks.nets:{factory}", out, args=parse_args([*common, *args]), any_size=True)
    assert report.contract.input.multiple == multiple
    assert report.parity.flipped == 0
    assert report.parity.max_abs_error < 1e-4


# What only the trainer knows ------------------------------------------------------------------------------------------


def test_without_a_normalisation_the_file_has_no_contract(out):
    """Dividing by 255 was invented before: a network trained on ImageNet's statistics then found a tenth of it."""
    report = exported("small", out, normalize=None)
    assert report.contract is None
    assert any("--normalize was not given" in note for note in report.notes)
    assert METADATA_KEY not in read_model(out.read_bytes(), "m", None).metadata
    assert not out.with_suffix(".yaml").exists()
    assert json.loads(out.with_suffix(".export.json").read_text())["contract"] is None


def test_the_contract_lies_beside_the_file_too(out):
    """Where people see it; both say the same."""
    report = exported("small", out, normalize=MeanStd(mean=(0.5,), std=(0.1,)))
    beside = out.with_suffix(".yaml").read_text()
    assert beside == read_model(out.read_bytes(), "m", None).metadata[METADATA_KEY]
    assert validate(Contract, parse_yaml(beside.encode(), "beside"), "beside") == report.contract


def test_a_contract_that_was_corrected_is_not_replaced(out):
    """An existing file is not overwritten, and nothing is written."""
    out.with_suffix(".yaml").write_text("# mine\n")
    with pytest.raises(JobError, match="differs from the contract of this export"):
        exported("small", out)
    assert not out.exists()
