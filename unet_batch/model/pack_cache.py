"""Graphs that jobs pack for themselves, made once per machine: one ONNX file each in a local cache folder.

Knows packing and files. Knows no job and opens no session of one. Losing the folder costs a proof; processes that
start together may make the same file twice, and the last one wins with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from unet_batch import __version__
from unet_batch.errors import JobError, ModelRefused
from unet_batch.model import pack
from unet_batch.model.contract import Model
from unet_batch.model.files import replace_file
from unet_batch.model.onnxruntime_session import version
from unet_batch.model.session import cpu_name

log = logging.getLogger(__name__)


def folded(data: bytes, model: Model, spec: pack.PackSpec, *, folder: Path | None = None) -> tuple[bytes, Model]:
    """The packed file of a model and what it resolves to, from the cache or from `pack.fold`.

    folder: left out, `$XDG_CACHE_HOME/unet-batch/packed`. Its files have their digest in their name, and one that does
    not fit it is made again; a folder that cannot be written costs a log line.
    Raises ModelRefused, with the reason, where the model cannot be packed: that is remembered too.
    """
    folder = folder or cache_folder()
    name = _name(model, spec)
    refusal = folder / f"{name}.refused"
    if refusal.exists():
        raise ModelRefused(refusal.read_text(errors="replace"))
    for path in sorted(folder.glob(f"{name}-*.onnx")):
        found = _intact(path, path.stem.partition("-")[2])
        if found is not None:
            return found, pack.packed_model(model, spec, hashlib.sha256(found).hexdigest())
    try:
        packed = pack.fold(data, model, spec)
    except ModelRefused as error:
        keep(refusal, str(error).encode())
        raise
    sha256 = hashlib.sha256(packed).hexdigest()
    keep(folder / f"{name}-{sha256}.onnx", packed)
    return packed, pack.packed_model(model, spec, sha256)


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/unet-batch/packed`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "unet-batch" / "packed"


def _name(model: Model, spec: pack.PackSpec) -> str:
    """32 hex digits over all that the file and its proof depend on; a home folder may be shared by machines."""
    parts = {
        "model": json.loads(model.to_json()),
        "spec": asdict(spec),
        "version": [__version__, pack.VERSION, version()],
        "processor": cpu_name(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _intact(path: Path, sha256: str) -> bytes | None:
    """The bytes of a file that are what they were; None, with a log line, for others."""
    try:
        data = path.read_bytes()
    except OSError as error:
        log.warning("%s cannot be read, so the model is packed again: %s", path, error)
        return None
    if hashlib.sha256(data).hexdigest() == sha256:
        return data
    log.warning("%s is not what was written, so the model is packed again", path)
    return None


def keep(path: Path, body: bytes) -> None:
    """Writes a file of the cache, whole or not at all; one that cannot be written costs a log line."""
    try:
        replace_file(path, body)
    except (JobError, OSError) as error:
        log.warning("the next process packs again: %s", error)
