"""Captures TorchScript as an ONNX graph, with PyTorch's older exporter: the newer one does not take TorchScript."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from unet_batch.errors import JobError, ModelRefused, UnetBatchError
from unet_batch.model.graph import opsets, refusals
from unet_batch.session.plain_session import PlainSession
from unet_batch.workbench.export.graph import AXES, INPUT_NAME, Captured, name_axes, quiet
from unet_batch.workbench.export.problems import brief

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]

OPSETS = range(16, 21)
"""Versions that the older exporter writes."""


def has_script(network: Any) -> bool:
    """Whether a module is TorchScript, or holds a part that is."""
    import torch

    return any(isinstance(module, torch.jit.ScriptModule) for module in network.modules())


def capture_script(
    network: Any, images_nchw: Array, *, any_size: bool, same_size: bool, opset: int, output_name: str
) -> Captured:
    """A network with TorchScript as an ONNX graph; arguments as in `graph.capture`.

    Raises JobError for an opset outside OPSETS, ModelRefused if it cannot be converted.
    """
    import onnx
    import torch

    if opset not in OPSETS:
        raise JobError(
            f"opset {opset} is not possible for TorchScript: write one of {OPSETS.start} to {OPSETS.stop - 1}"
        )
    axes = {number: name for number, name in AXES.items() if name == "batch" or any_size}
    file = io.BytesIO()
    example = torch.from_numpy(images_nchw)
    try:
        with quiet():
            if not isinstance(network, torch.jit.ScriptModule):  # a part stays as it is, branches included
                network = torch.jit.trace(network, example, check_trace=False, strict=False)
            network = _frozen(network)
            torch.onnx.export(
                network,
                (example,),
                file,
                dynamo=False,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[output_name],
                dynamic_axes={INPUT_NAME: axes, output_name: dict(axes)},
            )
    except Exception as error:  # the exporter may raise anything
        raise ModelRefused(f"PyTorch cannot convert this TorchScript to ONNX: {brief(error)}") from error
    model: ModelProto = onnx.load_from_string(file.getvalue())
    if opsets(model).get("") != opset:
        raise ModelRefused(f"the graph could not be converted to opset {opset}, and has {opsets(model).get('')}")
    if found := refusals(model):
        raise ModelRefused(f"the exported graph would be refused later: {'; '.join(found)}")
    try:
        PlainSession(file.getvalue())
    except UnetBatchError as error:
        raise ModelRefused(
            f"PyTorch wrote a graph that cannot be opened ({error}): save the network with torch.export.save instead"
        ) from error
    name_axes(model, any_size=any_size, same_size=same_size)
    return Captured(model, None, ("TorchScript was converted with torch.onnx.export(dynamo=False)",))


def _frozen(network: Any) -> Any:
    """A script with its weights as constants: the exporter writes wrong lists of sizes for scripts that are not."""
    import torch

    try:
        return torch.jit.freeze(network)
    except Exception:  # noqa: BLE001 - one that is frozen already is refused with several errors
        return network
