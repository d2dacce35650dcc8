"""Mirroring as test-time augmentation: a session that averages flips, in its batches, in the gate and in whole jobs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from contracts.session_suite import FakeSession, SessionSuite, tiles_of
from models import TinyModel, threshold_model
from onnx import TensorProto, helper, numpy_helper
from project_fixture import last_json

from unet_batch.contract import Contract, ModelOutput
from unet_batch.errors import ContractError, JobError, ModelRefused, OutOfMemory
from unet_batch.gate.gate import SessionUnderTest, compare
from unet_batch.imaging.tiling import Box
from unet_batch.model.contract import resolve
from unet_batch.records import Source
from unet_batch.session.batching import Batcher, Tile
from unet_batch.session.combined.ensemble import combined_model, probabilities
from unet_batch.session.combined.mirroring import FLIPS, Mirrored, check_mirroring, scoring_session
from unet_batch.session.ladder import LadderMemory
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import EnsembleSpec, InputSpec, JobSpec, ModelSpec, OutputSpec, SessionSpec, TilingSpec

KERNEL = np.random.default_rng(7).normal(size=(2, 3, 3, 3)).astype(np.float32)
"""(K, C, 3, 3) of a convolution: no flip of a picture gives the flip of its result."""


def lopsided_model(batch: int | None = None, kernel: np.ndarray = KERNEL) -> TinyModel:
    """One padded 3 x 3 convolution whose kernel has no symmetry."""
    sides = ["N" if batch is None else batch, 3, "H", "W"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel"], ["mask"], pads=[1, 1, 1, 1])],
        "lopsided",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [sides[0], 2, "H", "W"])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return TinyModel(model.SerializeToString(), Contract())


def opened(tiny: TinyModel, engine: str = "onnxruntime") -> Session:
    model = resolve(tiny.contract, read_model(tiny.data, "tiny.onnx", None), TilingSpec())
    return open_session(tiny.data, model, SessionSpec(), Device(threads=1), engine=engine)


def job(tta: str, *, combine: str | None = None, batch_max: int = 64) -> JobSpec:
    members = None if combine is None else EnsembleSpec(members=("other.onnx",), combine=combine)
    return JobSpec(
        name="test",
        model=ModelSpec(path="model.onnx", ensemble=members),
        input=InputSpec(uri="archive"),
        output=OutputSpec(uri="out"),
        session=SessionSpec(batch_max=batch_max),
        tta=tta,
    )


def by_torch(tiles: np.ndarray, kernel: np.ndarray, axes: list[tuple[int, ...]]) -> np.ndarray:
    """The mean of the convolution's results over flips, with PyTorch. axes: of (N, C, H, W), for each pass."""
    torch = pytest.importorskip("torch")
    pixels, weights = torch.from_numpy(tiles.transpose(0, 3, 1, 2).copy()), torch.from_numpy(kernel)
    results = [
        torch.flip(torch.nn.functional.conv2d(torch.flip(pixels, flip), weights, padding=1), flip) for flip in axes
    ]
    return torch.stack(results).mean(dim=0).numpy()


AXES = {
    "mirror": [(), (2,), (3,), (2, 3)],
    "mirror_vertical": [(), (2,)],
    "mirror_horizontal": [(), (3,)],
}


