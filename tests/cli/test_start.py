"""`init` and `score` as one types them, from an empty folder to masks."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import yaml
from models import threshold_model
from networks import classifier
from PIL import Image
from project_fixture import last_json

from unet_batch.cli import run as module
from unet_batch.cli.command import Exit
from unet_batch.cli.main import cli
from unet_batch.errors import JobError
from unet_batch.workbench.files import replace_file

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a model without a contract, and three pictures whose upper half is bright."""
    (tmp_path / "cells.onnx").write_bytes(threshold_model(channels=1, size=32).data)
    (tmp_path / "pics").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.normal(50, 5, (48, 64)).astype(np.uint8)
        image[:24] += 160
        Image.fromarray(image).save(tmp_path / "pics" / f"p{number}.png")
    return tmp_path


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command without a terminal."""
    return forked.command(forked.PROGRAM, *words, folder=folder)


def typed(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command on a terminal where somebody types this text."""
    ours, theirs = pty.openpty()
    os.write(ours, text.encode())
    try:
        program = [sys.executable, "-m", "unet_batch", *words]
        return subprocess.run(
            program, cwd=folder, stdin=theirs, capture_output=True, text=True, check=False, timeout=120
        )
    finally:
        os.close(ours)
        os.close(theirs)


def areas(folder: Path, table: str) -> list[int]:
    rows = pq.ParquetFile(folder / table / "predictions/all/data.parquet").read().to_pylist()
    return [row["classes"][0]["area_px"] for row in rows]


def test_init_needs_no_terminal_and_its_next_command_works_as_printed(folder):
    """From a model and pictures to masks in two commands."""
    first = command(folder, "init", "cells.onnx", "pics", "--yes")
    assert first.returncode == 0, first.stderr
    said = last_json(first)
    assert [finding["runs"] for finding in said["findings"]] == [True] * 5
    assert said["guessed"]["input.normalize"] == {"kind": "unit"}
    assert f"next: {said['next']}" in first.stderr
    assert "looking at images of pics …" in first.stderr
    assert "trying input.normalize on the pictures: unit (divided by 255), " in first.stderr
    program, *words = shlex.split(said["next"])
    assert program == "unet-batch"
    second = command(folder, *words)
    assert second.returncode == 0, second.stderr
    assert areas(folder, "results") == [24 * 64] * 3
    program, *words = shlex.split(first.stderr.split("then: ")[1].splitlines()[0])
    third = command(folder, *words)
    assert third.returncode == 0, third.stderr
    assert len(list((folder / "overlays").glob("*.jpg"))) == 3
    again = command(folder, "init", "cells.onnx", "pics", "--yes")
    assert (again.returncode, "nothing is overwritten" in again.stderr) == (2, True)


def test_on_a_terminal_a_person_chooses_after_the_sheet_is_there(folder):
    """The third normalisation, the second fit, and names of the classes; a wrong number of names is asked again."""
    result = typed(folder, "3\n2\n\none\nrest,cell\nrest\n", "init", "cells.onnx", "pics")
    assert result.returncode == 0, result.stderr
    contract = yaml.safe_load((folder / "cells.yaml").read_text())
    assert contract["input"]["normalize"] == {"kind": "zscore"}
    assert (contract["input"]["fit"], contract["output"]["classes"]) == ("stretch", ["rest", "cell"])
    assert "guessed" not in (folder / "cells.yaml").read_text().partition("\ninput:")[2]
    assert "write as many different names" in result.stderr


def test_after_the_end_of_the_answers_the_same_command_goes_on(folder):
    """The sheet lies there without a job, and is no reason to refuse; Ctrl-D is not called Ctrl-C."""
    first = typed(folder, "3\n\x04", "init", "cells.onnx", "pics")
    assert first.returncode == 3, first.stderr
    assert ("Ctrl-D" in first.stderr, "Ctrl-C" in first.stderr) == (True, False)
    assert ((folder / "choices.png").exists(), (folder / "job.yaml").exists()) == (True, False)
    again = command(folder, "init", "cells.onnx", "pics", "--yes")
    assert again.returncode == 0, again.stderr
    assert not (folder / "_work").exists()


