"""Measure accuracy against latency, from raw clips to docs/results/benchmark.md: train, export, calibrate, benchmark.

    python -m benchmarks.front --data CLIPS.csv --weights WEIGHTS [--out runs/front] [--only official default]

``CLIPS.csv`` has the columns ``video,class,source``; ``WEIGHTS`` holds ``mobilenet_v2_imagenet.pth`` and
``resnet50_imagenet.pth``. Sources of a share of the clips (a fifth, or 1 / ``--folds``) are never trained on: half of
them calibrate (variants and exit thresholds), and the report measures accuracy on the other half. ``official`` is the
paper's model (ResNet-50, 128 x 128, 16 frames of 224; trained on 8, to save time, and for a few epochs, as a CPU
allows); it sees whole frames and motion. ``default`` is the recipe of the model that ships, and AdaFocus V2 trained on
the same clips for about as long, in one run: fold 0 of ``benchmarks.stages``, whose folder of runs ``--out`` may be.
Existing results are kept, so an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from benchmarks.lists import write_list
from benchmarks.machine import RESULTS
from benchmarks.stages import LAST, folds_by_source, run_fold, write_folds

COMMON = ["dataset=custom", "train_list=0_train.csv", "val_list=0_val.csv", "eval_freq=100", "workers=2"]
MOTION = ["fit=squash", "motion_gap_s=0.1", "optimizer=adamw", "weight_decay=0.02", "freeze_bn=true", "batch_size=8"]
OF_ALL = ["preset=official", "with_glancer=false", *MOTION]
STAGES = {
    "0": ["num_segments=4", "epochs=4", "backbone_lr=3e-4", "fc_lr=1e-3", "glancer_weights=MOBILENET"],
    "1": ["num_segments=8", "epochs=3", "backbone_lr=1e-4", "fc_lr=1e-3", "focuser_weights=RESNET"],
    "2": ["num_segments=8", "epochs=2", "policy_lr=0.003"],
    "3": ["num_segments=8", "epochs=1", "fc_lr=1e-3"],
}
"""Options of each stage of the official model."""
SEGMENTS = 16
"""Frames per clip of the exported official model."""
MODELS = ("official", "default")
FAMILIES = {"v1": "stage3", "v2": "v2"}
"""The run of each family's finished model, in a fold of ``benchmarks.stages``."""


def edge(*arguments: object) -> None:
    """Run a verb."""
    print("adafocus-edge", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "adafocus_edge", *map(str, arguments)], check=True)


def train_official(out: Path, weights: Path) -> Path:
    """Train the four stages of the official model; return the last one's checkpoint."""
    last = {stage: out / "official" / stage / LAST for stage in STAGES}
    places = {"MOBILENET": weights / "mobilenet_v2_imagenet.pth", "RESNET": weights / "resnet50_imagenet.pth"}
    before = {"1": [f"pretrained_glancer={last['0']}"], "2": [f"resume={last['1']}"], "3": [f"resume={last['2']}"]}
    for stage, checkpoint in last.items():
        done = checkpoint.with_name("done")
        if done.exists():
            continue
        options = [*OF_ALL, *STAGES[stage], f"train_stage={stage}"]
        for name, place in places.items():
            options = [option.replace(name, str(place.resolve())) for option in options]
        if checkpoint.exists():
            options.append(f"resume={checkpoint}")
        else:
            options += [*before.get(stage, []), f"hydra.run.dir={checkpoint.parent}"]
        edge("train", *COMMON, f"data_dir={out}", *options)
        done.touch()
    return last["3"]


def prepare(checkpoint: Path, bundle: Path, calibrating: Path, reporting: Path, *more: object, orders: str) -> None:
    """Export a checkpoint, unless that is done, and calibrate the bundle."""
    if not bundle.exists():
        edge("export", checkpoint, "-o", bundle, *more)
    edge("calibrate", bundle, "--data", calibrating, "--report-on", reporting, "--variants", "int8-cpu",
         "--orders", orders, "--force", "--quiet")  # fmt: skip


def split_unseen(out: Path, seed: int) -> tuple[Path, Path]:
    """Write the clips of unseen sources as two lists, to calibrate on and to report on; return their paths."""
    with (out / "0_val.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    half = folds_by_source([row["source"] for row in rows], 2, seed)
    paths = out / "calibrate.csv", out / "report.csv"
    for number, path in enumerate(paths):
        write_list(path, (row for row, part in zip(rows, half, strict=True) if part == number))
    return paths


def main() -> None:
    """Run all steps that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("outputs/front"))
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--folds", type=int, default=5, help="the unseen clips are one of this many folds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    out = options.out.resolve()
    write_folds(options.data, options.folds, options.seed, out)
    clips = split_unseen(out, options.seed)
    for model in options.only:
        compared: list[object]
        if model == "official":
            checkpoint = train_official(out, options.weights)
            bundles = [out / "official-bundle"]
            prepare(checkpoint, bundles[0], *clips, "--segments", SEGMENTS, orders="clip,coarse-to-fine")
            compared = ["--checkpoint", checkpoint, "--peer-checkpoint", out / "official" / "0" / LAST]
        else:
            bundles = []
            for family, run in FAMILIES.items():
                run_fold(out, 0, family, (options.weights / "mobilenet_v2_imagenet.pth").resolve(), [])
                bundles.append(out / f"{family}-bundle")
                orders = "clip,coarse-to-fine" if family == "v1" else "clip"
                prepare(out / "fold0" / run / LAST, bundles[-1], *clips, orders=orders)
            compared = ["--peer-checkpoint", out / "fold0" / "glancer" / LAST]
        name = RESULTS / f"front-{model}"
        outputs = ["-o", name.with_suffix(".json"), "-o", name.with_suffix(".md"), "--plot", name.with_suffix(".png")]
        edge("benchmark", *bundles, "--data", clips[1], "--rounds", options.rounds, *compared, *outputs)


if __name__ == "__main__":
    main()
