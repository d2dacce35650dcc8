"""The command `model optimize`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import SET_HELP, WINDOW_HELP, finish
from unet_batch.errors import JobError

if TYPE_CHECKING:
    from unet_batch.spec import JobSpec

LARGEST_SIDE = 1024
"""Largest side, in pixels, of a tile of a model that takes any size."""


@click.command()
@click.argument("job", metavar="JOB", type=click.Path())
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The ONNX file to write; default: MODEL.optimized.onnx beside the model.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)
@click.option("--window", metavar="A..B", help=WINDOW_HELP)
@click.option(
    "--images",
    type=click.IntRange(min=3),
    default=96,
    show_default=True,
    help="Tiles of the archive: two thirds calibrate, the others are held out for the comparison.",
)
@click.option("--rounds", type=click.IntRange(min=2), default=7, show_default=True, help="Runs of each candidate.")
def optimize(
    job: str, out: Path | None, overrides: tuple[str, ...], window: str | None, images: int, rounds: int
) -> None:
    """Find the fastest engine and precision for a job's model on this machine, and prove it on the job's archive.

    Builds every candidate that runs here, measures all of them in turn, and compares their labels with fp32 on images
    of the archive. The fastest within the tolerances of `check` is written to one file, which a job with
    `model.engine: auto` runs. Takes minutes.
    """
    from unet_batch.cli.terminal import plain, print_table
    from unet_batch.gate.parity import Tolerance
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.spec import load_job
    from unet_batch.workbench.files import check_place, replace_file
    from unet_batch.workbench.optimize.optimize import optimize as optimize_model
    from unet_batch.workbench.optimize.optimize import rows
    from unet_batch.workbench.quantize import SEED
    from unet_batch.workbench.sample import archive_tiles

    spec = load_job(job, overrides)
    target = out or _beside(spec)
    check_place(target)
    prepared = prepare(_in_fp32(spec))
    sample = archive_tiles(
        prepared, window_of(spec.window if window is None else window), images, largest_side=LARGEST_SIDE
    )
    found = optimize_model(
        prepared.model_bytes,
        prepared.model,
        list(sample.tiles_nhwc),
        Tolerance(spec.check.max_flipped, spec.check.min_dice, spec.check.max_abs_error),
        batch_max=min(spec.session.batch_max, 8),
        rounds=rounds,
        labels_suffice=not spec.output.confidence,
        gate_images=spec.check.images,
    )
    replace_file(target, found.data)
    heading, *lines = rows(found)
    print_table(
        f"against fp32 on {found.held_out_tiles} held-out tiles, {found.recommendation.machine}", heading, lines
    )
    for name, breaches in found.breaches.items():
        if breaches:
            click.echo(f"not within the tolerance: {name}: {plain('; '.join(breaches))}", err=True)
    for reason in found.left_out:
        click.echo(f"left out: {plain(reason)}", err=True)
    best = found.recommendation
    click.echo(
        f"fastest: {best.engine} on {best.provider} in {best.precision}, {best.speed:.2f} times the speed of fp32, "
        f"{best.threads} thread(s), batches up to {best.batch_max}\n{SEED}",
        err=True,
    )
    click.echo(f"wrote {target}; {_how_to_run(spec, target)}", err=True)
    report = {"path": str(target), **found.to_json()}
    replace_file(target.with_suffix(".optimize.json"), json.dumps(report, indent=1).encode())
    finish(report)


def _how_to_run(spec: JobSpec, target: Path) -> str:
    """What the user does next: nothing, where the job runs the file already."""
    from unet_batch.model.optimized import optimized_path
    from unet_batch.store.storage import canonical

    found = optimized_path(canonical(spec.model.path)) == canonical(str(target))
    if spec.model.engine == "auto" and found and spec.model.sha256 is None:
        return "the job runs it, because model.engine is auto"
    return f"in the job file:\nmodel:\n  path: {target}\n  engine: auto"


def _in_fp32(spec: JobSpec) -> JobSpec:
    """The job in fp32 in ONNX Runtime, without the gate: nothing is scored. Raises JobError for an ensemble."""
    if spec.model.ensemble is not None:
        raise JobError("model.ensemble: an ensemble cannot be optimised; optimise each of its models with its own job")
    model = spec.model.model_copy(update={"engine": "onnxruntime", "precision": "fp32"})
    check = spec.check.model_copy(update={"images": 0})
    return spec.model_copy(update={"model": model, "check": check})


def _beside(spec: JobSpec) -> Path:
    """The default name of the file. Raises JobError if the model is not on a local disk."""
    from unet_batch.model.optimized import optimized_path
    from unet_batch.store.storage import canonical

    uri = canonical(spec.model.path)
    if not uri.startswith("file://"):
        raise JobError(f"model.path {spec.model.path} is not on this machine: write --out FILE")
    return Path(optimized_path(spec.model.path.removeprefix("file://"))).expanduser()
