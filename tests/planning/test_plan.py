"""Planning: every open source in exactly one unit, and a placement that fits the cluster at once."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.contract import Contract
from unet_batch.errors import JobError
from unet_batch.model.model import Model
from unet_batch.planning.plan import halves, place, plan_partition, units, wants
from unet_batch.records import Source, Unit, gc_paused, inventory_digest
from unet_batch.spec import InputSpec, JobSpec, LimitsSpec, ModelSpec, OutputSpec, ResourcesSpec
from unet_batch.table.publish import Commit, Published, generation

MODEL = Model(
    sha256="ab" * 32,
    contract=Contract(),
    input_name="image",
    output_name="logits",
    tile_hw=(256, 256),
    batch=None,
    output_layout="nchw",
)


def job(**limits: object) -> JobSpec:
    return JobSpec(
        name="test",
        model=ModelSpec(path="model.onnx"),
        input=InputSpec(uri="s3://archive"),
        output=OutputSpec(uri="s3://output"),
        limits=LimitsSpec(**limits),
    )


def sources(count: int, *, shard: str | None = None, size_bytes: int = 1000) -> list[Source]:
    if shard is None:
        return [Source(f"s3://archive/{i:05}.png", f"etag:{i}", size_bytes=size_bytes) for i in range(count)]
    return [Source(shard, "etag:1", f"{i:05}.png", size_bytes=size_bytes) for i in range(count)]


def planned(found: list[Source], done: frozenset[tuple[str, str]] = frozenset()):
    return plan_partition("all", found, fingerprint="f" * 64, published=None, done=done, parts=())


def published(found: list[Source], mark: str) -> Published:
    digest = inventory_digest(found)
    return Published(
        "etag:x", Commit(generation(mark, digest), "all", mark, "m", digest, "run", len(found), len(found), 0, "")
    )


@given(
    loose=st.integers(0, 300),
    members=st.integers(0, 120),
    size_bytes=st.integers(0, 20 << 20),
    workers=st.integers(1, 64),
    cap=st.one_of(st.none(), st.integers(1, 50)),
)
def test_every_open_source_is_in_exactly_one_unit(loose, members, size_bytes, workers, cap):
    """Units partition the open sources, for any sizes and any number of workers."""
    found = sources(loose, size_bytes=size_bytes) + sources(members, shard="s3://a.tar", size_bytes=size_bytes)
    made = units(planned(found), job(unit_images=cap), "f" * 64, workers=workers)
    assert sorted(s.key for u in made for s in u.sources) == sorted(s.key for s in found)
    assert len({u.unit_id for u in made}) == len(made)


@given(count=st.integers(1, 200), workers=st.integers(1, 8))
def test_a_unit_never_mixes_two_shards(count, workers):
    """A tar member and a loose file are never read by the same unit."""
    found = sources(count) + sources(count, shard="s3://a.tar") + sources(count, shard="s3://b.tar")
    for unit in units(planned(found), job(), "f" * 64, workers=workers):
        assert len({(s.uri if s.member else "") for s in unit.sources}) == 1


def test_units_shrink_towards_the_end():
    """The last units are small, so that no worker is alone for long."""
    sizes = [len(u.sources) for u in units(planned(sources(1000)), job(), "f" * 64, workers=2)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 64
    assert sizes[-1] <= 4


def test_a_unit_holds_few_images_when_they_are_large():
    """Encoded bytes bound a unit, because decoded sizes are not known yet."""
    assert all(len(u.sources) == 1 for u in units(planned(sources(20, size_bytes=9 << 20)), job(), "f" * 64, workers=1))


def test_a_unit_is_named_by_its_content():
    """Order does not change the name; a version, a key or the fingerprint does."""
    found = sources(3)
    name = units(planned(found), job(), "f" * 64, workers=1)[0].unit_id
    assert units(planned(found[::-1]), job(), "f" * 64, workers=1)[0].unit_id == name
    assert units(planned(found), job(), "0" * 64, workers=1)[0].unit_id != name
    changed = [*found[:2], Source(found[2].uri, "etag:new", size_bytes=1000)]
    assert units(planned(changed), job(), "f" * 64, workers=1)[0].unit_id != name


def test_a_source_with_a_row_of_its_version_is_not_open():
    """Work is skipped by key and version: a changed image is scored again."""
    found = sources(4)
    plan = planned(found, frozenset({(found[0].key, found[0].version), (found[1].key, "etag:old")}))
    assert [s.key for s in plan.open] == [s.key for s in found[1:]]
    assert plan.state == "partial"


def test_halving_ends_in_single_isolated_images():
    """A lost unit is halved until every image was alone."""
    [unit] = units(planned(sources(4)), job(unit_images=4), "f" * 64, workers=1)
    quarters = [q for half in halves(unit, "f" * 64) for q in halves(half, "f" * 64)]
    assert [len(q.sources) for q in quarters] == [1, 1, 1, 1]
    assert all(q.isolate for q in quarters)


def test_the_same_inventory_under_the_same_fingerprint_is_up_to_date():
    """Equal generations mean equal rows, so nothing is open."""
    found = sources(3)
    plan = plan_partition(
        "all", found, fingerprint="f" * 64, published=published(found, "f" * 64), done=frozenset(), parts=()
    )
    assert plan.state == "published"
    assert plan.open == ()


@pytest.mark.parametrize("mark", ["f" * 64, "0" * 64])
def test_another_inventory_or_fingerprint_is_stale(mark):
    """A late image or a new model makes a published partition stale, which `missing` leaves alone and `all` takes."""
    found = sources(3)
    was = found[:2] if mark == "f" * 64 else found
    plan = plan_partition(
        "all", found, fingerprint="f" * 64, published=published(was, mark), done=frozenset(), parts=()
    )
    assert plan.state == "stale"
    assert [wants(select, plan) for select in ("missing", "failed", "changed", "due", "all")] == [
        False,
        False,
        True,
        True,
        True,
    ]


@given(cpus=st.integers(1, 256), threads=st.integers(1, 256))
def test_sessions_of_several_threads_share_the_cores(cpus, threads):
    """As many sessions as cores divided by threads, each with that many cores; never more threads than cores."""
    if threads > cpus:
        with pytest.raises(JobError, match=f"session.threads is {threads}, but there are {cpus} cores"):
            place(cpus, 0, ResourcesSpec(), providers=["cpu"], gpu_share=1.0, threads=threads)
        return
    where = place(cpus, 0, ResourcesSpec(), providers=["cpu"], gpu_share=1.0, threads=threads)
    assert (where.infer_actors, where.threads, where.infer_cpus) == (cpus // threads, threads, threads)


@given(
    cpus=st.integers(1, 256),
    infer=st.one_of(st.none(), st.integers(1, 64)),
    load=st.one_of(st.none(), st.integers(1, 64)),
)
def test_all_actors_fit_a_cpu_cluster_at_once(cpus, infer, load):
    """Nothing waits for a CPU that another actor holds: the sum of all requests is at most what there is."""
    where = place(cpus, 0, ResourcesSpec(infer_actors=infer, load_actors=load), providers=["cpu"], gpu_share=1.0)
    assert where.infer_actors * where.infer_cpus + where.load_actors * where.load_cpus <= cpus + 1e-6
    assert where.infer_actors * where.threads <= max(cpus, where.infer_actors)


def test_on_cpus_every_core_loads_and_scores_its_own_units():
    """Pixels need no way through the object store to the core that decoded them; a job file may ask for both kinds."""
    alone = place(4, 0, ResourcesSpec(), providers=["cpu"], gpu_share=1.0)
    assert (alone.load_actors, alone.infer_actors, alone.infer_cpus, alone.threads) == (0, 4, 1.0, 1)
    both = place(4, 0, ResourcesSpec(load_actors=4), providers=["cpu"], gpu_share=1.0)
    assert (both.load_actors, both.infer_actors, both.infer_cpus) == (4, 4, 0.5)


@given(cpus=st.integers(2, 256), gpus=st.integers(1, 8), share=st.sampled_from([0.25, 0.5, 1.0]))
def test_all_actors_fit_a_gpu_cluster_at_once(cpus, gpus, share):
    """A session actor per GPU share, Load on the rest, and never more than there is."""
    where = place(cpus, gpus, ResourcesSpec(), providers=["cuda"], gpu_share=share)
    assert where.infer_actors * where.infer_gpus <= gpus
    assert where.infer_actors * where.infer_cpus + where.load_actors * where.load_cpus <= cpus + 1e-9


@pytest.mark.parametrize(
    ("gpus", "share", "actors"),
    [(3, 0.6, 3), (1, 0.6, 1), (1, 0.1, 10), (3, 0.3, 9), (1, 0.3, 3), (2, 0.35, 4), (8, 1.0, 8), (1, 0.0001, 10_000),
     (0.5, 0.25, 2), (4, 0.51, 4), (1, 1 / 3, 3), (7, 0.7, 7)],
)  # fmt: skip
def test_no_session_actor_is_split_over_two_gpus(gpus, share, actors):
    """Three GPUs hold three actors of 0.6 and not five, and 0.1 goes ten times into one, in spite of rounding."""
    assert place(64, gpus, ResourcesSpec(), providers=["cuda"], gpu_share=share).infer_actors == actors


@given(gpus=st.integers(1, 16), grains=st.integers(1, 10_000))
def test_ray_can_place_every_session_actor_on_a_gpu(gpus, grains):
    """By Ray's own count: whole ten-thousandths, each actor on one GPU, and not one actor more would fit."""
    fit = place(64, gpus, ResourcesSpec(), providers=["cuda"], gpu_share=grains / 10_000).infer_actors
    per_gpu = -(-fit // gpus)
    assert per_gpu * grains <= 10_000 < (per_gpu + 1) * grains
    assert fit == gpus * per_gpu


def test_more_session_actors_than_gpus_hold_are_refused():
    """They would wait for a GPU without an end."""
    with pytest.raises(JobError, match=r"3 GPU\(s\) hold 3 actor\(s\) of session.gpu_share: 0.6"):
        place(16, 3, ResourcesSpec(infer_actors=5), providers=["cuda"], gpu_share=0.6)


@pytest.mark.parametrize(
    ("cpus", "gpus", "scoring", "load"),
    [
        (2, 1, 1.0, 1),
        (4, 1, 1.0, 3),
        (8, 1, 2.0, 5),
        (16, 1, 4.0, 11),
        (64, 1, 4.0, 59),
        (64, 8, 2.0, 47),
        (8, 8, 0.5, 4),
    ],
)
def test_beside_a_gpu_a_quarter_of_the_cores_scores_and_the_others_decode(cpus, gpus, scoring, load):
    """A session actor with at most four cores, as many threads and one more, which waits for the GPU."""
    where = place(cpus, gpus, ResourcesSpec(), providers=["cuda"], gpu_share=1.0)
    assert (where.infer_actors, where.infer_gpus, where.infer_cpus, where.load_actors) == (gpus, 1.0, scoring, load)
    assert where.units_at_once == max(2, int(scoring) + 1)


def test_cuda_without_a_gpu_is_refused_with_a_sentence():
    """No silent fallback: the sentence says what to do."""
    with pytest.raises(JobError, match="add a GPU node"):
        place(16, 0, ResourcesSpec(), providers=["cuda"], gpu_share=1.0)


def test_without_a_gpu_a_job_that_allows_the_cpu_is_placed_on_cpus():
    """[cuda, cpu] is permission, given in the job file."""
    where = place(4, 0, ResourcesSpec(), providers=["cuda", "cpu"], gpu_share=1.0)
    assert (where.infer_actors, where.infer_gpus) == (4, 0.0)


def test_the_collector_rests_only_while_records_are_made():
    """Also if one survey calls another, if it fails, and if the collector was off before."""
    with gc_paused(), gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="a fault"), gc_paused():
        raise ValueError("a fault")
    assert gc.isenabled()
    gc.disable()
    try:
        with gc_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_text_of_a_unit_holds_every_field_and_comes_back():
    """Of the unit and of its sources, whatever fields they get: byte by byte as from `asdict`."""
    problem = ("shard.truncated", "it ends early")
    sources = (
        Source("s3://b/ü.tar", "etag:1", "a#b", 2, 7, 512, None, "0" * 64),
        Source("s3://b/2.jpg", "v", problem=problem),
    )
    unit = Unit("u", "date=2026-11-21", "webdataset", sources, isolate=True, settle=True, confirms=True)
    assert unit.to_json() == json.dumps(asdict(unit), separators=(",", ":")).encode()
    assert Unit.from_json(unit.to_json()) == unit
