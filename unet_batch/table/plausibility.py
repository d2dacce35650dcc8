"""Rows that are complete and still look wrong: masks empty or full in nearly all images, a class that is missing,
pixels that use little of their range, and confidence far from that of other nights.

A warning that is often wrong is not read. So a rule needs enough images, and is silent where a night of the same model
and settings was published with nearly the same counts: that is how the archive is, and it was said then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unet_batch.errors import NeedsAction
from unet_batch.spec import LimitsSpec
from unet_batch.table.tally import Tally, distance, median_confidence

Kind = Literal["empty", "full", "dim", "unseen", "confidence"]

NEARLY_ALL = 0.98
"""Share of images with empty, or full, masks. Below 50 images it means all of them."""
MOST_DIM = 0.5
"""Share of images that use little of their range."""
HABIT = 0.9
"""A night that reached this part of a threshold silences the rule."""
FEWEST = 5
"""Images below which masks are not judged: one image may well be empty."""
FEWEST_CONFIDENCES = 30
"""Images of each night whose confidences are compared. With so few, a distance of 0.5 to three such nights comes by
chance in 1 of 40,000 nights."""
FAR = 0.5
"""Distance of the confidences from those of other nights: so many images moved across one level."""
RESTLESS = 1.5
"""The distance must also be this many times the largest distance of one of those nights from the rest."""
FEWEST_NIGHTS = 3
EXPECTED = 10.0
"""Images in which other nights let expect a class: seeing it in none has a chance of e⁻¹⁰."""
FEWEST_FOR_UNSEEN = 100
"""Images of a first night from which a class that is in none of them is named."""
FEW_CLASSES = 5
"""Most classes of a model for that: of many classes some are rare in every archive."""


@dataclass(frozen=True, slots=True)
class Implausible:
    """Something that looks wrong in a partition's rows."""

    partition: str
    kind: Kind
    share: float
    """Share of the partition's images that it concerns; 0 for a class that no night has shown yet."""
    text: str
    """One sentence that begins with the partition."""


def implausible(
    partition: str, tally: Tally, classes: Mapping[int, str], nights: Sequence[Tally]
) -> tuple[Implausible, ...]:
    """What looks wrong in a partition.

    classes: id → name of every class that gets an entry in a row. nights: other published partitions of the same
    fingerprint, the nearest first.
    """
    if not tally.ok:
        return ()
    rules = (_empty(tally, nights), _full(tally, classes, nights), _dim(tally, nights))
    found = [rule for rule in rules if rule is not None]
    found += [*_unseen(tally, classes, nights), *_confidence(tally, nights)]
    return tuple(Implausible(partition, kind, share, f"{partition}: {text}") for kind, share, text in found)


def checked(
    partition: str, tally: Tally, classes: Mapping[int, str], nights: Sequence[Tally], *, limits: LimitsSpec
) -> tuple[Implausible, ...]:
    """The same. Raises NeedsAction if something concerns a larger share of the images than `limits.implausible`."""
    found = implausible(partition, tally, classes, nights)
    for warning in found:
        if warning.share > limits.implausible:
            raise NeedsAction(
                f"{warning.text}; limits.implausible allows {limits.implausible:g} of the images; nothing was "
                "published: correct the cause, or set limits.implausible: 1.0 if this is right, and run again"
            )
    return found


_Found = tuple[Kind, float, str]


def _empty(tally: Tally, nights: Sequence[Tally]) -> _Found | None:
    share = tally.empty / tally.ok
    if tally.ok < FEWEST or share < NEARLY_ALL or _is_habit(nights, lambda night: night.empty, NEARLY_ALL):
        return None
    return "empty", share, f"the mask is empty in {tally.empty} of {tally.ok} images{_before(nights)}: {_LOOK}"


def _full(tally: Tally, classes: Mapping[int, str], nights: Sequence[Tally]) -> _Found | None:
    id_, images = max(tally.full.items(), key=lambda entry: entry[1], default=(0, 0))
    share = images / tally.ok
    if tally.ok < FEWEST or share < NEARLY_ALL or _is_habit(nights, lambda night: night.full[id_], NEARLY_ALL):
        return None
    name = classes.get(id_, str(id_))
    return "full", share, f"class {name} covers {images} of {tally.ok} images whole{_before(nights)}: {_LOOK}"


def _dim(tally: Tally, nights: Sequence[Tally]) -> _Found | None:
    share = tally.dim / tally.ok
    if share <= MOST_DIM or _is_habit(nights, lambda night: night.dim, MOST_DIM):
        return None
    text = (
        f"{tally.dim} of {tally.ok} images use less than 5 % of the range that they are divided by, so the model sees "
        "them almost black: if they hold 8 or 10 bits in a 16-bit file, write the right divisor as "
        "input.normalize.max in the contract"
    )
    return "dim", share, text


def _unseen(tally: Tally, classes: Mapping[int, str], nights: Sequence[Tally]) -> Iterator[_Found]:
    missing = [id_ for id_ in classes if not tally.seen[id_]]
    if not nights and tally.ok >= FEWEST_FOR_UNSEEN and 0 < len(missing) < len(classes) <= FEW_CLASSES:
        names = " and ".join(classes[id_] for id_ in missing)
        text = (
            f"no pixel of {names} in {tally.ok} images: if there should be some, compare output.classes and "
            "input.color of the contract with the training"
        )
        yield "unseen", 0.0, text
    full_nights = [night for night in nights if night.ok >= FEWEST]
    if len(full_nights) < FEWEST_NIGHTS or len(missing) == len(classes) == 1:  # `_empty` says the latter
        return
    images = sum(night.ok for night in full_nights)
    for id_ in missing:
        share = sum(night.seen[id_] for night in full_nights) / images
        if share * tally.ok >= EXPECTED and all(night.seen[id_] for night in full_nights):
            text = (
                f"no pixel of {classes[id_]} in {tally.ok} images, and {len(full_nights)} other nights have it in "
                f"{share:.0%} of theirs: look for another camera, another scene or another way of saving"
            )
            yield "unseen", share, text


def _confidence(tally: Tally, nights: Sequence[Tally]) -> Iterator[_Found]:
    levels = [night.confidence for night in nights if night.confidence.total() >= FEWEST_CONFIDENCES]
    if tally.confidence.total() < FEWEST_CONFIDENCES or len(levels) < FEWEST_NIGHTS:
        return
    pooled: Counter[int] = sum(levels, Counter())
    far = distance(tally.confidence, pooled)
    restless = max(distance(night, pooled - night) for night in levels)
    if far >= max(FAR, RESTLESS * restless):
        now, then = median_confidence(tally.confidence), median_confidence(pooled)
        text = (
            f"the confidence is far from that of {len(levels)} other nights (median {now:.4g}, not {then:.4g}; "
            f"{far:.0%} of the images moved): look for another camera, another exposure or another way of saving"
        )
        yield "confidence", far, text


def _is_habit(nights: Sequence[Tally], count: Callable[[Tally], int], threshold: float) -> bool:
    """Whether a night was published with nearly the share that a rule looks for."""
    return any(night.ok >= FEWEST and count(night) >= HABIT * threshold * night.ok for night in nights)


def _before(nights: Sequence[Tally]) -> str:
    return f", unlike the {len(nights)} nearest published night(s)" if nights else ""


_LOOK = (
    "look at them with `unet-batch report`; if they are neither black nor of something else, the model gets other "
    "values than in its training: compare input.normalize, input.color and input.fit of the contract"
)
