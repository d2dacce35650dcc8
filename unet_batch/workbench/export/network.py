"""Builds the user's network, runs it in PyTorch, and checks its results before the export.

A mask network must give the same result in every run and in every batch, and one output of the right shape.

Legend: N images, C channels, K classes, H, W pixels.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_batch.contract import ModelOutput
from unet_batch.errors import JobError, ModelRefused
from unet_batch.imaging.postprocess import PROBABILITY_SLACK
from unet_batch.model.tile_size import margin_of
from unet_batch.workbench.export.problems import brief, error_line, file_for_module, names_for, wanted_arguments
from unet_batch.workbench.export.sides import smallest_multiple

Array = npt.NDArray[Any]

REPEATABLE = 1e-4
"""Largest difference between two runs that counts as rounding: as a share of the largest value or, for label maps, of
the labels. Random results, and results that depend on the batch, differ a hundred times as much."""


@dataclass(frozen=True, slots=True)
class Examined:
    """The results of running a network."""

    multiple: int | None
    """Sides must be a multiple of this, plus the remainder of the given sides if there is a margin; None: it runs only
    at its own size."""
    ratio: float
    """Sides of the mask, as a share of the image's without the margin."""
    margin: int
    """Pixels of the image on each side that the mask does not cover (`output.margin`)."""
    scores_rank: int | None
    """Axes of the output of a classifier, 2 or 4; None for masks."""
    notes: tuple[str, ...]


def build(factory: str, args: Mapping[str, Any]) -> Any:
    """The module that `MODULE:FACTORY` returns, in evaluation mode, float32, on the CPU, without gradients.

    MODULE may also be in the current folder. Raises JobError if it cannot be imported or called, or returns something
    else.
    """
    module_name, colon, attribute = factory.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        raise JobError(file_for_module(module_name, attribute))
    if not (module_name and colon and attribute):
        raise JobError(f"{factory!r} is not of the form MODULE:FACTORY, such as mynets.unet:build")
    import torch

    with _current_folder_importable():
        try:
            make = getattr(importlib.import_module(module_name), attribute)
        except ImportError as error:
            raise JobError(f"{module_name} cannot be imported: {error}") from error
        except AttributeError as error:
            raise JobError(f"{module_name} has no {attribute}: {error}") from error
        except Exception as error:  # the user's code at import may raise anything
            raise JobError(f"{module_name} failed while it was imported: {brief(error)}") from error
        said = ", ".join(f"{name}={value!r}" for name, value in args.items())
        try:
            network = make(**args)
        except JobError:
            raise
        except Exception as error:  # and so may a factory
            raise JobError(f"{factory}({said}) failed: {brief(error)}{wanted_arguments(make, args)}") from error
    if not isinstance(network, torch.nn.Module):
        raise JobError(f"{factory}({said}) returned {type(network).__name__}, not a torch.nn.Module")
    try:
        return network.float().cpu().eval().requires_grad_(requires_grad=False)
    except Exception as error:  # lazy and quantised modules cannot be converted
        raise JobError(
            f"{factory}({said}) returned a network that cannot be float32 on the CPU: {brief(error)}"
        ) from error


def run(network: Any, images_nchw: Array) -> Array:
    """The network's output in PyTorch: float32 (N, K, h, w); label maps are (N, 1, h, w), scores (N, K, 1, 1)."""
    import torch

    with torch.no_grad():
        output = network(torch.from_numpy(images_nchw)).numpy()
    if output.ndim == 2:
        output = output[:, :, None, None]
    return np.ascontiguousarray(output if output.ndim == 4 else output[:, None], dtype=np.float32)


def runs(network: Any, images_nchw: Array) -> bool:
    """Whether the network runs on these images without an error."""
    try:
        run(network, images_nchw)
    except Exception:  # noqa: BLE001 - a network may raise anything
        return False
    return True


