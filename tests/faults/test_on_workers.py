"""The same strikes and the same weather where units go to workers: processes on this machine, Ray on it, a Ray cluster.

What a worker's or a driver's death costs, or a store that is slow, breaks off or lists late. What only Ray has is in
`test_on_ray.py`, what only processes have in `tests/job/test_process_executor.py`.
"""

from __future__ import annotations

import io
import os
import signal
from dataclasses import dataclass

import pytest
from faulty import Reader, digest
from PIL import Image
from small_cluster import CORES
from strikes import Strike

pytestmark = pytest.mark.slow

DAY, NAME = "2026/11/21", "2026-11-21"
IMAGES, UNIT = 24, 3
LIMITS = (f"limits.unit_images={UNIT}",)
AT_ONCE = 2
"""Units that one worker works on; there is a worker for each core."""
ON_RAY = {
    "ray": [pytest.mark.ray],
    "cluster": [pytest.mark.ray, pytest.mark.cluster],
}
IN_THE_MATRIX = pytest.mark.parametrize(
    "executor", ["processes", pytest.param("ray", marks=[*ON_RAY["ray"], pytest.mark.matrix])]
)
"""Ray only where the matrix runs: another test with the same kind of fault always runs on it."""


@dataclass(frozen=True)
class Workers:
    """What scores the units."""

    how: dict[str, object]
    """Executor, address and environment, for `Faulty.on_workers`."""
    cores: int


def on_all_workers(
    names: str, cases: dict[str, tuple[object, ...]], *, always: frozenset[str] = frozenset()
) -> pytest.MarkDecorator:
    """Every case, by its id, on every kind of worker. always: ids of those on Ray that run outside the matrix too."""
    found = []
    for executor in ("processes", *ON_RAY):
        for name, values in cases.items():
            marks = list(ON_RAY.get(executor, []))
            if executor in ON_RAY and f"{executor}-{name}" not in always:
                marks.append(pytest.mark.matrix)
            found.append(pytest.param(executor, *values, id=f"{executor}-{name}", marks=marks))
    assert always <= {param.id for param in found}
    return pytest.mark.parametrize(f"workers,{names}", found, indirect=["workers"])


