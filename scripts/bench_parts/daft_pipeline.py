"""The other rival: Daft's native runner with a class of its own around the same session, as Daft's guides write it.

    download -> decode_image -> resize -> batch method of a daft.cls -> write_parquet

Runs in an environment of its own, because Daft and this project want different pyarrows: see daft_variant.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pyarrow.parquet as pq
from daft import DataType, col
from daft.functions import decode_image, download, resize
from rival import BATCH, SIDE_PX, Segmenter, classes, first_photos, tiles


def segment(result: DataType, cores: int) -> Any:
    """The class that Daft runs: one process for each core, one session in each."""

    @daft.cls(max_concurrency=cores, use_process=cores > 1)
    class Segment:
        def __init__(self, model: str) -> None:
            self._segmenter = Segmenter(model, "CPUExecutionProvider", threads=1)

        @daft.method.batch(return_dtype=result, unnest=True, batch_size=BATCH)
        def score(self, pictures: daft.Series) -> list[dict[str, Any]]:
            columns = self._segmenter(tiles(np.stack(pictures.to_pylist())))
            plain = [column.tolist() for column in columns.values()]
            return [dict(zip(columns, row, strict=True)) for row in zip(*plain, strict=True)]

    return Segment


def run(photos: Path, model: Path, out: Path, images: int) -> dict[str, Any]:
    """Scores the first `images` JPEGs of a folder on the CPU; returns wall seconds and the rows written."""
    fields: dict[str, DataType] = {}
    for k in range(1, classes(model)):
        fields |= {f"area_{k}": DataType.int64(), f"rle_{k}": DataType.string()}
    scorer = segment(DataType.struct(fields), os.cpu_count() or 1)(str(model.resolve()))
    daft.set_runner_native()

    started = time.perf_counter()
    picture = resize(decode_image(download(col("key")), mode="RGB"), SIDE_PX, SIDE_PX)
    frame = daft.from_pydict({"key": first_photos(photos, images)}).with_column("picture", picture)
    frame.select(col("key"), scorer.score(col("picture"))).write_parquet(str(out.resolve()))
    seconds = time.perf_counter() - started
    rows = sum(pq.read_metadata(file).num_rows for file in out.glob("**/*.parquet"))
    return {"variant": "daft", "seconds": seconds, "images": rows, "version": daft.__version__}


if __name__ == "__main__":
    result = run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps(result), flush=True)
