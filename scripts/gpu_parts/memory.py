"""(e) Memory that is really gone: something else holds the card, batches do not fit, and labels stay equal."""

from __future__ import annotations

import contextlib
import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gpu_parts import card, networks
from gpu_parts.networks import Network
from gpu_parts.results import Results, Skipped
from gpu_parts.settings import Settings
from numpy.typing import NDArray

from unet_batch.errors import OutOfMemory, UnetBatchError
from unet_batch.model.contract import resolve
from unet_batch.session.batching import CPU_BATCH_MAX, Batcher, Tile
from unet_batch.session.ladder import sizes_up_to
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import SessionSpec, TilingSpec

SHARES = (1 / 2, 1 / 4, 1 / 8)
"""How much of what the largest batch needs is left, until it fails."""
RUNS_OF_A_SIZE = 4
"""Batches of each size before the ladder goes on to the next: one to warm it, and three timed."""


def run(settings: Settings, results: Results) -> None:
    """Under `limited` the session has a limit from the free memory, as in a job; under `unlimited` it has none.

    Raises Skipped for a rehearsal without Linux.
    """
    if not settings.on_gpu and sys.platform != "linux":
        raise Skipped("only Linux limits the address space of a rehearsal")
    net = networks.main_network(settings) if settings.on_gpu else _for_a_rehearsal()
    cap = settings.cap if settings.on_gpu else CPU_BATCH_MAX
    sizes = sizes_up_to(cap)
    tiles = networks.tiles_for(net, cap, settings.size)
    expected, needed = _undisturbed(settings, net, tiles)
    results.put("needed_mib", needed >> 20)
    for name, device in (("limited", Device(threads=1, gpu_share=1.0)), ("unlimited", Device(threads=1))):
        if not settings.on_gpu and name == "limited":
            results.add("left_out", "limited: the CPU's sessions have no limit")
            continue
        with results.attempt(name):
            results.put(name, _pressed(settings, net, device, tiles, expected, needed, sizes))
    if not settings.on_gpu:
        return
    with results.attempt("a batch of the largest size, alone"):
        results.put("text", _text(settings, net, tiles, needed))


def _for_a_rehearsal() -> Network:
    """A network whose batches need some tens of MiB, whatever the sizes of the other sections."""
    from models import unet_model  # the builders are the tests' own

    tiny = unet_model(128, base=16, levels=2)
    file = read_model(tiny.data, "unet.onnx", None)
    return Network("unet", tiny.data, resolve(tiny.contract, file, TilingSpec()), "fp32")


def _undisturbed(settings: Settings, net: Network, tiles: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Labels (N, h, w) of the tiles in one batch, and the bytes that the batch took."""
    session = networks.opened(settings, net)
    session.run(tiles[:1])
    before = _taken(settings)
    labels = session.run(tiles).argmax(axis=1)
    needed = max(_taken(settings) - before, tiles.nbytes)
    del session
    gc.collect()
    return labels, needed


def _taken(settings: Settings) -> int:
    """Bytes of the GPU in use; in a rehearsal, the address space of this process."""
    if settings.on_gpu:
        free, total = card.memory()
        return total - free
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


def _pressed(
    settings: Settings,
    net: Network,
    device: Device,
    tiles: NDArray[Any],
    expected: NDArray[Any],
    needed: int,
    sizes: tuple[int, ...],
) -> dict[str, Any]:
    """What the Batcher does when the rest of the card is held, until a batch really failed."""
    found: dict[str, Any] = {}
    for share in SHARES:
        keep = int(share * needed)
        with _held(settings, keep) as held:
            try:
                session = _session(settings, net, device)
                found = {"left_mib": keep >> 20, "held_mib": held >> 20, **_back_off(session, tiles, expected, sizes)}
            except UnetBatchError as error:
                found = {"left_mib": keep >> 20, "refused": f"{type(error).__name__}: {error}"[:600]}
            session = None
            gc.collect()
        if found.get("out_of_memory") or "refused" in found:
            break
    if not found.get("out_of_memory"):
        raise RuntimeError(f"no batch failed for lack of memory, so the back-off was not seen: {found}")
    if not found["labels_equal"]:
        raise RuntimeError(f"labels changed under lack of memory: {found}")
    return found


def _session(settings: Settings, net: Network, device: Device) -> Session:
    return open_session(
        net.data, net.model, SessionSpec(providers=(settings.provider,)), device, precision=net.precision
    )


def _back_off(session: Session, tiles: NDArray[Any], expected: NDArray[Any], sizes: tuple[int, ...]) -> dict[str, Any]:
    """All tiles several times over through the Batcher, which climbs until a size fails."""
    batcher = Batcher(session, batch_max=sizes[-1])
    count = RUNS_OF_A_SIZE * sum(sizes[:-1]) + 2 * sizes[-1]
    feed = (Tile(n % len(tiles), None, tiles[n % len(tiles)]) for n in range(count))  # type: ignore[arg-type]
    equal = scored = given_up = 0
    for tile, result in batcher.run(feed):
        if isinstance(result, OutOfMemory):
            given_up += 1
        elif isinstance(result, np.ndarray):
            scored += 1
            equal += int((result.argmax(axis=0) == expected[tile.image]).mean() >= 0.9999)
    return {
        "tiles": count,
        "out_of_memory": batcher.stats.out_of_memory,
        "batches": {str(size): runs for size, runs in sorted(batcher.stats.batches.items())},
        "largest_that_ran": max(batcher.stats.batches, default=0),
        "given_up": given_up,
        "labels_equal": equal == scored == count - given_up and scored > 0,
    }


def _text(settings: Settings, net: Network, tiles: NDArray[Any], needed: int) -> str:
    """The provider's own words for a batch that does not fit: how errors are told apart depends on them."""
    with _held(settings, needed // 4):
        try:
            session = _session(settings, net, Device(threads=1))
            session.run(tiles)
        except UnetBatchError as error:
            return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:1000]
    return "the batch ran"


@contextlib.contextmanager
def _held(settings: Settings, keep: int) -> Iterator[int]:
    """All but `keep` bytes are held; in a rehearsal, this process's address space is limited."""
    if settings.on_gpu:
        with card.held_by_another(keep + (512 << 20)) as held:  # a context and cuDNN need some before the first batch
            yield held
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_taken(settings) + keep, hard))
    try:
        yield 0
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
