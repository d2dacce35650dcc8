"""Job files, contracts, manifests and models made wrong, field by field: one sentence, exit code 2, nothing written.

What is wrong is decided by another validator (jsonschema) from the published schema, not by the code under test.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from unet_batch.contract import Contract
from unet_batch.errors import JobError
from unet_batch.options import EnvRef
from unet_batch.spec import JobSpec, load_job

DAY, NAME = "2026/11/21", "2026-11-21"
TRIED: list[Any] = [
    None, True, -1, 0, 1.5, 10**13, "", "wrong", "a/b", "x" * 80, [], [7], ["wrong", "wrong"], {"x": 1},
    {"x": {"y": [1]}},
]  # fmt: skip
"""Values for every field; those that its schema allows are left out."""
GOOD = {
    "name": "nightly",
    "model": {"path": "model.onnx", "ensemble": {"members": ["other.onnx"]}},
    "input": {"uri": "s3://archive/{date:%Y/%m/%d}/"},
    "output": {"uri": "s3://tables/nuclei"},
}


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every block of a tree, with its dotted name."""
    yield path, model
    for name, field in model.model_fields.items():
        found = [m for m in _models_in(field.annotation) if m is not EnvRef]
        if len(found) == 1 and "tuple" not in str(field.annotation):
            yield from sections(found[0], f"{path}{name}.")


def fields(model: type[BaseModel]) -> list[str]:
    """Every field of a tree, blocks included, by its dotted name."""
    return [path + name for path, section in sections(model) for name in section.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in typing.get_args(annotation) for m in _models_in(part)]


def changed(tree: dict, name: str, value: Any) -> dict:
    """The tree with another value at a dotted name."""
    tree = json.loads(json.dumps(tree))
    node = tree
    *path, last = name.split(".")
    for key in path:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    node[last] = value
    return tree


def wrong_values(model: type[BaseModel], good: dict, name: str) -> list[Any]:
    validator = jsonschema.Draft202012Validator(model.model_json_schema())
    return [v for v in TRIED if not validator.is_valid(changed(good, name, v))]


def sentence_of(path: Path) -> str:
    """What loading says of a file; empty where it was accepted."""
    try:
        load_job(path)
    except JobError as error:
        return str(error)
    return ""


def test_the_job_that_is_made_wrong_is_right():
    """The suite's own control, by both validators."""
    jsonschema.validate(GOOD, JobSpec.model_json_schema())
    assert len(fields(JobSpec)) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", fields(JobSpec))
def test_a_wrong_value_is_refused_by_name(tmp_path, name):
    """A value that the schema does not allow is an argument error: one line that names the field."""
    wrong = wrong_values(JobSpec, GOOD, name)
    assert wrong
    path = tmp_path / "job.yaml"
    for value in wrong:
        path.write_text(yaml.safe_dump(changed(GOOD, name, value)))
        told = sentence_of(path)
        assert name.partition(".")[0] in told, f"{name} = {value!r} was accepted"
        assert name.rpartition(".")[2] in told, f"{name} = {value!r}: {told}"
        assert "\n" not in told
        assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("block", [path for path, _ in sections(JobSpec)])
def test_an_unknown_key_is_refused_in_every_block(tmp_path, block):
    """A typing error must not become a default."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(changed(GOOD, f"{block}zzz_unknown", 1)))
    assert f"unknown key {block}zzz_unknown" in sentence_of(path)


@pytest.mark.parametrize("name", ["name", "model", "model.path", "input", "input.uri", "output", "output.uri"])
def test_a_missing_key_is_named(tmp_path, name):
    """What has no default must be written."""
    tree = json.loads(json.dumps(GOOD))
    *path, last = name.split(".")
    node = tree
    for key in path:
        node = node[key]
    del node[last]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert f"{name} is missing" in sentence_of(tmp_path / "job.yaml")


def written(project) -> list[str]:
    """Everything below the output that a refused job must not leave."""
    out = project.folder / "out"
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("name", fields(Contract))
def test_a_wrong_contract_is_refused_by_name(project, name):
    """The same for every field of the contract beside the model."""
    path = project.folder / "model.yaml"
    good = yaml.safe_load(path.read_text())
    jsonschema.validate(good, Contract.model_json_schema())
    wrong = wrong_values(Contract, good, name)
    assert wrong
    for value in wrong:
        path.write_text(yaml.safe_dump(changed(good, name, value)))
        with pytest.raises(JobError) as raised:
            project.prepared()
        told = str(raised.value)
        assert raised.value.exit_code == 2
        assert name.rpartition(".")[2] in told, f"{name} = {value!r}: {told}"
        assert "\n" not in told
    assert written(project) == []


CUTS = [0, 1, 7, 64, -64, -7, -1]


@pytest.mark.parametrize("cut", CUTS)
def test_a_model_that_is_cut_anywhere_is_refused(project, cut):
    """Exit code 2; no image is read and no row is written."""
    project.put(f"{DAY}/a.png")
    path = project.folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(JobError) as raised:
        project.run()
    assert raised.value.exit_code == 2
    assert not project.data(NAME).exists()
    assert project.parts() == []


@pytest.mark.parametrize("data", [b"<html>sign in</html>", b"\0" * 500, b"PK\x03\x04" * 50, bytes(range(256)) * 4])
def test_a_file_that_is_no_model_is_refused(project, data):
    """A login page, zeros, a zip and noise."""
    project.put(f"{DAY}/a.png")
    (project.folder / "model.onnx").write_bytes(data)
    with pytest.raises(JobError) as raised:
        project.run()
    assert (raised.value.exit_code, written(project)) == (2, [])


def test_a_model_that_is_not_the_pinned_one_is_refused(project):
    """The digest in the job file is the operator's word."""
    with pytest.raises(JobError, match="sha256"):
        project.run(f"model.sha256={'0' * 64}")
    assert written(project) == []


