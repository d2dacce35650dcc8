"""The folder that the tutorial leaves behind, which the how-to pages begin with; without PyTorch, in a second."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from blocks import ROOT, blocks
from models import threshold_model
from onnx import numpy_helper

TUTORIAL = ROOT / "docs" / "tutorial.md"


def after_the_tutorial(folder: Path) -> None:
    """Its pictures and job, and two models that call bright pixels a cell; cells-2.onnx finds more than cells.onnx."""
    written = {block.file: block.text for block in blocks(TUTORIAL) if block.file}
    for name in ("pictures.py", "cells-job.yaml"):
        (folder / name).write_text(written[name])
    subprocess.run([sys.executable, "pictures.py"], cwd=folder, env={"HOME": str(folder)}, check=True)
    for name, level in (("cells", 0.5), ("cells-2", 0.25)):
        data, contract = bright_is_cell(level)
        (folder / f"{name}.onnx").write_bytes(data)
        (folder / f"{name}.yaml").write_text(contract)


def bright_is_cell(level: float) -> tuple[bytes, str]:
    """A model for gray pictures that calls pixels above a level in [0, 1] a cell, and its contract."""
    tiny = threshold_model(channels=1, size=256)
    model = onnx.load_model_from_string(tiny.data)
    [bias] = [tensor for tensor in model.graph.initializer if tensor.name == "bias"]
    values = numpy_helper.to_array(bias)
    slope = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "weight"))[:, 0, 0, 0]
    shifted = np.array([values[0], values[0] + (slope[0] - slope[1]) * level], values.dtype)
    bias.CopyFrom(numpy_helper.from_array(shifted, "bias"))
    contract = re.sub(r"class_0|background", "background", tiny.contract_yaml)
    return model.SerializeToString(), contract.replace("class_1", "cell")
