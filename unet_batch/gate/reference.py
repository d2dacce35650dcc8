"""Checks that a trusted fp32 model and the tested file have contracts with the same meaning. Opens no session."""

from __future__ import annotations

import json
from typing import Any

from unet_batch.contract import Contract
from unet_batch.errors import ContractError, ModelRefused
from unet_batch.model import graph
from unet_batch.model.model import Model
from unet_batch.model.packed import PACK_KEY
from unet_batch.session.engines import file_precision

OWN = frozenset(
    {
        "input.name",
        "input.layout",
        "input.dtype",
        "input.height",
        "input.width",
        "input.multiple",
        "input.remainder",
        "output.name",
        "output.layout",
    }
)
"""Fields in which two files of one network may differ: the layout of tensors, not the meaning of values."""


def check_reference(judged: tuple[bytes, Model], trusted: tuple[bytes, Model], key: str) -> None:
    """Raise ContractError if a model cannot be the reference: it is not fp32, or its contract has another meaning.

    key: of the reference in the job file. Both sessions get the same tiles, so the comparison would not show a
    difference in colour or normalisation.
    """
    held = file_precision(trusted[0], key)
    if held != "fp32":
        raise ContractError(f"{key} is a model in {held} and cannot be a reference: use the fp32 file it was made from")
    differences = [
        f"{name} ({ours!r} in the model, {theirs!r} in the reference)"
        for name, ours, theirs in _fields(_unpacked(*judged), _unpacked(*trusted))
        if ours != theirs and name not in OWN
    ]
    if differences:
        raise ContractError(
            f"the contracts of the model and of {key} differ in meaning: {'; '.join(differences)}. Correct the "
            "wrong one"
        )


def _fields(ours: Contract, theirs: Contract) -> list[tuple[str, Any, Any]]:
    """All fields of both contracts, so that new fields are compared too."""
    return [
        (f"{section}.{name}", getattr(getattr(ours, section), name), getattr(getattr(theirs, section), name))
        for section in type(ours).model_fields
        for name in type(getattr(ours, section)).model_fields
    ]


def _unpacked(data: bytes, model: Model) -> Contract:
    """The contract of the network in a packed file; the contract itself for other files."""
    contract = model.contract
    if PACK_KEY.encode() not in data:
        return contract
    try:
        entry = json.loads(graph.metadata(graph.read(data, "the model")).get(PACK_KEY, "{}"))
        tree = contract.model_dump(mode="json")
        # A packed file pads with source values and refuses other depths; both follow from the network's contract.
        tree["input"] |= {"normalize": entry["normalize"], "source_max": None, **entry["padding"]}
        tree["output"]["activation"] = entry["activation"]
        return Contract.model_validate(tree)
    except (ModelRefused, ValueError, KeyError, TypeError):
        return contract
