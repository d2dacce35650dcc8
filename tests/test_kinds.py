"""Adding a container, format, engine, store or mask output touches two files: no other module names one."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest

from unet_batch.archive.formats import CONTAINERS
from unet_batch.decode.signatures import READ
from unet_batch.session.engines import TABLE
from unet_batch.spec import Engine, MaskOutput, Precision, ProviderName, ShardFormat
from unet_batch.store.objects import SCHEMES
from unet_batch.store.opening import _EXTRAS

PACKAGE = Path(__file__).parents[1] / "unet_batch"

NAMES = {
    "container": {*get_args(ShardFormat)} - {"images", "manifest"},  # keys of records and of written lists as well
    "image format": {"NPY"},  # the one with a reader of its own and no other meaning, as TIFF and PNG have
    "engine, provider": {*get_args(Engine), *get_args(ProviderName)} - {"onnxruntime", "cpu", "tensorrt", "cuda"},
    "store": {*SCHEMES, *_EXTRAS.values()} - {"file", "s3", "gcs"},
}
"""Names of each kind, without those that mean something else, too: the reference engine and its providers (options of
ONNX Runtime are set by provider), the service name of S3's own protocol, and an alias in manifests."""


def touched() -> dict[str, set[str]]:
    """The table of the page: modules by kind."""
    page = (PACKAGE / "ARCHITECTURE.md").read_text().partition("### Where things are added")[2]
    rows = (line.split("|")[1:3] for line in page.splitlines() if line.startswith("| ") and "`" in line)
    return {kind.strip(): set(re.findall(r"`([\w/]+\.py)`", files)) for kind, files in rows}


def texts(package: Path) -> dict[str, set[str]]:
    """Every text of each module that is written as a whole constant."""
    found = {}
    for path in package.rglob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        constants = {n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        found[str(path.relative_to(package))] = constants
    return found


def naming(package: Path, kind: str) -> set[str]:
    """Modules that name one of a kind."""
    return {module for module, constants in texts(package).items() if constants & NAMES[kind]}


def masks_of(package: Path) -> dict[str, set[str]]:
    """By module, the mask outputs that it looks for: names of `"rle" in output.masks`."""
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
                asked = node.comparators[0]
                if isinstance(asked, ast.Attribute) and asked.attr == "masks":
                    found.setdefault(str(path.relative_to(package)), set()).add(node.left.value)
    return found


def test_the_page_says_two_files_at_most_for_each_kind():
    assert {*NAMES, "mask output", "column"} == touched().keys()
    assert all(1 <= len(files) <= 2 for files in touched().values())
    assert all((PACKAGE / file).is_file() for files in touched().values() for file in files)


@pytest.mark.parametrize("kind", NAMES)
def test_a_kind_is_named_in_the_files_that_the_page_lists_and_in_no_other(kind):
    assert naming(PACKAGE, kind) == touched()[kind]


def test_mask_outputs_are_known_to_the_job_file_and_to_the_stage_that_writes_rows():
    assert masks_of(PACKAGE) == {"worker/infer.py": {*get_args(MaskOutput)}}
    assert touched()["mask output"] == {"spec.py", "worker/infer.py"}


def test_another_module_that_names_a_container_is_found(tmp_path):
    copy = tmp_path / "unet_batch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "planning" / "plan.py").write_text('special = "webdataset"\n')
    assert naming(copy, "container") - touched()["container"] == {"planning/plan.py"}


def test_the_names_that_a_job_file_takes_are_those_of_the_tables():
    assert set(get_args(ShardFormat)) == CONTAINERS.keys()
    assert set(get_args(Engine)) == {row.engine for row in TABLE}
    assert set(get_args(ProviderName)) == {row.name for row in TABLE}
    assert set(get_args(Precision)) == {precision for row in TABLE for precision in row.precisions}
    assert set(SCHEMES) == {"file", *_EXTRAS}
    assert "NPY" in READ
