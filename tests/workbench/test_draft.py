"""Drafts of contracts: what is known is read, what is open is tried and marked as a guess, nothing is overwritten."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from models import TinyModel, threshold_model
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from PIL import Image

from unet_batch.contract import Contract
from unet_batch.errors import UnetBatchError
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.run import Choice, run
from unet_batch.planning.prepare import prepare
from unet_batch.planning.survey import window_of
from unet_batch.spec import load_job
from unet_batch.workbench.draft import explore as exploring
from unet_batch.workbench.draft.explore import Explored, best, explore
from unet_batch.workbench.draft.look import archive_section
from unet_batch.workbench.draft.questions import Option, Question
from unet_batch.workbench.draft.source import ModelRequest, read_model_source
from unet_batch.workbench.draft.write import files_of, reserve, write_job, write_sheet

IMAGENET = {"kind": "mean_std", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder: Path, count: int = 4, *, size=(64, 96), channels: int = 3, dtype=np.uint8, high: int = 255) -> str:
    """A folder of pictures whose upper half is bright, with colours that differ."""
    rng = np.random.default_rng(0)
    (folder / "pics").mkdir(exist_ok=True)
    for number in range(count):
        level = np.full((*size, channels), 0.2) * np.linspace(0.5, 1.5, channels)
        level[: size[0] // 2] += 0.6
        noisy = (level + rng.normal(0, 0.02, level.shape)).clip(0, 1) * high
        image = noisy.astype(dtype)
        Image.fromarray(image[..., 0] if channels == 1 else image).save(folder / "pics" / f"p{number}.png")
    return "pics"


def put(folder: Path, made: TinyModel | bytes, name: str = "m.onnx") -> str:
    (folder / name).write_bytes(made if isinstance(made, bytes) else made.data)
    return name


def drafted(model: str, archive: str, out: str = "job", **said) -> Explored:
    return explore(ModelRequest(model, Path(out), **said), archive)


def written(explored: Explored, out: str = "job", *, force: bool = False, providers: tuple[str, ...] = ("cpu",)):
    files = files_of(explored, Path(out))
    write_sheet(explored, files, force=force)
    return files, write_job(explored, files, output=f"{out}/results", providers=providers, force=force)


def with_first_layer(kind: str, statistics: tuple[list[float], list[float]] | None, constant: float = 0.0) -> bytes:
    """An RGB model whose graph begins with one operator, before the threshold model's convolution."""
    model = onnx.load_model_from_string(threshold_model().data)
    first = next(node for node in model.graph.node if "image" in node.input)
    first.input[0] = "begun"
    if statistics is not None:
        parts = {"scale": [1, 1, 1], "shift": [0, 0, 0], "mean": statistics[0], "variance": statistics[1]}
        for name, values in parts.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.float32), name))
        node = helper.make_node("BatchNormalization", ["image", *parts], ["begun"])
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.array(constant, np.float32), "constant"))
        node = helper.make_node(kind, ["image", "constant"], ["begun"])
    model.graph.node.insert(0, node)
    return model.SerializeToString()


def test_a_contract_in_the_file_is_taken_as_it_is(folder):
    """Nothing is guessed and no question is open."""
    made = threshold_model("nchw", 3, 2, size=32)
    model = onnx.load_model_from_string(made.data)
    entry = model.metadata_props.add()
    entry.key, entry.value = "unet_batch.contract", yaml.safe_dump(made.contract.model_dump(mode="json"))
    found = drafted(put(folder, model.SerializeToString()), pictures(folder))
    assert found.draft.contract() == made.contract
    assert (found.draft.guesses, found.answers) == ({}, ())
    files, job = written(found)
    assert Contract.model_validate(yaml.safe_load(files.contract.read_text())) == made.contract
    assert "guess" not in files.contract.read_text().replace("is a guess", "")
    assert job.model.contract == str(files.contract)


def test_a_contract_beside_the_file_stays_untouched(folder):
    made = threshold_model("nchw", 3, 2, size=32)
    model = put(folder, made)
    (folder / "m.yaml").write_text(made.contract_yaml)
    found = drafted(model, pictures(folder), ".")
    files, job = written(found, ".")
    assert (files.contract_is_new, job.model.contract) == (False, None)
    assert (folder / "m.yaml").read_text() == made.contract_yaml


