"""Values of environment variables on their way to a cluster, outside of the runtime environment.

Ray writes a job's runtime environment to log files that everybody on a node may read, and the job server tells it to
whoever asks. So `submit` uploads the values as a package of their own, under a random name, into the memory of the
cluster's control plane, and the runtime environment holds that name alone. The driver and every worker take them from
there when they start; the driver removes them at its end. Nothing of them lies on a disk. Knows Ray's control plane.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any

from unet_batch.errors import Incomplete

log = logging.getLogger(__name__)

VARIABLE = "UNET_BATCH_FORWARDED"
"""Holds the package's name, in the driver and in every worker."""
HOOK = "unet_batch.on_ray.forwarded.take_in_worker"
"""What Ray calls when a worker of the job starts."""
_HEADER = b"unet-batch: values of environment variables\n"
"""Ray quotes the first 15 bytes of a package that it could not store."""


def new_name() -> str:
    """A name that nobody can guess."""
    return f"unet_batch_{secrets.token_hex(16)}.zip"


def packed(values: Mapping[str, str]) -> bytes:
    """What is uploaded."""
    return _HEADER + json.dumps(dict(values)).encode()


def take_in_driver() -> None:
    """Set the variables that were forwarded to this process; none where nothing was. Raises Incomplete."""
    name = os.environ.get(VARIABLE)
    if name is None:
        return
    data = _control_plane().internal_kv_get(_key(name), None)
    if data is None:
        raise Incomplete("the variables of --forward-env are not on this cluster any more: submit the job again")
    _set(data)


def take_in_worker() -> None:
    """The same in a worker that Ray has connected. What is missing is told by whoever needs it."""
    from ray.experimental.internal_kv import _internal_kv_get

    name = os.environ.get(VARIABLE)
    data = None if name is None else _internal_kv_get(_key(name))
    if data is not None:
        _set(data)


def forget() -> None:
    """Remove the values from the cluster at the driver's end; an attempt that fails costs a log line."""
    name = os.environ.get(VARIABLE)
    if name is None:
        return
    try:
        _control_plane().internal_kv_del(_key(name), False, None)
    except Exception as error:  # noqa: BLE001 - whatever Ray raises, the run has ended as it has
        log.warning("the forwarded variables stay in the cluster's memory until it ends: %s", error)


def _set(data: bytes) -> None:
    os.environ.update(json.loads(data.removeprefix(_HEADER)))


def _key(name: str) -> bytes:
    return f"gcs://{name}".encode()


def _control_plane() -> Any:
    """A client of the cluster's control plane, without a Ray in this process."""
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    return GcsClient(address=canonicalize_bootstrap_address(os.environ.get("RAY_ADDRESS", "auto")))
