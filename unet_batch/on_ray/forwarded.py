"""Sends values of environment variables to a cluster, outside of the runtime environment.

Ray writes a job's runtime environment to log files that every user of a node can read, and the job server shows it. So
`submit` uploads the values as a package with a random name into the memory of the cluster's control plane (GCS), and
the runtime environment holds only this name. The driver and every worker read the values at their start; the driver
removes them at its end. They are never on a disk.
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
"""Environment variable with the package's name, in the driver and in every worker."""
HOOK = "unet_batch.on_ray.forwarded.take_in_worker"
"""Ray calls this function when a worker of the job starts."""
_HEADER = b"unet-batch: values of environment variables\n"
"""Not secret: Ray's error for a package that it cannot store contains the first 15 bytes."""


def new_name() -> str:
    """A random name that cannot be guessed."""
    return f"unet_batch_{secrets.token_hex(16)}.zip"


def packed(values: Mapping[str, str]) -> bytes:
    """The bytes to upload."""
    return _HEADER + json.dumps(dict(values)).encode()


def take_in_driver() -> None:
    """Set the forwarded variables in this process, if any. Raises Incomplete if they are lost."""
    name = os.environ.get(VARIABLE)
    if name is None:
        return
    data = _control_plane().internal_kv_get(_key(name), None)
    if data is None:
        raise Incomplete("the variables of --forward-env are no longer on this cluster: submit the job again")
    _set(data)


def take_in_worker() -> None:
    """The same in a worker that is connected to Ray. A missing variable is an error where it is used."""
    from ray.experimental.internal_kv import _internal_kv_get

    name = os.environ.get(VARIABLE)
    data = None if name is None else _internal_kv_get(_key(name))
    if data is not None:
        _set(data)


def forget() -> None:
    """Remove the values from the cluster at the driver's end; a failure is only logged."""
    name = os.environ.get(VARIABLE)
    if name is None:
        return
    try:
        _control_plane().internal_kv_del(_key(name), False, None)
    except Exception as error:  # noqa: BLE001 - an error of Ray must not change the result of the run
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
