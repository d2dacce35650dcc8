"""The job file's section `limits`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from unet_batch.contract import Section


class LimitsSpec(Section):
    """Limits for publishing a partition, and for the cost of one image."""

    max_rejected: int | float = Field(default=0.01, ge=0)
    """Rejections that a published partition may hold: a share below 1 (0.01), or a count (25)."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of one image, checked before it is decoded."""
    max_image_bytes: int = Field(default=1 << 30, ge=1)
    """Encoded bytes of one image."""
    max_shrink: float = Field(default=0.1, ge=0, le=1)
    """Largest share of its published images that a partition may lose in one publication (one image may always go,
    unless this is 0). If the archive holds fewer images, the published rows stay."""
    allow_empty: bool = False
    """Whether a window without images is a success, and whether an empty partition may replace published rows."""
    allow_removed: bool = False
    """Whether the archive may hold nothing any more of days that are published, as where old images are removed after
    some time. Their rows stay."""
    implausible: float = Field(default=1.0, ge=0, le=1)
    """Largest share of a partition's images that a plausibility warning may concern (masks empty or full in nearly
    all images, confidence far from other nights …); above it nothing is published. 1.0 only warns. A class
    that is never seen only warns while there are no other nights that have it."""
    retries: int = Field(default=3, ge=0)
    """Number of runs that retry a published rejection whose cause may be temporary (`read.denied`, `decode.timeout`
    …). Every run retries rejections that keep a partition from being published; `backfill --select failed` retries
    all rejections."""
    broken_shards: Literal["refuse", "publish"] = "refuse"
    """Whether a partition with a truncated or corrupt shard may be published (its lost images cannot be counted)."""
    image_timeout_s: float = Field(default=60.0, gt=0)
    """Most seconds of processor time for the isolated decode of a page, and longest time without any; large images
    get more."""
    unit_timeout_s: float = Field(default=900.0, gt=0)
    """Longest time in which a process may make no progress on its unit: no image read, no page decoded, no batch
    scored. The start of an isolated decoder does not count."""
    unit_images: int | None = Field(default=None, ge=1)
    """Maximum number of images in a unit; default: at most 64 images with at most 8 MiB of encoded bytes together."""
    lease_s: float = Field(default=300.0, ge=3)
    """How long the lease of a dead run keeps other runs from its partitions. On the same machine other runs see at
    once that the process is gone."""
    decode_memory_bytes: int = Field(default=4 << 30, ge=1 << 28)
    """Address space of an isolated decode; an image within max_image_pixels gets as much as its size needs."""

    @field_validator("max_rejected", mode="before")
    @classmethod
    def _is_a_number(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("must be a share (0.01) or a count (25)")  # noqa: TRY004 - pydantic's word for it
        if isinstance(value, float) and value > 1:
            raise ValueError("a share is at most 1.0; write a count without a decimal point")
        return value
