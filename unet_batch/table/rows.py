"""The table: one row per image, in plain columns that any engine reads.

A row is a dict by column name. Provenance columns are equal in all rows of a unit and are dictionary-encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from unet_batch.errors import ImageError
from unet_batch.imaging.postprocess import ClassArea, ClassScore, Prediction
from unet_batch.records import Source, image_key

SCHEMA_VERSION = 1
SCORING_REVISION = 2
"""Raise it when a code change alters results for an unchanged job file. It is part of every fingerprint."""

_TEXT_OFTEN_REPEATED = pa.dictionary(pa.int32(), pa.string())

CLASS_TYPE = pa.struct(
    [
        ("id", pa.int32()),
        ("name", pa.string()),
        ("area_px", pa.int64()),
        ("fraction", pa.float64()),
        ("mean_probability", pa.float32()),
        ("bbox", pa.list_(pa.int32())),
        ("rle", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
    ]
)

COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("image_key", pa.string(), "names the image: URI, then #member, #repeat and #page where there are any"),
    ("uri", pa.string(), "object in the archive"),
    ("member", pa.string(), "tar member, or row number of a Parquet file"),
    ("page", pa.int32(), "page of a multi-page file, from 0"),
    ("pages", pa.int32(), "pages of that file"),
    ("source_version", pa.string(), "ETag or generation of the object that was scored, else size and time"),
    (
        "date",
        _TEXT_OFTEN_REPEATED,
        "partition, where the archive has dates (a column of the partition's own name for others)",
    ),
    ("height", pa.int32(), "rows of the source image, after EXIF orientation"),
    ("width", pa.int32(), "columns of the source image, after EXIF orientation"),
    ("status", _TEXT_OFTEN_REPEATED, "ok or rejected"),
    ("reason", _TEXT_OFTEN_REPEATED, "stable code of a rejection"),
    ("message", pa.string(), "a sentence about the rejection"),
    (
        "label",
        _TEXT_OFTEN_REPEATED,
        "name of the class with the largest area, null for an empty mask; of a classifier: the predicted class",
    ),
    ("score", pa.float32(), "mean probability of that class where it was predicted; of a classifier: its probability"),
    (
        "classes",
        pa.list_(CLASS_TYPE),
        (
            "predicted classes with their COCO RLE (size is [height, width]), none for an empty mask; of a classifier: "
            "the most probable classes in order, with mean_probability and without areas"
        ),
    ),
    (
        "mask",
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "PNG of the label map, where the job asks for it",
    ),
    ("confidence", pa.float32(), "mean over pixels of the largest probability; of a classifier: that of the image"),
    ("entropy", pa.float32(), "mean over pixels of the normalised entropy, 0 to 1; of a classifier: that of the image"),
    ("model_digest", _TEXT_OFTEN_REPEATED, "SHA-256 of the ONNX file"),
    ("fingerprint", _TEXT_OFTEN_REPEATED, "SHA-256 over all that changes a result"),
    ("run_id", _TEXT_OFTEN_REPEATED, "run that scored the image"),
    ("provider", _TEXT_OFTEN_REPEATED, "what really ran the model"),
    ("precision", _TEXT_OFTEN_REPEATED, "arithmetic of the model"),
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """The provenance columns of a unit's rows."""

    model_digest: str
    fingerprint: str
    run_id: str
    provider: str
    precision: str


def schema(partition: str) -> pa.Schema:
    """The table's columns for a partition: `date=…` has a column `date`, `all` has none."""
    own = partition_values(partition)
    fields = [pa.field(name, kind) for name, kind, _ in COLUMNS if name != "date"]
    position = next(i for i, (name, _, _) in enumerate(COLUMNS) if name == "date")
    for column in reversed(list(own)):
        fields.insert(position, pa.field(column, _TEXT_OFTEN_REPEATED))
    return pa.schema(fields)


def partition_values(partition: str) -> dict[str, str]:
    """`date=2026-11-21/bucket=03` → {"date": "2026-11-21"}; `all` → {}. Buckets are storage, not a column."""
    pairs = (step.partition("=") for step in partition.split("/"))
    return {key: value for key, equals, value in pairs if equals and key != "bucket"}


def prediction_row(
    source: Source, page: int, pages: int, prediction: Prediction, mask_png: bytes | None
) -> dict[str, Any]:
    """The columns of a scored image, without provenance and partition."""
    return {
        **_identity(source, page, pages),
        "height": prediction.height,
        "width": prediction.width,
        "status": "ok",
        "label": prediction.label,
        "score": prediction.score,
        "classes": [_class_cell(c, prediction) for c in prediction.classes]
        or [_score_cell(c) for c in prediction.scores],
        "mask": None if mask_png is None else {"bytes": mask_png, "path": None},
        "confidence": prediction.confidence,
        "entropy": prediction.entropy,
    }


def rejection_row(
    source: Source, page: int, pages: int, error: ImageError, *, height: int = 0, width: int = 0
) -> dict[str, Any]:
    """The columns of a rejected image; predictions are null, not 0."""
    return {
        **_identity(source, page, pages),
        "height": height or None,
        "width": width or None,
        "status": "rejected",
        "reason": str(error.reason),
        "message": error.message,
    }


def to_table(rows: Sequence[dict[str, Any]], partition: str, provenance: Provenance) -> pa.Table:
    """An Arrow table of the rows in the schema of their partition."""
    shared = {
        **partition_values(partition),
        "model_digest": provenance.model_digest,
        "fingerprint": provenance.fingerprint,
        "run_id": provenance.run_id,
        "provider": provenance.provider,
        "precision": provenance.precision,
    }
    wanted = schema(partition)
    columns = []
    for field in wanted:
        values = [shared[field.name]] * len(rows) if field.name in shared else [row.get(field.name) for row in rows]
        columns.append(_encoded(values) if pa.types.is_dictionary(field.type) else pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=wanted)


def _encoded(values: Sequence[str | None]) -> pa.DictionaryArray:
    """The same as pyarrow's `dictionary_encode`, without its import of pyarrow.compute: 0.1 s in each process."""
    places: dict[str, int] = {}
    indices = [None if value is None else places.setdefault(value, len(places)) for value in values]
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(places), pa.string()))


def _identity(source: Source, page: int, pages: int) -> dict[str, Any]:
    return {
        "image_key": image_key(source.key, page),
        "uri": source.uri,
        "member": source.member,
        "page": page,
        "pages": pages,
        "source_version": source.version,
    }


def _class_cell(area: ClassArea, prediction: Prediction) -> dict[str, Any]:
    return {
        "id": area.id,
        "name": area.name,
        "area_px": area.area_px,
        "fraction": area.fraction,
        "mean_probability": area.mean_probability,
        "bbox": list(area.bbox),
        "rle": None if area.rle is None else {"size": [prediction.height, prediction.width], "counts": area.rle},
    }


def _score_cell(score: ClassScore) -> dict[str, Any]:
    """A class of a classifier: it has no area."""
    return {"id": score.id, "name": score.name, "mean_probability": score.probability}
