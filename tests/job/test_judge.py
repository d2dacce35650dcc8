"""Verdicts in doubt: an image is held back without a row, asked for again, and judged; its neighbours are scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from unet_batch.errors import ContractError, HandoverFailed, ImageError, Reason, UnetBatchError
from unet_batch.job.reconcile import Outcome, score
from unet_batch.records import DoubtfulSource, Receipt, Source, Unit, unit_id

MARK = "f" * 64


def unit(*names: str, partition: str = "all") -> Unit:
    found = tuple(Source(f"s3://a/{n}", "v1") for n in names)
    return Unit(unit_id(MARK, found), partition, "images", found)


class Doubting:
    """Scores all images but those that a rule has doubts about; a settled unit gets its rows."""

    name = "fake"
    workers = 2
    loaders = 0
    fault: HandoverFailed | None = None

    def __init__(self, doubt: Callable[[str, int], Reason | None], *, pages: int = 1) -> None:
        """doubt: by name and how often that image was asked for, from 1."""
        self.doubt, self.pages = doubt, pages
        self.asked: Counter[str] = Counter()
        self.passes: list[int] = []
        self.isolated: list[str] = []

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        self.passes.append(len(units))
        for u in units:
            held = []
            for position, source in enumerate(u.sources):
                name = source.uri[len("s3://a/") :]
                self.asked[name] += 1
                self.isolated += [name] if u.isolate else []
                reason = self.doubt(name, self.asked[name])
                if reason is not None and not u.settle:
                    held.append(DoubtfulSource(position, self.pages, str(reason), f"about {name}"))
            rows = len(u.sources) - len(held)
            yield Receipt(u.unit_id, u.partition, rows, rows, 0, held=tuple(held))

    def close(self) -> None:
        pass


@dataclass
class Run:
    """What a run ended in."""

    done: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, Reason] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def open(self) -> list[str]:
        return sorted(s.uri.rpartition("/")[2] for u in self.outcome.open for s in u.sources)


def drive(executor: Doubting, *units: Unit, readable=None, scored_before: int = 0) -> Run:
    run = Run()

    def reject(u: Unit, error: ImageError) -> Receipt:
        (source,) = u.sources
        run.rejected[source.uri.rpartition("/")[2]] = error.reason
        return Receipt(u.unit_id, u.partition, 1, 0, 1)

    def done(u: Unit, receipt: Receipt) -> None:
        run.done.update(s.uri.rpartition("/")[2] for s in u.sources)

    run.outcome = score(executor, units, MARK, done=done, reject=reject, readable=readable, scored_before=scored_before)
    return run


def always(reason: Reason, names: str) -> Callable[[str, int], Reason | None]:
    return lambda name, _: reason if name in names else None


def test_a_doubt_that_repeats_elsewhere_is_one_row_and_its_neighbours_are_scored_once():
    """The part of the first try holds the neighbours; the image alone is asked for again, in isolation."""
    executor = Doubting(always(Reason.DECODE_CRASHED, "c"))
    run = drive(executor, unit(*"abcd"), unit("e"))
    assert (run.done, run.rejected, run.open) == (Counter("abcde"), {"c": Reason.DECODE_CRASHED}, [])
    assert (executor.asked["c"], executor.asked["a"], executor.isolated) == (2, 1, ["c"])


@pytest.mark.parametrize(
    "reason", [Reason.MODEL_OUT_OF_MEMORY, Reason.DECODE_OUT_OF_MEMORY, Reason.MODEL_NON_FINITE_OUTPUT,
               Reason.READ_DENIED, Reason.READ_CHECKSUM_MISMATCH]
)  # fmt: skip
def test_a_doubt_that_does_not_repeat_is_a_prediction(reason):
    """One try of one machine is no fact about an image."""
    executor = Doubting(lambda name, time: reason if (name, time) == ("c", 1) else None)
    run = drive(executor, unit(*"abcd"))
    assert (run.done, run.rejected, run.open) == (Counter("abcd"), {}, [])


def test_the_rows_of_several_pages_are_written_by_a_stage():
    """A driver knows one page of a source; a third try writes all of them."""
    executor = Doubting(always(Reason.MODEL_OUT_OF_MEMORY, "c"), pages=3)
    run = drive(executor, unit(*"abcd"))
    assert (run.done, run.rejected, run.open, executor.asked["c"]) == (Counter("abcd"), {}, [], 3)


@pytest.mark.parametrize("reason", [Reason.MODEL_OUT_OF_MEMORY, Reason.DECODE_OUT_OF_MEMORY, Reason.DECODE_TIMEOUT])
def test_where_most_images_are_in_doubt_alike_none_is_rejected(reason):
    """A machine without memory says nothing about images: they stay open, and a sentence says why."""
    run = drive(Doubting(always(reason, "abcdef")), unit(*"abcd"), unit(*"efxy"))
    assert (run.done, run.rejected, run.open) == (Counter("xy"), {}, list("abcdef"))
    assert "6 of 8 images failed in the same way" in run.outcome.failures[reason]


def test_where_most_images_are_corrupt_for_two_processes_they_are_corrupt():
    """A second decoder said so; whether a partition with so many rejections is published is the limit's to say."""
    run = drive(Doubting(always(Reason.DECODE_CORRUPT, "abcdef")), unit(*"abcdefxy"))
    assert (run.rejected.keys(), run.open) == (set("abcdef"), [])


