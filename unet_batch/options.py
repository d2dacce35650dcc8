"""Options of stores, as a job file writes them: plain values, and secrets by the name of their variable."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from unet_batch.contract import Section
from unet_batch.errors import JobError
from unet_batch.strict import SECRET_NAME

_SECRET_IN_URL = re.compile(r"://[^/\s]*@|[?&][^=&\s]*(sig|token|secret|credential|key)[^=&\s]*=", re.IGNORECASE)

LEFT_FIRST = Field(union_mode="left_to_right")  # a mapping with the one key `env` is a reference, not a mapping


class EnvRef(Section):
    """A value that lives in an environment variable: `{env: NAME}`."""

    env: str
    """Name of the variable; its value is read where it is used and never printed."""


Option = str | bool | int | float | EnvRef
Options = dict[str, Annotated[Option | dict[str, Annotated[Option, LEFT_FIRST]], LEFT_FIRST]]
"""Options of the fsspec file system, e.g. `endpoint_url`, `anon`, `key: {env: NAME}`."""


def resolve_options(options: Options) -> dict[str, Any]:
    """Store options with their environment variables read. Raises JobError where a variable is not set."""

    def value(v: Any) -> Any:
        if isinstance(v, EnvRef):
            if v.env not in os.environ:
                raise JobError(f"the environment variable {v.env}, which the job file refers to, is not set here")
            return os.environ[v.env]
        return {k: value(x) for k, x in v.items()} if isinstance(v, dict) else v

    return {k: value(v) for k, v in options.items()}


def refuse_literal_secrets(where: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError where a value looks like a secret that is written out. where: the options' name in the job."""
    for key, value in options.items():
        if isinstance(value, dict):
            refuse_literal_secrets(f"{where}.{key}", value)
        elif isinstance(value, str) and (SECRET_NAME.search(key) or _SECRET_IN_URL.search(value)):
            raise ValueError(f"{where}.{key} looks like a secret: write {key}: {{env: NAME}} and set the variable")
