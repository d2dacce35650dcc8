"""URIs: what is canonical, what is refused, and what messages may show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.errors import JobError
from unet_batch.store.objects import canonical, join, parent, redact


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("/data/a.png", "file:///data/a.png"),
        ("/data/./x/../a b#1%20.png", "file:///data/a b#1%20.png"),
        ("file:///data/a.png", "file:///data/a.png"),
        ("file://localhost/data", "file:///data"),
        ("FILE:///data", "file:///data"),
        ("s3a://bucket/key", "s3://bucket/key"),
        ("s3://Bucket/K#e%y with space/", "s3://Bucket/K#e%y with space/"),
        ("gcs://bucket/a//b", "gs://bucket/a//b"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("s3://bucket/{date:%Y/%m/%d}/raw", "s3://bucket/{date:%Y/%m/%d}/raw"),
    ],
)
def test_a_uri_has_one_spelling(text: str, uri: str) -> None:
    """Equal objects get equal keys, so spellings are unified; keys stay verbatim."""
    assert canonical(text) == uri
    assert canonical(uri) == uri


def test_a_relative_path_starts_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors work in other folders, so a path must not stay relative."""
    monkeypatch.chdir(tmp_path)
    assert canonical("data/x") == f"file://{os.path.realpath(tmp_path)}/data/x"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning alone: elsewhere, and in object stores, it is a letter like others."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    assert canonical("~/images") == f"file://{tmp_path}/images"
    assert canonical("/data/~/a.png") == "file:///data/~/a.png"
    assert canonical("s3://bucket/~/a.png") == "s3://bucket/~/a.png"


@pytest.mark.parametrize(
    "text",
    [
        "s3://user:hunter2@bucket/a",
        "s3://user@bucket/a",
        "abfs://user:hunter2@container/a",
        "s3://bucket/a?X-Amz-Signature=hunter2",
        "simplecache::file:///etc/passwd",
        "filecache::s3://bucket/a",
        "s3://bucket/../other/a",
        "s3://bucket/a/..",
        "http://169.254.169.254/latest/meta-data",
        "https://host/a.png",
        "memory://bucket/a",
        "reference://x",
        "github://a:b@c/d",
        "file://otherhost/etc/passwd",
        "s3:///key",
        "s3:/bucket/key",
        "a\0b",
        "",
    ],
)
def test_what_could_leak_or_lead_elsewhere_is_refused(text: str) -> None:
    """Secrets, chains, parents and foreign schemes are errors of the job, and the error does not repeat a secret."""
    with pytest.raises(JobError) as refused:
        canonical(text)
    assert "hunter2" not in str(refused.value)


@given(st.text(alphabet=st.characters(exclude_characters="\0?:@", exclude_categories=["Cs"]), min_size=1))
def test_canonical_is_idempotent(key: str) -> None:
    """Canonicalising a canonical URI does not change it, for any key."""
    if ".." in key.split("/"):
        return
    uri = canonical(f"s3://bucket/{key}")
    assert canonical(uri) == uri == f"s3://bucket/{key}"


def test_messages_lose_user_info_and_queries() -> None:
    """What signed URLs and userinfo carry never reaches a log."""
    text = "GET https://u:hunter2@host/a?sig=hunter2&se=1 failed, s3://bucket/a#b stays"
    assert redact(text) == "GET https://host/a?… failed, s3://bucket/a#b stays"


def test_join_and_parent_are_inverse() -> None:
    """Folders may be written with or without their slash."""
    assert join("s3://b/x", "y.png") == join("s3://b/x/", "y.png") == "s3://b/x/y.png"
    assert parent("s3://b/x/y.png") == "s3://b/x"
