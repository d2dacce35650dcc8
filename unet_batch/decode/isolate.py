"""Isolate: decode in a child process, which may crash, hang or run out of memory without harm to the worker.

The child is a new interpreter (no fork, nothing of the parent's `__main__`) that calls `decode`. It sends JSON and raw
samples, never pickles: an exploited decoder must not run code in the parent.

Protocol: a frame is its length (8 bytes, little-endian) and its bytes. Parent to child: once the spec and the limits,
then the bytes of one source at a time. Child to parent: once READY; then, for each source, a header and the samples of
each page, and DONE.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO

import numpy as np

from unet_batch.contract import ModelInput
from unet_batch.decode.effort import address_space_bytes, processor_s
from unet_batch.decode.pages import Page
from unet_batch.errors import ImageError, Reason, UnetBatchError
from unet_batch.lifeline import end_with
from unet_batch.spec import LimitsSpec

DECODER = "unet_batch.decode.decode:decode"
READY = b"ready"
DONE = b"done"
EXIT_OUT_OF_MEMORY = 77

_HEADER_MAX_BYTES = 1 << 16
START_S = 300.0
"""Most seconds from the start of a child to READY: about a hundred times the usual. Longer is the machine's fault."""
_LOOKS = 10
"""Checks of a child within limits.image_timeout_s: it hangs if it sleeps at each of them."""
_DYING_S = 5.0  # most seconds from a closed pipe to the exit status; milliseconds are normal
_DTYPES = ("uint8", "uint16", "float32")
Decoder = Callable[[bytes, ModelInput, LimitsSpec], Iterator[Page]]


