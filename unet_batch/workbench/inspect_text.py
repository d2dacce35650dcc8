"""An inspection of an ONNX file as text and tables for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unet_batch.workbench.inspect import Inspection, by

if TYPE_CHECKING:
    from rich.console import RenderableType

COMMENT_CHARS = 78
"""Longest line of a comment in a drafted contract."""


def render(inspection: Inspection) -> list[RenderableType]:
    """The inspection as tables and text for a rich console."""
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text

    facts = Table(show_header=False, box=None, title=inspection.uri, title_justify="left")
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, value in _facts(inspection):
        facts.add_row(name, Text(value))
    shown: list[RenderableType] = [facts]
    shown += [Text(f"• {sentence}") for sentence in inspection.findings]
    shown.append(Text("contract in the file's metadata:" if inspection.contract_embedded else "draft of a contract:"))
    shown.append(Syntax(_folded(inspection.contract), "yaml", background_color="default"))
    return shown


def _folded(contract: str) -> str:
    """The contract with its comments in short lines, so that it can be copied from a terminal."""
    comment = textwrap.TextWrapper(COMMENT_CHARS, subsequent_indent="# ")
    return "\n".join(comment.fill(line) if line.startswith("# ") else line for line in contract.splitlines())


def _facts(seen: Inspection) -> Iterator[tuple[str, str]]:
    yield "file", f"{seen.bytes:,} bytes, SHA-256 {seen.sha256}"
    others = "".join(f", {name} {version}" for name, version in seen.domains.items())
    yield "written by", f"{seen.producer or 'unknown'}: opset {seen.opset}{others}, IR {seen.ir_version}"
    for word, tensors in (("input", seen.inputs), ("output", seen.outputs)):
        for tensor in tensors:
            axes = ", ".join("?" if size is None else str(size) for size in tensor.shape)
            yield word, f"{tensor.name}: {tensor.dtype} [{axes}]"
    yield "parameters", f"{seen.parameters:,} in {seen.precision}"
    yield "nodes", f"{seen.nodes}: {', '.join(f'{name} {count}' for name, count in seen.operators.items())}"
    if seen.cost is not None:
        missing = f" (and {seen.cost.uncounted} products of unknown size)" if seen.cost.uncounted else ""
        yield f"a tile of {by(seen.tile_hw)}", f"{seen.cost.multiply_adds / 1e9:.2f} G multiply-adds{missing}"
        missing = f" (without {seen.cost.unsized} tensors of unknown size)" if seen.cost.unsized else ""
        yield "", f"{seen.cost.peak_bytes / 2**20:.1f} MiB of activations at most{missing}"
        if seen.multiple_hw is not None:
            yield "levels", f"{seen.levels}: height, width multiples of {by(seen.multiple_hw)}"
    yield "on the CPU", seen.cpu_problem or f"all {sum(seen.cpu_nodes.values())} nodes that are left after folding"
    left = ", ".join(f"{name} {count}" for name, count in seen.cuda_estimate.items())
    yield "on CUDA", f"estimate: {f'left to the CPU: {left}' if left else 'no operator is known to lack a kernel'}"
    if seen.refusals:
        yield "refused", "; ".join(seen.refusals)
