"""What the page of an evaluation, and that of a comparison, shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from unet_batch.planning.prepare import Prepared
from unet_batch.review.compare import Comparison
from unet_batch.review.differences.compare_tables import TableOfTexts
from unet_batch.review.differences.compare_tables import tables as tables_of_comparison
from unet_batch.review.differences.page import COMPARISON, EVALUATION, DifferencePage
from unet_batch.review.differences.pictures import draw
from unet_batch.review.evaluate import RULES, Evaluation
from unet_batch.review.evaluation_tables import tables as tables_of_evaluation
from unet_batch.review.masks.names import archive_root


def evaluation_page(
    prepared: Prepared, found: Evaluation, asked: Sequence[tuple[str, str]], *, wanted: Mapping[str, float]
) -> DifferencePage:
    """The page of an evaluation, with its worst images. asked: names and texts of what was evaluated.

    wanted: the least mean Dice by class. Raises StorageError only where the store fails as a whole.
    """
    failures = found.failures(wanted)
    unusable = [f"{count} image(s) not compared: {why}" for why, count in found.not_compared.most_common()]
    return DifferencePage(
        job=prepared.job.name,
        words=EVALUATION,
        about=(*asked, *_limits(wanted)),
        gate=_gate(wanted, failures),
        sentences=tuple(failures),
        tables=_below(archive_root(prepared.job.input.uri), tables_of_evaluation(found)),
        notes=(*unusable, *found.notes, RULES),
        pictures=draw(prepared, [found.pairs[key] for _, _, key in found.worst if key in found.pairs]),
    )


def comparison_page(
    prepared: Prepared, found: Comparison, asked: Sequence[tuple[str, str]], *, wanted: Mapping[str, float]
) -> DifferencePage:
    """The page of a comparison, with the images that differ most; arguments as those of `evaluation_page`."""
    failures = found.failures(wanted)
    return DifferencePage(
        job=prepared.job.name,
        words=COMPARISON,
        about=(*asked, *_limits(wanted)),
        gate=_gate(wanted, failures),
        sentences=tuple(failures),
        tables=_below(archive_root(prepared.job.input.uri), tables_of_comparison(found)),
        notes=found.notes,
        pictures=draw(prepared, list(found.pairs.values())),
    )


def _below(root: str, tables: Iterable[TableOfTexts]) -> tuple[TableOfTexts, ...]:
    """The tables with names of images below the archive: whole keys do not fit on a phone."""
    return tuple(
        (title, headings, [[cell.removeprefix(root) for cell in row] for row in rows])
        for title, headings, rows in tables
    )


def _limits(wanted: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(f"least mean Dice of {name}", f"{least:g}") for name, least in wanted.items()]


def _gate(wanted: Mapping[str, float], failures: Sequence[str]) -> Literal["passed", "failed", "none"]:
    if not wanted:
        return "none"
    return "failed" if failures else "passed"