class IsolatedDecoder:
    """`decode` in one child process, which is replaced when it dies. One image at a time; threads wait for each other.

    An image that decodes without isolation must not fail here on a busy machine. So the time limit is processor time:
    limits.image_timeout_s for a page, and more for large ones (`effort`). The kernel's timer kills the child, even in C
    code. A child that sleeps for limits.image_timeout_s is killed too. The memory limit is address space beyond that of
    the child after its imports: limits.decode_memory_bytes, or more if the image's size needs more.
    """

    def __init__(self, spec: ModelInput, limits: LimitsSpec, *, decoder: str = DECODER) -> None:
        """decoder: `module:function` with decode's signature, imported in the child."""
        self._spec, self._limits, self._decoder = spec, limits, decoder
        self._child: subprocess.Popen[bytes] | None = None
        self._slept = False
        """Whether the child was killed because it hung."""
        self._lock = threading.Lock()

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def decode(self, data: bytes, progress: Callable[[], object] = lambda: None) -> list[Page]:
        """The pages that `decode` yields. Pages lost with the child are rejected: crashed, timeout, out_of_memory.

        Pages received before the child died are kept. If there are none, the number of pages is unknown, and one page
        is returned. progress: is called when the child begins with the image, and after each page; the start of a
        child, at most START_S, comes before. Raises UnetBatchError if no child can be started.
        """
        with self._lock:
            child = self._running()
            progress()
            pages: list[Page] = []
            whole, answered, self._slept = False, threading.Event(), False
            threading.Thread(target=self._wake, args=(child, answered), daemon=True).start()
            try:
                _send(_pipe(child.stdin), data)
                for page in self._answers(_pipe(child.stdout)):
                    pages.append(page)
                    progress()
                whole = True
            except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                rejection = self._exit_reason(child, error, processor_s(data, self._limits))
            finally:
                answered.set()
                if not whole:  # also after a KeyboardInterrupt in the middle of an answer
                    self._discard()
            if whole:
                return pages
            count = max(pages[0].pages if pages else 1, len(pages) + 1)
            return pages + [Page(page, count, rejection) for page in range(len(pages), count)]

    def close(self) -> None:
        """End the child. The next `decode` starts a new one."""
        with self._lock:
            self._discard()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._discard()
        paths = [os.path.abspath(path or os.curdir) for path in sys.path]
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "unet_batch.decode.isolate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # C decoders print messages about bad images there
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        )
        settings = {
            "spec": self._spec.model_dump(mode="json"),
            "limits": self._limits.model_dump(mode="json"),
            "decoder": self._decoder,
        }
        until_s = time.monotonic() + START_S
        late = threading.Timer(START_S, self._child.kill)
        late.daemon = True
        late.start()
        try:
            _send(_pipe(self._child.stdin), json.dumps(settings).encode())
            if _receive(_pipe(self._child.stdout), at_most=_HEADER_MAX_BYTES) == READY:
                return self._child
        except (OSError, EOFError, ValueError):
            pass
        finally:
            late.cancel()
        status = self._child.poll()
        self._discard()
        how = f"(exit status {status})" if time.monotonic() < until_s else f"within {START_S:g} s"
        raise UnetBatchError(
            f"the isolated decoder {self._decoder} did not start {how}: "
            f"run {sys.executable} -m unet_batch.decode.isolate to see why"
        )

    def _answers(self, stream: IO[bytes]) -> Iterator[Page]:
        samples_max_bytes = self._limits.max_image_pixels * self._spec.channels * 4
        while (frame := _receive(stream, at_most=_HEADER_MAX_BYTES)) != DONE:
            header = json.loads(frame)
            content: np.ndarray | ImageError
            if "reason" in header:
                content = ImageError(Reason(header["reason"]), str(header["message"]))
            else:
                if header["dtype"] not in _DTYPES:
                    raise ValueError(f"samples of type {header['dtype']!r}")
                samples = _receive(stream, at_most=samples_max_bytes)
                content = np.frombuffer(samples, header["dtype"]).reshape(header["shape"])
            yield Page(header["page"], header["pages"], content, header["height"], header["width"], header["largest"])

    def _wake(self, child: subprocess.Popen[bytes], answered: threading.Event) -> None:
        """Kill a child that sleeps. A child that computes or waits for a processor or a disk does not sleep."""
        look_s = self._limits.image_timeout_s / _LOOKS
        before, asleep = _life(child.pid), 0
        if before is None:  # no /proc: wait for the whole timeout
            if not answered.wait(self._limits.image_timeout_s * _LOOKS):
                self._slept = True
                child.kill()
            return
        while not answered.wait(look_s):
            now = _life(child.pid)
            asleep = asleep + 1 if now == before and now is not None and now[0] == "S" else 0
            before = now
            if asleep >= _LOOKS:
                self._slept = True
                child.kill()
                return

    def _exit_reason(self, child: subprocess.Popen[bytes], error: Exception, limit_s: float) -> ImageError:
        """The rejection of a page whose child died or stopped answering. The message is the same in every run."""
        if not isinstance(error, EOFError | OSError):
            return ImageError(Reason.DECODE_CRASHED, "the decoder sent an invalid answer")
        try:
            status = child.wait(timeout=_DYING_S)
        except subprocess.TimeoutExpired:
            return ImageError(Reason.DECODE_CRASHED, "the decoder closed its pipes without an answer")
        limit = f"limits.image_timeout_s: {self._limits.image_timeout_s:g}"
        if self._slept:
            return ImageError(Reason.DECODE_TIMEOUT, f"the decoder hung: it computed nothing for {limit} s")
        if status == -signal.SIGPROF:
            took = f"decoding took more than {limit_s:.3g} s of processor time"
            return ImageError(Reason.DECODE_TIMEOUT, f"{took} ({limit} s, and more for its size): raise that limit")
        if status == EXIT_OUT_OF_MEMORY:
            limit = f"limits.decode_memory_bytes: {self._limits.decode_memory_bytes}"
            return ImageError(Reason.DECODE_OUT_OF_MEMORY, f"decoding needs more than {limit}: raise that limit")
        how = f"of signal {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        return ImageError(Reason.DECODE_CRASHED, f"the decoder died {how}")

    def _discard(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        with contextlib.suppress(OSError):  # the pipe of a dead child may hold unsent bytes
            _pipe(self._child.stdin).close()
        _pipe(self._child.stdout).close()
        self._child.wait()
        self._child = None


def main() -> None:
    """Main function of the child: decode the sources from stdin until the parent closes it."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text that a library prints must not mix with the frames
    settings = json.loads(_receive(requests))
    spec = ModelInput.model_validate_json(json.dumps(settings["spec"]))
    limits = LimitsSpec.model_validate_json(json.dumps(settings["limits"]))
    module, _, name = settings["decoder"].partition(":")
    decoder: Decoder = getattr(importlib.import_module(module), name)
    _limit()
    end_with(requests.fileno())
    imported_bytes = _address_space_bytes()
    _send(answers, READY)
    with contextlib.suppress(EOFError):
        while True:
            data = _receive(requests)
            _allow(imported_bytes + address_space_bytes(data, spec, limits))
            _serve(data, decoder, spec, limits=limits, answers=answers)


def _serve(data: bytes, decoder: Decoder, spec: ModelInput, *, limits: LimitsSpec, answers: IO[bytes]) -> None:
    limit_s = processor_s(data, limits)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    for page in decoder(data, spec, limits):
        signal.setitimer(signal.ITIMER_PROF, 0)  # sending the answer does not count
        header: dict[str, object] = {"page": page.page, "pages": page.pages, "height": page.height, "width": page.width}
        header["largest"] = page.largest
        if isinstance(page.content, ImageError):
            header |= {"reason": page.content.reason, "message": page.content.message}
            _send(answers, json.dumps(header).encode())
        else:
            header |= {"dtype": page.content.dtype.name, "shape": page.content.shape}
            _send(answers, json.dumps(header).encode())
            _send(answers, page.content.data)
        signal.setitimer(signal.ITIMER_PROF, limit_s)
    signal.setitimer(signal.ITIMER_PROF, 0)
    _send(answers, DONE)


def _limit() -> None:
    """Default action of the timer (it kills, even inside C code), and no core dumps."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})  # masks are inherited
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow(ceiling: int) -> None:
    """Set the limit of address space for the next image."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses to set this limit
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _life(pid: int) -> tuple[str, int] | None:
    """State and processor time (ticks) of a process, by proc(5); None without /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return fields[0], int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None


def _address_space_bytes() -> int:
    """Address space of this process in bytes; 0 without /proc."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _send(stream: IO[bytes], frame: bytes | memoryview) -> None:
    length = frame.nbytes if isinstance(frame, memoryview) else len(frame)
    stream.write(struct.pack("<Q", length))
    stream.write(frame)
    stream.flush()


def _receive(stream: IO[bytes], *, at_most: int = sys.maxsize) -> bytes:
    """One frame. Raises EOFError if the pipe is closed, ValueError for a length above at_most."""
    length = struct.unpack("<Q", _exactly(stream, 8))[0]
    if length > at_most:
        raise ValueError(f"a frame of {length} bytes; expected at most {at_most}")
    return _exactly(stream, length)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    frame = stream.read(count)
    if len(frame) < count:
        raise EOFError("the pipe is closed")
    return frame


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the child was started without pipes")
    return stream


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)  # without clean-up, which would need memory
