"""What a packed model carries to be checked by: pictures anybody can make again, and the labels the network gave them.

A packed graph has its normalisation, its channel order and its weights inside, where nobody sees them. Whoever runs it
can make the same pictures, run them, and compare: `verify_reference`.

Knows pictures made of integers (no float, so that every machine makes the same), labels, and metadata. Knows no
session: whoever has one brings it.

Legend: P planes of labels (1, or one per class where classes may overlap), H, W pixels, h, w pixels of the output.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelOutput
from unet_batch.errors import ModelRefused, ShapeMismatch
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import Geometry, normalize
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY, ModelFile, find_contract
from unet_batch.model.pack_nodes import FINITE, SourceType
from unet_batch.model.pack_pictures import synthetic
from unet_batch.model.parity import Parity, Tolerance

PACK_KEY = "unet_batch.pack"
MAX_LABEL_BYTES = 40 << 10
"""Of all references in the metadata, as base64: metadata is read by everybody who opens the file."""
MAX_PIXELS = 1 << 28
"""Values of a reference picture that a file may ask for."""
CANDIDATES = 6
"""Synthetic pictures to choose from; a network says the same everywhere on some of them."""
KEPT = 3
TOLERANCE = Tolerance(max_flipped=1e-3, min_dice=0.0)
"""For other machines and providers: last bits differ at ties, and nothing else may."""
TELLING = 0.01
"""Smallest share of labels that a mistake must change for a reference to notice it surely."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One picture by name, and what the network said about it before it was packed."""

    given: bool
    """Whether somebody gave the picture: it is known by its digest only. The others can be made again."""
    number: int
    """Which one of its sort."""
    shape_hwc: tuple[int, int, int]
    dtype: SourceType
    digest: str
    """SHA-256 of the pixels."""
    step: int
    """Labels are kept of every step-th row and column."""
    labels: str
    """zlib, base64: uint8 (P, rows, columns)."""
    labels_shape: tuple[int, int, int]

    def pixels(self) -> NDArray[Any] | None:
        """The picture; None for one that was given."""
        return None if self.given else synthetic(self.number, self.shape_hwc, self.dtype)

    def labels_phw(self) -> NDArray[np.uint8]:
        """Every step-th label. Raises ValueError or zlib.error where the text is not what `labels_shape` says."""
        # Never more bytes than the shape has room for: the text comes from a file that anybody may have written.
        raw = zlib.decompressobj().decompress(base64.b64decode(self.labels), math.prod(self.labels_shape) + 1)
        return np.frombuffer(raw, np.uint8).reshape(self.labels_shape)


@dataclass(frozen=True, slots=True)
class ReferenceCheck:
    """What became of the references when somebody ran them."""

    checked: int
    """References that were run."""
    missing: int
    """Given pictures that nobody gave again."""
    parity: Parity | None
    """Labels against the labels kept; None where nothing was run."""
    problems: tuple[str, ...]
    """A sentence for everything that is wrong."""

    @property
    def ok(self) -> bool:
        return self.checked > 0 and not self.problems

    def to_json(self) -> dict[str, Any]:
        """Everything, for `json.dumps`."""
        parity = None if self.parity is None else self.parity.to_json()
        return {"ok": self.ok, "checked": self.checked, "missing": self.missing, "parity": parity} | {
            "problems": list(self.problems)
        }


