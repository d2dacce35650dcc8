"""pyarrow without pandas: what a process saves that only writes and reads tables.

pyarrow imports pandas, where it is installed, when it makes its first array out of Python objects, to recognise pandas'
own kinds of missing values. That takes half a second of processor time in each process (measured, pyarrow 26), and
there is no option. It asks once in a process: after one import that failed, it goes on without.
"""

from __future__ import annotations

import sys


def forgo_pandas() -> None:
    """Let pyarrow go on without pandas in this process. Call it before other threads are started.

    Nothing happens where pandas is loaded already. Whoever imports pandas afterwards gets it, and `Table.to_pandas`
    works; only `pa.array(…, from_pandas=True)` no longer takes pandas' missing values (`pd.NA`) for nulls.
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
    """A finder of modules that finds no pandas."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
