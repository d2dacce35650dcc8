"""What a job packs by itself: the rows stay what they were to the last bit, and the log says what was done."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from models import TinyModel, nan_model, threshold_model, unet_model
from PIL import Image

from unet_batch.contract import Contract
from unet_batch.errors import ContractError, JobError, ModelRefused
from unet_batch.job.diagnosis import check_job
from unet_batch.job.packing import demand_same_bits, packing
from unet_batch.job.survey import window_of
from unet_batch.model.contract import Model, read_model, resolve
from unet_batch.model.pack import PackSpec
from unet_batch.model.pack_cache import folded
from unet_batch.model.session import Device, Session, open_session
from unet_batch.spec import SessionSpec, TilingSpec

DAY, NAME = "2026/11/21", "2026-11-21"
OFF = "model.pack=off"
LABELS = "model.pack=labels"
LABELS_ONLY = ("output.geometry=model", "output.confidence=false", "output.masks=[rle, png]", "limits.max_rejected=1")

UNET = unet_model(32, base=4, levels=2, in_channels=1, classes=3)
NHWC = threshold_model("nhwc", 1, 3, size=32, activation="softmax")
BINARY = threshold_model("nchw", 1, 1, size=32)
SEVERAL = threshold_model("nchw", 1, 3, size=32, activation="sigmoid")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Graphs of other tests do not count here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unet-batch" / "packed"


def use(project, made: TinyModel, **taken) -> None:
    """The project's model becomes this one; other words for its contract's input."""
    tree = made.contract.model_dump(mode="json", exclude_none=True)
    contract = Contract.model_validate({**tree, "input": tree["input"] | taken})
    (project.folder / "model.onnx").write_bytes(made.data)
    (project.folder / "model.yaml").write_text(TinyModel(made.data, contract).contract_yaml)


def put(project, dtype: str, count: int = 2, size: tuple[int, int] = (40, 56)) -> None:
    """Pictures without structure, more than one tile each; floats lie in [0, 1]."""
    for n in range(count):
        random = np.random.default_rng(n)
        out = io.BytesIO()
        if dtype == "float32":
            tifffile.imwrite(out, random.random(size, np.float32))
        else:
            pixels = random.integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)
            Image.fromarray(pixels).save(out, "PNG")
        project.put(f"{DAY}/{dtype}-{n}.{'tif' if dtype == 'float32' else 'png'}", out.getvalue())


def table(project, name: str, *overrides: str) -> list[dict]:
    """Every value of every row but the run's name, of a run into a folder of its own."""
    out = project.folder / name
    project.run(f"output.uri={out}", *overrides)
    rows = pq.ParquetFile(out / "predictions" / f"date={NAME}" / "data.parquet").read().to_pylist()
    return [{key: value for key, value in row.items() if key != "run_id"} for row in rows]


def packed_files(cache: Path) -> int:
    return len(list(cache.glob("*.onnx")))


@pytest.mark.slow
@pytest.mark.parametrize("made", [UNET, NHWC, BINARY, SEVERAL], ids=["unet", "nhwc softmax", "binary", "sigmoid"])
@pytest.mark.parametrize(
    ("dtypes", "graphs"), [(["uint8"], 1), (["uint16"], 1), (["uint8", "uint16", "float32"], 2)], ids=str
)
def test_every_value_of_every_row_is_that_of_an_unpacked_job(project, cache, made, dtypes, graphs):
    """Confidences and probabilities included, with tiles that overlap; floats go the unpacked way in the same job."""
    use(project, made)
    for dtype in dtypes:
        put(project, dtype)
    packed = table(project, "packed")
    assert packed_files(cache) == graphs
    assert len(packed) == 2 * len(dtypes)
    assert {row["status"] for row in packed} == {"ok"}
    assert packed == table(project, "off", OFF)


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "mean_std", "mean": [0.45], "std": [0.22]},
        {"kind": "scale", "scale": 0.0039, "offset": -0.3},
        {"kind": "window", "center": 120.0, "width": 99.0},
    ],
    ids=lambda rule: rule["kind"],
)
def test_every_rule_that_is_a_formula_goes_inside(project, cache, rule):
    """Normalised there to the same bits; float pictures of the same archive are normalised outside."""
    use(project, UNET, normalize=rule)
    put(project, "uint8")
    put(project, "float32")
    packed = table(project, "packed")
    assert packed_files(cache) == 1
    assert packed == table(project, "off", OFF)


