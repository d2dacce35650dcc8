"""The page about models of other frameworks, followed with a small Unet as segmentation_models_pytorch saves it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from blocks import ROOT, play
from foreign_models import pictures

from unet_batch.workbench.importers.folder import package

torch = pytest.importorskip("torch")
if importlib.util.find_spec("segmentation_models_pytorch") is None:  # importing it may need `package`
    pytest.skip("segmentation_models_pytorch is not installed", allow_module_level=True)

pytestmark = [pytest.mark.oracle, pytest.mark.slow]


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    """From a folder of SMP to overlays, with three commands."""
    smp = package("segmentation_models_pytorch", "segmentation-models-pytorch")
    torch.manual_seed(0)
    network = smp.Unet("resnet18", encoder_depth=3, encoder_weights=None, classes=3, decoder_channels=(16, 8, 8))
    network.save_pretrained(tmp_path / "my-unet")
    pictures(tmp_path / "pictures")
    play(ROOT / "docs" / "how-to" / "bring-your-model.md", tmp_path)
    assert len(list((tmp_path / "overlays").rglob("*.jpg"))) == 4
