"""Drafts of classifiers: whole pictures, labels instead of outlines on the sheet, and a job that runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from networks import classifier
from PIL import Image

from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.run import Choice, run
from unet_batch.planning.prepare import prepare
from unet_batch.planning.survey import window_of
from unet_batch.spec import load_job
from unet_batch.workbench.draft.contact_sheet import contact_sheet
from unet_batch.workbench.draft.explore import Explored, explore
from unet_batch.workbench.draft.source import ModelRequest
from unet_batch.workbench.draft.write import files_of, write_job, write_sheet


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a red, a green and a blue picture, of other sizes than the model's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    for number, name in enumerate(("red", "green", "blue")):
        pixels = np.full((40, 60 + number, 3), 30, np.uint8)
        pixels[..., number] = 220
        Image.fromarray(pixels).save(tmp_path / "pics" / f"{name}.png")
    return tmp_path


def drafted(data: bytes, **said) -> Explored:
    Path("m.onnx").write_bytes(data)
    return explore(ModelRequest("m.onnx", Path("job"), **said), "pics")


@pytest.mark.parametrize("rank", [2, 4])
def test_scores_of_whole_pictures_are_drafted_as_a_classifier(folder, rank):
    """(N, K) and (N, K, 1, 1): the picture is stretched, which is a guess; the rest is read."""
    found = drafted(classifier(rank))
    fields = found.draft.fields
    assert (fields["input.fit"].value, fields["input.fit"].origin) == ("stretch", "guessed")
    assert fields["output.label_from"].value == "class_scores"
    assert fields["output.classes"].value == ["class_0", "class_1", "class_2"]
    (fit,) = (answer for answer in found.answers if answer.question.field == "input.fit")
    assert [option.value for option in fit.question.options] == ["stretch", "letterbox"]
    assert not [note for note in found.notes if "mask" in note]


def test_the_drafted_job_of_a_classifier_runs(folder):
    found = drafted(classifier(), classes=("red", "green", "blue"))
    files = files_of(found, Path("job"))
    write_sheet(found, files, force=False)
    write_job(found, files, output="job/results", providers=("cpu",), force=False)
    summary = run(prepare(load_job(files.job)), window_of("all"), LocalExecutor, choice=Choice("due"), quiet=True)
    assert (summary.ok, summary.rejected) == (3, 0)


def test_the_sheet_of_a_classifier_has_a_label_and_a_score_under_each_picture(folder, monkeypatch):
    """No outlines, and no word about edges."""
    found = drafted(classifier(), classes=("red", "green", "blue"))
    shown = {}
    module = "unet_batch.workbench.draft.contact_sheet.sheet"
    monkeypatch.setattr(module, lambda title, columns, side: shown.update(title=title, columns=columns) or b"")
    contact_sheet(found)
    assert not [text for text in shown["title"] if "edges" in text]
    names = [cell.caption.split()[0] for cell in shown["columns"][0].cells]
    captions = [cell.caption for cell in shown["columns"][1].cells]
    assert [f"{text.split()[0]}.png" for text in captions] == names
    assert all(text.endswith("%") for text in captions)


def test_a_classifier_of_any_size_takes_whole_pictures(folder):
    """Stretching needs a size that such a file does not have."""
    found = drafted(classifier(size=None))
    fields = found.draft.fields
    assert (fields["input.fit"].value, fields["input.fit"].origin) == ("pad", "guessed")
    assert {scored.why for scored in found.final.scored} == {""}


def test_no_note_about_masks_with_a_contract(folder):
    """A classifier's contract beside the file is taken as it is, and nothing is said about masks."""
    tree = {"input": {"fit": "stretch"}, "output": {"classes": ["r", "g", "b"], "label_from": "class_scores"}}
    Path("m.yaml").write_text(yaml.safe_dump(tree))
    found = drafted(classifier())
    assert (found.answers, found.notes) == ((), ())
    assert {scored.label for scored in found.final.scored} == {"r", "g", "b"}


@pytest.mark.oracle
@pytest.mark.slow
def test_a_factory_of_a_classifier_is_exported_and_drafted(folder):
    """MODULE:FACTORY whose network returns (N, K)."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    text = (
        "import torch\n"
        "def Net():\n"
        "    torch.manual_seed(0)\n"
        "    pool = torch.nn.AdaptiveAvgPool2d(1)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), pool, torch.nn.Flatten(), torch.nn.Linear(4, 3))\n"
    )
    Path("colour_net.py").write_text(text)
    found = explore(ModelRequest("colour_net:Net", Path("job"), input_text="3x32x32"), "pics")
    fields = found.draft.fields
    assert (fields["input.fit"].value, fields["output.label_from"].value) == ("stretch", "class_scores")
    assert all(scored.label in fields["output.classes"].value for scored in found.final.scored)
