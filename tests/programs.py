"""Servers that no Python package brings, installed once into the tests' cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from corpora import cache_folder, one_fetches

AZURITE = "3.35.0"
"""The last version that runs on Node 20."""
INSTALL_TIMEOUT_S = 300


def azurite() -> Path:
    """The program that plays Azure Blob Storage (MIT, 186 MB with what it needs); skips the test where npm fails.

    npm fetches it from the registry that this machine is configured for.
    """
    folder = cache_folder() / f"azurite-{AZURITE}"
    with one_fetches(folder.name):
        if not folder.is_dir():
            _install(f"azurite@{AZURITE}", folder)
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.is_file():
        pytest.skip(f"npm left no {program.name}")
    return program


def _install(package: str, folder: Path) -> None:
    """Through a temporary name, so that a killed test leaves no half installation."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(partial), package]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        pytest.skip(f"{package} cannot be installed: {type(error).__name__}")
    partial.rename(folder)