@pytest.mark.oracle
def test_an_export_on_a_terminal_asks_what_the_network_does_not_say(folder):
    """Normalisation and colours without defaults, fit and activation with them; the contract is printed."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    (folder / "plain_net.py").write_text("import torch\ndef Net():\n    return torch.nn.Conv2d(3, 2, 1)\n")
    words = ("model", "export", "plain_net:Net", "--out", "net.onnx", "--input", "3x16x16", "--classes", "rest,cell")
    result = typed(folder, "unit\nbgr\nletterbox\n\n", *words)
    assert result.returncode == 0, result.stderr
    assert "contract, also in net.yaml" in result.stderr
    contract = yaml.safe_load((folder / "net.yaml").read_text())
    assert (contract["input"]["fit"], contract["input"]["color"]) == ("letterbox", "bgr")
    assert contract["output"]["activation"] == "logits"


def test_score_leaves_a_table_overlays_a_report_and_the_job_that_was_run(folder):
    """The same command again goes on with the contract in the folder, which may have been corrected."""
    first = command(folder, "score", "cells.onnx", "pics", "--out", "out")
    assert first.returncode == 0, first.stderr
    assert areas(folder, "out") == [24 * 64] * 3
    assert len(list((folder / "out/overlays").glob("*.jpg"))) == 3
    assert Path(last_json(first)["report"].removeprefix("file://")).is_file()
    assert {"job.yaml", "cells.yaml", "choices.png"} <= {path.name for path in (folder / "out").iterdir()}
    assert "guessed:" in first.stderr
    contract = folder / "out/cells.yaml"
    contract.write_text(contract.read_text().replace("[background, foreground]", "[background, cell]"))
    second = command(folder, "score", "cells.onnx", "pics", "--out", "out")
    assert (second.returncode, last_json(second)["ok"]) == (0, 3), second.stderr
    other = command(folder, "score", "cells.onnx", ".", "--out", "out")
    assert (other.returncode, "choose another --out" in other.stderr) == (2, True)


def test_from_a_model_to_a_proven_table_overlays_and_a_dice_in_two_commands(folder):
    """`score` proves that every picture has one row, and names the command that measures the masks."""
    first = command(folder, "score", "cells.onnx", "pics", "--out", "out", "--classes", "rest,cell")
    assert first.returncode == 0, first.stderr
    assert "every image has exactly one row" in first.stderr
    assert last_json(first)["disagreements"] == 0
    (folder / "truth").mkdir()
    for number in range(3):
        labels = np.zeros((48, 64), np.uint8)
        labels[:24] = 1
        Image.fromarray(labels).save(folder / "truth" / f"p{number}.png")
    (line,) = (line for line in first.stderr.splitlines() if "unet-batch evaluate" in line)
    _, *words = shlex.split(line.partition(": ")[2].replace("TRUTH", "truth"))
    second = command(folder, *words)
    assert second.returncode == 0, second.stderr
    assert last_json(second)["classes"]["cell"]["mean_dice"] == 1


def test_score_of_a_classifier_leaves_out_the_overlays_with_a_sentence(folder):
    """It returns labels, so there is no mask to draw: the report is written, and the command is complete."""
    (folder / "net.onnx").write_bytes(classifier())
    result = command(folder, "score", "net.onnx", "pics", "--out", "out", "--color", "rgb")
    assert result.returncode == 0, result.stderr
    assert "overlays: none, because a classifier has no masks" in result.stderr
    assert "unet-batch evaluate" not in result.stderr
    said = last_json(result)
    assert (said["ok"], said["overlays"]) == (3, None)
    assert Path(said["report"].removeprefix("file://")).is_file()
    rows = pq.ParquetFile(folder / "out/predictions/all/data.parquet").read().to_pylist()
    assert {row["label"] for row in rows} <= {"class_0", "class_1", "class_2"}


def test_score_says_where_rows_and_archive_disagree(folder, monkeypatch):
    """A picture that came after the listing of the run has no row; the command is not finished."""
    monkeypatch.chdir(folder)
    begun = module.scored

    def late(*given: Any, **named: Any) -> Any:
        summary = begun(*given, **named)
        (folder / "pics" / "late.png").write_bytes((folder / "pics" / "p0.png").read_bytes())
        return summary

    monkeypatch.setattr(module, "scored", late)
    assert here("score", "cells.onnx", "pics", "--out", "out") == 3


def here(*words: str) -> int:
    """The exit code of a command in this process. Raises the errors of a command that cannot begin."""
    with pytest.raises(Exit) as ended:
        cli.main(list(words), standalone_mode=False)
    return ended.value.code


def test_score_passes_over_no_option_that_differs(folder, monkeypatch):
    """The folder's job stays as it was drafted; other words are refused instead of ignored."""
    monkeypatch.chdir(folder)
    words = ("score", "cells.onnx", "pics", "--out", "out", "--classes")
    assert here(*words, "rest,cell") == 0
    with pytest.raises(JobError, match="was drafted without --normalize, and now it is --normalize none"):
        here(*words, "rest,cell", "--normalize", "none")
    with pytest.raises(JobError, match="with --classes rest cell, and now it is --classes rest nucleus"):
        here(*words, "rest,nucleus")
    assert here(*words, "rest,cell") == 0


