"""Measure what each training stage gains: the default model's recipe on repeated splits by source, in one table.

    python -m benchmarks.stages --data CLIPS.csv --weights mobilenet_v2_imagenet.pth --folds 5 --out runs/stages
    python -m benchmarks.stages ... --family v2 --name stages-v2

``CLIPS.csv`` has the columns ``video,class,source``. Each fold is one `adafocus-edge train` with ``stages=all``, or the
one stage of AdaFocus V2, never on a source that it is tested on. The last checkpoint of each stage is evaluated, not
the best one, so nothing is selected on the test clips. An interrupted run resumes where it stopped.
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
RECIPES = {
    "v1": (
        "dataset=custom", "preset=edge", "stages=all", "eval_freq=100", "focuser_weights=glancer", "ema=0.99",
        "mixup=true", "glancer.epochs=14", "stage2.epochs=8", "entropy_weight=0.3",
    ),
    "v2": (
        "family=v2", "dataset=custom", "preset=edge", "eval_freq=100", "focuser_weights=WEIGHTS", "ema=0.99",
        "mixup=true", "epochs=14",
    ),
}  # fmt: skip
"""Options of the training by family; V1's are the default model's, where more updates of the policy fit the training
clips only: see the manual. V2's epochs take about as long as V1's four stages."""
RIDGE = 1.0
"""Weight of the slope 1 and the offset 0 in the fit of a class bias, against few clips."""


@dataclass(frozen=True)
class Row:
    """One row of the table: its name, the run whose checkpoint is evaluated, and the patches."""

    name: str
    run: str
    patches: str


ROWS = {
    "v1": (
        Row("glancer alone, whole frames", "glancer", "policy"),
        Row("stage 1, centre patches", "stage1", "centre"),
        Row("stage 1, random patches", "stage1", "random"),
        Row("stage 2, the policy's patches", "stage2", "policy"),
        Row("stage 3, random patches", "stage3", "random"),
        Row("stage 3, the policy's patches", "stage3", "policy"),
    ),
    "v2": tuple(Row(f"AdaFocus V2, {name} patches", "v2", name) for name in ("centre", "random", "policy")),
}
"""The table's rows, by family; the last is of the finished model."""


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


def run_fold(out: Path, fold: int, family: str, weights: Path, more: list[str]) -> dict[str, Any]:
    """Train and evaluate one fold; return each row's evaluation by its name."""
    base = out / f"fold{fold}"
    recipe = [option.replace("WEIGHTS", str(weights)) for option in RECIPES[family]]
    place = [f"hydra.run.dir={base if family == 'v1' else base / family}"]
    done = base / family / "done"
    if family != "v1" and (last := base / family / LAST).exists():
        place = [f"resume={last}"]
    if not done.exists():
        edge(
            "train", *recipe, f"data_dir={out}", f"train_list={fold}_train.csv", f"val_list={fold}_val.csv",
            f"glancer_weights={weights}", *place, *more,
        )  # fmt: skip
        done.parent.mkdir(exist_ok=True)
        done.touch()
    return {row.name: measure(out, fold, base / row.run / LAST, row.patches) for row in ROWS[family]}


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


def table(folds: list[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    """Return one entry per row, over the clips of all folds."""
    entries = []
    rows = {row.name: [fold[row.name] for fold in folds] for row in ROWS[family]}
    last = ROWS[family][-1]
    if len(folds[0][last.name]["classes"]) == 2 and len(folds) > 1:
        rows[f"{last.name}, class bias by the other folds"] = with_bias(folds, last)
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
    parser.add_argument("--family", choices=sorted(RECIPES), default="v1")
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
    folds = [run_fold(out, fold, options.family, options.weights.resolve(), options.more) for fold in numbers]
    entries = table(folds, options.family)
    print(f"| | GFLOPs per clip | top-1, {entries[0]['clips']} clips | 95 % | mAP |\n| --- | --- | --- | --- | --- |")
    for entry in entries:
        low, high = entry["interval_95"]
        print(
            f"| {entry['row']} | {entry['gflops_per_clip']:.2f} | {entry['top1']:.1f} % | {low:.0f} to {high:.0f} | "
            f"{entry['mAP_mean_of_folds']:.1f} |"
        )
    report = {
        "folds": numbers,
        "of": options.folds,
        "recipe": RECIPES[options.family],
        "more": options.more,
        "rows": entries,
    }
    save(options.name, report)


if __name__ == "__main__":
    main()
