"""The page about other programs, followed; and its files as those programs read them.

QuPath and ImageJ are Java programs: what their readers take from a file is written here as rules. Tests with napari,
FiftyOne and Label Studio's package run where these are installed.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import tifffile
from blocks import ROOT, play
from folders import after_the_tutorial
from PIL import Image
from pycocotools.coco import COCO

from unet_batch.imaging.overlay import label_color

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "how-to" / "other-tools.md"
TRIED = "its part of the page was tried by hand"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has done everything that the page says."""
    path = tmp_path_factory.mktemp("other-tools")
    after_the_tutorial(path)
    play(PAGE, path)
    return path


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as working and home folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def masks(folder: Path) -> dict[str, np.ndarray]:
    """Masks (H, W) of the class `cell` by the name of the picture, as pycocotools reads them."""
    coco = COCO(str(folder / "coco" / "annotations.json"))
    found = {}
    for image in coco.imgs.values():
        [annotation] = coco.imgToAnns[image["id"]]
        found[image["file_name"]] = coco.annToMask(annotation).astype(bool)
    assert len(found) == 12
    return found


# QuPath ---------------------------------------------------------------------------------------------------------------


def test_outlines_are_what_qupath_reads(folder):
    """`objectType`, a class with a name and three bytes of colour, closed rings within the picture."""
    for name, mask in masks(folder).items():
        height, width = mask.shape
        collection = json.loads((folder / "outlines" / name).with_suffix(".geojson").read_text())
        assert collection["type"] == "FeatureCollection"
        for feature in collection["features"]:
            assert feature["type"] == "Feature"
            assert feature["geometry"]["type"] == "Polygon"
            properties = feature["properties"]
            assert properties["objectType"] == "annotation"
            assert not properties.get("isLocked", False)
            assert properties["classification"] == {"name": "cell", "color": list(label_color(1))}
            for ring in feature["geometry"]["coordinates"]:
                assert ring[0] == ring[-1]
                assert len(ring) >= 5
                assert (np.array(ring) >= 0).all()
                assert (np.array(ring) <= (width, height)).all()


def test_the_areas_of_outlines_are_those_of_the_masks(folder):
    """QuPath shows the area of an annotation; holes count against it."""
    for name, mask in masks(folder).items():
        collection = json.loads((folder / "outlines" / name).with_suffix(".geojson").read_text())
        rings = [feature["geometry"]["coordinates"] for feature in collection["features"]]
        areas = [area_of(outside) - sum(map(area_of, holes)) for outside, *holes in rings]
        assert sum(areas) == mask.sum()


def area_of(ring: list[list[float]]) -> float:
    """By the shoelace formula."""
    x, y = np.array(ring, float).T
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2


# ImageJ ---------------------------------------------------------------------------------------------------------------


def test_imagej_shows_classes_in_colour_and_counts_them_by_number(folder):
    """An indexed PNG of 8 bits: its values are ImageJ's pixel values, its palette becomes the lookup table."""
    for name, mask in masks(folder).items():
        with Image.open(folder / "labels" / name) as image:
            assert (image.mode, image.size) == ("P", mask.shape[::-1])
            np.testing.assert_array_equal(np.asarray(image), mask)
            colors = np.array(image.getpalette("RGB")).reshape(-1, 3).tolist()
        assert len(colors) == 256
        assert colors[:2] == [[0, 0, 0], list(label_color(1))]
        assert (folder / "labels" / name).read_bytes()[24:26] == b"\x08\x03"  # eight bits for a pixel, indexed


def test_imagej_does_not_show_a_tiff_as_black_on_black(folder):
    """Its own tags hold the range of its display; other readers get gray levels that are classes."""
    for name, mask in masks(folder).items():
        path = (folder / "tiffs" / name).with_suffix(".tif")
        np.testing.assert_array_equal(tifffile.imread(path), mask)
        with tifffile.TiffFile(path) as file:
            assert file.is_imagej
            assert (file.imagej_metadata["min"], file.imagej_metadata["max"]) == (0, 1)
            page = file.pages.first
            assert (page.photometric, page.bitspersample) == (tifffile.PHOTOMETRIC.MINISBLACK, 8)


# Label Studio ---------------------------------------------------------------------------------------------------------


