"""Any order of staging, retries, late and changed images, damage and rival runs: every image is published once.

The model of the machine is a few dictionaries; the store is a folder.
"""

from __future__ import annotations

import tempfile
from collections import Counter

import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from unet_batch.errors import Held, ImageError, Incomplete, Reason
from unet_batch.imaging.postprocess import Prediction
from unet_batch.records import Source, Unit, unit_id
from unet_batch.spec import LimitsSpec
from unet_batch.store.storage import Storage
from unet_batch.table.output import Output
from unet_batch.table.parts import open_rows, row_keys, write_part
from unet_batch.table.publish import Publication, publish, read_commit
from unet_batch.table.rows import Provenance, prediction_row, rejection_row

DAY = "date=2026-11-21"
MODELS = ("a" * 64, "b" * 64)
LIMITS = LimitsSpec(max_rejected=1.0)

marks = st.sampled_from(MODELS)
picks = st.sets(st.integers(0, 7), max_size=8)


def empty_mask() -> Prediction:
    return Prediction(
        height=4, width=4, label=None, score=None, classes=(), labels_hw=None, confidence=0.5, entropy=0.5
    )


class Partition(RuleBasedStateMachine):
    """One partition, its archive, its staged parts, and the runs that began at some time."""

    @initialize(count=st.integers(1, 5))
    def begin(self, count: int) -> None:
        self.store = Storage()
        self.folder = tempfile.TemporaryDirectory()
        self.output = Output(self.store, f"file://{self.folder.name}")
        self.versions = {f"{i}": 1 for i in range(count)}
        self.parts: dict[str, list[str]] = {mark: [] for mark in MODELS}
        self.runs: list[tuple[str, list[Source], str | None]] = []
        self.expected: Counter[tuple[str, str]] | None = None
        self.body: bytes | None = None

    def teardown(self) -> None:
        self.folder.cleanup()

    def inventory(self) -> list[Source]:
        return [Source(f"s3://archive/{name}", f"v{version}") for name, version in self.versions.items()]

    def base(self) -> str | None:
        now = read_commit(self.output, DAY)
        return now.version if now else None

    @rule()
    def an_image_arrives_late(self) -> None:
        self.versions[f"{len(self.versions)}"] = 1

    @rule(which=st.integers(0, 7))
    def an_image_changes(self, which: int) -> None:
        name = f"{which % len(self.versions)}"
        self.versions[name] += 1

    @rule(mark=marks, picked=picks, rejected=picks)
    def a_unit_is_staged(self, mark: str, picked: set[int], rejected: set[int]) -> None:
        """Overlaps with other units as it likes; staged twice it is the same part."""
        now = self.inventory()
        found = [source for i, source in enumerate(now) if i in picked] or now
        rows = [
            rejection_row(source, 0, 1, ImageError(Reason.READ_CHANGED, "bad"))
            if i in rejected
            else prediction_row(source, 0, 1, empty_mask(), None)
            for i, source in enumerate(found)
        ]
        unit = Unit(unit_id(mark, found), DAY, "images", tuple(found))
        provenance = Provenance("m" * 64, mark, "run", "cpu", "fp32")
        self.parts[mark].append(write_part(self.output, unit, rows, provenance, compression="zstd"))

    @rule(mark=marks, which=st.integers(0, 100))
    def a_part_is_cut(self, mark: str, which: int) -> None:
        if self.parts[mark]:
            uri = self.parts[mark][which % len(self.parts[mark])]
            found = self.store.head(uri)
            if found is not None:
                self.store.put(uri, self.store.read(uri)[: found.size_bytes // 2])

    @rule(mark=marks)
    def a_run_begins(self, mark: str) -> None:
        """It lists the archive and notes what it will replace; others may be quicker."""
        self.runs.append((mark, self.inventory(), self.base()))

    @rule(which=st.integers(0, 100), drop=picks)
    def a_run_publishes(self, which: int, drop: set[int]) -> None:
        """With all parts it knows of, or with fewer; it may be killed and publish again later."""
        if not self.runs:
            return
        mark, sources, base = self.runs[which % len(self.runs)]
        known = [uri for i, uri in enumerate(dict.fromkeys(self.parts[mark])) if i not in drop]
        before = self.base()
        try:
            publish(self.output, Publication(DAY, sources, mark, "m" * 64, "run", base, known), LIMITS)
        except Incomplete:
            assert self.base() == before
            return
        except Held:
            assert before != base
            assert self.base() == before
            return
        if self.base() != before:
            assert before == base, "a run has overwritten rows that were newer than its beginning"
        self.expected = Counter((s.key, s.version) for s in sources)
        self.body = self.store.read(self.output.published(DAY))

    @invariant()
    def readers_see_every_image_of_one_inventory_once(self) -> None:
        """And nothing but a publication changes what they see."""
        if getattr(self, "expected", None) is None:
            return
        body = self.store.read(self.output.published(DAY))
        assert body == self.body
        file = open_rows(body)
        assert Counter((k.source_key, k.version) for k in row_keys(file)) == self.expected
        assert len(set(file.read(columns=["fingerprint"]).column(0).to_pylist())) == 1
        assert pq.read_metadata(self.store.open(self.output.published(DAY))).num_rows == self.expected.total()


@pytest.mark.slow
def test_any_interleaving_publishes_every_image_once():
    """Thirty stories of up to forty steps."""
    run_state_machine_as_test(Partition, settings=settings(max_examples=30, stateful_step_count=40, deadline=None))
