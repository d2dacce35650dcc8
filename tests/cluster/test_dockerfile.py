"""The Dockerfile, read line by line: pinned, not root, and nothing in it that a build should not see."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from unet_batch.on_ray import start as ray_start

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster" / "Dockerfile").read_text()
IGNORED = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text()
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(instruction, arguments) without comments, continued lines joined."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(word, rest) for line in joined.splitlines() if line.strip() for word, _, rest in [line.partition(" ")]]


def stages() -> dict[str, list[Instruction]]:
    """Instructions of each stage behind those of the stages it is made from."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))
        elif name:
            found[name].append((word, rest))
    return found


TARGETS = pytest.mark.parametrize("target", ["cpu", "gpu"])


@TARGETS
def test_the_last_user_is_not_root(target):
    """A number, so that Kubernetes can check it against runAsNonRoot."""
    users = [rest for word, rest in stages()[target] if word == "USER"]
    assert users[-1] == "1000:1000"


def test_the_default_target_needs_no_gpu():
    """`docker build` without --target gives the last stage."""
    assert list(stages())[-1] == "cpu"


def test_every_base_has_a_version():
    """No `latest`, by word or by leaving the tag out; the Python that constraints.txt was made with."""
    defaults = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and "=" in rest)
    named = set(stages())
    bases = {rest.partition(" AS ")[0] for word, rest in instructions() if word == "FROM"} - named
    assert bases == {"${BASE}"}
    assert re.fullmatch(r"python:3\.11-slim-[a-z]+(@sha256:[0-9a-f]{64})?", defaults["BASE"])
    assert "latest" not in TEXT


def test_everything_is_installed_under_both_files_of_constraints():
    """And from wheels: no package's build script runs."""
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    for command in installs:
        assert "--constraint constraints.txt --constraint cluster/constraints.txt" in command
        assert "--only-binary :all:" in command
        assert "http" not in command
        assert "index-url" not in command


def pins(name: str) -> dict[str, str]:
    """Versions by canonical name; two lines with markers for one name hold one version."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    found = [Requirement(line) for line in lines if line]
    assert all(re.fullmatch(r"==[^,*]+", str(r.specifier)) for r in found)
    return {canonicalize_name(r.name): str(r.specifier) for r in found}


def test_the_clusters_constraints_only_add():
    """One version of everything: no package is pinned in both files."""
    assert not set(pins("constraints.txt")) & set(pins("cluster/constraints.txt"))


def test_what_ray_default_needs_is_pinned():
    """The job server, the dashboard and the health checks of a node are part of ray[default]."""
    import importlib.metadata

    pinned = set(pins("constraints.txt")) | set(pins("cluster/constraints.txt"))
    needed = [Requirement(text) for text in importlib.metadata.requires("ray") or ()]
    asked = {canonicalize_name(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": "default"})}
    assert {"aiohttp-cors", "opencensus", "virtualenv"} <= asked
    assert asked <= pinned


def test_freed_pages_are_kept_as_in_an_embedded_run():
    """On a cluster nobody else sets these variables."""
    environment = dict(
        pair.split("=", 1) for word, rest in stages()["cpu"] if word == "ENV" for pair in rest.split() if "=" in pair
    )
    assert ray_start.KEEP_PAGES.items() <= environment.items()
    assert environment["HOME"].startswith("/tmp/")
    assert environment["XDG_CACHE_HOME"].startswith("/tmp/")


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", ".env", "jobs/nightly.yaml", "cluster/aws.yaml"])
def test_a_build_does_not_see(path):
    """Everything is left out but what the image is made of."""
    assert not seen(path)


def test_a_build_sees_what_it_copies():
    """Every source of a COPY exists and is not ignored."""
    copies = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    sources = [source for group in copies for source in group]
    assert "unet_batch" in sources
    for source in sources:
        assert (ROOT / source).exists()
        assert seen(source)


def seen(path: str) -> bool:
    """Whether a build gets a path: of the patterns that match it or a folder above it, the last one decides."""
    visible = True
    for pattern in (line for line in IGNORED.splitlines() if line and not line.startswith("#")):
        above = [path, *map(str, Path(path).parents)][:-1]
        if any(fnmatch.fnmatchcase(p, pattern.removeprefix("!").removeprefix("**/")) for p in above):
            visible = pattern.startswith("!")
    return visible
