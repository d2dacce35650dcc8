"""Several models as one session: the mean of their logits or probabilities, or a vote.

Arrays: N tiles, K classes, h and w pixels of the output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from unet_batch.contract import ModelOutput
from unet_batch.errors import ContractError, ProviderMissing, ShapeMismatch
from unet_batch.model.model import Model
from unet_batch.session.session import Array, Session

Combine = Literal["logits", "probabilities", "vote"]


def combined_model(models: Sequence[Model], combine: Combine) -> Model:
    """The model of the ensemble as a whole, for tiling, blending, thresholds and records.

    Its digest covers every member's file and contract, in order, and the combination. Its output is logits or
    probabilities: softmax for exclusive classes, sigmoid for independent classes. Shares of votes are treated as
    probabilities: an independent class needs more than half of the votes.
    Raises ContractError with a phrase for every difference between the members.
    """
    first = models[0]
    problems = [p for n, model in enumerate(models[1:], start=2) for p in _differences(first, model, n)]
    problems += [p for n, model in enumerate(models, start=1) for p in _unfit(model, n, combine)]
    batches = sorted({model.batch for model in models if model.batch is not None})
    if len(batches) > 1:
        problems.append(f"the members fix their batch axes at {' and '.join(map(str, batches))}")
    if problems:
        raise ContractError("the members of the ensemble do not fit together: " + "; ".join(problems))
    changes: dict[str, Any] = {"layout": None}
    if combine != "logits":
        changes["activation"] = "sigmoid" if _independent(first.contract.output) else "softmax"
    if combine == "vote":
        changes["threshold"] = 0.5
    output = first.contract.output.model_copy(update=changes)
    digest = hashlib.sha256(b"ensemble of " + combine.encode())
    for model in models:
        digest.update(hashlib.sha256(model.to_json()).digest())
    return replace(
        first,
        sha256=digest.hexdigest(),
        contract=first.contract.model_copy(update={"output": output}),
        batch=batches[0] if batches else None,
        output_layout="nchw",
    )


class Ensemble:
    """A session of several sessions: every tile runs through each member in turn."""

    def __init__(self, sessions: Sequence[Session], model: Model, combine: Combine) -> None:
        """sessions: of the members, in the order of `combined_model`. model: the result of `combined_model`.

        Raises ProviderMissing if they do not all run on the same provider.
        """
        providers = sorted({session.provider for session in sessions})
        if len(providers) > 1:
            raise ProviderMissing(
                f"the members of the ensemble run on {' and '.join(providers)}: write one provider in session.providers"
            )
        self.model = model
        self.provider = providers[0]
        self.device_name = sessions[0].device_name
        self._sessions = tuple(sessions)
        self._combine = combine

    def run(self, tiles: Array) -> Array:
        total: Array | None = None
        for session in self._sessions:
            output = session.run(tiles)
            share = output if self._combine == "logits" else _share(output, session.model, self._combine)
            if total is None:
                total = share
            elif total.shape != share.shape:
                sizes = " and ".join(f"{a.shape[2]}x{a.shape[3]}" for a in (total, share))
                raise ShapeMismatch(f"the members of the ensemble return masks of {sizes} for the same tiles")
            else:
                total += share
        if total is None:
            raise ContractError("an ensemble has no members")
        total /= np.float32(len(self._sessions))
        return total


def probabilities(output_nkhw: Array, output: ModelOutput) -> Array:
    """float32 (N, K, h, w): softmax over the classes or a sigmoid per class; probabilities are returned unchanged."""
    if output.activation in ("softmax", "sigmoid"):
        return output_nkhw
    if output.multi_label:
        weights: Array = np.exp(-np.abs(output_nkhw))
        shares: Array = np.where(output_nkhw >= 0, 1, weights) / (1 + weights)
        return shares
    with np.errstate(invalid="ignore"):  # infinity − infinity: `_share` marks such pixels
        weights = np.exp(output_nkhw - output_nkhw.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def votes(output_nkhw: Array, output: ModelOutput) -> Array:
    """float32 (N, K, h, w): 1 where the pixel belongs to the class for this member, as in `postprocess.reduce`.

    Raises ShapeMismatch for labels that are not a class.
    """
    classes = len(output.classes)
    if output.multi_label:
        return (output_nkhw > np.float32(output.value_threshold)).astype(np.float32)
    if output.activation != "labels":
        labels_nhw = output_nkhw.argmax(axis=1)
    else:
        labels_nhw = output_nkhw[:, 0]
        if labels_nhw.min() < 0 or labels_nhw.max() > max(classes - 1, 1) or (labels_nhw % 1).any():
            raise ShapeMismatch(
                f"a member returned labels {labels_nhw.min()} to {labels_nhw.max()}, not 0 to {max(classes - 1, 1)}: "
                "correct output.classes"
            )
    if classes == 1:
        return np.asarray(labels_nhw[:, None], np.float32)
    return np.asarray(labels_nhw[:, None] == np.arange(classes)[:, None, None], np.float32)


def _share(output_nkhw: Array, model: Model, combine: Combine) -> Array:
    """The contribution of one member. A pixel that is not finite stays so: a softmax or a vote must not hide it."""
    output = model.contract.output
    share = (probabilities if combine == "probabilities" else votes)(output_nkhw, output)
    finite_nkhw = np.isfinite(output_nkhw)
    if finite_nkhw.all():
        return share
    return np.where(finite_nkhw.all(axis=1, keepdims=True), share, np.float32(np.nan))


def _independent(output: ModelOutput) -> bool:
    """Whether classes are independent; labels of a single class are too, as shares."""
    return output.multi_label or len(output.classes) == 1


def _differences(first: Model, model: Model, number: int) -> list[str]:
    """Differences of member `number` to the first member. Names and layouts of tensors may differ."""
    ours, theirs = first.contract, model.contract
    pairs: list[tuple[str, object, object]] = [
        (f"input.{name}", getattr(ours.input, name), getattr(theirs.input, name))
        for name in type(ours.input).model_fields
        if name not in ("name", "layout")
    ]
    pairs += [
        (f"output.{name}", getattr(ours.output, name), getattr(theirs.output, name))
        for name in ("classes", "background", "threshold", "margin", "label_from", "label_above", "top")
    ]
    pairs.append(("the size of its tiles", first.tile_hw, model.tile_hw))
    pairs.append(("whether classes are exclusive", not _independent(ours.output), not _independent(theirs.output)))
    return [f"member {number} differs in {what} ({b}, not {a})" for what, a, b in pairs if a != b]


def _unfit(model: Model, number: int, combine: Combine) -> list[str]:
    """Why this member's output cannot be combined in this way."""
    activation = model.contract.output.activation
    if combine == "logits" and activation != "logits":
        return [f"member {number} returns {activation} and not logits: combine probabilities"]
    if combine == "probabilities" and model.contract.output.decided:
        return [f"member {number} returns {activation}, which have no probabilities: combine by vote"]
    return []
