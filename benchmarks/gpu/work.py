"""The arguments of every part (device, sizes, folders, model), and the files that are prepared on a CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adafocus_edge.bundle.manifest import MANIFEST, Bundle, encode_manifest
from adafocus_edge.bundle.store import copy_bundle, default_bundle, read_bundle, sha256_of
from adafocus_edge.errors import AdaFocusError
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, ModelSpec
from adafocus_edge.runtime.glimpse import see_clip
from adafocus_edge.system.files import draft_folder
from benchmarks.gpu.runner import write_json
from benchmarks.official import CASES, CHECKPOINT, GOLDEN, OFFICIAL, ROOT, cached_export

PREPARED = "prepared.json"
CALIBRATED = "calibrated"
"""Folder of the default model with INT8 variants, which take clips and minutes to make."""
FIGHTS = ROOT / "tests" / "fights"


class SkipPartError(Exception):
    """Raised if a part cannot run here."""


@dataclass(frozen=True)
class Work:
    """The arguments of a part.

    Attributes:
        device: ``cuda`` or ``cpu``.
        model: ``official`` or ``default``.
        folder: work folder that all parts share.
        prepared: folder that :func:`prepare` wrote.
        steps: steps of the leak check.
        rounds: rounds of every timing.
        streams: max streams to try.
        seconds: time to measure live runs and training for.
        sources: numbers of live sources, one run each.
        limit_s: time limit of this part.
    """

    device: str
    model: str
    folder: Path
    prepared: Path
    steps: int
    rounds: int
    streams: int
    seconds: float
    sources: tuple[int, ...]
    limit_s: float

    @property
    def on_gpu(self) -> bool:
        """Whether the check runs on a GPU."""
        return self.device == "cuda"

    def bundle(self) -> Bundle:
        """Return the model with both precisions and a joined step, as made by the part ``setup``."""
        return read_bundle(self.folder / "bundle")

    def keep(self, part: str, result: dict[str, Any]) -> None:
        """Write a part's results so far, which count even if the part is cut short."""
        write_json(self.folder / f"{part}.json", result)

    def frames(self) -> np.ndarray:
        """Return a clip, uint8 [T, S, S, 3]: the golden one, or real frames for the default model."""
        from benchmarks.loop import real_frames

        spec = self.bundle().spec
        return ModelFrame.of(real_frames()[: spec.segments], spec)

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the clip's logits [T, C] and origins [T, 2], of the official code or else in FP32 on the CPU."""
        bundle, frames = self.bundle(), self.frames()
        grid = bundle.spec.grid
        if self.model == "official":
            with np.load(GOLDEN / f"golden_{OFFICIAL}.npz") as golden:
                logits, actions = golden["logits"].reshape(len(frames), -1), golden["actions"].reshape(-1)
            return logits, np.stack([actions // grid, actions % grid], axis=-1) / (grid - 1)
        from adafocus_edge.backends.registry import load_model

        with load_model(bundle, "fp32", "onnxruntime-cpu") as model:
            glimpses = list(see_clip(model, frames))
        return np.concatenate([one.logits for one in glimpses]), np.concatenate([one.origins for one in glimpses])

    def combinations(self) -> Iterator[tuple[str, str]]:
        """Yield the backends and variants to measure, the most important first."""
        if not self.on_gpu:
            yield "onnxruntime-cpu", "fp32"
            return
        for variant in ("fp16", "fp32"):
            yield "onnxruntime-cuda", variant
            yield "tensorrt", variant
        yield "onnxruntime-tensorrt", "fp32"


def edge(*arguments: object, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line and return its output. Raises ``SystemExit`` with its error if it fails."""
    command = [sys.executable, "-m", "adafocus_edge", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])}: {done.stderr.strip()[-2000:]}")
    return done


def set_up(work: Work) -> dict[str, Any]:
    """Make the model: the official sizes' golden exports (both at once, kept for the tests), joined and halved."""
    started = time.monotonic()
    target = work.folder / "bundle"
    shutil.rmtree(target, ignore_errors=True)
    if work.model == "default":
        copy_bundle(default_bundle(), target)
    else:
        with ThreadPoolExecutor(len(CASES)) as pool:
            exports = dict(zip(CASES, pool.map(cached_export, CASES), strict=True))
        copy_bundle(exports[OFFICIAL] / "bundle", target)
        shutil.copy(exports[OFFICIAL] / CHECKPOINT, work.folder / CHECKPOINT)
    exported = time.monotonic()
    complete(target)
    return {
        "export_s": round(exported - started, 2),
        "half_and_join_s": round(time.monotonic() - exported, 2),
        "bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
    }


def complete(path: Path) -> None:
    """Add a joined step and an FP16 variant to a bundle in place, unless it has them."""
    from calibration.fp16 import halve
    from export.fuse import fuse
    from export.half_variant import write_half

    bundle = read_bundle(path)
    variants = {name: dict(graphs) for name, graphs in bundle.manifest.variants.items()}
    if "fp16" not in variants:
        variants["fp16"] = write_half(path, bundle.spec, variants["fp32"], halve)
    for name in ("fp32", "fp16"):
        if STEP_GRAPH not in variants[name]:
            file = path / name / f"{STEP_GRAPH}.onnx"
            fuse(bundle.spec, {graph: path / variants[name][graph].file for graph in GRAPHS}, file)
            variants[name][STEP_GRAPH] = _step_info(bundle.spec, name, variants[name], file)
    (path / MANIFEST).write_bytes(encode_manifest(replace(bundle.manifest, variants=variants)))
    read_bundle(path)


def _step_info(spec: ModelSpec, variant: str, graphs: dict[str, Any], file: Path) -> Any:
    from adafocus_edge.model.spec import contract

    inputs, outputs = contract(spec, STEP_GRAPH)
    return replace(
        graphs[GRAPHS[0]],
        file=f"{variant}/{file.name}",
        sha256=sha256_of(file),
        size_bytes=file.stat().st_size,
        inputs=inputs,
        outputs=outputs,
        gflops=sum(graphs[graph].gflops for graph in GRAPHS),
    )


def prepare(folder: Path) -> dict[str, Any]:
    """Make ``int8-trt`` on a CPU, small enough to copy, as a GPU machine should not spend time on it.

    The quick steps run on the GPU machine: exporting the official sizes and converting them to FP16.

    Returns:
        the files with their sizes. A folder that was prepared from the same default model is kept.
    """
    source = sha256_of(default_bundle() / MANIFEST)
    known = read_prepared(folder)
    if known is not None and known["default_model_sha256"] == source:
        return known
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / CALIBRATED
    with draft_folder(folder, ".making.", ".part") as draft:
        edge(
            "calibrate", "--data", FIGHTS, "-o", draft / CALIBRATED, "--variants", "int8-trt",
            "--exit-goal", "none", "--method", "minmax", "--max-accuracy-drop", 100, "--quiet",
        )  # fmt: skip
        for variant in read_bundle(default_bundle()).manifest.variants:  # these are in the repository
            shutil.rmtree(draft / CALIBRATED / variant)
        shutil.rmtree(target, ignore_errors=True)
        (draft / CALIBRATED).rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    made = {"default_model_sha256": source, "files": {CALIBRATED: size}, "bytes": size}
    write_json(folder / PREPARED, made)
    return made


def read_prepared(folder: Path) -> dict[str, Any] | None:
    """Return the description of the prepared files, or None if there are none."""
    try:
        found: dict[str, Any] = json.loads((folder / PREPARED).read_text())
    except (OSError, ValueError):
        return None
    return found


def calibrated_bundle(prepared: Path, target: Path) -> Path | None:
    """Join the prepared INT8 variant with the default model's own; None if none was prepared for this model."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        shutil.copytree(prepared / CALIBRATED, target)
        for variant in read_bundle(default_bundle()).manifest.variants:
            shutil.copytree(default_bundle() / variant, target / variant)
        return read_bundle(target).path
    except (OSError, AdaFocusError):
        return None
