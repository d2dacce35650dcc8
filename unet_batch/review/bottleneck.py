"""Where the time of a run was spent, and what to do about it: pure functions of a summary.

The stages overlap in each placement in a different way; `_pace` describes how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from unet_batch.job.summary import Summary

Stage = Literal["read", "decode", "session", "encode"]
STAGES: tuple[Stage, ...] = ("read", "decode", "session", "encode")
"""In processing order."""

WORDS: Mapping[str, str] = {
    "read": "waiting for the store's bytes",
    "decode": "decoding and fitting",
    "session": "inside session.run",
    "encode": "cutting, stitching, reducing, encoding and putting parts",
    "publish": "publishing",
    "start": "starting the executor",
}
ADVICE: Mapping[str, str] = {
    "read": "Run closer to the store, raise `resources.fetch_threads`, or store images in shards: many small objects "
    "take longer than a few large ones.",
    "decode": "Use more cores (with GPUs: `resources.load_actors`), or store images at about the model's size. If the "
    "contract resizes JPEGs, `input.reduced_jpeg` decodes fewer pixels, but changes them.",
    "session": "The model itself takes the time. `unet-batch model tune` finds the best batch size and engine, "
    "`unet-batch model quantize` makes a faster file; otherwise use more workers.",
    "encode": "Write less: remove png from `output.masks`, set `output.confidence: false` if it is not used, or "
    "`output.geometry: model` if masks may have the model's size. If the output's store is slow, raise "
    "`limits.unit_images`, so that there are fewer parts to put.",
    "publish": "Publishing merges a partition's parts in the driver: run it near the output's store, and raise "
    "`limits.unit_images`, so that there are fewer parts to merge.",
    "idle": "Most of a short run is start-up: actors load the model, and the gate checks the session, before the first "
    "unit. Score several partitions in one run (`unet-batch backfill`). In a long run, workers may have no unit: lower "
    "`limits.unit_images`, so that there are more units.",
    "start": "Short runs spend most of their time on it: score several partitions in one run (`unet-batch backfill`).",
}
OCCUPIED_LEAST = 0.5
"""Share of their time that workers must spend in stages; below it, a faster stage would not help much."""

SATURATED = 0.9
"""Share of the time of scoring from which a session, or the loading actors, are what the others wait for, however long
encoding takes: on a GPU several threads of an actor encode, and only one batch computes."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage's share of a run."""

    stage: Stage
    words: str
    seconds: float
    """Sum over all workers."""
    share: float
    """Share of the seconds of all stages."""
    per_image_ms: float


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What limits the speed of a run."""

    name: str
    """A stage, `publish`, `start`, or `idle` if workers had no unit."""
    sentence: str
    advice: str


def stage_times(did: Summary) -> tuple[StageTime, ...]:
    """All four stages in order; empty if nothing was scored."""
    seconds = {stage: did.stage_s.get(f"{stage}_s", 0.0) for stage in STAGES}
    total, images = sum(seconds.values()), did.ok + did.rejected
    if total <= 0 or not images:
        return ()
    return tuple(
        StageTime(stage, WORDS[stage], spent, spent / total, 1000 * spent / images) for stage, spent in seconds.items()
    )


def bottleneck(did: Summary) -> Bottleneck | None:
    """What a run waited for longest; None if nothing was scored."""
    spent = {time.stage: time.seconds for time in stage_times(did)}
    if not spent:
        return None
    if did.publish_s > did.score_s > 0:
        return _outside("publish", did.publish_s, did)
    if did.start_s > did.score_s + did.publish_s > 0:
        return _outside("start", did.start_s, did)
    stage, occupied_s = _pace(spent, did)
    if did.workers and occupied_s < OCCUPIED_LEAST * did.score_s:
        share = occupied_s / did.score_s
        text = f"The bottleneck is not a stage: the workers were in one for {share:.0%} of the time of scoring"
        return Bottleneck("idle", f"{text}, and started or waited in the remaining time.", ADVICE["idle"])
    return Bottleneck(stage, f"The bottleneck is {_noun(stage)}: {_evidence(stage, spent, did)}.", ADVICE[stage])


def _pace(spent: Mapping[Stage, float], did: Summary) -> tuple[Stage, float]:
    """The slowest stage, and the seconds for which it occupied each actor of its kind.

    A worker, on Ray or as a process, works on two units: it reads one while it computes the other, so reading counts
    only if it takes longer than the computing. The plain loop reads and computes in turn. With separate load actors,
    the slower kind of actors counts; there the session and the encoding of other units run in parallel.
    """
    workers = max(did.workers, 1)
    if did.loaders:
        load = max(spent["decode"], (spent["read"] + spent["decode"]) / 2) / did.loaders
        session = spent["session"] / workers
        if session >= SATURATED * did.score_s:
            return "session", session
        if load >= SATURATED * did.score_s:
            return max(("read", "decode"), key=lambda stage: spent[stage]), load
        infer = max(session, spent["encode"] / workers)
        pair: tuple[Stage, Stage] = ("read", "decode") if load > infer else ("session", "encode")
        return max(pair, key=lambda stage: spent[stage]), max(load, infer)
    computed: tuple[Stage, ...] = ("decode", "session", "encode")
    computed_s = sum(spent[stage] for stage in computed)
    if did.executor != "local" and spent["read"] <= computed_s:
        return max(computed, key=lambda stage: spent[stage]), computed_s / workers
    if did.executor != "local":
        return "read", (spent["read"] + computed_s) / 2 / workers
    return max(STAGES, key=lambda stage: spent[stage]), (spent["read"] + computed_s) / workers


def _evidence(stage: Stage, spent: Mapping[Stage, float], did: Summary) -> str:
    where = did.loaders if did.loaders and stage in ("read", "decode") else did.workers
    kind = "loading actor" if did.loaders and stage in ("read", "decode") else "worker"
    total = sum(spent.values())
    text = f"{spent[stage]:,.1f} s {WORDS[stage]}, {spent[stage] / total:.0%} of all stages' time"
    if not where or did.score_s <= 0 or (share := spent[stage] / (where * did.score_s)) > 1:
        return text  # an older record, or stages that overlap in a worker
    return f"{text}, and {share:.0%} of the time of {where} {kind}{'s' if where > 1 else ''}"


def _noun(stage: Stage) -> str:
    return {"read": "reading", "decode": "decoding", "session": "the session", "encode": "encoding"}[stage]


def _outside(name: str, seconds: float, did: Summary) -> Bottleneck:
    return Bottleneck(
        name,
        f"The bottleneck is {WORDS[name]}: it took {seconds:,.1f} s, longer than scoring ({did.score_s:,.1f} s).",
        ADVICE[name],
    )