def decoded(rle: list[int]) -> np.ndarray:
    """The values of a brush mask, by the format's description: a header, then runs and literal values, bit by bit."""
    text = "".join(f"{byte:08b}" for byte in rle)
    bits = io.StringIO(text)

    def number(size: int) -> int:
        return int(bits.read(size), 2)

    values, word, sizes = number(32), number(5) + 1, []
    sizes = [number(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < values:
        is_run, count = number(1), number(sizes[number(2)]) + 1
        found += [number(word)] * count if is_run else [number(word) for _ in range(count)]
    assert len(found) == values
    assert len(text) - bits.tell() < 8
    assert "1" not in bits.read()
    return np.array(found, np.uint8)


def test_label_studios_tasks_hold_the_masks(folder):
    """Every picture is a task; its masks decode to RGBA pictures of the picture's size."""
    tasks = json.loads((folder / "tasks.json").read_text())
    expected = masks(folder)
    assert {task["data"]["image"] for task in tasks} == {f"/data/local-files/?d=images/{name}" for name in expected}
    for task in tasks:
        mask = expected[task["data"]["image"].rpartition("/")[2]]
        [prediction] = task["predictions"]
        [result] = prediction["result"]
        assert (result["original_height"], result["original_width"]) == mask.shape
        assert (result["type"], result["image_rotation"]) == ("brushlabels", 0)
        assert result["value"]["format"] == "rle"
        rgba = decoded(result["value"]["rle"]).reshape(*mask.shape, 4)
        np.testing.assert_array_equal(rgba, np.repeat(mask[..., None], 4, axis=2) * 255)


def test_label_studios_predictions_name_what_its_config_has(folder):
    """A region whose control or label is unknown is not shown."""
    config = ET.parse(folder / "label-config.xml").getroot()
    image, brush = config.find("Image"), config.find("BrushLabels")
    labels = {label.attrib["value"] for label in brush}
    for task in json.loads((folder / "tasks.json").read_text()):
        assert image.attrib["value"] == "$image"
        for result in task["predictions"][0]["result"]:
            assert (result["from_name"], result["to_name"]) == (brush.attrib["name"], image.attrib["name"])
            assert brush.attrib["toName"] == image.attrib["name"]
            assert set(result["value"]["brushlabels"]) <= labels


def test_label_studios_own_package_decodes_the_masks(folder):
    module, reason = "label_studio_sdk.converter.brush", f"label-studio-sdk is not installed; {TRIED}"
    brush = pytest.importorskip(module, reason=reason)
    expected = masks(folder)
    for task in json.loads((folder / "tasks.json").read_text()):
        mask = expected[task["data"]["image"].rpartition("/")[2]]
        rle = task["predictions"][0]["result"][0]["value"]["rle"]
        np.testing.assert_array_equal(brush.decode_rle(rle).reshape(*mask.shape, 4)[..., 3], mask * 255)


# napari, FiftyOne -----------------------------------------------------------------------------------------------------


def test_napari_shows_the_mask_as_labels(there, monkeypatch):
    """The page's script, with napari's model of a viewer in the place of its window."""
    napari = pytest.importorskip("napari", reason=f"napari is not installed; {TRIED}")
    from napari.components import ViewerModel
    from npe2 import PluginManager

    PluginManager.instance().discover()  # napari's readers of files; its window does that
    viewer = ViewerModel()
    monkeypatch.setattr(napari, "Viewer", lambda: viewer, raising=False)
    monkeypatch.setattr(napari, "run", lambda: None, raising=False)
    monkeypatch.setattr(sys, "argv", ["in_napari.py", "images/plate-00.png", "tiffs/plate-00.tif"])
    runpy.run_path(str(there / "in_napari.py"))
    picture, labels = viewer.layers
    assert type(labels).__name__ == "Labels"
    np.testing.assert_array_equal(labels.data, masks(there)["plate-00.png"])
    np.testing.assert_array_equal(picture.data, np.asarray(Image.open("images/plate-00.png")))


def test_fiftyone_imports_pictures_and_masks(there):
    """By the importer that the page's script names, which needs no database."""
    coco = pytest.importorskip("fiftyone.utils.coco", reason=f"FiftyOne is not installed; {TRIED}")
    importer = coco.COCODetectionDatasetImporter(
        data_path=os.path.expanduser("~/images"), labels_path="coco/annotations.json", label_types="segmentations"
    )
    found = {}
    with importer:
        for path, _, labels in importer:
            [detection] = labels.detections
            assert detection.label == "cell"
            height, width = np.asarray(Image.open(path)).shape
            x, y, _, _ = detection.bounding_box
            whole = np.zeros((height, width), bool)
            top, left = round(y * height), round(x * width)
            rows, columns = detection.mask.shape
            whole[top : top + rows, left : left + columns] = detection.mask
            found[Path(path).name] = whole
    expected = masks(there)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