def test_pictures_that_the_contract_cuts_are_tried_at_their_own_size(folder):
    """A model of nnU-Net sees the box inside a black border, and its mask lies where the box was."""
    made = threshold_model()
    contract = made.contract.model_copy(update={"input": made.contract.input.model_copy(update={"crop": "nonzero"})})
    put(folder, TinyModel(made.data, contract))
    (folder / "m.yaml").write_text(TinyModel(made.data, contract).contract_yaml)
    pictures(folder)
    for path in (folder / "pics").iterdir():
        image = np.array(Image.open(path))
        image[:, :10] = 0
        Image.fromarray(image).save(path)
    explored = drafted("m.onnx", "pics")
    assert [scored.labels_hw.shape for scored in explored.final.scored] == [(64, 96)] * 4
    assert not explored.final.scored[0].labels_hw[:, :10].any()
    assert explored.final.scored[0].labels_hw[:32, 10:].all()


def test_shapes_names_and_activation_are_read_and_the_rest_is_marked_as_guessed(folder):
    """The reason and the alternatives stand beside each guess, and the file is the contract that was used."""
    made = threshold_model("nhwc", 3, 2, size=32, activation="softmax")
    files, _ = written(found := drafted(put(folder, made), pictures(folder)))
    contract = Contract.model_validate(yaml.safe_load(files.contract.read_text()))
    assert (contract.input.layout, contract.input.height, contract.output.activation) == ("nhwc", 32, "softmax")
    assert contract == found.draft.contract()
    lines = {line.split(":")[0].strip(): line for line in files.contract.read_text().splitlines()}
    guessed = {name for name, line in lines.items() if "# guessed: " in line}
    assert guessed == {"color", "fit", "normalize", "classes", "background"}
    assert "or: stretch | letterbox" in lines["fit"]
    assert "or: bgr" in lines["color"]
    assert "zscore" in lines["normalize"]
    assert "read: in the model's file" in lines["layout"]


def test_the_written_job_runs_and_finds_what_is_bright(folder):
    files, job = written(drafted(put(folder, threshold_model(size=32)), pictures(folder)))
    summary = run(prepare(job), window_of("all"), LocalExecutor, choice=Choice("due"), quiet=True)
    assert (summary.ok, summary.published) == (4, 1)
    rows = pq.ParquetFile(folder / "job/results/predictions/all/data.parquet").read().to_pylist()
    assert [row["classes"][0]["area_px"] for row in rows] == [32 * 96] * 4
    assert load_job(files.job) == job


@pytest.mark.parametrize(
    ("statistics", "normalize", "color"),
    [
        (([0.40, 0.50, 0.60], [0.09, 0.09, 0.09]), {"kind": "unit"}, "rgb"),
        (([0.60, 0.50, 0.40], [0.09, 0.09, 0.09]), {"kind": "unit"}, "bgr"),
        (([-0.4, 0.2, 0.9], [1.8, 1.9, 1.8]), IMAGENET, "rgb"),
        (([102, 127, 153], [5900, 5900, 5900]), {"kind": "none"}, "rgb"),
    ],
)
def test_the_statistics_of_a_batch_normalisation_choose_normalisation_and_colours(folder, statistics, normalize, color):
    """They are the mean and variance that the layer's input had in training."""
    found = drafted(put(folder, with_first_layer("BatchNormalization", statistics)), pictures(folder))
    tree = found.draft.tree["input"]
    assert (tree["normalize"], tree["color"]) == (normalize, color)
    assert "statistics" in found.draft.fields["input.normalize"].comment


@pytest.mark.parametrize(
    ("kind", "constant", "normalize"),
    [("Div", 255.0, "none"), ("Mul", 1 / 255, "none"), ("Sub", 123.7, "none"), ("Sub", 0.45, "unit")],
)
def test_a_graph_that_normalises_itself_says_what_it_expects(folder, kind, constant, normalize):
    found = drafted(put(folder, with_first_layer(kind, None, constant)), pictures(folder))
    known = found.draft.fields["input.normalize"]
    assert (known.value["kind"], known.origin) == (normalize, "read")
    assert "input.normalize" not in [answer.question.field for answer in found.answers]


