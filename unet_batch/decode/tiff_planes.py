"""Which pictures a TIFF holds: one per full-resolution plane; no copies, thumbnails, masks or labels.

Decides by the role of a directory (NewSubfileType, SubIFDs, photometric interpretation, slide scanners) and of a plane
in its series. `tiff` reads the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from unet_batch.contract import ModelInput
from unet_batch.decode import tiff_series
from unet_batch.decode.tiff_series import Role
from unet_batch.errors import ImageError, Reason

REDUCED, MASK = 1, 4
"""Bits of NewSubfileType: a copy at reduced resolution, a transparency mask of another picture (TIFF 6.0)."""
DEPTH, ENHANCED = 8, 16
"""The same of a DNG (1.5): a depth map, a computed version of the main image. In TIFF/IT and TIFF-FX the bits mean
other things."""
DNG_VERSION = 50706
NO_PICTURE = (4, 51177, 52527)
"""Photometric interpretations: transparency mask; depth map, photometric mask (DNG 1.5 and 1.6)."""
UIC2 = 33629
"""MetaMorph's tag: its count is the number of planes in the directory."""
SLIDES = ("scn", "qpi", "ndpi", "bif", "philips")
"""Slide scanners whose pages tifffile distinguishes; Aperio's `svs` is handled here."""
NOT_THE_SLIDE = ("thumbnail", "label", "macro", "map", "overview", "probability")
"""tifffile's names of a scanner's other pictures contain these words."""


class Directories:
    """The directories of a TIFF by offset. The last one is cached, because several callers need it."""

    def __init__(self, tiff: Any) -> None:
        """tiff: tifffile.TiffFile."""
        self.tiff = tiff
        self.not_pictures = MASK
        """Bits of NewSubfileType of directories that are no pictures."""
        self._last: tuple[int, Any] | None = None

    def at(self, offset: int) -> Any:
        """The tifffile.TiffPage that begins at this byte. Raises the errors of tifffile."""
        import tifffile  # imported late: it takes 0.1 s, and most archives hold no TIFF

        if self._last is None or self._last[0] != offset:
            self.tiff.filehandle.seek(offset)
            self._last = offset, tifffile.TiffPage(self.tiff, index=0)
        return self._last[1]


@dataclass(frozen=True, slots=True)
class Plane:
    """The place of the samples of one picture, or of one channel of it."""

    ifd: int
    """First byte of its directory."""
    stacked: int = 0
    """Number of planes before this one in a stack with a single directory."""
    depth: int = 0
    """Number of this plane in the directory's volume (ImageDepth)."""


Picture = tuple[Plane, ...] | ImageError
"""One plane, or the planes of its channels in order, or its rejection."""


@dataclass(frozen=True, slots=True)
class _Page:
    """The properties that decide the role of a directory."""

    position: int
    """Position in the main chain."""
    offset: int
    subfiletype: int
    size: int
    """Rows times columns."""
    is_mask: bool
    """Whether it is a mask, a depth map or a computed version of another picture."""
    subifds: tuple[int, ...]


def pictures_of(directories: Directories, offsets: Sequence[int], spec: ModelInput, *, length: int) -> list[Picture]:
    """The pictures of a TIFF in the order of its pages; at least one if `offsets` is not empty.

    offsets: of the main directories. length: bytes of the file. Other directories (overviews, pyramid levels,
    thumbnails, labels, photographs of a slide, masks) are left out as long as a picture remains. If each channel lies
    in its own page, `spec.series_channels` decides.
    """
    if offsets and DNG_VERSION in directories.at(offsets[0]).tags:
        directories.not_pictures |= DEPTH | ENHANCED
    pages = [_page(directories, offset, position) for position, offset in enumerate(offsets)]
    found = _of_slide(directories, pages)
    if found is not None:
        return found
    taken = list(_full(directories, pages))
    if not taken:
        largest = max((page for page in pages if not page.is_mask), key=lambda page: page.size, default=None)
        if largest is None:
            return [ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, "the TIFF holds a mask and no picture")]
        taken = [largest]  # marked as a copy, but the file holds no original
    return _joined(list(_planes(directories, taken, len(pages), length=length)), spec)


def _page(directories: Directories, offset: int, position: int) -> _Page:
    page = directories.at(offset)
    kind = page.subfiletype if isinstance(page.subfiletype, int) else 0
    is_mask = bool(kind & directories.not_pictures) or int(page.photometric) in NO_PICTURE
    subifds = page.subifds if isinstance(page.subifds, tuple) else ()
    return _Page(position, offset, kind, int(page.imagelength) * int(page.imagewidth), is_mask, subifds)


def _full(directories: Directories, pages: Sequence[_Page]) -> Iterator[_Page]:
    """Pages of full resolution. A reduced page (the preview of a DNG) is replaced by the full ones in its SubIFDs."""
    for page in pages:
        if page.is_mask:
            continue
        if not page.subfiletype & REDUCED:
            yield page
            continue
        for offset in page.subifds:
            try:
                below = _page(directories, offset, page.position)
            except Exception:  # noqa: BLE001, S112 - an unreadable SubIFD is left out
                continue
            if not (below.is_mask or below.subfiletype & REDUCED):
                yield below


