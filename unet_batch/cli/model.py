"""The `model` commands: export, inspect, pack, quantize, tune, check, optimize; and `doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal, cast

import click

from unet_batch.cli.command import SET_HELP, WINDOW_HELP, finish
from unet_batch.cli.optimize import optimize
from unet_batch.errors import ExitCode, JobError, ModelRefused
from unet_batch.workbench.export.forms import NORMALIZE_FORMS


@click.group()
def model() -> None:
    """Prepare a model for scoring: export, import, inspect, pack, optimize, quantize, tune, check."""


model.add_command(optimize)


@model.command()
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The ONNX file to write.")
@click.option("--input", "input_text", required=True, metavar="CxHxW", help="Channels, height, width: 1x256x256.")
@click.option("--classes", required=True, metavar="N|A,B,…", help="Number of classes, or their names by channel.")
@click.option("--weights", type=click.Path(path_type=Path), help="State dict: torch.save or safetensors; runs no code.")
@click.option(
    "--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="Argument of the factory. May be repeated."
)
@click.option("--dynamic", default="batch", show_default=True, help="Open axes: batch, or batch,height,width.")
@click.option("--opset", default=20, show_default=True, help="Version of ONNX's operators.")
@click.option("--normalize", metavar="HOW", help=f"Normalisation of the training: {NORMALIZE_FORMS}.")
@click.option("--color", type=click.Choice(["gray", "rgb", "bgr", "bands"]), help="Meaning of the input channels.")
@click.option(
    "--fit",
    type=click.Choice(["tile", "stretch", "letterbox", "pad", "none"]),
    help="How an image gets the input's size; default: tile.",
)
@click.option(
    "--activation",
    type=click.Choice(["logits", "softmax", "sigmoid", "labels"]),
    help="Meaning of the output values; default: from the graph.",
)
@click.option("--output", help="Output with the mask, if there are several: a dict's key or a position in a tuple.")
def export(
    factory: str,
    out: Path,
    input_text: str,
    classes: str,
    weights: Path | None,
    arguments: tuple[str, ...],
    dynamic: str,
    opset: int,
    normalize: str | None,
    color: Literal["gray", "rgb", "bgr", "bands"] | None,
    fit: Literal["tile", "stretch", "letterbox", "pad", "none"] | None,
    activation: Literal["logits", "softmax", "sigmoid", "labels"] | None,
    output: str | None,
) -> None:
    """Export a PyTorch network to ONNX and verify the file; it is written only if it agrees with the network.

    On a terminal the command asks for the settings that are missing; elsewhere, without them the file has no contract.
    """
    from unet_batch.cli.terminal import training_settings
    from unet_batch.workbench.export.arguments import parse_args, parse_input, parse_normalize
    from unet_batch.workbench.export.contract import contract_path, contract_text
    from unet_batch.workbench.export.export import ExportSpec
    from unet_batch.workbench.export.export import export as export_network

    input_chw = parse_input(input_text)
    if sys.stdin.isatty():
        normalize, color, fit, activation = training_settings(input_chw[0], (normalize, color, fit, activation))
    report = export_network(
        ExportSpec(
            factory=factory,
            out=out,
            input_chw=input_chw,
            classes=class_names(classes),
            args=parse_args(arguments),
            weights=weights,
            activation=activation,
            normalize=None if normalize is None else parse_normalize(normalize, input_chw[0]),
            color=color,
            fit=fit or "tile",
            any_size=_any_size(dynamic),
            opset=opset,
            output=output,
        )
    )
    if report.contract is not None:
        click.echo(f"contract, also in {contract_path(out)}:\n{contract_text(report.contract)}", err=True)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    parity = report.parity
    click.echo(
        f"wrote {report.path}: {report.parameters / 1e6:.2f} M parameters, opset {report.opset}, "
        f"{len(report.trials)} trials against PyTorch: largest error {parity.max_abs_error:.2g}, "
        f"{parity.flipped_share:.4%} of labels flipped",
        err=True,
    )
    finish(report.to_json())


@model.command()
@click.argument("path", metavar="MODEL")
@click.option("--size", metavar="HxW", help="Tile size for the figures, if the model takes any size.")
def inspect(path: str, size: str | None) -> None:
    """Show a model's inputs, outputs and cost, and its contract or a draft."""
    from unet_batch.cli.terminal import console
    from unet_batch.store.storage import Storage, canonical
    from unet_batch.workbench.inspect import inspect as inspect_model
    from unet_batch.workbench.inspect_text import render

    uri = canonical(path)
    found = inspect_model(Storage().read(uri), uri, tile_hw=None if size is None else _size(size))
    for piece in render(found):
        console().print(piece)
    finish(found.to_json())


