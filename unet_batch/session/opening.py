"""Opens the session of an engine by its name. Importing this module imports no engine's library."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import cast

from unet_batch.errors import ProviderMissing
from unet_batch.model.model import Model
from unet_batch.session.engines import Provider, check_file, check_model, find
from unet_batch.session.int8 import check_processor
from unet_batch.session.session import Device, Session
from unet_batch.spec import Engine, Precision, SessionSpec

log = logging.getLogger(__name__)


def open_session(
    data: bytes,
    model: Model,
    spec: SessionSpec,
    device: Device,
    *,
    engine: Engine = "onnxruntime",
    precision: Precision = "fp32",
) -> Session:
    """The session of the first provider in `spec.providers` that works.

    data: the bytes of the ONNX file, not a path, so that no other file is read. engine, precision: of the job's
    `model`. Raises ProviderMissing if no provider works, ContractError if the file cannot be opened or has another
    precision, JobError if engine, provider and precision do not match, OutOfMemory, SessionBroken.
    """
    check_file(data, precision, f"the model {model.sha256[:12]}")
    reasons: list[str] = []
    for name in spec.providers:
        row = find(engine, name)
        if precision not in row.precisions:
            reasons.append(f"{row.engine} on {row.name} does not compute in {precision}")
            continue
        check_model(row, model)
        try:
            if precision == "int8" and not row.gpu:
                check_processor(data, row.engine, f"the model {model.sha256[:12]}")
            session = _class_of(row)(data, model, spec, device=device, provider=row, precision=precision)
        except ProviderMissing as error:
            reasons.append(str(error))
            continue
        if reasons:
            log.warning("the session runs on %s, because %s", session.provider, "; ".join(reasons))
        return session
    raise ProviderMissing("; ".join(reasons))


def _class_of(row: Provider) -> Callable[..., Session]:
    module, _, name = row.session.partition(":")
    return cast("Callable[..., Session]", getattr(importlib.import_module(module), name))
