"""The fingerprint of a job: one digest over everything that changes a result.

The job file and the contract enter, except the fields that are listed below with a reason. So a new field is part of
the fingerprint unless it is added to the list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from unet_batch.contract import without_later
from unet_batch.model.model import Model
from unet_batch.session.engines import fingerprint_marks
from unet_batch.spec import JobSpec
from unet_batch.table.rows import SCHEMA_VERSION, SCORING_REVISION

OUTSIDE: Mapping[str, str] = MappingProxyType(
    {
        "name": "a name for people",
        "window": "which partitions a run works on",
        "model.path": "location of the file; its bytes enter",
        "model.sha256": "a demand on the bytes, which enter",
        "model.contract": "where the contract lies; what it says enters",
        "model.options": "how the store is reached",
        "model.ensemble.members": "where the files lie; their bytes and contracts enter",
        "model.ensemble.sha256": "a demand on the bytes, which enter",
        "input.uri": "which images are scored; each is known by its key and version",
        "input.pattern": "which images are scored",
        "input.members": "which images are scored",
        "input.exclude": "which images are scored",
        "input.options": "how the store is reached",
        "output.uri": "where rows go",
        "output.mask_files": "files that are made from published rows",
        "output.compression": "how rows are stored; their values stay",
        "output.buckets": "in which object a row lies; each bucket is a partition of its own",
        "output.single_writer": "how rows are published",
        "output.options": "how the store is reached",
        "session.providers": "the last bits only; the gate compares labels",
        "session.provider_options": "the last bits only; those of an unknown provider enter (fingerprint_marks)",
        "session.custom_ops": "where the libraries lie; their names and bytes enter (fingerprint_marks)",
        "session.threads": "how many cores a session uses; the last bits only",
        "session.strict": "whether a job may run, never what it says; the engine that runs enters",
        "session.batch_max": "the last bits only",
        "session.gpu_share": "how much of a GPU an actor gets",
        "session.gpu_memory_share": "how much memory an actor takes",
        "session.cudnn_search": "the last bits only",
        "check.images": "whether a session may score, never what it says",
        "check.reference": "whether a session may score, never what it says",
        "check.references": "whether a session may score, never what it says",
        "check.max_flipped": "whether a session may score, never what it says",
        "check.min_dice": "whether a session may score, never what it says",
        "check.max_abs_error": "whether a session may score, never what it says",
        "limits.max_rejected": "whether rows are published, never what they say",
        "limits.implausible": "whether rows are published, never what they say",
        "limits.retries": "a rejection is tried again, and only a better row replaces it",
        "limits.max_shrink": "whether rows are published, never what they say",
        "limits.allow_empty": "whether rows are published, never what they say",
        "limits.allow_removed": "whether a missing day is said, never what rows say",
        "limits.broken_shards": "whether rows are published, never what they say",
        "limits.image_timeout_s": "a rejection by it is tried again",
        "limits.decode_memory_bytes": "a rejection by it is tried again",
        "limits.unit_timeout_s": "a rejection by it is tried again",
        "limits.unit_images": "how work is cut",
        "limits.lease_s": "how runs keep apart",
        "resources.load_actors": "how many work at once",
        "resources.infer_actors": "how many work at once",
        "resources.fetch_threads": "how many work at once",
    }
)
"""Fields of the job file that do not change the content of a row, and why. The contract has no such fields."""
LATER: Mapping[str, object] = MappingProxyType({"tta": "none", "tiling.placement": "stride"})
"""Fields of the job file that older versions lacked, and the value that means what those versions did. With this value
a field does not enter, so fingerprints stay when a field is added. The contract has its own such table."""
_SETS = ("output.masks", "input.roots")
"""Lists whose order does not matter."""


def fingerprint(job: JobSpec, model: Model) -> str:
    """64 hex digits over all that changes a result; not resources, batch sizes, unit sizes, stores or worker counts.

    Engine and precision are part of it, providers are not (CUDA and CPU differ only in the last bits).
    """
    job.model.resolved_engine  # noqa: B018 - raises while the engine is `auto`, which names no arithmetic
    parts = {
        "model": model.sha256,
        "contract": model.contract.for_digests(),
        "job": sections(job),
        "scoring_revision": SCORING_REVISION,
        "schema_version": SCHEMA_VERSION,
        **fingerprint_marks(job.session),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sections(job: JobSpec) -> dict[str, Any]:
    """The job file as a tree, without the fields that are not part of the fingerprint."""
    kept = _without(without_later(job.model_dump(mode="json"), LATER), "")
    for path in _SETS:
        section, _, name = path.partition(".")
        kept[section][name] = sorted(kept[section][name])
    return kept


def _without(tree: dict[str, Any], above: str) -> dict[str, Any]:
    kept = {}
    for name, value in tree.items():
        path = f"{above}{name}"
        if path not in OUTSIDE:
            kept[name] = _without(value, f"{path}.") if isinstance(value, dict) else value
    return kept
