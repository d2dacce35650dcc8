"""The job files that ship are valid, and the README shows what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from unet_batch.cli import cli
from unet_batch.spec import JobSpec, load_job, validate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_a_job_file_that_ships_is_valid(path):
    """Copying one is a good beginning."""
    assert load_job(path).name == path.stem


def test_the_job_file_in_the_readme_is_valid():
    """The example can be pasted."""
    [text] = [t for t in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if t.startswith("name:")]
    validate(JobSpec, yaml.safe_load(text), "README.md")


def test_every_command_in_the_readme_exists():
    """`unet-batch X` is a command for every X that the README names."""
    named = set(re.findall(r"unet-batch ([a-z]+)", README))
    assert named <= set(cli.commands)
    assert set(cli.commands) <= named


def test_the_readme_is_short_and_its_links_lead_somewhere():
    """150 lines at most; no dead file names."""
    assert len(README.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
