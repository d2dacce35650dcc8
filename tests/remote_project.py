"""A small job whose archive and output lie in an object store, and what may happen there meanwhile."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq
from project_fixture import Project, png

from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.summary import Summary
from unet_batch.store.storage import Storage

DAY = "2026/11/21"
NAME = "2026-11-21"


@dataclass
class Remote:
    """A project with its archive and output in a fresh bucket."""

    project: Project
    bucket: str
    store: Storage
    overrides: tuple[str, ...]

    def put(self, name: str, data: bytes) -> None:
        self.store.put(f"{self.bucket}/archive/{name}", data)

    def fill(self, count: int) -> None:
        for i in range(count):
            self.put(f"{DAY}/{i:03}.png", png(i))

    def run(self, *overrides: str, executor: type[LocalExecutor] | None = None) -> Summary:
        return self.project.run(*self.overrides, *overrides, executor=executor)

    def findings(self) -> list[str]:
        return [finding.kind for finding in self.project.verify(*self.overrides)]

    @property
    def published(self) -> str:
        return f"{self.bucket}/out/predictions/date={NAME}/data.parquet"

    def rows(self) -> list[dict]:
        return pq.ParquetFile(io.BytesIO(self.store.read(self.published))).read().to_pylist()

    def objects(self, below: str) -> dict[str, bytes]:
        return {found.uri: self.store.read(found.uri) for found in self.store.list(f"{self.bucket}/{below}")}


def meanwhile(act: Callable[[], object]) -> type[LocalExecutor]:
    """An executor during whose run, after the survey and before publication, something else happens."""

    class Overtaken(LocalExecutor):
        def run(self, units) -> Iterator:
            act()
            yield from super().run(units)

    return Overtaken
