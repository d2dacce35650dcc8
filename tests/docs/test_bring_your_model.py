"""The pages about models of other frameworks, each followed with a small trained network as the framework saves it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from blocks import ROOT, play

pytest.importorskip("torch")
sys.path.append(str(ROOT / "scripts"))

from import_parts import ways
from import_parts.drawn import lay_out

pytestmark = [pytest.mark.oracle, pytest.mark.slow]

IMPORTERS = pytest.mark.more_models  # an import of `from-smp.md` is always played
PAGES = [
    pytest.param("from-smp.md", ways.smp, "segmentation_models_pytorch"),
    pytest.param("from-huggingface.md", ways.huggingface, "transformers", marks=IMPORTERS),
    pytest.param("from-monai.md", ways.monai, "monai", marks=IMPORTERS),
    pytest.param("from-nnunet.md", ways.nnunet, "dynamic_network_architectures", marks=IMPORTERS),
    pytest.param("from-pytorch.md", ways.pytorch, "torch"),
    pytest.param("bring-your-model.md", ways.torchscript, "torch", marks=IMPORTERS),
]


@pytest.mark.parametrize(("page", "make", "framework"), PAGES)
def test_four_commands_of_the_page_lead_to_a_table_overlays_and_a_dice(
    page: str, make: Callable[[Path], None], framework: str, tmp_path: Path
) -> None:
    """The network knows drawn cells, and nothing is edited: a wrong normalisation or geometry costs the Dice."""
    if importlib.util.find_spec(framework) is None:  # importing it may need `package`
        pytest.skip(f"{framework} is not installed")
    lay_out(tmp_path)
    make(tmp_path)
    play(ROOT / "docs" / "how-to" / page, tmp_path)
    assert len(list((tmp_path / "overlays").rglob("*.jpg"))) == 6
    [rows] = (tmp_path / "results" / "reports").glob("*-evaluation.parquet")
    dice = pq.read_table(rows, columns=["class", "dice"]).to_pylist()
    assert {row["class"] for row in dice} == {"cell", "edge"}
    assert min(row["dice"] for row in dice if row["class"] == "cell") > 0.85
