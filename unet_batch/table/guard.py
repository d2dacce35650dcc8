"""The guard of what readers see: rows are never replaced by none, nor by far fewer, without a word from the user.

Pure counting. The plan asks it before anything is scored, and publication asks it again with what is published then.
"""

from __future__ import annotations

from dataclasses import dataclass

from unet_batch.spec import LimitsSpec


@dataclass(frozen=True, slots=True)
class Others:
    """The other buckets of a partition: a bucket is a hash's share of it, and small ones shrink by chance."""

    published: int = 0
    """Images that they had published when the partition was surveyed."""
    now: int = 0
    """Images that the archive holds for them."""


ALONE = Others()
"""A partition that is not split has no other buckets."""


def allowed_loss(published: int, limits: LimitsSpec) -> int:
    """Images that a partition may lose in one publication: a share of them, and one of a few unless the share is 0."""
    return max(1, int(limits.max_shrink * published + 1e-9)) if limits.max_shrink else 0


def refusal(partition: str, published: int, now: int, limits: LimitsSpec) -> str | None:
    """Why rows of `now` images may not stand where those of `published` images are; None where they may.

    A sentence with what was there, what is there now, and what to set if that is right.
    """
    if now == 0:
        if limits.allow_empty:
            return None
        if published == 0:
            return f"{partition}: the archive holds no image of it, so nothing was published; {_IF_RIGHT}"
        return (
            f"{partition}: {published} images are published and the archive holds none of it now; the rows stay: look "
            f"for a lost mount, another input.uri or input.pattern; {_IF_RIGHT}"
        )
    lost = published - now
    if lost <= allowed_loss(published, limits):
        return None
    return (
        f"{partition}: {published} images are published and the archive holds {now} of it now, which is "
        f"{lost / published:.0%} fewer, and limits.max_shrink allows {limits.max_shrink:.0%}; the rows stay: look for "
        f"what is missing, or set limits.max_shrink: {_share(lost, published)} if this is right"
    )


def too_many_rejected(rejected: int, rows: int, limits: LimitsSpec) -> bool:
    """Whether so many rejections keep a partition of so many rows from being published."""
    share = isinstance(limits.max_rejected, float)
    return rejected > (limits.max_rejected * rows if share else limits.max_rejected)


_IF_RIGHT = "set limits.allow_empty: true if this is right"


def _share(lost: int, published: int) -> str:
    """A share that allows the loss, with two decimals."""
    return f"{min(1.0, -(-100 * lost // published) / 100):g}"
