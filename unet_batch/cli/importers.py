"""The command `model import`: models of other frameworks as verified ONNX files with contracts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from unet_batch.cli.command import finish
from unet_batch.cli.model import class_names
from unet_batch.workbench.export.forms import NORMALIZE_FORMS


@click.command("import")
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.option("--to", "out", type=click.Path(path_type=Path), required=True, help="The ONNX file to write.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights to take instead of the source's own.")
@click.option("--classes", metavar="N|A,B,…", help="Class names by channel; default: from the source.")
@click.option("--normalize", metavar="HOW", help=f"Normalisation of the training: {NORMALIZE_FORMS}.")
@click.option("--color", type=click.Choice(["gray", "rgb", "bgr", "bands"]), help="Meaning of the input channels.")
@click.option(
    "--fit",
    type=click.Choice(["tile", "stretch", "letterbox", "pad", "none"]),
    help="How an image gets the input's size.",
)
@click.option(
    "--activation",
    type=click.Choice(["logits", "softmax", "sigmoid", "labels"]),
    help="Meaning of the output values.",
)
@click.option("--input", "input_text", metavar="CxHxW", help="Channels, height, width of the input.")
@click.option("--output", help="Output with the mask, if there are several: a dict's key or a position in a tuple.")
@click.option("--opset", default=20, show_default=True, help="Version of ONNX's operators.")
@click.option("--trusted", is_flag=True, help="Load a source that is a program: it can run any code on this machine.")
@click.option("--allow-difference", is_flag=True, help="Import a model whose masks cannot equal the framework's own.")
@click.option(
    "--pictures",
    metavar="ARCHIVE",
    help="Pictures on which the size of allowed differences is measured: a folder, or an archive as `init` takes it.",
)
def import_model(
    source: Path,
    out: Path,
    weights: Path | None,
    classes: str | None,
    normalize: str | None,
    color: Literal["gray", "rgb", "bgr", "bands"] | None,
    fit: Literal["tile", "stretch", "letterbox", "pad", "none"] | None,
    activation: Literal["logits", "softmax", "sigmoid", "labels"] | None,
    input_text: str | None,
    output: str | None,
    opset: int,
    trusted: bool,
    allow_difference: bool,
    pictures: str | None,
) -> None:
    """Import a trained model from another framework's folder or file: ONNX file, contract, settings of the job.

    The file is verified against the network in PyTorch. Options replace what the source says or does not say.
    """
    from unet_batch.cli.terminal import plain, print_table
    from unet_batch.workbench.draft.allowed import sizes_on
    from unet_batch.workbench.export.arguments import parse_input
    from unet_batch.workbench.export.contract import contract_path, contract_text
    from unet_batch.workbench.export.export import require_packages
    from unet_batch.workbench.importers.imported import Options
    from unet_batch.workbench.importers.sources import read_source
    from unet_batch.workbench.importers.write import write

    require_packages()
    options = Options(
        weights=weights,
        classes=None if classes is None else class_names(classes),
        normalize=normalize,
        color=color,
        fit=fit,
        activation=activation,
        input_chw=None if input_text is None else parse_input(input_text),
        output=output,
        trusted=trusted,
        allow_difference=allow_difference,
    )
    importer, imported = read_source(source, options)
    report = write(importer.name, imported, out, opset=opset, allow_difference=allow_difference)
    print_table(
        f"{source}, read as {importer.name}",
        ["setting", "value", "from", "how"],
        [[fact.field, fact.value, fact.source, fact.how] for fact in imported.facts],
    )
    exported = report.exported
    if exported.contract is not None:
        click.echo(f"contract, also in {contract_path(out)}:\n{contract_text(exported.contract)}", err=True)
    if report.job_path is not None:
        click.echo(f"settings of the job, in {report.job_path}:\n{report.job_path.read_text()}", err=True)
    sizes = () if pictures is None else sizes_on(pictures, exported.path, imported.job, imported.differences)
    asks = "`--pictures ARCHIVE` measures how much it changes on your pictures"
    for difference in sizes or (f"{difference}; {asks}" for difference in imported.differences):
        click.echo(f"allowed difference: {plain(difference)}", err=True)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    guessed = [fact.field for fact in imported.facts if fact.how == "guessed"]
    if guessed:
        click.echo(f"guessed, so check: {', '.join(guessed)}", err=True)
    click.echo(
        f"wrote {out}: {exported.parameters / 1e6:.2f} M parameters, {len(exported.trials)} trials against PyTorch: "
        f"largest error {exported.parity.max_abs_error:.2g}, {exported.parity.flipped_share:.4%} of labels flipped",
        err=True,
    )
    finish({**report.to_json(), "sizes": [size.to_json() for size in sizes]})
