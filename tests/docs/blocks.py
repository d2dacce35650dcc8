"""Code blocks of a page: what they are for, and running them in their order as a reader would.

The words behind a fence's language say what becomes of the block:

    ```bash run            runs; it must end with exit code 0
    ```bash run exit=5     runs; it must end with exit code 5
    ```python run          runs, with the Python of the tests
    ```yaml file=job.yaml  is written into the folder
    ```text output         some of the lines that the last block printed, in this order; "…" is anything
    ```bash not-run: why   cannot run here
    ```text                shows something, and is no command

Knows Markdown fences and processes; knows nothing of the pages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import forked

ROOT = Path(__file__).parents[2]
COMMANDS = ("bash", "sh", "console", "python", "sql", "yaml", "json", "ini", "dockerfile")
"""Languages that a reader would copy: a block of one of them runs, is a file, or says why not."""
TIMEOUT_S = 300
PROGRAMS = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}

_FENCE = re.compile(r"^```(\w*)[ ]*([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    line: int
    """Line of the page, from 1."""
    language: str
    words: str
    """What follows the language."""
    text: str

    @property
    def runs(self) -> bool:
        return self.words.startswith("run") and self.language in PROGRAMS

    @property
    def file(self) -> str | None:
        """Name of the file that it is."""
        found = re.fullmatch(r"file=(\S+)", self.words)
        return found[1] if found else None

    @property
    def is_output(self) -> bool:
        return self.language == "text" and self.words == "output"

    @property
    def why_not(self) -> str | None:
        """Why it cannot run in the tests."""
        found = re.fullmatch(r"not-run: (.+)", self.words)
        return found[1] if found else None

    @property
    def exit_code(self) -> int:
        """What it must end with, where it runs."""
        found = re.fullmatch(r"run exit=(\d)", self.words)
        return int(found[1]) if found else 0

    @property
    def forgotten(self) -> bool:
        """Whether a reader would copy it and nothing says what becomes of it here."""
        known = self.words in ("run", "output") or self.file or self.why_not or re.fullmatch(r"run exit=\d", self.words)
        return not known if self.words else self.language in (*COMMANDS, "")


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    text = page.read_text()
    return [Block(text.count("\n", 0, m.start()) + 1, m[1], m[2].strip(), m[3]) for m in _FENCE.finditer(text)]


def play(page: Path, folder: Path, **environment: str) -> None:
    """Do what a page says, in a folder that is also the reader's home. Fails at the first block that is not true."""
    printed = ""
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.file is not None:
            target = folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text)
        elif block.runs:
            code, printed = run(block, folder, environment)
            assert code == block.exit_code, f"{where}: exit code {code}, not {block.exit_code}\n{block.text}\n{printed}"
        elif block.is_output:
            missing = first_missing(block.text, printed)
            assert missing is None, f"{where}: the command did not print {missing!r}, but\n{printed}"


def run(block: Block, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code, and what was printed on both streams."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if "unet-batch " in block.text:
        path = f"{forked.folder_with_program()}{os.pathsep}{path}"
        environment = {**environment, forked.SOCKET: forked.server()}
    ours = {"HOME": str(folder), "PATH": path, "COLUMNS": "100", "OMP_NUM_THREADS": "1", **environment}
    ours |= {"XDG_CACHE_HOME": str(folder / ".cache")}
    done = subprocess.run(
        [*PROGRAMS[block.language], "-c", block.text],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}, **ours},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout


def first_missing(shown: str, printed: str) -> str | None:
    """The first line that a page shows and a command did not print after the lines before it; None for none.

    Widths of columns are not compared: one space is as good as many.
    """
    rest = (" ".join(line.split()) for line in printed.splitlines())
    for line in shown.splitlines():
        wanted = ".*".join(re.escape(piece) for piece in " ".join(line.split()).split("…"))
        if wanted and not any(re.fullmatch(wanted, got) for got in rest):
            return line
    return None
