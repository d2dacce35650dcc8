"""Reads single files that hold a whole network: programs of `torch.export` (.pt2) and TorchScript.

Both are programs. Loading one from somebody else may run code on this machine: where `torch.export.load` cannot read a
file as plain tensors, PyTorch reads it again as a pickle that may call anything. So the user must trust the file. It
does not say what its input and output mean: the user does.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any, Literal

from unet_batch.contract import Contract
from unet_batch.errors import JobError, ModelRefused
from unet_batch.strict import validate
from unet_batch.workbench.export.forms import NORMALIZE_FORMS
from unet_batch.workbench.export.graph import quiet
from unet_batch.workbench.export.weights import Weights
from unet_batch.workbench.importers.import_settings import ImportSettings
from unet_batch.workbench.importers.imported import Fact, Imported, Options

Kind = Literal["torch.export", "TorchScript", "compiled", "weights"]
SAME = 1e-4
"""Largest difference between a batch and its single images, as a share of the largest value: rounding of float32."""


def recognises(source: Path) -> bool:
    """Whether a file was written by PyTorch."""
    return _kind(source) is not None


def read(source: Path, options: Options) -> Imported:
    """The network of a file, with the meaning that the options give.

    Raises ModelRefused if the file is not trusted, holds no network, or takes only one batch; JobError for missing
    options.
    """
    kind = _kind(source)
    if kind == "weights":
        raise ModelRefused(
            f"{source} holds weights and no network: `unet-batch model export MODULE:FACTORY --weights {source}` "
            "takes them with the code of the network"
        )
    if kind == "compiled":
        raise ModelRefused(f"{source} is compiled for one machine (AOTInductor): save it with torch.export.save")
    if not options.trusted:
        raise ModelRefused(
            f"{source} is a program ({kind}), and loading one may run any code on this machine: give --trusted if you "
            "made the file, or trust who made it"
        )
    channels, height, width = _required(options, source)
    said = ImportSettings(options, source.name)
    normalize = said.normalize(None, channels, "")
    color = said.color(channels)
    fit = said.fit("tile")
    meaning = said.activation(None, said_by="")
    classes, background = said.classes(None, meaning, key="")
    network, open_hw = (
        _exported(source, (channels, height, width)) if kind == "torch.export" else (_script(source), True)
    )
    size = {"height": height, "width": width} if fit != "tile" or not open_hw else {}
    tree = {
        "input": {"color": color, "channels": channels, "fit": fit, "normalize": normalize.model_dump(), **size},
        "output": {"activation": meaning, "classes": list(classes), "background": background},
    }
    return Imported(
        networks=(network,),
        contract=validate(Contract, tree, "the contract of the imported model"),
        origin=f"a file of {kind}",
        job={},
        facts=(Fact("network", f"a program of {kind}", source.name, "read"), *said.facts),
        weights=(Weights(hashlib.sha256(source.read_bytes()).hexdigest(), ()),),
        size_hw=(height, width),
        any_size=open_hw,
        output=options.output,
    )


def _kind(source: Path) -> Kind | None:
    """What a file holds, from the names in its archive; nothing is loaded."""
    if not source.is_file() or not zipfile.is_zipfile(source):
        return None
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return None
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("data/aotinductor/") for name in inner):
        return "compiled"
    if any(name.startswith("models/") for name in inner) or "serialized_exported_program.json" in names:
        return "torch.export"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "TorchScript"
    return "weights" if "data.pkl" in inner else None


def _required(options: Options, source: Path) -> tuple[int, int, int]:
    """The input's size. Raises JobError that names every option that is missing."""
    wanted = {
        "--input CxHxW": options.input_chw,
        f"--normalize ({NORMALIZE_FORMS})": options.normalize,
        "--classes": options.classes,
        "--activation": options.activation,
    }
    missing = [name for name, value in wanted.items() if value is None]
    if missing or options.input_chw is None:
        raise JobError(f"{source} does not say what its input and output mean: give {', '.join(missing)}")
    if options.weights is not None:
        raise JobError(f"{source} holds its own weights: leave --weights out")
    return options.input_chw


def _script(source: Path) -> Any:
    import torch

    try:
        with quiet():
            network = torch.jit.load(str(source), map_location="cpu").eval()
    except Exception as error:  # a damaged file may raise anything
        raise ModelRefused(f"{source} cannot be loaded as TorchScript: {_line(error)}") from error
    return network.float()


def _exported(source: Path, input_chw: tuple[int, int, int]) -> tuple[Any, bool]:
    """The network of a program, and whether height and width are open."""
    import torch

    class Program(torch.nn.Module):
        def __init__(self, unflattened: Any) -> None:
            super().__init__()
            self.program = unflattened

        def forward(self, image: Any) -> Any:
            return self.program(image)

    try:
        with quiet():
            program = torch.export.load(str(source))
            network = Program(torch.export.unflatten(program))
    except Exception as error:  # a damaged file, or one of another version, may raise anything
        raise ModelRefused(f"{source} cannot be loaded with torch.export: {_line(error)}") from error
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), torch.Tensor):
        raise ModelRefused(f"{source} takes {len(inputs)} inputs: export a program that takes one tensor of images")
    image = inputs[0].meta["val"]
    if image.dtype is not torch.float32 or image.ndim != 4:
        raise ModelRefused(
            f"{source} takes {image.dtype} of {image.ndim} axes, not torch.float32 of 4 (N, C, H, W): export it so"
        )
    fixed = [side if isinstance(side, int) else None for side in image.shape]
    if any(side not in (None, given) for side, given in zip(fixed[1:], input_chw, strict=True)):
        takes = "x".join("any" if side is None else str(side) for side in fixed[1:])
        raise JobError(f"{source} takes {takes}, but --input says {'x'.join(map(str, input_chw))}")
    for module in network.modules():
        module.training = False  # eval() is not possible; the program is in the mode that it was exported in
    network.requires_grad_(requires_grad=False)
    network.program.check_input_constraints = False  # `_refuse_one_batch` and the export's trials decide
    if fixed[0] is not None:
        _refuse_one_batch(network, source, fixed[0], input_chw)
    return network, fixed[2] is None and fixed[3] is None


def _refuse_one_batch(network: Any, source: Path, batch: int, input_chw: tuple[int, int, int]) -> None:
    """Refuse a program of a fixed batch unless it gives the same for other ones."""
    import torch

    images = torch.randn(max(2, batch), *input_chw, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            exported = _tensors(network(images[:batch]))
            together = _tensors(network(images))
            singles = [_tensors(network(images[n : n + 1])) for n in range(len(images))]
        apart = [torch.cat(parts) for parts in zip(*singles, strict=True)]
        alike = all(map(_alike, together, apart)) and all(
            _alike(whole[:batch], part) for whole, part in zip(together, exported, strict=True)
        )
    except Exception:  # noqa: BLE001 - at another batch, a program may raise anything
        alike = False
    if not alike:
        raise ModelRefused(
            f"{source} takes batches of {batch} only: export it with an open batch, such as "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
        )


def _alike(one: Any, other: Any) -> bool:
    limit = SAME * max(1.0, float(one.abs().max()))
    return one.shape == other.shape and float((one - other).abs().max()) <= limit


def _tensors(output: Any) -> list[Any]:
    if isinstance(output, dict):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else [output]


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
