"""The rule of what becomes a row, as a table: every fault, at its first, second and later time."""

from __future__ import annotations

import pytest

from unet_batch.errors import Reason, UnetBatchError
from unet_batch.worker.faults import COURSES, DOUBTS, ENDS, NOT_READABLE, Act, course, doubtful, is_machines, systematic

END, AGAIN, APART, HALVE, ROW, OPEN = Act.END, Act.AGAIN, Act.APART, Act.HALVE, Act.ROW, Act.OPEN

TABLE = {
    # code: (acts on one image, acts on a unit of several, the reason of the row)
    "job.invalid": ([END], [END], None),
    "model.contract": ([END], [END], None),
    "model.refused": ([END], [END], None),
    "session.provider_missing": ([END], [END], None),
    "run.too_late": ([OPEN], [OPEN], None),
    "unit.too_large": ([OPEN], [HALVE, HALVE], None),
    "unexpected": ([APART, ROW], [HALVE], Reason.MODEL_FAILED),
    "model.failed": ([APART, ROW], [HALVE], Reason.MODEL_FAILED),
    "model.shape_mismatch": ([APART, ROW], [HALVE], Reason.MODEL_FAILED),
    "session.out_of_memory": ([APART, ROW], [HALVE], Reason.MODEL_OUT_OF_MEMORY),
    "silent.score": ([APART, ROW], [HALVE], Reason.MODEL_TIMEOUT),
    "silent.decode": ([APART, ROW], [HALVE], Reason.DECODE_TIMEOUT),
    "silent.read": ([AGAIN, AGAIN, OPEN], [AGAIN, AGAIN, OPEN], None),
    "process.lost": ([APART, APART, ROW], [APART, HALVE], Reason.MODEL_CRASHED),
    "run.handover": ([APART, APART, OPEN], [APART, HALVE], None),
    "actor.not_started": ([AGAIN] * 5 + [OPEN], [AGAIN] * 5 + [OPEN], None),
    "storage.unavailable": ([AGAIN, AGAIN, OPEN, OPEN], [AGAIN, AGAIN, OPEN, OPEN], None),
    "storage.denied": ([AGAIN, AGAIN, OPEN], [AGAIN, AGAIN, OPEN], None),
    "storage.not_logged_in": ([AGAIN, AGAIN, OPEN], [AGAIN, AGAIN, OPEN], None),
    "storage.failed": ([AGAIN, AGAIN, OPEN], [AGAIN, AGAIN, OPEN], None),
    "session.broken": ([AGAIN, AGAIN, OPEN], [AGAIN, AGAIN, OPEN], None),
    "error": ([AGAIN, AGAIN, OPEN], [AGAIN, AGAIN, OPEN], None),
    "an unknown code": ([AGAIN, AGAIN, OPEN], [AGAIN, AGAIN, OPEN], None),
}


@pytest.mark.parametrize("code", TABLE)
def test_what_happens_to_a_unit_by_the_way_it_ended(code):
    """Machines: again, then open. Images: halved, elsewhere, then a row. Neither ends the others."""
    one, many, reason = TABLE[code]
    found = course(code)
    assert [found.act(1, time) for time in range(1, len(one) + 1)] == one
    assert [found.act(7, time) for time in range(1, len(many) + 1)] == many
    assert found.reason is reason


def test_every_code_that_the_rule_names_is_in_the_table():
    """A new one needs its line here."""
    assert COURSES.keys() <= TABLE.keys()


def test_every_error_has_a_course_and_none_becomes_a_row_unless_it_says_so():
    """A new error code counts as a machine's fault until the table says otherwise."""
    codes = {cls.code for cls in _all(UnetBatchError)}
    rows = {code for code in codes if ROW in (*course(code).one, *course(code).many)}
    assert rows == {"model.failed", "model.shape_mismatch", "session.out_of_memory"}
    assert all(is_machines(code) for code in codes if code.startswith("storage."))


def test_nothing_becomes_a_row_at_the_first_time():
    """A reason that a machine can cause needs a second verdict."""
    assert {code for code, found in COURSES.items() if ROW in (found.one[0], found.many[0])} == set()
    assert all(found.reason is not None for found in COURSES.values() if ROW in (*found.one, *found.many))


def test_what_ends_a_run_is_raised_as_what_it_is():
    """With its own exit code."""
    assert {code for code, found in COURSES.items() if END in found.one} == ENDS.keys()


@pytest.mark.parametrize("reason", list(Reason))
def test_a_verdict_is_in_doubt_where_a_machine_can_have_caused_it(reason):
    """What needs a second verdict may be tried again later, too; facts about bytes are rows at once."""
    by_machine = {
        "read.denied", "read.not_found", "read.checksum_mismatch", "decode.crashed", "decode.timeout",
        "decode.out_of_memory", "model.out_of_memory", "model.output_out_of_range", "model.non_finite_output",
        "model.failed",
    }  # fmt: skip
    assert (reason in DOUBTS) == (reason in by_machine)
    assert doubtful([reason, None, None, None, None]) == ({reason} if reason in DOUBTS else set())


def test_a_unit_whose_images_mostly_fail_to_decode_is_looked_at_twice():
    """A broken decoder, or a store that gives other bytes, looks like that; a few bad ones are facts."""
    corrupt = Reason.DECODE_CORRUPT
    assert doubtful([corrupt] * 4 + [None] * 3) == {corrupt}
    assert doubtful([corrupt] * 3) == set()
    assert doubtful([corrupt] * 4 + [None] * 4) == set()


def test_a_second_process_that_rejects_the_same_bytes_is_believed():
    """Verdicts that a machine can have caused stay in doubt."""
    verdicts = [Reason.DECODE_CORRUPT] * 4 + [Reason.DECODE_TIMEOUT]
    assert doubtful(verdicts, confirms=True) == {Reason.DECODE_TIMEOUT}


def test_several_and_more_than_half_are_systematic():
    assert [systematic(*pair) for pair in [(3, 3), (4, 7), (4, 8), (100, 150)]] == [False, True, False, True]
    assert NOT_READABLE <= DOUBTS


def _all(cls: type[UnetBatchError]) -> set[type[UnetBatchError]]:
    found, queue = {cls}, [cls]
    while queue:
        below = queue.pop().__subclasses__()
        found |= set(below)
        queue += below
    return {c for c in found if c.__module__ == "unet_batch.errors"}