def test_labels_come_out_where_no_row_needs_a_score(project, cache, caplog):
    """One tile per picture, no way back, no confidence: pictures of every type, and the map as a PNG too."""
    use(project, UNET, fit="stretch", height=32, width=32)
    for dtype in ("uint8", "uint16", "float32"):
        put(project, dtype)
    with caplog.at_level(logging.INFO, "unet_batch"):
        packed = table(project, "packed", LABELS, *LABELS_ONLY)
    assert "labels come out of it instead of scores" in caplog.text
    assert packed_files(cache) == 3
    assert len({row["mask"]["bytes"] for row in packed}) == 6
    assert packed == table(project, "off", OFF, *LABELS_ONLY)


def test_a_tile_that_makes_the_network_ill_is_rejected_all_the_same(project):
    """Labels cannot show a NaN; the packed graph's guard does, for that picture alone."""
    use(project, nan_model(channels=1), fit="stretch", height=32, width=32)
    for n, level in enumerate((20, 255, 40)):
        out = io.BytesIO()
        Image.fromarray(np.full((32, 32), level, np.uint8)).save(out, "PNG")
        project.put(f"{DAY}/{n}.png", out.getvalue())
    packed = table(project, "packed", LABELS, *LABELS_ONLY)
    assert [row["reason"] for row in packed] == [None, "model.non_finite_output", None]
    assert packed == table(project, "off", OFF, *LABELS_ONLY)


def test_masks_of_another_size_come_out_as_scores(project, cache, caplog):
    """They go back to the tile's size bilinear, which labels cannot."""
    use(project, threshold_model("nchw", 1, 3, size=32, half_size=True), fit="stretch", height=32, width=32)
    put(project, "uint8")
    with caplog.at_level(logging.INFO, "unet_batch"):
        packed = table(project, "packed", LABELS, *LABELS_ONLY)
    assert "scores come out of the graph, because its masks are 16x16" in caplog.text
    assert packed == table(project, "off", OFF, *LABELS_ONLY)


@pytest.mark.parametrize("combine", ["logits", "probabilities", "vote"])
def test_an_ensemble_is_packed_member_by_member(project, cache, combine):
    """Each with its own graph; the rows stay what they were."""
    use(project, UNET)
    (project.folder / "second.onnx").write_bytes(unet_model(32, 4, 2, in_channels=1, classes=3, seed=1).data)
    how = f"model.ensemble={{members: [{project.folder}/second.onnx], combine: {combine}}}"
    put(project, "uint8")
    packed = table(project, "packed", how)
    assert packed_files(cache) == 2
    assert packed == table(project, "off", OFF, how)


def test_a_model_that_contradicts_its_contract_says_so_as_before(project, cache):
    """Logits under the name of probabilities end the unit, packed or not."""
    tree = threshold_model("nchw", 1, 2, size=32).contract.model_dump(mode="json", exclude_none=True)
    tree["output"]["activation"] = "softmax"
    use(project, TinyModel(threshold_model("nchw", 1, 2, size=32).data, Contract.model_validate(tree)))
    put(project, "uint8", size=(32, 32))
    for how in ("model.pack=auto", OFF):
        with pytest.raises(ContractError, match="they may be logits"):
            project.run(how)


def test_a_graph_is_packed_once_per_machine(project, cache):
    """The second run finds the file and leaves it as it is."""
    put(project, "uint8")
    use(project, UNET)
    table(project, "first")
    [path] = cache.glob("*.onnx")
    written = path.stat().st_mtime_ns
    table(project, "second")
    assert path.stat().st_mtime_ns == written


