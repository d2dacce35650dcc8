"""Runs the Daft rival in an environment of its own.

Daft 0.7 wants pyarrow below 26 and this project is tested with 26; an older Daft would be an unfair rival. NumPy, ONNX
Runtime and pycocotools are pinned to what this environment holds, so that both score with the same code. Knows nothing
of unet_batch. As a program: daft_variant.py PHOTOS MODEL OUT IMAGES prints one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

DAFT = "daft==0.7.26"
SHARED = ("numpy", "pycocotools")


def run(photos: Path, model: Path, out: Path, images: int, *, folder: Path = Path(".bench")) -> dict[str, Any]:
    """Scores the first `images` JPEGs of a folder with Daft; returns wall seconds without the interpreter's start.

    folder: where the environment is made, once. Raises RuntimeError with Daft's own last words where it fails.
    """
    python = environment(folder / "daft")
    pipeline = Path(__file__).with_name("daft_pipeline.py")
    command = [str(part) for part in (python, pipeline, photos, model, out, images)]
    quietly = os.environ | {"DAFT_PROGRESS_BAR": "0", "DO_NOT_TRACK": "true", "SCARF_NO_ANALYTICS": "true"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=quietly)
    if done.returncode != 0:
        raise RuntimeError(f"the Daft variant failed with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def environment(folder: Path) -> Path:
    """The Python of an environment with Daft and what it shares with this one."""
    python, stamp = folder / "bin" / "python", folder / "installed"
    # The wheel for CPUs: Daft is compared on CPUs only, and a wheel for GPUs would be ten times as large.
    wanted = [DAFT, f"onnxruntime=={onnxruntime.__version__}", *(f"{name}=={version(name)}" for name in SHARED)]
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        print(f"daft_variant: making {folder} with {', '.join(wanted)}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        stamp.write_text("\n".join(wanted))
    return python.absolute()


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: daft_variant.py PHOTOS MODEL OUT IMAGES")
    print(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))), flush=True)
