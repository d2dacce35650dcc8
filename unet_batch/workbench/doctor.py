"""Which engines and providers run on this machine, and the machine's resources for them.

Each provider is opened and scores a tile; lists of compiled-in providers are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet_batch.contract import Contract, ModelInput, ModelOutput
from unet_batch.errors import UnetBatchError
from unet_batch.job.cores import cores
from unet_batch.model.contract import resolve
from unet_batch.planning.groups import memory_bytes
from unet_batch.session.engines import TABLE, Provider, find
from unet_batch.session.machine import DOT_PRODUCTS, instructions, processor_name
from unet_batch.session.model_files import read_model
from unet_batch.session.onnxruntime_session import check_installation
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import Precision, SessionSpec, TilingSpec

SIDE = 16
"""Side of the test tile, in pixels."""
TOLERANCE = 0.02
"""Largest error of a result: bf16 has 8 bits, and the model is one multiplication."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Whether one provider, or one requirement of a job, works here."""

    subject: str
    """`onnxruntime cpu`, `openvino cpu in bf16`, `installation` …"""
    runs: bool
    reason: str
    """What ran, or one sentence on why it does not run and what to do."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources of this machine for sessions on the CPU."""

    processor: str
    cores: int
    """Cores that this process may use: its affinity, not the host's number."""
    memory_bytes: int | None
    """Memory of the machine or container; None if unknown."""
    int8: bool
    """AMX, AVX512-VNNI or AVX-VNNI: quantised models are faster. Otherwise 8-bit products may saturate and are slower.
    """
    bf16: bool
    """AVX512-BF16 or AMX: bf16 is faster."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(providers: Sequence[str] = ()) -> list[CheckResult]:
    """Try every row of the table on this machine, and check the installation of ONNX Runtime.

    Tried in fp32, and if that runs, in tf32 and bf16; fp16 and int8 need other files but no other libraries.
    providers: names of more ONNX Runtime providers to try. Opening TensorRT builds an engine, which takes seconds.
    """
    findings = [_installation()]
    for row in (*TABLE, *(find("onnxruntime", name) for name in providers)):
        exact = _tried(row, "fp32")
        findings.append(exact)
        findings += [_tried(row, p) for p in ("tf32", "bf16") if exact.runs and p in row.precisions]
    return findings


def runs_on(provider: str) -> bool:
    """Whether ONNX Runtime scores a tile in fp32 on a provider of this machine."""
    return _tried(find("onnxruntime", provider), "fp32").runs


def machine(cpuinfo: Path | None = None) -> Machine:
    """This machine. cpuinfo: Linux's list of processors; without it, no instructions are reported."""
    flags = instructions(cpuinfo)
    return Machine(
        processor=processor_name(),
        cores=cores(),
        memory_bytes=memory_bytes(),
        int8=bool(flags.intersection(DOT_PRODUCTS)),
        bf16=bool(flags & {"avx512_bf16", "amx_bf16"}),
    )


def _installation() -> CheckResult:
    try:
        check_installation()
    except UnetBatchError as error:
        return CheckResult("installation", False, str(error))
    return CheckResult("installation", True, "one distribution owns ONNX Runtime")


def _tried(row: Provider, precision: Precision) -> CheckResult:
    """Open a model of one convolution, x · 2 + 1, and score a tile."""
    subject = f"{row.engine} {row.name}" + ("" if precision == "fp32" else f" in {precision}")
    try:
        file = read_model(_one_convolution(), "the trial model", None)
        model = resolve(_contract(), file, TilingSpec())
        spec = SessionSpec(providers=(row.name,))
        session = open_session(file.data, model, spec, Device(threads=1), engine=row.engine, precision=precision)
        found = session.run(np.full((1, SIDE, SIDE, 1), 0.5, np.float32))
    except UnetBatchError as error:
        return CheckResult(subject, False, str(error))
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything; that is the result
        return CheckResult(subject, False, f"{type(error).__name__}: {error}")
    wrong = float(np.abs(found - 2.0).max())
    if not wrong <= TOLERANCE:  # a NaN is wrong too
        text = f"it runs on {session.device_name}, but its results are wrong by {wrong:.3g}: do not use it"
        return CheckResult(subject, False, text)
    return CheckResult(subject, True, f"a tile was scored on {session.device_name}")


def _contract() -> Contract:
    return Contract(
        input=ModelInput(color="gray", channels=1, height=SIDE, width=SIDE), output=ModelOutput(classes=("twice",))
    )


def _one_convolution() -> bytes:
    """An ONNX file with one convolution."""
    from onnx import TensorProto, helper

    shape: list[str | int | None] = ["batch", 1, SIDE, SIDE]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["mask"], kernel_shape=[1, 1])],
        "trial",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor("weight", TensorProto.FLOAT, [1, 1, 1, 1], [2.0]),
            helper.make_tensor("bias", TensorProto.FLOAT, [1], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
