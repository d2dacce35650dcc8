"""What tuning measures is what a job's ladder begins with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from models import unet_model

from unet_batch.errors import JobError, OutOfMemory, ProviderMissing
from unet_batch.model.contract import resolve
from unet_batch.session.batching import Batcher
from unet_batch.session.combined.mirroring import Mirrored
from unet_batch.session.ladder import Ladder, LadderKey, LadderMemory
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import SessionSpec, TilingSpec
from unet_batch.workbench import tune as module
from unet_batch.workbench.doctor import Machine
from unet_batch.workbench.tune import Point, Profile, model_to_tune, remember, tune
from unet_batch.workbench.variants import interleaved

SIDE = 16


@pytest.fixture(scope="module")
def tiny():
    return unet_model(SIDE, base=2, levels=1)


@pytest.fixture(scope="module")
def model(tiny):
    return resolve(tiny.contract, read_model(tiny.data, "the model", None), TilingSpec())


@pytest.fixture(scope="module")
def profile(tiny, model):
    return tune(tiny.data, model, SessionSpec(), engines=["onnxruntime"], threads=[1, 2], rounds=2, memory=False)


def point(batch: int, tiles_per_s: float, threads: int = 1) -> Point:
    return Point("onnxruntime", "cpu", threads, batch, batch / tiles_per_s, batch / tiles_per_s, None)


def made(*points: Point, limits=()) -> Profile:
    return Profile("ab" * 32, "a processor", "fp32", (SIDE, SIDE), points, limits, ())


def test_every_size_of_a_jobs_ladder_is_measured(profile):
    """On a CPU 1, 2, 4, 8, for each number of threads."""
    assert [(p.threads, p.batch) for p in profile.points] == [(t, b) for t in (1, 2) for b in (1, 2, 4, 8)]
    assert all(0 < p.fastest_s <= p.seconds for p in profile.points)


def test_the_knee_is_the_smallest_size_within_five_percent_of_the_top():
    """96 of 100 is near enough, 94 is not."""
    profile = made(point(1, 50), point(2, 94), point(4, 96), point(8, 100))
    assert profile.knee("onnxruntime", 1).batch == 4


def test_a_remembered_ladder_does_not_climb(tiny, model, profile, tmp_path):
    """The job's own Batcher, on the same model and machine, finds its ladder settled before the first tile."""
    memory = LadderMemory("fp32", folder=tmp_path)
    assert remember(profile, memory) == 1
    session = open_session(tiny.data, model, SessionSpec(), Device(1))
    key = LadderKey(model.sha256, session.device_name, session.provider, "fp32", SIDE, SIDE)
    found = memory.recall(key)
    assert found is not None
    assert Ladder((1, 2, 4, 8), found).settled
    assert not Ladder((1, 2, 4, 8)).settled
    batcher = Batcher(session, batch_max=8, memory=memory)
    assert batcher._key(memory, (SIDE, SIDE)) == key


def test_a_job_that_mirrors_is_timed_with_its_passes(tiny, model, tmp_path):
    """Four passes of each tile; the job's own Batcher finds the curve, and one without mirroring does not."""
    (tmp_path / "cells.onnx").write_bytes(tiny.data)
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(tiny.contract.model_dump(mode="json")))
    uris = {"input": {"uri": f"{tmp_path}/pictures"}, "output": {"uri": f"{tmp_path}/out"}}
    job = {"name": "cells", "model": {"path": f"{tmp_path}/cells.onnx"}, "tta": "mirror", **uris}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    asked = model_to_tune(f"{tmp_path}/job.yaml", None)
    assert asked.tta == "mirror"
    spec = SessionSpec()
    found = tune(
        asked.data, asked.model, spec, engines=["onnxruntime"], threads=[1], rounds=1, memory=False, tta=asked.tta
    )
    assert (found.passes, [p.batch for p in found.points]) == (4, [1, 2])  # 8 tiles at once on a CPU, flips included
    memory = LadderMemory("fp32", folder=tmp_path / "ladders")
    remember(found, memory)
    session = Mirrored(open_session(tiny.data, asked.model, spec, Device(1)), "mirror", 8)
    key = Batcher(session, batch_max=8, passes=4, memory=memory)._key(memory, (SIDE, SIDE))
    assert memory.recall(key) is not None
    assert memory.recall(replace(key, passes=1)) is None


def test_the_time_of_a_batch_is_that_of_all_its_passes(tiny, model, monkeypatch):
    """Each turn runs four times as many tiles."""
    ran = []

    class Counted:
        def __init__(self, session):
            self._session, self.model = session, session.model
            self.provider, self.device_name = session.provider, session.device_name

        def run(self, tiles):
            ran.append(len(tiles))
            return self._session.run(tiles)

    monkeypatch.setattr(module, "open_session", lambda *a, **k: Counted(open_session(*a, **k)))
    spec = SessionSpec(batch_max=2)
    tune(tiny.data, model, spec, engines=["onnxruntime"], threads=[1], rounds=1, memory=False, tta="mirror")
    assert set(ran) == {2}  # one tile: two batches of two flips each
    assert len(ran) % 2 == 0


def test_an_ensemble_is_refused(tmp_path):
    """Its members have ladders of no file."""
    (tmp_path / "job.yaml").write_text(
        "name: two\nmodel: {path: a.onnx, ensemble: {members: [b.onnx]}}\ninput: {uri: pics}\noutput: {uri: out}\n"
    )
    with pytest.raises(JobError, match="scores an ensemble"):
        model_to_tune(str(tmp_path / "job.yaml"), None)


