"""Lets these tests import `models` and `contracts` from the folder above."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
pytest.register_assert_rewrite("contracts.session_suite")
