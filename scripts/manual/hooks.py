"""MkDocs hooks of the manual: generated parts, included files, and links that leave docs/.

A page is Markdown that reads well in the repository, too. Two comments, each on a line of its own, are replaced when
the site is built:

    <!-- generated: NAME ARGUMENTS -->   what the generator NAME returns (GENERATORS below)
    <!-- include: PATH -->               the file at PATH, relative to the page

Links are written relative to the file that they stand in. One to a file that a page includes leads to that page; one to
another file of the repository leads to a copy of it in the site. Whatever else does not exist stays as it is, and the
strict build fails on it.
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.manual import command_line, http_api, python_api, results, train_options  # noqa: E402

DOCS = "docs"
COPIED = "repository"
"""Folder of the site for copies of files that lie outside of docs/."""
GENERATED = re.compile(r"^<!-- generated: ([a-z-]+) ?(.*?) -->$", re.MULTILINE)
INCLUDED = re.compile(r"^<!-- include: (\S+) -->$", re.MULTILINE)
FENCED = re.compile(r"^(?P<fence> *(?:```|~~~)).*?^(?P=fence) *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<head>\]\(|<img src=\"|srcset=\")(?P<target>[^)\s\"]+)")
GENERATORS: dict[str, Callable[..., str]] = {
    "verbs": command_line.verbs,
    "command-line": command_line.reference,
    "train-options": train_options.reference,
    "http-overview": http_api.overview,
    "http-operations": http_api.operations,
    "http-refusals": http_api.refusals,
    "schemas": http_api.schemas,
    "machine": results.machine,
    "stages": results.stages,
    "haystack": results.haystack,
    "policy": results.policy,
    "calibration": results.calibration,
    "calibration-layers": results.calibration_layers,
    "layers": results.layers,
    "exits": results.exits,
    "front": results.front,
    "loader": results.loader,
    "loop": results.loop,
    "long-file": results.long_file,
    "decode-modes": results.decode_modes,
    "live": results.live,
    "whole": results.whole,
    "peers": results.peers,
    "early-exits": results.early_exits,
    "fuzz": results.fuzz,
}

_pages: dict[str, str] = {}
"""Page of the site by the repository path of the file that it includes."""


def on_files(files: Files, config: Any) -> Files:
    """Note which page includes which file of the repository."""
    del config
    _pages.clear()
    for file in files.documentation_pages():
        folder = posixpath.dirname(f"{DOCS}/{file.src_uri}")
        for found in INCLUDED.finditer(file.content_string):
            _pages[posixpath.normpath(posixpath.join(folder, found[1]))] = file.src_uri
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Return a page with its generated parts, its included files, and links that hold in the site."""
    del config
    home = f"{DOCS}/{page.file.src_uri}"
    return _expanded(markdown, home, page.file, files)


def _expanded(markdown: str, home: str, page: File, files: Files) -> str:
    """Return Markdown that stands in the file ``home`` as it is to stand on ``page``."""
    linked = _outside_fences(markdown, lambda text: LINK.sub(lambda found: _link(found, home, page, files), text))

    def include(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(home), found[1]))
        if not (ROOT / path).is_file():
            raise PluginError(f"{home}: {found[0]}: no file {path}")
        return _expanded((ROOT / path).read_text("utf-8"), path, page, files)

    def generate(found: re.Match[str]) -> str:
        if found[1] == "python-api":
            return python_api.reference(markdown)
        if found[1] not in GENERATORS:
            raise PluginError(f"{home}: {found[0]}: no such generator: {', '.join(GENERATORS)}")
        return GENERATORS[found[1]](*([found[2]] if found[2] else []))

    return GENERATED.sub(generate, INCLUDED.sub(include, linked))


def _outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Change what stands outside of fenced blocks."""
    parts, at = [], 0
    for fence in FENCED.finditer(text):
        parts += [change(text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, change(text[at:])])


def _link(found: re.Match[str], home: str, page: File, files: Files) -> str:
    """Return a link of the file ``home`` as it holds on ``page``."""
    target, mark, anchor = found["target"].partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return found[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
    place = _place(path, files)
    if place is None:
        return found[0]
    return found["head"] + posixpath.relpath(place, posixpath.dirname(page.src_uri) or ".") + mark + anchor


def _place(path: str, files: Files) -> str | None:
    """Return where a file of the repository stands in the site; None where it does not exist."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    for name in (path, f"{path}/README.md"):
        if name in _pages:
            return _pages[name]
    if path == "README.md":
        return "index.md"
    if (ROOT / path).is_dir():
        raise PluginError(f"a link leads to the folder {path}/: link to a file in it")
    if not (ROOT / path).is_file() or path.startswith(".."):
        return None
    place = f"{COPIED}/{path}"
    if path.endswith(".md"):
        raise PluginError(f"a link leads to {path}: let a page of the manual include it")
    if files.get_file_from_path(place) is None:
        files.append(File.generated(CONFIG, place, abs_src_path=str(ROOT / path)))
    return place


CONFIG: Any = None


def on_config(config: Any) -> Any:
    """Keep the configuration: generated files need it."""
    global CONFIG  # noqa: PLW0603 - mkdocs builds one site at a time
    CONFIG = config
    return config
