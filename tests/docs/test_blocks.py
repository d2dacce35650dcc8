"""The runner of the pages can fail, and no command of a page is left out without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from blocks import ROOT, Block, blocks, first_missing, play

FOLLOWED = {
    "README.md": "test_tutorial.py",
    "docs/tutorial.md": "test_tutorial.py",
    "docs/how-to/bring-your-model.md": "test_bring_your_model.py",
    "docs/how-to/evaluate.md": "test_how_to.py",
    "docs/how-to/exit-3.md": "test_how_to.py",
    "docs/how-to/from-huggingface.md": "test_bring_your_model.py",
    "docs/how-to/from-monai.md": "test_bring_your_model.py",
    "docs/how-to/from-nnunet.md": "test_bring_your_model.py",
    "docs/how-to/from-pytorch.md": "test_bring_your_model.py",
    "docs/how-to/from-smp.md": "test_bring_your_model.py",
    "docs/how-to/make-it-faster.md": "test_how_to.py",
    "docs/how-to/nightly.md": "test_how_to.py",
    "docs/how-to/other-tools.md": "test_other_tools.py",
    "docs/how-to/read-the-table.md": "test_how_to.py",
    "docs/how-to/rollback.md": "test_how_to.py",
    "docs/how-to/see-the-masks.md": "test_how_to.py",
    "docs/how-to/s3.md": "test_s3_page.py",
}
"""Pages whose commands run, and the file of this folder that follows each."""
PAGES = [*FOLLOWED, "cluster/README.md"]
"""Pages with commands that a reader follows."""
NOT_RUN = {
    "it downloads 41 MB and takes two minutes",
    "it installs packages, and the tests begin with an environment that has them",
    "it is a part of a contract",
    "it is a part of a job file",
    "the archive of these pages holds no JPEGs",
    "it needs a cron daemon",
    "it needs an AWS account; the tests give this very policy to a user of their server",
    "it needs Spark and Java; tried by hand with PySpark 4.3.0",
    "it ends every Ray on the machine; tests/integration starts a cluster of its own",
    "it needs a Kubernetes cluster",
    "it needs systemd",
    "tests/workbench/importers imports such a model",
    "tests/cli/test_start.py scores a classifier",
    "tests/workbench/test_draft_activation.py drafts such a file",
    "the tests have an empty folder of their own",
    "it opens a window; tests/docs/test_other_tools.py runs the script without one",
    "it starts a server that asks for an account; tests/docs/test_other_tools.py decodes the tasks",
}
"""Every reason for which a block does not run; a new one is added here on purpose."""


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_runs_or_says_why_not(name):
    """A block that a reader may copy runs, is a file, or gives a reason from the list."""
    found = blocks(ROOT / name)
    assert [f"line {block.line}" for block in found if block.forgotten] == []
    assert {block.why_not for block in found if block.why_not} <= NOT_RUN
    assert any(block.runs for block in found) == (name in FOLLOWED)


def test_every_reason_is_still_used():
    """The list says what is not tested, and nothing else."""
    assert {block.why_not for name in PAGES for block in blocks(ROOT / name)} - {None} == NOT_RUN


def test_every_page_has_a_test_that_follows_it():
    """Whoever adds a page says which."""
    how_tos = {f"docs/how-to/{path.name}" for path in (ROOT / "docs" / "how-to").glob("*.md")}
    assert how_tos <= set(FOLLOWED)
    texts = {name: (Path(__file__).parent / test).read_text() for name, test in FOLLOWED.items()}
    assert [name for name, text in texts.items() if Path(name).stem not in text] == []


def test_files_are_written_and_blocks_run_in_their_order(tmp_path):
    """In one folder, which is the home folder too."""
    text = "```text file=a/b.txt\nhello\n```\n```bash run\ncat ~/a/b.txt\n```\n```text output\nhel…\n```\n"
    play(page(tmp_path, text), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```bash run\nfalse\n```\n", "exit code 1, not 0"),
        ("```bash run\nfalse\ntrue\n```\n", "exit code 1, not 0"),
        ("```bash run exit=3\ntrue\n```\n", "exit code 0, not 3"),
        ("```bash run\necho one\n```\n```text output\ntwo\n```\n", "did not print 'two'"),
        ("```bash run\nprintf 'a\\nb'\n```\n```text output\nb\na\n```\n", "did not print 'a'"),
        ("```python run\nraise SystemExit(4)\n```\n", "exit code 4, not 0"),
    ],
)
def test_a_page_that_is_not_true_fails(tmp_path, text, said):
    """With the line of the block."""
    with pytest.raises(AssertionError, match=f"line 1: .*{said}|line 4: .*{said}"):
        play(page(tmp_path, text), tmp_path)


@pytest.mark.parametrize(
    ("language", "words", "forgotten"),
    [
        ("bash", "", True),
        ("", "", True),
        ("text", "", False),
        ("bash", "rnu", True),
        ("bash", "run exit=3", False),
        ("yaml", "file=job.yaml", False),
        ("bash", "not-run: it needs a cluster", False),
        ("bash", "not-run:", True),
    ],
)
def test_a_block_without_a_word_about_it_is_found(language, words, forgotten):
    """A word that is mistyped is no word."""
    assert Block(1, language, words, "").forgotten is forgotten


@pytest.mark.parametrize(
    ("shown", "printed", "missing"),
    [
        ("a\n…\nc", "a\nb\nc\n", None),
        ("a … c", "a b c", None),
        ("│ a │  1 │", "│ a │     1 │", None),
        ("a\nc", "c\na\n", "c"),
        ("a.c", "abc", "a.c"),
    ],
)
def test_lines_are_compared_in_their_order_and_whole(shown, printed, missing):
    """Only the sign for anything, and widths of columns, are free."""
    assert first_missing(shown, printed) == missing
