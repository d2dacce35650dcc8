"""A model as an importer hands it on: networks, contract, settings of the job, and where each of them was read.

Knows no framework. `sources` lists the importers, `write` makes the ONNX file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unet_batch.contract import Contract
from unet_batch.workbench.export.weights import Weights
from unet_batch.workbench.importers.difference import Difference

if TYPE_CHECKING:
    import torch

Activation = Literal["logits", "softmax", "sigmoid", "labels"]
Color = Literal["gray", "rgb", "bgr", "bands"]
Fit = Literal["tile", "stretch", "letterbox", "pad", "none"]
How = Literal["read", "default", "guessed", "given"]
"""read in the source, a default of the framework, guessed by the importer, or given by the user."""

SIDE_PX = 128
"""Sides of the images that a file is verified with, where neither the source nor the user says a size."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user says about a source. None: not said; the source, the framework or a guess decides."""

    weights: Path | None = None
    """A file of weights to take instead of the one that the source names."""
    classes: tuple[str, ...] | None = None
    """Class names, by channel."""
    normalize: str | None = None
    """Normalisation of the training, in one of `export.forms.NORMALIZE_FORMS`."""
    color: Color | None = None
    """What the input channels mean."""
    fit: Fit | None = None
    """How an image gets the input's size."""
    activation: Activation | None = None
    """What the output values are."""
    input_chw: tuple[int, int, int] | None = None
    """Channels, height and width of the input, for sources that do not say them."""
    output: str | None = None
    """The output with the mask, if there are several: a dict's key, or a position in a tuple."""
    trusted: bool = False
    """Whether the user trusts the source enough to load formats that are programs."""
    allow_difference: bool = False
    """Whether a model may be imported whose masks cannot equal the framework's own."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One setting of the contract or the job, and where its value comes from."""

    field: str
    """Key in the contract or the job file, e.g. `input.normalize`."""
    value: str
    source: str
    """File and key, or the part of the framework, that holds the value."""
    how: How

    def to_json(self) -> dict[str, str]:
        """For `json.dumps`."""
        return {"field": self.field, "value": self.value, "source": self.source, "how": self.how}


@dataclass(frozen=True, slots=True)
class Imported:
    """A model that was read from another framework's files."""

    networks: tuple[torch.nn.Module, ...]
    """In evaluation mode, float32, on the CPU. Several are the folds of one model: their outputs are averaged in the
    graph, which is the mean of logits."""
    contract: Contract
    """Names of tensors are set by the export; `input.multiple` is the least that the framework demands."""
    origin: str
    """Framework and class of the network, for the file's metadata: no path of this machine."""
    job: Mapping[str, Any]
    """Settings of the job file that belong to the model, e.g. `{"tiling": {"overlap": 0.5}}`."""
    facts: tuple[Fact, ...]
    differences: tuple[Difference, ...] = ()
    """Why masks cannot equal the framework's own. Refused unless the user allows it."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, a sentence each."""
    weights: tuple[Weights, ...] = ()
    """The weights files, one for each network."""
    size_hw: tuple[int, int] = (SIDE_PX, SIDE_PX)
    """Height and width of the images that the file is verified with."""
    any_size: bool = True
    """Whether height and width of the graph are open, where the contract names none; the batch always is."""
    output: str | None = None
    """As in `Options`."""
