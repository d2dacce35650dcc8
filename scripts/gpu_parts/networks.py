"""The networks under test as files, made once in the results' folder: fp32, fp16, and both with labels in the graph.

The main network is the U-Net of `unet_batch.architectures`, exported with PyTorch; where that cannot be, or is not
asked for, the U-Net of the tests, which needs only `onnx`. Its weights are random, so its labels mean nothing, but they
must agree.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_parts.results import Skipped
from gpu_parts.settings import Settings
from numpy.typing import NDArray
from PIL import Image

from unet_batch.contract import Divide
from unet_batch.gate.parity import Tolerance
from unet_batch.model.contract import METADATA_KEY, find_contract, resolve
from unet_batch.model.model import Model
from unet_batch.session.engines import Provider, find
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import Precision, SessionSpec, TilingSpec
from unet_batch.workbench.export.contract import contract_text
from unet_batch.workbench.graph_edit import set_metadata
from unet_batch.workbench.packing.pack import PackSpec, pack
from unet_batch.workbench.quantize import QuantizeSpec, quantize

ANY = Tolerance(max_flipped=1.0, min_dice=0.0)
"""For files that are made to be measured: the section `parity` says how far they agree."""
CLASSES = ("background", "one", "two")
SEED = 0


@dataclass(frozen=True, slots=True)
class Network:
    """A model file."""

    name: str
    data: bytes
    model: Model
    precision: Precision

    @property
    def packed(self) -> bool:
        """Whether source pixels go in and labels come out."""
        return self.model.contract.output.decided

    def in_precision(self, precision: Precision) -> Network:
        """The same file in another arithmetic, such as tf32."""
        return Network(self.name, self.data, self.model, precision)


def network(name: str, data: bytes, precision: Precision = "fp32") -> Network:
    """The network of an ONNX file whose contract is inside."""
    file = read_model(data, f"{name}.onnx", None)
    return Network(name, data, resolve(find_contract(file, None, name), file, TilingSpec()), precision)


def main_network(settings: Settings) -> Network:
    """The U-Net that all sections share."""
    return network("unet", _cached(settings, "unet", lambda: _unet(settings)))


def half(settings: Settings) -> Network:
    """The main network in fp16."""
    whole = main_network(settings)
    tiles = [pixels.astype(np.float32) / 255 for pixels in pictures(3, settings.size)]
    asked = QuantizeSpec(kind="fp16", tolerance=ANY)
    made = _cached(settings, "unet_fp16", lambda: quantize(whole.data, whole.model, tiles, asked).data)
    return network("unet_fp16", made, "fp16")


def in_precision(settings: Settings, precision: Precision) -> Network:
    """The main network as a file for this precision."""
    return half(settings) if precision == "fp16" else main_network(settings).in_precision(precision)


def packed(settings: Settings, precision: Precision) -> Network:
    """The same with pixels in and labels out."""
    bare = in_precision(settings, precision)
    name = f"{bare.name}_packed"
    return network(name, _cached(settings, name, lambda: pack(bare.data, bare.model, PackSpec()).data), precision)


def exported(settings: Settings, architecture: str) -> Network:
    """A network of `unet_batch.architectures`, exported. Raises Skipped where PyTorch lacks."""
    return network(architecture, _cached(settings, architecture, lambda: _export(settings, architecture)))


def of_file(path: Path) -> Network:
    """The network of a file, with the contract inside or beside it."""
    beside = path.with_suffix(".yaml")
    data = path.read_bytes()
    file = read_model(data, str(path), None)
    contract = find_contract(file, beside.read_bytes() if beside.is_file() else None, str(beside))
    return Network(path.stem, data, resolve(contract, file, TilingSpec()), "fp32")


def row_of(settings: Settings) -> Provider:
    """The provider under test."""
    return find("onnxruntime", settings.provider)


def opened(settings: Settings, net: Network, **fields: Any) -> Session:
    """The product's own session of a network, on the provider under test.

    fields: of the job's section `session`.
    """
    spec = SessionSpec.model_validate({"providers": (settings.provider,), **fields})
    return open_session(net.data, net.model, spec, Device(threads=1), precision=net.precision)


def on_cpu(net: Network) -> Session:
    """The reference: the file in fp32 on one thread of the CPU."""
    return open_session(net.data, net.model, SessionSpec(), Device(threads=1))


def tiles_for(net: Network, count: int, side: int) -> NDArray[Any]:
    """Tiles (N, H, W, C) as this network takes them. side: of a model that takes any size."""
    spec = net.model.contract.input
    height, width = net.model.tile_hw or (side, side)
    drawn = np.stack(list(pictures(count, max(height, width))))[:, :height, :width]
    drawn = np.resize(drawn.transpose(3, 0, 1, 2), (spec.channels, count, height, width)).transpose(1, 2, 3, 0)
    if spec.dtype == "uint16":
        return np.ascontiguousarray(drawn).astype(np.uint16) * 257
    return np.ascontiguousarray(drawn) if spec.dtype == "uint8" else np.ascontiguousarray(drawn, spec.dtype) / 255


def pictures(count: int, side: int, seed: int = SEED) -> Iterator[NDArray[np.uint8]]:
    """RGB pictures (side, side, 3) with structure of several sizes and a little noise, unlike each other."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        picture = np.zeros((side, side, 3), np.float32)
        for cells in (4, 16, 64):
            coarse = Image.fromarray(random.integers(0, 256, (cells, cells, 3), np.uint8))
            picture += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        noisy = picture / 3 + random.normal(0, 4, picture.shape)
        yield noisy.clip(0, 255).astype(np.uint8)


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """The picture as a JPEG of quality 90."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=90)
    return out.getvalue()


def torch_unet(settings: Settings, architecture: str = "unet") -> Any:
    """The main network as a PyTorch module, with the weights of its file. Raises Skipped without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        raise Skipped("PyTorch is not installed here")
    import torch

    from unet_batch import architectures

    torch.manual_seed(SEED)
    if architecture == "unet_bilinear":
        made = architectures.unet(3, len(CLASSES), base=settings.base, up="bilinear")
    else:
        made = getattr(architectures, architecture)(3, len(CLASSES), base=settings.base)
    return made.eval()