def test_switching_scores_nothing_again(project):
    """The fingerprint is that of network and contract: the rows are the same."""
    put(project, "uint8")
    use(project, UNET)
    assert project.run().planned == 2
    assert project.run(OFF).planned == 0


def test_off_is_a_word_in_yaml_too(project):
    """YAML reads it as false; `on` is no word of this key."""
    job = project.folder / "job.yaml"
    text = job.read_text()
    for word, read in (("off", "off"), ("auto", "auto"), ("'off'", "off")):
        job.write_text(text.replace("model.onnx}", f"model.onnx, pack: {word}}}"))
        assert project.job().model.pack == read
    job.write_text(text.replace("model.onnx}", "model.onnx, pack: on}"))
    with pytest.raises(JobError, match=r"model\.pack: input should be 'auto', 'labels' or 'off'"):
        project.job()


# What is packed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "taken", "why"),
    [
        ([OFF], {}, "model.pack is off"),
        (["session.providers=[tensorrt]"], {}, "onnxruntime on tensorrt computes other last bits"),
        (["session.providers=[cuda, CoreMLExecutionProvider]"], {}, "on CoreMLExecutionProvider computes"),
        ([], {"normalize": {"kind": "percentile"}}, "the model normalises by percentile"),
        ([], {"normalize": {"kind": "zscore"}}, "the model normalises by zscore"),
    ],
)
def test_nothing_is_packed_where_a_row_could_change(project, overrides, taken, why):
    """One sentence says why."""
    use(project, UNET, **taken)
    prepared = project.prepared(*overrides)
    plan = packing(prepared.job, prepared.model)
    assert (plan.anything, plan.why.startswith("nothing is packed: ")) == (False, True)
    assert why in plan.why


def test_a_model_that_takes_bytes_needs_no_packing(project):
    """Its pixels cross as they are already."""
    use(project, threshold_model("nchw", 1, 2, size=32, dtype="uint8"))
    plan = packing(project.prepared().job, project.prepared().model)
    assert plan.why == "nothing is packed: the model takes uint8 as it is"


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_runs_the_network_alone(project, cache):
    """It folds the normalisation into the first weights, and other last bits come out."""
    use(project, UNET)
    put(project, "uint8")
    assert project.run("model.engine=openvino").ok == 2
    assert packed_files(cache) == 0


def test_cuda_takes_source_pixels(project):
    """The decision needs no GPU."""
    use(project, UNET)
    prepared = project.prepared("session.providers=[cuda, cpu]")
    assert packing(prepared.job, prepared.model).dtypes == ("uint8", "uint16")


@dataclass
class OnAnotherDevice:
    """A session as it would be there: its last bits may be others."""

    inner: Session
    off_by: float = 0.0
    provider: str = "cuda"
    device_name: str = "Fake 1"

    @property
    def model(self) -> Model:
        return self.inner.model

    def run(self, tiles: np.ndarray) -> np.ndarray:
        return self.inner.run(tiles) + np.float32(self.off_by)


@pytest.mark.parametrize("labels", [False, True], ids=["scores", "labels"])
def test_another_device_proves_the_graph_itself(project, cache, labels):
    """Once per machine; a single other bit, or another label, and it runs the network alone."""
    made = resolve(UNET.contract, read_model(UNET.data, "m.onnx", None), TilingSpec())
    spec = PackSpec(post=labels)
    network = open_session(UNET.data, made, SessionSpec(), Device(1))
    packed = open_session(*folded(UNET.data, made, spec), SessionSpec(), Device(1))
    opened: list[Session] = []

    def there() -> Session:
        opened.append(OnAnotherDevice(network))
        return opened[-1]

    with pytest.raises(ModelRefused, match="cuda computes other last bits"):
        demand_same_bits(OnAnotherDevice(packed, off_by=1.0 if labels else 1e-6), there, made, spec)
    for _ in range(2):
        demand_same_bits(OnAnotherDevice(packed), there, made, spec)
    demand_same_bits(OnAnotherDevice(packed, device_name="Fake 2"), there, made, spec)
    assert len(opened) == 3
    assert len(list(cache.glob("*.proven"))) == 2


