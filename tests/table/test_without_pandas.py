"""pyarrow without pandas: a worker that writes parts does not load it, and other code can still import it."""

from __future__ import annotations

import subprocess
import sys

import pytest


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
