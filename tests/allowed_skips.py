"""A pytest plugin: in continuous integration a test may be skipped for a reason on this list, and for no other.

A suite that is skipped because its server did not start, or a package was not installed, has tested nothing; a green
run would say that it had. The rule holds where CI or UNET_BATCH_STRICT_SKIPS is set.
"""

from __future__ import annotations

import os
import re

import pytest

ALLOWED = (
    r"this processor has no .*",
    r"this processor does not .*",
    r"root may read everything",
    r"only root can make a disk of its own",
    r"the limit of address space is Linux's",
    r"there is no /proc here",
    r"this system makes no PID namespace for us",
    r"this tar writes no sparse members",
    r"each node has a loopback address of its own, which other systems do not set up",
    r"fake-gcs-server is not for this machine",
    r"KubeRay's definitions are not in .*",
    r"(napari|FiftyOne|label-studio-sdk) is not installed; its part of the page was tried by hand",
)
"""Facts about a machine that no installation changes; KubeRay's definitions, which no package registry has; and large
programs for which docs/how-to/other-tools.md has a recipe: other tests hold their files to the programs' rules."""


def strict() -> bool:
    """Whether a skip that is not allowed fails the run."""
    return any(os.environ.get(name, "") not in ("", "0", "false") for name in ("CI", "UNET_BATCH_STRICT_SKIPS"))


def forbidden(reports: list[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """Name and reason of every skip that is not on the list, each once."""
    found = {}
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(re.fullmatch(pattern, reason) for pattern in ALLOWED):
            found[f"{report.nodeid}: {reason}"] = None
    return list(found)


def _skipped(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [] if reporter is None else forbidden(reporter.stats.get("skipped", []))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that skipped what it must not."""
    if strict() and not hasattr(session.config, "workerinput") and _skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was skipped and must not be."""
    names = _skipped(config) if strict() else []
    if names:
        terminalreporter.section("skipped, and not on the list of tests/allowed_skips.py", red=True)
        for name in names:
            terminalreporter.line(name)
