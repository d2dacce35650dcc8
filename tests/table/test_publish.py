"""Publication: one row per image of the inventory, or nothing; never over newer rows of another run."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unet_batch.errors import Held, ImageError, Incomplete, Reason, StorageError, UnetBatchError
from unet_batch.imaging.postprocess import Prediction
from unet_batch.records import Source, Unit, unit_id
from unet_batch.spec import LimitsSpec
from unet_batch.store.storage import Storage, canonical
from unet_batch.table.output import Output
from unet_batch.table.parts import read_parts, write_part
from unet_batch.table.publish import Publication, Published, publish, published_keys, read_commit
from unet_batch.table.rows import Provenance, prediction_row, rejection_row

MARK = "f" * 64
DAY = "date=2026-11-21"
LIMITS = LimitsSpec(max_rejected=0.5)


def provenance(mark: str = MARK) -> Provenance:
    return Provenance("m" * 64, mark, "run-1", "cpu", "fp32")


def sources(*names: str, version: str = "v1") -> list[Source]:
    return [Source(f"file:///archive/{name}", version) for name in names]


def empty_mask() -> Prediction:
    return Prediction(
        height=4, width=4, label=None, score=None, classes=(), labels_hw=None, confidence=0.5, entropy=0.5
    )


class Written:
    """An output folder with the few steps that the tests are about."""

    def __init__(self, folder: Path) -> None:
        self.store = Storage()
        self.output = Output(self.store, canonical(str(folder)))

    def stage(
        self,
        found: list[Source],
        *,
        mark: str = MARK,
        pages: int = 1,
        reject: tuple[str, ...] = (),
        reason=Reason.DECODE_CORRUPT,
    ):
        unit = Unit(unit_id(mark, found), DAY, "images", tuple(found))
        rows = [
            rejection_row(s, page, pages, ImageError(reason, "bad"))
            if s.uri[-1] in reject
            else prediction_row(s, page, pages, empty_mask(), None)
            for s in found
            for page in range(pages)
        ]
        return write_part(self.output, unit, rows, provenance(mark), compression="zstd")

    def publish(
        self,
        found: list[Source],
        parts: list[str],
        *,
        base: str | None = None,
        mark: str = MARK,
        limits=LIMITS,
        run="run-1",
    ) -> Published:
        return publish(
            self.output,
            Publication(DAY, found, mark, "m" * 64, run, base, parts),
            limits,
        )

    def keys(self) -> list[str]:
        table = pq.read_table(self.path())
        return table.column("image_key").to_pylist()

    def path(self) -> Path:
        return Path(self.output.published(DAY).removeprefix("file://"))


@pytest.fixture
def output(tmp_path: Path) -> Written:
    return Written(tmp_path / "out")


def test_every_image_of_the_inventory_has_one_row_in_key_order(output):
    """Parts overlap and hold images that left the archive; the published object holds the inventory, once."""
    a, b, c, gone = sources("a", "b", "c", "gone")
    parts = [output.stage([c, a]), output.stage([a, b]), output.stage([gone])]
    published = output.publish([a, b, c], parts)
    assert output.keys() == [a.key, b.key, c.key]
    assert (published.commit.rows, published.commit.rejected) == (3, 0)


def test_nothing_is_published_while_an_image_has_no_row(output):
    """Readers never see half a partition."""
    a, b = sources("a", "b")
    with pytest.raises(Incomplete, match="1 of 2 images have no row"):
        output.publish([a, b], [output.stage([a])])
    assert not output.path().exists()


def test_a_row_of_an_older_version_does_not_count(output):
    """A changed image needs a new row."""
    [old], [new] = sources("a"), sources("a", version="v2")
    with pytest.raises(Incomplete):
        output.publish([new], [output.stage([old])])


def test_all_pages_of_a_file_come_from_one_part(output):
    """A source with three pages has rows 0, 1 and 2."""
    found = sources("stack.tif")
    output.publish(found, [output.stage(found, pages=3)])
    assert output.keys() == [found[0].key, f"{found[0].key}#page=1", f"{found[0].key}#page=2"]


def test_rows_published_under_the_same_fingerprint_are_kept(output):
    """A late image is added without scoring, or even staging, the others again."""
    a, b = sources("a", "b")
    first = output.publish([a], [output.stage([a])])
    for part in output.store.list(output.output.parts(MARK, DAY)):
        output.store.delete(part.uri)
    output.publish([a, b], [output.stage([b])], base=first.version)
    assert output.keys() == [a.key, b.key]


def test_rows_of_another_fingerprint_are_never_mixed_in(output):
    """A new model republishes a partition whole."""
    a, b = sources("a", "b")
    first = output.publish([a, b], [output.stage([a, b])])
    with pytest.raises(Incomplete):
        output.publish([a, b], [output.stage([a], mark="0" * 64)], base=first.version, mark="0" * 64)
    assert set(pq.read_table(output.path()).column("fingerprint").to_pylist()) == {MARK}


def test_too_many_rejections_stop_publication_and_are_named(output):
    """The sentence gives counts by reason and the limit."""
    found = sources("a", "b", "c")
    parts = [output.stage(found, reject=("a", "b"))]
    with pytest.raises(Incomplete, match=r"2 of 3 images were rejected \(2 × decode.corrupt\)"):
        output.publish(found, parts)
    assert output.publish(found, parts, limits=LimitsSpec(max_rejected=2)).commit.rejected == 2


def test_a_broken_shard_stops_publication_unless_the_job_allows_it(output):
    """The number of images that a cut shard lost is unknown."""
    found = sources("a", "b", "c")
    parts = [output.stage(found, reject=("a",), reason=Reason.SHARD_TRUNCATED)]
    with pytest.raises(Incomplete, match="truncated or corrupt"):
        output.publish(found, parts)
    output.publish(found, parts, limits=LimitsSpec(max_rejected=0.5, broken_shards="publish"))


def test_publishing_twice_changes_nothing(output):
    """The same generation put by another run is success."""
    found = sources("a", "b")
    parts = [output.stage(found)]
    first = output.publish(found, parts)
    again = output.publish(found, parts, run="run-2")
    assert again.version == first.version
    assert again.commit.run_id == "run-1"


def test_an_older_run_cannot_replace_newer_rows(output):
    """The base was recorded when the run began; rows that another run published since stay."""
    found = sources("a", "b")
    stale_parts = [output.stage(found)]
    newer = [output.stage(found, mark="0" * 64)]
    output.publish(found, newer, mark="0" * 64, run="newer")
    with pytest.raises(Held, match="changed by run newer"):
        output.publish(found, stale_parts, base=None)
    assert read_commit(output.output, DAY).commit.fingerprint == "0" * 64


def test_a_truncated_part_is_deleted_and_does_not_count(output):
    """Damage in staging costs its unit, and frees the name for scoring it again."""
    found = sources("a", "b")
    part = output.stage(found)
    path = Path(part.removeprefix("file://"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Incomplete):
        output.publish(found, [part])
    assert not path.exists()
    output.publish(found, [output.stage(found)])
    assert output.keys() == [s.key for s in found]


def test_a_flipped_bit_in_a_part_is_noticed(output):
    """Page checksums are written and verified; pyarrow alone reads such a page in silence."""
    found = sources(*"abcdefgh")
    part = output.stage(found)
    path = Path(part.removeprefix("file://"))
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 0x10
    path.write_bytes(bytes(data))
    assert list(read_parts(output.store, [part], MARK, repair=False)) == []


def test_writing_a_part_twice_is_success(output):
    """A part is a pure function of its name."""
    found = sources("a")
    assert output.stage(found) == output.stage(found)


def test_a_part_that_misses_an_image_is_never_written(output):
    """A bug in a stage cannot stage a hole."""
    a, b = sources("a", "b")
    unit = Unit("u" * 32, DAY, "images", (a, b))
    with pytest.raises(UnetBatchError, match="1 sources without a row"):
        write_part(
            output.output,
            unit,
            [prediction_row(a, 0, 1, empty_mask(), None)],
            provenance(),
            compression="zstd",
        )


def test_a_published_object_that_is_not_ours_is_an_error(output):
    """A foreign file under the same name is neither counted nor overwritten."""
    output.path().parent.mkdir(parents=True)
    output.path().write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(StorageError, match="move it away"):
        read_commit(output.output, DAY)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_any_overlap_of_parts_and_rounds_publishes_every_image_once(tmp_path_factory, seed, count):
    """Random parts, retries, late images and changed versions over several rounds: rows always equal the inventory."""
    rng = random.Random(seed)
    output = Written(tmp_path_factory.mktemp("out"))
    base: str | None = None
    parts: list[str] = []
    inventory = sources(*(f"{i:02}" for i in range(count)))
    for _ in range(rng.randint(1, 3)):
        inventory = [Source(s.uri, f"v{rng.randint(1, 2)}") for s in inventory] + sources(f"late{rng.random()}")
        for _ in range(rng.randint(0, 4)):
            parts.append(output.stage(rng.sample(inventory, rng.randint(1, len(inventory)))))
        parts.append(output.stage(inventory[: len(inventory) // 2 + 1]))
        parts.append(output.stage(inventory[len(inventory) // 2 :]))
        rng.shuffle(parts)
        base = output.publish(inventory, parts, base=base).version
        rows = published_keys(output.output, DAY)
        assert Counter((r.source_key, r.version) for r in rows) == Counter((s.key, s.version) for s in inventory)
