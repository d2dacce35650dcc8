"""Exit codes: one table in the code, help text and pages that agree with it, and a rule for several problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from project_fixture import png

from unet_batch.cli.main import cli
from unet_batch.errors import ExitCode, UnetBatchError, overall

ROOT = Path(__file__).parents[2]


def all_errors(base: type[UnetBatchError] = UnetBatchError) -> list[type[UnetBatchError]]:
    """Every class of the tree."""
    return [base, *(found for sub in base.__subclasses__() for found in all_errors(sub))]


@pytest.mark.parametrize(
    ("met", "code"),
    [
        ((), 0),
        ((0, 4), 4),
        ((4, 5), 5),
        ((5, 3), 3),
        ((4, 3), 3),
        ((5, 4, 3), 3),
        ((3, 2), 2),
        ((3, 1, 5), 1),
    ],
)
def test_of_several_problems_one_exit_code_is_given(met, code):
    """While another run can finish something it is 3; then 5; then 4."""
    assert overall(met) == code


def test_the_page_has_the_table_of_the_code():
    """Number, name and meaning of each, and no other number."""
    page = (ROOT / "docs" / "faults.md").read_text()
    lines = [f"| {code:d} | `{code.label}` | {code.meaning} |" for code in ExitCode]
    table = page.partition("| exit code |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [line.startswith(wanted) for line, wanted in zip(table, lines, strict=True)] == [True] * len(lines)


def test_the_readme_names_every_exit_code():
    """In their order, in one sentence."""
    sentence = " ".join((ROOT / "README.md").read_text().partition("Exit codes: ")[2].split("\n\n")[0].split())
    places = [sentence.find(f"{code:d} ") for code in ExitCode]
    assert places == sorted(places)
    assert min(places) == 0


def test_the_help_text_has_the_table_of_the_code():
    """`unet-batch --help` has it."""
    said = CliRunner().invoke(cli, ["--help"]).output
    assert [code for code in ExitCode if f"{code:d}  {code.meaning}" not in said] == []


def test_the_drawn_tree_of_errors_has_their_exit_codes():
    """Each line of the tree that names an exit code names that of its class."""
    import unet_batch.errors

    drawn = {
        words[0]: int(line.rpartition("exit ")[2])
        for line in (unet_batch.errors.__doc__ or "").splitlines()
        if "── " in line and "exit " in line and (words := line.partition("── ")[2].split())
    }
    real = {error.__name__: int(error.exit_code) for error in all_errors()}
    assert {name: real[name] for name in drawn} == drawn
    assert {"JobError", "Unavailable", "Held", "NeedsAction", "Damaged"} <= drawn.keys()


@pytest.mark.slow
def test_a_partition_that_needs_action_ends_with_5_on_the_command_line(project):
    """The JSON line has number and name; the same command again ends in the same way."""
    project.fill("2026/11/21", 1)
    project.put("2026/11/21/bad.png", b"x")
    project.put("2026/11/21/bad2.png", png(1)[:40])
    for _ in range(2):
        result = project.command("run", "job.yaml", "--executor", "local", "--quiet")
        last = json.loads(result.stdout.splitlines()[-1])
        assert (result.returncode, last["exit_code"], last["exit"]) == (5, 5, "needs_action")


def test_one_day_to_run_again_and_one_that_needs_action_are_3_and_then_5(project):
    """A scheduler that retries only on 3 comes to an end, with everything scored that can be."""
    project.put("2026/11/20/bad.png", b"x")
    project.fill("2026/11/21", 2)
    late = project.run(executor=lambda settings: _Nothing())
    assert (late.exit_code, late.published) == (3, 0)
    for published in (1, 0):
        again = project.run()
        assert (again.exit_code, again.published) == (5, published)


class _Nothing:
    """An executor that is told to stop before its first unit."""

    name, workers, loaders, fault = "nothing", 1, 0, None

    def run(self, units):
        raise KeyboardInterrupt

    def close(self):
        """Nothing to release."""
