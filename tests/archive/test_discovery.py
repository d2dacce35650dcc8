"""Windows, dates in paths, patterns: which objects make which partition."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from unet_batch.archive.discovery import discover, reaches
from unet_batch.archive.names import matches
from unet_batch.archive.nearest import nearest
from unet_batch.archive.window import Window, parse_window
from unet_batch.errors import JobError
from unet_batch.records import PassedOver
from unet_batch.spec import InputSpec
from unet_batch.store.objects import path_of
from unet_batch.store.storage import Storage

TODAY = date(2026, 11, 21)
ALL = Window(None, None, "all")
LAST = Window(None, None, "last")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path}/archive"


@pytest.fixture
def archive(folder: str) -> Callable[..., dict[str, list[str]]]:
    """Fill the folder with empty objects; returns the discovered names."""

    def found(names: list[str], uri: str, window: Window = ALL, **fields: object) -> dict[str, list[str]]:
        storage = Storage(threads=2)
        for name in names:
            storage.put(f"{folder}/{name}", b"")
        spec = InputSpec(uri=f"{folder}/{uri}", **fields)
        answer = discover(storage, spec, window).partitions
        return {k: [o.uri.removeprefix(folder + "/") for o in v] for k, v in answer.items()}

    return found


def span(first: str, last: str) -> Window:
    return Window(date.fromisoformat(first), date.fromisoformat(last), "range")


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("2026-11-01..2026-11-21", span("2026-11-01", "2026-11-21")),
        ("2026-11-21", span("2026-11-21", "2026-11-21")),
        (" 2026-11-01 .. today ", span("2026-11-01", "2026-11-21")),
        ("today", span("2026-11-21", "2026-11-21")),
        ("yesterday", span("2026-11-20", "2026-11-20")),
        ("2026-11", span("2026-11-01", "2026-11-30")),
        ("2026-02..2026-11-21", span("2026-02-01", "2026-11-21")),
        ("2024-01..2024-02", span("2024-01-01", "2024-02-29")),
        ("all", ALL),
        ("last", LAST),
    ],
)
def test_a_window_is_parsed(text: str, window: Window) -> None:
    """Both ends are included."""
    assert parse_window(text, TODAY) == window


@pytest.mark.parametrize(
    "text", ["2026-11-21..2026-11-01", "2026-13-01", "20261121", "2026-11-21..", "..", "", "lastt", "2026-11-1", "a..b"]
)
def test_a_malformed_window_is_an_error_of_the_job(text: str) -> None:
    """A reversed or misspelt window must not select other days."""
    with pytest.raises(JobError):
        parse_window(text, TODAY)


def test_a_date_in_folders_makes_one_partition_per_day(archive: Callable) -> None:
    """Year, month and day may be separate levels, with folders below them."""
    names = ["2026/11/20/raw/b.png", "2026/11/21/raw/a.png", "2026/11/21/raw/sub/c.png", "2026/11/21/other/x.png"]
    assert archive(names, "{date:%Y/%m/%d}/raw") == {
        "date=2026-11-20": ["2026/11/20/raw/b.png"],
        "date=2026-11-21": ["2026/11/21/raw/a.png", "2026/11/21/raw/sub/c.png"],
    }


def test_a_range_takes_its_days_and_no_other(archive: Callable) -> None:
    """Missing days are absent, not empty; days outside are not listed."""
    names = [f"d=2026-11-{day:02}/a.png" for day in (18, 20, 21, 22)]
    assert archive(names, "d={date:%Y-%m-%d}/", span("2026-11-19", "2026-11-21")) == {
        "date=2026-11-20": ["d=2026-11-20/a.png"],
        "date=2026-11-21": ["d=2026-11-21/a.png"],
    }


@pytest.mark.parametrize("form", ["%Y/%m/%d", "%Y-%m-%d", "%d-%m-%Y", "%m/%d/%Y", "y=%Y/m=%m/d=%d", "cam_%Y%m%d_raw"])
def test_last_is_the_newest_day_that_holds_anything(archive: Callable, form: str) -> None:
    """For every order of year, month and day; days without objects that count are skipped."""
    days = [date(2025, 12, 31), date(2026, 2, 28), date(2026, 11, 3), date(2026, 11, 21)]
    names = [f"{day.strftime(form)}/a.png" for day in days[:3]] + [f"{days[3].strftime(form)}/a.txt"]
    newest = f"{days[2].strftime(form)}/a.png"
    assert archive(names, f"{{date:{form}}}/", LAST, pattern="*.png") == {"date=2026-11-03": [newest]}
    assert list(archive([], f"{{date:{form}}}/", ALL, pattern="*.png")) == [f"date={day}" for day in days[:3]]


def test_last_lists_only_the_newest_folders(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nightly run over years of days looks at one year, one month and one day."""
    storage = Storage()
    for name in ("2024/01/01/a", "2025/06/07/a", "2026/10/30/a", "2026/11/21/a"):
        storage.put(f"{folder}/{name}", b"")
    looked = []
    inner = Storage.folders
    monkeypatch.setattr(Storage, "folders", lambda self, uri: (looked.append(uri), inner(self, uri))[1])
    discover(storage, InputSpec(uri=folder + "/{date:%Y/%m/%d}"), LAST)
    assert looked == [folder, f"{folder}/2026", f"{folder}/2026/11"]


