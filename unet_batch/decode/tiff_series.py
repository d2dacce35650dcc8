"""The metadata of ImageJ, OME-TIFF, tifffile and MetaMorph about the pages of a TIFF: stacks, and channels in pages.

Parses texts only: reads no samples, and opens no other file that a text refers to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

IMAGEJ_ORDERS = {"czt": "TZC", "ctz": "ZTC", "zct": "TCZ", "ztc": "CTZ", "tcz": "ZCT", "tzc": "CZT"}
"""ImageJ's orders, fastest axis first → axes, slowest first; `default` is czt (as in tifffile)."""
MOST_PLANES = 1 << 24
"""Most planes in a text; a text with more is ignored."""


@dataclass(frozen=True, slots=True)
class Role:
    """The role of one plane in its series."""

    channels: int = 1
    """Number of planes that are channels of one picture."""
    channel: int = 0
    """Number of this plane among them."""
    group: tuple[int, ...] = ()
    """Series, time and depth: equal for the channels of one picture."""


@dataclass(frozen=True, slots=True)
class Series:
    """The description of the pages from this page on."""

    planes: int
    """Number of planes."""
    axes: str = ""
    """One letter per axis of the stack, slowest first; empty if unknown."""
    shape: tuple[int, ...] = ()
    """Size of each axis."""
    listed: Mapping[int, Role] = field(default_factory=dict)
    """Roles that the text gives plane by plane."""

    def role(self, plane: int) -> Role:
        """The role of a plane, by its number from 0; a plane without a description is a picture of its own."""
        if plane in self.listed:
            return self.listed[plane]
        if "C" in self.axes and plane < self.planes:
            return _role(self.axes, self.shape, plane, 0)
        return Role(group=(-1, plane))


def imagej(text: str, samples: int) -> Series | None:
    """The series in ImageJ's description; None if it is not ImageJ's or is invalid. samples: of one page."""
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
    if math.prod(sizes.values()) != planes:  # an axis is missing
        order = order if sizes["C"] > 1 and planes % math.prod(sizes.values()) == 0 else ""
    return Series(planes, order, tuple(sizes[axis] for axis in order))


def shaped(text: str, page_shape: tuple[int, ...]) -> Series | None:
    """The series in tifffile's description, `{"shape": [...], "axes": "..."}`; None for other texts."""
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
    # Axes of the stack come first; the rest of the shape is one page, possibly with samples
    outer, product = 0, 1
    while outer < len(shape) and product < planes:
        product *= shape[outer]
        outer += 1
    if len(axes) != len(shape) or product != planes:
        return Series(planes)
    return Series(planes, axes[:outer], tuple(shape[:outer]))


def ome(text: str, pages: int) -> Series | None:
    """The series in OME-XML; None if the text is not OME-XML.

    pages: number of directories of the file. Planes in other files, which the text may refer to, are left out.
    """
    if not text.rstrip().endswith("OME>") or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        root = ET.fromstring(text)  # noqa: S314 - checked above: no document type, so no entities
    except ET.ParseError:
        return None
    roles: dict[int, Role] = {}
    number = 0
    for pixels in root.iter():
        if _name(pixels) != "Pixels":
            continue
        try:
            roles |= dict(_ome_roles(pixels, number, pages, root.get("UUID")))
        except ValueError:  # a size is not a number
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
