"""What ImageJ, OME-TIFF, tifffile and MetaMorph say about the pages of a TIFF: stacks, and channels in pages.

Knows their texts and what they mean for pages. Reads no sample, and opens no other file that a text names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

IMAGEJ_ORDERS = {"czt": "TZC", "ctz": "ZTC", "zct": "TCZ", "ztc": "CTZ", "tcz": "ZCT", "tzc": "CZT"}
"""ImageJ's words, fastest axis first → axes, slowest first; `default` is czt (as tifffile reads them)."""
MOST_PLANES = 1 << 24
"""Planes that a text may claim; more are not believed."""


@dataclass(frozen=True, slots=True)
class Role:
    """What one plane of a series is."""

    channels: int = 1
    """Planes that belong together as the channels of one picture."""
    channel: int = 0
    """Which of them this is."""
    group: tuple[int, ...] = ()
    """Series, time and depth: equal for planes that are channels of one picture."""


@dataclass(frozen=True, slots=True)
class Series:
    """What a text says about the pages that begin where it stands."""

    planes: int
    """Planes in all."""
    axes: str = ""
    """One letter per axis of the stack, slowest first; empty where nothing is known."""
    shape: tuple[int, ...] = ()
    """Size of each axis."""
    listed: Mapping[int, Role] = field(default_factory=dict)
    """Roles that were told plane by plane."""

    def role(self, plane: int) -> Role:
        """The role of a plane, by its number from 0; a plane about which nothing is told is a picture of its own."""
        if plane in self.listed:
            return self.listed[plane]
        if "C" in self.axes and plane < self.planes:
            return _role(self.axes, self.shape, plane, 0)
        return Role(group=(-1, plane))


def imagej(text: str, samples: int) -> Series | None:
    """What ImageJ's description says; None where it is not ImageJ's or makes no sense. samples: of one page."""
    if not text.startswith("ImageJ="):
        return None
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    try:
        sizes = {axis: int(lines.get(key, 1)) for axis, key in (("T", "frames"), ("Z", "slices"), ("C", "channels"))}
        images = int(lines.get("images", 1))
    except ValueError:
        return None
    if min(images, *sizes.values()) < 1:
        return None
    if sizes["C"] > 1 and samples == sizes["C"]:  # Bio-Formats counts the samples of a page as channels too
        sizes["C"] = 1
    planes = max(images, math.prod(sizes.values()))
    if planes > MOST_PLANES:
        return None
    order = IMAGEJ_ORDERS.get(lines.get("order", "czt").lower(), "TZC")
    if math.prod(sizes.values()) != planes:  # an axis that nobody names
        order = order if sizes["C"] > 1 and planes % math.prod(sizes.values()) == 0 else ""
    return Series(planes, order, tuple(sizes[axis] for axis in order))


def shaped(text: str, page_shape: tuple[int, ...]) -> Series | None:
    """What tifffile's own description says, `{"shape": [...], "axes": "..."}`; None where it is no such text."""
    if not text.startswith('{"shape":'):
        return None
    try:
        told = json.loads(text)
        shape = [int(size) for size in told["shape"]]
        axes = str(told.get("axes", ""))
    except (ValueError, KeyError, TypeError):
        return None
    own = math.prod(page_shape)
    planes = math.prod(shape) // own if own else 1
    if not 1 <= planes <= MOST_PLANES:
        return None
    # Axes of the stack come first; those of one page, which may count samples too, are the rest of the shape
    outer, product = 0, 1
    while outer < len(shape) and product < planes:
        product *= shape[outer]
        outer += 1
    if len(axes) != len(shape) or product != planes:
        return Series(planes)
    return Series(planes, axes[:outer], tuple(shape[:outer]))


def ome(text: str, pages: int) -> Series | None:
    """What OME-XML says about the pages of this file; None where there is no OME-XML in it.

    pages: how many directories the file holds. Planes of other files, which the text may name, are left out.
    """
    if not text.rstrip().endswith("OME>") or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        root = ET.fromstring(text)  # noqa: S314 - without a document type there are no entities
    except ET.ParseError:
        return None
    roles: dict[int, Role] = {}
    number = 0
    for pixels in root.iter():
        if _name(pixels) != "Pixels":
            continue
        try:
            roles |= dict(_ome_roles(pixels, number, pages, root.get("UUID")))
        except ValueError:  # a size that is no number
            continue
        number += 1
    return Series(pages, listed=roles) if number else None


def _ome_roles(pixels: ET.Element, number: int, pages: int, uuid: str | None) -> Iterator[tuple[int, Role]]:
    order = pixels.get("DimensionOrder", "XYZCT")[:1:-1]  # slowest first
    if sorted(order) != ["C", "T", "Z"]:
        return
    samples = [int(child.get("SamplesPerPixel", 1)) for child in pixels if _name(child) == "Channel"]
    sizes = {axis: max(int(pixels.get(f"Size{axis}", 1)), 1) for axis in order}
    sizes["C"] = max(sizes["C"] // max(samples[0] if samples else 1, 1), 1)
    shape = [sizes[axis] for axis in order]
    for child in pixels:
        if _name(child) != "TiffData":
            continue
        elsewhere = next((element for element in child if _name(element) == "UUID"), None)
        if elsewhere is not None and uuid is not None and elsewhere.text != uuid:
            continue
        first = int(child.get("IFD", 0))
        count = int(child.get("PlaneCount", child.get("NumPlanes", 1 if "IFD" in child.attrib else pages)))
        start = 0
        for axis, size in zip(order, shape, strict=True):
            start = start * size + int(child.get(f"First{axis}", 0))
        for step in range(min(count, pages - first)):
            yield first + step, _role(order, shape, start + step, number)


def _role(axes: str, shape: Sequence[int], plane: int, number: int) -> Role:
    """The role of a plane by its number in a series of these axes, slowest first."""
    at: list[int] = []
    for size in reversed(shape):
        plane, place = divmod(plane, size)
        at.insert(0, place)
    if "C" not in axes:
        return Role(group=(number, plane, *at))
    c = axes.index("C")
    return Role(shape[c], at[c], (number, plane, *at[:c], *at[c + 1 :]))


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
