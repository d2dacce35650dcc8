"""Packed sources: what comes out is what went in, in little memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unet_batch.archive.packed import PackedSources, pack, unpacked
from unet_batch.records import Source

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(min_value=0, max_value=(1 << 63) - 1)
SOURCES = st.builds(
    Source,
    uri=TEXTS,
    version=TEXTS,
    member=st.none() | TEXTS,
    ordinal=NUMBERS,
    size_bytes=NUMBERS,
    offset=st.none() | NUMBERS,
    problem=st.none() | st.tuples(TEXTS, TEXTS),
    sha256=st.none() | TEXTS,
)


@given(st.lists(SOURCES, max_size=5))
def test_sources_come_back_as_they_were(sources):
    """Any text, numbers of 63 bits, and what is not there."""
    assert list(unpacked(pack(sources))) == sources


def test_packed_sources_are_a_sequence_that_can_be_read_again():
    """Length, order, single ones and slices, over more than one compressed piece."""
    sources = [Source(f"s3://bucket/{number}.jpg", f"etag:{number}") for number in range(70_000)]
    packed = PackedSources(sources)
    assert (len(packed), list(packed) == sources, list(packed) == sources) == (70_000, True, True)
    assert (packed[69_999], packed[:2]) == (sources[-1], sources[:2])
    assert bool(PackedSources([])) is False


def test_an_image_of_a_bucket_takes_a_tenth_of_its_record():
    """A key of 60 letters that differs in its number, and an ETag of random digits: below 50 bytes."""
    sources = [
        Source(
            f"s3://archive/2026/11/21/ward-{number % 97:02}/image-{number:09}.jpg",
            f"etag:{hash((number, 7)) & (1 << 64) - 1:016x}{hash((number, 9)) & (1 << 64) - 1:016x}",
            size_bytes=39_000 + number % 1000,
        )
        for number in range(20_000)
    ]
    assert PackedSources(sources).packed_bytes < 50 * len(sources)