@pytest.fixture
def workers(request: pytest.FixtureRequest) -> Workers:
    """Processes, an embedded Ray, or the cluster of three nodes."""
    if request.param != "cluster":
        return Workers({"executor": request.param}, len(os.sched_getaffinity(0)))
    cluster, environment = request.getfixturevalue("three_ray_nodes")
    return Workers({"address": cluster.head, "environment": environment}, CORES)


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param("ray", marks=ON_RAY["ray"]),
        pytest.param("cluster", marks=[*ON_RAY["cluster"], pytest.mark.matrix]),
    ],
    indirect=True,
)
def test_a_death_a_lost_device_and_a_silence_in_one_run_cost_no_image(faulty, workers):
    """On Ray, three workers in turn: killed inside a put, its device's context lost, in a batch that never ends.

    The matrix, and worker processes, meet each of them alone.
    """
    project = faulty.project
    project.fill(DAY, IMAGES)
    tokens = {act: project.folder / act for act in ("kill", "broken", "wait")}
    struck = [
        Strike("inside the put of a part", 1, "kill", str(tokens["kill"])),
        Strike("a batch", 2, "wait", str(tokens["wait"])),
        Strike("a batch", 2, "broken", str(tokens["broken"])),
    ]
    limits = (*LIMITS, "limits.unit_timeout_s=8")
    code, told = faulty.on_workers("worker", *struck, overrides=limits, **workers.how)
    assert code == 0
    assert [act for act, token in tokens.items() if not token.exists()] == []
    assert [told[k] for k in ("ok", "rejected", "remaining", "published")] == [IMAGES, 0, 0, 1]
    assert IMAGES <= faulty.decoded().total() <= IMAGES + len(struck) * 2 * AT_ONCE * UNIT
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@on_all_workers(
    "point,act",
    {
        "inside the put of a part": ("inside the put of a part", "kill"),
        "before a part": ("before a part", "kill"),
        "after a part": ("after a part", "kill"),
        "a device context lost": ("a batch", "broken"),
    },
)
def test_a_worker_that_dies_is_replaced_and_its_units_are_redone_in_the_same_run(faulty, workers, point, act):
    """Exit code 0: one process was struck, nothing is left open, and its units alone were decoded twice."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    token = project.folder / "struck"
    code, told = faulty.on_workers("worker", Strike(point, 2, act, str(token)), overrides=LIMITS, **workers.how)
    assert code == 0
    assert token.exists()
    assert [told[k] for k in ("ok", "rejected", "remaining", "published", "problems")] == [IMAGES, 0, 0, 1, []]
    assert IMAGES <= faulty.decoded().total() <= IMAGES + 2 * AT_ONCE * UNIT
    assert len(faulty.parts()) == IMAGES // UNIT
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@on_all_workers(
    "point,nth",
    {
        "three parts have arrived": ("a part has arrived", 3),
        "a part has arrived": ("a part has arrived", 1),
        "rows are chosen": ("rows are chosen", 1),
        "the file is written": ("the file is written", 1),
        "inside the put of the rows": ("inside the put of the rows", 1),
    },
    # An embedded Ray's driver dies below, before a rerun on Ray.
    always=frozenset({"cluster-three parts have arrived"}),
)
def test_a_driver_that_is_killed_is_followed_by_a_run_that_completes(faulty, workers, point, nth):
    """Another executor may go on: staged units are not decoded again, and the dead run's lease blocks no other run."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    project.run("tiling.overlap=0.5")
    old = digest(project.data(NAME))
    with Reader(project.data(NAME)) as reader:
        code, _ = faulty.on_workers("driver", Strike(point, nth), overrides=LIMITS, **workers.how)
        assert code == -signal.SIGKILL
        faulty.settled()
        assert reader.seen == {old}
        staged, before = len(faulty.parts()), faulty.decoded()
        again = faulty.rerun(*LIMITS)
    assert staged >= nth
    assert before.total() - staged * UNIT <= workers.cores * AT_ONCE * UNIT
    assert (again.planned, again.ok, again.published, again.exit_code) == (
        IMAGES - staged * UNIT, IMAGES - staged * UNIT, 1, 0
    )  # fmt: skip
    assert (faulty.decoded() - before).total() == IMAGES - staged * UNIT
    assert reader.seen <= {old, digest(project.data(NAME))}
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@on_all_workers(
    "point",
    {p: (p,) for p in ("after the put of the rows", "before the lease ends", "before the record ends")},
)
def test_a_driver_that_is_killed_after_it_published_leaves_nothing_to_do(faulty, workers, point):
    """The put was the commit, wherever the units were scored."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    code, _ = faulty.on_workers("driver", Strike(point), overrides=LIMITS, **workers.how)
    assert code == -signal.SIGKILL
    faulty.settled()
    new = digest(project.data(NAME))
    again = faulty.rerun(*LIMITS)
    assert (again.planned, again.published, again.exit_code, again.problems) == (0, 0, 0, [])
    assert digest(project.data(NAME)) == new != "absent"
    assert faulty.decoded().total() == IMAGES
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@pytest.mark.parametrize(
    ("executor", "weather"),
    [
        pytest.param("processes", {"slow": 0.3}, id="processes-slow"),
        pytest.param("processes", {"flaky": "2026"}, id="processes-reset once for each object"),
        pytest.param("ray", {"slow": 0.3}, id="ray-slow", marks=[*ON_RAY["ray"], pytest.mark.matrix]),
        pytest.param("ray", {"flaky": "2026"}, id="ray-reset once for each object", marks=ON_RAY["ray"]),
    ],
)
def test_a_store_that_is_slow_or_breaks_off_costs_time_and_nothing_else(faulty, executor, weather):
    """In the driver and in every worker: each image is decoded once, and nothing is reported."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    code, told = faulty.on_workers("driver and worker", **weather, overrides=LIMITS, executor=executor)
    assert code == 0
    assert [told[k] for k in ("ok", "rejected", "remaining", "published", "problems")] == [IMAGES, 0, 0, 1, []]
    assert set(faulty.decoded().values()) == {1}
    assert len(faulty.parts()) == IMAGES // UNIT
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@pytest.mark.parametrize("executor", ["processes", pytest.param("ray", marks=ON_RAY["ray"])])
def test_parts_that_no_listing_shows_are_redone_and_count_once(faulty, executor):
    """After a driver's death, with a listing that lags: parts are met again by name, none is rewritten."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    faulty.on_workers("driver", Strike("a part has arrived", 3), overrides=LIMITS, executor=executor)
    faulty.settled()
    written = faulty.parts()
    assert len(written) >= 3
    code, told = faulty.on_workers("driver", blind="/_work/parts/", overrides=LIMITS, executor=executor)
    assert (code, told["planned"], told["ok"], told["problems"]) == (0, IMAGES, IMAGES, [])
    assert {path: at for path, at in faulty.parts().items() if path in written} == written
    assert len(faulty.parts()) == IMAGES // UNIT
    assert [row["uri"][-7:] for row in project.rows(NAME)] == [f"{i:03}.png" for i in range(IMAGES)]
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@IN_THE_MATRIX
def test_rows_and_images_that_a_listing_shows_late_are_scored_once(faulty, executor):
    """An image that the listing hides is added by the next run, which finds the published rows by their name."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    code, told = faulty.on_workers("driver", blind="/004.png", overrides=LIMITS, executor=executor)
    assert (code, told["ok"], len(project.rows(NAME))) == (0, IMAGES - 1, IMAGES - 1)
    for part in faulty.parts():
        part.unlink()
    code, told = faulty.on_workers("driver", blind="/predictions/", overrides=LIMITS, executor=executor)
    assert (code, told["planned"], told["ok"], told["published"]) == (0, 1, 1, 1)
    assert set(faulty.decoded().values()) == {1}
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []


@IN_THE_MATRIX
def test_a_process_that_stands_still_is_ended_and_its_unit_is_scored_elsewhere(faulty, executor):
    """A batch that never comes back, once: the limit ends the process, and no image is blamed."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    token = project.folder / "struck"
    limits = (*LIMITS, "limits.unit_timeout_s=4")
    code, told = faulty.on_workers(
        "worker", Strike("a batch", 2, "wait", str(token)), overrides=limits, executor=executor
    )
    assert token.exists()
    assert [code] + [told[k] for k in ("ok", "rejected", "remaining", "published")] == [0, IMAGES, 0, 0, 1]
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@IN_THE_MATRIX
def test_an_image_of_very_many_tiles_outlives_the_limit(faulty, executor):
    """Each batch is progress: 60,000 tiles take longer than the limit, and get their row."""
    project = faulty.project
    wide = io.BytesIO()
    Image.new("L", (10_000, 1_500), 255).save(wide, "PNG")
    project.put(f"{DAY}/wide.png", wide.getvalue())
    project.fill(DAY, 2)
    code, told = faulty.on_workers(
        "driver", overrides=("limits.unit_timeout_s=1.5", "limits.unit_images=1"), executor=executor
    )
    assert [code] + [told[k] for k in ("ok", "rejected", "remaining", "published")] == [0, 3, 0, 0, 1]
    assert told["stage_s"]["session_s"] + told["stage_s"]["encode_s"] > 1.5
    assert project.verify() == []