def verify_reference(
    data: bytes,
    run: Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]],
    *,
    images: Sequence[NDArray[Any]] = (),
    tolerance: Tolerance = TOLERANCE,
) -> ReferenceCheck:
    """A packed model's references, run again and held against the labels that the file carries.

    run: takes (N, H, W, C) tiles of the contract's input dtype and returns outputs by name: labels as (N, h, w),
    (N, 1, h, w) or (N, K, h, w); scores as (N, K, h, w); `finite` as (N,) where the caller fetches it.
    images: given pictures, which the file knows by digest only; others are ignored.
    Raises ModelRefused for a file that was never packed, and what `run` raises.
    """
    model = graph.read(data, "the model")
    metadata = graph.metadata(model)
    if PACK_KEY not in metadata or METADATA_KEY not in metadata:
        raise ModelRefused(f"the model was not packed: it has no metadata {PACK_KEY}")
    file = ModelFile(data=data, sha256="", uri="the model", inputs=(), outputs=(), metadata=metadata)
    contract = find_contract(file, None, "the model")
    batch, references = _stored(metadata[PACK_KEY])
    given = {digest(image): image for image in images}
    parity: Parity | None = None
    checked = missing = 0
    problems = []
    for reference in references:
        pixels = given.get(reference.digest) if reference.given else reference.pixels()
        if pixels is None:
            missing += 1
            continue
        checked += 1
        name = f"{'given' if reference.given else 'synthetic'} picture {reference.number}"
        if digest(pixels) != reference.digest:
            problems.append(f"{name} cannot be made again: another version of this package made it")
            continue
        tile = normalize(pixels, whole(pixels.shape[:2]), contract.input)[None]
        result = run(np.repeat(tile, batch, axis=0))
        if FINITE in result and not result[FINITE].all():
            problems.append(f"{name}: the model returns NaN or infinity")
        found_phw = _as_labels(result, contract.output)[:, :: reference.step, :: reference.step]
        expected_phw = reference.labels_phw()
        if found_phw.shape != expected_phw.shape:
            problems.append(f"{name}: labels come back as {found_phw.shape}, not {expected_phw.shape}")
            continue
        one = label_parity(expected_phw, found_phw, contract.output.classes)
        parity = one if parity is None else parity + one
        problems += [
            f"{name}: {breach}; channels, normalisation or weights are not those that were packed"
            for breach in tolerance.breaches(one)
        ]
    return ReferenceCheck(checked, missing, parity, tuple(problems))


