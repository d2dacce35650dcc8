"""The contract of an exported file, as text in its metadata and in a file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from unet_batch.contract import Contract
from unet_batch.errors import JobError


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
    if path.exists() and path.read_bytes() != contract_text(contract).encode():
        raise JobError(f"{path} differs from the contract of this export: move it away, or export to another name")
