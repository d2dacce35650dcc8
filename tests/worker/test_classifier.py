"""Classifiers: models that return one score per class and image, from a contract to rows, held against PyTorch."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import yaml
from networks import Network
from onnx import TensorProto, helper
from PIL import Image

from unet_batch.errors import ContractError, JobError, ModelRefused
from unet_batch.model.contract import draft, find_contract, resolve
from unet_batch.model.model import Model, ModelFile
from unet_batch.planning.survey import window_of
from unet_batch.review.compare import compare
from unet_batch.review.evaluate import evaluate
from unet_batch.review.masks.export import export as export_masks
from unet_batch.review.page import render
from unet_batch.review.report import gather
from unet_batch.review.run_records import read_record
from unet_batch.session.model_files import read_model
from unet_batch.spec import TilingSpec
from unet_batch.table.tally import Tally
from unet_batch.workbench.inspect import inspect
from unet_batch.workbench.packing.pack import PackSpec, pack
from unet_batch.workbench.quantize import QuantizeSpec, quantize

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

pytestmark = pytest.mark.oracle
DAY, NAME = "2026/11/21", "2026-11-21"
CLASSES = ("cat", "dog", "cow", "emu", "fox", "owl")
SIZE = 24


@cache
def network():
    """Convolution, average over the image, linear layer."""
    torch.manual_seed(2)
    made = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    made.append(torch.nn.Conv2d(8, len(CLASSES), 1))
    made[0].weight.data *= 4
    with torch.no_grad():
        made[3].weight *= 6
        made[3].bias -= made(torch.rand(64, 3, SIZE, SIZE)).mean(dim=0)[:, 0, 0]
    return made.eval().requires_grad_(requires_grad=False)


def file(rank: int = 2, *, size: int | None = SIZE, head: str | None = None) -> bytes:
    """The network as an ONNX graph. rank: 2 for (N, K), 4 for (N, K, 1, 1). head: Softmax or Sigmoid."""
    graph, made = Network(), network()
    weights = {n: [graph.constant(t.detach().numpy()) for t in (made[n].weight, made[n].bias)] for n in (0, 3)}
    name = graph.add("Conv", "image", *weights[0], pads=[1] * 4)
    name = graph.add("Conv", graph.add("GlobalAveragePool", graph.add("Relu", name)), *weights[3])
    if rank == 2:
        name = graph.add("Flatten", name, axis=1)
    if head:
        name = graph.add(head, name, **({"axis": 1} if head == "Softmax" else {}))
    model = graph.model(name)
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:] if size else ():
        axis.dim_value = size
    shape = ["n", len(CLASSES), 1, 1][:rank]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def contract(*, taken: dict | None = None, **returned) -> str:
    tree = {
        "input": {"name": "image", "fit": "stretch", "kernel": "pil_bilinear_u8", **(taken or {})},
        "output": {"name": "mask", "classes": list(CLASSES), "label_from": "class_scores", **returned},
    }
    return yaml.safe_dump(tree, sort_keys=False)


def resolved(data: bytes, text: str | None = None) -> tuple[ModelFile, Model]:
    found = read_model(data, "classifier.onnx", None)
    return found, resolve(find_contract(found, (text or contract()).encode(), "c.yaml"), found, TilingSpec())


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """Noise of its own colour: pictures differ in their class."""
    random = np.random.default_rng(number)
    pixels = random.random((*size, 3)) * random.random(3)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def expected(image: Image.Image) -> np.ndarray:
    """PyTorch's logits of a picture, resized by Pillow."""
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32) / 255
    with torch.no_grad():
        return network()(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))[0, :, 0, 0].numpy()


def fill(project, data: bytes, text: str, count: int = 8) -> dict[str, Image.Image]:
    (project.folder / "model.onnx").write_bytes(data)
    (project.folder / "model.yaml").write_text(text)
    images = {}
    for number in range(count):
        out = io.BytesIO()
        image = images[f"{number}.png"] = picture(number, (30 + number, 50))
        image.save(out, "PNG")
        project.put(f"{DAY}/{number}.png", out.getvalue())
    return images