class TestMirrored(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return Mirrored(opened(threshold_model()), "mirror", 64)


@pytest.mark.oracle
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("tta", AXES)
def test_the_result_is_the_mean_of_the_flips_that_pytorch_computes(tta: str, engine: str) -> None:
    """Horizontal is left and right; on tiles that are not square, and with every engine."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    tiles = np.random.default_rng(1).random((3, 8, 12, 3), np.float32)
    found = Mirrored(opened(lopsided_model(), engine), tta, 64).run(tiles)
    np.testing.assert_allclose(found, by_torch(tiles, KERNEL, AXES[tta]), atol=1e-5)


def test_all_flips_of_a_batch_are_one_batch_of_the_model() -> None:
    """Flips are one more dimension of the batch."""
    inner = FakeSession()
    Mirrored(inner, "mirror", 64).run(tiles_of(1, 2))
    assert inner.sizes == [8]


def test_flips_are_split_where_the_job_limits_the_batch() -> None:
    """session.batch_max counts flipped tiles too; a batch of the caller is never split."""
    sizes = []
    for batch_max in (4, 1):
        inner = FakeSession()
        Mirrored(inner, "mirror", batch_max).run(tiles_of(1, 2))
        sizes.append(inner.sizes)
    assert sizes == [[4, 4], [2, 2, 2, 2]]


def test_a_fixed_batch_axis_gets_one_pass_at_a_time() -> None:
    """The file takes exactly its number of tiles."""
    session, fixed = opened(lopsided_model()), opened(lopsided_model(batch=2))
    tiles = tiles_of(1, 2)
    np.testing.assert_allclose(
        Mirrored(fixed, "mirror", 64).run(tiles), Mirrored(session, "mirror", 64).run(tiles), atol=1e-6
    )


def test_a_tile_whose_flips_do_not_fit_together_is_scored_in_smaller_batches() -> None:
    """Four flips of a tile may need more memory than there is; one at a time is slower and gives the same."""
    inner = FakeSession(memory_tiles=1)
    found = Mirrored(inner, "mirror", 64).run(tiles_of(1, 1))
    np.testing.assert_allclose(found, FakeSession().run(tiles_of(1, 1)), atol=1e-6)
    assert inner.sizes == [4, 2, 1, 1, 1, 1]


def test_several_tiles_that_do_not_fit_are_left_to_the_ladder() -> None:
    """It takes smaller batches, and remembers the limit."""
    with pytest.raises(OutOfMemory):
        Mirrored(FakeSession(memory_tiles=4), "mirror", 64).run(tiles_of(1, 2))


def test_a_tile_that_does_not_fit_alone_is_out_of_memory() -> None:
    """Nothing smaller is left."""
    with pytest.raises(OutOfMemory):
        Mirrored(FakeSession(memory_tiles=0), "mirror", 64).run(tiles_of(1, 1))


def test_the_ladder_counts_flipped_tiles(tmp_path) -> None:
    """No batch of the model is larger than batch_max, and the measurements are not those of a job without flips."""
    inner = FakeSession()
    session = Mirrored(inner, "mirror", 16)
    memory = LadderMemory("fp32", folder=tmp_path)
    batcher = Batcher(session, batch_max=16, passes=4, memory=memory)
    list(batcher.run(Tile(0, Box(0, 0, 8, 8), tile) for tile in tiles_of(1, 100)))
    assert max(inner.sizes) == 16
    plain = FakeSession()
    list(Batcher(plain, batch_max=16, memory=memory).run([Tile(0, Box(0, 0, 8, 8), tiles_of(1, 1)[0])]))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.oracle
def test_each_member_averages_its_logits_before_the_ensemble_combines_probabilities() -> None:
    """The mean is one of logits, although the ensemble's is one of probabilities."""
    other = -KERNEL[:, :, ::-1]
    tinies = [lopsided_model(), lopsided_model(kernel=np.ascontiguousarray(other))]
    parts = [opened(tiny) for tiny in tinies]
    model = combined_model([part.model for part in parts], "probabilities")
    tiles = tiles_of(1, 2)
    found = scoring_session(parts, model, job("mirror", combine="probabilities")).run(tiles)
    shares = [
        probabilities(by_torch(tiles, np.ascontiguousarray(kernel), AXES["mirror"]), parts[0].model.contract.output)
        for kernel in (KERNEL, other)
    ]
    np.testing.assert_allclose(found, np.mean(shares, axis=0), atol=1e-5)


def test_a_job_without_flips_gets_its_session_as_it_is() -> None:
    """No wrapper, so no bit of existing results changes."""
    inner = FakeSession()
    assert scoring_session([inner], inner.model, job("none")) is inner


# Whole jobs ---------------------------------------------------------------------------------------------------------


def lopsided(project) -> None:
    """The project with a model that sees the pixel to the left: bright where that one is bright."""
    kernel = np.zeros((2, 1, 3, 3), np.float32)
    kernel[1, 0, 1, 0], kernel[0, 0, 1, 1] = 1.0, 0.4
    tiny = lopsided_model(kernel=np.repeat(kernel, 3, axis=1) / 3)
    (project.folder / "model.onnx").write_bytes(tiny.data)
    (project.folder / "model.yaml").write_text(tiny.contract_yaml)


def areas(project, day: str) -> list[int]:
    return [row["classes"][0]["area_px"] for row in project.rows(day)]


def test_a_job_scores_mirrored_tiles(project) -> None:
    """The class needs a bright neighbour to the left; with flips it is the mean of both neighbours."""
    lopsided(project)
    for name in ("a", "b"):
        project.put(f"2026/11/21/{name}.png", level=0)
    project.run()
    plain = areas(project, "2026-11-21")
    project.run("tta=mirror_horizontal")
    assert plain == [8 * 31, 8 * 31]
    assert areas(project, "2026-11-21") == [8 * 32, 8 * 32]


def test_tta_makes_another_fingerprint(project) -> None:
    """Published days are scored again; `none` is what jobs without the key do."""
    prints = {tta: project.prepared(f"tta={tta}").fingerprint for tta in FLIPS}
    assert len(set(prints.values())) == len(FLIPS)
    assert prints["none"] == project.prepared().fingerprint


@pytest.mark.parametrize("activation", ["labels", "masks"])
def test_a_model_that_returns_decisions_is_refused(activation: str) -> None:
    """There are no scores to average, and the error says what to do."""
    model = FakeSession().model
    contract = Contract(output=ModelOutput(activation=activation))
    with pytest.raises(ContractError, match=f"tta: mirror averages scores, and model.onnx returns {activation}: leave"):
        check_mirroring(job("mirror"), [replace(model, contract=contract)])


def test_prepare_refuses_a_model_that_returns_labels(project) -> None:
    """Before the archive is read."""
    tiny = threshold_model("nchw", 1, 2, size=32, activation="labels")
    (project.folder / "model.onnx").write_bytes(tiny.data)
    (project.folder / "model.yaml").write_text(tiny.contract_yaml)
    with pytest.raises(ContractError, match="tta: mirror averages scores"):
        project.prepared("tta=mirror")


def test_an_unknown_flip_is_refused_with_the_choices(project) -> None:
    """The words are those of the reference."""
    with pytest.raises(JobError, match="mirror_horizontal"):
        project.prepared("tta=flip")


def test_plan_tells_the_cost(project) -> None:
    """Passes of each model for each tile, as a sentence and as a number."""
    project.fill("2026/11/21", 1)
    result = project.command("plan", "job.yaml", "--window", "all", "--set", "tta=mirror")
    assert "each tile is scored 4 times: 4 passes (tta: mirror) of the model" in result.stderr
    assert last_json(result)["runs_per_tile"] == 4


def test_the_gate_compares_averages_of_flips(project, tmp_path, monkeypatch) -> None:
    """Both sessions are mirrored: a session without flips would not agree with the trusted one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny = lopsided_model()
    path = project.folder / "model.onnx"
    path.write_bytes(tiny.data)
    (project.folder / "model.yaml").write_text(tiny.contract_yaml)
    wanted = project.prepared("tta=mirror", "model.engine=openvino", "check.max_abs_error=0.001").job
    part = opened(tiny)
    files = ((tiny.data, part.model),)
    sources = [Source("a.png", "v1", "a.png", 0)]
    tiles = [("a.png", tiles_of(1, 1, side=16)[0])]
    mirrored = scoring_session([part], part.model, wanted)
    with pytest.raises(ModelRefused, match="does not agree"):
        compare(wanted, SessionUnderTest(part, files, (part,)), sources, tiles, "run")
    compare(wanted, SessionUnderTest(mirrored, files, (part,)), sources, tiles, "run")
