"""The fingerprint: every field of a job file and of a contract is inside, or is listed with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from unet_batch import contract as contract_module
from unet_batch.contract import Contract, Normalize, without_later
from unet_batch.model.model import Model
from unet_batch.planning.fingerprint import LATER, OUTSIDE, fingerprint
from unet_batch.session.combined.ensemble import combined_model
from unet_batch.spec import EnsembleSpec, InputSpec, JobSpec, ModelSpec, OutputSpec

HASHED_BY_CONTENT = ("session.provider_options", "session.custom_ops")
"""What such a field refers to is inside in part: `tests/session/test_engines.py` holds that."""
JOB = JobSpec(
    name="test",
    model=ModelSpec(path="model.onnx", ensemble=EnsembleSpec(members=("other.onnx",))),
    input=InputSpec(uri="s3://archive"),
    output=OutputSpec(uri="s3://output"),
)
NEEDED: dict[str, dict[str, Any]] = {
    "mean_std": {"mean": (0.5,), "std": (0.2,)},
    "window": {"center": 40.0, "width": 400.0},
}
KINDS = [
    member.model_validate(NEEDED.get(member.model_fields["kind"].default, {}))
    for member in get_args(get_args(Normalize)[0])
]


def model(contract: Contract) -> Model:
    return Model("ab" * 32, contract, "image", "logits", (256, 256), None, "nchw")


def leaves(tree: BaseModel, above: str = "") -> Iterator[str]:
    """The path of every field that is no section itself."""
    for name in type(tree).model_fields:
        value = getattr(tree, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def changed(tree: Any, path: str) -> Any:
    """The same tree with another value of any type in one field: nothing is validated."""
    name, _, rest = path.partition(".")
    value = getattr(tree, name)
    return tree.model_copy(update={name: changed(value, rest) if rest else another(value)})


def another(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case tuple():
            return (*value, "more")
        case dict():
            return {**value, "more": "more"}
        case _:
            return f"{value} more"


@pytest.fixture(autouse=True)
def values_of_any_type():
    """Pydantic tells of changed values that have another type."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.mark.parametrize("path", [p for p in leaves(JOB) if p not in HASHED_BY_CONTENT])
def test_every_field_of_a_job_file_changes_the_fingerprint_or_is_listed(path):
    """A new column, colour or limit changes the fingerprint, unless it is listed as an exception."""
    before, after = (fingerprint(job, model(Contract())) for job in (JOB, changed(JOB, path)))
    assert (before == after) == (path in OUTSIDE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_field_of_a_contract_changes_the_fingerprint(kind):
    """Of every kind of normalisation too."""
    plain = Contract()
    contract = plain.model_copy(update={"input": plain.input.model_copy(update={"normalize": kind})})
    before = fingerprint(JOB, model(contract))
    paths = list(leaves(contract))
    assert len(paths) > 20
    for path in paths:
        assert fingerprint(JOB, model(changed(contract, path))) != before, path


def test_the_list_names_fields_that_there_are():
    """A field that was renamed is inside under its new name, and its old entry is seen."""
    assert set(OUTSIDE) <= {*leaves(JOB), *HASHED_BY_CONTENT}
    assert all(OUTSIDE.values())


def test_the_column_of_the_images_changes_the_fingerprint():
    """Two columns of a Parquet file hold other pictures under the same keys and versions."""
    other = JOB.model_copy(update={"input": JOB.input.model_copy(update={"column": "preview"})})
    assert fingerprint(other, model(Contract())) != fingerprint(JOB, model(Contract()))


def test_the_order_of_a_set_is_none():
    """`masks: [png, rle]` asks for what `[rle, png]` asks for."""
    one, two = (
        JOB.model_copy(update={"output": JOB.output.model_copy(update={"masks": masks})})
        for masks in (("rle", "png"), ("png", "rle"))
    )
    assert fingerprint(one, model(Contract())) == fingerprint(two, model(Contract()))


def test_the_fingerprint_of_a_plain_job_is_the_one_of_earlier_versions():
    """A field that is added with a default must not score archives again: it belongs into LATER."""
    assert fingerprint(JOB, model(Contract())) == "d22c79c9824838f0c3c9c78b32d0291a7b08b085402e95d306b4aac464456af6"
    together = combined_model([model(Contract()), model(Contract())], "logits").sha256
    assert together == "9790c88898c385bcba53fd6970217497d47e380644c40f9912f3648e7a89a423"


@pytest.mark.parametrize(
    ("tree", "later"), [(JOB, LATER), (Contract(), contract_module.LATER)], ids=["job", "contract"]
)
def test_a_later_field_has_its_value_of_before_by_default(tree, later):
    """A default that means something new would change results under an old fingerprint."""
    dumped = tree.model_dump(mode="json")
    for path, before in later.items():
        value = dumped
        for name in path.split("."):
            value = value[name]
        assert value == before, path


def test_a_later_field_enters_with_any_other_value():
    """Only the value of before is left out."""
    tree = {"tiling": {"placement": "stride", "overlap": 0.5}}
    assert without_later(tree, {"tiling.placement": "stride"}) == {"tiling": {"overlap": 0.5}}
    assert without_later(tree, {"tiling.placement": "even"}) == tree
