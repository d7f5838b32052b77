"""The manual's notebook runs as it is, from a new kernel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"


def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    copy = folder / NOTEBOOK.name
    shutil.copy(NOTEBOOK, copy)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    execute = Path(sys.executable).with_name("jupyter-execute")
    done = subprocess.run(
        [execute, "--inplace", copy], check=False, capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in json.loads(copy.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    shown = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in shown if output["output_type"] == "error"]
    text = "".join("".join(output.get("text", "")) for output in shown)
    assert "of 12 clips" in text
    assert "30 frames: fight" in text
    assert sum("image/png" in output.get("data", {}) for output in shown) == 1
    # The repository keeps it without outputs.
    kept = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in kept)
