"""A process that publishes partitions for its driver, one after the other, and ends when its pipe closes.

The driver starts it as `python -P -m unet_batch.job.publishing.process DESCRIPTOR`. The first frame is the job. Then a
publication is two frames, its fields as JSON and its inventory packed, and its answer is one frame. `table/publish.py`
decides about rows, as in the driver: a put is conditional, so a process that outlives its driver does no harm.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from unet_batch.archive.packed import pack, unpacked
from unet_batch.errors import UnetBatchError, class_of
from unet_batch.spec import JobSpec
from unet_batch.table.guard import Others
from unet_batch.table.output import Output
from unet_batch.table.plausibility import Implausible
from unet_batch.table.publish import Commit, Publication, Published, publish
from unet_batch.table.tally import Tally
from unet_batch.table.without_pandas import forgo_pandas

log = logging.getLogger(__name__)

Request = tuple[bytes, bytes]


def request_of(wanted: Publication) -> Request:
    """The two frames of a publication."""
    fields = {
        "partition": wanted.partition,
        "fingerprint": wanted.fingerprint,
        "model_digest": wanted.model_digest,
        "run_id": wanted.run_id,
        "base": wanted.base,
        "parts": list(wanted.parts),
        "afresh": wanted.afresh,
        "compression": wanted.compression,
        "single_writer": wanted.single_writer,
        "tried": sorted(wanted.tried),
        "others": asdict(wanted.others),
        "classes": list(wanted.classes.items()),
        "nights": [night.to_json().decode() for night in wanted.nights],
    }
    return json.dumps(fields, separators=(",", ":")).encode(), pack(wanted.sources)


def publication_of(request: Request) -> Publication:
    """The inverse of `request_of`."""
    fields: dict[str, Any] = json.loads(request[0])
    fields["parts"] = tuple(fields["parts"])
    fields["tried"] = frozenset((key, version) for key, version in fields["tried"])
    fields["others"] = Others(**fields["others"])
    fields["classes"] = {int(id_): str(name) for id_, name in fields["classes"]}
    fields["nights"] = tuple(Tally.from_json(night.encode()) for night in fields["nights"])
    return Publication(sources=tuple(unpacked(request[1])), **fields)


def answer_of(published: Published) -> bytes:
    """The answer to a publication that succeeded."""
    fields = {
        "version": published.version,
        "commit": asdict(published.commit),
        "tally": None if published.tally is None else published.tally.to_json().decode(),
        "warnings": [asdict(warning) for warning in published.warnings],
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def refusal_of(error: Exception) -> bytes:
    """The answer to a publication that failed."""
    if isinstance(error, UnetBatchError):
        return json.dumps({"code": error.code, "text": str(error)}).encode()
    return json.dumps({"code": UnetBatchError.code, "text": f"{type(error).__name__}: {error}"}).encode()


def published_of(answer: bytes) -> Published:
    """What an answer says. Raises the error of a publication that failed."""
    fields: Mapping[str, Any] = json.loads(answer)
    if "code" in fields:
        raise class_of(fields["code"])(fields["text"])
    tally = fields["tally"]
    return Published(
        fields["version"],
        Commit(**fields["commit"]),
        None if tally is None else Tally.from_json(tally.encode()),
        tuple(Implausible(**warning) for warning in fields["warnings"]),
    )


def serve(pipe: Connection) -> NoReturn:
    """Answer requests until the pipe closes; then end at once, also in the middle of one."""
    job = JobSpec.model_validate_json(pipe.recv_bytes())
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_work, args=(job, requests, pipe), daemon=True).start()
    try:
        while True:
            requests.put((pipe.recv_bytes(), pipe.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)


def _work(job: JobSpec, requests: queue.SimpleQueue[Request], pipe: Connection) -> None:
    output = Output.of(job.output)
    while True:
        try:
            answer = answer_of(publish(output, publication_of(requests.get()), job.limits))
        except UnetBatchError as error:
            answer = refusal_of(error)
        except Exception as error:  # the driver ends the run with it
            log.exception("a partition could not be published")
            answer = refusal_of(error)
        try:
            pipe.send_bytes(answer)
        except OSError:
            os._exit(0)  # the driver has ended


def main() -> NoReturn:
    """Serve the pipe whose file descriptor is the first argument."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    forgo_pandas()
    serve(Connection(descriptor))


if __name__ == "__main__":
    main()
