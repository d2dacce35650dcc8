"""Damaged settings: each importer names what is wrong, by one of this package's own errors, for values of every kind.

A sample of mutations with a fixed seed. The importers are called without `read_source`, which would turn what they do
not name into a general sentence.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unet_batch.errors import UnetBatchError
from unet_batch.workbench.importers.folder import package
from unet_batch.workbench.importers.imported import Options
from unet_batch.workbench.importers.sources import importer_of

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

VALUES = (None, -1, "x", [], {}, [[1]], 0.5, True, ["x", None], {"a": {"b": []}})
SEED = 11
Made = tuple[Path, tuple[str, ...], int]
"""A folder, its files of settings, and how many mutations are tried."""


def monai_bundle(folder: Path) -> Made:
    pytest.importorskip("monai")
    from test_import_monai import CONFIG, bundle_in, network

    torch.save(network().state_dict(), folder / "model.pt")
    return bundle_in(folder / "bundle", CONFIG, folder / "model.pt"), ("configs/inference.json",), 60


def nnunet_folder(folder: Path) -> Made:
    pytest.importorskip("dynamic_network_architectures")
    from nnunet_folder import write_folder

    return write_folder(folder / "nnunet", folds=("0",)), ("plans.json", "dataset.json"), 40


def smp_folder(folder: Path) -> Made:
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        pytest.skip("segmentation_models_pytorch is not installed")
    smp = package("segmentation_models_pytorch", "segmentation-models-pytorch")
    smp.Unet("resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(16, 8, 8)).save_pretrained(
        folder / "a"
    )
    return folder / "a", ("config.json",), 12


def huggingface_folder(folder: Path) -> Made:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    from test_import_huggingface import SMALL

    transformers = package("transformers", "transformers")
    config = transformers.SegformerConfig(**SMALL, decoder_hidden_size=16, id2label={0: "background", 1: "road"})
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder / "a")
    transformers.SegformerImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder / "a")
    return folder / "a", ("config.json", "preprocessor_config.json"), 60


@pytest.mark.parametrize("make", [monai_bundle, nnunet_folder, smp_folder, huggingface_folder])
def test_damaged_settings_raise_no_errors_of_python(tmp_path: Path, make: Callable[[Path], Made]) -> None:
    """One value of another kind at a random place; some are still right, and are read."""
    folder, files, count = make(tmp_path)
    trees = {name: json.loads((folder / name).read_text()) for name in files}
    places = [(name, place, value) for name in files for place in inside(trees[name]) for value in VALUES]
    refused, escaped = 0, []
    for name, place, value in random.Random(SEED).sample(places, min(count, len(places))):
        (folder / name).write_text(json.dumps(with_value(trees[name], place, value)))
        try:
            row = importer_of(folder)
            if row is not None:
                row.read(folder, Options(normalize="imagenet" if make is smp_folder else None))
        except UnetBatchError:
            refused += 1
        except Exception as error:
            escaped.append(f"{name} {'.'.join(map(str, place))} = {value!r}: {type(error).__name__}: {error}")
        (folder / name).write_text(json.dumps(trees[name]))
    assert escaped == []
    assert refused > count // 5


def inside(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside of a tree, and the first three of a list."""
    if place:
        yield place
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(min(len(tree), 3)):
            yield from inside(tree[key], (*place, key))


def with_value(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    made = copy.deepcopy(tree)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return made
