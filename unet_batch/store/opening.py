"""Which class serves a scheme, and how its store is opened from a job's options. Only this module uses fsspec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unet_batch import extras
from unet_batch.errors import JobError
from unet_batch.options import Options, resolve_options
from unet_batch.store.faults import Retry
from unet_batch.store.local import LocalStore
from unet_batch.store.objects import SCHEMES, Store, redact

_EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""By scheme: the extra of this package that it needs; `_kind` has its class, and `objects.SCHEMES` the names."""


def opened(scheme: str, uri: str, options: Options, threads: int, retry: Retry) -> Store:
    """The store of a scheme. uri: for messages. options: not resolved yet. threads: that use it at once.

    Raises JobError for another scheme, a missing package, and options that open no store.
    """
    if scheme not in SCHEMES:
        raise JobError(f"{redact(uri)!r} is not the URI of a store; allowed are {', '.join(SCHEMES)}")
    if scheme == "file":
        return LocalStore()
    extra = _EXTRAS[scheme]
    kind = _kind(extra)
    resolved = kind.options(resolve_options(options), threads)
    try:
        behind = _with_configuration(resolved) if extra == "s3" else _file_system(scheme, resolved)
        store: Store = kind(behind, retry)
    except ImportError as error:
        raise JobError(f"{scheme}:// needs a package that is not installed: run {extras.command(extra)}") from error
    except (TypeError, ValueError) as error:
        raise JobError(f"no store at {scheme}:// opens with these `options` ({redact(str(error))})") from error
    return store


def _kind(extra: str) -> type[Any]:
    """The class of an extra's stores. Local disks need none of them, nor fsspec and asyncio: 0.1 s in each process."""
    if extra == "s3":
        from unet_batch.store.s3 import S3Store

        return S3Store
    if extra == "gcs":
        from unet_batch.store.gcs import GcsStore

        return GcsStore
    from unet_batch.store.azure import AzureStore

    return AzureStore


def _file_system(scheme: str, options: dict[str, Any]) -> Any:
    """fsspec's file system of a scheme. Raises ImportError, TypeError and ValueError."""
    import fsspec

    return fsspec.filesystem(scheme, skip_instance_cache=True, **options)


def _with_configuration(options: dict[str, Any]) -> dict[str, Any]:
    """The options of S3, and those in fsspec's own configuration where there is one: `FSSPEC_S3_KEY`, or a file.

    S3 needs nothing else of fsspec, whose import takes time in each process.
    """
    folder = Path(os.environ.get("FSSPEC_CONFIG_DIR", "~/.config/fsspec")).expanduser()
    if not folder.is_dir() and not any(name.startswith("FSSPEC_") for name in os.environ):
        return options
    from fsspec.config import conf

    return {**conf.get("s3", {}), **options}