def test_deep_pictures_with_small_values_are_divided_by_what_they_use(folder):
    """12-bit values in 16-bit files: `unit` alone would make them black."""
    archive = pictures(folder, channels=1, dtype=np.uint16, high=4095)
    found = drafted(put(folder, threshold_model(channels=1)), archive)
    assert found.draft.tree["input"]["normalize"] == {"kind": "unit", "max": 4095.0}
    assert found.final.useful == 1


@pytest.mark.parametrize(("two", "activation"), [(True, "softmax"), (False, "sigmoid")])
def test_what_the_graph_does_not_say_of_its_values_is_measured(folder, two, activation):
    """Values from 0 to 1 are probabilities: over the classes where they add up to 1."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Clip", ["mean", "zero", "one"], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Concat", ["q", "p"] if two else ["p", "p"], ["mask"], axis=1),
    ]
    sides = ["height", "width"]
    graph = helper.make_graph(
        nodes,
        "clipped",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, *sides])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 2, *sides])],
        [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("zero", 0), ("one", 1))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = drafted(put(folder, model.SerializeToString()), pictures(folder))
    known = found.draft.fields["output.activation"]
    assert (known.value, known.origin) == (activation, "measured")


def test_a_preprocessor_file_beside_the_model_is_read(folder):
    """Hugging Face's exports keep statistics and names of classes in JSON files beside the model."""
    model = put(folder, threshold_model())
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"]})
    )
    (folder / "config.json").write_text(json.dumps({"id2label": {"1": "road", "0": "rest"}}))
    found = drafted(model, pictures(folder))
    assert found.draft.tree["input"]["normalize"] == IMAGENET
    assert found.draft.fields["output.classes"].value == ["rest", "road"]
    assert found.draft.fields["output.classes"].origin == "read"


@dataclass(frozen=True)
class Masks:
    """What `best` asks of a variant."""

    label: str
    edges: float
    useful: float
    distance: None = None

    @property
    def plausibility(self) -> float:
        return self.edges * self.useful


@pytest.mark.parametrize(
    ("rgb", "bgr", "taken"),
    [((3.2, 0.75), (5.2, 0.75), 0), ((0.0, 0.0), (5.2, 0.75), 1), ((0.0, 0.0), (0.0, 0.0), 0)],
)
def test_masks_on_edges_alone_do_not_turn_the_colours(rgb, bgr, taken):
    """A network that knows sky from cloud has borders on edges in either order; most take red first."""
    options = (Option("rgb", "rgb"), Option("bgr (OpenCV)", "bgr"))
    question = Question("input.color", "In which order?", options)
    assert best(question, [Masks("rgb", *rgb), Masks("bgr (OpenCV)", *bgr)])[0] == taken
    fit = Question("input.fit", "How?", options)
    assert best(fit, [Masks("tile", 3.2, 0.75), Masks("stretch", 5.2, 0.75)])[0] == 1


def test_what_the_user_says_is_no_question(folder):
    said = {"normalize": "imagenet", "color": "bgr", "fit": "stretch", "activation": "logits"}
    said["classes"] = ("background", "cell")
    found = drafted(put(folder, threshold_model(size=32)), pictures(folder), **said)
    assert (found.answers, found.draft.guesses) == ((), {})
    assert found.draft.contract().input.fit == "stretch"


