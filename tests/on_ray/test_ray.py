"""What a unit is between two Ray actors, and which Ray a run gets."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
from project_fixture import last_json

from unet_batch.errors import JobError
from unet_batch.records import Source, Unit
from unet_batch.worker.loaded import Entry, Loaded, PixelBuffer, from_arrow, pixels_of, to_arrow

DAY = "2026/11/21"


def test_a_loaded_unit_crosses_as_one_row_and_its_pixels_come_back_as_a_view():
    """8- and 16-bit pictures in one buffer, aligned, and never copied on the way out."""
    pack = PixelBuffer()
    pictures = [np.arange(15, dtype=np.uint8).reshape(5, 3, 1), np.arange(6, dtype=np.uint16).reshape(1, 2, 3)]
    depth = {"largest": 4095.0, "range_used": 0.25}
    entries = tuple(
        Entry(i, 0, 1, p.shape[0], p.shape[1], p.dtype.str, p.shape, pack.add(p), **depth)
        for i, p in enumerate(pictures)
    )
    unit = Unit("u", "all", "images", (Source("s3://a", "v"), Source("s3://b", "v")))
    buffer = pack.joined()
    table = to_arrow(Loaded(unit, entries, buffer))
    back = from_arrow(table)
    assert table.num_rows == 1
    assert (back.unit, back.entries) == (unit, entries)
    for entry, picture in zip(back.entries, pictures, strict=True):
        found = pixels_of(back, entry)
        assert np.shares_memory(found, buffer)
        np.testing.assert_array_equal(found, picture)


@pytest.mark.ray
def test_an_embedded_run_does_not_join_a_cluster_that_happens_to_run(project):
    """Only --address joins; RAY_ADDRESS and a running head are not touched. It is Ray that scores beside a cluster.

    stdout is one JSON line, and stderr is for people, without what Ray prints.
    """
    project.fill(DAY, 2)
    result = project.command("run", "job.yaml", "--quiet", env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"})
    assert (result.returncode, last_json(result)["executor"]) == (0, "ray"), result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.splitlines() == ["published date=2026-11-21"]


def test_an_address_where_no_cluster_answers_is_one_sentence(monkeypatch):
    """Exit code 2, at once if the port is closed; a wrong token is a ConnectionError of Ray's after a while."""
    import ray

    from unet_batch.on_ray import start as ray_start

    def refuse(**_):
        raise ConnectionError("ray client\n  says no")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(JobError, match=f"no answer at --address {address}"):
            ray_start.start(address)
        head.listen()
        with pytest.raises(JobError, match=f"cannot join a Ray cluster at --address {address}: ray client says no"):
            ray_start.start(address)
    with pytest.raises(JobError, match="at --address auto: ray client says no"):
        ray_start.start("auto")
