"""ARCHIVE of `init` and `score`: how it is read, and a few of its pictures at their own size.

Pictures are decoded in a child process, because nobody has looked at this archive before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.archive.formats import CONTAINERS
from unet_batch.archive.parquet import IMAGE_COLUMN
from unet_batch.archive.shards import read_unit
from unet_batch.decode.isolate import IsolatedDecoder
from unet_batch.errors import ImageError, JobError
from unet_batch.model.model import Model
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.survey import archive_partitions, nothing_found, window_of
from unet_batch.records import PassedOver
from unet_batch.spec import JobSpec, ShardFormat
from unet_batch.store.objects import canonical
from unet_batch.store.storage import Storage
from unet_batch.strict import validate
from unet_batch.table.output import Output
from unet_batch.workbench.sample import spread_units

MOST_PICTURES, FEWEST_PICTURES = 8, 4
MOST_PIXEL_BYTES = 400 << 20
"""Bytes of decoded pictures that are kept; at least FEWEST_PICTURES are, whatever their size."""
MEASURED = 4
"""Pictures on which the output's values are measured, and every variant is tried."""
TRIES = 24
"""Images that are tried, where some cannot be decoded."""
NAMES_SEEN = 200
_DAY = re.compile(r"(?<!\d)(20\d\d)([-/]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_SPECIAL = re.compile(r"[\[\]{}*?]")
"""Letters with a meaning in globs."""
_MASKLIKE = re.compile(r"(^|[_\-/.])(masks?|labels?|gt|annotations?)([_\-/.]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded picture of the archive."""

    key: str
    pixels_hwc: NDArray[Any]
    """uint8, uint16 or float32 (H, W, C), in the channels of the drafted contract; colours are red, green, blue."""
    largest: float | None
    """Largest value of the depth that its file declares."""

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rsplit("/", 1)[-1]

    @property
    def size_hw(self) -> tuple[int, int]:
        return int(self.pixels_hwc.shape[0]), int(self.pixels_hwc.shape[1])

    @property
    def is_gray(self) -> bool:
        """Whether all channels are equal."""
        return bool((self.pixels_hwc == self.pixels_hwc[..., :1]).all())


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the archive showed."""

    images: int
    """Images in the partitions that were listed."""
    pictures: tuple[Picture, ...]
    rejected: tuple[tuple[str, str], ...]
    """Key and message of images that a run would reject."""
    passed: PassedOver
    hints: tuple[str, ...]
    """Sentences for the user about names in the archive."""


def archive_section(archive: str, inside: Sequence[Path]) -> dict[str, Any]:
    """The job file's `input` for ARCHIVE. inside: files and folders of the job, left out where they lie in the archive.
    What is no file is a folder, also one that is not there yet.

    Raises JobError for what is no URI, and for a local path that does not exist.
    """
    uri = canonical(archive)
    local = uri.startswith("file://") and "{" not in uri
    path = Path(uri.removeprefix("file://"))
    if local and not path.exists():
        raise JobError(
            f"there is no {archive}: ARCHIVE is a folder of pictures, a tar, a Parquet file or a manifest, local or in "
            "a store (s3://bucket/folder)"
        )
    section: dict[str, Any] = {"uri": archive}
    kind = _format(path if local else None, archive.lower())
    if kind != "images" and local and _lists_images(path):
        kind = "manifest"
    if kind != "images":
        section["format"] = kind
    if local and path.is_dir():
        below = [(entry, entry.resolve().relative_to(path.resolve())) for entry in inside if _is_below(entry, path)]
        names = [(entry, _SPECIAL.sub(r"[\g<0>]", str(name))) for entry, name in below if str(name) != "."]
        exclude = [name if entry.is_file() else f"{name}/**" for entry, name in names]
        if exclude:
            section["exclude"] = sorted(set(exclude))
    return section


def _lists_images(path: Path) -> bool:
    """Whether a Parquet file, or the first one of a folder, has a column `uri` with text and no column of images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    try:
        schema = pq.read_schema(files[0])
    except (pa.ArrowException, OSError, IndexError):
        return False  # the look at the archive says what is wrong
    images = [field for field in schema if pa.types.is_struct(field.type) or pa.types.is_binary(field.type)]
    images += [field for field in schema if pa.types.is_large_binary(field.type)]
    named = schema.field("uri").type if schema.names.count("uri") == 1 else None
    is_text = named is not None and (pa.types.is_string(named) or pa.types.is_large_string(named))
    return is_text and not images and IMAGE_COLUMN not in schema.names


def _is_below(entry: Path, folder: Path) -> bool:
    return entry.resolve().is_relative_to(folder.resolve())


def _format(folder: Path | None, uri: str) -> ShardFormat:
    """The container by the URI's suffix, or by the files directly in a local folder."""
    suffixes = [uri]
    if folder is not None and folder.is_dir():
        names = sorted(entry.name.lower() for entry in folder.iterdir() if entry.is_file())[:NAMES_SEEN]
        suffixes = names
    for kind, container in CONTAINERS.items():
        if container.offsets or container.suffixes == ("",):
            continue  # tars are read among loose images, too
        if suffixes and all(name.endswith(container.suffixes) for name in suffixes):
            return kind
    return "images"


def looking_job(job_tree: Mapping[str, Any], out: Path) -> JobSpec:
    """The job with canonical URIs, for a look at its archive and a rehearsal: with the importer's tiles and flips."""
    section = job_tree["input"]
    tree = {
        "name": job_tree["name"],
        "model": {"path": canonical(job_tree["model"]["path"])},
        "input": {**section, "uri": canonical(section["uri"])},
        "output": {"uri": canonical(str(out))},
        **{key: job_tree[key] for key in ("tiling", "tta") if key in job_tree},
    }
    return validate(JobSpec, tree, "the drafted job")


def look(job: JobSpec, model: Model, data: bytes) -> Seen:
    """A listing of the archive, and up to MOST_PICTURES of its pictures, spread evenly.

    job: with canonical URIs. An archive with days in its URI is looked at on its newest day.
    Raises JobError if nothing is found or no image can be decoded, and StorageError.
    """
    prepared = Prepared(
        job=job,
        model=model,
        members=(),
        model_bytes=data,
        fingerprint="draft",
        archive=Storage(job.input.options, threads=job.resources.fetch_threads),
        output=Output.of(job.output),
        proven=True,
    )
    window = window_of("last")
    holdings = archive_partitions(prepared, window, keep=False)
    empty = nothing_found(job, prepared.archive, holdings)
    if empty is not None:
        raise JobError(empty)
    keys = [source.key for sources in holdings.partitions.values() for source in sources]
    pictures: list[Picture] = []
    rejected: list[tuple[str, str]] = []
    found = model.contract.input
    color = "rgb" if found.color == "bgr" else found.color  # each variant orders the channels itself
    spec = found.model_copy(update={"fit": "tile", "reduced_jpeg": False, "color": color})
    with IsolatedDecoder(spec, job.limits) as decoder:
        for unit in spread_units(prepared, window, MOST_PICTURES)[:TRIES]:
            for source, content in read_unit(prepared.archive, job.input, unit, job.limits):
                picture = content if isinstance(content, ImageError) else _first_page(decoder, content, source.key)
                if isinstance(picture, ImageError):
                    rejected.append((source.key, picture.message))
                else:
                    pictures.append(picture)
            if _enough(pictures):
                break
    if not pictures:
        key, why = rejected[0]
        raise JobError(
            f"none of {len(rejected)} images that were tried can be decoded for this model, for instance {key}: {why}"
        )
    return Seen(len(keys), tuple(pictures), tuple(rejected), holdings.passed, tuple(_hints(job.input.uri, keys)))


def _first_page(decoder: IsolatedDecoder, data: bytes, key: str) -> Picture | ImageError:
    page = decoder.decode(data)[0]
    if isinstance(page.content, ImageError):
        return page.content
    return Picture(key, page.content, page.largest)


def _enough(pictures: Sequence[Picture]) -> bool:
    size = sum(picture.pixels_hwc.nbytes for picture in pictures)
    return len(pictures) >= MOST_PICTURES or (len(pictures) >= FEWEST_PICTURES and size > MOST_PIXEL_BYTES)


def _hints(uri: str, keys: Sequence[str]) -> list[str]:
    """Sentences about days in folders, and about masks among the pictures."""
    hints: list[str] = []
    names = [key.removeprefix(uri).strip("/") for key in keys]
    days = [found for name in names if (found := _DAY.search(name.rpartition("/")[0])) is not None]
    if "{" not in uri and len(days) == len(names) and len({day.group() for day in days}) > 1:
        before = names[0][: days[0].start()]
        form = f"%Y{days[0][2]}%m{days[0][2]}%d"
        if all(name.startswith(before) for name in names):
            shown = f"{uri.removeprefix('file://')}/{before}{{date:{form}}}/"
            hints.append(f'its folders are days: with input.uri "{shown}" each day becomes a partition of its own')
    masks = [name for name in names if _MASKLIKE.search(name)]
    if masks and len(masks) < len(names):
        hints.append(
            f"{len(masks)} of {len(names)} names look like masks ({masks[0]}), and they would be scored as images: "
            "leave them out with input.exclude"
        )
    return hints


def spread(pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    """MEASURED of the pictures, at equal distances."""
    count = min(MEASURED, len(pictures))
    return tuple(pictures[(2 * n + 1) * len(pictures) // (2 * count)] for n in range(count))


def value_range(seen: Seen) -> tuple[float, float | None]:
    """Highest value of all pictures, and the largest value that all their files declare (None: none, or several)."""
    high = max(float(np.max(picture.pixels_hwc)) for picture in seen.pictures)
    declared = {picture.largest for picture in seen.pictures}
    return high, declared.pop() if len(declared) == 1 else None