def test_external_data_is_merged_into_one_file(folder):
    made = threshold_model()
    (folder / "parts").mkdir()
    model = onnx.load_model_from_string(made.data)
    external_data_helper.convert_model_to_external_data(model, location="m.data", size_threshold=0)
    onnx.save_model(model, folder / "parts" / "m.onnx")
    found = drafted("parts/m.onnx", pictures(folder))
    assert found.source_model.path == "job/m.onnx"
    assert onnx.load(folder / "job" / "m.onnx", load_external_data=False).graph.initializer[0].data_location == 0
    assert any("merged" in note for note in found.notes)
    _, job = written(found)
    assert prepare(job).model.sha256


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "gone.data"])
def test_external_data_outside_the_folder_is_refused(folder, place):
    """A model is untrusted: it names no file that it does not come with."""
    (folder / "secret").write_bytes(b"x" * 400)
    (folder / "parts").mkdir()
    model = onnx.load_model_from_string(threshold_model().data)
    for tensor in model.graph.initializer:
        external_data_helper.set_external_data(tensor, location=place)
        tensor.ClearField("raw_data")
    (folder / "parts" / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnetBatchError, match=r"external data of .*/parts/m\.onnx cannot be read"):
        drafted("parts/m.onnx", pictures(folder))


def four_bands(folder: Path) -> tuple[str, str]:
    return put(folder, threshold_model(channels=4)), pictures(folder)


def weights(folder: Path) -> tuple[str, str]:
    (folder / "w.pt").write_bytes(b"PK\x03\x04")
    return "w.pt", pictures(folder)


def empty(folder: Path) -> tuple[str, str]:
    (folder / "none").mkdir()
    return put(folder, threshold_model()), "none"


def broken(folder: Path) -> tuple[str, str]:
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_bytes(b"no picture")
    return put(folder, threshold_model()), "bad"


def two_inputs(folder: Path) -> tuple[str, str]:
    model = onnx.load_model_from_string(threshold_model().data)
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Identity", ["more"], ["unused"]))
    return put(folder, model.SerializeToString()), pictures(folder)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (lambda f: ("gone.onnx", pictures(f)), "there is no model gone.onnx"),
        (lambda f: (put(f, threshold_model()), "gone"), "there is no gone: ARCHIVE is a folder"),
        (lambda f: (put(f, b"hello"), pictures(f)), "not an ONNX model"),
        (lambda f: (pictures(f), "pics"), "pics is no model that can be imported"),
        (four_bands, "none of 4 images that were tried can be decoded for this model"),
        (weights, "holds weights without a network"),
        (empty, "nothing was found"),
        (broken, "none of 1 images"),
        (two_inputs, "not one batch of pictures"),
    ],
)
def test_wrong_arguments_are_one_sentence(folder, case, said):
    with pytest.raises(UnetBatchError, match=said):
        drafted(*case(folder))
    assert not (folder / "job").exists()


def test_nothing_is_overwritten_without_being_asked(folder):
    """Neither before the work nor at its end, where a file appeared meanwhile."""
    model, archive = put(folder, threshold_model(size=32)), pictures(folder)
    found = drafted(model, archive)
    files, _ = written(found)
    before = files.contract.read_bytes()
    with pytest.raises(UnetBatchError, match=r"job/job.yaml, job/choices.png are there already"):
        reserve(ModelRequest(model, Path("job")))
    files.job.unlink()
    files.sheet.unlink()
    with pytest.raises(UnetBatchError, match=r"job/m.yaml is there already"):
        written(drafted(model, archive, normalize="zscore"))
    assert files.contract.read_bytes() == before
    files.sheet.unlink()
    written(drafted(model, archive, normalize="zscore"), force=True)
    assert b"zscore" in files.contract.read_bytes()


def test_the_sheet_shows_every_variant_beside_the_picture(folder):
    """One column for the pictures and one for each value that was tried; the masks are drawn."""
    found = drafted(put(folder, threshold_model(size=32)), pictures(folder))
    files, _ = written(found)
    asked = ["input.normalize", "input.color", "input.fit", "output.activation"]
    assert [answer.question.field for answer in found.answers] == asked
    variants = sum(len(answer.tried) for answer in found.answers)
    sheet = np.asarray(Image.open(files.sheet).convert("RGB"))
    assert sheet.shape[1] == 8 + (1 + variants) * (288 + 8)
    outlined = (sheet == (255, 196, 0)).all(axis=2).any(axis=0)
    assert not outlined[: 8 + 288].any()
    assert outlined[8 + 296 : 8 + 2 * 296].any()


