"""The guards of scripts/check find what they are for, and packages stay as shallow as drawn."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAX_LEVELS = 9
"""Of packages that import each other, from the entry point down."""


def guards(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "guards.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_source_has_no_finding() -> None:
    done = guards()
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("a.py", '"""Say what was there."""\n', "a.py:1: 'what was there'"),
        ("a.py", "x = 1  # by commas\n", "a.py:1: 'by commas'"),
        ("a.py", 'x = (\n    f"{1} was told"\n)\n', "a.py:2: 'told'"),
        ("a.md", "It was made anew.\n", "a.md:1:"),
        ("a.py", "x = 1\n" * 601, "a.py:601: 601 lines"),
        ("cli/a.py", "x = 1\n" * 401, "a.py:401: 401 lines"),
    ],
)
def test_a_finding_names_the_line_and_a_remedy(tmp_path: Path, name: str, text: str, finding: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    done = guards(path)
    assert done.returncode == 1
    assert finding in done.stdout


def test_code_is_not_prose(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('told = 1\nx = "the option `told`"\n' + "x = 1\n" * 590)
    assert guards(path).returncode == 0


def test_packages_have_at_most_nine_levels() -> None:
    import grimp

    graph = grimp.build_graph("adafocus_edge", exclude_type_checking_imports=True)
    below: dict[str, set[str]] = {}

    def package(module: str) -> str:
        return ".".join(module.split(".")[:2])

    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            if package(module) != package(imported):
                below.setdefault(package(module), set()).add(package(imported))

    @cache
    def level(name: str) -> int:
        return 1 + max((level(other) for other in below.get(name, ())), default=0)

    deepest = max(below, key=level)
    assert level(deepest) <= MAX_LEVELS, deepest
