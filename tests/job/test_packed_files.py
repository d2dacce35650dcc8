"""Packed files in whole jobs: labels and masks that no tile said never appear, and a changed file is refused."""

from __future__ import annotations

import importlib.util
import io
import json

import numpy as np
import onnx
import pytest
from models import TinyModel, nan_model, threshold_model, unet_model
from onnx import numpy_helper
from PIL import Image
from pycocotools import mask as coco

from unet_batch.contract import Contract
from unet_batch.errors import ContractError, ModelRefused
from unet_batch.imaging.tiling import grid
from unet_batch.model.contract import resolve
from unet_batch.model.graph import metadata
from unet_batch.model.model import Model
from unet_batch.model.packed import PACK_KEY
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import SessionSpec, TilingSpec
from unet_batch.workbench.graph_edit import set_metadata
from unet_batch.workbench.packing.pack import PackSpec, pack
from unet_batch.worker.worker import Settings, build_infer, build_load

DAY, NAME = "2026/11/21", "2026-11-21"
SIDE = 32
openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


def packed(made: TinyModel, **taken) -> tuple[bytes, Model]:
    """The packed file of a model, whose contract has other words for its input."""
    tree = made.contract.model_dump(mode="json", exclude_none=True)
    contract = Contract.model_validate({**tree, "input": tree["input"] | taken})
    model = resolve(contract, read_model(made.data, "m.onnx", None), TilingSpec())
    found = pack(made.data, model, PackSpec())
    return found.data, found.model


def use(project, data: bytes) -> None:
    """The project's model becomes this file, with the contract inside it."""
    (project.folder / "model.onnx").write_bytes(data)
    (project.folder / "model.yaml").unlink(missing_ok=True)


def noisy(project, name: str, size: tuple[int, int] = (40, 75), channels: int = 1) -> np.ndarray:
    """A picture without structure in the archive: neighbouring tiles agree on no pixel by chance."""
    shape = size if channels == 1 else (*size, channels)
    pixels = np.random.default_rng(7).integers(0, 256, shape, np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    project.put(f"{DAY}/{name}", out.getvalue())
    return pixels.reshape(*size, channels)


def tiles_said(data: bytes, model: Model, pixels: np.ndarray) -> np.ndarray:
    """(tiles, planes, H, W): what each tile says about its pixels, −1 elsewhere; by a session of its own."""
    session = open_session(data, model, SessionSpec(), Device(1))
    boxes = grid(pixels.shape[:2], (SIDE, SIDE), TilingSpec().overlap)
    said = np.full((len(boxes), model.planes, *pixels.shape[:2]), -1)
    for number, box in enumerate(boxes):
        said[number][:, *box.slices] = session.run(pixels[box.slices][None])[0]
    return said


def masks_of(row: dict) -> dict[int, np.ndarray]:
    """By class id: the mask of a row, as pycocotools reads it."""
    size = [row["height"], row["width"]]
    return {c["id"]: coco.decode({"size": size, "counts": c["rle"]["counts"]}) for c in row["classes"]}


# Tiles that overlap ---------------------------------------------------------------------------------------------------


def test_every_label_of_a_large_picture_was_said_by_a_tile_that_saw_it(project):
    """Classes 0 and 2 never make a 1 between them, in six tiles that overlap."""
    data, model = packed(unet_model(SIDE, 4, 2, in_channels=1, classes=4))
    use(project, data)
    pixels = noisy(project, "a.png")
    project.run()
    [row] = project.rows(NAME)
    said = tiles_said(data, model, pixels)
    assert len(said) == 6
    labels = np.zeros(pixels.shape[:2], int)
    for id_, mask in masks_of(row).items():
        labels[mask == 1] = id_
    assert (said[:, 0] == labels).any(axis=0).all()
    assert {0, 1, 2} <= {*np.unique(labels)}
    seen = (said[:, 0] >= 0).sum(axis=0)
    assert (seen[(said.max(axis=0)[0] != np.where(said < 0, 99, said).min(axis=0)[0])] > 1).any()  # tiles disagree


def test_every_mask_of_a_large_picture_was_said_by_a_tile_that_saw_it(project):
    """Classes that overlap, each by itself; a pixel may have several, and none has a probability."""
    made = unet_model(SIDE, 4, 2, in_channels=1, classes=3)
    tree = made.contract.model_dump(mode="json", exclude_none=True)
    model = onnx.load_from_string(made.data)
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(onnx.helper.make_node("Sigmoid", ["raw"], ["mask"]))
    tree["output"] |= {"activation": "sigmoid", "background": None}
    data, resolved = packed(TinyModel(model.SerializeToString(), Contract.model_validate(tree)))
    assert resolved.contract.output.activation == "masks"
    use(project, data)
    pixels = noisy(project, "a.png")
    project.run("output.masks=[rle, png]")
    [row] = project.rows(NAME)
    said, found = tiles_said(data, resolved, pixels), masks_of(row)
    assert set(found) == {0, 1, 2}
    for id_, mask in found.items():
        assert (said[:, id_] == mask).any(axis=0).all()
    assert (np.stack(list(found.values())).sum(axis=0) > 1).any()
    assert (row["confidence"], row["entropy"], row["score"]) == (None, None, None)
    assert {c["mean_probability"] for c in row["classes"]} == {None}
    labels = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
    stacked = np.stack([found[id_] for id_ in range(3)])
    first = np.where(stacked.any(axis=0), stacked.argmax(axis=0) + 1, 0)
    np.testing.assert_array_equal(labels, first)


@pytest.mark.parametrize("classes", [2, 3], ids=["labels", "masks"])
def test_decided_pixels_are_enlarged_by_the_nearest_one(project, classes):
    """A picture of twice the model's size: every pixel twice, as np.repeat says; no bilinear ramp between 0 and 1."""
    made = threshold_model("nchw", 1, classes, size=SIDE, activation="sigmoid" if classes == 3 else "logits")
    data, _ = packed(made, fit="stretch", height=SIDE, width=SIDE, kernel="nearest")
    use(project, data)
    small = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small.repeat(2, axis=0).repeat(2, axis=1)).save(out, "PNG")
    project.put(f"{DAY}/a.png", out.getvalue())
    project.run()
    found = masks_of(project.rows(NAME)[0])
    limits = {1: 127.5} if classes == 2 else {k: 255 * (k + 0.5) / 3 for k in range(3)}
    for id_, limit in limits.items():
        np.testing.assert_array_equal(found[id_], (small > limit).repeat(2, axis=0).repeat(2, axis=1))


