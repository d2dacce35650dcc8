"""`unet-batch masks`: published masks as files, each read back by its format's own reader."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from models import threshold_model
from PIL import Image
from project_fixture import SIZE, last_json, png, project
from pycocotools.coco import COCO

from unet_batch.errors import ExitCode, JobError
from unet_batch.planning.survey import window_of
from unet_batch.review.masks.export import LEFT, OVERLAP, Exported, export
from unet_batch.review.masks.names import candidates
from unet_batch.store.storage import Storage

__all__ = ["project"]

DAY, NAME = "2026/11/21", "2026-11-21"
OTHER_DAY = "2026/11/22"


def exported(project, format_: str, *overrides: str, window: str = "all", out: str = "files") -> Exported:
    return export(project.prepared(*overrides), window_of(window), format_, str(project.folder / out))


def manifest(project, format_: str, out: str = "files") -> dict[str, dict]:
    """By the image's file name, in its archive."""
    with (project.folder / out / f"manifest-{format_}.csv").open(newline="") as file:
        return {row["image_key"].rpartition("/")[2]: row for row in csv.DictReader(file)}


def files(folder: Path) -> dict[str, int]:
    """Relative name → time of the last change, of all files but manifests."""
    found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("manifest-"))
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


def bright_first_rows(rows: int = 8, columns: int = SIZE) -> np.ndarray:
    mask = np.zeros((SIZE, columns), np.uint8)
    mask[:rows] = 1
    return mask


@pytest.fixture
def scored(project):
    """Two days: two pictures, one without a mask, a broken file and a wide picture."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    project.put(f"{DAY}/broken.png", b"no picture")
    wide = np.zeros((SIZE, 2 * SIZE), np.uint8)
    wide[4:9, 10:20] = 255
    wide[6, 14] = 0
    out = io.BytesIO()
    Image.fromarray(wide).save(out, "PNG")
    project.put(f"{OTHER_DAY}/wide.png", out.getvalue())
    project.run()
    return project


# The formats, by their own readers ------------------------------------------------------------------------------------


def test_png_holds_class_ids_and_a_visible_palette(scored):
    """Pillow: pixel values are classes, and each class has a colour."""
    found = exported(scored, "png")
    assert (found.images, found.written, found.exit_code) == (5, 4, ExitCode.COMPLETE)
    with Image.open(scored.folder / "files" / DAY / "000.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), bright_first_rows())
        colors = image.convert("RGB").getcolors()
    assert sorted(colors) == [(8 * SIZE, (255, 196, 0)), (24 * SIZE, (0, 0, 0))]
    with Image.open(scored.folder / "files" / DAY / "dark.png") as empty:
        assert not np.asarray(empty).any()


def test_tiff_is_a_label_map(scored):
    exported(scored, "tiff")
    labels = tifffile.imread(scored.folder / "files" / DAY / "000.tif")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, bright_first_rows())


def test_coco_is_read_by_pycocotools(scored):
    """Categories, images with sizes, and masks whose area and box are those of their pixels."""
    exported(scored, "coco")
    coco = COCO(str(scored.folder / "files" / "annotations.json"))
    assert [(c["id"], c["name"]) for c in coco.loadCats(coco.getCatIds())] == [(1, "class_1")]
    by_name = {image["file_name"]: image for image in coco.imgs.values()}
    assert set(by_name) == {f"{DAY}/000.png", f"{DAY}/001.png", f"{DAY}/dark.png", f"{OTHER_DAY}/wide.png"}
    wide = by_name[f"{OTHER_DAY}/wide.png"]
    assert (wide["height"], wide["width"]) == (SIZE, 2 * SIZE)
    [annotation] = coco.loadAnns(coco.getAnnIds(wide["id"]))
    mask = coco.annToMask(annotation)
    assert (annotation["area"], annotation["bbox"]) == (49, [10, 4, 10, 5])
    assert mask.sum() == 49
    assert not mask[6, 14]
    assert coco.getAnnIds(by_name[f"{DAY}/dark.png"]["id"]) == []


def test_geojson_is_polygons_in_pixels_with_a_class_each(scored):
    """x to the right, y down, vertices at pixel corners, rings closed: as QuPath opens it."""
    exported(scored, "geojson")
    found = json.loads((scored.folder / "files" / OTHER_DAY / "wide.geojson").read_text())
    assert found["type"] == "FeatureCollection"
    [feature] = found["features"]
    read = shapely.from_geojson(json.dumps(found)).geoms[0]
    assert (read.is_valid, read.bounds, read.area) == (True, (10, 4, 20, 9), 10 * 5 - 1)
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"] == {"name": "class_1", "color": [255, 196, 0]}
    outside, hole = feature["geometry"]["coordinates"]
    assert outside == [[10, 4], [20, 4], [20, 9], [10, 9], [10, 4]]
    assert hole[0] == hole[-1]
    assert sorted(hole[1:]) == [[14, 6], [14, 7], [15, 6], [15, 7]]


def test_geojson_is_in_pixels_of_the_source_where_masks_are_in_those_of_the_model(project):
    """`output.geometry: model` keeps masks of the model's size; QuPath opens the source picture."""
    contract = project.folder / "model.yaml"
    contract.write_text(contract.read_text().replace("fit: tile", "fit: stretch"))
    large = np.zeros((4 * SIZE, 2 * SIZE), np.uint8)
    large[: 2 * SIZE] = 255
    out = io.BytesIO()
    Image.fromarray(large).save(out, "PNG")
    project.put(f"{DAY}/large.png", out.getvalue())
    project.run("output.geometry=model")
    exported(project, "geojson", "output.geometry=model")
    [feature] = json.loads((project.folder / "files" / DAY / "large.geojson").read_text())["features"]
    [outside] = feature["geometry"]["coordinates"]
    assert outside == [[0, 0], [2 * SIZE, 0], [2 * SIZE, 2 * SIZE], [0, 2 * SIZE], [0, 0]]


