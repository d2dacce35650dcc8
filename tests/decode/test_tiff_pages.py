"""Which pictures a TIFF holds. Oracles: the values put in, tifffile as a writer, and the TIFF 6.0 tags."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from encoded import GRAY, LIMITS, RGB

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import Page, decode
from unet_batch.errors import ImageError, Reason


def flat(value: int, side: int = 16, dtype: Any = np.uint8) -> np.ndarray:
    return np.full((side, side), value, dtype)


def written(*pages: tuple[np.ndarray, dict[str, Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as writer:
        for array, how in pages:
            writer.write(array, **{"metadata": None, "photometric": "minisblack", **how})
    return file.getvalue()


def saved(array: np.ndarray, **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **how)
    return file.getvalue()


def values(data: bytes, spec: ModelInput = GRAY) -> list[Any]:
    """The first sample of every page, or the reason of its rejection."""
    pages = list(decode(data, spec, LIMITS))
    assert [(page.page, page.pages) for page in pages] == [(n, len(pages)) for n in range(len(pages))]
    return [
        page.content.reason.value if isinstance(page.content, ImageError) else page.content.ravel()[0].item()
        for page in pages
    ]


def only(data: bytes, spec: ModelInput = GRAY) -> Page:
    (page,) = decode(data, spec, LIMITS)
    return page


# Roles -------------------------------------------------------------------------------------------------------------


def test_overviews_and_masks_are_not_images() -> None:
    """NewSubfileType: bit 0 is a copy at reduced resolution, bit 2 a mask; a COG holds one picture."""
    data = written(
        (flat(7), {"tile": (16, 16)}),
        (flat(8, 8), {"subfiletype": 1}),
        (flat(9, 4), {"subfiletype": 1}),
        (np.ones((16, 16), bool), {"subfiletype": 4, "photometric": 4}),
        (np.ones((8, 8), bool), {"subfiletype": 5, "photometric": 4}),
    )
    assert values(data) == [7]


def test_pages_of_a_document_with_thumbnails_keep_their_numbers() -> None:
    """Page numbers count images, so a thumbnail between two pages changes none."""
    pages = (flat(1), {"subfiletype": 2}), (flat(2, 4), {"subfiletype": 1}), (flat(3), {"subfiletype": 2})
    assert values(written(*pages)) == [1, 3]


def test_a_preview_is_replaced_by_the_picture_in_its_sub_directories() -> None:
    """DNG and TIFF/EP: the first page is a small copy, its SubIFD holds the picture."""
    data = written((flat(9, 4), {"subfiletype": 1, "subifds": 1}), (flat(5), {"subfiletype": 0}))
    page = only(data)
    assert (page.height, page.content[0, 0, 0]) == (16, 5)


DNG = {"extratags": [(50706, "B", 4, (1, 7, 0, 0), True)]}
"""The tag DNGVersion, in the first directory."""


@pytest.mark.parametrize(
    "how",
    [
        {"subfiletype": 8},
        {"subfiletype": 9},
        {"subfiletype": 16},
        {"subfiletype": 0x10001},
        {"subfiletype": 0x10004},
        {"subfiletype": 0, "photometric": 51177},
        {"subfiletype": 0, "photometric": 52527},
    ],
)
def test_what_a_dng_keeps_beside_its_picture_is_no_image(how: dict[str, Any]) -> None:
    """DNG 1.7, NewSubFileType: depth maps, an enhanced version, other previews and semantic masks."""
    picture, other = (flat(5), {"subfiletype": 0}), np.ones((16, 16), bool)
    in_sub = written((flat(9, 4), {"subfiletype": 1, "subifds": 2, **DNG}), picture, (other, how))
    in_chain = written((flat(5), {"subfiletype": 0, **DNG}), (other, how))
    assert (values(in_sub), values(in_chain)) == ([5], [5])


@pytest.mark.parametrize("kind", [8, 16])
def test_the_bits_of_a_dng_mean_nothing_in_other_files(kind: int) -> None:
    """TIFF/IT has the final page there, TIFF-FX mixed raster content."""
    assert values(written((flat(1), {"subfiletype": 2}), (flat(3), {"subfiletype": kind | 2}))) == [1, 3]


def test_levels_in_sub_directories_are_not_images() -> None:
    """OME-TIFF pyramids."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, ome=True) as writer:
        writer.write(flat(5), subifds=2, photometric="minisblack")
        writer.write(flat(6, 8), subfiletype=1, photometric="minisblack")
        writer.write(flat(7, 4), subfiletype=1, photometric="minisblack")
    assert values(file.getvalue()) == [5]


