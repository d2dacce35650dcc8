"""What MkDocs asks while it builds: pages that are no files of docs/, links between pages, and fences of code.

Pages come from docs/, from Markdown files elsewhere in the repository (COPIED), and from the code (reference_pages).
A link that leads to a file without a page, such as a test, becomes the file's path as text.
"""

from __future__ import annotations

import os.path
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

# MkDocs loads this file without its folder.
sys.path.insert(0, str(Path(__file__).parent))
from reference_pages import pages

ROOT = Path(__file__).parents[2]
COPIED = {
    "index.md": "README.md",
    "how-to/cluster.md": "cluster/README.md",
    "architecture.md": "unet_batch/ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages by their place in the site, and the file of the repository that each is."""

_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"^```(?P<language>\w+) +(?P<words>[^\n`]+)$", re.MULTILINE)
_FILE = re.compile(r"\bfile=(\S+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that docs/ does not hold."""
    generated = {place: (ROOT / source).read_text() for place, source in COPIED.items()} | pages()
    for place, text in generated.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - called by name
    """Links as this site has them, fences as the highlighter wants them."""
    place = page.file.src_uri
    return plain_fences(site_links(markdown, place, {file.src_uri for file in files}))


def plain_fences(text: str) -> str:
    """Fences without the words that are meant for the tests; the name of a file becomes its title."""

    def plain(found: re.Match[str]) -> str:
        name = _FILE.search(found["words"])
        return f'```{found["language"]} title="{name[1]}"' if name else f"```{found['language']}"

    return _FENCE.sub(plain, text)


def site_links(text: str, place: str, places: set[str]) -> str:
    """Links between files of the repository as links between pages; a file without a page is named.

    place: the page in the site. places: all files of the site.
    """
    origin = PurePosixPath(COPIED.get(place, f"docs/{place}"))
    page_of = {source: copied for copied, source in COPIED.items()}

    def moved(found: re.Match[str]) -> str:
        mark, words, target = found["mark"], found["text"], found["target"]
        path, anchor, name = target.partition("#")
        if not path or "://" in path:
            return found[0]
        source = os.path.normpath(origin.parent / path)
        there = page_of.get(source, source.removeprefix("docs/"))
        if there not in places and not (ROOT / source).exists():
            return found[0]  # MkDocs says that it leads nowhere
        if there not in places:
            return f"{words} (`{source}`)" if source not in words else words
        return f"{mark}[{words}]({os.path.relpath(there, PurePosixPath(place).parent)}{anchor}{name})"

    pieces = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # code holds no links
    return "".join(piece if piece.startswith("```") else _LINK.sub(moved, piece) for piece in pieces)