def examine(network: Any, images_nchw: Array, output: ModelOutput) -> Examined:
    """Run a network on two images, and on images of other sizes.

    Raises ModelRefused, with the first wrong module if known, if the network fails, stays in training mode, returns the
    wrong type or NaN, is random, depends on other images of the batch, or if its mask does not cover its image.
    """
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        raise ModelRefused(f"{training[0]} stays in training mode after eval(): does it override train()?")
    size = images_nchw.shape[2:]
    try:
        first = _tensor(network, images_nchw)
    except ModelRefused:
        raise
    except Exception as error:
        multiple = smallest_multiple(functools.partial(run, network), images_nchw, ratio=None)
        line = error_line(error)
        at = f" at {line}" if line else ""
        hint = f"; its sides must be multiples of {multiple}" if multiple not in (None, 1) else ""
        raise ModelRefused(
            f"the network fails on an image of {size[0]}x{size[1]}{at} ({brief(error)}){hint}"
        ) from error
    ratio, margin = _checked_ratio(first, images_nchw, output)
    _refuse_unsteady(network, images_nchw, output)
    scores = functools.partial(run, network)
    if _is_classifier(first, images_nchw):
        note = "the network is a classifier: it returns one score per class and image, and no mask"
        found = _looks_like_probabilities(run(network, images_nchw), output)
        return Examined(1, 1, 0, first.ndim, (note, *found))
    multiple = smallest_multiple(scores, images_nchw, ratio=ratio, margin=margin)
    cut = margin_of((size[0], size[1]), (first.shape[-2], first.shape[-1]))
    if multiple is None and not margin and cut:
        # 80 to 40 may be half of the size or a margin of 20: other sizes tell.
        multiple = smallest_multiple(scores, images_nchw, ratio=1, margin=cut)
        ratio, margin = (1, cut) if multiple else (ratio, margin)
    notes = [] if multiple else [f"the network runs at {size[0]}x{size[1]} only"]
    if margin:
        notes.append(f"the mask has a margin of {margin}: it does not cover that many pixels on each side of a tile")
    notes += _looks_like_probabilities(run(network, images_nchw), output)
    return Examined(multiple, ratio, margin, None, tuple(notes))


def with_one_output(network: Any, images_nchw: Array, wanted: str | None) -> Any:
    """The network, or a wrapper that returns one of its outputs.

    wanted: key of a dict, or position in a tuple or list; None: the only output. Raises ModelRefused if the choice is
    ambiguous, JobError if there is no such output.
    """
    import torch

    class OneOutput(torch.nn.Module):
        def __init__(self, key: Any) -> None:
            super().__init__()
            self.network = network
            self.key = key

        def forward(self, image: Any) -> Any:
            return self.network(image)[self.key]

    try:
        with torch.no_grad():
            found = network(torch.from_numpy(images_nchw))
    except Exception:  # noqa: BLE001 - `examine` runs it again and reports the error
        return network
    if isinstance(found, torch.Tensor):
        return network
    keys = (
        list(found)
        if isinstance(found, Mapping)
        else list(range(len(found)))
        if isinstance(found, tuple | list)
        else []
    )
    if not keys:
        raise ModelRefused(f"the network returns {type(found).__name__}, not a tensor")
    chosen = keys[0] if wanted is None and len(keys) == 1 else next((k for k in keys if str(k) == wanted), None)
    if chosen is None:
        names = ", ".join(str(key) for key in keys)
        if wanted is None:
            raise ModelRefused(f"the network returns {len(keys)} outputs ({names}): choose the mask with --output")
        raise JobError(f"the network has no output {wanted}; it has: {names}")
    return OneOutput(chosen).eval()


def first_difference(one: Mapping[str, Array], other: Mapping[str, Array], tolerance: float) -> str | None:
    """The first module whose outputs differ by more than a share of their largest value.

    Both: outputs by module path, in the order of completion.
    """
    for name, array in one.items():
        others = other.get(name)
        if others is not None and (array.shape != others.shape or share(array, others) > tolerance):
            return name
    return None


def share(reference: Array, other: Array) -> float:
    """Largest difference as a share of the reference's largest magnitude; infinite if NaN is on one side only."""
    if not reference.size:
        return 0.0
    reference, other = np.nan_to_num(reference.astype(np.float64), nan=np.inf), np.nan_to_num(other, nan=np.inf)
    with np.errstate(invalid="ignore"):
        error = np.where(reference == other, 0.0, np.abs(reference - other))
    peak = np.abs(reference).max(initial=0, where=np.isfinite(reference))
    return float(error.max() / max(peak, np.finfo(np.float32).tiny))