def test_an_overlay_is_the_picture_with_its_mask(scored):
    """Full size; dark tissue is as before, and the mask is between its own colour and the picture's."""
    exported(scored, "overlay")
    with Image.open(scored.folder / "files" / OTHER_DAY / "wide.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (2 * SIZE, SIZE))
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels[20:, 40:].max() < 30
    red, green, blue = pixels[4, 12]  # on the outline
    assert red > 200
    assert blue < 100
    assert 120 < green < 230


def test_classes_that_overlap_are_all_in_coco_and_the_first_in_a_png(project):
    """A label map has one value for each pixel, and the export says that it is not all."""
    made = threshold_model("nchw", 1, 2, size=SIZE, activation="sigmoid")
    (project.folder / "model.onnx").write_bytes(made.data)
    (project.folder / "model.yaml").write_text(made.contract_yaml)
    project.fill(DAY, 1)
    project.run()
    found = exported(project, "png")
    exported(project, "coco")
    coco = COCO(str(project.folder / "files" / "annotations.json"))
    masks = {a["category_id"]: coco.annToMask(a) for a in coco.anns.values()}
    labels = np.asarray(Image.open(project.folder / "files" / DAY / "000.png"))
    assert found.overlapping == 1
    assert manifest(project, "png")["000.png"]["note"] == OVERLAP
    assert set(masks) == {1, 2}
    assert (masks[1] & masks[2]).any()
    np.testing.assert_array_equal(labels == 1, masks[1] == 1)


def test_masks_that_are_kept_as_png_alone_are_exported(project):
    project.fill(DAY, 1)
    project.run("output.masks=[png]")
    exported(project, "coco", "output.masks=[png]")
    coco = COCO(str(project.folder / "files" / "annotations.json"))
    [annotation] = coco.anns.values()
    np.testing.assert_array_equal(coco.annToMask(annotation), bright_first_rows())


# Manifest, resuming, exit codes ---------------------------------------------------------------------------------------


def test_the_manifest_says_which_file_or_why_none(scored):
    exported(scored, "png")
    found = manifest(scored, "png")
    assert found["000.png"]["file"] == f"{DAY}/000.png"
    assert (found["broken.png"]["file"], found["broken.png"]["note"]) == ("", "rejected: decode.unrecognized")
    assert set(found) == {"000.png", "001.png", "dark.png", "broken.png", "wide.png"}


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["png", "overlay", "geojson", "tiff", "coco"])
def test_a_bucket_gets_what_a_folder_gets(scored, new_bucket, s3_options, format_):
    """Byte for byte, with the manifest; what is there is not written again."""
    exported(scored, format_)
    here = scored.folder / "files"
    expected = {str(p.relative_to(here)): p.read_bytes() for p in here.rglob("*") if p.is_file()}
    bucket = new_bucket()
    prepared = scored.prepared(f"output.options={json.dumps(s3_options)}")
    found = export(prepared, window_of("all"), format_, f"{bucket}/masks")
    assert (found.written, found.unchanged) == (4, 0)
    store = Storage(s3_options)
    stored = {o.uri.partition("/masks/")[2]: store.read(o.uri) for o in store.list(f"{bucket}/masks")}
    assert stored == expected
    again = export(prepared, window_of("all"), format_, f"{bucket}/masks")
    assert (again.written, again.unchanged) == (0, 4)


