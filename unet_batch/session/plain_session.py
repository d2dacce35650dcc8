"""Runs an ONNX file on the CPU: named tensors in, named tensors out.

Used as a reference and for measurements: no contract, no tiles, one provider, any number of outputs. ONNX Runtime is
imported when a session is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from unet_batch.session.failures import cannot_open, cannot_run
from unet_batch.session.machine import report_nothing

Array = npt.NDArray[Any]


class PlainSession:
    """One model on the CPU provider. Opened from bytes, so ONNX Runtime refuses references to other files."""

    def __init__(self, data: bytes, *, optimise: bool = True, threads: int = 1) -> None:
        """Raises ContractError if the bytes cannot be opened, OutOfMemory if they do not fit."""
        report_nothing()
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # errors are raised
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._ort = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors share no class below Exception
            raise cannot_open(error, "cpu") from error

    def run(self, feed: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs with these names; None: all. Raises ModelFailed, OutOfMemory or ShapeMismatch."""
        wanted = [value.name for value in self._ort.get_outputs()] if names is None else list(names)
        try:
            return dict(zip(wanted, self._ort.run(wanted, dict(feed)), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no class below Exception
            what = ", ".join(f"{name} {array.dtype} of {array.shape}" for name, array in feed.items())
            raise cannot_run(error, what) from error

    def placement(self) -> dict[str, Counter[str]]:
        """Execution provider → number of nodes of each operator that it runs."""
        found: dict[str, Counter[str]] = {}
        for graph in self._ort.get_provider_graph_assignment_info():
            found.setdefault(graph.ep_name, Counter()).update(node.op_type for node in graph.get_nodes())
        return found
