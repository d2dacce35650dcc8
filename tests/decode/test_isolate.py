"""A decoder in a child process: the same pages as in this process, and a reason for every crash."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from encoded import LIMITS
from PIL import Image

from unet_batch.contract import ModelInput
from unet_batch.decode import isolate
from unet_batch.decode.decode import decode
from unet_batch.decode.effort import address_space_bytes, header_pixels
from unet_batch.decode.isolate import IsolatedDecoder
from unet_batch.decode.pages import Page
from unet_batch.errors import ImageError, Reason, UnetBatchError
from unet_batch.spec import LimitsSpec

SPEC = ModelInput()
HASTY = LimitsSpec(image_timeout_s=0.5)
LEAN = LimitsSpec(decode_memory_bytes=1 << 28)


HEADER_5000 = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 5000, 5000)


def jpeg(mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (12, 8), "gray").save(file, "JPEG")
    return file.getvalue()


def obey(data: bytes, spec: ModelInput, limits: LimitsSpec) -> Iterator[Page]:
    """A decoder that executes the command in its bytes; the child imports it by name."""
    if data == b"second page crashes":
        yield Page(0, 3, np.full((1, 1, 3), 7, np.uint8), 1, 1)
        os.abort()
    elif data == b"crash":
        ctypes.string_at(0)
    elif data == b"exit":
        os._exit(3)
    elif data == b"hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        ctypes.CDLL(None).pause()  # C code that never returns to the interpreter
    elif data.endswith(b"spin"):
        ends = time.process_time() + (1.5 if data.startswith(b"\x89PNG") else 3600)
        while time.process_time() < ends:
            pass
        yield Page(0, 1, np.zeros((1, 1, 3), np.uint8), 1, 1)
    elif data == b"eat":
        yield Page(0, 1, np.ones((1 << 29,), np.uint8), 1, 1)
    elif data == b"print":
        os.write(1, b"a library says hello")
        print("hello", flush=True)
        yield Page(0, 1, np.zeros((1, 1, 3), np.uint8), 1, 1)
    elif data == b"nonsense":
        answers = 4  # the duplicate of standard output, made after that of standard input
        os.write(answers, b"\xff" * 64)
        time.sleep(60)
    else:
        yield from decode(data, spec, limits)


def multipage() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "TIFF", save_all=True, append_images=[Image.new("RGB", (5, 4), "blue")])
    return file.getvalue()


@pytest.fixture(scope="module")
def plain() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(SPEC, LIMITS) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def obedient() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(SPEC, HASTY, decoder="test_isolate:obey") as decoder:
        yield decoder


def reasons(pages: list[Page]) -> list[Reason | None]:
    return [page.content.reason if isinstance(page.content, ImageError) else None for page in pages]


@pytest.mark.parametrize("data", [jpeg(), jpeg("L"), multipage(), b"", b"no image", jpeg()[:300]])
def test_the_child_decodes_as_this_process_does(plain: IsolatedDecoder, data: bytes) -> None:
    """Pages, pixels, sizes, reasons and messages are equal."""
    isolated, here = plain.decode(data), list(decode(data, SPEC, LIMITS))
    assert [(p.page, p.pages, p.height, p.width, p.largest) for p in isolated] == [
        (p.page, p.pages, p.height, p.width, p.largest) for p in here
    ]
    for there, expected in zip(isolated, here, strict=True):
        if isinstance(expected.content, ImageError):
            assert str(there.content) == str(expected.content)
        else:
            assert there.content.dtype == expected.content.dtype
            assert np.array_equal(there.content, expected.content)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_depth_survives_the_pipe(plain: IsolatedDecoder, dtype: str) -> None:
    """Samples keep their dtype."""
    values = (np.arange(24).reshape(2, 4, 3) * 2700).astype(dtype)
    file = io.BytesIO()
    np.save(file, values)
    (page,) = plain.decode(file.getvalue())
    assert page.content.dtype == np.dtype(dtype)
    assert np.array_equal(page.content, values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected", "words"),
    [
        (b"crash", Reason.DECODE_CRASHED, "SIGSEGV"),
        (b"exit", Reason.DECODE_CRASHED, "exit status 3"),
        (b"nonsense", Reason.DECODE_CRASHED, "invalid answer"),
        (b"hang", Reason.DECODE_TIMEOUT, "hung: it computed nothing for limits.image_timeout_s: 0.5"),
        (b"spin", Reason.DECODE_TIMEOUT, "more than 0.5 s of processor time (limits.image_timeout_s: 0.5"),
    ],
)
def test_a_crash_rejects_one_image_and_the_next_is_decoded(
    obedient: IsolatedDecoder, command: bytes, expected: Reason, words: str
) -> None:
    """A segmentation fault, an exit, an invalid answer and a hang in C code reject one image each."""
    (page,) = obedient.decode(command)
    assert reasons([page]) == [expected]
    assert words in page.content.message
    assert (page.page, page.pages) == (0, 1)
    assert reasons(obedient.decode(jpeg())) == [None]


@pytest.mark.slow
def test_time_that_a_child_did_not_get_is_not_counted(obedient: IsolatedDecoder) -> None:
    """A busy machine stops a child for four times its limit: the picture is decoded."""
    found: list[Page] = []
    work = threading.Thread(target=lambda: found.extend(obedient.decode(HEADER_5000 + b"spin")))
    obedient.decode(jpeg())
    child = obedient._child
    work.start()
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(child.pid, signal.SIGCONT)
    work.join(30)
    assert reasons(found) == [None]
    assert obedient._child is child


@pytest.mark.slow
def test_a_large_picture_has_more_time(obedient: IsolatedDecoder) -> None:
    """1.5 s of processor time, three times the limit of a small picture: its header declares 25 megapixels."""
    assert reasons(obedient.decode(HEADER_5000 + b"spin")) == [None]


@pytest.mark.parametrize(
    ("data", "pixels"),
    [(HEADER_5000, 25_000_000), (b"GIF89a" + struct.pack("<HH", 10, 20), 200), (jpeg(), LIMITS.max_image_pixels),
     (b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 1 << 31, 1 << 31), LIMITS.max_image_pixels),
     (b"no image", 0), (b"", 0)],
)  # fmt: skip
def test_limits_grow_with_the_size_in_the_header_up_to_the_jobs_limit(data: bytes, pixels: int) -> None:
    """A header may be wrong; limits.max_image_pixels is the upper bound."""
    assert header_pixels(data, LIMITS) == pixels


def test_default_limits_allow_every_picture_that_the_job_allows() -> None:
    """50 megapixels of four bands in float32, four times over, and their bytes."""
    needed = LIMITS.max_image_pixels * 4 * 4 * 4
    assert address_space_bytes(HEADER_5000, SPEC, LimitsSpec(max_image_pixels=1 << 40)) >= 25_000_000 * 64
    assert address_space_bytes(jpeg(), SPEC, LIMITS) >= needed


def test_too_much_memory_is_a_reason() -> None:
    """512 MiB do not fit into 256 MiB: out of memory, not a dead node."""
    with IsolatedDecoder(SPEC, LEAN, decoder="test_isolate:obey") as decoder:
        assert reasons(decoder.decode(b"eat")) == [Reason.DECODE_OUT_OF_MEMORY]
        assert reasons(decoder.decode(jpeg())) == [None]


@pytest.mark.slow
def test_a_valid_picture_gets_the_memory_that_its_size_needs() -> None:
    """12,000² RGB need 432 MB, which the pixel limit allows: without isolation it would be scored."""
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    limits = LimitsSpec(decode_memory_bytes=1 << 28, max_image_pixels=200_000_000)
    with IsolatedDecoder(SPEC, limits) as decoder:
        assert reasons(decoder.decode(file.getvalue())) == [None]
        assert reasons(decoder.decode(jpeg())) == [None]


@pytest.mark.slow
def test_too_much_memory_after_a_large_picture_is_a_reason() -> None:
    """The memory limit is set for each image."""
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")
    limits = LimitsSpec(decode_memory_bytes=1 << 28, max_image_pixels=100_000_000)
    with IsolatedDecoder(SPEC, limits, decoder="test_isolate:obey") as decoder:
        assert reasons(decoder.decode(file.getvalue())) == [None]
        assert reasons(decoder.decode(b"eat")) == [Reason.DECODE_OUT_OF_MEMORY]


def test_pages_before_a_crash_are_kept_and_the_rest_are_rejected(obedient: IsolatedDecoder) -> None:
    """Of three pages one arrived: the other two are rejected, so that no image is missing."""
    pages = obedient.decode(b"second page crashes")
    assert reasons(pages) == [None, Reason.DECODE_CRASHED, Reason.DECODE_CRASHED]
    assert [(p.page, p.pages) for p in pages] == [(0, 3), (1, 3), (2, 3)]


def test_output_of_a_library_is_not_an_answer(obedient: IsolatedDecoder) -> None:
    """Standard output of the child does not reach the frames."""
    (page,) = obedient.decode(b"print")
    assert page.content.tolist() == [[[0, 0, 0]]]


def test_a_child_that_was_killed_between_images_is_replaced(plain: IsolatedDecoder) -> None:
    """The next image is not rejected for it."""
    plain.decode(jpeg())
    child = plain._child
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert reasons(plain.decode(jpeg())) == [None]
    assert plain._child.pid != child.pid


def test_one_child_serves_many_images(plain: IsolatedDecoder) -> None:
    """A child is started once, not per image."""
    plain.decode(jpeg())
    pid = plain._child.pid
    plain.decode(b"no image")
    plain.decode(jpeg())
    assert plain._child.pid == pid


def test_close_ends_the_child() -> None:
    """No process outlives its decoder."""
    decoder = IsolatedDecoder(SPEC, LIMITS)
    decoder.decode(jpeg())
    child = decoder._child
    decoder.close()
    assert child.returncode is not None
    decoder.close()


def test_a_child_ends_when_its_parent_is_gone(plain: IsolatedDecoder) -> None:
    """A killed worker leaves no orphan: the child ends when its pipe is closed."""
    plain.decode(jpeg())
    child = plain._child
    child.stdin.close()
    assert child.wait(timeout=10) == 0
    assert reasons(plain.decode(jpeg())) == [None]


def test_threads_take_turns(plain: IsolatedDecoder) -> None:
    """Answers never mix."""
    outcomes: list[list[Reason | None]] = []
    work = [lambda: outcomes.append(reasons(plain.decode(jpeg())))] * 4
    threads = [threading.Thread(target=w) for w in work]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert outcomes == [[None]] * 4


def test_a_decoder_that_cannot_start_is_an_error_and_not_a_rejection() -> None:
    """A broken installation is not a fault of an image."""
    decoder = IsolatedDecoder(SPEC, LIMITS, decoder="test_isolate:missing")
    with pytest.raises(UnetBatchError, match="did not start"):
        decoder.decode(jpeg())


def test_a_decoder_that_never_starts_is_an_error_and_not_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has a limit of its own for it, and the image none."""
    monkeypatch.setattr(isolate, "START_S", 0.01)
    decoder = IsolatedDecoder(SPEC, LIMITS)
    with pytest.raises(UnetBatchError, match=r"did not start within 0\.01 s"):
        decoder.decode(jpeg())


def test_progress_is_told_when_the_child_begins_and_after_each_page(plain: IsolatedDecoder) -> None:
    """So the time that a process takes to start, and many pages, are not the time of one page."""
    running: list[bool] = []
    plain.close()
    assert len(plain.decode(multipage(), lambda: running.append(plain._child is not None))) == 2
    assert running == [True] * 3
