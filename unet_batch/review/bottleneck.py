"""Where the time of a run went, and what to do about it: sentences from a summary, as a pure function.

Knows how the stages overlap in each placement; knows no store and no rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from unet_batch.job.summary import Summary

Stage = Literal["read", "decode", "session", "encode"]
STAGES: tuple[Stage, ...] = ("read", "decode", "session", "encode")
"""In the order in which an image passes through them."""

WORDS: Mapping[str, str] = {
    "read": "waiting for the store's bytes",
    "decode": "decoding and fitting",
    "session": "inside session.run",
    "encode": "cutting, stitching, reducing, encoding and putting parts",
    "publish": "publishing",
    "start": "starting the executor",
}
ADVICE: Mapping[str, str] = {
    "read": "Run closer to the store, raise `resources.fetch_threads`, or keep images in shards: many small objects "
    "wait longer than a few large ones.",
    "decode": "Give it more cores (beside GPUs: `resources.load_actors`), or store images nearer to the size that the "
    "model sees; where the contract resizes JPEGs, `input.reduced_jpeg` decodes fewer pixels, and changes them.",
    "session": "This is the work itself. `unet-batch model tune` finds the batch size and the engine that pay, "
    "`unet-batch model quantize` a faster file; else more workers.",
    "encode": "Write less: leave png out of `output.masks`, set `output.confidence: false` where nobody reads it, or "
    "`output.geometry: model` where masks may have the model's size. If the output's store is slow, raise "
    "`limits.unit_images`, so that fewer parts are put.",
    "publish": "Publishing merges a partition's parts in the driver: run it near the output's store, and raise "
    "`limits.unit_images`, so that there are fewer parts to merge.",
    "idle": "A short run is mostly start: actors load the model, and a gate looks at the session, before the first "
    "unit. Let one run score several partitions (`unet-batch backfill`). In a long run, units that are too few leave "
    "workers without one: lower `limits.unit_images`.",
    "start": "Short runs pay it over and over: let one run score several partitions (`unet-batch backfill`).",
}
OCCUPIED_LEAST = 0.5
"""Workers that are in no stage for longer than in all of them would not be sped up much by a faster stage."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage's share of a run."""

    stage: Stage
    words: str
    seconds: float
    """Of all workers together."""
    share: float
    """Of the seconds of all stages."""
    per_image_ms: float


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What a run would have to do faster to be faster."""

    name: str
    """A stage, `publish`, `start`, or `idle` where workers had nothing to do."""
    sentence: str
    advice: str


def stage_times(did: Summary) -> tuple[StageTime, ...]:
    """All four stages in their order; none where nothing was scored."""
    seconds = {stage: did.stage_s.get(f"{stage}_s", 0.0) for stage in STAGES}
    total, images = sum(seconds.values()), did.ok + did.rejected
    if total <= 0 or not images:
        return ()
    return tuple(
        StageTime(stage, WORDS[stage], spent, spent / total, 1000 * spent / images) for stage, spent in seconds.items()
    )


def bottleneck(did: Summary) -> Bottleneck | None:
    """What a run waited for longest; None where nothing was scored."""
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
        text = f"The bottleneck is no stage: the workers were in one for {share:.0%} of the time of scoring"
        return Bottleneck("idle", f"{text}, and started or waited for the rest.", ADVICE["idle"])
    return Bottleneck(stage, f"The bottleneck is {_noun(stage)}: {_evidence(stage, spent, did)}.", ADVICE[stage])


def _pace(spent: Mapping[Stage, float], did: Summary) -> tuple[Stage, float]:
    """The stage that sets the pace, and the seconds for which it occupied each actor of its kind.

    A worker has two units under way, on Ray and as a process: it waits for the bytes of one, or of both, while at most
    one is computed, so reading costs time only where it takes longer than all that the worker computes meanwhile. The
    plain loop does one after the other. With actors of their own for loading, the slower kind sets the pace, whatever
    the seconds of the other one add up to; there the session and the encoding of another unit go on side by side.
    """
    workers = max(did.workers, 1)
    if did.loaders:
        load = max(spent["decode"], (spent["read"] + spent["decode"]) / 2) / did.loaders
        infer = max(spent["session"], spent["encode"]) / workers
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
        return text  # an older record, or stages that overlap in one worker
    return f"{text}, and {share:.0%} of the time of {where} {kind}{'s' if where > 1 else ''}"


def _noun(stage: Stage) -> str:
    return {"read": "reading", "decode": "decoding", "session": "the session", "encode": "encoding"}[stage]


def _outside(name: str, seconds: float, did: Summary) -> Bottleneck:
    return Bottleneck(
        name,
        f"The bottleneck is {WORDS[name]}: it took {seconds:,.1f} s, longer than scoring ({did.score_s:,.1f} s).",
        ADVICE[name],
    )
