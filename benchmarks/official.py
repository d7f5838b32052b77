"""The benchmarks' default model: the official sizes, with deterministic weights.

Exports of the golden cases are kept in ``.cache/exports`` (or ``$ADAFOCUS_EDGE_EXPORTS``) under a hash of all their
inputs, so that tests and benchmarks of one checkout export each only once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adafocus_edge.system.files import draft_folder, locked

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
PATCH_SIZE = 128
CASES = {"actnet128": (1, PATCH_SIZE), "actnet96": (2, 96)}
"""Seed and patch size of each golden case."""
OFFICIAL = "actnet128"
"""The golden case that the benchmarks run."""
V2_OFFICIAL, V2_SEED = "v2_actnet128", 11
"""Golden case of AdaFocus V2 at the official sizes, and the seed of its weights."""
CHECKPOINT = "s3_checkpoint.pth.tar"
DECIDING = ("export", "training", "adafocus_edge/bundle/store.py", "adafocus_edge/model/spec.py", "tests/golden")
"""The inputs of an export: files, and folders of Python and JSON files."""
TOOLS = ("torch", "torchvision", "onnx", "onnxscript")


def make_checkpoint(folder: Path, case: str = OFFICIAL) -> Path:
    """Write a golden checkpoint (ResNet-50 focuser, 200 classes) to a folder; return its path."""
    path = folder / "checkpoint.pth.tar"
    script, layout = GOLDEN / "official_checkpoint.py", GOLDEN / "layout.json"
    subprocess.run([sys.executable, script, layout, "--seed", str(CASES[case][0]), "--out", path], check=True)
    return path


def make_v2_checkpoint(folder: Path) -> Path:
    """Write the golden checkpoint of AdaFocus V2 (MobileNetV2, ResNet-50, 200 classes) to a folder; return its path."""
    import torch

    from tests.golden.v2.weights_v2 import values

    layout = json.loads((GOLDEN / "v2" / f"layout_{V2_OFFICIAL}.json").read_text())
    state = {f"module.{name}": torch.as_tensor(values(name, tuple(size), V2_SEED)) for name, size in layout.items()}
    path = folder / "v2-checkpoint.pth.tar"
    torch.save({"state_dict": state}, path)
    return path


def make_bundle(checkpoint: Path, folder: Path, patch_size: int = PATCH_SIZE, name: str = "bundle") -> Path:
    """Export a checkpoint to a bundle in a folder; return its path."""
    path = folder / name
    command = [sys.executable, "-m", "adafocus_edge", "export", checkpoint, "-o", path, "--patch-size"]
    subprocess.run([*command, str(patch_size)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return path


def exports_folder() -> Path:
    """Return the folder that exports are kept in."""
    return Path(os.environ.get("ADAFOCUS_EDGE_EXPORTS") or ROOT / ".cache" / "exports")


def export_key(*more: str) -> str:
    """Return a hash of an export's inputs: the code, the golden weights' recipe, the tools' versions, and ``more``."""
    digest = hashlib.sha256("".join(more).encode())
    for name in DECIDING:
        place = ROOT / name
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in (".py", ".json"))
        for file in files:
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    for tool in TOOLS:
        try:
            digest.update(f"{tool} {version(tool)}\0".encode())
        except PackageNotFoundError:
            digest.update(f"{tool} none\0".encode())
    return digest.hexdigest()[:16]


def cached_folder(name: str, make: Callable[[Path], None], *more: str) -> Path:
    """Return a folder with an export that is made once; not to be written to.

    The first call makes it; a concurrent call in another process waits for it. Folders of the same name made by older
    code are removed.

    Args:
        name: what is exported.
        make: writes it into a folder.
        more: what decides it beside the code and the tools.

    Raises what ``make`` raises, ``OSError``.
    """
    root = exports_folder()
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{name}-{export_key(*more)}"
    with locked(root / f".{name}.lock", wait=True):
        if not target.is_dir():
            for old in root.glob(f"{name}-*"):
                shutil.rmtree(old)
            with draft_folder(root, f".{name}-", ".part") as made:
                make(made)
                made.rename(target)
    return target


def cached_export(case: str = OFFICIAL) -> Path:
    """Return a folder with a golden case's checkpoint (:data:`CHECKPOINT`) and its ``bundle``; not to be written to.

    The first call takes half a minute. Raises ``subprocess.CalledProcessError`` if the export fails, ``OSError``.
    """

    def make(folder: Path) -> None:
        checkpoint = make_checkpoint(folder, case).rename(folder / CHECKPOINT)
        make_bundle(checkpoint, folder, CASES[case][1])

    return cached_folder(case, make)
