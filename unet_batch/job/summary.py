"""The summary of a run: the last line of stdout, and the end of its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from unet_batch.errors import ExitCode, overall
from unet_batch.records import Receipt, Unit
from unet_batch.table.plausibility import Implausible

EXAMPLES = 3


@dataclass(slots=True)
class Summary:
    """The results of a run; its JSON is the last line of stdout."""

    run: str
    planned: int = 0
    """Images without a row when the run began (pages of multi-page files are added when found)."""
    ok: int = 0
    rejected: int = 0
    remaining: int = 0
    """Images of this run that still have no row."""
    published: int = 0
    """Partitions that this run published."""
    images_per_s: float = 0.0
    """Images of this run over the time from the first unit to the last publication."""
    partitions: list[str] = field(default_factory=list)
    """Names of the published partitions."""
    mask_files: dict[str, int] = field(default_factory=dict)
    """Mask files that were written beside the table, by format; written after the run's record."""
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    """What may be wrong with the rows although nothing failed."""
    implausible: dict[str, dict[str, float]] = field(default_factory=dict)
    """What looks wrong in published rows: kind (empty, full, dim, unseen, confidence) → partition → share of its
    images; the sentences are in `hints`."""
    reasons: dict[str, int] = field(default_factory=dict)
    passed_over: list[dict[str, Any]] = field(default_factory=list)
    """Names in the archive that were passed over, from `PassedOver.to_json`."""
    provider: str | None = None
    executor: str | None = None
    workers: int = 0
    """Most workers that scored at the same time; 0 if nothing was scored."""
    loaders: int = 0
    """Actors that only read and decode; 0 if each worker loads its own units."""
    fingerprint: str = ""
    start_s: float = 0.0
    """Seconds to start the executor."""
    stop_s: float = 0.0
    """Seconds to end it, after the last publication."""
    score_s: float = 0.0
    publish_s: float = 0.0
    """Seconds that the driver published, or waited for the processes that do."""
    read_bytes: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds of all workers in reading, decoding, the session, and encoding."""
    batches: dict[int, int] = field(default_factory=dict)
    """Tiles in a batch → number of such batches."""
    out_of_memory: int = 0
    peak_worker_rss_bytes: int = 0
    dim_images: int = 0
    """Images whose largest value is above 0 and below 5 % of the normalisation's divisor."""
    range_used: float | None = None
    """Largest share of that divisor that an image reaches; None if nothing is divided."""
    exit_code: int = ExitCode.COMPLETE

    def problem(self, text: str, exit_code: int) -> None:
        """Record why the run is not complete."""
        self.problems.append(text)
        self.exit_code = overall((self.exit_code, exit_code))

    def warn(self, found: Iterable[Implausible]) -> None:
        """Record what looks wrong in published rows; the first sentence of each kind becomes a hint."""
        for warning in found:
            if warning.kind not in self.implausible:
                self.hints.append(warning.text)
            self.implausible.setdefault(warning.kind, {})[warning.partition] = round(warning.share, 4)

    def count(self, unit: Unit, receipt: Receipt) -> None:
        """Add the figures of a unit's receipt."""
        ok, rejected, rows, images = receipt.ok, receipt.rejected, receipt.rows, len(unit.sources)
        # No call in between: CPython raises what a signal means at calls, and then all four or none have changed.
        self.ok += ok
        self.rejected += rejected
        self.remaining -= images
        self.planned += rows - images
        self.provider = receipt.provider or self.provider
        self.read_bytes += receipt.images_read_bytes
        self.out_of_memory += receipt.out_of_memory
        self.peak_worker_rss_bytes = max(self.peak_worker_rss_bytes, receipt.peak_rss_bytes)
        self.dim_images += receipt.dim_images
        if receipt.range_used is not None:
            self.range_used = max(self.range_used or 0.0, receipt.range_used)
        for name in ("read_s", "decode_s", "session_s", "encode_s"):
            self.stage_s[name] = self.stage_s.get(name, 0.0) + getattr(receipt, name)
        self.reasons = dict(Counter(self.reasons) + Counter(dict(receipt.reasons)))
        self.batches = dict(Counter(self.batches) + Counter(dict(receipt.batches)))

    def close(self, scoring_s: float) -> None:
        """Round the figures and settle the exit code. scoring_s: from the first unit to the last publication."""
        self.stage_s = {name: round(seconds, 3) for name, seconds in self.stage_s.items()}
        for name in ("score_s", "publish_s", "start_s", "stop_s"):
            setattr(self, name, round(getattr(self, name), 3))
        self.images_per_s = round((self.ok + self.rejected) / scoring_s, 2) if scoring_s else 0.0
        self.hints += self._more_partitions()
        self.hints += self._range_hints()
        if self.remaining and self.exit_code == ExitCode.COMPLETE:
            self.exit_code = ExitCode.UNFINISHED

    def _range_hints(self) -> list[str]:
        """A hint about a divisor of `unit` or `mean_std` that is too small, from the observed range of values."""
        if self.range_used is not None and self.range_used > 1:
            what = f"an image reaches {self.range_used:.3g} times the value that its normalisation divides by"
            remedy = "write the right divisor as input.normalize.max in the contract"
            return [f"{what}, so the model gets values it was not trained on: {remedy}"]
        return []

    def _more_partitions(self) -> Iterator[str]:
        """Names of the partitions whose sentences are left out."""
        for kind, partitions in self.implausible.items():
            more = list(partitions)[1:]
            if more:
                names = ", ".join(more[:EXAMPLES]) + (" …" if len(more) > EXAMPLES else "")
                yield f"{len(more)} more partition(s) look wrong in the same way ({kind}): {names}"
