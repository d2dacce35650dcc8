"""Verdicts of the gate that this machine has kept: one small file for everything that a verdict depends on.

Knows names and digests. Knows no session's result.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from unet_batch import __version__
from unet_batch.model.model import Model
from unet_batch.records import Source
from unet_batch.session.processor import instructions
from unet_batch.session.session import Session
from unet_batch.spec import JobSpec

log = logging.getLogger(__name__)

ENGINES = ("onnxruntime", "openvino", "tensorrt")
"""How the names of packages begin whose versions decide what a session computes."""


def verdict_path(
    job: JobSpec, session: Session, trusted: Sequence[Model], images: Sequence[Source], subject: str
) -> Path:
    """The file of one verdict, in the cache folder that ladders lie in.

    trusted: the models that were believed; none where a file was held against what is stored in itself. images: what
    the sessions were compared on. Another archive, engine, processor, contract or tolerance asks again.
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
        "options": job.session.model_dump(mode="json"),
        "check": job.check.model_dump(mode="json"),
    }
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return Path(cache) / "unet-batch" / "checks" / f"{name}.json"


def versions() -> dict[str, str]:
    """What of this environment decides what a session computes: this package, and every engine."""
    found = {"unet-batch": __version__}
    for package in distributions():
        name = (package.metadata["Name"] or "").lower()
        if name.startswith(ENGINES):
            found[name] = package.version
    # A library that was replaced by hand has a version of its own.
    loaded = [name for name in ENGINES if name in sys.modules]
    return found | {f"{name}, loaded": str(getattr(sys.modules[name], "__version__", "")) for name in loaded}


def keep(path: Path, verdict: Mapping[str, Any]) -> None:
    """Writes a verdict; a folder that cannot be written costs a log line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(verdict))
    except OSError as error:
        log.warning("%s cannot be written, so the next run checks again: %s", path, error)