@pytest.mark.parametrize(("rank", "head"), [(2, None), (4, None), (2, "Softmax")])
def test_a_job_publishes_the_label_and_the_most_probable_classes(project, rank: int, head: str | None) -> None:
    """Label, score and the five most probable classes are PyTorch's; there is no mask and no area."""
    images = fill(project, file(rank, head=head), contract(activation="softmax" if head else "logits"))
    assert project.run().ok == len(images)
    labels = set()
    for row in project.rows(NAME):
        image = images[row["image_key"].rpartition("/")[2]]
        probabilities = torch.softmax(torch.from_numpy(expected(image)), 0).numpy()
        order = np.argsort(-probabilities)[:5]
        assert row["label"] == CLASSES[order[0]]
        assert row["score"] == pytest.approx(probabilities[order[0]], abs=1e-5)
        assert [cell["name"] for cell in row["classes"]] == [CLASSES[n] for n in order]
        assert [cell["id"] for cell in row["classes"]] == order.tolist()
        found = [cell["mean_probability"] for cell in row["classes"]]
        np.testing.assert_allclose(found, probabilities[order], atol=1e-5)
        assert {cell[name] for cell in row["classes"] for name in ("area_px", "fraction")} == {None}
        assert (row["mask"], row["height"], row["width"]) == (None, image.height, image.width)
        assert row["confidence"] == row["score"]
        labels.add(row["label"])
    assert len(labels) > 1


def test_independent_classes_have_a_threshold(project) -> None:
    """With sigmoid the label is the most probable class above it; without one there is no label."""
    images = fill(project, file(head="Sigmoid"), contract(activation="sigmoid", threshold=0.6, top=2))
    project.run()
    for row in project.rows(NAME):
        probabilities = torch.sigmoid(torch.from_numpy(expected(images[row["image_key"].rpartition("/")[2]]))).numpy()
        best = int(probabilities.argmax())
        assert row["label"] == (CLASSES[best] if probabilities[best] > 0.6 else None)
        assert len(row["classes"]) == 2
        assert row["classes"][0]["mean_probability"] == pytest.approx(probabilities[best], abs=1e-5)


def test_a_model_of_any_size_scores_the_whole_image(project) -> None:
    """pad and none need no resize; global pooling takes any size."""
    images = fill(project, file(size=None), contract(taken={"fit": "none"}), count=2)
    assert project.run().ok == 2
    pixels = np.asarray(images["0.png"], np.float32).transpose(2, 0, 1)[None] / 255
    wanted = network()(torch.from_numpy(pixels))[0, :, 0, 0]
    assert project.rows(NAME)[0]["label"] == CLASSES[int(wanted.argmax())]


def test_an_image_larger_than_the_model_is_no_grid_of_tiles(project) -> None:
    """A classifier scores whole images: pad rejects larger ones and says what to write."""
    fill(project, file(), contract(taken={"fit": "pad"}), count=1)
    project.run("limits.max_rejected=1.0")
    row = project.rows(NAME)[0]
    assert row["reason"] == "image.size_mismatch"
    assert "write input.fit: stretch or letterbox" in row["message"]


def test_the_gate_compares_scores_of_whole_images(project, cache) -> None:
    """A reference with the same scores passes, one with other scores does not."""
    fill(project, file(2), contract())
    (project.folder / "same.onnx").write_bytes(file(4))
    (project.folder / "same.yaml").write_text(contract())
    assert project.run(f"check.reference={project.folder / 'same.onnx'}").ok == 8
    other = onnx.load_from_string(file(4))
    weights = next(t for t in other.graph.initializer if t.dims == [len(CLASSES)])
    weights.raw_data = np.roll(np.frombuffer(weights.raw_data, np.float32) * 30, 1).tobytes()
    (project.folder / "other.onnx").write_bytes(other.SerializeToString())
    (project.folder / "other.yaml").write_text(contract())
    with pytest.raises(ModelRefused, match="of labels flipped"):
        project.run(f"check.reference={project.folder / 'other.onnx'}", "output.confidence=false")


def test_labels_are_counted_and_compared(project) -> None:
    """The report counts images by label; compare's pixels are images."""
    fill(project, file(), contract())
    first = project.run()
    rows = project.rows(NAME)
    prepared = project.prepared()
    found = gather(prepared, read_record(prepared.output, first.run), pictures=2)
    assert b"empty mask" not in render(found)
    figures = found.figures
    counted = {found.name: found.images for found in figures.classes}
    assert counted == {name: sum(row["label"] == name for row in rows) for name in CLASSES}
    assert figures.empty == 0
    tally = Tally()
    tally.add(pq.read_table(project.data(NAME), partitioning=None))
    assert {CLASSES[id_]: images for id_, images in tally.seen.items()} == {k: n for k, n in counted.items() if n}
    assert (tally.empty, tally.full) == (0, {})
    compared = compare(prepared, first.run, "published", window_of("all"))
    assert (compared.total.pixels, compared.total.flipped_px, compared.total.compared) == (8, 0, 8)
    assert "labels are compared, and pixels are images" in compared.notes[-1]