def test_images_that_their_bytes_speak_against_are_asked_for_again_together():
    """An archive may hold two files that are no image beside each one that is: none has a unit to itself."""
    executor = Doubting(lambda name, time: Reason.DECODE_UNRECOGNIZED if name in "abcdef" and time == 1 else None)
    run = drive(executor, unit(*"abcdefxy"), unit("z"))
    assert (run.done, run.rejected, run.open) == (Counter("abcdefxyz"), {}, [])
    assert (executor.passes, executor.isolated) == ([2, 1], list("abcdef"))


def test_what_a_rescoring_holds_back_keeps_its_label():
    """Under the plain name lies the row that an earlier run wrote, and it would be published instead."""
    found = unit(*"abcd")
    executor = Doubting(lambda name, time: Reason.DECODE_TIMEOUT if (name, time) == ("c", 1) else None)
    names: list[str] = []
    score(
        executor, [replace(found, unit_id=f"rescore-0123456789ab-{found.unit_id}")], MARK,
        done=lambda u, _: names.append(u.unit_id), reject=lambda u, _: Receipt(u.unit_id, u.partition, 1, 0, 1),
    )  # fmt: skip
    assert len(set(names)) == 2
    assert all(name.startswith("rescore-0123456789ab-") for name in names)


def test_values_out_of_range_in_one_image_cost_that_image():
    """Facts about one image never stop the others."""
    run = drive(Doubting(always(Reason.MODEL_OUTPUT_OUT_OF_RANGE, "c")), unit(*"abcd"))
    assert (run.done, run.rejected) == (Counter("abcd"), {"c": Reason.MODEL_OUTPUT_OUT_OF_RANGE})


@pytest.mark.parametrize("names", ["a", "abcdef"])
def test_values_out_of_range_in_every_image_are_a_wrong_contract(names):
    """However few they are: no image ever agreed with it. Where earlier ones did, a single one is a row."""
    executor = Doubting(always(Reason.MODEL_OUTPUT_OUT_OF_RANGE, names))
    with pytest.raises(ContractError, match="about a"):
        drive(executor, unit(*names))
    again = drive(Doubting(always(Reason.MODEL_OUTPUT_OUT_OF_RANGE, "a")), unit("a"), scored_before=10)
    assert again.rejected == {"a": Reason.MODEL_OUTPUT_OUT_OF_RANGE}


def test_a_model_that_fails_on_most_images_ends_the_run():
    with pytest.raises(UnetBatchError, match="not in the images"):
        drive(Doubting(always(Reason.MODEL_FAILED, "abcdef")), unit(*"abcdef"))