def test_a_table_that_lists_uris_is_a_manifest(folder):
    """A Parquet file with a column `uri` and none of images; with images it is an archive as before."""
    pictures(folder)
    uris = [str(path) for path in sorted((folder / "pics").iterdir())]
    pq.write_table(pa.table({"uri": uris, "patient": [1, 2, 3, 4]}), folder / "list.parquet")
    found = drafted(put(folder, threshold_model(size=32)), "list.parquet")
    assert (found.job["input"]["format"], found.seen.images) == ("manifest", 4)
    images = [Path(uri).read_bytes() for uri in uris]
    pq.write_table(pa.table({"uri": uris, "image": images}), folder / "held.parquet")
    assert archive_section(str(folder / "held.parquet"), [])["format"] == "parquet"


def test_a_job_inside_its_archive_leaves_its_own_files_out(folder):
    """The next run must not score the contact sheet."""
    model = put(folder, threshold_model(size=32))
    pictures(folder)
    found = drafted(model, "pics", "pics/job")
    _, job = written(found, "pics/job")
    assert job.input.exclude == ("job/**",)
    assert prepare(job)


@pytest.mark.parametrize("out", ["pics/masks.v2", "pics/a [b] {c}"])
def test_a_model_and_a_job_among_the_pictures_are_no_images(folder, out):
    """`score pics/m.onnx pics --out pics/masks.v2`: a folder may look like a file, and hold letters of globs."""
    pictures(folder)
    model = put(folder, threshold_model(size=32), "pics/m.onnx")
    (folder / "pics/m.yaml").write_text(threshold_model(size=32).contract_yaml)
    found = drafted(model, "pics", out)
    _, job = written(found, out)
    assert found.seen.images == 4
    assert {"m.onnx", "m.yaml"} < set(job.input.exclude)
    run(prepare(job), window_of("all"), LocalExecutor, choice=Choice(), quiet=True)
    (folder / "pics/new.png").write_bytes((folder / "pics/p0.png").read_bytes())
    assert run(prepare(job), window_of("all"), LocalExecutor, choice=Choice(), quiet=True).planned == 1


def test_names_of_days_and_of_masks_are_pointed_out(folder):
    pictures(folder, 2)
    for number, day in enumerate(("2026/11/20", "2026/11/21")):
        (folder / "pics" / day).mkdir(parents=True)
        (folder / "pics" / f"p{number}.png").rename(folder / "pics" / day / "p.png")
    (folder / "pics" / "2026/11/21/p_mask.png").write_bytes((folder / "pics" / "2026/11/21/p.png").read_bytes())
    hints = drafted(put(folder, threshold_model(size=32)), "pics").seen.hints
    assert any("{date:%Y/%m/%d}" in hint for hint in hints)
    assert any("1 of 3 names look like masks" in hint for hint in hints)


def test_rejected_images_are_met_before_the_run(folder):
    """The draft says how many could not be decoded, and lets the first run be published."""
    model, archive = put(folder, threshold_model(size=32)), pictures(folder, 3)
    (folder / "pics" / "a.png").write_bytes(b"no picture")
    files, job = written(found := drafted(model, archive))
    assert [key.rsplit("/", 1)[1] for key, _ in found.seen.rejected] == ["a.png"]
    assert job.limits.max_rejected == 0.38
    assert "1 of 4 images tried cannot be scored" in files.job.read_text()


@pytest.mark.oracle
def test_the_margin_of_unpadded_convolutions_is_drafted(folder):
    """The sides, the border and its filling come from the graph, and the masks lie in the picture's geometry."""
    pytest.importorskip("torch")
    from unpadded import as_onnx, network

    found = drafted(put(folder, as_onnx(network())), pictures(folder, channels=1))
    assert found.draft.contract().output.margin > 0
    assert [scored.labels_hw.shape for scored in found.final.masks] == [(64, 96)] * 4
    _, job = written(found)
    assert prepare(job)


