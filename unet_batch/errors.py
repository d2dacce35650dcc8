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
    │   ├── Damaged         a published object cannot be read: the user must remove it   exit 5
    │   ├── Unavailable     a transient fault that outlived its retries                  exit 3
    │   ├── AlreadyExists   a create-only put found an object (often a success)
    │   ├── Conflict        another writer changed the object before a conditional put
    │   └── PutUnknown      the outcome of a put is unknown: read the object back
    ├── ImageError          one image cannot be scored: becomes a rejection, never escapes a unit
    ├── ShapeMismatch       arrays that do not fit each other: a bug or a wrong contract
    ├── ModelFailed         the model itself raised on a batch
    ├── OutOfMemory         a batch did not fit into memory: retried with a smaller one
    ├── SessionBroken       the process's device context is lost: the process must be replaced
    ├── HandoverFailed      object-store, spill or node failure; not attributable to an input
    ├── RayUnavailable      Ray did not start, or the connection was lost                exit 3
    ├── TooLate             the run's deadline came before a unit began: the unit stays open
    ├── Incomplete          the run ended, but a partition could not be published        exit 3
    │   └── NeedsAction     the same, and another run cannot help until the user acts    exit 5
    └── Held                another run holds the partition, or published it first       exit 4

A message says what is wrong, where, and what to do. `code` is stable. `retryable`: the same call may succeed later.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """How a command ended. The number is the process's exit code; the lower-case name is in its JSON."""

    COMPLETE = 0
    UNEXPECTED = 1
    SETUP = 2
    UNFINISHED = 3
    HELD = 4
    NEEDS_ACTION = 5

    @property
    def label(self) -> str:
        """The name in the command's JSON."""
        return self.name.lower()

    @property
    def meaning(self) -> str:
        """One sentence for help texts and documents."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.COMPLETE: "complete",
    ExitCode.UNEXPECTED: "an unexpected error",
    ExitCode.SETUP: "job file, arguments or set-up are wrong, and nothing was scored",
    ExitCode.UNFINISHED: "not finished, and the same command again may finish it",
    ExitCode.HELD: "another run holds the partition, or published it first",
    ExitCode.NEEDS_ACTION: "finished, but a person must act before another run can help",
}
_PRIORITY = (
    ExitCode.UNEXPECTED,
    ExitCode.SETUP,
    ExitCode.UNFINISHED,
    ExitCode.NEEDS_ACTION,
    ExitCode.HELD,
    ExitCode.COMPLETE,
)


def overall(codes: Iterable[int]) -> ExitCode:
    """The exit code of a run with several problems; COMPLETE for none.

    3 comes before 5 and 4: a scheduler that retries on 3 must retry while a run can still finish something. Then 5
    remains and ends the retries. 5 comes before 4, because 4 needs no action: the other run finishes the work.
    """
    present = {ExitCode(code) for code in codes}
    return next((code for code in _PRIORITY if code in present), ExitCode.COMPLETE)


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
    """The requested provider cannot run here. There is no silent fallback."""

    code = "session.provider_missing"
    exit_code = ExitCode.SETUP


class ModelRefused(UnetBatchError):
    """The model cannot be exported, read or changed without wrong results."""

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
    """The store does not accept these credentials for any object, e.g. an expired token. Not a fault of an image."""

    code = "storage.not_logged_in"
    exit_code = ExitCode.SETUP


class Changed(StorageError):
    """The object is no longer the version that was planned."""

    code = "storage.changed"


class TooLarge(StorageError):
    """The object is larger than the caller allows."""

    code = "storage.too_large"


class Unavailable(StorageError):
    """A transient fault that did not end within the retries."""

    code = "storage.unavailable"
    exit_code = ExitCode.UNFINISHED
    retryable = True


class Damaged(StorageError):
    """A published object is damaged or not written by this package. No run replaces it: the user must move it away."""

    code = "storage.damaged"
    exit_code = ExitCode.NEEDS_ACTION


class AlreadyExists(StorageError):
    """A create-only put found an object under that name."""

    code = "storage.exists"


class Conflict(StorageError):
    """Another writer changed the object before a conditional put."""

    code = "storage.conflict"


class PutUnknown(StorageError):
    """The outcome of a put is unknown (time-out, reset connection): read the object back to find out."""

    code = "storage.put_unknown"


class ShapeMismatch(UnetBatchError):
    """Array shapes do not match: a bug, or a contract that does not match its model."""

    code = "model.shape_mismatch"


class ModelFailed(UnetBatchError):
    """The model raised on a batch. Its unit is halved until the image that causes the error is alone."""

    code = "model.failed"


class OutOfMemory(UnetBatchError):
    """A batch did not fit into memory. The same tiles run again in smaller batches."""

    code = "session.out_of_memory"
    retryable = True
    doubtful = False
    """Whether a lost device has the same error text. If a smaller batch fails alike, the device is lost."""


class SessionBroken(UnetBatchError):
    """The process's device context is lost. Only a new process can continue."""

    code = "session.broken"
    retryable = True


class HandoverFailed(UnetBatchError):
    """Object-store, spill or node failure; not attributable to an input."""

    code = "run.handover"
    exit_code = ExitCode.UNFINISHED
    retryable = True


class RayUnavailable(UnetBatchError):
    """Ray did not start on this machine, or the connection to it was lost. Finished units are staged."""

    code = "run.ray"
    exit_code = ExitCode.UNFINISHED
    retryable = True


class TooLate(UnetBatchError):
    """The run's deadline came before a unit began."""

    code = "run.too_late"
    exit_code = ExitCode.UNFINISHED


class Incomplete(UnetBatchError):
    """The run ended, but a partition could not be published."""

    code = "run.incomplete"
    exit_code = ExitCode.UNFINISHED


class NeedsAction(Incomplete):
    """The run ended, and another run cannot help until the user acts."""

    code = "run.needs_action"
    exit_code = ExitCode.NEEDS_ACTION


class Held(UnetBatchError):
    """Another run holds the partition, or published it first."""

    code = "run.held"
    exit_code = ExitCode.HELD


class Reason(StrEnum):
    """Why an image was rejected. The values are stable: users filter on them."""

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
        """Whether another run over the same bytes can give another result."""
        return self in _RETRYABLE

    @property
    def shard_level(self) -> bool:
        """Whether this one row stands for an unknown number of images."""
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
    """One image cannot be scored. It becomes a rejection with this reason; the error never leaves its unit."""

    code = "image.rejected"

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def class_of(code: str) -> type[UnetBatchError]:
    """The error class with this code; UnetBatchError for an unknown code."""
    classes: list[type[UnetBatchError]] = [UnetBatchError]
    for error_class in classes:
        if error_class.code == code and error_class is not ImageError:
            return error_class
        classes += error_class.__subclasses__()
    return UnetBatchError
