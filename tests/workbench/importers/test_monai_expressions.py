"""Expressions of MONAI bundles: plain arithmetic has its value, and everything else stays code that nothing runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unet_batch.errors import ModelRefused
from unet_batch.workbench.importers.monai.config import BundleConfig


def config(tmp_path: Path, **tree: Any) -> BundleConfig:
    (tmp_path / "configs").mkdir(exist_ok=True)
    (tmp_path / "configs" / "inference.json").write_text(json.dumps(tree))
    return BundleConfig(tmp_path)


VALUES = {
    "$255": 255,
    "$-1.5": -1.5,
    "$None": None,
    "$True": True,
    "$(96, 64)": [96, 64],
    "$@side * 2 + 1": 129,
    "$@side // 3": 21,
    "$@sizes::1": 48,
    "$@sizes#0": 32,
    "$@sizes + [@side]": [32, 48, 64],
    "$len(@names)": 2,
    "$len(@sizes)": 2,
    "$@root + '/models/' + @file": "./models/best.pt",
    "$monai.utils.CommonKeys.IMAGE": "image",
    "$CommonKeys.PRED": "pred",
    "$monai.utils.enums.BlendMode.GAUSSIAN": "gaussian",
    "$@again": 64,
}
KNOWN = {
    "side": 64,
    "sizes": [32, 48],
    "names": {"background": 0, "cell": 1},
    "root": ".",
    "file": "best.pt",
    "again": "$@side",
}


@pytest.mark.parametrize("text", VALUES)
def test_plain_arithmetic_has_the_value_that_python_gives(tmp_path: Path, text: str) -> None:
    """References are followed, also to other expressions."""
    assert config(tmp_path, **KNOWN, asked=text).at("asked") == VALUES[text]


CODE = [
    "$__import__('os').system('true')",
    "$@side.real",
    "$[each for each in @sizes]",
    "$open('/etc/passwd')",
    "$(lambda: 1)()",
    "$os.CommonKeys.IMAGE",
    "$@side if True else 0",
    "$max(1, 2)",
    "$len(@names, 2)",
    "$'@side'",
    "$f'{@side}'",
    "$10 ** 9",
    "$1000000 * 1000000",
    "$@sizes * 1000",
    "$'a' * 1000",
    "$1 / 0",
    "$1 +",
    "$side",
    "$@code + 1",
    "$" + "(" * 500 + ")" * 500,
]


@pytest.mark.parametrize("text", CODE)
def test_everything_else_stays_code(tmp_path: Path, text: str) -> None:
    """The text itself: where its value is needed, it is refused."""
    assert config(tmp_path, **KNOWN, code="$torch.device('cpu')", asked=text).at("asked") == text


def test_expressions_in_a_circle_are_refused(tmp_path: Path) -> None:
    """One sentence, and no endless recursion."""
    with pytest.raises(ModelRefused, match="run in a circle"):
        config(tmp_path, a="$@b + 1", b="$@a + 1").at("a")


def test_expressions_that_double_are_computed_once_each(tmp_path: Path) -> None:
    """30 levels of two references each would be a thousand million steps."""
    tree: dict[str, Any] = {f"a{n}": f"$@a{n + 1} + @a{n + 1}" for n in range(29)} | {"a29": 1}
    assert config(tmp_path, **tree).at("a0") == 2**29


def test_a_missing_reference_is_named(tmp_path: Path) -> None:
    """As one without arithmetic."""
    with pytest.raises(ModelRefused, match="refers to @nowhere, which is not in the file"):
        config(tmp_path, a="$@nowhere + 1").at("a")