@model.command()
@click.argument("path", metavar="MODEL")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The packed ONNX file to write.")
@click.option("--contract", help="Contract of the model; default: beside it, or in its metadata.")
@click.option("--source", type=click.Choice(["uint8", "uint16"]), default="uint8", show_default=True, help="Pixels in.")
@click.option("--pre/--no-pre", default=True, show_default=True, help="Layout and normalisation in the graph.")
@click.option("--post/--no-post", default=True, show_default=True, help="Labels instead of scores.")
def pack(path: str, out: Path, contract: str | None, source: Any, **parts: bool) -> None:
    """Move pre- and postprocessing into the graph, and prove that the labels stay the same."""
    from unet_batch.session.model_files import model_at
    from unet_batch.spec import TilingSpec
    from unet_batch.workbench.files import replace_file
    from unet_batch.workbench.packing.pack import PackSpec
    from unet_batch.workbench.packing.pack import pack as pack_model

    data, found = model_at(path, contract, TilingSpec())
    packed = pack_model(data, found, PackSpec(source_dtype=source, **parts))
    replace_file(out, packed.data)
    for note in packed.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(
        f"wrote {out}: {packed.bytes_after} bytes in and out per tile instead of {packed.bytes_before}", err=True
    )
    report = {
        "path": str(out),
        "sha256": packed.model.sha256,
        "source_sha256": found.sha256,
        "bytes_before": packed.bytes_before,
        "bytes_after": packed.bytes_after,
        "notes": list(packed.notes),
    }
    replace_file(out.with_suffix(".pack.json"), json.dumps(report, indent=1).encode())
    finish(report)


@model.command()
@click.argument("job", metavar="JOB", type=click.Path())
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The quantised ONNX file to write.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)
@click.option("--window", metavar="A..B", help=WINDOW_HELP)
@click.option("--images", type=click.IntRange(min=3), default=24, show_default=True, help="Tiles to calibrate with.")
@click.option("--kind", type=click.Choice(["int8", "fp16"]), default="int8", show_default=True, help="int8 for CPUs.")
@click.option("--any-cpu", is_flag=True, help="Weights in 7 bits: also right on processors without VNNI or AMX.")
@click.option("--table", is_flag=True, help="Also measure other variants; takes minutes.")
def quantize(
    job: str,
    out: Path,
    overrides: tuple[str, ...],
    window: str | None,
    images: int,
    kind: Literal["int8", "fp16"],
    any_cpu: bool,
    table: bool,
) -> None:
    """Quantise a job's model with images of its archive, within the tolerances of `check`."""
    from unet_batch.cli.terminal import print_table
    from unet_batch.gate.parity import Tolerance
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.session.engines import file_precision
    from unet_batch.spec import load_job
    from unet_batch.workbench.files import check_place, replace_file
    from unet_batch.workbench.quantize import QuantizeSpec, rows, split
    from unet_batch.workbench.quantize import quantize as quantize_model
    from unet_batch.workbench.sample import archive_tiles

    check_place(out)
    spec = load_job(job, overrides)
    # The source is only calibrated here, so it needs no reference.
    prepared = prepare(spec.model_copy(update={"check": spec.check.model_copy(update={"images": 0})}))
    sample = archive_tiles(prepared, window_of(spec.window if window is None else window), images)
    tolerance = Tolerance(spec.check.max_flipped, spec.check.min_dice, spec.check.max_abs_error)
    asked = QuantizeSpec(kind=kind, tolerance=tolerance, reduce_range=True if any_cpu else None)
    made = quantize_model(prepared.model_bytes, prepared.model, sample.tiles_nhwc, asked)
    if file_precision(made.data) != kind:
        raise ModelRefused(f"no layer of {spec.model.path} was quantised: its first and last layers stay fp32")
    replace_file(out, made.data)
    report = made.report.to_json()
    heading, *lines = rows(made.report)
    print_table("compared with fp32, on tiles not used for calibration", heading, lines)
    if table and kind == "int8":
        from unet_batch.workbench import variants

        ways = variants.variants(prepared.model_bytes, made.data)
        _, held_out = split(list(sample.tiles_nhwc))
        figures = variants.measure(ways, prepared.model, held_out)
        heading, *lines = variants.rows(figures)
        print_table("variants, interleaved runs", heading, lines)
    for note in made.report.notes:
        click.echo(f"note: {note}", err=True)
    replace_file(out.with_suffix(".quantize.json"), json.dumps(report, indent=1).encode())
    finish({"path": str(out), **report})


