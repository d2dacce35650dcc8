"""Every command's help ends in examples that the command takes."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from unet_batch.cli.examples import EXAMPLES, JOB_IS, commands
from unet_batch.cli.main import cli

COMMANDS = dict(commands(cli))


def help_of(name: str) -> str:
    command = COMMANDS[name]
    return command.get_help(click.Context(command, info_name=name, terminal_width=300, max_content_width=300))


def examples(name: str) -> list[str]:
    return re.findall(rf"^ +unet-batch ({re.escape(name)}(?: .*)?)$", help_of(name), re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_shows_two_examples_and_takes_them(name):
    """Each is parsed as click would parse it; nothing is run."""
    found = examples(name)
    assert len(found) >= 2
    assert help_of(name).count("Examples:") == 1
    for example in found:
        words = shlex.split(example)[len(name.split()) :]
        COMMANDS[name].make_context(name, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_job_is(name):
    takes = any(parameter.human_readable_name.strip("[]") == "JOB" for parameter in COMMANDS[name].params)
    assert (JOB_IS in help_of(name)) == takes


def test_no_example_is_of_a_command_that_is_gone():
    assert set(EXAMPLES) <= set(COMMANDS)
