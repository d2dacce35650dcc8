"""What the demo, its archive, the set-up and the benchmark's parts promise, without a download or a run of the job."""

from __future__ import annotations

import importlib
import io
import re
import subprocess
import sys
import tarfile
import tomllib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
from packaging.requirements import Requirement
from PIL import Image

from unet_batch.contract import Contract
from unet_batch.imaging.encode import encode_png, encode_tiff
from unet_batch.imaging.masks import rle
from unet_batch.spec import load_job, parse_yaml, validate

ROOT = Path(__file__).resolve().parents[2]
SHELL = ["scripts/setup", "scripts/test", "scripts/matrix_due", "scripts/check", "scripts/demo", ".ci/run"]


def load(path: str) -> ModuleType:
    """The module of a script, with any suffix."""
    name = "script_" + Path(path).stem
    loader = SourceFileLoader(name, str(ROOT / path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look their module up by name
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_archive() -> ModuleType:
    return importlib.import_module("unet_batch.workbench.demo.published")


@pytest.fixture(scope="module")
def contact_sheet() -> ModuleType:
    return load("scripts/contact_sheet")


@pytest.fixture(scope="module")
def photos() -> ModuleType:
    return load("scripts/bench_parts/photos.py")


@pytest.fixture(scope="module")
def quiet() -> ModuleType:
    if not Path("/proc/stat").exists():
        pytest.skip("there is no /proc here")
    return load("scripts/bench_parts/quiet.py")


# The shell scripts and the pins -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHELL)
def test_every_shell_script_parses_and_stops_at_the_first_mistake(path: str) -> None:
    """A script that goes on after a failed step reports success for work that was not done."""
    parsed = subprocess.run(["bash", "-n", ROOT / path], check=False, capture_output=True, text=True)

    assert (parsed.returncode, parsed.stderr) == (0, "")
    assert re.search(r"^set -e?uo pipefail$", (ROOT / path).read_text(), re.MULTILINE)


def test_setup_refuses_a_word_that_it_does_not_know() -> None:
    """A misspelt extra must not install something else."""
    refused = subprocess.run([ROOT / "scripts/setup", "demmo"], check=False, capture_output=True, text=True)

    assert refused.returncode == 2
    assert "'demmo'" in refused.stderr


def test_constraints_pin_everything_the_project_names() -> None:
    """Each requirement of the package and of its extras dev and demo has one exact pin that satisfies it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [Requirement(line) for line in project["dependencies"] + extras["dev"] + extras["demo"]]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {pin.name.lower().replace("_", "-"): pin.specifier for pin in map(Requirement, lines)}

    versions = {name: str(specifier).removeprefix("==") for name, specifier in pins.items()}
    wrong = [
        str(wanted)
        for wanted in named
        if wanted.name != "unet-batch" and not wanted.specifier.contains(versions.get(wanted.name.lower(), "0"))
    ]

    assert wrong == []
    assert all(str(specifier).startswith("==") for specifier in pins.values())
    assert len(pins) == len(lines)


def test_the_demo_job_is_valid_and_stays_below_the_demo_folder() -> None:
    """All files of the demo are in one folder."""
    job = load_job(ROOT / "jobs/demo.yaml")

    assert [job.model.path, job.input.uri, job.output.uri] == [
        ".demo/model/nuclei.onnx",
        ".demo/archive/{date:%Y/%m/%d}/",
        ".demo/output",
    ]
    assert job.input.format == "images"


# The archive ------------------------------------------------------------------------------------------------------


def test_the_contract_of_the_demo_model_is_valid(make_archive: ModuleType) -> None:
    """The YAML beside the model passes the usual validation."""
    contract = validate(Contract, parse_yaml(make_archive.CONTRACT.encode(), "nuclei.yaml"), "nuclei.yaml")

    assert (contract.input.layout, contract.input.height, contract.output.activation) == ("nhwc", 1024, "softmax")
    assert contract.output.classes == ("background", "nucleus")


def test_every_field_of_view_lies_inside_the_picture(make_archive: ModuleType) -> None:
    """A slice past the edge would come out smaller without a word."""
    height, width = 2755, 3675
    small = make_archive.PNG_DAY + make_archive.TIFF_DAY + make_archive.TAR_DAY
    corners = [(*corner, make_archive.FIELD_PX) for corner in small]
    corners += [(*corner, make_archive.LARGE_FIELD_PX) for corner in make_archive.LAST_NIGHT]

    outside = [c for c in corners if c[0] + c[2] > height or c[1] + c[2] > width]

    assert outside == []
    assert len(set(corners)) == len(corners)


def test_png_and_tiff_keep_all_sixteen_bits(make_archive: ModuleType) -> None:
    """Pillow and tifffile read back every level that was written."""
    field = (np.arange(64 * 64, dtype=np.uint32) * 16 + 7).astype(np.uint16).reshape(64, 64)

    png = np.asarray(Image.open(io.BytesIO(encode_png(field))))
    tiff = tifffile.imread(io.BytesIO(encode_tiff(field)))

    assert (png.dtype, tiff.dtype) == (np.uint16, np.uint16)
    np.testing.assert_array_equal(png, field)
    np.testing.assert_array_equal(tiff, field)


def test_the_tar_pairs_each_picture_with_its_place(make_archive: ModuleType) -> None:
    """WebDataset's rule: members of one sample share the name up to the first dot and lie side by side."""
    fields = [np.zeros((4, 4), np.uint16), np.ones((4, 4), np.uint16)]

    shard = make_archive.webdataset(fields, [(1, 2), (3, 4)])

    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        assert tar.getnames() == ["000.png", "000.json", "001.png", "001.json"]
    assert shard == make_archive.webdataset(fields, [(1, 2), (3, 4)])


def test_one_day_holds_a_cut_png_and_a_file_that_is_no_image(make_archive: ModuleType, tmp_path: Path) -> None:
    """Pillow itself refuses exactly these two of the first day's eight files."""
    picture = np.add.outer(np.arange(2755, dtype=np.uint16) * 7, np.arange(3675, dtype=np.uint16) * 3)

    make_archive.make_archive(picture, tmp_path)

    refused = {path.name for path in (tmp_path / "18").iterdir() if not opens(path)}
    assert refused == {"field-truncated.png", "field-notes.png"}
    assert [len(list((tmp_path / day).iterdir())) for day in ("18", "19", "20", "21")] == [8, 5, 1, 4]


def opens(path: Path) -> bool:
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


def test_a_file_that_is_already_there_keeps_its_modification_time(make_archive: ModuleType, tmp_path: Path) -> None:
    """The demo may run twice: an image that did not change must not get a new version."""
    path = tmp_path / "a.png"
    make_archive.put(path, b"one")
    before = path.stat()

    make_archive.put(path, b"one")
    untouched = path.stat()
    make_archive.put(path, b"two")

    assert (before.st_mtime_ns, before.st_ino) == (untouched.st_mtime_ns, untouched.st_ino)
    assert path.read_bytes() == b"two"


# The contact sheet ------------------------------------------------------------------------------------------------


def test_an_outline_is_two_pixels_wide_and_lies_on_the_border_of_the_mask(contact_sheet: ModuleType) -> None:
    """One pixel on either side of the border of a rectangle, nothing inside, nothing outside."""
    mask = np.zeros((640, 640), bool)
    mask[200:400, 100:300] = True  # 100:200, 50:150 at the tile's size of 320

    outline = np.asarray(contact_sheet.outline(mask)) > 0

    expected = np.zeros((320, 320), bool)
    expected[99:201, 49:151] = True
    expected[101:199, 51:149] = False
    np.testing.assert_array_equal(outline, expected)


def test_contrast_is_stretched_between_percentiles_and_a_flat_picture_does_not_break_it(
    contact_sheet: ModuleType,
) -> None:
    """16-bit micrographs use a small part of their range; a black frame has no range at all."""
    ramp = np.arange(32000, 33000, dtype=np.uint16).reshape(10, 100)

    stretched = contact_sheet.stretch(ramp)

    assert (stretched.dtype, stretched.min(), stretched.max()) == (np.uint8, 0, 255)
    assert contact_sheet.stretch(np.zeros((4, 4), np.uint16)).max() == 0


def test_a_rejection_becomes_a_grey_tile_and_a_scored_image_gets_its_outline(
    contact_sheet: ModuleType, tmp_path: Path
) -> None:
    """Both kinds of rows are on the sheet; nothing is left out because it could not be drawn."""
    Image.fromarray(np.full((64, 64), 1000, np.uint16)).save(tmp_path / "a.png")
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    area = {"name": "nucleus", "area_px": 1024, "fraction": 0.25, "rle": {"counts": rle(mask)}}
    scored: dict[str, Any] = {"uri": f"file://{tmp_path}/a.png", "member": None, "date": "2026-11-18", "status": "ok"}
    scored |= {"height": 64, "width": 64, "classes": [area], "score": 0.9}
    rejected = {
        "uri": "file:///b.png",
        "member": None,
        "date": "2026-11-18",
        "status": "rejected",
        "reason": "decode.x",
    }

    sheet = contact_sheet.draw_sheet([scored, rejected])

    border, inside = sheet.getpixel((8 + 80, 8 + 160)), sheet.getpixel((8 + 160, 8 + 160))
    assert (border, inside) == (contact_sheet.OUTLINE, (0, 0, 0))
    assert sheet.getpixel((8 + 320 + 8 + 300, 8 + 300)) == contact_sheet.GREY


# The benchmark's parts --------------------------------------------------------------------------------------------


def test_the_same_seed_cuts_the_same_squares(photos: ModuleType, tmp_path: Path) -> None:
    """Two machines with the same photographs measure the same pixels; no two cuts of one photograph are alike."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", compress_level=0)

    first = [np.asarray(cut) for cut in photos.cuts([tmp_path / "a.png"], 3)]
    again = [np.asarray(cut) for cut in photos.cuts([tmp_path / "a.png"], 3)]

    assert [cut.shape for cut in first] == [(512, 512, 3)] * 3
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])


def test_busy_time_leaves_out_idle_and_waiting_and_counts_stolen_time(quiet: ModuleType) -> None:
    """user 1 + nice 2 + system 4 + irq 32 + softirq 64 + steal 128; idle 8 and iowait 16 are not busy (proc(5))."""
    stat = "cpu  1 2 4 8 16 32 64 128 256 512\ncpu0 9 9 9 9 9 9 9 9 9 9\n"

    assert quiet.busy_ticks(stat) == 1 + 2 + 4 + 32 + 64 + 128


def test_a_process_name_may_hold_spaces_and_parentheses(quiet: ModuleType) -> None:
    """Ray names its workers `ray::f() (x)`; splitting at blanks would read the wrong fields."""
    fields = "S 41 42 42 0 -1 4194304 10 0 0 0 700 50 9 9 20 0 1 0 123456 1 1"

    assert quiet.parse_process(f"42 (ray::f() (x)) {fields}") == ((42, 123456), 41, 750)


@pytest.mark.slow
def test_time_of_an_orphan_is_our_own_time(quiet: ModuleType) -> None:
    """A grandchild whose parent has gone still belongs to the block that started it."""
    burn = "import time\nwhile time.process_time() < 0.6: pass"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}])"

    with quiet.Watch() as watch:
        subprocess.run([sys.executable, "-c", start + "\nimport time; time.sleep(0.3)"], check=True)
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1.2)"], check=True)

    assert 0.3 <= watch.load.own_s <= 1.5
    assert watch.load.busy_s >= 0.6
