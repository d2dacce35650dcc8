"""Why Ray dropped a row: what its log says, and what no image can have done."""

from __future__ import annotations

import importlib
import logging

import pytest

from unet_batch.on_ray import losses
from unet_batch.on_ray.losses import LOGGER, Losses


class OutOfDiskError(Exception):
    """Stands for Ray's."""


class ActorUnavailableError(Exception):
    """Stands for Ray's, which it raises for an actor that died and will come back."""


class RayTaskError(OutOfDiskError):
    """As Ray derives the error of a task from its cause."""


@pytest.fixture
def heard():
    found = Losses()
    found.listen()
    yield found
    logging.getLogger(LOGGER).removeHandler(found)


def say(error: BaseException) -> None:
    logging.getLogger(LOGGER).error("An exception was raised from a task", exc_info=error)


def test_a_full_disk_is_told_once_and_then_forgotten(heard):
    """A hundred units that met the same full disk are one fault, of the pass in which they met it."""
    for _ in range(100):
        say(RayTaskError("full"))
    fault = heard.take()
    assert fault is not None
    assert (fault.code, fault.exit_code, fault.retryable) == ("run.handover", 3, True)
    assert str(fault).startswith("the object store and the disk that Ray spills to are full")
    assert heard.take() is None


def test_what_an_image_can_have_done_is_no_fault_of_the_machinery(heard):
    """A process that died, or an exception of a stage, is looked into image by image."""
    say(RuntimeError("ActorDiedError"))
    say(ActorUnavailableError("Socket closed"))
    logging.getLogger(LOGGER).error("no exception at all")
    assert heard.take() is None


def test_ray_is_listened_to_once(capfd):
    """A second run in one process hears what the first one no longer asks for, and nothing is printed."""
    first, second = Losses(), Losses()
    first.listen()
    second.listen()
    say(OutOfDiskError())
    assert (first.take(), second.take() is None) == (None, False)
    assert capfd.readouterr() == ("", "")
    logging.getLogger(LOGGER).removeHandler(second)


@pytest.mark.ray
def test_ray_still_has_the_log_and_the_exceptions_that_are_listened_for():
    """Names of Ray 2.60: where they change, losses would be taken for deaths."""
    exceptions = importlib.import_module("ray.exceptions")
    assert [name for name in losses._MACHINERY if not hasattr(exceptions, name)] == []
    assert importlib.import_module(LOGGER).logger.name == LOGGER
