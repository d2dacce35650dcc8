"""The findings for people: lines of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

WIDTH = 80


def text(found: Mapping[str, Any]) -> str:
    """The whole page. found: as in the last line of stdout."""
    lines = [f"GPU: {found['card']}", f"packages: {', '.join(found['packages']) or 'none'}"]
    if found["arguments"]["provider"] == "cpu":
        lines.append("A rehearsal on the CPU: the figures show that the script works, and settle nothing.")
    for name, section in found["sections"].items():
        lines += ["", f"{name}: {section['state']} after {section['seconds']:.0f} s"]
        if section.get("why"):
            lines.append(f"  {section['why']}")
        found_here = section["found"]
        lines += [f"  {line}" for line in _LINES[name](found_here)]
        lines += [f"  failed: {line}" for line in found_here.get("errors", [])]
        if left := found_here.get("left_out"):
            lines.append(f"  left out: {'; '.join(left)}")
    return "\n".join(part for line in lines for part in _wrapped(line)) + "\n"


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]


def _parity(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("rows"):
        yield f"{'network':20} {'':5} {'logit error':>11} {'flipped':>9} {'Dice':>7}  verdict"
    for row in found.get("rows", []):
        verdict = "; ".join(row["breaches"]) or "agrees"
        figures = f"{row['max_abs_error']:11.1e} {row['flipped_share']:9.2e} {row['least_dice']:7.4f}"
        yield f"{row['network'][:20]:20} {row['precision']:5} {figures}  {verdict}"
        if row["elsewhere"]:
            yield f"  on another provider: {', '.join(f'{name} x{n}' for name, n in row['elsewhere'].items())}"
    for row in found.get("labels_in_the_graph", []):
        yield f"labels in the graph, {row['precision']}: {row['same_share']:.4%} as on the CPU"


def _rates(found: Mapping[str, Any]) -> Iterator[str]:
    """Tiles per second by batch size."""
    rows = found.get("rows", [])
    sizes = sorted({int(size) for row in rows for size in row["tiles_per_s"]})
    if len(sizes) > 7:  # what fits a line: the ends, and every second one between them
        sizes = sorted({sizes[0], *sizes[-6:]})
    if rows:
        yield f"{'tiles/s by batch size':24}" + "".join(f"{size:>7}" for size in sizes) + "  knee"
    for row in rows:
        cells = (row["tiles_per_s"].get(str(size)) for size in sizes)
        figures = "".join(f"{_short(cell):>7}" for cell in cells)
        yield f"{row['name'][:24]:24}{figures}  {row['knee'] or '':>4}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _job(found: Mapping[str, Any]) -> Iterator[str]:
    for row in found.get("rows", []):
        yield f"{row['name']}: the bare session does {row['bare_tiles_per_s']:.1f} tiles/s"
        if "ratio" in row:
            images = row["runs"][-1]["images"]
            yield f"  {images} pictures, whole run: {row['images_per_s']:.1f} images/s, ratio {row['ratio']:.3f}"
        if "steady_ratio" in row:
            verdict = "met" if row["steady_ratio"] >= row["goal"] else "missed"
            rate, ratio = row["steady_images_per_s"], row["steady_ratio"]
            yield f"  without its start: {rate:.1f} images/s, ratio {ratio:.3f}, goal {row['goal']:.2f} {verdict}"
        for each in row["runs"][-1:]:
            gpu = each["gpu"].get("utilization.gpu")
            yield f"  GPU busy while it works: {gpu['busy_mean']} %" if gpu else f"  GPU: {each['gpu'].get('why')}"


def _memory(found: Mapping[str, Any]) -> Iterator[str]:
    for name in ("limited", "unlimited"):
        if name in found:
            row = found[name]
            yield (
                f"{name}: {row['left_mib']} MiB left, {row['out_of_memory']} batches failed, then batches of at most "
                f"{row['largest_that_ran']}; labels equal: {row['labels_equal']}"
            )
    if "text" in found:
        yield f"its words: {found['text'][:300]}"


def _bottleneck(found: Mapping[str, Any]) -> Iterator[str]:
    for row in found.get("rows", []):
        stages = ", ".join(f"{stage} {ms} ms" for stage, ms in row["ms_per_image"].items())
        yield f"{row['job']}: {row['sentence']}"
        yield f"  per image: {stages}; {row['actors']['session']} session and {row['actors']['load']} loading actor(s)"


_LINES = {
    "parity": _parity,
    "speed": _rates,
    "job": _job,
    "memory": _memory,
    "peer": _rates,
    "bottleneck": _bottleneck,
}
