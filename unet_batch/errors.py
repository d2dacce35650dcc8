"""Every error that this package raises, and every reason an image can get instead of a prediction.

    UnetBatchError
    ├── JobError            the job file or the arguments are wrong                      exit 2
    │   └── ContractError   the model does not do what its contract says
    ├── ProviderMissing     the provider that was asked for cannot run here              exit 2
    ├── ModelRefused        a model that would not give its right results: says why      exit 2
    ├── StorageError        a store answered with something other than the bytes         exit 3
    │   ├── NotFound        no such object                                               exit 2
    │   ├── Denied          the store refuses this object to these credentials           exit 2
    │   ├── NotLoggedIn     the store does not take these credentials for any object     exit 2
    │   ├── Changed         the object is no longer the version that was planned
    │   ├── TooLarge        the object is larger than the caller allows
    │   ├── Damaged         a published object cannot be read: a person moves it away    exit 5
    │   ├── Unavailable     a transient fault that outlived its retries                  exit 3
    │   ├── AlreadyExists   a create-only put found an object (often this is success)
    │   ├── Conflict        a conditional put lost against another writer
    │   └── PutUnknown      a put whose outcome nobody knows: settle it by reading back
    ├── ImageError          one image cannot be scored: becomes a rejection, never escapes a unit
    ├── ShapeMismatch       arrays that do not fit each other: a bug or a wrong contract
    ├── ModelFailed         the model itself raised on a batch
    ├── OutOfMemory         a batch did not fit into memory: retried with a smaller one
    ├── SessionBroken       the process's device context is lost: the process must be replaced
    ├── HandoverFailed      pixels did not get from one actor to the next, and no image can have done it
    ├── RayUnavailable      Ray did not start, or was lost                                 exit 3
    ├── TooLate             the run's deadline came before a unit was begun: the unit is simply not done yet
    ├── Incomplete          the run ended, but a partition could not be published        exit 3
    │   └── NeedsAction     and no other run can help before a person acts               exit 5
    └── Held                another run holds the partition, or published it first       exit 4

A message says what, where, and what to do. `code` is stable; `retryable` says whether doing the same again can help.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """How a command ended. The number is the process's exit code; the name, in small letters, is in its JSON."""

    COMPLETE = 0
    UNEXPECTED = 1
    SETUP = 2
    UNFINISHED = 3
    HELD = 4
    NEEDS_ACTION = 5

    @property
    def label(self) -> str:
        """The name as the JSON has it."""
        return self.name.lower()

    @property
    def meaning(self) -> str:
        """One sentence; help text and pages quote it."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.COMPLETE: "complete",
    ExitCode.UNEXPECTED: "an unexpected fault",
    ExitCode.SETUP: "job file, arguments or set-up are wrong, and nothing was scored",
    ExitCode.UNFINISHED: "not finished, and the same command again may finish it",
    ExitCode.HELD: "another run holds the partition, or published it first",
    ExitCode.NEEDS_ACTION: "finished, but a person must act before another run can help",
}
_FIRST_TO_LAST = (
    ExitCode.UNEXPECTED,
    ExitCode.SETUP,
    ExitCode.UNFINISHED,
    ExitCode.NEEDS_ACTION,
    ExitCode.HELD,
    ExitCode.COMPLETE,
)


def overall(codes: Iterable[int]) -> ExitCode:
    """The exit code of a run with several problems; COMPLETE for none.

    3 goes before 5 and 4: while another run can finish something, a scheduler that retries on 3 shall retry. When that
    is done, 5 is left and ends the retries. 5 goes before 4: the other run does its work without a person.
    """
    met = {ExitCode(code) for code in codes}
    return next((code for code in _FIRST_TO_LAST if code in met), ExitCode.COMPLETE)


class UnetBatchError(Exception):
    """Root of every error this package raises on purpose."""

    code = "error"
    exit_code = ExitCode.UNEXPECTED
    retryable = False


class JobError(UnetBatchError):
    """The job file or the arguments are wrong."""

    code = "job.invalid"
    exit_code = ExitCode.SETUP


class ContractError(JobError):
    """The model does not do what its contract says, or has no contract."""

    code = "model.contract"


class ProviderMissing(UnetBatchError):
    """The provider that was asked for cannot run here; nothing falls back in silence."""

    code = "session.provider_missing"
    exit_code = ExitCode.SETUP


class ModelRefused(UnetBatchError):
    """A model that cannot be exported, read or changed so that its results stay right."""

    code = "model.refused"
    exit_code = ExitCode.SETUP


class StorageError(UnetBatchError):
    """A store answered with something other than the bytes."""

    code = "storage.failed"
    exit_code = ExitCode.UNFINISHED


class NotFound(StorageError):
    """No such object."""

    code = "storage.not_found"
    exit_code = ExitCode.SETUP


class Denied(StorageError):
    """The store refuses this object to these credentials, or the URI is outside what the job allows."""

    code = "storage.denied"
    exit_code = ExitCode.SETUP


class NotLoggedIn(StorageError):
    """The store does not take these credentials for any object: an expired token says nothing about an image."""

    code = "storage.not_logged_in"
    exit_code = ExitCode.SETUP


class Changed(StorageError):
    """The object is no longer the version that was planned."""

    code = "storage.changed"


class TooLarge(StorageError):
    """The object is larger than the caller allows."""

    code = "storage.too_large"


class Unavailable(StorageError):
    """A transient fault that outlived its retries."""

    code = "storage.unavailable"
    exit_code = ExitCode.UNFINISHED
    retryable = True


class Damaged(StorageError):
    """A published object is damaged or none of ours: no run replaces it, so a person must move it away."""

    code = "storage.damaged"
    exit_code = ExitCode.NEEDS_ACTION


class AlreadyExists(StorageError):
    """A create-only put found an object under that name."""

    code = "storage.exists"


class Conflict(StorageError):
    """A conditional put lost against another writer."""

    code = "storage.conflict"


class PutUnknown(StorageError):
    """A put whose outcome nobody knows (a time-out, a reset): settle it by reading back."""

    code = "storage.put_unknown"


class ShapeMismatch(UnetBatchError):
    """Arrays that do not fit each other: a bug, or a contract that tells an untruth about its model."""

    code = "model.shape_mismatch"


class ModelFailed(UnetBatchError):
    """The model itself raised on a batch: its unit is halved until the image that it fails on is alone."""

    code = "model.failed"


class OutOfMemory(UnetBatchError):
    """A batch did not fit into memory; the same tiles run again in a smaller one."""

    code = "session.out_of_memory"
    retryable = True


class SessionBroken(UnetBatchError):
    """The process's device context is lost; only a fresh process can go on."""

    code = "session.broken"
    retryable = True


