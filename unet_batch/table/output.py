"""A job's output: its store, and the URIs of all its objects."""

from __future__ import annotations

from dataclasses import dataclass

from unet_batch.spec import OutputSpec
from unet_batch.store.storage import Storage


@dataclass(frozen=True, slots=True)
class Output:
    """The store of an output, and the URIs of its objects. Methods only build URIs; they do not access the store.

    Readers glob `predictions/**/data.parquet`. Staged parts have another folder and another extension, because DuckDB's
    `**` also matches folders that start with an underscore. Partitions are names such as `date=2026-11-21`.
    """

    store: Storage
    uri: str

    @staticmethod
    def of(spec: OutputSpec) -> Output:
        """The output of a job file, with a new store. spec: with a canonical URI."""
        return Output(Storage(spec.options), spec.uri)

    @property
    def predictions(self) -> str:
        return f"{self._root}/predictions"

    @property
    def work(self) -> str:
        return f"{self._root}/_work"

    @property
    def index(self) -> str:
        return f"{self._root}/_work/index"

    @property
    def runs(self) -> str:
        return f"{self._root}/_work/runs"

    @property
    def reports(self) -> str:
        return f"{self._root}/reports"

    @property
    def scratch(self) -> str:
        return f"{self._root}/_work/probe"

    @property
    def staged(self) -> str:
        return f"{self._root}/_work/parts"

    @property
    def attempts(self) -> str:
        return f"{self._root}/_work/attempts"

    @property
    def leases(self) -> str:
        return f"{self._root}/_work/leases"

    @property
    def masks(self) -> str:
        """The folder of mask files beside the table."""
        return f"{self._root}/masks"

    def mask_folder(self, format_: str, name: str) -> str:
        """The mask files of one published object in one format."""
        return f"{self.masks}/{format_}/{name}"

    def mask_markers(self, format_: str) -> str:
        """The markers of complete mask files."""
        return f"{self._root}/_work/masks/{format_}"

    def lease(self, partition: str) -> str:
        return f"{self.leases}/{partition}.json"

    def published(self, partition: str) -> str:
        return f"{self.predictions}/{partition}/data.parquet"

    def parts(self, fingerprint: str, partition: str) -> str:
        return f"{self._root}/_work/parts/{fingerprint[:32]}/{partition}"

    def part(self, fingerprint: str, partition: str, unit_id: str) -> str:
        return f"{self.parts(fingerprint, partition)}/{unit_id}.part"

    def attempt(self, unit_id: str) -> str:
        return f"{self._root}/_work/attempts/{unit_id}"

    def note(self, unit_id: str) -> str:
        return f"{self.attempt(unit_id)}.note"

    def report(self, run_id: str) -> str:
        return f"{self.reports}/{run_id}.html"

    def run(self, run_id: str) -> str:
        return f"{self.runs}/{run_id}.json"

    @property
    def _root(self) -> str:
        return self.uri.rstrip("/")