def test_only_the_slide_of_an_aperio_file_is_an_image() -> None:
    """Thumbnail, levels, label and photograph have other sizes than the first page."""
    told = "Aperio Image Library v11.2.1 \r\n64x64 [0,0 64x64] (16x16) JPEG/RGB Q=30|AppMag = 20"
    data = written(
        (flat(1, 64), {"tile": (16, 16), "description": told}),
        (flat(2, 24), {"description": told}),
        (flat(3, 32), {"tile": (16, 16), "description": told}),
        (flat(4, 12), {"subfiletype": 1, "description": "Aperio Image Library v11.2.1 \r\nlabel 12x12"}),
        (flat(5, 20), {"subfiletype": 9, "description": "Aperio Image Library v11.2.1 \r\nmacro 20x20"}),
    )
    assert values(data) == [1]


def test_a_file_with_only_copies_gives_one_picture() -> None:
    """Files of overviews, and writers that set the bit by mistake: one image, the largest."""
    assert values(written((flat(1, 8), {"subfiletype": 1}), (flat(2, 16), {"subfiletype": 1}))) == [2]


def test_a_mask_alone_is_rejected() -> None:
    """Photometric interpretation 4 is the transparency mask of another picture."""
    assert values(written((flat(1), {"photometric": 4}))) == ["image.mode_not_supported"]


def test_plain_pages_of_any_size_are_images() -> None:
    """The second page is not marked as a copy, so it is an image of any size."""
    assert values(written((flat(1, 16), {}), (flat(2, 8), {}), (flat(3, 4), {}))) == [1, 2, 3]


# Stacks ------------------------------------------------------------------------------------------------------------


def stack(*values_: int, dtype: Any = np.uint16) -> np.ndarray:
    return np.stack([flat(value, dtype=dtype) for value in values_])


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
def test_every_plane_of_an_imagej_stack_is_an_image(truncate: bool, axes: str) -> None:
    """With a directory each, or with one for all."""
    data = saved(stack(300, 301, 302), imagej=True, truncate=truncate, metadata={"axes": axes})
    assert values(data) == [300, 301, 302]


def test_a_cut_imagej_stack_gives_its_planes_and_one_reason() -> None:
    """Planes beyond the end of the file are not ignored."""
    data = saved(stack(300, 301, 302), imagej=True, truncate=True, metadata={"axes": "ZYX"})
    assert values(data[:-500]) == [300, 301, "decode.truncated"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_planes_without_directories_keep_their_type(dtype: str, byteorder: str) -> None:
    """tifffile writes such stacks in either byte order."""
    data = saved(
        stack(3, 4, dtype=dtype), truncate=True, byteorder=byteorder, photometric="minisblack", metadata={"axes": "ZYX"}
    )
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        assert len(tiff.pages) == 1
    assert values(data) == [3, 4]


@pytest.mark.parametrize(
    "how", [{}, {"tile": (2, 16, 16)}, {"tile": (2, 16, 16), "compression": "zlib"}, {"rowsperstrip": 4}]
)
def test_every_plane_of_a_volume_is_an_image(how: dict[str, Any]) -> None:
    """ImageDepth (SGI): one directory, and tiles that may be several planes thick."""
    data = saved(stack(5, 6, 7), volumetric=True, photometric="minisblack", metadata=None, **how)
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        assert (len(tiff.pages), tiff.pages[0].imagedepth) == (1, 3)
    assert values(data) == [5, 6, 7]


def test_the_pages_of_two_series_are_not_mixed() -> None:
    """Each write of tifffile describes its own pages."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(stack(1, 2), photometric="minisblack", metadata={"axes": "ZYX"})
        writer.write(stack(3, 4, 5), photometric="minisblack", metadata={"axes": "TYX"})
    assert values(file.getvalue()) == [1, 2, 3, 4, 5]


def test_one_plane_is_read_without_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a page of a stack takes the memory of one page."""
    data = saved(stack(*range(50)), imagej=True, truncate=True, metadata={"axes": "ZYX"})
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("the whole directory was read"))
    assert values(data) == list(range(50))


