"""(f) What the report of the section `job` names as the bottleneck, and what the figures beside it say."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from gpu_parts.results import Results, Skipped, read
from gpu_parts.settings import Settings

from unet_batch.job.summary import Summary
from unet_batch.review.bottleneck import bottleneck, stage_times


def run(settings: Settings, results: Results) -> None:
    """A row for each job under `rows`. Raises Skipped if no job ran."""
    jobs = [row for row in read(settings.out, "job").get("rows", []) if row["runs"]]
    if not jobs:
        raise Skipped("no job has run")
    for job in jobs:
        did = summary_of(job["runs"][-1]["summary"])
        named = bottleneck(did)
        results.add(
            "rows",
            {
                "job": job["name"],
                "ratio": job.get("steady_ratio", job["ratio"]),
                "name": named.name if named else None,
                "sentence": named.sentence if named else "nothing was scored",
                "advice": named.advice if named else "",
                "ms_per_image": {time.stage: round(time.per_image_ms, 3) for time in stage_times(did)},
                "actors": {"session": did.workers, "load": did.loaders},
                "gpu_busy_mean": job["runs"][-1]["gpu"].get("utilization.gpu", {}).get("busy_mean"),
            },
        )


def summary_of(tree: dict[str, Any]) -> Summary:
    """A run's summary from the JSON that it printed."""
    known = {field.name for field in fields(Summary)}
    return Summary(**{name: value for name, value in tree.items() if name in known})