# Reads --------------------------------------------------------------------------------------------------------------


def test_a_single_denied_object_among_readable_ones_is_a_row():
    """Tried twice; what was readable is readable still."""
    asked: list[tuple[str, int]] = []

    def readable(partition: str, scored: Sequence[Unit]) -> bool:
        asked.append((partition, len(scored)))
        return True

    executor = Doubting(always(Reason.READ_DENIED, "c"))
    run = drive(executor, unit(*"abcd"), unit("e"), readable=readable)
    assert (run.done, run.rejected, run.open) == (Counter("abcde"), {"c": Reason.READ_DENIED}, [])
    assert (executor.asked["c"], executor.isolated) == (2, [])
    assert asked[0][0] == "all"


@pytest.mark.parametrize("reason", [Reason.READ_DENIED, Reason.READ_NOT_FOUND])
def test_a_permission_that_was_taken_away_leaves_images_open(reason):
    """One denied image, and what was read before is denied too: exit 3 and a sentence, no row."""
    run = drive(Doubting(always(reason, "c")), unit(*"abcd"), readable=lambda *_: False)
    assert (run.done, run.rejected, run.open) == (Counter("abd"), {}, ["c"])
    assert "restore access, and run the same command again" in run.outcome.failures[reason]


def test_denials_in_numbers_leave_images_open_even_where_others_are_readable():
    """A tenth of a day's objects: no single image is to blame, whatever the control says."""
    names = [f"{n:03}" for n in range(200)]
    units = [unit(*names[n : n + 4]) for n in range(0, 200, 4)]
    denied = Doubting(lambda name, _: Reason.READ_DENIED if int(name) >= 180 else None)
    run = drive(denied, *units, readable=lambda *_: True)
    assert (sum(run.done.values()), run.rejected, run.open) == (180, {}, names[180:])
    assert "20 objects of all cannot be read" in run.outcome.failures["read.denied"]


def test_where_nothing_could_ever_be_read_nothing_is_rejected():
    """One new image, denied, and nothing to compare it with."""
    run = drive(Doubting(always(Reason.READ_DENIED, "a")), unit("a"), readable=lambda *_: None)
    assert (run.rejected, run.open) == ({}, ["a"])


def test_another_partition_tells_where_this_one_has_nothing_to_compare():
    """A day with one image, which is denied; the days around it are readable."""
    executor = Doubting(always(Reason.READ_DENIED, "c"))
    run = drive(
        executor, unit(*"ab", partition="one"), unit("c", partition="two"),
        readable=lambda _, scored: True if scored else None,
    )  # fmt: skip
    assert run.rejected == {"c": Reason.READ_DENIED}


def test_a_store_that_refuses_all_it_gave_before_stops_the_pass_soon():
    """A thousand units would each be asked for twice; what was scored before stays."""
    units = [unit(f"{n:04}") for n in range(1000)]
    executor = Doubting(lambda name, _: Reason.READ_DENIED if int(name) >= 5 else None)
    run = drive(executor, *units, readable=lambda *_: False)
    assert (sum(run.done.values()), run.rejected, len(run.open)) == (5, {}, 995)
    assert sum(executor.asked.values()) < 30


class Refusing(Doubting):
    """Fails every unit after the first ones with an answer of the store."""

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        for receipt in super().run(units):
            failed = sum(self.asked.values()) > 3
            yield Receipt(receipt.unit_id, "all", 0, 0, 0, failure=("storage.denied", "no")) if failed else receipt


def test_puts_that_are_denied_in_a_row_stop_the_pass_soon():
    """Every unit would be scored three times for nothing."""
    executor = Refusing(lambda *_: None)
    run = drive(executor, *(unit(f"{n:04}") for n in range(1000)))
    assert (sum(run.done.values()), len(run.open), run.outcome.failures) == (3, 997, {"storage.denied": "no"})
    assert sum(executor.asked.values()) < 30
