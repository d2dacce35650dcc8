"""Faults on the wire between a job and servers that speak like Cloud Storage and Blob Storage; requests are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from project_fixture import Project, png
from unruly_proxy import UnrulyProxy, unruly

from unet_batch.errors import AlreadyExists, PutUnknown
from unet_batch.job.summary import Summary
from unet_batch.store.storage import Storage

DAY = "2026/11/21"
IMAGES, UNIT = 6, 2
FAULTS = ["503", "500", "slow", "reset", "cut"]
PUTS = {"gcs": "POST", "azure": "PUT"}


@dataclass
class Remote:
    """A project whose archive and output lie behind the proxy."""

    project: Project
    proxy: UnrulyProxy
    top: str
    put: str
    """The method of a put."""
    direct: Storage
    behind: Storage
    overrides: tuple[str, ...]

    def run(self) -> Summary:
        self.proxy.calls.clear()
        return self.project.run(*self.overrides)

    def calls(self, method: str, name: str) -> int:
        """Requests for objects with such a name."""
        return sum(n for call, n in self.proxy.calls.items() if call.startswith(method) and call.endswith(name))


@pytest.fixture(params=[pytest.param("gcs", marks=pytest.mark.gcs), pytest.param("azure", marks=pytest.mark.azure)])
def remote(request: pytest.FixtureRequest, project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    options: dict[str, str] = request.getfixturevalue(f"{request.param}_options")
    endpoint: str = request.getfixturevalue(f"{request.param}_endpoint")
    top = request.getfixturevalue({"gcs": "new_gcs_bucket", "azure": "new_container"}[request.param])()
    with unruly(endpoint) as proxy:
        through = {name: value.replace(endpoint, proxy.url) for name, value in options.items()}
        for name, value in through.items():
            monkeypatch.setenv(f"STORE_{name.upper()}", value)
        wait = "requests_timeout" if request.param == "gcs" else "read_timeout"
        referred = ", ".join([*(f"{name}: {{env: STORE_{name.upper()}}}" for name in options), f"{wait}: 3"])
        overrides = (
            f"input.uri={top}/archive/{{date:%Y/%m/%d}}/", f"output.uri={top}/out",
            f"input.options={{{referred}}}", f"output.options={{{referred}}}", f"limits.unit_images={UNIT}",
        )  # fmt: skip
        behind = Storage({**through, wait: 3}, first_wait_s=0.01)
        made = Remote(project, proxy, top, PUTS[request.param], Storage(options), behind, overrides)
        for i in range(IMAGES):
            made.direct.put(f"{top}/archive/{DAY}/{i:03}.png", png(i))
        yield made


def test_every_fault_of_a_read_costs_one_more_request(remote):
    """503, 500, a time-out, a reset and a truncated body: five images with two requests each, one with one."""
    remote.proxy.schedule = [("GET", f"{i:03}.png", fault) for i, fault in enumerate(FAULTS)]
    summary = remote.run()
    assert (summary.ok, summary.rejected, summary.published, summary.problems) == (IMAGES, 0, 1, [])
    assert [remote.calls("GET", f"{i:03}.png") for i in range(IMAGES)] == [2] * 5 + [1]
    assert remote.proxy.schedule == []
    assert remote.project.verify(*remote.overrides) == []


@pytest.mark.parametrize("fault", ["503", "500"])
def test_a_fault_of_a_listing_costs_one_more_request(remote, fault):
    """Ours: the SDK asks once."""
    remote.proxy.schedule = [("GET", "/o" if remote.put == "POST" else remote.top.removeprefix("az://"), fault)]
    found = [o.uri for o in remote.behind.list(f"{remote.top}/archive")]
    assert (len(found), remote.proxy.schedule, remote.proxy.calls.total()) == (IMAGES, [], 2)


@pytest.mark.parametrize("fault", ["503", "500", "slow", "reset", "landed"])
def test_a_part_whose_put_is_unsure_is_there_once(remote, fault):
    """One request more, whether the first one took effect or not."""
    remote.proxy.schedule = [(remote.put, ".part", fault)]
    summary = remote.run()
    assert (summary.ok, summary.published, summary.problems) == (IMAGES, 1, [])
    assert remote.calls(remote.put, ".part") == IMAGES // UNIT + 1
    assert len(list(remote.direct.list(f"{remote.top}/out/_work/parts"))) == IMAGES // UNIT
    assert remote.project.verify(*remote.overrides) == []


@pytest.mark.parametrize(
    ("faults", "puts", "published"),
    [(["503"], 2, 1), (["landed"], 1, 1), (["reset"], 1, 0)],
    ids=["503", "landed without an answer", "lost"],
)
def test_a_publication_whose_put_is_unsure_is_read_back(remote, faults, puts, published):
    """Our generation is there: success. Nothing is there: exit code 3, and the next run only publishes.

    No SDK and no HTTP client sends the put again by itself.
    """
    remote.proxy.schedule = [(remote.put, "data.parquet", fault) for fault in faults]
    summary = remote.run()
    assert remote.calls(remote.put, "data.parquet") == puts
    assert (summary.ok, summary.published, summary.exit_code) == (IMAGES, published, 0 if published else 3)
    again = remote.run()
    assert (again.planned, again.published, again.exit_code) == (0, 1 - published, 0)
    assert remote.project.verify(*remote.overrides) == []


def test_a_replacement_that_landed_without_an_answer_is_unknown(remote):
    """One request, and reading back tells: never a conflict with oneself."""
    uri = f"{remote.top}/a"
    first = remote.direct.create(uri, b"first")
    remote.proxy.schedule = [(remote.put, "a", "landed")]
    with pytest.raises(PutUnknown):
        remote.behind.replace(uri, b"second", version=first)
    assert remote.proxy.schedule == []
    assert remote.proxy.calls.total() == 1
    assert remote.direct.read(uri) == b"second"


def test_a_created_object_whose_answer_was_lost_is_there(remote):
    """Content-named objects are put again, and "already there" is the caller's success."""
    uri = f"{remote.top}/part"
    remote.proxy.schedule = [(remote.put, "part", "landed")]
    with pytest.raises(AlreadyExists):
        remote.behind.create(uri, b"part")
    assert remote.proxy.calls.total() == 2
    assert remote.direct.read(uri) == b"part"


def test_a_store_that_stays_away_leaves_everything_staged_where_it_was(remote):
    """The publication's put is refused five times; nothing is scored again by the next run."""
    remote.proxy.schedule = [(remote.put, "data.parquet", "503")] * 5
    summary = remote.run()
    assert (summary.exit_code, summary.ok, summary.published) == (3, IMAGES, 0)
    assert remote.calls(remote.put, "data.parquet") == 5
    again = remote.run()
    assert (again.planned, again.published, again.exit_code) == (0, 1, 0)
    assert remote.project.verify(*remote.overrides) == []
