"""A pytest plugin: files that take longest run first, and what pytest has collected is remembered.

With `--dist loadfile --no-loadscope-reorder` files go to the workers in this order. A long file at the end would keep
one worker busy while the others have nothing left.
"""

from __future__ import annotations

import pytest

LONGEST = (
    "tests/model/test_real_models.py",
    "tests/docs/test_tutorial.py",
    "tests/workbench/test_export.py",
    "tests/faults/test_on_workers.py",
    "tests/cli/test_demo.py",
    "tests/workbench/test_pack.py",
    "tests/faults/test_on_the_wire.py",
    "tests/docs/test_how_to.py",
    "tests/job/test_process_executor.py",
    "tests/job/test_stopping.py",
)
"""Files of about a minute and more; only the order depends on this list."""
COLLECTED = pytest.StashKey[set[tuple[str, str]]]()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Remember file and name of every test, without its parameters, also if a marker deselects it."""
    name = item.nodeid.partition("[")[0].split("::")
    item.config.stash.setdefault(COLLECTED, set()).add((name[0], name[-1]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file; the order inside a file stays."""
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
