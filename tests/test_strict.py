"""Untrusted YAML: limits on expanded aliases, and on how much of a text an error repeats."""

from __future__ import annotations

import time

import pytest

from unet_batch.contract import Contract
from unet_batch.errors import JobError
from unet_batch.spec import JobSpec
from unet_batch.strict import MAX_MESSAGE, parse_yaml, set_value, validate

BILLION = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
DEEP = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000))
ITSELF = "a: &a [*a]\n"
MERGED = "a0: &a0 {k0: x}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n  k{n}: x\n" for n in range(1, 9)
)
LONG = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 10_000)}]\n"
NESTED = "a: " + "[" * 2000 + "]" * 2000


@pytest.mark.parametrize(
    "text",
    [BILLION, DEEP, ITSELF, MERGED, LONG, NESTED],
    ids=["values", "depth", "circle", "merged", "text", "brackets"],
)
def test_a_text_that_expands_to_too_much_is_refused_in_one_sentence(text):
    """In little processor time (also on a busy machine), and before the tree is built."""
    began_s = time.process_time()
    with pytest.raises(JobError) as refused:
        parse_yaml(text.encode(), "bomb.yaml")
    assert time.process_time() - began_s < 5
    assert "bomb.yaml is not valid YAML" in str(refused.value)
    assert len(str(refused.value)) < MAX_MESSAGE


def test_small_aliases_are_accepted():
    """A job file may define a block once and use it three times."""
    tree = parse_yaml(b"a: &a {x: 1}\nb: *a\nc: {y: *a}\n", "job.yaml")
    assert tree == {"a": {"x": 1}, "b": {"x": 1}, "c": {"y": {"x": 1}}}


@pytest.mark.parametrize(
    "text",
    [
        "name: " + "x" * 200_000,
        "x" * 200_000 + ": 1",
        "window: [" + "1, " * 40_000 + "1]",
        "a: *" + "x" * 200_000,
        "name: 1" + "0" * 5000,
        "model: {path: 3, " + ", ".join(f"k{n}: {n}" for n in range(3000)) + "}",
    ],
    ids=["a value", "a key", "a list", "an alias", "a number", "many keys"],
)
def test_an_error_repeats_little_of_a_long_text(text):
    """Messages stay short."""
    with pytest.raises(JobError) as refused:
        validate(JobSpec, parse_yaml(text.encode(), "job.yaml"), "job.yaml")
    assert len(str(refused.value)) < MAX_MESSAGE + 100


def test_a_long_contract_is_not_read():
    """A contract may come from an untrusted model."""
    with pytest.raises(JobError, match="at most 65536 are read"):
        parse_yaml(b"#" * 70_000, "contract", max_bytes=1 << 16)
    assert validate(Contract, parse_yaml(b"input: {channels: 3}", "contract"), "contract") == Contract()


def test_an_override_has_the_same_limits():
    """`--set` parses YAML too."""
    with pytest.raises(JobError, match="--set a"):
        set_value({}, "a=" + "[" * 2000 + "]" * 2000)
