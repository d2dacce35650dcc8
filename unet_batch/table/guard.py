"""The guard: published rows are not replaced by none, or by far fewer, unless the user allows it.

The plan asks it before scoring, and publication asks it again with the rows that are published then.
"""

from __future__ import annotations

from dataclasses import dataclass

from unet_batch.spec import LimitsSpec


@dataclass(frozen=True, slots=True)
class Others:
    """The other buckets of a partition. All buckets count together, because small buckets may shrink by chance."""

    published: int = 0
    """Their published images at the time of the survey."""
    now: int = 0
    """Their images in the archive."""


ALONE = Others()
"""For a partition that is not split into buckets."""


def allowed_loss(published: int, limits: LimitsSpec) -> int:
    """Images that a partition may lose in one publication: a share of them, but at least one unless the share is 0."""
    return max(1, int(limits.max_shrink * published + 1e-9)) if limits.max_shrink else 0


def refusal(partition: str, published: int, now: int, limits: LimitsSpec) -> str | None:
    """Why rows of `now` images may not replace those of `published` images, and what to do; None if they may."""
    if now == 0:
        if limits.allow_empty:
            return None
        if published == 0:
            return f"{partition}: the archive holds no image of it, so nothing was published; {_IF_RIGHT}"
        return (
            f"{partition}: {published} images are published, but the archive holds none of it now; the rows stay: look "
            f"for a lost mount, another input.uri or input.pattern; {_IF_RIGHT}"
        )
    lost = published - now
    if lost <= allowed_loss(published, limits):
        return None
    return (
        f"{partition}: {published} images are published, but the archive holds {now} of it now, which is "
        f"{lost / published:.0%} fewer, and limits.max_shrink allows {limits.max_shrink:.0%}; the rows stay: look for "
        f"what is missing, or set limits.max_shrink: {_share(lost, published)} if this is right"
    )


def too_many_rejected(rejected: int, rows: int, limits: LimitsSpec) -> bool:
    """Whether this number of rejections keeps a partition with this number of rows from being published."""
    share = isinstance(limits.max_rejected, float)
    return rejected > (limits.max_rejected * rows if share else limits.max_rejected)


_IF_RIGHT = "set limits.allow_empty: true if this is right"


def _share(lost: int, published: int) -> str:
    """The smallest share, with two decimals, that allows the loss."""
    return f"{min(1.0, -(-100 * lost // published) / 100):g}"