@pytest.mark.parametrize("format_", ["png", "overlay", "geojson", "tiff", "coco"])
def test_what_is_there_is_not_written_again(scored, format_):
    exported(scored, format_)
    before = files(scored.folder / "files")
    again = exported(scored, format_)
    assert (again.written, again.unchanged) == (0, 4)
    assert files(scored.folder / "files") == before


def test_what_is_gone_or_has_another_size_is_written_again(scored):
    exported(scored, "png")
    folder = scored.folder / "files" / DAY
    (folder / "000.png").unlink()
    (folder / "001.png").write_bytes(b"cut")
    again = exported(scored, "png")
    assert (again.written, again.unchanged) == (2, 2)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "001.png")), bright_first_rows())


def test_a_new_mask_is_written_over_the_old_one(scored):
    exported(scored, "png")
    path = scored.put(f"{DAY}/000.png", png(0, bright_rows=12))
    os.utime(path, (1e9, 1e9))
    scored.run()
    again = exported(scored, "png")
    assert (again.written, again.unchanged) == (1, 3)
    np.testing.assert_array_equal(
        np.asarray(Image.open(scored.folder / "files" / DAY / "000.png")), bright_first_rows(12)
    )


def test_a_window_leaves_the_entries_of_other_days(scored):
    exported(scored, "png", window=NAME)
    exported(scored, "png", window="last")
    assert manifest(scored, "png").keys() == {"000.png", "001.png", "dark.png", "broken.png", "wide.png"}


def test_a_file_whose_image_is_gone_stays_and_is_named(scored):
    exported(scored, "png")
    (scored.folder / "archive" / DAY / "001.png").unlink()
    scored.run()
    again = exported(scored, "png")
    assert again.left == 1
    assert manifest(scored, "png")["001.png"]["note"] == LEFT


def test_an_export_that_was_stopped_goes_on(scored, monkeypatch):
    """What was written before the store failed is in the manifest."""
    from unet_batch.store.storage import Storage

    put, puts = Storage.put, []

    def failing(self, uri, body):
        puts.append(uri)
        if len(puts) == 3:
            raise RuntimeError("power cut")
        return put(self, uri, body)

    monkeypatch.setattr(Storage, "put", failing)
    monkeypatch.setattr("unet_batch.review.masks.export.AT_ONCE", 1)
    with pytest.raises(RuntimeError, match="power cut"):
        exported(scored, "png")
    monkeypatch.setattr(Storage, "put", put)
    again = exported(scored, "png")
    assert (again.written, again.unchanged) == (2, 2)


def test_a_picture_too_large_for_a_jpeg_has_no_overlay_and_says_so(scored, monkeypatch):
    """libjpeg writes at most 65500 pixels a side; scans of a line camera are longer. The other files are written."""
    monkeypatch.setattr("unet_batch.imaging.encode.LARGEST_JPEG_PX", SIZE - 1)
    found = exported(scored, "overlay")
    assert (found.written, found.exit_code) == (0, ExitCode.NEEDS_ACTION)
    assert any("is no JPEG" in without.why for without in found.without)
    assert exported(scored, "png").exit_code == ExitCode.COMPLETE


def test_an_image_that_is_gone_has_no_overlay_and_says_so(scored):
    """The archive is read again at the version that was scored."""
    (scored.folder / "archive" / DAY / "001.png").unlink()
    scored.put(f"{DAY}/000.png", png(3, bright_rows=20))
    found = exported(scored, "overlay")
    notes = {name: row["note"] for name, row in manifest(scored, "overlay").items()}
    assert (found.written, found.exit_code) == (2, ExitCode.NEEDS_ACTION)
    assert "read.not_found" in notes["001.png"]
    assert "read.changed" in notes["000.png"]


def test_areas_without_masks_need_a_person(project):
    project.fill(DAY, 1)
    project.run("output.masks=[]")
    found = exported(project, "png", "output.masks=[]")
    assert (found.written, found.exit_code) == (0, ExitCode.NEEDS_ACTION)
    assert "output.masks" in manifest(project, "png")["000.png"]["note"]


