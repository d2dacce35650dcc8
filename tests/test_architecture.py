"""The house: imports go down only, each foreign library has its owners, and ARCHITECTURE.md says what is there."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "unet_batch"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")

LAYERS = [
    ["errors", "records", "strict", "contract", "options", "spec"],
    ["store", "imaging"],
    ["decode"],
    ["archive"],
    ["model"],
    ["session"],
    ["table"],
    ["gate"],
    ["worker"],
    ["planning"],
    ["job"],
    ["on_ray"],
    ["workbench", "architectures"],
    ["review", "report_page"],
    ["reference", "terminal"],
    ["command"],
    ["command_cluster", "command_model", "command_report"],
    ["command_run"],
    ["cli"],
    ["__main__"],
]
"""Bottom first; a module may import from its own layer's folder and from every layer below."""

OWNERS = {
    "ray": {"on_ray/forwarded.py", "on_ray/executor.py", "on_ray/nodes.py", "on_ray/start.py", "on_ray/submit.py"},
    "onnxruntime": {"session/onnxruntime_session.py", "session/plain_session.py", "workbench/quantize_graph.py"},
    "openvino": {"session/openvino_session.py"},
    "fsspec": {"store/storage.py"},
    "s3fs": set(),
    "gcsfs": set(),
    "adlfs": set(),
    "aiohttp": {"store/gcs.py"},
    "azure": {"store/azure.py"},
    "PIL": {"decode/decode.py", "decode/exif.py", "imaging/encode.py", "imaging/resize.py"},
    "tifffile": {"decode/tiff.py", "decode/tiff_planes.py"},
    "imagecodecs": {"decode/decode.py"},
    "tenacity": {"store/faults.py"},
    "click": {"cli.py", "command.py", "command_cluster.py", "command_model.py", "command_report.py", "command_run.py"},
    "jinja2": {"report_page.py"},
    "yaml": {"strict.py", "model/contract.py", "workbench/export/contract.py", "workbench/packing/pack.py"},
}
"""Foreign libraries and the only modules that import them."""


@functools.cache
def imports(path: Path) -> set[str]:
    """Full names of everything a module imports, inside functions too, type-checking blocks aside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def layer(name: str) -> int:
    first = name.split(".")[1] if name.startswith("unet_batch.") else name
    return next(i for i, names in enumerate(LAYERS) if first in names)


def module_name(path: Path) -> str:
    return "unet_batch." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    """A module imports from below, or from its own folder."""
    own = module_name(path)
    for name in imports(path):
        if name.startswith("unet_batch."):
            same_folder = name.split(".")[1] == own.split(".")[1]
            words = layer(own) == 0 and layer(name) == 0
            assert same_folder or words or layer(name) < layer(own), f"{own} imports {name}"


@pytest.mark.parametrize("library", OWNERS)
def test_a_foreign_library_is_imported_by_its_owners_only(library):
    """One place to look when a library changes."""
    users = {str(p.relative_to(PACKAGE)) for p in MODULES if any(n.split(".")[0] == library for n in imports(p))}
    assert users <= OWNERS[library]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_is_short_and_says_what_it_is(path):
    """350 lines is a wall, and the first statement is a docstring."""
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_console_prints_text_and_no_markup(path):
    """Names and messages come from archives: a name with brackets must not vanish or end in a stack trace."""
    wanted = {"Console": {"markup", "emoji"}, "TextColumn": {"markup"}}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in wanted:
            off = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is False}
            assert wanted[node.func.id] <= off, f"line {node.lineno}"
        assert not (isinstance(node, ast.Attribute) and node.attr == "from_markup")


POSIX_ERRNOS = {
    "EACCES", "EAGAIN", "EBADF", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDQUOT", "EEXIST", "EFBIG",
    "EHOSTUNREACH", "EINTR", "EINVAL", "EIO", "EISDIR", "ELOOP", "EMFILE", "EMLINK", "ENAMETOOLONG", "ENETUNREACH",
    "ENFILE", "ENODEV", "ENOENT", "ENOLCK", "ENOMEM", "ENOSPC", "ENOSYS", "ENOTCONN", "ENOTDIR", "ENOTEMPTY", "ENOTSUP",
    "EPERM", "EPIPE", "EROFS", "ESPIPE", "ESTALE", "ETIMEDOUT", "EXDEV",
}  # fmt: skip


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_error_numbers_are_those_of_every_system(path):
    """`errno.EREMOTEIO` is Linux's own: on macOS the import of such a module fails."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "errno"
    }
    assert used - {"errorcode"} <= POSIX_ERRNOS


def test_every_module_can_be_imported_where_linux_has_more_than_others():
    """macOS has no EREMOTEIO, no affinity and no /proc."""
    names = [module_name(path) for path in MODULES if path.name != "__main__.py"]
    code = (
        "import errno, os, importlib;"
        "del errno.EREMOTEIO;"
        "vars(os).pop('sched_getaffinity', None);"
        f"[importlib.import_module(name) for name in {names!r} if 'export' not in name and 'architectures' not in name]"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_no_engine():
    """`import unet_batch` and the command line's help are cheap."""
    code = (
        "import sys, unet_batch, unet_batch.cli, unet_batch.spec, unet_batch.job.run;"
        "heavy = {'ray', 'onnxruntime', 's3fs', 'gcsfs', 'adlfs', 'aiohttp', 'azure', 'torch'};"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def on_the_page(page: str) -> set[str]:
    """Names in the first column of the house's tables."""
    lines = page.partition("## The house")[2].splitlines()
    return {name for line in lines if line.startswith("| `") for name in line.split("|")[1].split("`")[1::2]}


def in_the_package() -> set[str]:
    """Modules, and what else the page names."""
    return {str(path.relative_to(PACKAGE)) for path in MODULES} | {"templates/report.html"}


def test_the_architecture_page_names_every_module():
    """No module is missing from the page, and the page names none that does not exist."""
    assert on_the_page((PACKAGE / "ARCHITECTURE.md").read_text()) == in_the_package()


@pytest.mark.parametrize("name", ["job/run.py", "command.py", "workbench/packing/pack.py"])
def test_a_module_is_not_found_inside_the_name_of_another_one(name):
    """`run` is in `run_records`: a page without `job/run.py` lacks it nevertheless."""
    page = (PACKAGE / "ARCHITECTURE.md").read_text()
    house = page.partition("## The house")
    lacking = house[0] + house[1] + house[2].replace(f"`{name}`", "`another.py`")
    assert in_the_package() - on_the_page(lacking) == {name}
