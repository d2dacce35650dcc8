"""Where the time of a run went: the sentence is right in every way in which a run can be slow."""

from __future__ import annotations

import pytest

from unet_batch.job.summary import Summary
from unet_batch.review.bottleneck import STAGES, WORDS, bottleneck, stage_times


def did(read=1.0, decode=1.0, session=1.0, encode=1.0, **fields) -> Summary:
    """A run on Ray with two workers that load their own units, and 100 images in 10 s."""
    seconds = {"read_s": read, "decode_s": decode, "session_s": session, "encode_s": encode}
    return Summary("r", **{"ok": 100, "workers": 2, "executor": "ray", "score_s": 10.0, "stage_s": seconds, **fields})


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("executor", ["ray", "processes", "local"])
def test_the_slow_stage_is_named(stage, executor):
    """One stage that takes ten times as long as the others together is the one."""
    assert bottleneck(did(**{stage: 30.0}, executor=executor)).name == stage


@pytest.mark.parametrize("stage", STAGES)
def test_the_slow_stage_is_named_where_other_actors_load(stage):
    """Eight loading actors beside one session: both kinds are looked at, each by its own number of actors."""
    assert bottleneck(did(**{stage: 80.0}, loaders=8, workers=1)).name == stage


@pytest.mark.parametrize("executor", ["ray", "processes"])
def test_reading_behind_computing_costs_nothing(executor):
    """While an actor computes one unit it fetches the next: the longest stage is not the bottleneck then."""
    overlapped = did(read=8.0, decode=3.0, session=6.0, encode=1.0, executor=executor)
    assert bottleneck(overlapped).name == "session"
    assert bottleneck(did(read=8.0, decode=3.0, session=6.0, encode=1.0, executor="local")).name == "read"


def test_many_loading_actors_are_faster_than_the_seconds_they_add_up_to():
    """Decoding took three times as long as the session, on eight actors: the one session set the pace."""
    assert bottleneck(did(decode=24.0, session=8.0, loaders=8, workers=1)).name == "session"
    assert bottleneck(did(decode=24.0, session=8.0, loaders=2, workers=1)).name == "decode"


def test_what_is_outside_the_stages_is_named_too():
    """Publishing and starting are no stage of a worker, and may take longer than all of them."""
    assert bottleneck(did(publish_s=11.0)).name == "publish"
    assert bottleneck(did(start_s=12.0, publish_s=1.0)).name == "start"
    assert bottleneck(did(session=17.0, start_s=9.0, publish_s=9.0)).name == "session"


@pytest.mark.parametrize("placed", [{}, {"executor": "local", "workers": 1}, {"loaders": 8, "workers": 1}])
def test_workers_that_had_nothing_to_do_are_no_slow_stage(placed):
    """Four short stages in a long time: actors started, or waited for units."""
    found = bottleneck(did(session=1.5, score_s=20.0, **placed))
    assert found.name == "idle"
    assert "of the time of scoring, and started or waited in the remaining time." in found.sentence


def test_the_sentence_says_how_much_of_what():
    """Seconds, share of all stages and, where the number of workers is known, of their time."""
    found = bottleneck(did(session=17.0))
    assert found.sentence == (
        "The bottleneck is the session: 17.0 s inside session.run, 85% of all stages' time, "
        "and 85% of the time of 2 workers."
    )
    assert "unet-batch model tune" in found.advice


def test_an_older_record_gives_a_shorter_sentence():
    """Where the record does not know its workers, nothing is said about their time."""
    assert bottleneck(did(session=17.0, workers=0)).sentence.endswith("85% of all stages' time.")


def test_nothing_scored_has_no_bottleneck():
    """A run that only published has nothing to be slow at."""
    assert bottleneck(Summary("r", publish_s=3.0)) is None
    assert stage_times(Summary("r")) == ()


def test_stage_times_are_shares_and_per_image():
    """In the order in which an image passes through the stages."""
    times = stage_times(did(session=7.0))
    assert [(time.stage, time.share, time.per_image_ms) for time in times] == [
        ("read", 0.1, 10.0),
        ("decode", 0.1, 10.0),
        ("session", 0.7, 70.0),
        ("encode", 0.1, 10.0),
    ]
    assert all(time.words == WORDS[time.stage] for time in times)


def test_a_gpu_that_always_computes_is_the_bottleneck_although_several_threads_encode_for_longer() -> None:
    """One actor, four threads of which encode for 30 s together, while its session is busy for 9.5 of 10 s."""
    busy = bottleneck(did(decode=60.0, session=9.5, encode=30.0, loaders=11, workers=1, score_s=10.0))
    starved = bottleneck(did(decode=105.0, session=3.0, encode=15.0, loaders=11, workers=1, score_s=10.0))
    behind = bottleneck(did(decode=60.0, session=6.0, encode=38.0, loaders=11, workers=1, score_s=10.0))
    assert [found.name for found in (busy, starved, behind)] == ["session", "decode", "encode"]