def test_rows_of_another_models_classes_are_not_given_this_ones_names(scored):
    contract = scored.folder / "model.yaml"
    contract.write_text(contract.read_text().replace("class_1", "nucleus"))
    found = exported(scored, "png")
    assert (found.written, found.exit_code) == (1, ExitCode.NEEDS_ACTION)  # the empty mask
    assert "another model" in manifest(scored, "png")["000.png"]["note"]


def test_no_file_at_all_is_not_success(project):
    """Every published image is rejected: a person must look at them."""
    project.put(f"{DAY}/broken.png", b"no picture")
    project.run("limits.max_rejected=1")
    for format_ in ("png", "coco"):
        found = exported(project, format_)
        assert (found.images, found.files, found.exit_code) == (1, 0, ExitCode.NEEDS_ACTION)


def test_nothing_published_is_not_success(project):
    assert exported(project, "png").exit_code == ExitCode.UNFINISHED


@pytest.mark.parametrize("out", [f"archive/{DAY}", "archive", "out/predictions", "out/_work/masks"])
def test_files_do_not_go_where_they_would_be_images_or_rows(scored, out):
    with pytest.raises(JobError, match="choose a"):
        exported(scored, "png", out=out)


def test_a_csv_that_is_no_manifest_is_not_replaced(scored):
    path = scored.folder / "files" / "manifest-png.csv"
    path.parent.mkdir()
    path.write_text("my,own,table\n1,2,3\n")
    with pytest.raises(JobError, match="no manifest"):
        exported(scored, "png")
    assert path.read_text().startswith("my,own")


# Names ----------------------------------------------------------------------------------------------------------------


def test_two_images_never_have_one_file(project):
    """Equal but for their extension, and equal but for capitals, which some file systems do not tell apart."""
    project.put(f"{DAY}/a.png")
    project.put(f"{DAY}/A.png")
    out = io.BytesIO()
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(out, "BMP")
    project.put(f"{DAY}/a.bmp", out.getvalue())
    project.run()
    exported(project, "png")
    names = {row["file"] for row in manifest(project, "png").values()}
    assert len({name.casefold() for name in names}) == 3
    assert names == set(files(project.folder / "files"))


def test_pages_and_members_have_files_of_their_own(project):
    pages = [Image.fromarray(np.full((SIZE, SIZE), level, np.uint8)) for level in (0, 255)]
    stack, packed = io.BytesIO(), io.BytesIO()
    pages[0].save(stack, "TIFF", save_all=True, append_images=pages[1:])
    project.put(f"{DAY}/stack.tif", stack.getvalue())
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("in/x.png", "../x.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(0))
            tar.addfile(member, io.BytesIO(png(0)))
    project.put(f"{DAY}/day.tar", packed.getvalue())
    project.run()
    exported(project, "png")
    found = set(files(project.folder / "files"))
    assert {f"{DAY}/stack-page-0.png", f"{DAY}/stack-page-1.png", f"{DAY}/day.tar/in/x.png"} <= found
    assert not (project.folder / "x.png").exists()


@pytest.mark.parametrize(
    ("uri", "member", "name"),
    [
        ("file:///in/a.b.jpg", None, "a.b.png"),
        ("file:///in/a", None, "a.png"),
        ("file:///elsewhere/c.jpg", None, "elsewhere/c.png"),
        ("file:///in/t.tar", "../../etc/x.png", "t.tar/_/_/etc/x.png"),
        ("file:///in/t.tar", "a:b\\c\n.png", "t.tar/a_b_c_.png"),
        ("file:///in/rows.parquet", "17", "rows.parquet/17.png"),
    ],
)
def test_names_follow_the_archive_and_lead_nowhere_else(uri, member, name):
    row = {"uri": uri, "member": member, "page": 0, "pages": 1, "image_key": "k"}
    assert next(candidates(row, "file:///in/", ".png")) == name


def test_a_long_name_is_cut_and_stays_its_own():
    rows = [
        {"uri": "file:///in/" + "é" * 200 + end, "member": None, "page": 0, "pages": 1, "image_key": end}
        for end in ("1.png", "2.png")
    ]
    names = [next(candidates(row, "file:///in/", ".png")) for row in rows]
    assert names[0] != names[1]
    assert all(len(name.encode()) < 255 for name in names)


@pytest.mark.slow
def test_the_command_says_what_it_did(scored):
    done = scored.command("masks", "job.yaml", "--to", "png", "files")
    assert done.returncode == 0, done.stderr
    assert (last_json(done)["written"], last_json(done)["exit"]) == (4, "complete")
    assert "1 image(s) without a file: rejected: decode.unrecognized" in done.stderr