WRONG_ROWS = [
    ("null", "cell.null"),
    ('""', "cell.empty"),
    ("7", "cell.type"),
    ("[]", "cell.type"),
    ('"../secret.png"', "read.denied"),
    ('"/etc/passwd"', "read.denied"),
    ('"http://host/a.png"', "read.denied"),
    ('"s3://user:word@bucket/a.png"', "read.denied"),
    ('"none.png"', "read.not_found"),
]


def test_every_wrong_row_of_a_manifest_is_one_rejection(project):
    """Nine kinds of wrong beside one right image: ten rows, and nothing outside the manifest's folder was read."""
    project.put("list/a.png")
    lines = ['{"uri": "a.png"}', *(f'{{"uri": {text}}}' for text, _ in WRONG_ROWS)]
    project.put("list/rows.jsonl", "\n".join(lines).encode())
    summary = project.run(
        "input.format=manifest", f"input.uri={project.folder}/archive/list/", "input.pattern='*.jsonl'",
        "limits.max_rejected=9",
    )  # fmt: skip
    expected: dict[str, int] = {}
    for _, reason in WRONG_ROWS:
        expected[reason] = expected.get(reason, 0) + 1
    assert (summary.ok, summary.rejected, summary.reasons) == (1, len(WRONG_ROWS), expected)


@pytest.mark.parametrize(
    ("data", "name"),
    [(b'uri\n"a.png', "rows.csv"), (b'{"uri": "a.png"}\n{"uri": ', "rows.jsonl"), (b"PAR1 no", "rows.parquet")],
)
def test_a_manifest_that_breaks_off_stops_publication(project, data, name):
    """The number of lost rows is unknown: exit code 5, and nothing is published."""
    project.put("list/a.png")
    project.put(f"list/{name}", data)
    summary = project.run(
        "input.format=manifest", f"input.uri={project.folder}/archive/list/", f"input.pattern='{name}'",
        "limits.max_rejected=1.0",
    )  # fmt: skip
    assert (summary.exit_code, summary.published) == (5, 0)
    assert "truncated or corrupt" in summary.problems[0]


def test_a_manifest_in_another_encoding_is_an_argument_error(project):
    """Exit code 2 before anything is scored; the sentence names the encoding."""
    project.put("list/a.png")
    project.put("list/rows.csv", "uri\na.png\n".encode("utf-16"))
    with pytest.raises(JobError, match="UTF-16"):
        project.run("input.format=manifest", f"input.uri={project.folder}/archive/list/", "input.pattern='rows.csv'")


def test_a_manifest_without_its_column_is_an_argument_error(project):
    """The sentence says which columns there are."""
    project.put("list/rows.csv", b"path,label\na.png,1\n")
    with pytest.raises(JobError, match=r"no column 'uri'; it has path, label"):
        project.run(
            "input.format=manifest", f"input.uri={project.folder}/archive/list/", "input.pattern='*.csv'"
        )  # fmt: skip
    assert written(project) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "job.yaml", "--set", "limits.max_rejected=2.5"], "a share is at most 1.0"),
        (["run", "job.yaml", "--set", "model.path=/none.onnx"], "there is no"),
        (["run", "job.yaml", "--executor", "local", "--set", "session.providers=[cuda]"], "CUDA"),
        (["backfill", "job.yaml", "--window", "2026-13-01"], "2026-13-01"),
        (["run", "job.yaml", "--executor", "local", "--window", ""], "the window ''"),
    ],
    ids=["a value", "a model", "a provider", "a window", "an empty window"],
)
def test_the_command_line_says_it_in_one_sentence(project, arguments, told):
    """Exit code 2, one line on stderr, nothing on stdout, no row anywhere."""
    project.put(f"{DAY}/a.png")
    result = project.command(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert not project.data(NAME).exists()
    assert project.parts() == []