def test_masks_and_truth_are_refused_with_a_sentence(project) -> None:
    """There are no masks to export or to evaluate."""
    fill(project, file(), contract(), count=1)
    prepared = project.prepared()
    for ask in (
        lambda: export_masks(prepared, window_of("all"), "png", str(project.folder / "masks")),
        lambda: evaluate(prepared, window_of("all"), "truth/{stem}.png", top=1),
    ):
        with pytest.raises(JobError, match=r"is a classifier .* so its rows have no masks"):
            ask()
    with pytest.raises(JobError, match=r"output.mask_files: the model is a classifier"):
        project.prepared("output.mask_files=[png]")


# Contracts and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "returned", "said"),
    [
        ({"fit": "tile"}, {}, "input.fit tile cuts images, but output.label_from class_scores is about whole images"),
        ({}, {"activation": "labels"}, "label_from class_scores needs scores, but activation is labels"),
        ({}, {"margin": 4}, "margin 4 is for masks"),
        ({}, {"label_above": 0.1}, "label_above is for label_from: any_above, not class_scores"),
        ({}, {"label_from": "largest", "layout": "nk"}, "layout nk has no mask: write label_from: class_scores"),
        ({"fit": "tile"}, {"label_from": "largest"}, "for a classifier, write output.label_from: class_scores"),
    ],
)
def test_contracts_that_make_no_sense_are_refused(taken: dict, returned: dict, said: str) -> None:
    """Each with what to write."""
    with pytest.raises(ContractError) as caught:
        resolved(file(), contract(taken=taken, **returned))
    assert said in str(caught.value)


def test_a_mask_is_no_classifiers_output() -> None:
    """(N, K, H, W) with more than one pixel."""
    graph = Network()
    model = graph.model(graph.conv("image", (3, len(CLASSES))))
    shape = ["n", len(CLASSES), SIZE, SIZE]
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = SIZE
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, shape))
    with pytest.raises(ContractError, match=r"a mask, but output\.label_from class_scores is for classifiers"):
        resolved(model.SerializeToString())


@pytest.mark.parametrize("rank", [2, 4])
def test_the_draft_of_a_classifiers_contract_fits_its_file(rank: int) -> None:
    """From the declared shapes; `model inspect` prints it."""
    found = read_model(file(rank), "classifier.onnx", None)
    text = draft(found)
    drafted = resolve(find_contract(found, text.encode(), "draft"), found, TilingSpec()).contract
    assert (drafted.output.label_from, drafted.input.fit) == ("class_scores", "stretch")
    assert "label_from: class_scores" in inspect(found.data, "classifier.onnx").contract


def test_the_input_of_a_classifier_is_packed_and_its_output_is_not() -> None:
    """Labels alone would have no score."""
    found, model = resolved(file(2))
    packed = pack(found.data, model, PackSpec(post=False))
    assert packed.model.contract.output.label_from == "class_scores"
    with pytest.raises(ModelRefused, match="it returns scores of whole images"):
        pack(found.data, model, PackSpec())


# Masks that decide --------------------------------------------------------------------------------------------------


def test_a_classifier_is_quantised() -> None:
    """Its labels are compared as those of one pixel for each image; the first and the last layer stay in fp32."""
    data = file()
    tiles = [np.asarray(picture(n, (SIZE, SIZE)), np.float32) / 255 for n in range(6)]
    made = quantize(data, resolved(data)[1], tiles, QuantizeSpec(keep_first=False, keep_last=False))
    assert made.report.parity.pixels == made.report.held_out_tiles == 2
    assert made.model.contract.output.classifies


def test_a_mask_gives_the_label_above_a_share(project) -> None:
    """8 of 32 rows are bright: above a share of 0.2 that is a label, above 0.3 it is none. The mask stays."""
    project.fill(DAY, 1)
    text = (project.folder / "model.yaml").read_text()
    labels = []
    for share in (0.2, 0.3):
        tree = yaml.safe_load(text)
        tree["output"] |= {"label_from": "any_above", "label_above": share}
        (project.folder / "model.yaml").write_text(yaml.safe_dump(tree))
        project.run()
        row = project.rows(NAME)[0]
        labels.append((row["label"], row["score"] is None, row["classes"][0]["fraction"]))
    assert [found[0] is None for found in labels] == [False, True]
    assert [found[1:] for found in labels] == [(False, 0.25), (True, 0.25)]