def test_a_day_can_be_one_object(archive: Callable) -> None:
    """`20261121.tar` is the whole partition of its day."""
    names = ["20261120.tar", "20261121.tar", "notes.txt"]
    expected = {"date=2026-11-20": ["20261120.tar"], "date=2026-11-21": ["20261121.tar"]}
    assert archive(names, "{date:%Y%m%d}.tar", format="webdataset") == expected
    assert archive([], "{date:%Y%m%d}.tar", span("2026-11-20", "2026-11-21"), format="webdataset") == expected


def test_a_folder_that_is_not_a_valid_date_is_not_a_partition(archive: Callable) -> None:
    """E.g. the 31st of February."""
    assert list(archive(["2026-02-31/a", "2026-02-28/a", "latest/a", "2026-2-1/a"], "{date:%Y-%m-%d}")) == [
        "date=2026-02-28"
    ]


@pytest.mark.parametrize(
    "uri",
    ["{date:%Y-%m}", "{date:%Y-%m-%d}/{date:%d}", "{day}/a", "{date:%Y-%m-%d", "{date:%Y%m%d%H}", "{date:%Y%m%d}}"],
)
def test_a_malformed_date_field_is_an_error_of_the_job(archive: Callable, uri: str) -> None:
    """One field, with year, month and day."""
    with pytest.raises(JobError):
        archive([], uri)


def test_an_archive_without_dates_is_one_partition(archive: Callable) -> None:
    """Sorted by URI; `last` and `all` are the same then."""
    assert archive(["x/b.png", "x/a.png"], "x") == {"all": ["x/a.png", "x/b.png"]}
    assert archive([], "x", LAST) == {"all": ["x/a.png", "x/b.png"]}


def test_a_range_needs_dates(archive: Callable) -> None:
    """Without dates, a range would silently select everything or nothing."""
    with pytest.raises(JobError, match="date"):
        archive(["x/a.png"], "x", span("2026-11-21", "2026-11-21"))


def test_one_object_can_be_the_archive(archive: Callable) -> None:
    """A tar, a Parquet file or a manifest may be named directly."""
    assert archive(["x/train.tar", "x/train.tar.bak"], "x/train.tar", format="webdataset") == {"all": ["x/train.tar"]}


def test_a_missing_folder_counts_as_empty(archive: Callable, folder: str) -> None:
    """A mount may be lost: the survey says that nothing was found, and names the nearest folder."""
    assert archive(["x/a.png"], "misspelt") == {"all": []}


def test_an_empty_folder_is_an_empty_archive(tmp_path: Path) -> None:
    """The folder exists, so it is not an error."""
    assert discover(Storage(), InputSpec(uri=str(tmp_path)), ALL).partitions == {"all": []}


