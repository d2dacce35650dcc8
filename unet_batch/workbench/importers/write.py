"""Writes an imported model as a verified ONNX file, with its contract and the settings of its job.

The file goes through the same export as `model export`: it is written only if it gives the network's results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unet_batch.errors import JobError, ModelRefused
from unet_batch.workbench.export.export import ExportReport, ExportSpec, export
from unet_batch.workbench.files import replace_file
from unet_batch.workbench.importers.imported import Imported
from unet_batch.workbench.importers.wrappers import mean_of, with_exact_pooling


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The written model, and where its settings come from."""

    importer: str
    exported: ExportReport
    imported: Imported
    job_path: Path | None
    """The file with settings of the job; None if the model has none."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, a sentence each."""
        return (*self.imported.notes, *self.exported.notes)

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            **self.exported.to_json(),
            "importer": self.importer,
            "origin": self.imported.origin,
            "facts": [fact.to_json() for fact in self.imported.facts],
            "differences": [difference.text for difference in self.imported.differences],
            "job": None if self.job_path is None else str(self.job_path),
            "notes": list(self.notes),
        }


def write(
    importer: str, imported: Imported, out: Path, *, opset: int = 20, allow_difference: bool = False
) -> ImportReport:
    """Export an imported model, and write contract and job settings beside the file.

    Raises ModelRefused for differences that are not allowed, and as `export` does; JobError for paths.
    """
    if imported.differences and not allow_difference:
        raise ModelRefused(
            "the masks could not equal the framework's own: " + "; ".join(map(str, imported.differences)) + ". "
            "--allow-difference imports the model all the same"
        )
    job = job_text(imported.job)
    if job and job_path(out).exists() and job_path(out).read_text() != job:
        raise JobError(f"{job_path(out)} differs from this import: move it away, or import to another name")
    contract = imported.contract
    spec = ExportSpec(
        factory=imported.origin,
        out=out,
        input_chw=(contract.input.channels, *imported.size_hw),
        classes=contract.output.classes,
        activation=None if contract.output.activation == "masks" else contract.output.activation,
        normalize=contract.input.normalize,
        color=contract.input.color,
        any_size=imported.any_size and contract.input.height is None,
        opset=opset,
        output=imported.output,
        contract=contract,
    )
    exported = export(spec, with_exact_pooling(mean_of(imported.networks)), imported.weights)
    if job:
        replace_file(job_path(out), job.encode())
    return ImportReport(importer, exported, imported, job_path(out) if job else None)


def job_path(out: Path) -> Path:
    """The path of the job's settings beside an imported file."""
    return out.with_suffix(".job.yaml")


def job_text(settings: Mapping[str, Any]) -> str:
    """Settings of a model as part of a job file; empty without settings."""
    if not settings:
        return ""
    return "# Settings of the job file that belong to this model.\n" + yaml.safe_dump(dict(settings), sort_keys=False)
