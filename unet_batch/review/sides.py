"""The two sides of a comparison: which rows a word names, and where an output keeps them.

Knows names below an output and run records; reads keys, and never the archive or a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from unet_batch.errors import JobError, NotFound, StorageError
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import Scope, without_bucket
from unet_batch.planning.survey import published_inside
from unet_batch.review.scored import Containers, ScoredRows
from unet_batch.table.publish import read_commit

PUBLISHED, JOB = "published", "job"
STAGED_DIGITS = 32
"""Digits of a fingerprint that name its folder of staged parts."""
EXAMPLES = 3

_HEX = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: its fingerprints, its models and the number of its rows."""

    asked: str
    """The word that named it."""
    output: str
    fingerprints: tuple[str, ...]
    """Of its rows; several where partitions were published under different ones."""
    models: tuple[str, ...]
    """SHA-256 of the ONNX files."""
    published: int
    """Rows that readers see."""
    staged: int
    """Rows that lie in staged parts only."""

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)


class RowsOfSide:
    """The rows that one word names, partition by partition, with a count of what was read."""

    def __init__(self, prepared: Prepared, asked: str, scope: Scope) -> None:
        """Lists the output. Raises JobError where the word names nothing.

        asked: `published`, `job`, a run, or the first 8 or more hex digits of a fingerprint.
        """
        self.fingerprint = None if asked == PUBLISHED else fingerprint_of(prepared, asked, scope)
        """The fingerprint of the rows, or its first digits; None for whatever is published."""
        self.partitions = _containers(prepared, self.fingerprint, scope)
        """By partition, the objects that may hold the rows; the buckets of a partition together."""
        self.damaged: list[str] = []
        self._prepared = prepared
        self._asked = asked
        self._fingerprints: set[str] = set()
        self._models: set[str] = set()
        self._published = self._staged = 0

    def read(self, partition: str) -> ScoredRows:
        """The keys of one partition's rows."""
        rows = ScoredRows(self._prepared.output, self.partitions.get(partition, ()), self.fingerprint)
        self._fingerprints |= rows.fingerprints
        self._models |= rows.models
        self._published += rows.published
        self._staged += len(rows.places) - rows.published
        return rows

    def side(self) -> Side:
        """What was read so far."""
        return Side(
            asked=self._asked,
            output=self._prepared.layout.output,
            fingerprints=tuple(sorted(self._fingerprints)),
            models=tuple(sorted(self._models)),
            published=self._published,
            staged=self._staged,
        )


def fingerprint_of(prepared: Prepared, asked: str, scope: Scope) -> str:
    """The fingerprint that a word names, or as many of its digits as are known. Raises JobError where it names none."""
    if asked == JOB:
        return prepared.fingerprint
    record = _record(prepared, asked)
    if record is not None:
        return record
    digits = asked.lower()
    known = sorted(set(_known_fingerprints(prepared, scope))) if _HEX.fullmatch(digits) else []
    found = [name for name in known if name.startswith(digits) or digits.startswith(name)]
    if len({name[:STAGED_DIGITS] for name in found}) > 1:
        raise JobError(f"{asked} is the beginning of several fingerprints ({_some(found)}): write more of its digits")
    if not found:
        raise JobError(f"no run and no fingerprint of {prepared.layout.output} is called {asked}: {_hint(prepared)}")
    return max(*found, digits, key=len)


def _record(prepared: Prepared, run: str) -> str | None:
    """The fingerprint in a run's record; None where there is no such run."""
    if "/" in run:
        return None
    uri = prepared.layout.run(run)
    try:
        fingerprint = json.loads(prepared.output.read(uri))["fingerprint"]
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"the record {uri} is damaged ({error}): name the run's fingerprint instead") from error
    return str(fingerprint)


def _known_fingerprints(prepared: Prepared, scope: Scope) -> Iterable[str]:
    """Of this job, of staged parts (their first digits), and of what is published inside the scope."""
    yield prepared.fingerprint
    yield from prepared.output.folders(prepared.layout.staged)
    names = published_inside(prepared, scope)
    for fingerprint in prepared.output.ahead(partial(_published_fingerprint, prepared, name) for name in names):
        if fingerprint is not None:
            yield fingerprint


def _published_fingerprint(prepared: Prepared, partition: str) -> str | None:
    try:
        published = read_commit(prepared.output, prepared.layout, partition)
    except StorageError:
        return None  # the comparison reads it again, and says what is wrong
    return published.commit.fingerprint if published else None


def _containers(prepared: Prepared, fingerprint: str | None, scope: Scope) -> dict[str, list[Containers]]:
    """What may hold rows of a fingerprint, by partition: one entry for each of its buckets."""
    published = set(published_inside(prepared, scope))
    parts: dict[str, list[str]] = {}
    if fingerprint is not None:
        root = f"{prepared.layout.staged}/{fingerprint[:STAGED_DIGITS]}"
        for found in prepared.output.list(root):
            name = found.uri.removeprefix(root + "/").rpartition("/")[0]
            if found.uri.endswith(".part") and scope.holds(name):
                parts.setdefault(name, []).append(found.uri)
    grouped: dict[str, list[Containers]] = {}
    for name in sorted(published | parts.keys()):
        uri = prepared.layout.published(name) if name in published else None
        grouped.setdefault(without_bucket(name), []).append(Containers(uri, sorted(parts.get(name, ()))))
    return grouped


def _hint(prepared: Prepared) -> str:
    """What could be named instead."""
    uris = (found.uri for found in prepared.output.list(prepared.layout.runs))
    runs = sorted((uri.rpartition("/")[2].removesuffix(".json") for uri in uris if uri.endswith(".json")), reverse=True)
    last = f"its last runs are {_some(runs)}; " if runs else "it has no runs yet; "
    return f"{last}write one of them, 8 or more hex digits of a fingerprint, {PUBLISHED} or {JOB}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (" …" if len(names) > EXAMPLES else "")
