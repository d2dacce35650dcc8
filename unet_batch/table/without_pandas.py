"""Keeps pyarrow from importing pandas.

pyarrow imports an installed pandas when it makes its first array from Python objects, to recognise pandas' missing
values. This takes half a second of processor time in each process (measured, pyarrow 26), and there is no option.
pyarrow tries the import once per process; after a failure it works without pandas.
"""

from __future__ import annotations

import sys


def forgo_pandas() -> None:
    """Let pyarrow work without pandas in this process. Call it before other threads are started.

    Does nothing if pandas is already loaded. Later imports of pandas work, and so does `Table.to_pandas`; only
    `pa.array(…, from_pandas=True)` no longer treats pandas' missing values (`pd.NA`) as nulls.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    refusing = _Refusing()
    sys.meta_path.insert(0, refusing)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(refusing)


class _Refusing:
    """A module finder that refuses pandas."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