def choose(
    labels_of: Callable[[NDArray[Any]], NDArray[np.uint8] | None],
    shape_hwc: tuple[int, int, int],
    dtype: SourceType,
    images: Sequence[NDArray[Any]],
) -> tuple[list[Reference], dict[str, float]]:
    """The references of a model, and how surely they notice a mistake: the share of labels that it changes.

    labels_of: the network's labels (P, h, w) of a picture; None where it returned NaN. images: always among them.
    Raises ModelRefused where the network has an answer to no picture at all.
    """
    answers: list[tuple[bool, int, NDArray[Any], NDArray[np.uint8]]] = []
    for number in range(CANDIDATES):
        pixels = synthetic(number, shape_hwc, dtype)
        labels = labels_of(pixels)
        if labels is not None:
            answers.append((False, number, pixels, labels))
    answers.sort(key=lambda answer: -_variety(answer[3]))
    answers = answers[:KEPT]
    tells = dict.fromkeys(("channels_reversed", "half_as_bright"), 0.0)
    for _, _, pixels, labels in answers:
        wrong = {"channels_reversed": np.ascontiguousarray(pixels[:, :, ::-1]), "half_as_bright": pixels // 2}
        for name, changed in wrong.items():
            other = labels_of(changed)
            tells[name] = max(tells[name], 1.0 if other is None else float((other != labels).mean()))
    for number, image in enumerate(images):
        labels = labels_of(image)
        if labels is None:
            raise ModelRefused(f"the model returns NaN or infinity for given picture {number}: leave it out")
        answers.append((True, number, image, labels))
    if not answers:
        raise ModelRefused("the model returns NaN or infinity for every reference picture: check its precision")
    room = MAX_LABEL_BYTES // len(answers)
    return [_kept(*answer, room=room) for answer in answers], tells


def decide(scores_khw: NDArray[np.float32], output: ModelOutput) -> NDArray[np.uint8]:
    """Labels (P, h, w) of one tile's scores, by `imaging.postprocess.reduce`; raises what it raises."""
    geometry = whole(scores_khw.shape[1:])
    if not output.multi_label or len(output.classes) == 1:
        labels_hw = reduce(scores_khw, geometry, output, rle=False, confidence=False).labels_hw
        return np.asarray(labels_hw, np.uint8)[None]
    planes = []
    for scores_hw, name in zip(scores_khw, output.classes, strict=True):
        alone = output.model_copy(update={"classes": (name,), "background": None})
        planes.append(reduce(scores_hw[None], geometry, alone, rle=False, confidence=False).labels_hw)
    return np.asarray(np.stack([plane for plane in planes if plane is not None]), np.uint8)


def label_parity(expected_phw: NDArray[Any], found_phw: NDArray[Any], classes: tuple[str, ...]) -> Parity:
    """How far labels are from labels: one map, or a mask of 0 and 1 per class."""
    activation = "labels" if len(expected_phw) == 1 else "sigmoid"
    output = ModelOutput(activation=activation, classes=classes, background=None)  # type: ignore[arg-type]
    return Parity.of(expected_phw[None].astype(np.float32), found_phw[None].astype(np.float32), output)


def whole(size_hw: Sequence[int]) -> Geometry:
    """The geometry of a picture that is its own tile."""
    height, width = size_hw
    return Geometry((height, width), (height, width), 0, 0, (height, width))


def digest(pixels: NDArray[Any]) -> str:
    """SHA-256 over type, shape and values of a picture."""
    text = f"{pixels.dtype} {pixels.shape} ".encode()
    return hashlib.sha256(text + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _stored(text: str) -> tuple[int, list[Reference]]:
    """The batch and the references of a metadata entry. Raises ModelRefused for one that no pack wrote."""
    try:
        entry = json.loads(text)
        references = []
        for fields in entry["references"]:
            shapes = {name: tuple(map(int, fields[name])) for name in ("shape_hwc", "labels_shape")}
            reference = Reference(**{**fields, **shapes})
            reference.labels_phw()
            references.append(reference)
        batch = int(entry["batch"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ModelRefused(f"metadata {PACK_KEY} was not written by a pack: {type(error).__name__} {error}") from error
    largest = max([batch * math.prod(reference.shape_hwc) for reference in references], default=0)
    if largest > MAX_PIXELS:
        raise ModelRefused(f"metadata {PACK_KEY} was not written by a pack: it asks for {largest:,} pixels")
    return batch, references


def _as_labels(result: Mapping[str, NDArray[Any]], output: ModelOutput) -> NDArray[np.uint8]:
    name = output.name or next(iter(result))
    if name not in result:
        raise ShapeMismatch(f"the run returned {', '.join(result) or 'nothing'}, but not {name}")
    first = result[name][0]
    if output.activation == "labels":
        return np.asarray(first, np.uint8).reshape(1, *first.shape[-2:])
    if output.decided:
        return np.asarray(first, np.uint8)
    return decide(first.astype(np.float32), output)


def _variety(labels_phw: NDArray[np.uint8]) -> float:
    """Entropy in bits of the labels' histogram, summed over planes."""
    bits = 0.0
    for plane in labels_phw:
        share = np.bincount(plane.ravel()) / plane.size
        bits -= float((share[share > 0] * np.log2(share[share > 0])).sum())
    return bits


def _kept(given: bool, number: int, pixels: NDArray[Any], labels: NDArray[np.uint8], *, room: int) -> Reference:
    """A reference whose labels fit into so many bytes: thinned out until they do."""
    height, width, channels = pixels.shape
    dtype: SourceType = "uint8" if pixels.dtype == np.uint8 else "uint16"
    reference = Reference(given, number, (height, width, channels), dtype, digest(pixels), 0, "", (0, 0, 0))
    step = 1
    while True:
        thin = np.ascontiguousarray(labels[:, ::step, ::step])
        text = base64.b64encode(zlib.compress(thin.tobytes(), 9)).decode()
        if len(text) <= room:
            shape = thin.shape[0], thin.shape[1], thin.shape[2]
            return replace(reference, step=step, labels=text, labels_shape=shape)
        step *= 2
