"""The model that the benchmarks run when none is given: the official sizes, with deterministic weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
PATCH_SIZE = 128


def make_checkpoint(folder: Path) -> Path:
    """Write the golden checkpoint (ResNet-50 focuser, 200 classes) into a folder."""
    path = folder / "checkpoint.pth.tar"
    script, layout = GOLDEN / "official_checkpoint.py", GOLDEN / "layout.json"
    subprocess.run([sys.executable, script, layout, "--seed", "1", "--out", path], check=True)
    return path


def make_bundle(checkpoint: Path, folder: Path, patch_size: int = PATCH_SIZE) -> Path:
    """Export a checkpoint to a bundle in a folder."""
    path = folder / "bundle"
    command = [sys.executable, "-m", "adafocus_edge.cli", "export", checkpoint, "-o", path, "--patch-size"]
    subprocess.run([*command, str(patch_size)], check=True, stdout=subprocess.DEVNULL)
    return path