def test_a_file_that_calls_scores_masks_is_refused_before_the_run(project):
    """The file ends in a Sigmoid."""
    made = threshold_model("nchw", 1, 3, size=SIDE, activation="sigmoid")
    tree = made.contract.model_dump(mode="json", exclude_none=True)
    tree["output"]["activation"] = "masks"
    use(project, made.data)
    (project.folder / "model.yaml").write_text(TinyModel(made.data, Contract.model_validate(tree)).contract_yaml)
    noisy(project, "a.png")
    with pytest.raises(ContractError, match=r"ends in Sigmoid.* output\.activation says masks"):
        project.run()


# NaN ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        "onnxruntime",
        pytest.param("openvino", marks=openvino),
    ],
)
def test_a_nan_behind_labels_costs_that_picture(project, engine):
    """Label 0 would look like background: this network returns NaN for bright pixels, and `finite` says so."""
    data, _ = packed(nan_model(channels=1))
    use(project, data)
    for n, level in enumerate((20, 255, 60)):
        out = io.BytesIO()
        Image.fromarray(np.full((SIDE, SIDE), level, np.uint8)).save(out, "PNG")
        project.put(f"{DAY}/{n}.png", out.getvalue())
    # The other pictures have one label each, and the same one: the gate could not judge by them.
    assert project.run(f"model.engine={engine}", "check.images=0").rejected == 1
    assert [row["reason"] for row in project.rows(NAME)] == [None, "model.non_finite_output", None]


def test_one_ill_tile_of_many_costs_the_picture(project):
    """The pixel lies in the last tile alone."""
    data, _ = packed(nan_model(channels=1))
    use(project, data)
    pixels = np.full((40, 75), 20, np.uint8)
    pixels[39, 74] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    project.put(f"{DAY}/a.png", out.getvalue())
    assert project.run("tiling.size=32", "limits.max_rejected=1").rejected == 1


# Changed files --------------------------------------------------------------------------------------------------------

RGB = unet_model(SIDE, 4, 2, in_channels=3, classes=3)


def with_weights(data: bytes, change) -> bytes:
    """The file with other weights in its first convolution."""
    model = onnx.load_from_string(data)
    tensor = next(t for t in model.graph.initializer if t.name == "down0a_w")
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), tensor.name))
    return model.SerializeToString()


def with_factor(data: bytes, factor: float) -> bytes:
    """The file with another divisor in its normalisation."""
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.name.startswith("unet_batch/in"):
            value = numpy_helper.to_array(node.attribute[0].t)
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.asarray(value * factor, np.float32)))
    return model.SerializeToString()


