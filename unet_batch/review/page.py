"""A report as one self-contained HTML file: no network, no scripts, embedded pictures, charts as SVG.

Formats figures and computes none. The template engine escapes all text, because image names and messages are untrusted;
a policy in the page forbids scripts as well.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from unet_batch.review.census import CONFIDENCE_HISTOGRAM_MINIMA
from unet_batch.review.pictures import color_of
from unet_batch.review.report import RunReport
from unet_batch.store.objects import path_of, scheme_of
from unet_batch.table.rows import partition_values

PARTITIONS_SHOWN = 100
"""Most lines of partitions; those that need action come first."""
FILES_NAMED = 31
"""Most files in the SQL queries; with more partitions, the queries select the table by fingerprint."""

SMALLEST_SHARE = 1e-6
"""Less than a pixel of a megapixel."""


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of the run's partitions, the first sentence of the page."""

    state: Literal["complete", "incomplete", "replaced", "unknown"]
    sentence: str


def render(report: RunReport, *, now: datetime | None = None) -> bytes:
    """The page, UTF-8. now: the moment that it names as its own."""
    shown = sorted(report.partitions, key=lambda line: line.partition, reverse=True)
    shown.sort(key=lambda line: (line.published, not line.notes))
    page = template("report.html").render(
        report=report,
        verdict=run_state(report),
        lines=sorted(shown[:PARTITIONS_SHOWN], key=lambda line: line.partition),
        hidden=max(len(shown) - PARTITIONS_SHOWN, 0),
        queries=queries(report),
        made=now or datetime.now(UTC),
        minimum_of_axis=_minimum_of_axis,
        stretched=any(picture.stretched for picture in (*report.queue, *report.sample)),
    )
    return page.lstrip().encode()


def run_state(report: RunReport) -> RunState:
    """Whether the run's partitions are complete, in one sentence."""
    total = len(report.partitions)
    later = sum(line.now in ("replaced", "gone", "damaged") for line in report.partitions)
    missing = total - report.published - later
    if report.exit_code is None:
        rest = f"Published so far: {report.published} of {_partitions(total)}."
        return RunState("unknown", f"The record has no end: this run was killed, or is still running. {rest}")
    if report.exit_code == 0 and report.published == total:
        return RunState("complete", f"Every image that was listed in {_partitions(total)} has exactly one row.")
    if report.exit_code == 0:
        text = f"The run was complete, but readers no longer see its rows in {later:,} of {_partitions(total)}."
        return RunState("replaced", text)
    if not missing:
        return RunState("incomplete", "Its partitions were published, but the run had a problem.")
    return RunState(
        "incomplete", f"{missing:,} of {_partitions(total)} {'is' if missing == 1 else 'are'} not published."
    )


def queries(report: RunReport) -> str:
    """SQL (DuckDB) that computes the page's figures from the published rows."""
    lines = [line for line in report.partitions if line.published]
    root = f"{report.output}/predictions"
    names = [f"{root}/{line.partition}/data.parquet" for line in lines]
    files = ", ".join(_quoted(name) for name in names) if len(names) <= FILES_NAMED else _quoted(f"{root}/**/*.parquet")
    return f"""\
CREATE VIEW scored AS SELECT * FROM read_parquet([{files}])
  WHERE fingerprint = {_quoted(report.fingerprint, path=False)};

SELECT count(*), count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'rejected') FROM scored;

SELECT reason, count(*) FROM scored WHERE status = 'rejected' GROUP BY reason ORDER BY 2 DESC, 1;

SELECT area.id, area.name, count(*), avg(area.fraction), quantile_cont(area.fraction, [0.05, 0.5, 0.95])
  FROM (SELECT unnest(classes) AS area FROM scored WHERE status = 'ok') GROUP BY 1, 2 ORDER BY 1;

SELECT image_key, confidence FROM scored WHERE confidence IS NOT NULL ORDER BY confidence, image_key LIMIT 20;

SELECT avg(confidence), count(*) FILTER (len(classes) = 0) FROM scored WHERE status = 'ok';"""  # noqa: S608 - nothing here runs it


def _quoted(text: str, *, path: bool = True) -> str:
    local = path_of(text) if path and scheme_of(text) == "file" else text
    return "'" + local.replace("'", "''") + "'"


def _partitions(count: int) -> str:
    return "1 partition" if count == 1 else f"{count:,} partitions"


# Formats ------------------------------------------------------------------------------------------------------------


@cache
def template(name: str) -> Template:
    """A page's template: text is escaped, and a name without a value is an error."""
    environment = Environment(
        loader=PackageLoader("unet_batch.review"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "b64": lambda found: base64.b64encode(found).decode(),
        "number": lambda value: f"{value:,}",
        "percent": _percent,
        "moment": lambda moment: f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "seconds": _seconds,
        "bytes": _bytes,
        "short": _short,
        "edge": lambda value: f"{value:.4g}",
        "rgb": lambda id_: "#{:02x}{:02x}{:02x}".format(*color_of(id_)),
        "day": lambda partition: partition_values(partition).get("date", partition),
        "file": lambda key: key.rpartition("/")[2] or key,
    }
    return environment.get_template(name)


def _percent(share: float) -> str:
    """A share with two significant digits: 12%, 1.2%, 0.012%."""
    if share <= 0 or share >= 0.0995:
        return f"{share:.1%}" if 0 < share < 1 else f"{share:.0%}"
    if share < SMALLEST_SHARE:
        return f"<{SMALLEST_SHARE:.4%}"
    places = 1 - math.floor(math.log10(share * 100))
    return f"{share:.{max(places, 1)}%}"


def _minimum_of_axis(lowest: float) -> float:
    """Where the axis of confidences begins: the next limit of the histograms below, so that bars have some height."""
    below = (limit for limit in CONFIDENCE_HISTOGRAM_MINIMA if limit < lowest - 0.1 * (1 - lowest))
    return next(below, 0.0)


def _short(count: int) -> str:
    """A count in four characters at most: 999, 1.2k, 12k, 1.2M."""
    for limit, unit in ((1_000_000, "M"), (1000, "k")):
        if count >= limit:
            value = count / limit
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return str(count)


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
