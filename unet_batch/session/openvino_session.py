"""OpenVINO sessions on the CPU, in the requested arithmetic.

The only module that uses OpenVINO. Importing it does not import OpenVINO.

The caller must check the file first (`engines.check_file`): OpenVINO reads external weights from files below the
working directory, even if the model is passed as bytes.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np

from unet_batch.errors import ContractError, OutOfMemory, ProviderMissing, ShapeMismatch, UnetBatchError
from unet_batch.model.model import Model
from unet_batch.model.packed import FINITE
from unet_batch.session.engines import Provider
from unet_batch.session.failures import cannot_run, no_memory
from unet_batch.session.machine import processor_name
from unet_batch.session.session import (
    Array,
    Device,
    as_nkhw,
    batch_name,
    check_tiles,
    in_model_layout,
    mask_nonfinite_tiles,
)
from unet_batch.spec import Precision, SessionSpec

log = logging.getLogger(__name__)

KEPT_SHAPES = 4
"""Compiled batch shapes that are kept: on a CPU the ladder of one tile size is 1, 2, 4, 8."""

Shape = tuple[int, int, int]
"""Tiles, rows and columns of a batch."""


class OpenVinoSession:
    """A session of OpenVINO: the model is compiled for each shape of a batch.

    An open batch axis is 25 % slower (measured), and fixed shapes show errors before a run.
    """

    def __init__(
        self,
        data: bytes,
        model: Model,
        spec: SessionSpec,  # noqa: ARG002 - all engines have the same constructor
        *,
        device: Device,
        provider: Provider,
        precision: Precision,
    ) -> None:
        """Raises ProviderMissing, ContractError, OutOfMemory."""
        try:
            from openvino import Core
        except ImportError as error:
            raise ProviderMissing(f"OpenVINO cannot be imported ({error}); {provider.needs}") from error
        self.model = model
        self.provider: str = provider.label
        self.device_name = processor_name()
        self._core = Core()
        self._properties = properties(device, precision)
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ProviderMissing(f"{self.device_name} has no bf16 instructions: write model.precision: fp32")
        self._guarded = False
        self._graph = self._read(data)
        self._requests: dict[Shape, Any] = {}
        self._running = threading.Lock()  # there is one stream: parallel requests would wait in OpenVINO
        if model.tile_hw is not None:
            try:
                self._request((model.batch or 1, *model.tile_hw))
            except ShapeMismatch as error:
                raise ContractError(str(error)) from error

    def run(self, tiles: Array) -> Array:
        check_tiles(self.model, tiles)
        shape: Shape = tiles.shape[:3]
        pixels = in_model_layout(self.model, tiles)
        with self._running:
            try:
                request = self._request(shape)
                # Not `infer`: with one thread it ignores errors and returns the tensors of an earlier batch.
                request.start_async({0: pixels}, share_inputs=True)
                request.wait()
                output = request.get_tensor(self.model.output_name) if self._guarded else request.get_output_tensor(0)
                result = as_nkhw(self.model, np.array(output.data), len(tiles))
                return mask_nonfinite_tiles(result, request.get_tensor(FINITE).data) if self._guarded else result
            except Exception as error:  # OpenVINO raises RuntimeError for everything
                # Free the memory of the failed batch shape for smaller batches.
                self._requests.pop(shape, None)
                if isinstance(error, UnetBatchError):
                    raise
                raise cannot_run(error, batch_name(tiles)) from error

    def _read(self, data: bytes) -> Any:
        """The model in OpenVINO with its output, and with `finite` if it is packed. Raises ContractError."""
        wanted = {self.model.output_name, *([FINITE] if self.model.contract.output.decided else [])}
        try:
            graph = self._core.read_model(data)
            for result in graph.get_results():
                if not wanted & result.output(0).get_names():
                    graph.remove_result(result)
            graph.input(self.model.input_name), graph.output(self.model.output_name)
            self._guarded = len(graph.outputs) == 2
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise _unopened(error) from error
        return graph

    def _request(self, shape: Shape) -> Any:
        """An infer request for a batch shape, compiled on first use. Raises ShapeMismatch, ContractError."""
        request = self._requests.pop(shape, None) or self._compiled(shape).create_infer_request()
        self._requests[shape] = request  # the newest is last
        while len(self._requests) > KEPT_SHAPES:
            self._requests.pop(next(iter(self._requests)))
        return request

    def _compiled(self, shape: Shape) -> Any:
        """The model for batches of one shape."""
        from openvino import PartialShape

        tiles, height, width = shape
        channels, layout = self.model.contract.input.channels, self.model.contract.input.layout
        axes = (channels, height, width) if layout == "nchw" else (height, width, channels)
        try:
            self._graph.reshape({self.model.input_name: PartialShape([tiles, *axes])})
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise ShapeMismatch(
                f"the model does not accept tiles of {height}x{width}; check input.multiple and the contract's sizes: "
                f"{_line(error)}"
            ) from error
        try:
            compiled = self._core.compile_model(self._graph, "CPU", self._properties)
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise _unopened(error, f" for a batch of {tiles} tiles of {height}x{width}") from error
        wanted = self._properties["INFERENCE_PRECISION_HINT"]
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != wanted:
            raise ProviderMissing(f"OpenVINO was requested to compute in {wanted}, but chose {got}")
        return compiled


def properties(device: Device, precision: Precision) -> dict[str, str | int | bool]:
    """OpenVINO's settings; all settings that change results or use other actors' cores are set explicitly.

    fp16 and int8 files declare which operators use fewer bits; the other operators are fp32.
    """
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",  # the default is bf16 if supported
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # the default quantises activations to int8 for compressed weights
        "INFERENCE_NUM_THREADS": device.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # actors share the cores that the scheduler gives them
    }


def _unopened(error: Exception, why: str = "") -> UnetBatchError:
    if no_memory(error):
        return OutOfMemory(f"the model does not fit into memory{why}: {_line(error)}")
    return ContractError(f"the model cannot be opened in OpenVINO{why}: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
