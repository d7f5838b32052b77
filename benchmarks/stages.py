"""Measure what each training stage gains: the default model's recipe on repeated splits by source, in one table.

    python -m benchmarks.stages --data CLIPS.csv --weights mobilenet_v2_imagenet.pth --folds 5 --out runs/stages

``CLIPS.csv`` has the columns ``video,class,source``. Each fold is one `adafocus-edge train stages=all`, never on a
source that it is tested on. The last checkpoint of each stage is evaluated, not the best one, so nothing is selected
on the test clips. An interrupted run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adafocus_edge.evaluation.metrics import wilson_interval
from benchmarks.lists import write_list
from benchmarks.machine import save

LAST = "last.pth.tar"
RECIPE = (
    "dataset=custom", "preset=edge", "stages=all", "eval_freq=100", "focuser_weights=glancer", "ema=0.99", "mixup=true",
    "glancer.epochs=14", "stage2.epochs=8", "entropy_weight=0.3",
)  # fmt: skip
"""Options of the default model's training. More updates of the policy fit the training clips only: see the manual."""
RIDGE = 1.0
"""Weight of the slope 1 and the offset 0 in the fit of a class bias, against few clips."""


@dataclass(frozen=True)
class Row:
    """One row of the table: its name, the run whose checkpoint is evaluated, and the patches."""

    name: str
    run: str
    patches: str


ROWS = (
    Row("glancer alone, whole frames", "glancer", "policy"),
    Row("stage 1, centre patches", "stage1", "centre"),
    Row("stage 1, random patches", "stage1", "random"),
    Row("stage 2, the policy's patches", "stage2", "policy"),
    Row("stage 3, random patches", "stage3", "random"),
    Row("stage 3, the policy's patches", "stage3", "policy"),
)


def folds_by_source(sources: list[str], folds: int, seed: int) -> list[int]:
    """Return each clip's fold: whole sources, large ones first, each to a small fold, with some randomness."""
    random = np.random.default_rng(seed)
    names = np.unique(sources)
    random.shuffle(names)
    order = sorted(names, key=lambda name: -sources.count(name) + random.random() * 3)
    sizes, fold_of = np.zeros(folds), {}
    for name in order:
        fold = int(np.argmin(sizes + random.random(folds) * 3))
        fold_of[name] = fold
        sizes[fold] += sources.count(name)
    return [fold_of[source] for source in sources]


def write_folds(data: Path, folds: int, seed: int, out: Path) -> None:
    """Write ``N_train.csv`` and ``N_val.csv`` for every fold."""
    with data.open(encoding="utf-8-sig", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    place = data.parent / "videos" if (data.parent / "videos").is_dir() else data.parent
    fold_of = folds_by_source([row["source"] for row in rows], folds, seed)
    out.mkdir(parents=True, exist_ok=True)
    rows = [{**row, "video": (place / row["video"]).resolve()} for row in rows]
    for fold in range(folds):
        for part, inside in (("train", False), ("val", True)):
            chosen = (row for row, number in zip(rows, fold_of, strict=True) if (number == fold) == inside)
            write_list(out / f"{fold}_{part}.csv", chosen)


def edge(*arguments: object) -> None:
    """Run a verb of the command line."""
    command = [sys.executable, "-m", "adafocus_edge", *map(str, arguments)]
    subprocess.run(command, check=True)


def run_fold(out: Path, fold: int, weights: Path, more: list[str]) -> dict[str, Any]:
    """Train and evaluate one fold; return each row's evaluation by its name."""
    base = out / f"fold{fold}"
    edge(
        "train", *RECIPE, f"data_dir={out}", f"train_list={fold}_train.csv", f"val_list={fold}_val.csv",
        f"hydra.run.dir={base}", f"glancer_weights={weights}", *more,
    )  # fmt: skip
    return {row.name: measure(out, fold, base / row.run / LAST, row.patches) for row in ROWS}


def measure(out: Path, fold: int, checkpoint: Path, patches: str) -> dict[str, Any]:
    """Evaluate one checkpoint on its fold's unseen sources."""
    path = checkpoint.with_name(f"evaluation-{patches}.json")
    if not path.exists() or path.stat().st_mtime < checkpoint.stat().st_mtime:
        edge("evaluate", checkpoint, "--data", out / f"{fold}_val.csv", "--patches", patches, "-q", "-o", path)
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def log_odds(found: dict[str, Any]) -> list[tuple[float, bool]]:
    """Return each clip's log-odds of the first of two classes, and whether it is of that class."""
    first = found["classes"][0]
    pairs = []
    for one in found["predictions"]:
        sure = min(max(one["confidence"], 1e-6), 1 - 1e-6)
        odds = math.log(sure / (1 - sure))
        pairs.append((odds if one["label"] == first else -odds, one["class"] == first))
    return pairs


def hits(pairs: list[tuple[float, bool]], bias: float) -> int:
    """Return how many clips are classified correctly with this number added to the first class's logit."""
    return sum((odds + bias > 0) == first for odds, first in pairs)


def best_bias(pairs: list[tuple[float, bool]]) -> float:
    """Return the number that, added to the first class's logit, makes log-odds of 0 the even chance.

    By a logistic fit of slope and offset (Platt scaling), which hangs less on single clips than the most hits would.
    """
    odds, first = (np.array(values, float) for values in zip(*pairs, strict=True))
    inputs = np.stack([odds, np.ones_like(odds)], axis=1)
    fit = np.array([1.0, 0.0])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-inputs @ fit))
        slope = inputs.T @ (probability - first) + RIDGE * (fit - (1.0, 0.0))
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs + RIDGE * np.eye(2)
        fit = fit - np.linalg.solve(curvature, slope)
    return round(float(fit[1] / max(fit[0], 0.1)), 2)


