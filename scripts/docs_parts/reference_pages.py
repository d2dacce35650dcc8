"""The pages of the reference, generated from the code that they describe; none of them is written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from unet_batch.cli.main import cli
from unet_batch.cli.reference import sections

PAGES = {
    "reference/job-file.md": "Job file",
    "reference/contract.md": "Contract of a model",
    "reference/columns.md": "Columns of the output",
    "reference/rejections.md": "Reasons of a rejection",
    "reference/exit-codes.md": "Exit codes",
}
"""Place of a page, and its section of `unet-batch schema`."""
ABOVE = {
    "Job file": """
A job is one YAML file. `unet-batch schema --json` prints this as JSON Schema, for editors. `--set section.key=value`
overrides any key on the command line.""",
    "Contract of a model": """
What a model expects and returns: a YAML file beside the model (`cells.yaml` beside `cells.onnx`), or the model's own
metadata. `unet-batch model inspect FILE` drafts one.""",
    "Columns of the output": """
One row for each image. [How to read the table](../how-to/read-the-table.md)""",
    "Reasons of a rejection": """
An image that cannot be scored gets a row with `status = rejected`, one of these reasons, and a `message` with the
details. Reasons are stable: filter on them. The last column says which ones ordinary runs try again, because the reason
may have passed.""",
    "Exit codes": """
Where several apply, the first of 3, 5, 4 is given: a scheduler that retries on 3, and on nothing else, finishes what
can be finished. [Exit 3, what now?](../how-to/exit-3.md)""",
}
"""What stands above a section's table."""

_SECTION = re.compile(r"\| \*\*`(?P<name>\w+)`\*\* \| section \| \| (?P<meaning>.*) \|$")
"""The row of a section of the job file or the contract; those of sections inside it have a dot in their name."""


def pages() -> dict[str, str]:
    """Markdown of every page, by its place in the site."""
    found = sections()
    tables = {place: f"# {name}\n{ABOVE[name]}\n\n{by_section(found[name])}\n" for place, name in PAGES.items()}
    return {**tables, "reference/command-line.md": command_line()}


def by_section(table: str) -> str:
    """A table of keys as one table for each section, with headings; other tables as they are."""
    heading, rule, *rows = table.splitlines()
    lines = [heading, rule]
    for row in rows:
        section = _SECTION.match(row)
        if section:
            lines += ["", f"## {section['name']}", "", section["meaning"], "", heading, rule]
        else:
            lines.append(row)
    return "\n".join(lines) if lines[2:3] != [""] else "\n".join(lines[3:])


def command_line() -> str:
    """The help text of every command, as the terminal shows it."""
    lines = ["# Command line", "", "`unet-batch COMMAND --help` prints the same.", ""]
    for path, command in commands(cli):
        context = click.Context(command, info_name=" ".join(path), terminal_width=100, **cli.context_settings)
        lines += [
            f"{'#' * min(len(path) + 1, 3)} {' '.join(path)}",
            "",
            "```text",
            command.get_help(context),
            "```",
            "",
        ]
    return "\n".join(lines)


def commands(group: click.Command, *above: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all below it, each with the words that call it."""
    path = above or ("unet-batch",)
    yield path, group
    if isinstance(group, click.Group):
        for name, inner in sorted(group.commands.items()):
            yield from commands(inner, *path, name)


def _fenced(text: str) -> list[str]:
    return ["```text", text, "```"]
