"""The command line as a whole: JSON for programs, text for people, one sentence for a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from forked import PROGRAM, Forked
from project_fixture import last_json

from unet_batch.cli.main import cli
from unet_batch.errors import JobError

SCRIPT = Path(sys.executable).with_name("unet-batch")


def commands(group: click.Group, *path: str) -> list[tuple[str, click.Command]]:
    """Every command with its name, those of groups too."""
    found = []
    for name, command in group.commands.items():
        inner = (
            commands(command, *path, name) if isinstance(command, click.Group) else [(" ".join([*path, name]), command)]
        )
        found += inner
    return found


def on_a_terminal(project, *arguments: str) -> tuple[int, str]:
    """Exit code and all that a terminal shows."""
    terminal, theirs = os.openpty()
    with open(theirs, "r+b", buffering=0) as stream:
        process = Forked(PROGRAM, *arguments, folder=project.folder, streams=[stream] * 3)
    said = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.close(terminal)
    return process.wait(), said.decode()


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in re.findall(r"^\{.*\}\s*$", text, flags=re.MULTILINE)]


@pytest.mark.parametrize(("name", "command"), commands(cli), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_has_the_option_json(name, command):
    """By one rule for all of them."""
    assert any("--json" in option.opts for option in command.params), name


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["plan", "job.yaml"], ["status", "job.yaml"], ["verify", "job.yaml"]])
def test_json_goes_to_programs_and_to_whoever_asks(project, arguments):
    """A terminal shows text alone; with --json, or where stdout is a pipe, the last line is the object."""
    project.fill("2026/11/21", 1)
    code, text = on_a_terminal(project, *arguments)
    _, asked = on_a_terminal(project, *arguments, "--json")
    piped = project.command(*arguments)
    assert json_lines(text) == []
    assert [found["exit_code"] for found in json_lines(asked)] == [code]
    assert (piped.returncode, last_json(piped)["exit_code"]) == (code, code)
    assert len(text.split()) > 3


@pytest.mark.slow
def test_a_run_on_a_terminal_tells_people_what_it_did(project):
    """They have no JSON line."""
    project.fill("2026/11/21", 3)
    code, text = on_a_terminal(project, "run", "job.yaml", "--executor", "local")
    assert (code, json_lines(text)) == (0, [])
    assert "published date=2026-11-21" in text
    assert "scored 3 of 3 images, 0 rejected" in text


@pytest.mark.slow
def test_a_path_with_brackets_is_shown_as_it_is(project):
    """`doctor` prints a table of sentences that other people's names are in."""
    project.fill("2026/11/21", 1)
    result = project.command(
        "doctor", "job.yaml", "--set", f"output.uri={project.folder}/o[/x][red]", env={**os.environ, "COLUMNS": "400"}
    )
    assert "Traceback" not in result.stderr
    assert "o[/x][red]" in "".join(result.stderr.split())


@pytest.mark.slow
def test_lines_of_the_log_have_their_time(project):
    """In UTC, as the names of runs and windows have it."""
    code = (
        "import logging; from unet_batch.cli import main; main._log_to_stderr();"
        "logging.getLogger('unet_batch.x').info('so')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "TZ": "Asia/Tokyo"}
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO so\n", done.stderr)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.path=nets/unet.onnx", "model.path: there is no nets/unet.onnx in "),
        ("model.contract=unet.yaml", "model.contract: there is no unet.yaml in "),
        ("check.reference=../fp32.onnx", "check.reference: there is no ../fp32.onnx in "),
        ("check.references=[fp32.onnx]", "check.references[0]: there is no fp32.onnx in "),
        ("session.custom_ops=[libops.so]", "session.custom_ops: there is no library libops.so in "),
    ],
)
def test_a_relative_path_says_in_which_folder_it_begins(project, monkeypatch, override, said):
    """In the folder that the process started in, wherever the job file is."""
    start = project.folder / "start"
    start.mkdir()
    monkeypatch.chdir(start)
    with pytest.raises(JobError, match=re.escape(f"{said}{start}; relative paths are relative to the working")):
        project.prepared(override)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("mynet.py:UNet", "write mynet:UNet"),
        ("nets/mynet.py:UNet", "write nets.mynet:UNet"),
        ("./mynet.py:UNet", "write mynet:UNet"),
        ("nets/mynet.py", "write nets.mynet:FACTORY"),
        ("/srv/nets/mynet.py:UNet", "start in /srv/nets and write mynet:UNet"),
        ("../mynet.py:UNet", "start in .. and write mynet:UNet"),
        ("mynet.UNet", "is not of the form MODULE:FACTORY"),
    ],
)
def test_a_factory_that_names_a_file_is_told_its_module(factory, said):
    """Before anything is imported, and where PyTorch is missing."""
    from unet_batch.workbench.export.network import build

    with pytest.raises(JobError, match=re.escape(said)):
        build(factory, {})


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["model", "export", "--help"], ["run", "job.yaml", "--no-such-option"], []]
)
def test_help_and_a_mistyped_option_load_no_numbers_and_no_models(words):
    """They answer in a tenth of a second: NumPy, Arrow and pydantic wait until a job file is read."""
    code = (
        "import os, sys\n"
        f"sys.argv = ['unet-batch', *{words!r}]\n"
        "heavy = {'numpy', 'pyarrow', 'pydantic', 'yaml', 'rich', 'fsspec', 'PIL', 'onnx', 'ray', 'pandas'}\n"
        "leave = os._exit\n"
        "os._exit = lambda code: leave(100 if heavy & set(sys.modules) else code)\n"
        "from unet_batch.cli.main import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    assert "Usage:" in (done.stderr if done.returncode else done.stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--version"], "unet-batch, version "), (["run", "-h"], "Usage: "), (["model", "tune", "--help"], "Usage: ")],
)
def test_a_help_and_the_version_go_to_stdout(words, said):
    """So that `unet-batch run --help | less` and `$(unet-batch --version)` show them."""
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(said)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_is_what_a_shell_evaluates(shell):
    """README: eval "$(_UNET_BATCH_COMPLETE=bash_source unet-batch)"."""
    environment = os.environ | {"_UNET_BATCH_COMPLETE": f"{shell}_source"}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert f"_UNET_BATCH_COMPLETE={shell}_complete" in done.stdout


def test_a_shell_completes_commands():
    """As bash asks, and over two levels."""
    asked = {"_UNET_BATCH_COMPLETE": "bash_complete", "COMP_WORDS": "unet-batch model tu", "COMP_CWORD": "2"}
    done = subprocess.run([SCRIPT], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert done.stdout == "plain,tune\n"
