"""Does the policy look where it matters? Creates the clips, trains all stages, and writes a table and a picture.

    python -m benchmarks.haystack --backgrounds CLIPS.csv --weights mobilenet_v2_imagenet.pth --out runs/haystack

Goal: the policy's patches at least 25 points above random and centre ones at the same cost, and within 10 points of
whole frames at full size at less than a third of their GFLOPs. An interrupted run resumes where it stopped. The sizes
of clips and the numbers of epochs are options, and the report records them.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.haystack.clips import Task, make
from benchmarks.haystack.picture import draw_looks
from benchmarks.haystack.road import V2_ROW, Epochs, Road
from benchmarks.machine import RESULTS, save

ROOT = Path(__file__).parents[2]
SMALL_BACKGROUNDS = ROOT / "tests" / "fights" / "sources.csv"
GOAL_ABOVE = 25.0
"""Min points of top-1 above random and centre patches."""
GOAL_BELOW = 10.0
"""Max points of top-1 below whole frames at full size."""
GOAL_COST = 1 / 3
"""Max share of their GFLOPs."""


def table(evaluations: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the table's rows, one per evaluation."""
    return [
        {
            "row": name,
            "top1": found["top1"],
            "interval_95": found["top1_interval_95"],
            "clips": found["clips"],
            "gflops_per_clip": found["gflops_per_clip"],
            "model_ms_per_clip": found["model_ms_per_clip"],
        }
        for name, found in evaluations.items()
    ]


def verdict(rows: list[dict[str, Any]], frame: int) -> dict[str, Any]:
    """Return the policy's distance from the goal; random and centre patches count with their best classifier."""
    by_name = {row["row"]: row for row in rows}
    policy, whole = by_name["bundle, policy patches"], by_name.get(f"whole frames at {frame}")
    of_v1 = {name: row["top1"] for name, row in by_name.items() if not name.startswith(V2_ROW)}
    others = [top1 for name, top1 in of_v1.items() if name.endswith(("random patches", "centre patches"))]
    above = policy["top1"] - max(others)
    if whole is None:
        return {"above_random_and_centre": round(above, 2), "goal_met": None}
    below, cost = whole["top1"] - policy["top1"], policy["gflops_per_clip"] / whole["gflops_per_clip"]
    return {
        "above_random_and_centre": round(above, 2),
        "below_whole_frames": round(below, 2),
        "share_of_their_gflops": round(cost, 3),
        "goal_met": bool(above >= GOAL_ABOVE and below <= GOAL_BELOW and cost <= GOAL_COST),
    }


def add_options(parser: argparse.ArgumentParser, kind: type, prefix: str = "") -> None:
    """Add an option for each numeric field of a dataclass."""
    for entry in fields(kind):
        if isinstance(entry.default, (int, float)):
            name = f"--{prefix}{entry.name}".replace("_", "-")
            parser.add_argument(name, type=type(entry.default), default=entry.default)


def main() -> None:
    """Create the clips, train, evaluate, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backgrounds",
        type=Path,
        default=SMALL_BACKGROUNDS,
        help="CSV with the columns video,source",
    )
    parser.add_argument("--weights", default="imagenet", help="weights of MobileNetV2: imagenet, random, or a file")
    parser.add_argument("--digits", default="0,1,2,3,4,5,6,7,8,9")
    add_options(parser, Task)
    parser.add_argument("--glance", type=int, default=192)
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--cells", type=int, default=49)
    parser.add_argument("--batch", type=int, default=16)
    add_options(parser, Epochs, "epochs-")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--more", nargs="*", default=[], help="more key=value options for every training run")
    parser.add_argument("--name", default="haystack", help="name of the report in benchmarks/results")
    parser.add_argument("--out", type=Path, default=Path("outputs/haystack"))
    options = parser.parse_args()
    numbers = {e.name: getattr(options, e.name) for e in fields(Task) if isinstance(e.default, (int, float))}
    task = Task(tuple(int(digit) for digit in options.digits.split(",")), **numbers)
    epochs = Epochs(**{entry.name: getattr(options, f"epochs_{entry.name}") for entry in fields(Epochs)})
    out = options.out.resolve()
    make(task, options.backgrounds, out / "clips", options.workers)
    weights = str(Path(options.weights).resolve()) if Path(options.weights).is_file() else options.weights
    road = Road(
        out / "clips", out / "runs", weights, task.size, options.glance, options.patch, options.segments,
        options.cells, task.near, options.batch, epochs, options.workers, more=tuple(options.more),
    )  # fmt: skip
    settings = {
        "task": asdict(task), "glance": options.glance, "patch": options.patch, "segments": options.segments,
        "cells": options.cells, "batch": options.batch, "epochs": asdict(epochs),
        "backgrounds": options.backgrounds.name, "more": options.more,
    }  # fmt: skip
    evaluations: dict[str, Any] = {}
    looked: dict[str, Any] = {}
    parts = (("v1", road.glimpses, road.bundle), ("v2", road.second_generation, road.v2_bundle),
             ("whole frames", road.whole_frames, None))  # fmt: skip
    for part, measure, bundle in parts:  # results so far are written before the longest runs
        evaluations |= measure()
        if bundle is not None:
            picture = RESULTS / f"{options.name}{'' if part == 'v1' else f'-{part}'}.png"
            looked[part] = draw_looks(bundle, out / "clips", task.size, picture)
        rows = table(evaluations)
        said = verdict(rows, task.size)
        report = {"settings": settings, "rows": rows, "verdict": said, "places": looked, "seconds": road.seconds()}
        save(options.name, report)
    print_table(rows)
    print(said, looked)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table in Markdown."""
    print("| | top-1 | 95 % | GFLOPs per clip | ms per clip |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        low, high = row["interval_95"]
        print(
            f"| {row['row']} | {row['top1']:.1f} % | {low:.0f} to {high:.0f} | {row['gflops_per_clip']:.2f} | "
            f"{row['model_ms_per_clip']:.0f} |"
        )


if __name__ == "__main__":
    main()