class Killed(BaseException):
    """The end of a process, as nothing may catch it."""


@pytest.mark.parametrize("last", ["choices.png", "cells.yaml", "job.yaml"])
def test_score_goes_on_after_a_kill_at_any_file_of_its_draft(folder, monkeypatch, last):
    """The same command again needs no --force: the files that are there are its own."""
    monkeypatch.chdir(folder)

    def killed_at(path: Path, data: bytes) -> None:
        if path.name == last:
            raise Killed
        replace_file(path, data)

    for module_name in ("new_files", "write"):
        monkeypatch.setattr(f"unet_batch.workbench.draft.{module_name}.replace_file", killed_at)
    words = ("score", "cells.onnx", "pics", "--out", "out", "--classes", "rest,cell")
    with pytest.raises(Killed):
        here(*words)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert here(*words) == 0
    (folder / "out" / "job.yaml").unlink()
    with pytest.raises(JobError, match="nothing is overwritten"):  # a whole draft, and perhaps an edited contract
        here(*words)


def test_score_does_not_take_files_of_others_for_its_own_after_a_kill(folder, monkeypatch):
    """It refused them before, and does so again."""
    monkeypatch.chdir(folder)
    (folder / "out").mkdir()
    (folder / "out" / "choices.png").write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(JobError, match=r"choices\.png is there already"):
            here("score", "cells.onnx", "pics", "--out", "out")
    assert (folder / "out" / "choices.png").read_bytes() == b"mine"


def test_score_takes_no_model_of_another_folder_for_its_own(folder, monkeypatch):
    """Both are called `cells.onnx` and have external data, so the job's own merged file has the same name."""
    monkeypatch.chdir(folder)
    for name, classes in (("one", 2), ("two", 3)):
        (folder / name).mkdir()
        model = onnx.load_model_from_string(threshold_model(channels=1, size=32, classes=classes).data)
        put_outside(model, folder / name)
    assert here("score", "one/cells.onnx", "pics", "--out", "out") == 0
    with pytest.raises(JobError, match=r"out/job.yaml scores with .*one/cells.onnx, not with two/cells.onnx"):
        here("score", "two/cells.onnx", "pics", "--out", "out")
    put_outside(model, folder / "one")
    with pytest.raises(JobError, match="has changed since the model in out was made from it"):
        here("score", "one/cells.onnx", "pics", "--out", "out")


def put_outside(model: onnx.ModelProto, folder: Path) -> None:
    """Save a model whose weights lie in another file."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, folder / "cells.onnx", save_as_external_data=True, size_threshold=0, location="cells.bin")


def test_score_publishes_what_can_be_scored(folder):
    (folder / "pics" / "broken.png").write_bytes(b"no picture")
    (folder / "pics" / "another.png").write_bytes(b"no picture either")
    result = command(folder, "score", "cells.onnx", "pics", "--out", "out")
    assert (result.returncode, last_json(result)["rejected"]) == (0, 2), result.stderr


@pytest.mark.parametrize(
    "words", [("score", "cells.onnx", "pics", "--out", "out"), ("demo", "--drawn", "--out", "out")]
)
def test_a_signal_ends_the_command_after_the_run(folder, monkeypatch, words):
    """With the run's exit code; no overlay is written."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("unet_batch.job.stopping.stopped_by", lambda: "SIGTERM")
    with pytest.raises(Exit) as ended:
        cli.main(list(words), standalone_mode=False)
    assert ended.value.code == 0
    assert len(list((folder / "out").rglob("data.parquet"))) > 0
    assert not (folder / "out" / "overlays").exists()
