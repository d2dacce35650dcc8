"""The contract of an exported file, as text inside it and beside it, and what it is without one.

Knows contracts and files. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from unet_batch.contract import Contract
from unet_batch.errors import JobError


def contract_text(contract: Contract) -> str:
    """A contract as it lies in a file's metadata: YAML, with every null, because a background left out is class 0."""
    return yaml.safe_dump(contract.model_dump(mode="json"), sort_keys=False)


def contract_path(out: Path) -> Path:
    """Where the contract of an exported file lies, for people to read and correct."""
    return out.with_suffix(".yaml")


def without_contract(missing: Sequence[str]) -> str:
    """A note for people. missing: options of `model export` that were not given."""
    return (
        f"the file has no contract, because {' and '.join(missing)} was not given and nothing in a network says it: "
        "export again with it, or write a contract beside the file (`unet-batch model inspect` drafts one)"
    )


def refuse_another_contract(out: Path, contract: Contract) -> None:
    """A contract that somebody has corrected is not replaced."""
    path = contract_path(out)
    if path.exists() and path.read_bytes() != contract_text(contract).encode():
        raise JobError(f"{path} says something else than this export would: move it away, or export to another name")