class HandoverFailed(UnetBatchError):
    """Pixels did not get from one actor to the next (a full disk, a lost node), and no image can have done it."""

    code = "run.handover"
    exit_code = ExitCode.UNFINISHED
    retryable = True


class RayUnavailable(UnetBatchError):
    """Ray did not start on this machine, or was lost; what was finished is staged."""

    code = "run.ray"
    exit_code = ExitCode.UNFINISHED
    retryable = True


class TooLate(UnetBatchError):
    """The run's deadline came before a unit was begun."""

    code = "run.too_late"
    exit_code = ExitCode.UNFINISHED


class Incomplete(UnetBatchError):
    """The run ended, but a partition could not be published."""

    code = "run.incomplete"
    exit_code = ExitCode.UNFINISHED


class NeedsAction(Incomplete):
    """The run ended, and no other run can help before a person acts."""

    code = "run.needs_action"
    exit_code = ExitCode.NEEDS_ACTION


class Held(UnetBatchError):
    """Another run holds the partition, or published it first."""

    code = "run.held"
    exit_code = ExitCode.HELD


class Reason(StrEnum):
    """Why an image was rejected. The text is stable: people filter on it."""

    DECODE_UNRECOGNIZED = "decode.unrecognized"
    DECODE_FORMAT_NOT_ALLOWED = "decode.format_not_allowed"
    DECODE_TRUNCATED = "decode.truncated"
    DECODE_CORRUPT = "decode.corrupt"
    DECODE_TOO_MANY_PIXELS = "decode.too_many_pixels"
    DECODE_CRASHED = "decode.crashed"
    DECODE_TIMEOUT = "decode.timeout"
    DECODE_OUT_OF_MEMORY = "decode.out_of_memory"
    READ_NOT_FOUND = "read.not_found"
    READ_DENIED = "read.denied"
    READ_CHANGED = "read.changed"
    READ_TOO_LARGE = "read.too_large"
    READ_CHECKSUM_MISMATCH = "read.checksum_mismatch"
    CELL_NULL = "cell.null"
    CELL_EMPTY = "cell.empty"
    CELL_TYPE = "cell.type"
    SHARD_CORRUPT = "shard.corrupt"
    SHARD_TRUNCATED = "shard.truncated"
    IMAGE_MODE_NOT_SUPPORTED = "image.mode_not_supported"
    IMAGE_CHANNELS_MISMATCH = "image.channels_mismatch"
    IMAGE_SIZE_MISMATCH = "image.size_mismatch"
    IMAGE_NON_FINITE = "image.non_finite"
    MODEL_OUT_OF_MEMORY = "model.out_of_memory"
    MODEL_NON_FINITE_OUTPUT = "model.non_finite_output"
    MODEL_OUTPUT_OUT_OF_RANGE = "model.output_out_of_range"
    MODEL_FAILED = "model.failed"
    MODEL_CRASHED = "model.crashed"
    MODEL_TIMEOUT = "model.timeout"

    @property
    def retryable(self) -> bool:
        """Whether scoring the same bytes again can end differently."""
        return self in _RETRYABLE

    @property
    def shard_level(self) -> bool:
        """Whether an unknown number of images stands behind this one row."""
        return self in (Reason.SHARD_CORRUPT, Reason.SHARD_TRUNCATED)


_RETRYABLE = frozenset(
    {
        Reason.DECODE_CRASHED,
        Reason.DECODE_TIMEOUT,
        Reason.DECODE_OUT_OF_MEMORY,
        Reason.READ_NOT_FOUND,
        Reason.READ_DENIED,
        Reason.READ_CHANGED,
        Reason.MODEL_OUT_OF_MEMORY,
        Reason.MODEL_FAILED,
        Reason.MODEL_CRASHED,
        Reason.MODEL_TIMEOUT,
    }
)


class ImageError(UnetBatchError):
    """One image cannot be scored: becomes a rejection with this reason, never escapes a unit."""

    code = "image.rejected"

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def class_of(code: str) -> type[UnetBatchError]:
    """The error with this code; the root of all where there is none."""
    waiting: list[type[UnetBatchError]] = [UnetBatchError]
    for found in waiting:
        if found.code == code and found is not ImageError:
            return found
        waiting += found.__subclasses__()
    return UnetBatchError