STRETCHED = {"fit": "stretch", "height": 32, "width": 32}


@pytest.mark.parametrize(
    ("made", "taken", "left_out"),
    [
        (UNET, STRETCHED, "output.geometry=model"),
        (UNET, STRETCHED, "output.confidence=false"),
        (UNET, {}, None),
        (UNET, STRETCHED | {"fit": "letterbox"}, None),
        (SEVERAL, STRETCHED, None),
        (threshold_model("nchw", 1, 2, size=32, activation="labels"), STRETCHED, None),
    ],
    ids=["way back", "confidence", "tiles", "letterbox", "classes that overlap", "labels already"],
)
def test_scores_come_out_wherever_a_row_needs_them(project, made, taken, left_out):
    """Each of the conditions alone."""
    use(project, made, **taken)
    prepared = project.prepared(LABELS, *(words for words in LABELS_ONLY if words != left_out))
    assert not packing(prepared.job, prepared.model).labels
    use(project, UNET, **STRETCHED)
    prepared = project.prepared(LABELS, *LABELS_ONLY)
    assert packing(prepared.job, prepared.model).labels
    # Left to itself, a job packs them where they save a way back from a device.
    for providers, packed in (("[cpu]", False), ("[cuda, cpu]", False), ("[cuda]", True)):
        prepared = project.prepared(f"session.providers={providers}", *LABELS_ONLY)
        assert packing(prepared.job, prepared.model).labels is packed


def test_labels_alone_come_out_of_a_model_that_normalises_by_the_picture(project, cache):
    """Percentiles stay outside, the decision goes inside."""
    use(project, UNET, **STRETCHED, normalize={"kind": "percentile"})
    put(project, "uint8")
    packed = table(project, "packed", LABELS, *LABELS_ONLY)
    assert packed_files(cache) == 1
    assert packed == table(project, "off", OFF, *LABELS_ONLY)


@pytest.mark.ray
def test_actors_pack_too(project, cache):
    """Each for itself, and the rows are those of the loop."""
    use(project, UNET)
    put(project, "uint8", 3)
    put(project, "uint16", 3)
    result = project.command("run", "job.yaml", "--quiet", "--set", f"output.uri={project.folder}/ray")
    assert result.returncode == 0, result.stderr
    path = project.folder / "ray/predictions" / f"date={NAME}" / "data.parquet"
    rows = [{k: v for k, v in row.items() if k != "run_id"} for row in pq.ParquetFile(path).read().to_pylist()]
    assert rows == table(project, "loop", OFF)
    assert 1 <= packed_files(cache) <= 2


@pytest.mark.slow
def test_a_check_without_a_picture_that_can_be_read_is_none(project):
    """It says so and how to go on; nobody is told that the session agrees."""
    project.put(f"{DAY}/a.png", b"no picture")
    with pytest.raises(JobError, match=r"none of 1 images of .* could be read: write another --window"):
        check_job(project.job(), window_of("all"))
    put(project, "uint8", 1)
    assert check_job(project.job(), window_of("all"))
    assert not check_job(project.job(OFF), window_of("all"))
    assert not check_job(project.job("check.images=0"), window_of("all"))


def test_a_large_picture_is_checked_on_a_part_of_it(project, cache):
    """A model that takes any size is compared on 1024 pixels, which every machine has room for twice."""
    use(project, threshold_model("nchw", 1, 2, size=None))
    put(project, "uint8", 1, size=(1100, 1030))
    project.run()
    [verdict] = (cache.parent / "checks").iterdir()
    assert json.loads(verdict.read_text())["parity"]["pixels"] == 1024 * 1024