# Channels ----------------------------------------------------------------------------------------------------------


def hyperstack() -> np.ndarray:
    """Two time points, two depths, three channels: values 100 t + 10 z + c."""
    t, z, c = np.meshgrid(range(2), range(2), range(3), indexing="ij")
    return np.broadcast_to((100 * t + 10 * z + c)[..., None, None], (2, 2, 3, 16, 16)).astype(np.uint16)


def series(kind: str) -> bytes:
    array = np.ascontiguousarray(hyperstack())
    if kind == "imagej":
        return saved(array, imagej=True, metadata={"axes": "TZCYX"})
    if kind == "imagej, one directory":
        return saved(array, imagej=True, truncate=True, metadata={"axes": "TZCYX"})
    if kind == "ome":
        return saved(array, ome=True, photometric="minisblack", metadata={"axes": "TZCYX"})
    if kind == "ome, channels outside":
        return saved(
            np.ascontiguousarray(array.transpose(2, 0, 1, 3, 4)),
            ome=True,
            photometric="minisblack",
            metadata={"axes": "CTZYX"},
        )
    return saved(array, photometric="minisblack", metadata={"axes": "TZCYX"})


KINDS = ["imagej", "imagej, one directory", "ome", "ome, channels outside", "tifffile"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [GRAY, RGB], ids=["gray", "rgb"])
def test_channels_in_pages_are_rejected_until_the_contract_says_what_they_are(kind: str, spec: ModelInput) -> None:
    """A channel is not taken for a gray picture by accident, and the sentence names the key."""
    page = only(series(kind), spec)
    assert isinstance(page.content, ImageError)
    assert page.content.reason == Reason.IMAGE_CHANNELS_MISMATCH
    assert "input.series_channels" in page.content.message


@pytest.mark.parametrize("kind", KINDS)
def test_channels_in_pages_are_the_bands_of_an_image(kind: str) -> None:
    """`series_channels: bands` gives one image per time and depth, its channels in order."""
    spec = ModelInput(color="bands", channels=3, series_channels="bands")
    pages = list(decode(series(kind), spec, LIMITS))
    assert [page.content[0, 0].tolist() for page in pages] == [
        [100 * t + 10 * z + c for c in range(3)] for t in range(2) for z in range(2)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_channels_in_pages_are_images_if_the_contract_says_so(kind: str) -> None:
    """`series_channels: pages` gives one image per channel."""
    spec = ModelInput(color="gray", channels=1, series_channels="pages")
    assert sorted(values(series(kind), spec)) == sorted(hyperstack()[..., 0, 0].ravel().tolist())


def test_an_image_with_a_lost_channel_is_rejected() -> None:
    """Missing bands are not filled."""
    data = series("imagej, one directory")
    spec = ModelInput(color="bands", channels=3, series_channels="bands")
    found = values(data[:-600], spec)
    assert found == [0, 10, 100, "decode.truncated", "decode.truncated"]


def test_ome_xml_with_bio_formats_comment_is_read() -> None:
    """Its OME-XML begins with a warning."""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><!-- Warning: this comment is an OME-XML metadata block. --><OME>'
        '<Image><Pixels DimensionOrder="XYCZT" SizeX="16" SizeY="16" SizeZ="1" SizeC="2" SizeT="1" Type="uint8">'
        "<Channel/><Channel/><TiffData/></Pixels></Image></OME>"
    )
    data = written((flat(5), {"description": text}), (flat(6), {}))
    assert values(data) == ["image.channels_mismatch"]
    (page,) = decode(data, ModelInput(color="bands", channels=2, series_channels="bands"), LIMITS)
    assert page.content[0, 0].tolist() == [5, 6]


def test_an_ome_tiff_opens_no_other_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name in its text is an untrusted path on this machine."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.tif").write_bytes(saved(flat(99)))
    text = (
        '<?xml version="1.0"?><OME UUID="urn:uuid:a"><Image ID="Image:0"><Pixels DimensionOrder="XYZCT" SizeX="16" '
        'SizeY="16" SizeZ="2" SizeC="1" SizeT="1" Type="uint8"><TiffData IFD="0" PlaneCount="1"/><TiffData IFD="0" '
        'FirstZ="1" PlaneCount="1"><UUID FileName="other.tif">urn:uuid:b</UUID></TiffData></Pixels></Image></OME>'
    )
    assert values(written((flat(5), {"description": text}))) == [5]