def swapped(data: bytes) -> bytes:
    """Another network behind the references and the name of this one."""
    other, _ = packed(unet_model(SIDE, 4, 2, in_channels=3, classes=3, seed=5))
    model = onnx.load_from_string(other)
    set_metadata(model, {PACK_KEY: metadata(onnx.load_from_string(data))[PACK_KEY]})
    return model.SerializeToString()


BRIGHTNESS = threshold_model("nchw", 3, 3, size=SIDE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "change"),
    [
        (RGB, lambda data: with_weights(data, lambda w: w[:, ::-1])),
        (BRIGHTNESS, lambda data: with_factor(data, 0.5)),
        (RGB, swapped),
    ],
    ids=["channels reversed", "half as bright", "weights of another model"],
)
@pytest.mark.parametrize(
    "how",
    [
        (),
        pytest.param(("model.engine=openvino",), marks=openvino),
    ],
    ids=["trusted", "openvino"],
)
def test_a_packed_file_that_was_changed_is_refused(project, made, change, how):
    """Also where the session is the trusted one: the archive's images could not tell, the references do."""
    data, _ = packed(made)
    noisy(project, "a.png", channels=3)
    use(project, change(data))
    with pytest.raises(ModelRefused, match="no longer gives the labels that it gave when it was packed") as refused:
        project.run(*how)
    assert "its channel order, normalisation or weights were changed" in str(refused.value)
    assert (refused.value.exit_code, project.parts()) == (2, [])


def test_a_packed_file_that_was_not_changed_is_asked_once(project, cache):
    """The verdict is kept for this machine."""
    use(project, packed(RGB)[0])
    noisy(project, "a.png", channels=3)
    assert project.run().ok == 1
    [verdict] = cache.iterdir()
    written = verdict.stat().st_mtime_ns
    noisy(project, "b.png", channels=3)
    assert project.run().ok == 1
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [written]


def test_a_file_that_an_older_version_packed_is_refused_with_the_way_out(project):
    """The entry of version 1 has other pictures; nothing is scored."""
    data, _ = packed(RGB)
    model = onnx.load_from_string(data)
    entry = json.loads(metadata(model)[PACK_KEY])
    set_metadata(model, {PACK_KEY: json.dumps(entry | {"version": 1})})
    use(project, model.SerializeToString())
    noisy(project, "a.png", channels=3)
    with pytest.raises(ModelRefused, match=r"model\.onnx: it was packed by another .* pack it again") as refused:
        project.run()
    assert (refused.value.exit_code, project.parts()) == (2, [])


def test_zero_images_ask_no_references_either(project):
    """For those who know better."""
    use(project, with_factor(packed(BRIGHTNESS)[0], 0.5))
    noisy(project, "a.png", channels=3)
    assert project.run("check.images=0").ok == 1


@pytest.mark.slow
def test_a_packed_file_can_be_held_against_its_network(project):
    """The reference takes normalised floats, the packed file bytes: each is fed with what it takes."""
    network = project.folder / "network.onnx"
    network.write_bytes(RGB.data)
    network.with_suffix(".yaml").write_text(RGB.contract_yaml)
    data, _ = packed(RGB)
    noisy(project, "a.png", (SIDE, SIDE), channels=3)
    use(project, data)
    assert project.run(f"check.reference={network}", "check.max_flipped=0").ok == 1
    stranger = unet_model(SIDE, 4, 2, in_channels=3, classes=3, seed=5)
    network.write_bytes(stranger.data)
    noisy(project, "b.png", (SIDE, SIDE), channels=3)
    with pytest.raises(ModelRefused, match="labels flipped"):
        project.run(f"check.reference={network}")


def test_the_stages_run_packed_masks_without_a_job_around_them(project):
    """Load and Infer as any executor builds them."""
    data, _ = packed(threshold_model("nchw", 1, 3, size=SIDE, activation="sigmoid"))
    use(project, data)
    noisy(project, "a.png")
    prepared = project.prepared()
    settings = Settings(prepared.job.model_dump_json(), prepared.model.to_json(), prepared.fingerprint, "run")
    load, infer = build_load(settings), build_infer(settings, Device(1))
    from unet_batch.planning.plan import plan_partition, units
    from unet_batch.planning.survey import archive_partitions, window_of

    [(name, sources)] = archive_partitions(prepared, window_of("all"), keep=False).partitions.items()
    plan = plan_partition(name, sources, fingerprint="x", published=None, done=frozenset(), parts=())
    [unit] = units(plan, prepared.job, "x", workers=1)
    receipt = infer(load(unit))
    assert (receipt.failure, receipt.ok, receipt.rejected) == (None, 1, 0)