@model.command()
@click.argument("path", metavar="MODEL")
@click.option("--contract", help="Contract of the model; default: beside it, or in its metadata.")
@click.option("--batch-max", type=click.IntRange(min=1), default=8, show_default=True, help="Largest batch to try.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each point.")
@click.option("--size", metavar="HxW", help="Tile size, if the model takes any size.")
@click.option("--remember/--no-remember", default=True, show_default=True, help="Store the result for jobs here.")
def tune(
    path: str,
    contract: str | None,
    batch_max: int,
    rounds: int,
    size: str | None,
    remember: bool,
) -> None:
    """Measure batch sizes, threads and engines on this machine, and store the result for jobs.

    MODEL is an ONNX file, or a job file (.yaml): then what the job runs is timed, with its `tta`.
    """
    from unet_batch.cli.terminal import print_table
    from unet_batch.session.engines import file_precision
    from unet_batch.session.ladder import LadderMemory
    from unet_batch.spec import Precision, SessionSpec
    from unet_batch.workbench import tune as tuning

    asked = tuning.model_to_tune(path, contract)
    precision = cast(Precision, file_precision(asked.data, asked.path))
    profile = tuning.tune(
        asked.data,
        asked.model,
        SessionSpec(batch_max=batch_max),
        precision=precision,
        rounds=rounds,
        tile_hw=None if size is None else _size(size),
        tta=asked.tta,
    )
    heading, *lines = profile.rows()
    each = f", {profile.passes} passes of each tile (tta: {asked.tta})" if profile.passes > 1 else ""
    print_table(f"{asked.path} in {precision} on this machine{each}", heading, lines)
    for reason in profile.left_out:
        click.echo(f"left out: {reason}", err=True)
    kept = tuning.remember(profile, LadderMemory(precision)) if remember else 0
    finish({**profile.to_json(), "remembered": kept})


@model.command()
@click.argument("job", metavar="JOB", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)
@click.option("--window", metavar="A..B", help=WINDOW_HELP)
def check(job: str, overrides: tuple[str, ...], window: str | None) -> None:
    """Compare a job's session with a trusted one on images of its archive, as every run does before its first unit."""
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.spec import load_job
    from unet_batch.workbench.diagnosis import check_job
    from unet_batch.workbench.peak import crash_message
    from unet_batch.workbench.tune import tile_of

    prepared = prepare(load_job(job, overrides))
    spec = prepared.job
    if spec.model.engine != "onnxruntime" and spec.model.ensemble is None:
        # A crash here would end this command without a message.
        scored = prepared.model
        shape = (scored.batch or 1, *tile_of(scored, None), scored.contract.input.channels)
        crash = crash_message(
            prepared.model_bytes,
            scored,
            spec.session,
            shape_nhwc=shape,
            engine=spec.model.resolved_engine,
            precision=spec.model.precision,
        )
        if crash is not None:
            raise ModelRefused(crash)
    checked = check_job(spec, window_of(spec.window if window is None else window))
    said = "agrees with the trusted one" if checked else "is the trusted one itself (or check.images is 0)"
    click.echo(f"the session of {spec.name} {said}", err=True)
    finish({"checked": checked, "agrees": True if checked else None})


def class_names(text: str) -> tuple[str, ...]:
    """Class names: `3` means background and two classes; other texts are lists of names."""
    if not text.isdecimal():
        return tuple(name.strip() for name in text.split(","))
    count = int(text)
    return ("foreground",) if count == 1 else ("background", *(f"class_{n}" for n in range(1, count)))


def _any_size(text: str) -> bool:
    """Whether height and width are open; they are open only together, and the batch always is."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if names - {"batch"} not in (set(), {"height", "width"}):
        raise JobError(f"--dynamic {text!r} is not batch or batch,height,width")
    return len(names - {"batch"}) == 2


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise JobError(f"--size {text!r} is not of the form HxW, such as 256x256")
    return int(height), int(width)


@click.command()
@click.argument("job", metavar="[JOB]", required=False, type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)
def doctor(job: str | None, overrides: tuple[str, ...]) -> None:
    """Show what this machine can run, why not the rest, and whether a job's stores and model are in order."""
    from unet_batch.cli.terminal import print_table
    from unet_batch.spec import load_job
    from unet_batch.workbench.diagnosis import diagnose_job
    from unet_batch.workbench.doctor import diagnose, machine

    here = machine()
    findings = diagnose()
    if job is not None:
        findings += diagnose_job(load_job(job, overrides))
    print_table(
        f"{here.processor}: {here.cores} cores, int8 {'pays' if here.int8 else 'does not pay'}",
        ["subject", "state", "reason"],
        [[f.subject, "runs" if f.runs else "no", f.reason] for f in findings],
    )
    broken = job is not None and any(not f.runs for f in findings if f.subject.startswith("job "))
    finish(
        {"machine": here.to_json(), "findings": [f.to_json() for f in findings]},
        exit_code=ExitCode.SETUP if broken else ExitCode.COMPLETE,
    )