def _of_slide(directories: Directories, pages: Sequence[_Page]) -> list[Picture] | None:
    """The slide itself if a scanner wrote the file; else None."""
    if not pages:
        return None
    first = directories.at(pages[0].offset)
    if first.is_svs:  # only the focal planes have the slide's size
        same = [page for page in pages if page.size == pages[0].size and not page.subfiletype & REDUCED]
        return [(Plane(page.offset),) for page in same or pages[:1]]
    if not any(getattr(directories.tiff, f"is_{kind}") for kind in SLIDES):
        return None
    offsets = [
        page.offset
        for series in directories.tiff.series
        if not any(word in series.name.lower() for word in NOT_THE_SLIDE)
        for page in series.levels[0].pages
        if page is not None
    ]
    return [(Plane(offset),) for offset in offsets or [pages[0].offset]]


Found = tuple[Plane | ImageError, Role]
ALONE = Role()


def _planes(directories: Directories, taken: Sequence[_Page], pages: int, *, length: int) -> Iterator[Found]:
    """Every plane of the pages, with its role in its series. pages: number of pages of the whole file."""
    number = 0
    told = tiff_series.ome(directories.at(taken[0].offset).description, pages) if taken else None
    while number < len(taken):
        here = taken[number]
        page = directories.at(here.offset)
        series = None if told else _series(page, first=number == 0)
        covered = _covered(directories, taken[number:], series) if series else 1
        if series is not None and series.planes > 1 and covered == 1 and page.is_contiguous and page.compression == 1:
            yield from _stack(page, here, series, length=length)
        elif page.imagedepth > 1:
            yield from _volume(page, here, length=length)
            covered = 1
        else:
            for place, one in enumerate(taken[number : number + covered]):
                role = told.role(one.position) if told else series.role(place) if series else ALONE
                yield Plane(one.offset), role
        number += covered


def _series(page: Any, *, first: bool) -> tiff_series.Series | None:
    """The series that begins with this page, from its texts."""
    texts = (page.description, page.description1)
    if first and UIC2 in page.tags:
        return tiff_series.Series(int(page.tags[UIC2].count))
    for text in texts:
        if (told := tiff_series.shaped(text, page.shape)) is not None:
            return told
        if first and (told := tiff_series.imagej(text, max(page.shaped[0], page.shaped[4]))) is not None:
            return told
    return None


def _covered(directories: Directories, taken: Sequence[_Page], series: tiff_series.Series) -> int:
    """Number of pages in the series that begins with the first: up to the next page with such a text."""
    for number, here in enumerate(taken[1 : series.planes], start=1):
        if directories.at(here.offset).description.startswith('{"shape":'):
            return number
    return min(series.planes, len(taken))


def _stack(page: Any, here: _Page, series: tiff_series.Series, *, length: int) -> Iterator[Found]:
    """Consecutive planes without directories, as ImageJ and MetaMorph write them."""
    there = (length - page.dataoffsets[0]) // max(page.nbytes, 1)
    for place in range(max(min(series.planes, there), 1)):
        yield Plane(here.offset, stacked=place), series.role(place)
    if there < series.planes:
        what = f"the file ends before plane {max(there, 1)} of {series.planes} in its stack"
        yield ImageError(Reason.DECODE_TRUNCATED, what), ALONE


def _volume(page: Any, here: _Page, *, length: int) -> Iterator[Found]:
    """The planes of a volume with one directory (ImageDepth)."""
    contiguous = page.is_contiguous and page.compression == 1 and page.shaped[0] == 1
    if contiguous:
        there = (length - page.dataoffsets[0]) * page.imagedepth // max(page.nbytes, 1)
    else:
        rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = -(-page.imagelength // max(rows, 1)) * -(-page.imagewidth // max(columns, 1)) * page.shaped[0]
        there = len(page.dataoffsets) // max(across, 1) * (max(page.tiledepth, 1) if page.is_tiled else 1)
    for depth in range(max(min(page.imagedepth, there), 1)):
        yield Plane(here.offset, depth=depth), ALONE
    if there < page.imagedepth:
        what = f"the file ends before plane {max(there, 1)} of {page.imagedepth} in its volume"
        yield ImageError(Reason.DECODE_TRUNCATED, what), ALONE


def _joined(found: Sequence[Found], spec: ModelInput) -> list[Picture]:
    """The pictures of the planes: one per plane, or one per group of channels."""
    most = max((role.channels for _, role in found), default=1)
    if most == 1 or spec.series_channels == "pages":
        return [plane if isinstance(plane, ImageError) else (plane,) for plane, _ in found]
    if spec.series_channels is None:
        what = (
            f"the file stores {most} channels in separate pages: write input.series_channels in the contract, "
            "bands if they form one image, or pages if each is an image"
        )
        return [ImageError(Reason.IMAGE_CHANNELS_MISMATCH, what)]
    groups: dict[object, dict[int, Plane] | ImageError] = {}
    counts: dict[object, int] = {}
    for number, (plane, role) in enumerate(found):
        key: object = role.group if role.channels > 1 else number
        if isinstance(plane, ImageError):
            groups[number] = plane
            continue
        group = groups.setdefault(key, {})
        if isinstance(group, dict):
            group[role.channel] = plane
            counts[key] = role.channels
    return [group if isinstance(group, ImageError) else _whole(group, counts[key]) for key, group in groups.items()]


def _whole(group: dict[int, Plane], channels: int) -> Picture:
    if len(group) < channels:
        what = f"the file holds only {len(group)} of the {channels} channels of this image"
        return ImageError(Reason.DECODE_TRUNCATED, what)
    return tuple(group[channel] for channel in sorted(group))
