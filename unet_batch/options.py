"""Options of stores in a job file: plain values, and secrets by the name of an environment variable."""

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

LEFT_FIRST = Field(union_mode="left_to_right")  # a mapping with the single key `env` becomes an EnvRef


class EnvRef(Section):
    """A value from an environment variable: `{env: NAME}`."""

    env: str
    """Name of the variable. Its value is read on use and never printed."""


Option = str | bool | int | float | EnvRef
Options = dict[str, Annotated[Option | dict[str, Annotated[Option, LEFT_FIRST]], LEFT_FIRST]]
"""Options of the fsspec file system, e.g. `endpoint_url`, `anon`, `key: {env: NAME}`."""


def resolve_options(options: Options) -> dict[str, Any]:
    """Store options with the values of their environment variables. Raises JobError if a variable is not set."""

    def value(v: Any) -> Any:
        if isinstance(v, EnvRef):
            if v.env not in os.environ:
                raise JobError(f"the environment variable {v.env}, which the job file refers to, is not set here")
            return os.environ[v.env]
        return {k: value(x) for k, x in v.items()} if isinstance(v, dict) else v

    return {k: value(v) for k, v in options.items()}


def refuse_literal_secrets(where: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if a value looks like a literal secret. where: the name of the options in the job."""
    for key, value in options.items():
        if isinstance(value, dict):
            refuse_literal_secrets(f"{where}.{key}", value)
        elif isinstance(value, str) and (SECRET_NAME.search(key) or _SECRET_IN_URL.search(value)):
            raise ValueError(f"{where}.{key} looks like a secret: write {key}: {{env: NAME}} and set the variable")
