"""What each reason of a rejection means, and what one can do about it: the words of the reference.

Knows the reasons of `errors.Reason` and nothing that raises them; the row itself has a message with the details.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from unet_batch.errors import Reason


class Advice(NamedTuple):
    """One reason, explained."""

    meaning: str
    to_do: str


_REPAIR = "Repair the file, or leave it out with `input.exclude`."
_CONVERT = "Convert the file, or change the contract."
_REPORT = "Look at the image alone; if it is sound, report it."

ADVICE: Mapping[Reason, Advice] = MappingProxyType(
    {
        Reason.DECODE_UNRECOGNIZED: Advice("The bytes are not an image.", _REPAIR),
        Reason.DECODE_FORMAT_NOT_ALLOWED: Advice(
            "The file is of a known format that is not read; the message names it.", "Convert the file."
        ),
        Reason.DECODE_TRUNCATED: Advice("The file ends too early.", "Transfer the file again."),
        Reason.DECODE_CORRUPT: Advice("The bytes cannot be decoded.", _REPAIR),
        Reason.DECODE_TOO_MANY_PIXELS: Advice(
            "The header claims more pixels than `limits.max_image_pixels`.", "Raise the limit, or cut the image."
        ),
        Reason.DECODE_CRASHED: Advice("Decoding ended its process, also in a process of its own.", _REPORT),
        Reason.DECODE_TIMEOUT: Advice("Decoding took too long.", "Raise `limits.image_timeout_s`."),
        Reason.DECODE_OUT_OF_MEMORY: Advice("There was no memory to decode it.", "Raise `limits.decode_memory_bytes`."),
        Reason.READ_NOT_FOUND: Advice(
            "The object is listed, or named by a manifest or a link, and is not there.",
            "Run again; if it stays, repair the list or the link.",
        ),
        Reason.READ_DENIED: Advice(
            "The store refuses this object, or the job may not read it (a link or a manifest that leads out of the "
            "archive).",
            "Check the permissions, or `input.roots`.",
        ),
        Reason.READ_CHANGED: Advice("The object was replaced while the run worked.", "Run again."),
        Reason.READ_TOO_LARGE: Advice("The file has more bytes than `limits.max_image_bytes`.", "Raise the limit."),
        Reason.READ_CHECKSUM_MISMATCH: Advice(
            "The bytes are not those whose SHA-256 the manifest gives.",
            "Transfer the file again, or mend the manifest.",
        ),
        Reason.CELL_NULL: Advice("The cell of the Parquet file or the manifest is null.", "Repair the row."),
        Reason.CELL_EMPTY: Advice("The cell of the Parquet file or the manifest is empty.", "Repair the row."),
        Reason.CELL_TYPE: Advice("The row of the manifest names no URI, or no SHA-256.", "Repair the row."),
        Reason.SHARD_CORRUPT: Advice(
            "A tar, Parquet file or manifest cannot be read; its images cannot be counted.",
            "Repair the shard; `limits.broken_shards: publish` publishes without it.",
        ),
        Reason.SHARD_TRUNCATED: Advice(
            "A tar ends too early; the images before that point are scored, the others cannot be counted.",
            "Transfer the shard again; `limits.broken_shards: publish` publishes without its rest.",
        ),
        Reason.IMAGE_MODE_NOT_SUPPORTED: Advice(
            "The kind of pixels is not read, or not what the model takes.", _CONVERT
        ),
        Reason.IMAGE_CHANNELS_MISMATCH: Advice("The image has other channels than the model takes.", _CONVERT),
        Reason.IMAGE_SIZE_MISMATCH: Advice("The image has a size that the contract refuses.", _CONVERT),
        Reason.IMAGE_NON_FINITE: Advice("The pixels hold NaN or infinity.", _REPAIR),
        Reason.MODEL_OUT_OF_MEMORY: Advice(
            "There was no memory for one of its tiles, its pixels or its mask.",
            "Take smaller tiles, or a machine with more memory.",
        ),
        Reason.MODEL_NON_FINITE_OUTPUT: Advice(
            "The model returned NaN or infinity for it.", "Check the precision of the model."
        ),
        Reason.MODEL_OUTPUT_OUT_OF_RANGE: Advice(
            "The model returned values that the contract excludes, such as a probability of 3.", "Check the contract."
        ),
        Reason.MODEL_FAILED: Advice("The model raised an error on it, more than once.", _REPORT),
        Reason.MODEL_CRASHED: Advice("Scoring it ended its process, more than once.", _REPORT),
        Reason.MODEL_TIMEOUT: Advice(
            "Scoring it finished nothing for too long, more than once.", "Raise `limits.unit_timeout_s`."
        ),
    }
)
"""By reason; a test holds that none is missing."""
