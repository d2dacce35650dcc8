"""The job file: strict, one clear sentence per mistake, and no secrets."""

from __future__ import annotations

import pytest

from unet_batch.cli.reference import markdown
from unet_batch.contract import Contract
from unet_batch.errors import JobError
from unet_batch.options import EnvRef, resolve_options
from unet_batch.spec import JobSpec, load_job, parse_yaml, validate

GOOD = """\
name: nightly
model: {path: model.onnx}
input: {uri: "s3://archive/{date:%Y/%m/%d}/"}
output: {uri: s3://tables/nuclei}
"""


def load(tmp_path, text: str, *overrides: str) -> JobSpec:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_job(path, overrides)


def test_a_small_job_file_is_enough(tmp_path):
    """All fields except name, model, input and output have defaults."""
    job = load(tmp_path, GOOD)
    assert (job.input.format, job.window, job.limits.max_rejected) == ("images", "last", 0.01)


def test_overrides_go_through_the_same_validation(tmp_path):
    """--set writes any field, also in sections that the file leaves out."""
    job = load(tmp_path, GOOD, "limits.max_rejected=5", "session.providers=[cuda, cpu]", "input.format=webdataset")
    assert (job.limits.max_rejected, job.session.providers, job.input.format) == (5, ("cuda", "cpu"), "webdataset")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + "limts: {}\n", "unknown key limts; did you mean limits?"),
        (GOOD + "limits: {max_rejcted: 1}\n", "unknown key limits.max_rejcted; did you mean max_rejected?"),
        (GOOD + "limits: {max_image_pixels: '8'}\n", "limits.max_image_pixels: input should be a valid integer"),
        (GOOD + "limits: {max_image_pixels: true}\n", "limits.max_image_pixels: input should be a valid integer"),
        (GOOD + "limits: {max_rejected: 1.5}\n", "a share is at most 1.0"),
        (GOOD + "limits: {max_rejected: -1}\n", "greater than or equal to 0"),
        (GOOD + "limits: {max_rejected: yes}\n", "must be a share (0.01) or a count (25)"),
        (GOOD + "name: again\n", "the key 'name' is written twice"),
        (GOOD.replace("images", "x") + "input: {}\n", "the key 'input' is written twice"),
        (GOOD + "session: {providers: [tpu]}\n", "session.providers"),
        (GOOD.replace("name: nightly\n", ""), "name is missing"),
        ("- a\n", "must hold a mapping"),
        ("a: [\n", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    ],
)
def test_a_wrong_job_file_is_refused_in_one_sentence(tmp_path, text, sentence):
    """The sentence names the key and the nearest valid one."""
    with pytest.raises(JobError) as raised:
        load(tmp_path, text)
    assert sentence in str(raised.value)


def test_a_missing_job_file_is_an_argument_error(tmp_path):
    """Exit code 2, and no stack trace."""
    with pytest.raises(JobError, match="cannot read the job file"):
        load_job(tmp_path / "none.yaml")


def test_a_glob_needs_no_quotes_in_an_override(tmp_path):
    """YAML would read its first character as an alias."""
    assert load(tmp_path, GOOD, "input.pattern=**/*.png").input.pattern == "**/*.png"


@pytest.mark.parametrize("override", ["limits", "=3", "limits.=3", "name.first=3"])
def test_a_malformed_override_is_refused(tmp_path, override):
    """--set takes section.key=value."""
    with pytest.raises(JobError, match="--set"):
        load(tmp_path, GOOD, override)


@pytest.mark.parametrize(
    "key",
    ["secret", "key", "aws_secret_access_key", "token", "sas_token", "account_key", "password", "connection_string"],
)
def test_a_literal_secret_in_the_job_file_is_refused_and_not_repeated(tmp_path, key):
    """The sentence says how to refer to a variable, and never repeats the value."""
    with pytest.raises(JobError) as raised:
        load(tmp_path, GOOD.replace("{uri: s3://tables/nuclei}", f"{{uri: s3://t, options: {{{key}: hunter2}}}}"))
    assert "{env: NAME}" in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@store",
        "https://hunter2@store/x",
        "https://store/x?sv=1&sig=hunter2",
        "s3://b/?X-Token=hunter2",
    ],
)
def test_a_secret_inside_a_url_of_the_options_is_refused_and_not_repeated(tmp_path, url):
    """User info and signatures are secrets under every key; other URLs are settings."""
    options = f"{{uri: s3://t, options: {{client_kwargs: {{endpoint_url: '{url}'}}}}}}"
    with pytest.raises(JobError) as raised:
        load(tmp_path, GOOD.replace("{uri: s3://tables/nuclei}", options))
    assert "output.options.client_kwargs.endpoint_url looks like a secret" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    load(tmp_path, GOOD.replace("{uri: s3://tables/nuclei}", options.replace(url, "https://store:9000/x?list-type=2")))


def test_a_secret_is_read_from_its_variable_only_where_it_is_used(tmp_path, monkeypatch):
    """The job's JSON holds the reference, never the value."""
    text = GOOD.replace("{uri: s3://tables/nuclei}", "{uri: s3://t, options: {secret: {env: MY_SECRET}}}")
    job = load(tmp_path, text)
    monkeypatch.setenv("MY_SECRET", "hunter2")
    assert resolve_options(job.output.options) == {"secret": "hunter2"}
    assert "hunter2" not in job.model_dump_json() + repr(job)


def test_a_variable_that_is_not_set_is_named():
    """The sentence says which one."""
    with pytest.raises(JobError, match="NOT_SET_ANYWHERE"):
        resolve_options({"key": EnvRef(env="NOT_SET_ANYWHERE")})


def test_a_job_is_the_same_after_json(tmp_path):
    """JSON there and back gives the same job."""
    job = load(tmp_path, GOOD, "output.options={key: {env: A}}", "limits.max_rejected=3")
    assert JobSpec.model_validate_json(job.model_dump_json()) == job


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("input: {color: rgb, channels: 1}", "color rgb has 3 channel(s), not 1"),
        ("input: {normalize: {kind: mean_std, mean: [0.5, 0.5], std: [1, 1]}}", "has 2 values for 3 channels"),
        ("input: {normalize: {kind: mean_std, mean: [0.5], std: [0]}}", "contains 0"),
        ("input: {normalize: {kind: window, centre: 3}}", "did you mean center?"),
        ("input: {normalize: {kind: percentile, lower: 99, upper: 1}}", "below"),
        ("input: {normalize: {kind: sqrt}}", "input.normalize"),
        ("output: {classes: [a, a]}", "each name once"),
        ("output: {classes: [a, b], background: 2}", "background is class 2"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(text, sentence):
    """Before any file is opened."""
    with pytest.raises(JobError) as raised:
        validate(Contract, parse_yaml(text.encode(), "c.yaml"), "c.yaml")
    assert sentence in str(raised.value)


def test_the_reference_names_every_field_with_a_sentence():
    """`unet-batch schema` is generated: every field has a line and a description."""
    text = markdown()
    for key in ("model.path", "input.uri", "output.masks", "limits.max_rejected", "input.normalize", "output.classes"):
        assert f"`{key}`" in text
    rows = [
        line for line in text.splitlines() if line.startswith("| `") and ": {kind" not in line and ".kind`" not in line
    ]
    assert [line for line in rows if not line.rstrip(" |").split("|")[-1].strip()] == []
