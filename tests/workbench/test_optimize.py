"""`model optimize`: what is built, which one wins, and what the file says. Measurements are fakes, but for one."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from optimized_files import ANYTHING, SIDE, pictures, resolved, small_unet
from project_fixture import last_json

from unet_batch.cli import terminal
from unet_batch.errors import JobError, ModelRefused
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.model import graph
from unet_batch.model.contract import find_contract
from unet_batch.model.optimized import fp32_network, recommendation
from unet_batch.session import gpu
from unet_batch.session.engines import file_precision
from unet_batch.session.model_files import read_model
from unet_batch.workbench.optimize import candidates as building
from unet_batch.workbench.optimize import optimize as module
from unet_batch.workbench.optimize.candidates import Material, candidates
from unet_batch.workbench.optimize.optimize import fastest, optimize, rows, threads_for
from unet_batch.workbench.tune import Point, Profile
from unet_batch.workbench.variants import Variant, VariantFigures


@pytest.fixture(scope="module")
def tiny():
    return small_unet()


@pytest.fixture(scope="module")
def material(tiny):
    return Material(tiny.data, resolved(tiny), pictures(6), ANYTHING, labels_suffice=False)


@pytest.fixture
def with_gpu(monkeypatch):
    """A driver that answers. No session is opened on it."""
    monkeypatch.setattr(gpu, "ask_driver", lambda: gpu.Gpu("a GPU", 8 << 30))


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "ask_driver", gpu.Gpu)


def figures(name: str, speed: float, *, flipped: int = 0) -> VariantFigures:
    """A measurement of 1,000 pixels of two classes, of which some flipped."""
    parity = Parity(
        ("background", "cell"), 1, 1000, 1000, flipped, (500, 500), (500 - flipped, 500 + flipped),
        (500 - flipped, 500), 2000, 0.0, 0.0, 1.0, 0, 0, 0, 0,
    )  # fmt: skip
    return VariantFigures(name, 8_000_000, 200_000_000, 100_000_000, 10.0 * speed, speed, (parity,))


def profile(**peaks: int | None) -> Profile:
    """One thread, batches of 1 and 2; the first is as fast as the second."""
    points = tuple(
        Point("onnxruntime", "cpu", 1, size, 0.01 * size, 0.009 * size, peaks.get("peak_bytes")) for size in (1, 2)
    )
    return Profile("ab" * 32, "a processor", "fp32", (SIDE, SIDE), points, (), ())


def measured(monkeypatch, **speeds: float) -> None:
    """The measurement says so: a candidate without a speed does not run."""

    def measure(ways, _model, _tiles, *, rounds, leave_out):
        assert rounds == 2
        found = []
        for way in ways:
            if way.name.replace(" ", "_") in speeds:
                found.append(figures(way.name, speeds[way.name.replace(" ", "_")]))
            else:
                leave_out(f"{way.name}: it does not run here")
        return found

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "tune", lambda *_, precision, **__: replace(profile(peak_bytes=1), precision=precision))


# What is built ---------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_candidates_are_those_of_the_processor(material, without_gpu, exact_int8):
    """fp32 comes first, because all others are compared with it; every engine that is installed takes part."""
    names = [way.name for way in candidates(material, pytest.fail)]
    assert names[:2] == ["fp32", "int8"]
    assert not [name for name in names if "cuda" in name or "fp16" in name]


def test_a_gpu_brings_its_own_candidates(material, with_gpu):
    """tf32, fp16 and both layouts inside; labels only if the job stores no confidence and no tile overlaps."""
    ways = candidates(material, pytest.fail)
    on_gpu = {way.name: way for way in ways if way.session.providers == ("cuda",)}
    assert list(on_gpu) == ["cuda fp32", "cuda tf32", "cuda tf32 nchw", "cuda fp16", "cuda fp16 nchw"]
    assert on_gpu["cuda fp16"].precision == file_precision(on_gpu["cuda fp16"].data) == "fp16"
    assert on_gpu["cuda tf32 nchw"].session.provider_options == {"cuda": {"prefer_nhwc": 0}}


def test_labels_are_decided_on_the_gpu_only_where_nothing_is_lost(material, with_gpu):
    """Overlapping tiles blend scores, and labels cannot be blended."""
    contract = material.model.contract
    untiled = contract.model_copy(update={"input": contract.input.model_copy(update={"fit": "pad"})})
    asked = replace(material, labels_suffice=True)
    assert not [way for way in candidates(asked, pytest.fail) if "labels" in way.name]
    found = candidates(replace(asked, model=replace(asked.model, contract=untiled)), pytest.fail)
    labels = [way for way in found if "labels" in way.name]
    assert [way.name for way in labels] == ["cuda tf32 labels", "cuda fp16 labels"]
    assert all(way.model is not None and way.model.contract.output.activation == "labels" for way in labels)


def test_a_tolerance_that_8_bits_cannot_hold_leaves_them_out_with_a_sentence(material, without_gpu):
    """The other candidates are measured all the same."""
    said: list[str] = []
    exact = replace(material, tolerance=Tolerance(0.0, 1.0, max_abs_error=1e-9))
    assert not [way.name for way in candidates(exact, said.append) if "int8" in way.name]
    assert [text for text in said if text.startswith("int8: no mixture of int8 and fp32 is within the tolerance")]


def test_an_8_bit_file_that_lost_its_fp32_network_is_left_out(material, without_gpu, monkeypatch):
    """A machine without the engine would have nothing to fall back to."""
    monkeypatch.setattr(building, "fp32_network", lambda _: None)
    said: list[str] = []
    assert building.int8_file(material, said.append) is None
    assert said == ["int8: the quantised file does not hold its fp32 network"]


# Which one wins --------------------------------------------------------------------------------------------------


def test_the_fastest_within_the_tolerance_wins():
    """A faster one that flips labels is in the table and does not win."""
    found = [figures("fp32", 1.0), figures("int8", 3.0, flipped=9), figures("bf16", 2.0)]
    limit = Tolerance(max_flipped=0.001, min_dice=0.9)
    breaches = {row.name: limit.breaches(row.parity) for row in found}
    assert fastest(found, breaches).name == "bf16"


def test_what_the_gate_would_often_refuse_does_not_win(monkeypatch, tiny):
    """Over all tiles it is within the tolerance, but one tile in eight is not, and the gate compares few."""
    measured(monkeypatch, fp32=1.0, int8=3.0)
    fake = module.measure

    def measure(*asked, **settings):
        fp32, int8 = fake(*asked, **settings)
        good, bad = (figures("int8", 3.0, flipped=flipped).tiles[0] for flipped in (0, 20))
        return [replace(fp32, tiles=8 * fp32.tiles), replace(int8, tiles=(bad, *7 * [good]))]

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "candidates", lambda material, _: [
        Variant(name, material.data, "onnxruntime", "fp32") for name in ("fp32", "int8")
    ])  # fmt: skip
    limit = Tolerance(max_flipped=0.004, min_dice=0.9)
    asked = tiny.data, resolved(tiny), pictures(6), limit
    assert optimize(*asked, rounds=2).best == "int8"
    found = optimize(*asked, rounds=2, gate_images=4)
    assert found.best == "fp32"
    assert "the gate of the job, which compares 4 images, would refuse it on" in found.breaches["int8"][0]


def test_fp32_stays_where_nothing_is_faster_by_five_percent():
    """Another engine for less than the noise of a measurement is no gain."""
    found = [figures("fp32", 1.0), figures("openvino fp32", 1.04)]
    assert fastest(found, {row.name: [] for row in found}).name == "fp32"


@pytest.mark.parametrize(
    ("peak_bytes", "memory_bytes", "threads"),
    [(1 << 30, 64 << 30, 1), (1 << 30, 8 << 30, 2), (1 << 30, 1 << 30, 8), (None, 8 << 30, 1), (1 << 30, None, 1)],
)
def test_sessions_get_more_threads_only_where_one_for_each_core_does_not_fit(peak_bytes, memory_bytes, threads):
    """Eight cores; sessions may take four fifths of the memory."""
    way = Variant("fp32", b"", "onnxruntime", "fp32")
    assert threads_for(profile(peak_bytes=peak_bytes), way, 8, memory_bytes) == threads


# The file --------------------------------------------------------------------------------------------------------


def test_the_file_of_the_winner_holds_all_that_a_job_needs(tiny, material, without_gpu, exact_int8, monkeypatch, cache):
    """Contract, recommendation, reference pictures and the fp32 network, and the ladder for this machine."""
    measured(monkeypatch, fp32=1.0, int8=2.5)
    found = optimize(tiny.data, material.model, material.tiles, ANYTHING, rounds=2)
    assert (found.best, found.recommendation.precision, found.recommendation.speed) == ("int8", "int8", 2.5)
    assert (found.calibration_tiles, found.held_out_tiles) == (4, 2)
    assert found.recommendation.ladder == {"1": 0.009}
    assert [text for text in found.left_out if "it does not run here" in text]
    file = read_model(found.data, "m.onnx", None)
    assert find_contract(file, None, "") == material.model.contract
    read_back = recommendation(file.metadata, "m.onnx")
    assert read_back is not None
    assert read_back.to_text() == found.recommendation.to_text()
    assert len(found.recommendation.references["pictures"]) == 6
    assert fp32_network(found.data) is not None
    assert list(cache.parent.rglob("*.json"))


def test_fp32_as_the_winner_keeps_its_graph(tiny, material, without_gpu, monkeypatch, cache):
    """Only the metadata is new."""
    measured(monkeypatch, fp32=1.0)
    found = optimize(tiny.data, material.model, material.tiles, ANYTHING, rounds=2)
    before, after = (graph.read(data, "it").graph for data in (tiny.data, found.data))
    assert before == after


def test_images_of_one_class_prove_nothing(tiny, material, without_gpu, monkeypatch):
    """Every engine agrees about an empty mask."""

    def measure(*_, **__):
        one = figures("fp32", 1.0)
        return [replace(one, tiles=(replace(one.parity, reference_px=(1000, 0)),))]

    monkeypatch.setattr(module, "measure", measure)
    with pytest.raises(ModelRefused, match="same label in every pixel of 2 held-out tiles"):
        optimize(tiny.data, material.model, material.tiles, ANYTHING)


def test_one_tile_cannot_calibrate_and_judge(tiny, material):
    with pytest.raises(JobError, match="1 tiles are too few"):
        optimize(tiny.data, material.model, material.tiles[:1], ANYTHING)


def test_the_table_fits_80_columns(tiny, material, without_gpu, monkeypatch, cache):
    """With the longest name and large figures."""
    measured(monkeypatch, fp32=1.0)
    found = optimize(tiny.data, material.model, material.tiles, ANYTHING, rounds=2)
    row = figures("cuda fp16 labels", 12.34, flipped=123)
    row = replace(row, peak_bytes=12_345_000_000, file_bytes=1_234_500_000, tiles_per_s=1234.5)
    wide = replace(found, figures=(*found.figures, row), breaches={**found.breaches, row.name: ("too many",)})
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", lambda: terminal.Console(file=out, width=200, markup=False))
    heading, *lines = rows(wide)
    terminal.print_table("title", heading, lines)
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "cuda fp16 labels" in out.getvalue()


# As one types it -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_makes_a_file_that_a_job_runs_without_further_keys(project, tiny, monkeypatch, tmp_path):
    """Everything is measured, nothing is a fake: the table, the file, and rows that say what ran."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (project.folder / "model.onnx").write_bytes(tiny.data)
    (project.folder / "model.yaml").write_text(tiny.contract_yaml)
    random = np.random.default_rng(0)
    for n in range(6):
        out = io.BytesIO()
        noise = np.where(random.random((SIDE, SIDE)) > 0.5, 255, 0).astype(np.uint8)
        _image(noise, out)
        project.put(f"2026/11/21/{n}.png", out.getvalue())
    loose = ("--set", "check.max_flipped=0.9", "--set", "check.min_dice=0.0", "--set", "session.batch_max=1")
    result = project.command("model", "optimize", "job.yaml", "--images", "6", "--rounds", "2", *loose)
    assert result.returncode == 0, result.stderr
    said = last_json(result)
    assert said["path"].endswith("model.optimized.onnx")
    assert "engine: auto" in result.stderr
    assert {row["name"] for row in said["candidates"]} >= {"fp32"}
    summary = project.run(
        f"model.path={project.folder}/model.optimized.onnx",
        "model.engine=auto",
        "check.max_flipped=0.9",
        "check.min_dice=0.0",
    )
    assert (summary.ok, summary.published) == (6, 1)
    assert {row["precision"] for row in project.rows("2026-11-21")} == {said["precision"]}