def test_loose_images_leave_nothing_out(archive: Callable) -> None:
    """A text file among images counts and becomes a rejection later; hidden names do not count."""
    names = ["x/a.png", "x/readme.txt", "x/.hidden.png", "x/.git/b.png", "x/_SUCCESS", "x/sub/c"]
    assert archive(names, "x") == {"all": ["x/_SUCCESS", "x/a.png", "x/readme.txt", "x/sub/c"]}


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("webdataset", ["a.tar", "s/b.TAR.GZ", "s/c.tgz"]),
        ("parquet", ["d.parquet"]),
        ("manifest", ["d.parquet", "e.csv", "f.jsonl"]),
    ],
)
def test_shards_are_recognised_by_their_suffix(archive: Callable, form: str, expected: list[str]) -> None:
    """With the default pattern."""
    names = ["a.tar", "s/b.TAR.GZ", "s/c.tgz", "d.parquet", "e.csv", "f.jsonl", "_SUCCESS", "g.json"]
    assert archive(names, "", format=form) == {"all": expected}


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*.png", "a.png", True),
        ("*.png", "s/a.png", False),
        ("**/*.png", "a.png", True),
        ("**/*.png", "s/t/a.png", True),
        ("s/**", "s/t/a.png", True),
        ("s/**/a.png", "s/a.png", True),
        ("s/**/a.png", "sx/a.png", False),
        ("cam?/*", "cam1/a.png", True),
        ("cam?/*", "cam12/a.png", False),
        ("[ab]*.png", "b1.png", True),
        ("[!ab]*.png", "b1.png", False),
        ("a+(b).png", "a+(b).png", True),
        ("a.png", "axpng", False),
        ("[[]", "[", True),
        ("**/*.tif", "s/B.TIF", True),
        ("**/*.{png,jpg}", "s/a.JPG", True),
        ("**/*.{png,jpg}", "s/a.gif", False),
        ("{a,b/{c,d}}/*.p[ni]g", "b/d/x.pig", True),
        ("shard-{000..123}.tar", "shard-012.tar", True),
        ("shard-{000..123}.tar", "shard-124.tar", False),
        ("shard-{000..123}.tar", "shard-12.tar", False),
        ("s{8..10}/{3..1}.png", "s10/2.png", True),
        ("s{8..10}/{3..1}.png", "s08/2.png", False),
        ("Cam/*.png", "cam/a.png", False),
        ("*.png", "a\nb.png", True),
    ],
)
def test_a_pattern_is_a_glob(pattern: str, name: str, fits: bool) -> None:
    """`*` stays in its folder, `**` crosses folders, other characters are literal."""
    assert matches(pattern, name) is fits


def test_a_broken_pattern_is_an_error_of_the_job() -> None:
    """A reversed character range matches nothing, so it is an error."""
    with pytest.raises(JobError, match="z-a"):
        matches("[z-a]*", "x")


@pytest.mark.parametrize("pattern", ["[", "*.{png,jpg", "*.png}", "", "a[b", "{a,{b}"])
def test_a_malformed_pattern_is_refused(archive: Callable, pattern: str) -> None:
    """An incomplete glob would match nothing, without a visible cause."""
    for field in ({"pattern": pattern}, {"exclude": (pattern,)}, {"members": (pattern,)}):
        with pytest.raises(JobError, match=r"glob|empty pattern"):
            archive(["x/a.png"], "x", **field)


@pytest.mark.parametrize("pattern", ["thumbs/", "/thumbs/**", "./thumbs/**", "../x/*.png", "s{0..99999}.tar"])
def test_a_pattern_that_can_match_no_name_is_refused(archive: Callable, pattern: str) -> None:
    """`exclude: [masks/]`, as in .gitignore, would leave nothing out, and every mask would be scored as an image."""
    for field in ({"pattern": pattern}, {"exclude": (pattern,)}):
        with pytest.raises(JobError, match=r"matches no name|more than 1000"):
            archive(["x/a.png"], "x", **field)