@pytest.mark.oracle
def test_layers_that_an_export_merges_are_compared_in_the_network(folder):
    """The input of the normalisation that the pictures of the training had is nearer than any other."""
    torch = pytest.importorskip("torch")
    from unet_batch.workbench.draft.trained_layers import TrainedLayers

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8, momentum=0.5))
    assert not TrainedLayers(network).found
    batches = [torch.rand(2, 3, 16, 16) for _ in range(8)]
    for batch in batches:
        network.train()(batch)
    layers = TrainedLayers(network.eval())
    right = layers.distance([batch.numpy() for batch in batches])
    others = [
        layers.distance([change(batch.numpy()) for batch in batches])
        for change in (lambda x: x * 255, lambda x: x - 0.5)
    ]
    assert right is not None
    assert right < 0.05 < min(others)


def test_the_sheet_shows_what_the_job_does_also_where_it_mirrors(folder, monkeypatch):
    """A network that moves masks: with `tta` of an importer, the masks of the sheet are those of the run."""
    weight = np.zeros((1, 1, 1, 9), np.float32)
    weight[..., 0] = 20
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["mask"], pads=[0, 4, 0, 4])]
    sides = ["height", "width"]
    graph = helper.make_graph(
        nodes,
        "moved",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, *sides])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, *sides])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32([-8]), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "pics").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray((rng.random((24, 40)) > 0.7).astype(np.uint8) * 255).save(folder / "pics" / f"{number}.png")
    plain = drafted(put(folder, model.SerializeToString()), "pics", normalize="unit", activation="logits")
    monkeypatch.setattr(
        exploring,
        "read_model_source",
        lambda asked, _say: replace(read_model_source(asked), job={"tta": "mirror_horizontal"}),
    )
    mirrored = drafted("m.onnx", "pics", normalize="unit", activation="logits")
    assert (plain.final.scored[0].labels_hw != mirrored.final.scored[0].labels_hw).any()
    _, job = written(mirrored)
    assert job.tta == "mirror_horizontal"
    run(prepare(job), window_of("all"), LocalExecutor, choice=Choice("due"), quiet=True)
    rows = pq.ParquetFile(folder / "job/results/predictions/all/data.parquet").read().to_pylist()
    assert [row["classes"][0]["area_px"] for row in rows] == [int(s.labels_hw.sum()) for s in mirrored.final.scored]


def test_pictures_are_red_green_blue_also_where_the_contract_is_not(folder):
    """A contract that says bgr, in the file: the sheet shows the colours, and the model gets its own order."""
    made = threshold_model()
    contract = made.contract.model_copy(update={"input": made.contract.input.model_copy(update={"color": "bgr"})})
    put(folder, made)
    (folder / "m.yaml").write_text(TinyModel(made.data, contract).contract_yaml)
    pictures(folder)
    explored = drafted("m.onnx", "pics")
    first = np.array(Image.open(folder / "pics" / explored.seen.pictures[0].name))
    np.testing.assert_array_equal(explored.seen.pictures[0].pixels_hwc, first)
    np.testing.assert_array_equal(explored.final.scored[0].part_hwc, first)


def test_an_engine_is_left_to_the_recommendation(folder):
    """So `model optimize` is followed without an edit: no precision, and a provider only where it is not the usual."""
    files, job = written(drafted(put(folder, threshold_model()), pictures(folder)))
    assert (job.model.engine, job.model.precision) == ("auto", "fp32")
    assert "providers" not in files.job.read_text()
    again = written(drafted("m.onnx", "pics", "gpu"), "gpu", providers=("cuda",))[1]
    assert again.session.providers == ("cuda",)


def test_a_large_picture_is_tried_on_a_part_and_few_pictures_on_every_variant(folder):
    """Somebody waits: a variant costs a quarter of a megapixel for each of four pictures."""
    found = drafted(put(folder, threshold_model()), pictures(folder, 8, size=(1700, 700)))
    assert found.job["tiling"] == {"size": 1024}
    assert len(found.seen.pictures) == 8
    shapes = {scored.labels_hw.shape for answer in found.answers for tried in answer.tried for scored in tried.scored}
    assert shapes == {(512, 512)}
    assert {len(tried.scored) for answer in found.answers for tried in answer.tried} == {4}
