"""Strikes: what happens to a process at the n-th call of a named point; weather: how its local store behaves all along.

The package itself knows nothing of them: functions of it are wrapped in the process that is to be struck. As a script:
a driver with workers, which reads in STRIKE what is to happen to it or to them, and whether they are processes or on
Ray, and which cluster it is to join.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import poison

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import Page
from unet_batch.errors import ProviderMissing, SessionBroken, UnetBatchError
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.run import run
from unet_batch.on_ray import actors
from unet_batch.planning.prepare import prepare
from unet_batch.planning.survey import window_of
from unet_batch.spec import LimitsSpec, load_job
from unet_batch.store.local import LocalStore
from unet_batch.store.objects import Object
from unet_batch.table.lease import Leases

NAME = "strikes:decode"
VARIABLE = "STRIKE"
NO_SESSION = "STRIKE_NO_SESSION"
"""Set on a node where no session can be opened."""
HOG = b"<hog>"

_STORAGE = "unet_batch.store.storage:Storage."
_PUBLISH = "unet_batch.table.publish:"
POINTS: dict[str, tuple[str, str, str]] = {
    "the probe is under way": (_STORAGE + "create", "after", "/_work/probe/"),
    "before the lease": (_STORAGE + "create", "before", "/_work/leases/"),
    "after the lease": (_STORAGE + "create", "after", "/_work/leases/"),
    "after the record": (_STORAGE + "create", "after", "/_work/runs/"),
    "a unit begins": (_STORAGE + "create", "after", "/_work/attempts/"),
    "before a part": (_STORAGE + "create", "before", ".part"),
    "inside the put of a part": ("unet_batch.store.local:_write", "after", "/_work/parts/"),
    "after a part": (_STORAGE + "create", "after", ".part"),
    "between parts": (_STORAGE + "delete", "after", "/_work/attempts/"),
    "rows are chosen": (_PUBLISH + "_choose_rows", "after", ""),
    "the file is written": (_PUBLISH + "_swap", "before", ""),
    "inside the put of the rows": ("unet_batch.store.local:_write", "after", "/predictions/"),
    "after the put of the rows": (_STORAGE + "replace", "after", "/predictions/"),
    "before the lease ends": (_STORAGE + "delete", "before", "/_work/leases/"),
    "before the record ends": (_STORAGE + "put", "before", "/_work/runs/"),
    "a batch": ("unet_batch.session.onnxruntime_session:OnnxRuntimeSession.run", "before", ""),
    "a part has arrived": ("unet_batch.job.publisher:Publisher.arrived", "before", ""),
}
"""Name to the function, whether before or after its call, and a text that one of its arguments holds."""


@dataclass(frozen=True)
class Strike:
    """One thing that happens once."""

    point: str
    nth: int = 1
    act: str = "kill"
    """kill, stop (SIGSTOP), wait (until the file `<token>.go` is there), broken (the session's context is lost), or
    node (the raylet that started this worker dies, and with it the node)."""
    token: str = ""
    """A file that the first process to be struck makes: no other is struck then."""


def arm(strike: Strike) -> None:
    """Wrap the point's function in this process."""
    where, when, text = POINTS[strike.point]
    module_name, _, path = where.partition(":")
    owner: Any = importlib.import_module(module_name)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    inner, calls = getattr(owner, name), 0

    @functools.wraps(inner)
    def struck(*args: Any, **options: Any) -> Any:
        nonlocal calls
        if not any(text in str(a) for a in args if isinstance(a, str | Path)) and text:
            return inner(*args, **options)
        calls += 1
        mine = calls == strike.nth
        if mine and when == "before":
            _act(strike)
        found = inner(*args, **options)
        if mine and when == "after":
            _act(strike)
        return found

    setattr(owner, name, struck)


def no_session(*_: Any) -> Any:
    """Stands for `build_infer` on a node without the driver of its GPU."""
    raise ProviderMissing("no driver on this node")


def ignore_leases() -> None:
    """Let this process take every partition, even a leased one."""
    Leases.take = lambda self, partition: None  # type: ignore[method-assign]


def score(job: str, overrides: tuple[str, ...], strikes: tuple[Strike, ...], log: str, leases: bool, told: str) -> None:
    """The body of a struck process: one run in the plain loop; leaves with its exit code."""
    os.environ[poison.LOG_VARIABLE] = log
    for strike in strikes:
        arm(strike)
    if not leases:
        ignore_leases()
    _leave(job, overrides, lambda settings: LocalExecutor(replace(settings, decoder=NAME)), told)


def decode(data: bytes, spec: ModelInput, limits: LimitsSpec) -> Iterator[Page]:
    """The noting decoder; its first call in a process arms what STRIKE asks for in workers.

    An image that ends in HOG takes a gigabyte, and where that is granted the kernel's way out of memory follows.
    """
    _arm_worker()
    if data.endswith(HOG):
        np.zeros(1 << 30, np.uint8)
        os.kill(os.getpid(), signal.SIGKILL)
    return poison.decode(data, spec, limits)


def blind(text: str) -> None:
    """Let this process's listings leave out URIs that contain this text."""
    inner = LocalStore.list

    def listed(store: LocalStore, folder: str) -> Iterator[Object]:
        return (found for found in inner(store, folder) if text not in found.uri)

    LocalStore.list = listed  # type: ignore[method-assign]


def slow(seconds: float) -> None:
    """Let every read and every put of this process take some seconds more."""
    read, put = LocalStore.read, LocalStore.put

    def slow_read(store: LocalStore, uri: str, **how: Any) -> bytes:
        time.sleep(seconds)
        return read(store, uri, **how)

    def slow_put(*what: Any) -> str:
        time.sleep(seconds)
        return put(*what)

    LocalStore.read, LocalStore.put = slow_read, slow_put  # type: ignore[method-assign]


def flaky(text: str) -> None:
    """Let this process's first read and first put of each object with this text be reset, the put after it landed."""
    read, put, met = LocalStore.read, LocalStore.put, set()

    def first(what: str, uri: str) -> bool:
        new = text in uri and (what, uri) not in met
        met.add((what, uri))
        return new

    def flaky_read(store: LocalStore, uri: str, **how: Any) -> bytes:
        if first("read", uri):
            raise ConnectionResetError("reset")
        return read(store, uri, **how)

    def flaky_put(store: LocalStore, uri: str, *what: Any) -> str:
        version = put(store, uri, *what)
        if first("put", uri):
            raise ConnectionResetError("reset")
        return version

    LocalStore.read, LocalStore.put = flaky_read, flaky_put  # type: ignore[method-assign]


def no_spill(store_mib: int) -> None:
    """Let Ray take every disk for full (its own check, with another limit), and give it a small object store."""
    from unet_batch.on_ray import start as ray_start

    os.environ |= {"RAY_local_fs_capacity_threshold": "0.0001"}
    ray_start.OBJECT_STORE_BYTES = store_mib << 20


def full_disk(folder: str) -> None:
    """Let Ray keep everything in a folder with a disk of its own, which is full as soon as Ray has started."""
    from unet_batch.on_ray import executor as ray_executor

    os.environ["RAY_TMPDIR"] = folder
    ray_executor.LOOK_EVERY_S = 2.0
    connect = ray_executor.start

    def connect_and_fill(address: str | None) -> Any:
        started = connect(address)
        with Path(folder, "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(1 << 12))
        return started

    ray_executor.start = connect_and_fill


WEATHER: dict[str, Callable[[Any], None]] = {"blind": blind, "slow": slow, "flaky": flaky}
WEATHER |= {"no_spill": no_spill, "full_disk": full_disk}


def _arm(where: str) -> None:
    """Do to this process what STRIKE wants for its kind."""
    wanted = json.loads(os.environ.get(VARIABLE, "{}"))
    if where not in wanted.get("where", ""):
        return
    for strike in wanted.get("strikes", ()):
        arm(Strike(**strike))
    for name, value in wanted.get("weather", {}).items():
        WEATHER[name](value)


@functools.cache
def _arm_worker() -> None:
    _arm("worker")


def _act(strike: Strike) -> None:
    if strike.token:
        try:
            os.close(os.open(strike.token, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    if strike.act == "broken":
        raise SessionBroken("the device's context is lost")
    if strike.act == "wait":
        while not Path(strike.token + ".go").exists():
            time.sleep(0.01)
        return
    if strike.act == "node":
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGSTOP if strike.act == "stop" else signal.SIGKILL)


def _leave(job: str, overrides: tuple[str, ...], make: Callable[..., Any], told: str) -> None:
    """Run, write the summary (or the error) as JSON, and leave: Ray and pyarrow may die of an interpreter's end."""
    try:
        summary = run(prepare(load_job(job, overrides)), window_of("all"), make, quiet=True)
        Path(told).write_text(json.dumps(asdict(summary)))
        os._exit(summary.exit_code)
    except UnetBatchError as error:
        Path(told).write_text(json.dumps({"error": str(error), "code": error.code}))
        os._exit(error.exit_code)


def _with_workers(job: str, told: str, *overrides: str) -> None:
    _arm("driver")
    sys.stdout = sys.stderr
    wanted = json.loads(os.environ.get(VARIABLE, "{}"))
    if wanted["executor"] == "processes":
        from unet_batch.job.process_executor import ProcessExecutor

        _leave(job, overrides, lambda settings: ProcessExecutor(replace(settings, decoder=NAME)), told)
    from unet_batch.on_ray.executor import RayExecutor

    address = wanted.get("address")
    if address:
        _take_along(VARIABLE, poison.LOG_VARIABLE, "PYTHONPATH")
    _leave(job, overrides, lambda settings: RayExecutor(replace(settings, decoder=NAME), address=address), told)


def _take_along(*names: str) -> None:
    """Let workers of a standing cluster have variables of this process, as those of an embedded Ray have them."""
    import ray

    ray.init = functools.partial(ray.init, runtime_env={"env_vars": {name: os.environ[name] for name in names}})


if os.environ.get(NO_SESSION):  # a worker imports this module for its decoder, before it opens a session
    actors.build_infer = no_session

if __name__ == "__main__":
    _with_workers(*sys.argv[1:])
