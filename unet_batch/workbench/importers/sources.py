"""The importers, one row each: how a source is recognised, and what reads it.

Adding one is a module with `recognises` and `read`, and its row here.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unet_batch.errors import JobError, ModelRefused
from unet_batch.workbench.importers import huggingface, nnunet, smp, torch_program
from unet_batch.workbench.importers.imported import Imported, Options
from unet_batch.workbench.importers.monai import bundle

LOG = logging.getLogger(__name__)
_HERE = Path(__file__).parent
_OF_VALUES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What Python raises for a value of the wrong kind. Memory, files and the packages' own errors are not among them."""


@dataclass(frozen=True, slots=True)
class Importer:
    """One kind of source."""

    name: str
    """As users write it."""
    looks_like: str
    """What a source of this kind holds, for messages."""
    recognises: Callable[[Path], bool]
    """Whether a folder or file is of this kind, from names and settings; loads no weights."""
    read: Callable[[Path, Options], Imported]
    """The model of a source. Raises JobError for missing options and packages, ModelRefused for the source itself."""


IMPORTERS = (
    Importer(
        "segmentation_models_pytorch",
        "a folder of save_pretrained, with config.json (_model_class) and model.safetensors",
        smp.recognises,
        smp.read,
    ),
    Importer(
        "monai",
        "a bundle of MONAI, with configs/inference.json and models/model.pt",
        bundle.recognises,
        bundle.read,
    ),
    Importer(
        "huggingface",
        "a folder of transformers' save_pretrained, with config.json (model_type) and model.safetensors",
        huggingface.recognises,
        huggingface.read,
    ),
    Importer(
        "torch_program",
        "a file of torch.export.save (.pt2) or of TorchScript",
        torch_program.recognises,
        torch_program.read,
    ),
    Importer(
        "nnunet",
        "a result folder of nnU-Net v2 for a 2d configuration, with plans.json, dataset.json and "
        "fold_*/checkpoint_final.pth",
        nnunet.recognises,
        nnunet.read,
    ),
)

_SHOWN = 4
"""Most folders in a message; the rest are counted."""
_MOST_LOOKED = 2000
"""Entries of a folder that are looked at for models inside."""


def importer_of(source: Path) -> Importer | None:
    """The importer of a source; None if no importer recognises it."""
    return next((row for row in IMPORTERS if row.recognises(source)), None)


def not_a_model(source: Path) -> str:
    """The sentence for a path that no importer recognises, with the models that lie inside."""
    inside = sorted(_models_inside(source))
    if inside:
        shown = ", ".join(map(str, inside[:_SHOWN])) + (
            f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
        )
        return f"{source} is no model itself, but holds some: write one of {shown}"
    kinds = "; ".join(f"{row.name}: {row.looks_like}" for row in IMPORTERS)
    return f"{source} is no model that can be imported. These are: {kinds}"


def _models_inside(source: Path) -> Iterator[Path]:
    """Folders of models up to two levels below, e.g. in nnU-Net's folder of results or of a data set."""
    if not source.is_dir():
        return
    looked = 0
    for pattern in ("*", "*/*"):
        for path in source.glob(pattern):
            looked += 1
            if looked > _MOST_LOOKED:
                return
            if path.is_dir() and importer_of(path) is not None:
                yield path


def read_source(source: Path, options: Options) -> tuple[Importer, Imported]:
    """The importer of a source, and what it read. Raises JobError if the path does not exist or is of no kind."""
    if not source.exists():
        raise JobError(f"there is no folder or file {source}: download a model of a hub to a folder first")
    row = importer_of(source)
    if row is None:
        raise ModelRefused(not_a_model(source))
    try:
        return row, row.read(source, options)
    except _OF_VALUES as error:
        LOG.debug("%s cannot be read", source, exc_info=True)
        raise ModelRefused(_damaged(source, row, error)) from error


def _damaged(source: Path, row: Importer, error: Exception) -> str:
    """The sentence for a value of the source that no check of its importer names: what was raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_HERE)] or frames
    said = " ".join(str(error).split())[:200]
    at = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}"
    return (
        f"{source} is damaged, or holds a setting of a kind that {row.name} does not write ({type(error).__name__}: "
        f"{said}; {at}). Compare its settings with a folder that can be imported; if they are right, report this text"
    )
