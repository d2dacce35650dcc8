"""How a person installs an extra of this package, for messages. No index has the package: its name is not enough."""

from __future__ import annotations


def command(extra: str) -> str:
    """The commands that install an extra, to follow "run"."""
    return f"`pip install -e '.[{extra}]'` in a checkout (from a wheel: `pip install 'FILE.whl[{extra}]'`)"
