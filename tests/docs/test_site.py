"""The built site: whole, in step with the code, and without a request to anybody else."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import ROOT

from unet_batch.cli.main import cli
from unet_batch.cli.rejections import ADVICE
from unet_batch.errors import ExitCode, Reason
from unet_batch.table.rows import COLUMNS

FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*>|url\(([^)]+)\)")


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """As scripts/docs does it. Never with --quiet: MkDocs then counts no warnings, and strict means nothing."""
    pytest.importorskip("material", reason="MkDocs Material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    return subprocess.run([*command, "--site-dir", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_link_that_leads_nowhere_is_found_and_stops_the_build(tmp_path):
    """To a page, to a file of the repository, to a part of a page, and a picture that is missing."""
    wrong = ["nowhere.md", "../no/such/file.py", "batching.md#no-such-part", "images/none.png"]
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "numerics.md").open("a") as page:
        page.write("".join(f"\n![away]({link})\n" if link.endswith("png") else f"\n[away]({link})\n" for link in wrong))
    config = (ROOT / "mkdocs.yml").read_text().replace("[scripts/docs_parts", f"[{ROOT}/scripts/docs_parts")
    (tmp_path / "mkdocs.yml").write_text(config)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    found = [line for line in done.stderr.splitlines() if "WARNING" in line and "numerics.md" in line]
    assert done.returncode == 1
    assert [any(link in line for line in found) for link in wrong] == [True] * len(wrong), done.stderr


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.mark.slow
def test_no_page_fetches_anything_from_elsewhere(site):
    """No fonts, scripts, styles or pictures of others: whoever reads the documentation is seen by nobody."""
    elsewhere = {}
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        for found in FETCHED.finditer(file.read_text()):
            what = found[0]
            if re.search(r"(?:https?:)?//", what) and 'rel="canonical"' not in what and "data:" not in what:
                elsewhere[what] = file.name
    assert elsewhere == {}


@pytest.mark.slow
def test_the_reference_holds_every_command_column_reason_and_exit_code(site):
    """It is generated, so nothing can be forgotten; this holds the generator to it."""
    reference = site / "reference"
    commands = text_of(reference / "command-line.html")
    for name, command in cli.commands.items():
        assert f"unet-batch {name}" in commands
        assert all(option.opts[-1] in commands for option in command.params if option.param_type_name == "option")
    assert all(name in text_of(reference / "columns.html") for name, _, _ in COLUMNS)
    assert all(reason in text_of(reference / "rejections.html") for reason in Reason)
    assert all(code.meaning in text_of(reference / "exit-codes.html") for code in ExitCode)


@pytest.mark.slow
def test_the_words_for_tests_are_not_shown(site):
    """A reader sees the language's colours, and no instruction to a runner."""
    for page in ("tutorial.html", "how-to/s3.html", "index.html"):
        assert not re.search(r"```|not-run:|\boutput$", text_of(site / page), flags=re.MULTILINE)


def test_every_reason_is_explained():
    """Whoever adds a reason says what it means and what one can do."""
    assert set(ADVICE) == set(Reason)


@pytest.mark.parametrize("reason", list(ADVICE))
def test_an_explanation_is_two_short_sentences(reason):
    """They stand in a table."""
    assert all(words.endswith(".") and "|" not in words and len(words) < 140 for words in ADVICE[reason])
