"""The commands that look at published masks: as files for other tools, and against the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import finish, job_command

if TYPE_CHECKING:
    from unet_batch.spec import JobSpec

REASONS_SHOWN = 10
"""The manifest has the reason of every image."""
MASK_FORMATS = ("png", "overlay", "coco", "geojson", "tiff")


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
    click.echo(
        f"wrote the masks of {found.written} of {found.images} images to {plain(found.out)}; {found.unchanged} were "
        "there already",
        err=True,
    )
    finish(found.to_json(), exit_code=found.exit_code)