def outputs_by_module(network: Any, images_nchw: Array) -> dict[str, Array]:
    """The result of every module at its first call, in the order of completion: inner modules first."""
    import torch

    found: dict[str, Array] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and name not in found:
                found[name] = output.detach().clone().numpy()  # cloned: a later module may change it in place

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules()]
    try:
        with torch.no_grad():
            network(torch.from_numpy(images_nchw))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tensor(network: Any, images_nchw: Array) -> Any:
    import torch

    with torch.no_grad():
        output = network(torch.from_numpy(images_nchw))
    if not isinstance(output, torch.Tensor):
        raise ModelRefused(f"the network returns {type(output).__name__}, not a tensor")
    return output


def _is_classifier(found: Any, images_nchw: Array) -> bool:
    """Whether the output is (N, K), or (N, K, 1, 1) for larger images."""
    return found.ndim == 2 or (tuple(found.shape[2:]) == (1, 1) and max(images_nchw.shape[2:]) > 1)


def _checked_ratio(found: Any, images_nchw: Array, output: ModelOutput) -> tuple[float, int]:
    """Sides of the output as a share of the input's without its margin, and the margin."""
    shape, (batch, _, height, width) = tuple(found.shape), images_nchw.shape
    planes = 1 if output.activation == "labels" else len(output.classes)
    if output.activation == "labels" and len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    said = "x".join(map(str, found.shape))
    if len(shape) == 2:
        shape = (*shape, 1, 1)
    if len(shape) != 4 or shape[0] != batch:
        raise ModelRefused(f"the network returns {said} for a batch of {batch}, not (N, {planes}, H, W)")
    if shape[1] != planes:
        raise ModelRefused(
            f"the network returns {shape[1]} channel{'s' * (shape[1] != 1)} ({said}), but there are "
            f"{len(output.classes)} class name(s): {names_for(shape[1], output.classes)}"
        )
    ratio, margin = float(shape[2] / height), 0
    if not _is_classifier(found, images_nchw) and (
        shape[3] / width != ratio or not (ratio.is_integer() or (1 / ratio).is_integer())
    ):
        cut = margin_of((height, width), (shape[2], shape[3]))
        if cut is None:
            raise ModelRefused(
                f"the network returns a mask of {shape[2]}x{shape[3]} for an image of {height}x{width}, which does not "
                "cover it: pad its convolutions, or cut off the same even number of rows and columns"
            )
        ratio, margin = 1.0, cut
    if found.is_floating_point() and not found.isfinite().all():
        raise ModelRefused("the network returns NaN or infinity in PyTorch: check its weights")
    lowest, highest = float(found.min()), float(found.max())
    if output.activation in ("softmax", "sigmoid") and not (
        -PROBABILITY_SLACK <= lowest <= highest <= 1 + PROBABILITY_SLACK
    ):
        raise ModelRefused(
            f"the network returns values from {lowest:.3g} to {highest:.3g}, which are not probabilities: the "
            f"activation is logits, not {output.activation}"
        )
    return ratio, margin


def _refuse_unsteady(network: Any, images_nchw: Array, output: ModelOutput) -> None:
    def differ(one: Array, other: Array) -> bool:
        by = float((one != other).mean()) if output.activation == "labels" else share(one, other)
        return by > REPEATABLE

    one_image = images_nchw[:1]
    together = run(network, images_nchw)
    if differ(together, run(network, images_nchw)):
        once, again = (outputs_by_module(network, one_image) for _ in range(2))
        module = first_difference(once, again, REPEATABLE)
        raise ModelRefused(
            f"the network's result is random: {_named(module)} gives another output in every run (dropout "
            "called without training=self.training?)"
        )
    if differ(run(network, one_image), together[:1]):
        neighbours = {name: array[:1] for name, array in outputs_by_module(network, images_nchw).items()}
        module = first_difference(outputs_by_module(network, one_image), neighbours, REPEATABLE)
        raise ModelRefused(
            f"a mask depends on other images of the batch: {_named(module)} computes over the whole batch (a batch "
            "normalisation without running statistics, or a maximum of all images?)"
        )


def _named(module: str | None) -> str:
    return f"module {module}" if module else "the network itself"


def _looks_like_probabilities(found_nkhw: Array, output: ModelOutput) -> list[str]:
    if output.activation != "logits" or found_nkhw.min() < 0 or found_nkhw.max() > 1:
        return []
    kind = "softmax" if len(output.classes) > 1 and np.allclose(found_nkhw.sum(axis=1), 1, atol=1e-3) else "sigmoid"
    return [f"all values are in [0, 1]: if they are probabilities, the activation is {kind}"]


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
