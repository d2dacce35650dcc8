"""pyarrow without pandas and compute functions: a worker that writes parts loads neither; other code can."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from unet_batch.table.rows import Provenance, to_table


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_arrays_load_no_pandas():
    """Half a second of processor time in each process."""
    done = python(
        "import sys\n"
        "from unet_batch.table.without_pandas import forgo_pandas\n"
        "forgo_pandas()\n"
        "import pyarrow as pa\n"
        "assert pa.array(['a', None]).null_count == 1\n"
        "assert pa.table({'a': [1, None]}).column('a').null_count == 1\n"
        "sys.exit('pandas' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_pandas_can_be_imported_and_used_afterwards():
    """Nothing is broken for a library that needs it."""
    pytest.importorskip("pandas")
    done = python(
        "from unet_batch.table.without_pandas import forgo_pandas\n"
        "forgo_pandas()\n"
        "import pyarrow as pa, pandas as pd\n"
        "assert pa.table({'a': [1, 2]}).to_pandas()['a'].tolist() == [1, 2]\n"
        "assert pa.array(pd.Series([1.5, 2.5])).to_pylist() == [1.5, 2.5]"
    )
    assert done.returncode == 0, done.stderr


def test_a_loaded_pandas_stays_known_to_pyarrow():
    """A program that brought pandas along keeps all of it."""
    pytest.importorskip("pandas")
    done = python(
        "import pandas as pd, pyarrow as pa\n"
        "from unet_batch.table.without_pandas import forgo_pandas\n"
        "forgo_pandas()\n"
        "assert pa.array([pd.NA, 'a'], pa.string(), from_pandas=True).null_count == 1"
    )
    assert done.returncode == 0, done.stderr


def test_a_worker_that_writes_a_part_loads_no_compute_functions(tmp_path):
    """Their import takes 0.1 s of processor time in each process."""
    done = python(
        "import sys\n"
        "import unet_batch.worker.process\n"
        "from unet_batch.errors import ImageError, Reason\n"
        "from unet_batch.records import Source, Unit\n"
        "from unet_batch.spec import OutputSpec\n"
        "from unet_batch.table.output import Output\n"
        "from unet_batch.table.parts import open_rows, row_keys, write_part\n"
        "from unet_batch.table.rows import Provenance, rejection_row\n"
        "from unet_batch.table.without_pandas import forgo_pandas\n"
        "forgo_pandas()\n"
        f"output = Output.of(OutputSpec(uri={tmp_path.as_uri()!r}))\n"
        "sources = tuple(Source(f'file:///{n}.png', 'v') for n in range(3))\n"
        "rows = [rejection_row(s, 0, 1, ImageError(Reason.DECODE_CRASHED, 'm')) for s in sources]\n"
        "unit = Unit('u', 'date=2026-11-21', 'files', sources)\n"
        "uri = write_part(output, unit, rows, Provenance('m', 'f', 'r', 'cpu', 'fp32'), compression='zstd')\n"
        "assert len(row_keys(open_rows(output.store.read(uri)))) == 3\n"
        "sys.exit('pyarrow.compute' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("values", [["a", None, "b", "a"], [None, None], []])
def test_repeated_texts_are_encoded_as_pyarrow_encodes_them(values):
    """Oracle: `dictionary_encode`."""
    rows = [{"reason": value} for value in values]
    found = to_table(rows, "all", Provenance("m", "f", "r", "cpu", "fp32")).column("reason").combine_chunks()
    wanted = pa.array(values, pa.string()).dictionary_encode()
    assert found.type == wanted.type
    assert found.indices.equals(wanted.indices)
    assert found.dictionary.equals(wanted.dictionary)