@pytest.mark.slow
def test_a_run_whose_gate_refuses_the_recommendation_scores_in_fp32(project, tiny, monkeypatch, tmp_path):
    """One warning, one exit code, and rows that say fp32."""
    from optimized_files import in_8_bits, recommending

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (project.folder / "model.onnx").write_bytes(recommending(in_8_bits(tiny), resolved(tiny), precision="int8"))
    (project.folder / "model.yaml").write_text(tiny.contract_yaml)
    project.fill("2026/11/21", 2)
    exact = ("--set", "model.engine=auto", "--set", "check.max_abs_error=0.000000001", "--executor", "local", "--quiet")
    result = project.command("run", "job.yaml", *exact)
    assert result.returncode == 0, result.stderr
    assert "because the gate refused what its file recommends" in result.stderr
    assert {row["precision"] for row in project.rows("2026-11-21")} == {"fp32"}
    strict = project.command("run", "job.yaml", *exact, "--set", "session.strict=true", "--rescore")
    assert (strict.returncode, "session.strict allows nothing else" in strict.stderr) == (2, True), strict.stderr


def test_an_ensemble_and_a_remote_model_are_told_what_to_do(project):
    """Before anything is measured."""
    from click.testing import CliRunner

    from unet_batch.cli.optimize import optimize as command

    for override, said in (
        ("model.ensemble={members: [other.onnx]}", "optimise each of its models with its own job"),
        ("model.path=s3://bucket/model.onnx", "is not on this machine: write --out FILE"),
    ):
        result = CliRunner().invoke(command, [str(project.folder / "job.yaml"), "--set", override])
        assert said in str(result.exception)


def _image(pixels, out) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(out, "PNG")