@pytest.mark.parametrize("text", [
    "ImageJ=1.5\nimages=999999999999\nchannels=3\n", "ImageJ=1.5\nimages=-3\n", "ImageJ=1.5\nimages=x\n",
    '{"shape": [99999999999, 16, 16]}', '{"shape": "x"}', '{"shape": [0]}', "<OME></OME>", "<OME",
    '<OME><Image><Pixels SizeC="99999999" SizeZ="9"><TiffData PlaneCount="999999999"/></Pixels></Image></OME>',
    '<OME><Image><Pixels SizeC="x"><TiffData/></Pixels></Image></OME>',
])  # fmt: skip
def test_an_invalid_text_takes_no_memory_and_rejects_no_picture(text: str) -> None:
    """The page is read; if the text declares channels, the contract may be asked."""
    found = values(written((flat(5), {"description": text, "compression": "zlib"})))
    assert found in ([5], ["image.channels_mismatch"])


# Chains ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    b"II*\0", b"II*\0\0\0\0\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\xff\xff", b"II+\0\x08\0\0\0",
    b"II+\0\x08\0\0\0" + b"\xff" * 8,
    b"II*\0\x08\0\0\0\xff\xff", b"II*\0\x08\0\0\0\0\0\0\0\0\0", b"II*\0\x04\0\0\0" + bytes(90),
])  # fmt: skip
def test_a_tiff_without_a_page_is_one_rejected_page(data: bytes) -> None:
    """A header whose first directory is missing, invalid or beyond the end still gives one page."""
    page = only(data)
    assert isinstance(page.content, ImageError)
    assert page.content.reason in (Reason.DECODE_TRUNCATED, Reason.DECODE_CORRUPT)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_every_cut_of_a_tiff_has_a_page(bigtiff: bool, byteorder: str) -> None:
    """Cut after every byte, a file of two pages always gives pages, and never wrong samples."""
    data = written((flat(7, 4), {}), (flat(8, 4), {}), bigtiff=bigtiff, byteorder=byteorder)
    for length in range(len(data)):
        found = values(data[:length])
        assert found
        assert set(found) <= {7, 8, "decode.truncated", "decode.corrupt", "decode.unrecognized"}


def links(data: bytes) -> list[int]:
    """Positions of the links to the next directory in a little-endian classic TIFF."""
    places, place = [4], 4
    while offset := struct.unpack_from("<I", data, place)[0]:
        place = offset + 2 + 12 * struct.unpack_from("<H", data, offset)[0]
        places.append(place)
    return places


@pytest.mark.parametrize("back_to", [0, 1, 2])
def test_a_loop_of_pages_ends_where_it_began(back_to: int) -> None:
    """Each page once, as libtiff and Pillow read it."""
    data = bytearray(written((flat(1), {}), (flat(2), {}), (flat(3), {})))
    places = links(data)
    struct.pack_into("<I", data, places[-1], struct.unpack_from("<I", data, places[back_to])[0])
    assert values(bytes(data)) == [1, 2, 3]


def test_an_invalid_link_counts_as_one_more_page() -> None:
    """Pages that cannot be reached are reported."""
    data = bytearray(written((flat(1), {}), (flat(2), {}), (flat(3), {})))
    struct.pack_into("<I", data, links(data)[1], len(data) + 5)
    assert values(bytes(data)) == [1, "decode.truncated"]


def test_only_an_unreadable_page_is_rejected() -> None:
    """Page 1 is of a kind that is not read; the other pages keep their pixels."""
    pages = (flat(1), {}), (flat(2), {"photometric": "cfa"}), (np.full((16, 16), 3j, np.complex64), {}), (flat(4), {})
    assert values(written(*pages)) == [1, "image.mode_not_supported", "image.mode_not_supported", 4]


def test_a_dicom_file_with_a_tiff_in_its_preamble_is_dicom() -> None:
    """DICOM PS3.10: 128 free bytes, then DICM."""
    head = b"II*\0\x08\0\0\0".ljust(128, b"\0") + b"DICM" + bytes(200)
    page = only(head)
    assert isinstance(page.content, ImageError)
    assert page.content.reason == Reason.DECODE_FORMAT_NOT_ALLOWED
    assert "DICOM" in page.content.message
