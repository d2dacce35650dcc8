"""Sessions by type of tile: each opened when its first tile comes, each within the actor's part of the machine."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from contracts.session_suite import THRESHOLD, FakeSession, SessionSuite, tiles_of

from unet_batch.errors import ModelRefused, ShapeMismatch
from unet_batch.model.packed_session import PackedSession, takes
from unet_batch.model.session import Device, Session, warm


class Opener:
    """Opens fakes of uint8 and float32, and remembers with what."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, Device]] = []

    def __call__(self, dtype: str, device: Device) -> Session:
        if dtype not in ("uint8", "float32"):
            raise ModelRefused(f"no graph takes {dtype}")
        self.opened.append((dtype, device))
        taken = THRESHOLD.contract.input.model_copy(update={"dtype": dtype})
        contract = THRESHOLD.contract.model_copy(update={"input": taken})
        return FakeSession(replace(THRESHOLD, contract=contract))


def session_of(opener: Opener, device: Device = Device(1), first: str = "uint8") -> PackedSession:  # noqa: B008 - frozen
    return PackedSession(THRESHOLD, opener, device, first=first)


class TestPackedSession(SessionSuite):
    """The rules of every session, for normalised tiles."""

    @pytest.fixture
    def session(self) -> Session:
        return session_of(Opener())


def test_a_tile_goes_to_the_session_of_its_type() -> None:
    """Bytes above a half are class 1 in bytes; the contract of all is that of the network."""
    session = session_of(Opener())
    assert session.run(np.full((1, 8, 8, 3), 200, np.uint8)).argmax(axis=1).all()
    assert session.run(tiles_of(1, 2)).shape == (2, 2, 8, 8)
    assert session.model is THRESHOLD


def test_sessions_are_opened_at_their_first_tile() -> None:
    """Only what is expected first is opened before."""
    opener = Opener()
    session = session_of(opener)
    assert [dtype for dtype, _ in opener.opened] == ["uint8"]
    session.run(tiles_of(1, 1))
    session.run(tiles_of(2, 1))
    assert [dtype for dtype, _ in opener.opened] == ["uint8", "float32"]


def test_a_type_that_nothing_takes_is_normalised_first(caplog: pytest.LogCaptureFixture) -> None:
    """Said once, and the session of normalised tiles is opened in its place."""
    opener = Opener()
    with caplog.at_level(logging.WARNING):
        session = session_of(opener, first="uint16")
        answers = [session.takes(dtype) for dtype in ("uint16", "uint16", "uint8", "float32")]
    assert answers == [False, False, True, False]  # float pictures are normalised too
    assert caplog.text.count("uint16 pixels are normalised before the session, because no graph takes uint16") == 1
    assert [dtype for dtype, _ in opener.opened] == ["float32", "uint8"]
    with pytest.raises(ShapeMismatch, match="float32 tiles"):
        session.run(np.zeros((1, 8, 8, 3), np.uint16))


def test_sessions_share_the_memory_of_a_gpu() -> None:
    """The first has all of it; with the second each is opened with a half."""
    opener = Opener()
    session = session_of(opener, Device(1, gpu_memory_bytes=100))
    session.run(tiles_of(1, 1))
    session.run(np.zeros((1, 8, 8, 3), np.uint8))
    session.run(tiles_of(1, 1))
    assert [(dtype, device.gpu_memory_bytes) for dtype, device in opener.opened] == [
        ("uint8", 100),
        ("float32", 50),
        ("uint8", 50),
    ]


def test_a_share_of_a_gpu_is_divided_too() -> None:
    """Actors that do not know its memory."""
    opener = Opener()
    session_of(opener, Device(1, gpu_share=0.5)).run(tiles_of(1, 1))
    assert [device.gpu_share for _, device in opener.opened] == [0.5, 0.25]


def test_other_sessions_take_what_their_contract_says() -> None:
    """Nothing else."""
    assert not takes(FakeSession(), "uint8")
    assert takes(session_of(Opener()), "uint8")


def test_warming_asks_for_the_type_that_will_come() -> None:
    """Zeros of source pixels open no session of floats."""
    opener = Opener()
    warm(session_of(opener), (8, 8), [1, 2], dtype="uint8")
    assert [dtype for dtype, _ in opener.opened] == ["uint8"]
