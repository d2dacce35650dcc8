"""Reconciliation: what is lost goes round again, smaller and isolated, and every unit ends in a row or stays open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from unet_batch.errors import HandoverFailed, ImageError, ProviderMissing, Reason, UnetBatchError
from unet_batch.job.reconcile import score
from unet_batch.records import Receipt, Source, Unit, unit_id

MARK = "f" * 64


def unit(*names: str) -> Unit:
    found = tuple(Source(f"s3://a/{n}", "v1") for n in names)
    return Unit(unit_id(MARK, found), "all", "images", found)


class FakeExecutor:
    """Loses or fails units by a written rule; counts how often each image was tried."""

    name = "fake"
    workers = 2
    loaders = 0
    fault: HandoverFailed | None = None

    def __init__(self, verdict: Callable[[Unit, int], tuple[str, str] | str | None]) -> None:
        """verdict: "lost" with its process, "unfit" where the machinery lost it and says so, or a failure."""
        self.verdict = verdict
        self.tries: Counter[str] = Counter()
        self.passes: list[int] = []

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt | HandoverFailed]:
        self.passes.append(len(units))
        fault = None
        for u in units:
            for s in u.sources:
                self.tries[s.uri[-1]] += 1
            found = self.verdict(u, max(self.tries[s.uri[-1]] for s in u.sources))
            if found == "lost":
                continue
            if found == "unfit":
                fault = HandoverFailed("the disk is full")
                continue
            failure = found if isinstance(found, tuple) else None
            rows = 0 if failure else len(u.sources)
            yield Receipt(u.unit_id, u.partition, rows, rows, 0, failure=failure)
        if fault is not None:
            yield fault

    def close(self) -> None:
        pass


def drive(executor: FakeExecutor, *units: Unit):
    done: Counter[str] = Counter()
    rejected: dict[str, Reason] = {}

    def reject(u: Unit, error: ImageError) -> Receipt:
        assert len(u.sources) == 1
        rejected[u.sources[0].uri[-1]] = error.reason
        return Receipt(u.unit_id, u.partition, 1, 0, 1)

    def arrived(u: Unit, receipt: Receipt) -> None:
        done.update(s.uri[-1] for s in u.sources)

    outcome = score(executor, units, MARK, done=arrived, reject=reject)
    return done, rejected, outcome


def test_one_poisonous_image_costs_itself_only():
    """Seven neighbours are scored, the poison becomes one rejection, each image ends exactly once."""
    executor = FakeExecutor(lambda u, _: "lost" if any(s.uri.endswith("d") for s in u.sources) else None)
    done, rejected, outcome = drive(executor, unit(*"abcdefgh"), unit("x"), unit("y"), unit("z"))
    assert done == Counter("abcdefghxyz")
    assert rejected == {"d": Reason.MODEL_CRASHED}
    assert outcome.open == []


def test_a_poisonous_image_ends_after_few_tries():
    """Alone in a unit of 8: once whole, once isolated, three halvings, and one more try alone."""
    executor = FakeExecutor(lambda u, _: "lost" if any(s.uri.endswith("d") for s in u.sources) else None)
    drive(executor, unit(*"abcdefgh"), unit("x"), unit("y"), unit("z"))
    assert executor.tries["d"] == 6


def test_a_unit_lost_once_is_scored_in_isolation():
    """An innocent unit that was in flight in a dying process comes back whole."""
    executor = FakeExecutor(lambda u, tries: "lost" if tries == 1 and "a" in u.sources[0].uri[-1] else None)
    done, rejected, _ = drive(executor, unit("a", "b"), unit("c"), unit("d"))
    assert (done, rejected) == (Counter("abcd"), {})
    assert executor.passes == [3, 1]


def test_a_storage_fault_leaves_the_unit_open_after_bounded_retries():
    """Infrastructure never becomes a row: the unit is simply not done."""
    executor = FakeExecutor(lambda u, _: ("storage.unavailable", "503") if u.sources[0].uri.endswith("a") else None)
    done, rejected, outcome = drive(executor, unit("a"), unit("b"), unit("c"))
    assert done == Counter("bc")
    assert rejected == {}
    assert [u.sources[0].uri[-1] for u in outcome.open] == ["a"]
    assert outcome.failures == {"storage.unavailable": "503"}
    assert executor.tries["a"] == 3


def test_an_image_that_the_model_fails_on_is_rejected_alone():
    """A failing session.run is narrowed down by halving."""
    executor = FakeExecutor(
        lambda u, _: ("model.failed", "bad shape") if any(s.uri.endswith("b") for s in u.sources) else None
    )
    done, rejected, _ = drive(executor, unit("a", "b", "c", "d"), unit("e"), unit("f"), unit("g"))
    assert done == Counter("abcdefg")
    assert rejected == {"b": Reason.MODEL_FAILED}


def test_a_missing_provider_stops_the_run_at_once():
    """What no retry can mend is raised as the error it is, with its exit code."""
    executor = FakeExecutor(lambda u, _: ("session.provider_missing", "no CUDA here"))
    with pytest.raises(ProviderMissing, match="no CUDA here"):
        drive(executor, unit("a"), unit("b"))


@pytest.mark.parametrize("verdict", ["lost", ("unexpected", "TypeError: oops")])
def test_when_most_units_fail_no_image_is_blamed(verdict):
    """A fault of the machinery must not turn an archive into rejections."""
    executor = FakeExecutor(lambda u, _: verdict)
    with pytest.raises(UnetBatchError, match="not in the images"):
        drive(executor, *(unit(n) for n in "abcdef"))


def test_many_small_days_with_one_bad_image_each_converge():
    """Every unit fails alike at first, and yet the fault is in the images: their neighbours are scored when halved."""
    executor = FakeExecutor(
        lambda u, _: ("unexpected", "boom") if any(s.uri[-1].isupper() for s in u.sources) else None
    )
    done, rejected, _ = drive(executor, *(unit(f"{n}a", f"{n}b", f"bad{n}") for n in "ABCDEF"))
    assert sum(done.values()) == 18
    assert rejected == dict.fromkeys("ABCDEF", Reason.MODEL_FAILED)


def test_where_nothing_works_not_everything_is_tried():
    """A model that fails on every batch stops a large archive after some units."""
    executor = FakeExecutor(lambda u, _: ("model.failed", "bad shape"))
    with pytest.raises(UnetBatchError, match="not in the images"):
        drive(executor, *(unit(f"{n}a", f"{n}b") for n in range(1000)))
    assert sum(executor.tries.values()) < 200


def test_a_unit_that_ran_twice_counts_once():
    """Ray may run a task twice; the second receipt changes nothing."""

    class Twice(FakeExecutor):
        def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
            for receipt in super().run(units):
                yield receipt
                yield receipt

    done, _, _ = drive(Twice(lambda u, _: None), unit("a", "b"))
    assert done == Counter("ab")


def test_a_unit_that_decodes_to_too_much_is_halved_without_suspicion():
    """Large images do not kill workers: halves are not isolated and no image is rejected."""
    executor = FakeExecutor(lambda u, _: ("unit.too_large", "") if len(u.sources) > 1 else None)
    done, rejected, _ = drive(executor, unit("a", "b", "c"))
    assert (done, rejected) == (Counter("abc"), {})


# Faults between two actors ------------------------------------------------------------------------------------------


def test_units_that_do_not_fit_between_two_actors_are_halved_until_they_do():
    """A full store holds two images, not four: all are scored, none is rejected, nothing is left to report."""
    executor = FakeExecutor(lambda u, _: "unfit" if len(u.sources) > 2 else None)
    done, rejected, outcome = drive(executor, unit(*"abcd"), unit(*"efgh"), unit(*"ijkl"), unit(*"mnop"), unit(*"qrst"))
    assert (done, rejected) == (Counter("abcdefghijklmnopqrst"), {})
    assert (outcome.open, outcome.failures) == ([], {})
    assert executor.passes == [5, 5, 10]


def test_an_image_that_fits_nowhere_stays_open_and_is_no_rejection():
    """Lost again and again while it is alone, as a poisonous one would be; but here a disk was full."""
    executor = FakeExecutor(lambda u, _: "unfit" if any(s.uri.endswith("d") for s in u.sources) else None)
    done, rejected, outcome = drive(executor, unit(*"abcd"), unit("x"))
    assert (done, rejected) == (Counter("abcx"), {})
    assert [s.uri[-1] for u in outcome.open for s in u.sources] == ["d"]
    assert outcome.failures == {"run.handover": "the disk is full"}
    assert executor.tries["d"] == 6


def test_where_nothing_fits_the_run_gives_up_soon():
    """Three passes without a receipt: a full disk must not cost a pass for every image of an archive."""
    executor = FakeExecutor(lambda u, _: "unfit")
    done, rejected, outcome = drive(executor, *(unit(*(f"{n}{c}" for c in "abcdefgh")) for n in range(100)))
    assert (done, rejected) == (Counter(), {})
    assert sum(len(u.sources) for u in outcome.open) == 800
    assert executor.passes == [100, 100, 200]


def test_single_images_that_do_not_fit_end_the_tries_of_others_like_them():
    """Four in a row, three tries each: the rest of such images waits for a person."""
    executor = FakeExecutor(lambda u, _: "unfit" if u.sources[0].uri[-1].isupper() else None)
    done, rejected, outcome = drive(executor, *(unit(n) for n in "abcABCDEFGH"))
    assert (done, rejected) == (Counter("abc"), {})
    assert sorted(s.uri[-1] for u in outcome.open for s in u.sources) == list("ABCDEFGH")
    assert len(executor.passes) == 1 + 8 + 4


def test_a_loss_beside_a_full_disk_is_still_found_to_be_an_images_fault():
    """One pass with a fault excuses that pass alone."""

    def verdict(u: Unit, tries: int) -> str | None:
        if any(s.uri.endswith("d") for s in u.sources):
            return "lost"
        return "unfit" if tries == 1 else None

    done, rejected, _ = drive(FakeExecutor(verdict), unit(*"abcd"), unit("w"), unit("x"), unit("y"), unit("z"))
    assert done == Counter("abcdwxyz")
    assert rejected == {"d": Reason.MODEL_CRASHED}


def test_a_full_disk_does_not_count_against_an_image_that_its_process_died_with_once():
    """Alone, a fault of the machinery and then one death: it is tried again, and is innocent."""
    ends = iter(["unfit", "unfit", "lost", None])
    executor = FakeExecutor(lambda u, _: next(ends) if u.sources[0].uri.endswith("a") else None)
    done, rejected, outcome = drive(executor, unit("a"), unit("x"), unit("y"))
    assert (done, rejected, outcome.open) == (Counter("axy"), {}, [])


# Our own limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"), [("silent.score", Reason.MODEL_TIMEOUT), ("silent.decode", Reason.DECODE_TIMEOUT)]
)
def test_an_image_that_a_limit_of_ours_ends_twice_is_a_row_that_names_the_limit(code, reason):
    """The watchdog's note says at which image: its neighbours are not suspected, and nothing is halved."""

    class Limited(FakeExecutor):
        def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
            for receipt in super().run(units):
                many = {u.unit_id for u in units if len(u.sources) > 1}
                ended = receipt.failure is not None and receipt.unit_id in many
                yield replace(receipt, suspect=2) if ended else receipt

    text = "more than limits.unit_timeout_s: 900"
    executor = Limited(lambda u, _: (code, text) if any(s.uri.endswith("c") for s in u.sources) else None)
    done, rejected, outcome = drive(executor, unit(*"abcdefgh"), unit("x"))
    assert (done, rejected, outcome.open) == (Counter("abcdefghx"), {"c": reason}, [])
    assert executor.passes == [2, 2, 1]


def test_a_read_that_a_limit_of_ours_ends_is_the_stores_fault():
    """Open after three tries, and no row."""
    executor = FakeExecutor(lambda u, _: ("silent.read", "slow") if u.sources[0].uri.endswith("a") else None)
    done, rejected, outcome = drive(executor, unit("a"), unit("b"))
    assert (done, rejected, outcome.failures) == (Counter("b"), {}, {"silent.read": "slow"})


def test_a_failure_of_one_image_that_does_not_repeat_elsewhere_is_no_row():
    """One exception on a lone image, or one session without memory."""
    for code in ("unexpected", "model.failed", "session.out_of_memory"):
        executor = FakeExecutor(lambda u, tries, code=code: (code, "oops") if tries == 1 and len(u.sources) else None)
        done, rejected, outcome = drive(executor, unit("a"))
        assert (done, rejected, outcome.open) == (Counter("a"), {}, [])
