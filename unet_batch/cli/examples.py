"""Examples at the end of every command's help, and what JOB is."""

from __future__ import annotations

from collections.abc import Iterator

import click

JOB_IS = "JOB is a job file in YAML: `unet-batch init` drafts one, `unet-batch schema` lists its keys."
EXAMPLES: dict[str, tuple[str, str]] = {
    "plan": ("plan job.yaml", "plan job.yaml --window 2026-11-01..2026-11-21"),
    "run": ("run job.yaml --report", "run job.yaml --window all --set limits.max_rejected=0.05"),
    "backfill": (
        "backfill job.yaml --window 2026-11 --select missing",
        "backfill job.yaml --window all --select failed --deadline 06:00",
    ),
    "submit": (
        "submit job.yaml --address http://head:8265 --follow",
        "submit job.yaml --address http://head:8265 --backfill missing --window 2026-11",
    ),
    "status": ("status job.yaml", "status job.yaml --window 2026-11 --list"),
    "verify": ("verify job.yaml", "verify job.yaml --window yesterday"),
    "report": ("report job.yaml", "report job.yaml --out report.html --pictures 24"),
    "sweep": ("sweep job.yaml --dry-run", "sweep job.yaml --keep-other-models"),
    "schema": ("schema", "schema --json"),
    "doctor": ("doctor", "doctor job.yaml --set session.providers=[cuda]"),
    "model export": (
        "model export network:UNet --weights cells.pt --input 1x256x256 --classes 2 --normalize unit --out cells.onnx",
        (
            "model export unet_batch.architectures:UNet --input 3x256x256 --classes 3 --normalize imagenet --color rgb "
            "--out unet.onnx"
        ),
    ),
    "model import": (
        "model import smp-folder --to model.onnx",
        "model import smp-folder --to model.onnx --classes background,cell --normalize imagenet",
    ),
    "model inspect": ("model inspect cells.onnx", "model inspect cells.onnx --size 512x512"),
    "model pack": (
        "model pack cells.onnx --out packed.onnx",
        "model pack cells.onnx --out packed.onnx --source uint16 --no-post",
    ),
    "model optimize": (
        "model optimize job.yaml",
        "model optimize job.yaml --window all --images 48 --out cells.fast.onnx",
    ),
    "model quantize": (
        "model quantize job.yaml --out cells-int8.onnx",
        "model quantize job.yaml --out cells-int8.onnx --images 48 --table",
    ),
    "model tune": ("model tune cells.onnx", "model tune job.yaml --batch-max 4 --rounds 2"),
    "model check": (
        "model check job.yaml --set model.engine=openvino",
        "model check job.yaml --set check.reference=cells.onnx --window all",
    ),
}
"""By command; commands that are not here have examples in their own help."""


def with_examples(group: click.Group) -> None:
    """Add an epilog to every command: what JOB is, if it takes one, and its examples."""
    for name, command in commands(group):
        lines = [JOB_IS] if any(p.human_readable_name.strip("[]") == "JOB" for p in command.params) else []
        if name in EXAMPLES:
            lines.append("\b\nExamples:\n" + "\n".join(f"  unet-batch {words}" for words in EXAMPLES[name]))
        command.epilog = "\n\n".join(lines) or command.epilog


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Name and command of all commands that are no groups."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command
