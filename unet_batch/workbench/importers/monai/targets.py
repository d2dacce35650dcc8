"""Which code a MONAI bundle names: only classes of MONAI and of what it is built on are understood.

MONAI looks up a bare name (`UNet`) in its own modules, and imports any other name, also from the bundle's folder.
"""

from __future__ import annotations

import re

NETWORKS, TRANSFORMS, INFERERS = "monai.networks.nets", "monai.transforms", "monai.inferers"
ENGINES = "monai.engines"
"""Packages of MONAI that hold the classes of one kind."""
KNOWN = re.compile(r"\w+|(?:monai|torch|ignite)(?:\.\w+)+")
"""Names without modules, and those of MONAI, PyTorch and Ignite, which MONAI's engines and handlers are made of."""


def class_of(target: str, package: str) -> str | None:
    """The class that a `_target_` names, without its modules; None if it is none of the package's.

    A bare name counts as the package's: MONAI finds it there, or in another of its own modules.
    """
    found = re.fullmatch(rf"(?:{re.escape(package)}\.(?:\w+\.)*)?(\w+)", target)
    return None if found is None else found[1]
