"""The commands to start with: `init` drafts a job for a model and pictures, `score` runs such a draft at once."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unet_batch.cli.command import Scoring, finish
from unet_batch.cli.report import report_apart
from unet_batch.errors import ExitCode
from unet_batch.workbench.export.forms import NORMALIZE_FORMS

if TYPE_CHECKING:
    from unet_batch.archive.window import Window
    from unet_batch.planning.prepare import Prepared
    from unet_batch.workbench.draft.explore import Explored
    from unet_batch.workbench.draft.source import ModelRequest

OPTIONS = (
    click.option("--force", is_flag=True, help="Replace files of an earlier draft."),
    click.option("--weights", type=click.Path(path_type=Path), help="State dict of the network; no code in it is run."),
    click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="Of MODULE:FACTORY: an argument."),
    click.option("--input", "input_text", metavar="CxHxW", help="Of MODULE:FACTORY: channels and tile, as 3x256x256."),
    click.option("--classes", metavar="A,B,…", help="Names of the classes, by channel; otherwise guessed."),
    click.option("--normalize", metavar="HOW", help=f"Normalisation of the training: {NORMALIZE_FORMS}."),
    click.option("--color", type=click.Choice(["gray", "rgb", "bgr", "bands"]), help="Meaning of the input channels."),
    click.option(
        "--fit",
        type=click.Choice(["tile", "stretch", "letterbox", "pad", "none"]),
        help="How a picture gets the model's size.",
    ),
    click.option(
        "--activation",
        type=click.Choice(["logits", "softmax", "sigmoid", "labels"]),
        help="Meaning of the output values.",
    ),
    click.option("--trusted", is_flag=True, help="Load a source that is a program: it can run any code here."),
    click.option("--allow-difference", is_flag=True, help="Import a model whose masks cannot equal its framework's."),
)
"""What a user may say about the model, for both commands."""
TRUTH = "'TRUTH/{stem}.png'"


def about_the_model(body: Callable[..., None]) -> Callable[..., None]:
    """Decorator: adds OPTIONS."""
    for option in reversed(OPTIONS):
        body = option(body)
    return body


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("archive", metavar="ARCHIVE")
@click.option("--out", type=click.Path(path_type=Path), default=".", show_default=True, help="Folder of the job.")
@click.option("--yes", is_flag=True, help="Ask nothing: take every guess.")
@about_the_model
def init(model: str, archive: str, out: Path, yes: bool, **said: Any) -> None:
    """Draft a job for a model and pictures: contract, job file, and a contact sheet of what is not certain.

    MODEL is an ONNX file (external data beside it is merged), MODULE:FACTORY of a PyTorch network with --weights, or
    the folder of another framework that `model import` reads. ARCHIVE is a folder, tar, Parquet file or manifest, local
    or in a store, as input.uri of a job.

    It looks at 4 to 8 pictures and reads what model and files say. What they do not say (normalisation, order of
    colours, fit, meaning of logits) is tried: choices.png shows the same pictures under every variant. On a terminal
    you choose; elsewhere, and with --yes, the most plausible one is taken. Guesses are marked as guesses in the files,
    with the alternatives. Nothing is overwritten.

    \b
    Examples:
      unet-batch init nuclei.onnx ~/images
      unet-batch init network:UNet 's3://bucket/{date:%Y/%m/%d}/' --weights cells.pt --out cells --yes
    """
    from unet_batch.cli.terminal import answered
    from unet_batch.workbench.draft.drafted_from import forget, remember, was_begun
    from unet_batch.workbench.draft.explore import explore
    from unet_batch.workbench.draft.write import check_files, files_of, reserve, write_job, write_sheet

    request = _request(model, out, said)
    if was_begun(request) and not (out / "job.yaml").exists():
        click.echo(f"the draft in {out} was not finished: it is drafted again", err=True)
        request = replace(request, force=True)
    reserve(request)
    explored = explore(request, archive, say=_step)
    files = files_of(explored, out)
    check_files(files, force=request.force)
    remember(request, explored.source_model, whole=False)
    write_sheet(explored, files, force=request.force)
    if not yes and sys.stdin.isatty():
        explored = answered(explored, str(files.sheet)).with_head(request)
        files = files_of(explored, out)
    _say(explored)
    results = str(out / "results")
    job = write_job(explored, files, output=results, providers=_providers(), force=request.force)
    forget(request)
    contract = f"{files.contract}{'' if files.contract_is_new else ' (unchanged)'}"
    click.echo(f"wrote {files.job}, {contract} and {files.sheet}", err=True)
    findings = _diagnosed(job)
    job_path = shlex.quote(str(files.job))
    command = f"unet-batch run {job_path} --report"
    broken = any(not finding["runs"] for finding in findings)
    if explored.draft.guesses:
        click.echo(f"look at {files.sheet}: {len(explored.draft.guesses)} field(s) are guesses", err=True)
    click.echo(f"next: {command}" if not broken else f"correct {files.job}, then: {command}", err=True)
    if not broken and explored.draft.classifies:
        click.echo(f"then: read the columns label, score and classes of {results}/predictions", err=True)
    elif not broken:
        click.echo(f"then: unet-batch masks {job_path} --to overlay {shlex.quote(str(out / 'overlays'))}", err=True)
    finish(
        {
            "job": str(files.job),
            "contract": str(files.contract),
            "sheet": str(files.sheet),
            "guessed": {name: known.value for name, known in explored.draft.guesses.items()},
            "images": explored.seen.images,
            "differences": [size.to_json() for size in explored.differences],
            "findings": findings,
            "next": command,
        },
        exit_code=ExitCode.SETUP if broken else ExitCode.COMPLETE,
    )


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("folder", metavar="FOLDER")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of table, overlays and report.")
@about_the_model
def score(model: str, folder: str, out: Path, **said: Any) -> None:
    """Score pictures without a job file: the table, proven complete, an overlay of every picture, and a report.

    MODEL and FOLDER are those of `init`, and so are the guesses: they are printed, and OUT/choices.png shows what they
    do. The job that was run and its contract lie in OUT; correct them there and run the same command again. Every
    image is published, also where some are rejected. A classifier has labels in its rows, and no overlays. To score the
    same pictures every night, use `init` and `run`.

    \b
    Examples:
      unet-batch score nuclei.onnx ~/images --out masks
      unet-batch score network:UNet photos.tar --weights cells.pt --normalize imagenet --out masks
    """
    from unet_batch.cli.run import scored
    from unet_batch.job.stopping import stopped_by
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.review.masks.export import export
    from unet_batch.workbench.draft.drafted_from import remember, was_begun
    from unet_batch.workbench.draft.explore import explore
    from unet_batch.workbench.draft.write import check_files, earlier_job, files_of, write_job, write_sheet

    request = _request(model, out, said)
    job = earlier_job(request, folder)
    guessed: dict[str, Any] = {}
    if job is not None:
        click.echo(f"goes on with {out / 'job.yaml'} and its contract; --force drafts them again", err=True)
    else:
        if was_begun(request):  # then the files of a draft in OUT are its own: those of others were refused before
            click.echo(f"the draft in {out} was not finished: it is drafted again", err=True)
            request = replace(request, force=True)
        explored = explore(request, folder, say=_step)
        files = files_of(explored, out)
        check_files(files, force=request.force)
        remember(request, explored.source_model, whole=False)
        write_sheet(explored, files, force=request.force)
        _say(explored)
        job = write_job(explored, files, output=str(out), providers=_providers(), force=request.force, publish_all=True)
        remember(request, explored.source_model, whole=True)
        guessed = {name: known.value for name, known in explored.draft.guesses.items()}
    summary = scored(job, "all", "due", scoring=Scoring())
    if stopped_by() is not None:
        finish({**asdict(summary), "guessed": guessed}, exit_code=summary.exit_code)
    prepared, window = prepare(job), window_of("all")
    findings = _verified(prepared, window)
    classifies = prepared.model.contract.output.classifies
    overlays = None if classifies else export(prepared, window, "overlay", str(out / "overlays"))
    report = report_apart(job, summary.run) if summary.planned or summary.published else None
    click.echo(f"table:    {out}/predictions/**/data.parquet", err=True)
    if overlays is None:
        click.echo(
            "overlays: none, because a classifier has no masks: read the columns label, score, classes", err=True
        )
    else:
        click.echo(f"overlays: {out}/overlays ({overlays.written + overlays.unchanged} of {overlays.images})", err=True)
    if report is not None:
        click.echo(f"report:   {report.removeprefix('file://')}", err=True)
    if guessed:
        click.echo(
            f"guessed:  {', '.join(guessed)}; {out}/choices.png shows what they do. To correct one, edit the contract "
            f"in {out} and run the same command again",
            err=True,
        )
    if overlays is not None:
        job_path = shlex.quote(str(out / "job.yaml"))
        click.echo(f"with label images: unet-batch evaluate {job_path} --truth {TRUTH}", err=True)
    shown = None if overlays is None else overlays.to_json()
    result = {**asdict(summary), "guessed": guessed, "disagreements": findings, "overlays": shown}
    finish({**result, "report": report}, exit_code=ExitCode.UNFINISHED if findings else summary.exit_code)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="unet-batch-demo",
    show_default=True,
    help="Folder of the demo; a second call goes on in it.",
)
@click.option("--drawn", is_flag=True, help="Drawn pictures and a model of one convolution: nothing is downloaded.")
def demo(out: Path, drawn: bool) -> None:
    """Run the demo: a published nuclei U-Net on four days of real micrographs, with two broken files among them.

    It downloads one package of 41 MB with pip (napari-czann-segment, BSD-3-Clause; its digest is checked), lays model,
    archive and job file out, scores every day, proves that every image has exactly one row, and writes overlays and a
    report. Every step is a command that you can give yourself; they are printed.

    \b
    Examples:
      unet-batch demo
      unet-batch demo --drawn --out /tmp/demo
    """
    from unet_batch.cli.run import scored
    from unet_batch.job.stopping import stopped_by
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.review.masks.export import export
    from unet_batch.spec import load_job
    from unet_batch.workbench.demo.lay_out import lay_out

    days = lay_out(out, drawn=drawn, say=lambda text: click.echo(text, err=True))
    for day, text in days.items():
        click.echo(f"{out}/archive/2026/11/{day}: {text}", err=True)
    path = shlex.quote(str(out / "job.yaml"))

    def show(command: str) -> None:
        click.echo(f"$ unet-batch {command}", err=True)

    job = load_job(out / "job.yaml")
    if not drawn:
        click.echo(
            "scoring takes about 70 s of processor time, shared by the cores; a line follows every 10 s", err=True
        )
    show(f"run {path} --window all --report")
    summary = scored(job, "all", "due", scoring=Scoring())
    if stopped_by() is not None:
        finish(asdict(summary), exit_code=summary.exit_code)
    report = report_apart(job, summary.run) if summary.planned or summary.published else None
    show(f"verify {path} --window all")
    prepared, window = prepare(job), window_of("all")
    findings = _verified(prepared, window)
    show(f"masks {path} --to overlay {shlex.quote(str(out / 'overlays'))}")
    overlays = export(prepared, window, "overlay", str(out / "overlays"))
    click.echo(f"table:    {out}/output/predictions/**/data.parquet", err=True)
    click.echo(f"overlays: {out}/overlays ({overlays.written + overlays.unchanged} of {overlays.images})", err=True)
    if report is not None:
        click.echo(f"report:   {report.removeprefix('file://')}", err=True)
    result = {**asdict(summary), "disagreements": findings, "overlays": overlays.to_json(), "report": report}
    finish(result, exit_code=ExitCode.UNFINISHED if findings else summary.exit_code)


def _step(text: str) -> None:
    """Says what is done now, where it may take long."""
    from unet_batch.cli.terminal import plain

    click.echo(f"{plain(text)} …", err=True)


def _verified(prepared: Prepared, window: Window) -> int:
    """The disagreements between rows and archive, counted; says the result."""
    from unet_batch.job.verify import verify

    partitions, findings, _ = verify(prepared, window)
    agree = f"{partitions} partition(s) agree with the archive: every image has exactly one row"
    click.echo(agree if not findings else f"{len(findings)} disagreement(s)", err=True)
    return len(findings)


def _request(model: str, out: Path, said: dict[str, Any]) -> ModelRequest:
    from unet_batch.workbench.draft.source import ModelRequest

    classes = said.pop("classes")
    return ModelRequest(
        model=model,
        out=out,
        classes=None if classes is None else tuple(name.strip() for name in classes.split(",")),
        **said,
    )


def _say(explored: Explored) -> None:
    """The contract's fields with their origin, and notes."""
    from unet_batch.cli.terminal import plain, print_table
    from unet_batch.workbench.draft.known import written

    seen = explored.seen
    tensors = ("name", "layout", "dtype")
    shown = {
        name: known
        for name, known in explored.draft.fields.items()
        if known.origin == "guessed" or (known.origin != "default" and name.partition(".")[2] not in tensors)
    }
    print_table(
        f"contract of {explored.source_model.path}, {len(seen.pictures)} of {seen.images} images looked at",
        ["field", "value", "why"],
        [[name, written(known.value), known.comment] for name, known in shown.items()],
    )
    for note in explored.notes:
        click.echo(f"note: {plain(note)}", err=True)


def _providers() -> tuple[str, ...]:
    """CUDA where it runs on this machine, else the processor."""
    from unet_batch.workbench.doctor import runs_on

    return ("cuda",) if runs_on("cuda") else ("cpu",)


def _diagnosed(job: Any) -> list[dict[str, Any]]:
    """What `doctor` and `model check` find for the job, printed."""
    from unet_batch.cli.terminal import print_table
    from unet_batch.errors import UnetBatchError
    from unet_batch.planning.survey import window_of
    from unet_batch.workbench.diagnosis import check_job, diagnose_job
    from unet_batch.workbench.doctor import CheckResult

    findings = diagnose_job(job)
    if all(finding.runs for finding in findings):
        try:
            checked = check_job(job, window_of(job.window))
            said = "agrees with the trusted session" if checked else "the session is the trusted one itself"
            findings.append(CheckResult("job check", True, said))
        except UnetBatchError as error:
            findings.append(CheckResult("job check", False, str(error)))
    print_table(
        f"is job {job.name} in order?",
        ["subject", "state", "reason"],
        [[f.subject, "runs" if f.runs else "no", f.reason] for f in findings],
    )
    return [finding.to_json() for finding in findings]