def test_a_limit_of_memory_is_remembered(tmp_path):
    """The ladder never tries what did not fit."""
    memory = LadderMemory("fp32", folder=tmp_path)
    remember(made(point(1, 10), point(2, 20), limits=(("onnxruntime", 1, 2),)), memory)
    found = memory.recall(LadderKey("ab" * 32, "a processor", "cpu", "fp32", SIDE, SIDE))
    assert found is not None
    assert Ladder((1, 2, 4, 8), found).allowed == (1, 2)


def test_ladders_of_another_precision_are_not_mixed(profile, tmp_path):
    """int8 does not begin with fp32's seconds."""
    with pytest.raises(JobError, match="int8 cannot use measurements in fp32"):
        remember(profile, LadderMemory("int8", folder=tmp_path))


def test_a_batch_that_does_not_fit_ends_its_curve(tiny, model, monkeypatch):
    """The smaller ones stay, and the largest of them is the limit."""

    class Small:
        def __init__(self, session):
            self._session, self.provider, self.device_name = session, session.provider, session.device_name

        def run(self, tiles):
            if len(tiles) > 2:
                raise OutOfMemory("too many")
            return self._session.run(tiles)

    monkeypatch.setattr(module, "open_session", lambda *a, **k: Small(open_session(*a, **k)))
    found = tune(tiny.data, model, SessionSpec(), engines=["onnxruntime"], threads=[1], rounds=1, memory=False)
    assert [p.batch for p in found.points] == [1, 2]
    assert found.limits == (("onnxruntime", 1, 2),)


def test_a_batch_that_would_fill_the_memory_is_not_tried(tiny, model, monkeypatch):
    """Peaks of 4 and 6 GB at 1 and 2 foretell 10 GB at 4: more than half of a machine of 16."""
    monkeypatch.setattr(module, "machine", lambda: Machine("a processor", 1, 16 * 10**9, False, False))
    monkeypatch.setattr(module, "peak_bytes", lambda *a, shape_nhwc, **k: ((2 + 2 * shape_nhwc[0]) * 10**9, 10**8))
    found = tune(tiny.data, model, SessionSpec(), engines=["onnxruntime"], threads=[1], rounds=1)
    assert [p.batch for p in found.points] == [1, 2]
    assert "batches from 4 on: 1 sessions at once would need about 10 GB" in found.left_out[0]
    assert found.limits == ()  # a job's ladder, which has the machine to itself, may climb on


def test_a_slow_model_gets_fewer_rounds(tiny, model, monkeypatch):
    """Where one turn takes a tenth of the budget's seconds there is no time for fifty."""
    asked = []

    def watched(sessions, batch_nhwc, *, rounds, warm):
        asked.append(rounds)
        return interleaved(sessions, batch_nhwc, rounds=1, warm=warm)

    monkeypatch.setattr(module, "interleaved", watched)
    monkeypatch.setattr(module, "BUDGET_S", 0.0)
    spec = SessionSpec(batch_max=1)
    tune(tiny.data, model, spec, engines=["onnxruntime"], threads=[1], rounds=50, memory=False)
    assert asked == [2]


def test_the_size_of_tile_can_be_chosen_where_it_is_open(tiny, model):
    """A fixed size is kept, and one that is no multiple is refused."""
    made = unet_model(None, base=2, levels=1)
    free = resolve(made.contract, read_model(made.data, "the model", None), TilingSpec())
    spec = SessionSpec(batch_max=1)
    found = tune(made.data, free, spec, engines=["onnxruntime"], threads=[1], rounds=1, memory=False, tile_hw=(32, 64))
    assert found.tile_hw == (32, 64)
    with pytest.raises(JobError, match="fixes its tiles at 16x16"):
        tune(tiny.data, model, spec, tile_hw=(32, 32))
    with pytest.raises(JobError, match="is not a multiple of 2"):
        tune(made.data, free, spec, tile_hw=(33, 32))


def test_an_engine_that_is_missing_is_named(tiny, model, monkeypatch):
    """The others are measured; without any there is nothing to say."""

    def missing(*args, engine, **kwargs):
        if engine == "openvino":
            raise ProviderMissing("it is not installed")
        return open_session(*args, engine=engine, **kwargs)

    monkeypatch.setattr(module, "open_session", missing)
    found = tune(tiny.data, model, SessionSpec(batch_max=1), threads=[1], rounds=1, memory=False)
    assert found.left_out == ("openvino: it is not installed",)
    with pytest.raises(ProviderMissing, match="it is not installed"):
        tune(tiny.data, model, SessionSpec(), engines=["openvino"], threads=[1], rounds=1)


def test_an_engine_that_crashes_is_left_out(tiny, model, monkeypatch):
    """It is tried in a process of its own first, so that the command lives to tell."""
    monkeypatch.setattr(module, "crash_message", lambda *a, engine, **k: f"{engine} crashes")
    found = tune(tiny.data, model, SessionSpec(batch_max=1), threads=[1], rounds=1)
    assert found.left_out == ("openvino crashes",)
    assert {p.engine for p in found.points} == {"onnxruntime"}


def test_peak_memory_comes_from_a_process_of_its_own(tiny, model):
    """It holds an interpreter and an engine: tens of megabytes, not the gigabytes of who asks."""
    found = tune(tiny.data, model, SessionSpec(batch_max=1), engines=["onnxruntime"], threads=[1], rounds=1)
    assert 30e6 < found.points[0].peak_bytes < 2e9


def test_no_threads_are_refused(tiny, model):
    """Zero threads mean "all" to engines only."""
    with pytest.raises(JobError, match="must be 1 or more"):
        tune(tiny.data, model, SessionSpec(), threads=[0])


def test_the_table_marks_each_knee_and_json_names_it(profile):
    """One knee for each curve."""
    assert sum(row[-1] == "← knee" for row in profile.rows()) == 2
    assert len(json.loads(json.dumps(profile.to_json()))["knees"]) == 2