def test_an_exclude_that_names_a_folder_is_warned_of(archive: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """As in .gitignore one would expect `masks` to leave out the folder; it is compared with last names only."""
    names = ["x/a.png", "x/masks/a.png", "x/masks/b/c.png", "x/s/t/d.png"]
    assert archive(names, "x", exclude=("masks", "s/t", "*.txt")) == {"all": names}
    said = " ".join(record.getMessage() for record in caplog.records)
    assert said.count("input.exclude names the folder") == 2
    assert "write **/masks/**" in said
    assert "write **/s/t/**" in said


def test_a_pattern_starts_below_the_day(archive: Callable) -> None:
    """The fixed part of the URI, its date included, is not part of the pattern."""
    names = ["2026-11-21/cam1/a.png", "2026-11-21/cam2/b.png", "2026-11-21/c.png"]
    assert archive(names, "{date:%Y-%m-%d}", pattern="cam1/*.png") == {"date=2026-11-21": ["2026-11-21/cam1/a.png"]}


def test_dates_in_local_folders(tmp_path: Path) -> None:
    """Plain paths take dates too."""
    (tmp_path / "2026/11/21").mkdir(parents=True)
    (tmp_path / "2026/11/21/a.png").write_bytes(b"x")
    found = discover(Storage(), InputSpec(uri=f"{tmp_path}/{{date:%Y/%m/%d}}"), LAST).partitions
    assert {k: [o.uri for o in v] for k, v in found.items()} == {
        "date=2026-11-21": [f"file://{tmp_path}/2026/11/21/a.png"]
    }


@pytest.mark.parametrize("window", ["all", "last", "2026-11-21", "2026-11"])
def test_a_day_that_is_a_link_is_the_same_day_in_every_window(tmp_path: Path, window: str) -> None:
    """On another disk, also at the level of months; circular links do not end the search."""
    for place in ("disk/11/21", "archive/2026/10/01"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.png").write_bytes(b"x")
    (tmp_path / "archive/2026/11").symlink_to(tmp_path / "disk/11")
    (tmp_path / "archive/2026/12").symlink_to(tmp_path / "archive/2026/12")
    (tmp_path / "disk/11/20").symlink_to("..")
    spec = InputSpec(uri=f"{tmp_path}/archive/{{date:%Y/%m/%d}}/", pattern="**/*.png")
    found = discover(Storage(), spec, parse_window(window, TODAY)).partitions
    assert [o.uri for o in found["date=2026-11-21"]] == [f"file://{tmp_path}/archive/2026/11/21/a.png"]
    assert not any(o.problem for o in found["date=2026-11-21"])


@pytest.mark.parametrize("window", ["all", "2026-11-20..2026-11-22"])
@pytest.mark.parametrize("linked", ["11/21", "12"])
def test_a_day_on_a_disk_that_is_missing_is_reported(tmp_path: Path, window: str, linked: str) -> None:
    """A day or month that is a link to another disk: without the disk it must not be missing in silence."""
    (tmp_path / "2026/11/20").mkdir(parents=True)
    (tmp_path / "2026/11/20/a.png").write_bytes(b"")
    (tmp_path / "2026" / linked).symlink_to("/mnt/disk-that-is-not-there")
    if linked == "12" and window != "all":
        window = "2026-11-20..2026-12-01"
    found = discover(Storage(threads=2), InputSpec(uri=f"{tmp_path}/{{date:%Y/%m/%d}}/"), parse_window(window, TODAY))
    assert list(found.partitions) == ["date=2026-11-20"]
    assert [(what, count) for what, count, _ in found.passed.kinds] == [("unread link", 1)]


def test_names_that_are_passed_over_are_counted_by_kind(archive: Callable, folder: str) -> None:
    """Hidden names, names outside the pattern, names in `exclude`, and folders that are not days."""
    names = [
        *("2026-11-20/a.PNG", "2026-11-20/a_mask.png", "2026-11-20/.a.png", "2026-11-20/notes.txt"),
        *("2026-11-20/__MACOSX/a.png", "2026-11-20/t/b.csv.gz", "2026-11-20/README", "calibration/a.png"),
        *("2026-02-31/a.png", ".trash/a.png"),
    ]
    spec = {"pattern": "**/*.png", "exclude": ("*_mask.png",)}
    assert archive(names, "{date:%Y-%m-%d}/", **spec) == {"date=2026-11-20": ["2026-11-20/a.PNG"]}
    passed = discover(Storage(), InputSpec(uri=folder + "/{date:%Y-%m-%d}/", **spec), ALL).passed
    assert {what: (count, *examples) for what, count, examples in passed.kinds} == {
        "excluded name": (1, "a_mask.png"),
        "hidden name": (3, ".a.png", "__MACOSX/a.png", ".trash"),
        ".txt file": (1, "notes.txt"),
        ".csv.gz file": (1, "t/b.csv.gz"),
        "unsuffixed file": (1, "README"),
        "undated folder": (2, "calibration", "2026-02-31"),
    }
    assert PassedOver.from_json(passed.to_json()) == passed
    assert str(passed).startswith("passed over: 1 .csv.gz file (t/b.csv.gz), 1 .txt file")


def test_objects_beside_a_day_that_is_one_object_are_counted(archive: Callable, folder: str) -> None:
    """`20261122.tar.zst` is not a day of `{date}.tar`, and is reported."""
    archive(["20261121.tar", "20261122.tar.zst", "x/y.tar"], "{date:%Y%m%d}.tar", format="webdataset")
    found = discover(Storage(), InputSpec(uri=folder + "/{date:%Y%m%d}.tar", format="webdataset"), ALL)
    assert list(found.partitions) == ["date=2026-11-21"]
    assert ".tar.zst file" in str(found.passed) or "20261122.tar.zst" in str(found.passed)


def test_images_beside_a_manifest_are_not_passed_over(archive: Callable, folder: str) -> None:
    """Its rows refer to them; another list that is not a manifest is counted."""
    archive(["x/a.png", "x/list.ndjson", "x/notes.md"], "x", format="manifest")
    found = discover(Storage(), InputSpec(uri=folder + "/x", format="manifest"), ALL)
    assert [o.uri.rpartition("/")[2] for o in found.partitions["all"]] == ["list.ndjson"]
    assert found.passed.kinds == ((".md file", 1, ("notes.md",)),)


@pytest.mark.parametrize(
    ("uri", "window", "near"),
    [
        ("fotos/{date:%Y/%m/%d}/", ALL, "photos/2026/11/10"),
        ("photos/{date:%Y/%m/%d}/", span("2026-11-21", "2026-11-21"), "photos/2026/11/10"),
        ("photos/{date:%Y/%m/%d}/", span("2025-12-30", "2025-12-30"), "photos/2026/10/02"),
        ("photos/{date:%Y/%m/%d}/", span("2024-06-01", "2024-06-01"), "photos/2023/12/31"),
        ("sets/trian.tar", ALL, "sets/train.tar"),
        ("stes", ALL, "sets"),
        ("photos", ALL, None),
    ],
)
def test_what_is_near_a_uri_at_which_nothing_is(
    archive: Callable, folder: str, uri: str, window: Window, near: str | None
) -> None:
    """A misspelt folder, another day, another object; None if the folder exists."""
    archive(["photos/2026/11/10/a", "photos/2026/10/02/a", "photos/2023/12/31/a", "sets/train.tar"], "photos")
    assert nearest(Storage(), f"{folder}/{uri}", window) == (None if near is None else f"{path_of(folder)}/{near}")


@pytest.mark.parametrize(
    ("uri", "pattern", "name", "inside"),
    [
        ("s3://a/photos", "**", "s3://a/photos/out/data.parquet", True),
        ("s3://a/photos/", "**", "s3://a/photos/out/data.parquet", True),
        ("s3://a/photos", "**/*.png", "s3://a/photos/out/data.parquet", False),
        ("s3://a/photos", "**", "s3://a/photos-out/data.parquet", False),
        ("s3://a/photos", "**", "s3://a/photos/.out/data.parquet", False),
        ("s3://a/{date:%Y/%m/%d}/", "**", "s3://a/out/data.parquet", False),
        ("s3://a/{date:%Y/%m/%d}/", "**", "s3://a/2026/11/21/out/data.parquet", True),
        ("s3://a/{date:%Y%m%d}/raw", "**", "s3://a/20261121/out/data.parquet", False),
        ("s3://a/{date:%Y%m%d}/raw", "**", "s3://a/20261121/raw/data.parquet", True),
    ],
)
def test_the_archive_reaches_the_objects_of_every_window(uri: str, pattern: str, name: str, inside: bool) -> None:
    """Every folder with a date counts; pattern and hidden names are applied as in listings."""
    assert reaches(InputSpec(uri=uri, pattern=pattern), name) is inside


def test_a_link_to_a_folder_outside_the_pattern_is_reported_as_a_link(tmp_path: Path) -> None:
    """Its name has no suffix, but it may lead to images."""
    (tmp_path / "archive").mkdir()
    (tmp_path / "disk2").mkdir()
    (tmp_path / "archive" / "a.png").write_bytes(b"x")
    (tmp_path / "archive" / "cam2").symlink_to(tmp_path / "disk2")
    found = discover(Storage(), InputSpec(uri=str(tmp_path / "archive"), pattern="**/*.png"), ALL)
    assert str(found.passed) == "passed over: 1 unread link (cam2)"
