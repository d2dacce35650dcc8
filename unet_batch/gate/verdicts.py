"""Stored verdicts of the gate on this machine: one small file per verdict, named by all that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, get_args

from unet_batch import __version__
from unet_batch.model.model import Model
from unet_batch.records import Source
from unet_batch.session.machine import cache_folder, instructions
from unet_batch.session.session import Session
from unet_batch.spec import Engine, JobSpec

log = logging.getLogger(__name__)

ENGINES = (*get_args(Engine), "tensorrt")
"""Prefixes of packages whose versions affect the results of a session."""


def verdict_path(
    job: JobSpec, session: Session, trusted: Sequence[Model], images: Sequence[Source], subject: str
) -> Path:
    """The file of one verdict, in the cache folder of the ladders.

    trusted: the reference models; empty if a file was compared with its own reference pictures. images: the compared
    sources. Another archive, engine, processor, contract or tolerance gives another name.
    """
    key = {
        "subject": subject,
        "model": json.loads(session.model.to_json()),
        "trusted": [json.loads(model.to_json()) for model in trusted],
        "images": [[source.key, source.version] for source in images],
        "engine": job.model.engine,
        "versions": versions(),
        "precision": job.model.precision,
        "provider": session.provider,
        "device": session.device_name,
        "instructions": sorted(instructions()),
        "tiling": job.tiling.model_dump(mode="json"),
        "tta": job.tta,
        "options": job.session.model_dump(mode="json"),
        "check": job.check.model_dump(mode="json"),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder("checks") / f"{name}.json"


def versions() -> dict[str, str]:
    """Versions of this package and of every engine, which affect the results of a session."""
    found = {"unet-batch": __version__}
    for package in distributions():
        name = (package.metadata["Name"] or "").lower()
        if name.startswith(ENGINES):
            found[name] = package.version
    # A library that was replaced by hand has another version.
    loaded = [name for name in ENGINES if name in sys.modules]
    return found | {f"{name}, loaded": str(getattr(sys.modules[name], "__version__", "")) for name in loaded}


def keep(path: Path, verdict: Mapping[str, Any]) -> None:
    """Write a verdict. If the folder is not writable, log a warning."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(verdict))
    except OSError as error:
        log.warning("%s cannot be written, so the next run checks again: %s", path, error)
