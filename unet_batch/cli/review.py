"""The commands that look at masks: as files for other tools, against the truth, and one run beside another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import finish, job_command
from unet_batch.errors import JobError, StorageError

if TYPE_CHECKING:
    from unet_batch.planning.prepare import Prepared
    from unet_batch.review.differences.page import DifferencePage
    from unet_batch.spec import JobSpec

REASONS_SHOWN = 10
"""The manifest has the reason of every image."""
MASK_FORMATS = ("png", "overlay", "coco", "geojson", "tiff")

min_dice = click.option(
    "--min-dice",
    "least",
    multiple=True,
    metavar="CLASS=DICE",
    help="Exit code 5 if the class's mean Dice is below it, or was not measured. May be repeated, once for a class.",
)


@job_command("all")
@click.option("--to", "format_", type=click.Choice(MASK_FORMATS), required=True, help="Format of the files.")
@click.argument("out", metavar="OUT")
def masks(job: JobSpec, window: str, format_: str, out: str) -> None:
    """Write the masks of published rows as files that other tools open. Nothing is scored.

    OUT is a folder or a URI; it is read and written with the job's output.options. Files are named after the images.
    The same command again writes only what is missing or has changed; OUT/manifest-FORMAT.csv says which file belongs
    to which image, or why there is none.

    \b
    png      indexed PNG: pixel values are classes, with a colour for each
    tiff     the same values as a gray TIFF, also beyond 255 classes
    overlay  the image at its own size with its masks, as JPEG; read again from the archive
    geojson  polygons in pixels with a class each, as QuPath opens them
    coco     one annotations.json with RLE, as pycocotools reads it

    \b
    Examples:
      unet-batch masks job.yaml --to png masks/
      unet-batch masks job.yaml --window 2026-11-21 --to coco s3://bucket/coco
    """
    from unet_batch.cli.terminal import plain
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.review.masks.export import export

    found = export(prepare(job), window_of(window), format_, out)
    for reason, count in found.without.most_common(REASONS_SHOWN):
        kind = "note" if reason.expected else "problem"
        click.echo(f"{kind}: {count} image(s) without a file: {plain(reason.why)}", err=True)
    if found.overlapping:
        click.echo(
            f"note: in {found.overlapping} image(s) classes overlap, and {format_} keeps the first class of each "
            "pixel; coco and geojson keep all",
            err=True,
        )
    if found.left:
        click.echo(f"note: {found.left} file(s) of earlier exports belong to no row any more", err=True)
    if not found.images:
        click.echo(f"problem: nothing is published in the window {window}; `unet-batch status` says what is", err=True)
    elif not found.files:
        click.echo(f"problem: no file was written: none of {found.images} published image(s) has masks", err=True)
    else:
        click.echo(
            f"wrote the masks of {found.written} of {found.images} images to {plain(found.out)}; {found.unchanged} "
            "were there already",
            err=True,
        )
    finish(found.to_json(), exit_code=found.exit_code)


@job_command("all")
@click.option(
    "--truth", "pattern", metavar="PATTERN", required=True, help="Label images, a COCO file, or a table's column."
)
@click.option(
    "--truth-key",
    metavar="COLUMN",
    help="Of a table: the column that names the image; default: image_key, else file_name.",
)
@min_dice
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Worst images that are listed.")
def evaluate(job: JobSpec, window: str, pattern: str, truth_key: str | None, least: tuple[str, ...], top: int) -> None:
    """Hold published masks against the truth: Dice, IoU, precision, recall and confusion. Nothing is scored.

    PATTERN is a URI or path, read with the job's input.options. It may hold {stem}, {case} (the stem without nnU-Net's
    _0000 at its end), {name}, {folder} and {page} of the image, and {date} or another column of the partition. Label
    images are indexed or gray PNG, BMP, GIF or TIFF of the image's size; their pixel values are those of
    `unet-batch masks --to png` (with one class, 255 is that class).
    A PATTERN that ends with .json is one COCO file with RLE or polygons, for all images. TABLE.parquet#COLUMN is a
    column with label images as bytes, or with RLE as the column `classes` of published rows.

    Empty masks follow MONAI's DiceMetric: "mean Dice" takes the images whose truth has the class (ignore_empty=True),
    "with empty" takes all of them: 1 where neither has it, 0 where only the prediction has it. A Parquet file beside
    the reports has the figures of every image, and an HTML page the tables and the worst images in pictures.

    \b
    Examples:
      unet-batch evaluate job.yaml --truth 'truth/{date}/{stem}.png'
      unet-batch evaluate job.yaml --truth 'labelsTs/{case}.png'
      unet-batch evaluate job.yaml --truth annotations.json --min-dice nucleus=0.9
    """
    from unet_batch.cli.terminal import plain, print_table
    from unet_batch.planning.prepare import new_run_id, prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.review.differences.gather import evaluation_page
    from unet_batch.review.evaluate import RULES
    from unet_batch.review.evaluate import evaluate as hold_against
    from unet_batch.review.evaluation_tables import tables
    from unet_batch.review.masks.rows import Labels
    from unet_batch.store.storage import join

    prepared = prepare(job)
    wanted = _limits(least)
    _known(wanted, tuple(Labels.of(prepared.model.contract.output).names.values()))
    found = hold_against(prepared, window_of(window), pattern, top=top, key_column=truth_key)
    for title, headings, rows in tables(found):
        print_table(title, headings, rows)
    for why, count in found.not_compared.most_common(REASONS_SHOWN):
        click.echo(f"note: {count} image(s) not compared: {plain(why)}", err=True)
    for note in (*found.notes, RULES):
        click.echo(f"note: {plain(note)}", err=True)
    failures = found.failures(wanted)
    for failure in failures:
        click.echo(f"problem: {plain(failure)}", err=True)
    name, page = join(prepared.output.reports, f"{new_run_id(prepared.job)}-evaluation"), None
    uri = f"{name}.parquet"
    if found.images:
        prepared.output.store.put(uri, found.parquet())
        click.echo(f"wrote the figures of every image to {plain(uri)}", err=True)
        asked = (("truth", pattern), ("window", window), ("output", prepared.output.uri))
        page = _write(prepared, f"{name}.html", evaluation_page(prepared, found, asked, wanted=wanted))
    if (nothing := found.nothing_compared()) is not None:
        click.echo(f"problem: {plain(nothing)}", err=True)
    result = {**found.to_json(), "failures": failures, "rows": uri if found.images else None, "page": page}
    finish(result, exit_code=found.exit_code(failures))


@job_command("all")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--b-output", metavar="URI", help="Another job's output that holds B.")
@min_dice
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Images that differ most.")
def compare(job: JobSpec, window: str, a: str, b: str, b_output: str | None, least: tuple[str, ...], top: int) -> None:
    """Compare the masks of two runs or models, e.g. before promoting a new model.

    A and B are runs, the first digits of a fingerprint, `published` (the rows that readers see) or `job` (this job's
    fingerprint).

    "mean Dice" takes the images in which A or B has the class; where only one has it, the image counts as 0. A Parquet
    file beside the reports has the figures of every image, and an HTML page the tables and the images that differ most
    in pictures.

    \b
    Examples:
      unet-batch compare job.yaml published job
      unet-batch compare job.yaml published published --b-output trial --min-dice nucleus=0.95
    """
    from unet_batch.cli.terminal import plain, print_table
    from unet_batch.planning.prepare import new_run_id, prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.review.compare import compare as compare_sides
    from unet_batch.review.differences.compare_tables import tables
    from unet_batch.review.differences.gather import comparison_page
    from unet_batch.review.masks.rows import Labels
    from unet_batch.store.storage import join

    prepared = prepare(job)
    wanted = _limits(least)
    found = compare_sides(prepared, a, b, window_of(window), b_output=b_output, top=top)
    # Another model's rows may have classes that this job's contract lacks.
    if found.total.compared:
        _known(wanted, (*Labels.of(prepared.model.contract.output).names.values(), *found.total.classes))
    for title, headings, rows in tables(found):
        print_table(title, headings, rows)
    for note in found.notes:
        click.echo(f"note: {plain(note)}", err=True)
    failures = found.failures(wanted)
    for failure in failures:
        click.echo(f"problem: {plain(failure)}", err=True)
    if (nothing := found.nothing_compared()) is not None:
        click.echo(f"problem: {plain(nothing)}", err=True)
    name, page = join(prepared.output.reports, f"{new_run_id(prepared.job)}-comparison"), None
    uri = f"{name}.parquet"
    if found.total.compared:
        prepared.output.store.put(uri, found.parquet())
        click.echo(f"wrote the figures of every image to {plain(uri)}", err=True)
        asked = (("A", a), ("B", b if b_output is None else f"{b} of {b_output}"), ("window", window))
        page = _write(prepared, f"{name}.html", comparison_page(prepared, found, asked, wanted=wanted))
    result = {**found.to_json(), "failures": failures, "rows": uri if found.total.compared else None, "page": page}
    finish(result, exit_code=found.exit_code(failures))


def _write(prepared: Prepared, uri: str, page: DifferencePage) -> str | None:
    """Put a page beside the reports. Its figures were printed before, so a store that refuses it ends no command."""
    from unet_batch.cli.terminal import plain
    from unet_batch.review.differences.page import render

    try:
        prepared.output.store.put(uri, render(page))
    except StorageError as error:
        click.echo(f"note: no page was written: {plain(str(error))}", err=True)
        return None
    click.echo(f"wrote {plain(uri)}", err=True)
    return uri


def _limits(texts: tuple[str, ...]) -> dict[str, float]:
    """Class → least mean Dice, of `--min-dice`. Raises JobError."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not name or not 0 <= value <= 1:
            raise JobError(f"--min-dice {text}: write CLASS=DICE; a Dice is a number from 0 to 1")
        if name in found:
            raise JobError(f"--min-dice {text}: {name} has another limit ({found[name]:g}) already: give it once")
        found[name] = value
    return found


def _known(wanted: dict[str, float], classes: tuple[str, ...]) -> None:
    """Raise JobError for a class that there is not."""
    for name, value in wanted.items():
        if name not in classes:
            known = ", ".join(dict.fromkeys(classes))
            raise JobError(f"--min-dice {name}={value:g}: there is no class {name}; the classes are {known}")
