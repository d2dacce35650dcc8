"""The contract of an exported file, as text in its metadata and in a file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import yaml

from unet_batch.contract import Contract
from unet_batch.errors import JobError, ModelRefused
from unet_batch.model.margin import lost_row
from unet_batch.model.shapes import shapes
from unet_batch.strict import parse_yaml, validate
from unet_batch.workbench.export.graph import INPUT_NAME

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]


def contract_text(contract: Contract) -> str:
    """A contract for a file's metadata: YAML with every null, because a missing background means class 0."""
    return yaml.safe_dump(contract.model_dump(mode="json"), sort_keys=False)


def contract_path(out: Path) -> Path:
    """The path of the contract beside an exported file, for users to read and correct."""
    return out.with_suffix(".yaml")


def without_contract(missing: Sequence[str]) -> str:
    """The note on a missing contract. missing: options of `model export` that were not given."""
    return (
        f"the file has no contract, because {' and '.join(missing)} was not given and a network does not hold it: "
        "export again with it, or write a contract beside the file (`unet-batch model inspect` drafts one)"
    )


def refuse_another_contract(out: Path, contract: Contract) -> None:
    """Raise JobError if there is another contract at the path: the user may have corrected it."""
    path = contract_path(out)
    if path.exists() and not _same(path.read_bytes(), contract):
        raise JobError(f"{path} differs from the contract of this export: move it away, or export to another name")


def as_classifier(contract: Contract, rank: int | None, size: tuple[int, int], *, any_size: bool) -> Contract:
    """The contract of a network that returns scores of whole images; unchanged for rank None.

    rank: axes of the output. Images are stretched to the network's size unless a fit other than tile was chosen.
    Raises JobError for an open size that no image can be brought to.
    """
    if rank is None:
        return contract
    fit = "stretch" if contract.input.fit == "tile" else contract.input.fit
    if any_size and fit in ("stretch", "letterbox"):
        raise JobError(
            f"a classifier scores whole images, and fit {fit} needs the network's size, {size[0]}x{size[1]}: leave "
            "height and width fixed, or choose --fit pad"
        )
    tree = contract.model_dump()
    tree["input"]["fit"] = fit
    tree["output"] |= {"label_from": "class_scores", "layout": "nk" if rank == 2 else None}
    return Contract.model_validate(tree)


def with_margin(contract: Contract, margin: int, model: ModelProto, size: tuple[int, int]) -> Contract:
    """The contract of a network whose mask is smaller than its image by a margin. Images are mirrored at their border.

    Raises ModelRefused for sides with which a level loses a row: the middle of its mask is not that of the image.
    """
    if not margin:
        return contract
    if lost := lost_row(model, shapes(model, {INPUT_NAME: (1, contract.input.channels, *size)})):
        raise ModelRefused(f"at {size[0]}x{size[1]} {lost}, so the place of the mask is unknown: export another size")
    return contract.model_copy(
        update={
            "input": contract.input.model_copy(update={"padding": "reflect"}),
            "output": contract.output.model_copy(update={"margin": margin}),
        }
    )


def with_multiple(contract: Contract, multiple: int, given: Array | None, unpadded: tuple[int, int] | None) -> Contract:
    """unpadded: size of the export, if the mask has a margin; sides then have its remainder."""
    sides = {"multiple": multiple, "remainder": unpadded[0] % multiple if unpadded else 0}
    changed = contract.input.model_copy(update=sides)
    if given is not None and not changed.takes((given.shape[2], given.shape[3])):
        raise JobError(f"a side of the given images, {given.shape[2]}x{given.shape[3]}, is not {changed.sides}")
    return contract.model_copy(update={"input": changed})


def _same(text: bytes, contract: Contract) -> bool:
    """Whether a text is this contract, or this contract as an older version wrote it, without newer fields."""
    if text == contract_text(contract).encode():
        return True
    try:
        tree = parse_yaml(text, "the contract beside the file")
        older = yaml.safe_dump(tree, sort_keys=False).encode() == text  # a comment is a correction too
        return older and validate(Contract, tree, "the contract beside the file") == contract
    except JobError:
        return False