def with_bias(folds: list[dict[str, Any]], row: Row) -> list[dict[str, Any]]:
    """Return a row's evaluations with the class bias that suits the *other* folds' unseen clips best."""
    pairs = [log_odds(fold[row.name]) for fold in folds]
    changed = []
    for number, fold in enumerate(folds):
        bias = best_bias([pair for other, several in enumerate(pairs) if other != number for pair in several])
        right = hits(pairs[number], bias)
        changed.append({**fold[row.name], "right": right, "top1": round(100 * right / len(pairs[number]), 2)})
    return changed


def table(folds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry per row, over the clips of all folds."""
    entries = []
    rows = {row.name: [fold[row.name] for fold in folds] for row in ROWS}
    if len(folds[0][ROWS[0].name]["classes"]) == 2 and len(folds) > 1:
        for row in ROWS[-1:]:
            rows[f"{row.name}, class bias by the other folds"] = with_bias(folds, row)
    for name, found in rows.items():
        clips = sum(f["clips"] for f in found)
        counted = [f.get("right", sum(f["confusion"][c][c] for c in range(len(f["classes"])))) for f in found]
        right = sum(counted)
        low, high = wilson_interval(right, clips)
        entries.append(
            {
                "row": name,
                "gflops_per_clip": found[0]["gflops_per_clip"],
                "clips": clips,
                "top1": round(100 * right / clips, 1),
                "interval_95": [round(100 * low, 1), round(100 * high, 1)],
                "mAP_mean_of_folds": round(float(np.mean([f["mAP"] for f in found])), 1),
                "top1_by_fold": [f["top1"] for f in found],
                "model_ms_per_clip": round(float(np.median([f["model_ms_per_clip"] for f in found])), 1),
            }
        )
    return entries


def main() -> None:
    """Train and evaluate every fold, print the table, and write it with the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="folds to run. [default: all]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", nargs="*", default=[], help="more key=value options of the training")
    parser.add_argument("--name", default="stages", help="name of the report in benchmarks/results")
    parser.add_argument("--out", type=Path, default=Path("outputs/stages"))
    options = parser.parse_args()
    out = options.out.resolve()
    write_folds(options.data, options.folds, options.seed, out)
    numbers = options.only if options.only else list(range(options.folds))
    folds = [run_fold(out, fold, options.weights.resolve(), options.more) for fold in numbers]
    entries = table(folds)
    print(f"| | GFLOPs per clip | top-1, {entries[0]['clips']} clips | 95 % | mAP |\n| --- | --- | --- | --- | --- |")
    for entry in entries:
        low, high = entry["interval_95"]
        print(
            f"| {entry['row']} | {entry['gflops_per_clip']:.2f} | {entry['top1']:.1f} % | {low:.0f} to {high:.0f} | "
            f"{entry['mAP_mean_of_folds']:.1f} |"
        )
    report = {"folds": numbers, "of": options.folds, "recipe": RECIPE, "more": options.more, "rows": entries}
    save(options.name, report)


if __name__ == "__main__":
    main()
