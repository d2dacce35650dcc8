"""When the additional tests are due: after a change of what they test, and wherever git cannot tell."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "matrix_due"
IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *IDENTITY, *words], cwd=folder, check=True, capture_output=True)


def due(folder: Path, *kind: str, **environment: str) -> bool:
    """What the script of this folder says."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "UNET_BATCH_"))}
    outside = {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = [folder / "scripts" / "matrix_due", *kind]
    done = subprocess.run(command, env={**inherited, **outside, **environment}, check=False)
    assert done.returncode in (0, 1)
    return done.returncode == 0


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], None]:
    """Makes a file below the checkout longer."""

    def put(name: str) -> None:
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("more\n")

    return put


@pytest.fixture
def checkout(tmp_path: Path, write: Callable[[str], None]) -> Path:
    """A repository with two commits, of which the second touches nothing that the matrix tests."""
    folder = tmp_path / "checkout"
    for name in ("unet_batch/on_ray/executor.py", "unet_batch/decode/tiff.py", "docs/page.md"):
        write(name)
    (folder / "scripts").mkdir()
    shutil.copy(SCRIPT, folder / "scripts")
    git(folder, "init", "-q")
    for name in ("first", "docs/page.md"):
        if name != "first":
            write(name)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", name)
    return folder


def test_a_change_elsewhere_does_not_ask_for_the_matrix(checkout, write):
    """Committed or not."""
    assert not due(checkout)
    write("unet_batch/decode/tiff.py")
    assert not due(checkout)


@pytest.mark.parametrize(
    "name",
    [
        "unet_batch/on_ray/executor.py",
        "unet_batch/table/new.py",
        "unet_batch/job/new.py",
        "tests/faults/new.py",
        "constraints.txt",
    ],
)
def test_a_change_of_what_the_matrix_tests_asks_for_it(checkout, write, name):
    """As an edit or a new file in the checkout, and as a commit; not after the next commit."""
    write(name)
    assert due(checkout)
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "change")
    assert due(checkout)
    write("docs/page.md")
    git(checkout, "commit", "-q", "-a", "-m", "another")
    assert not due(checkout)
    assert due(checkout, UNET_BATCH_BASE="HEAD~2")


def test_the_sets_watch_different_folders(checkout, write):
    """More models after a change of a session, more faults after one of the executor, both after one of a package."""
    write("unet_batch/session/batching.py")
    assert (due(checkout, "faults"), due(checkout, "models")) == (False, True)
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "change")
    write("unet_batch/on_ray/executor.py")
    assert (due(checkout, "faults", UNET_BATCH_BASE="HEAD"), due(checkout, "models", UNET_BATCH_BASE="HEAD")) == (
        True,
        False,
    )
    write("constraints.txt")
    assert due(checkout, "models", UNET_BATCH_BASE="HEAD")


def test_a_checkout_of_which_git_cannot_tell_asks_for_the_matrix(checkout, tmp_path):
    """A shallow clone, a base that is not in the clone, and a copy without git."""
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", checkout.as_uri(), str(shallow))
    assert due(shallow)
    assert due(checkout, UNET_BATCH_BASE="0" * 40)
    shutil.rmtree(checkout / ".git")
    assert due(checkout)