def from_pytorch(settings: Settings) -> str | None:
    """Why the main network is not PyTorch's; None if it is."""
    return can_export() if "unet" in settings.architectures else "--architectures does not name unet"


def can_export() -> str | None:
    """Why nothing can be exported here; None if it can."""
    missing = [name for name in ("torch", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} missing here" if missing else None


def _unet(settings: Settings) -> bytes:
    if from_pytorch(settings) is None:
        return _export(settings, "unet")
    from models import unet_model  # the builders are the tests' own

    tiny = unet_model(settings.size, settings.base)
    return _with_contract(tiny.data, tiny.contract)


def _export(settings: Settings, architecture: str) -> bytes:
    if (why := can_export()) is not None:
        raise Skipped(f"it cannot be exported: {why}")
    from unet_batch.workbench.export.export import ExportSpec, export

    spec = ExportSpec(
        factory=f"unet_batch.architectures:{architecture}",
        out=settings.out / "models" / f"{architecture}.onnx",
        input_chw=(3, settings.size, settings.size),
        classes=CLASSES,
        activation="logits",
        normalize=Divide(),
        color="rgb",
        fit="stretch",
    )
    return export(spec, torch_unet(settings, architecture)).path.read_bytes()


def _with_contract(data: bytes, contract: Any) -> bytes:
    import onnx

    described = onnx.load_from_string(data)
    stretched = contract.model_copy(update={"input": contract.input.model_copy(update={"fit": "stretch"})})
    set_metadata(described, {METADATA_KEY: contract_text(stretched)})
    return bytes(described.SerializeToString())


def _cached(settings: Settings, name: str, make: Any) -> bytes:
    """The bytes of a file in the results' folder, made at the first call; one process makes files at a time."""
    path = settings.out / "models" / f"{name}-{settings.size}-{settings.base}.bin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make()
        scratch = path.with_suffix(".part")
        scratch.write_bytes(made)
        scratch.replace(path)
    return path.read_bytes()
