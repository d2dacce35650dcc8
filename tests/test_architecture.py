"""The house: imports go down only, each foreign library has its owners, and ARCHITECTURE.md says what is there."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from imports_of import circles, closure, libraries, modules_of, parsed, upward

PACKAGE = Path(__file__).parents[1] / "unet_batch"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")

LAYERS = [
    {"errors", "extras", "lifeline", "records", "strict", "contract", "options", "session_spec", "limits_spec", "spec"},
    {"store", "imaging"},
    {"decode"},
    {"archive"},
    {"model"},
    {"session"},
    {"table"},
    {"gate"},
    {"worker"},
    {"planning"},
    {"job"},
    {"on_ray"},
    {"workbench", "architectures"},
    {"review"},
    {"cli"},
    {"__main__"},
]
"""Rooms, the lowest first. A module imports from rooms below, and from its own."""

NOT_IN_A_WORKER = {"planning", "job", "workbench", "review", "cli"}
"""Rooms that no worker process imports."""
WORKERS = (
    *("worker.worker", "worker.process", "on_ray.actors"),
    *("session.onnxruntime_session", "session.openvino_session"),
)
"""Where the import closure of a worker process begins."""

LARGEST_ROOM = 15
"""Modules of one folder."""

OWNERS = {
    "ray": {"on_ray/forwarded.py", "on_ray/executor.py", "on_ray/nodes.py", "on_ray/start.py", "on_ray/submit.py"},
    "onnxruntime": {"session/onnxruntime_session.py", "session/plain_session.py", "workbench/quantize_graph.py"},
    "openvino": {"session/openvino_session.py"},
    "fsspec": {"store/opening.py"},
    "obstore": {"store/obstore_reads.py"},
    "botocore": {"store/s3_client.py"},
    "s3fs": set(),
    "gcsfs": set(),
    "adlfs": set(),
    "aiohttp": {"store/gcs.py"},
    "azure": {"store/azure.py"},
    "PIL": {
        "decode/decode.py",
        "decode/labels.py",
        "decode/exif.py",
        "imaging/encode.py",
        "imaging/resize.py",
        "imaging/sheet.py",
    },
    "tifffile": {"decode/labels.py", "decode/tiff.py", "decode/tiff_planes.py", "imaging/encode.py"},
    "imagecodecs": {"decode/jpeg.py", "decode/png.py"},
    "tenacity": {"store/faults.py"},
    "click": {
        f"cli/{name}.py"
        for name in "cluster command examples importers main model optimize report review run start terminal".split()  # noqa: SIM905
    },
    "jinja2": {"review/page.py"},
    "yaml": {
        *("strict.py", "model/contract.py"),
        *(f"workbench/{name}.py" for name in ("draft/texts", "export/contract", "importers/write", "packing/pack")),
    },
}
"""Foreign libraries and the only modules that import them."""


@pytest.fixture(scope="module")
def edges():
    return modules_of(PACKAGE)


def test_imports_go_down_only(edges):
    assert upward(edges, LAYERS) == []


def test_no_modules_import_each_other_in_a_circle(edges):
    """Not inside a folder either, and not for type checking only."""
    assert circles(edges) == []


@pytest.mark.parametrize("start", WORKERS)
def test_a_worker_imports_no_planning_no_workbench_no_review_and_no_command_line(edges, start):
    assert {name for name in closure(edges, start) if name.split(".")[0] in NOT_IN_A_WORKER} == set()


@pytest.mark.parametrize("library", OWNERS)
def test_a_foreign_library_is_imported_by_its_owners_only(library):
    """One place to look when a library changes; an owner that no longer imports it is no owner."""
    assert libraries(PACKAGE).get(library, set()) == OWNERS[library]


def test_only_its_folder_imports_ray():
    assert {name.split("/")[0] for name in libraries(PACKAGE)["ray"]} == {"on_ray"}


@pytest.mark.parametrize("folder", sorted({p.parent for p in MODULES} - {PACKAGE}), ids=lambda p: p.name)
def test_a_folder_can_be_read_at_a_glance(folder):
    assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= LARGEST_ROOM


@pytest.fixture
def planted(tmp_path):
    """Adds a line to a module of a copy of the package, and returns the copy."""
    copy = tmp_path / "unet_batch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def plant(module, line):
        path = copy / module
        path.write_text(f"{path.read_text()}\n{line}\n")
        return copy

    return plant


def test_an_import_that_goes_up_is_found(planted):
    copy = planted("store/faults.py", "import unet_batch.table.rows")
    assert upward(modules_of(copy), LAYERS) == ["store.faults imports table.rows"]


def test_a_circle_inside_a_folder_is_found_though_only_types_need_it(planted):
    line = "if TYPE_CHECKING:\n    from unet_batch.decode.decode import decode"
    found = circles(modules_of(planted("decode/sizes.py", line)))
    assert [name for name in found[0] if name in ("decode.decode", "decode.sizes")] == ["decode.decode", "decode.sizes"]


def test_an_import_inside_a_function_counts(planted):
    line = "def late():\n    from unet_batch.workbench import inspect"
    edges = modules_of(planted("worker/load.py", line))
    assert "workbench.inspect" in closure(edges, "on_ray.actors")


def test_an_owner_that_is_none_is_found(planted):
    assert "job/run.py" in libraries(planted("job/run.py", "import ray.data as data"))["ray"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_is_short_and_says_what_it_is(path):
    """350 lines is a wall, and the first statement is a docstring."""
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert parsed(text).docstring


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_console_prints_text_and_no_markup(path):
    """Names and messages come from archives: a name with brackets must not vanish or end in a stack trace."""
    wanted = {"Console": {"markup", "emoji"}, "TextColumn": {"markup"}}
    module = parsed(path.read_text())
    for node in module.calls:
        if isinstance(node.func, ast.Name) and node.func.id in wanted:
            off = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is False}
            assert wanted[node.func.id] <= off, f"line {node.lineno}"
    assert "from_markup" not in {node.attr for node in module.attributes}


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
        for node in parsed(path.read_text()).attributes
        if isinstance(node.value, ast.Name) and node.value.id == "errno"
    }
    assert used - {"errorcode"} <= POSIX_ERRNOS


def test_every_module_can_be_imported_where_linux_has_more_than_others():
    """macOS has no EREMOTEIO, no affinity and no /proc."""
    names = [f"unet_batch.{name}" for name in modules_of(PACKAGE) if name not in ("__main__", "__init__")]
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
        "import sys, unet_batch, unet_batch.cli.main, unet_batch.spec, unet_batch.job.run;"
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
    return {str(path.relative_to(PACKAGE)) for path in MODULES} | {
        f"review/templates/{name}" for name in ("report.html", "difference.html", "style.css")
    }


def test_the_architecture_page_names_every_module():
    """No module is missing from the page, and the page names none that does not exist."""
    assert on_the_page((PACKAGE / "ARCHITECTURE.md").read_text()) == in_the_package()


@pytest.mark.parametrize("name", ["job/run.py", "cli/command.py", "workbench/packing/pack.py"])
def test_a_module_is_not_found_inside_the_name_of_another_one(name):
    """`run` is in `run_records`: a page without `job/run.py` lacks it nevertheless."""
    page = (PACKAGE / "ARCHITECTURE.md").read_text()
    house = page.partition("## The house")
    lacking = house[0] + house[1] + house[2].replace(f"`{name}`", "`another.py`")
    assert in_the_package() - on_the_page(lacking) == {name}
