"""Measure accuracy against latency, from raw clips to docs/results/benchmark.md: train, export, calibrate, benchmark.

    python -m benchmarks.front --data CLIPS.csv --weights WEIGHTS [--out runs/front] [--only official default]

``CLIPS.csv`` has the columns ``video,class,source``; ``WEIGHTS`` holds ``mobilenet_v2_imagenet.pth`` and
``resnet50_imagenet.pth``. Sources of a third of the clips are never trained on: half of them calibrate (variants and
exit thresholds), and the report measures accuracy on the other half. ``official`` is the paper's model (ResNet-50,
128 x 128, 16 frames of 224; trained on 8, to save time), ``default`` the recipe of the model that ships. Both see whole
frames and motion, and are trained for a few epochs, as a CPU allows. Existing results are kept, so an interrupted run
resumes.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from benchmarks.lists import write_list
from benchmarks.machine import RESULTS
from benchmarks.stages import LAST, folds_by_source, write_folds

COMMON = ["dataset=custom", "train_list=0_train.csv", "val_list=0_val.csv", "eval_freq=100", "workers=2"]
MOTION = ["fit=squash", "motion_gap_s=0.1", "optimizer=adamw", "weight_decay=0.02", "freeze_bn=true", "batch_size=8"]
STAGES = {
    "official": {
        "of all": ["preset=official", "with_glancer=false", *MOTION],
        "0": ["num_segments=4", "epochs=4", "backbone_lr=3e-4", "fc_lr=1e-3", "glancer_weights=MOBILENET"],
        "1": ["num_segments=8", "epochs=3", "backbone_lr=1e-4", "fc_lr=1e-3", "focuser_weights=RESNET"],
        "2": ["num_segments=8", "epochs=2", "policy_lr=0.003"],
        "3": ["num_segments=8", "epochs=1", "fc_lr=1e-3"],
    },
    "default": {
        "of all": ["preset=edge"],
        "0": ["epochs=5", "glancer_weights=MOBILENET"],
        "1": ["epochs=4", "focuser_weights=STAGE0"],
        "2": ["epochs=4"],
        "3": ["epochs=2"],
    },
}
"""Options of each stage, by model."""
SEGMENTS = {"official": 16, "default": 8}
"""Frames per clip of the exported model."""


def edge(*arguments: object) -> None:
    """Run a verb."""
    print("adafocus-edge", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "adafocus_edge", *map(str, arguments)], check=True)


def train(out: Path, model: str, weights: Path) -> Path:
    """Train the four stages; return the last one's checkpoint."""
    last = {stage: out / model / stage / LAST for stage in "0123"}
    places = {
        "MOBILENET": weights / "mobilenet_v2_imagenet.pth",
        "RESNET": weights / "resnet50_imagenet.pth",
        "STAGE0": last["0"],
    }
    before = {"1": [f"pretrained_glancer={last['0']}"], "2": [f"resume={last['1']}"], "3": [f"resume={last['2']}"]}
    for stage, checkpoint in last.items():
        done = checkpoint.with_name("done")
        if done.exists():
            continue
        options = [*STAGES[model]["of all"], *STAGES[model][stage], f"train_stage={stage}"]
        for name, place in places.items():
            options = [option.replace(name, str(place.resolve())) for option in options]
        if checkpoint.exists():
            options.append(f"resume={checkpoint}")
        else:
            options += [*before.get(stage, []), f"hydra.run.dir={checkpoint.parent}"]
        edge("train", *COMMON, f"data_dir={out}", *options)
        done.touch()
    return last["3"]


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
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    write_folds(options.data, 3, options.seed, options.out)
    calibrating, reporting = split_unseen(options.out, options.seed)
    for model in options.only:
        checkpoint = train(options.out.resolve(), model, options.weights)
        bundle = options.out / f"{model}-bundle"
        if not bundle.exists():
            edge("export", checkpoint, "-o", bundle, "--segments", SEGMENTS[model])
        edge("calibrate", bundle, "--data", calibrating, "--report-on", reporting, "--variants", "int8-cpu",
             "--orders", "clip,coarse-to-fine", "--force", "--quiet")  # fmt: skip
        name = RESULTS / f"front-{model}"
        edge("benchmark", bundle, "--data", reporting, "--checkpoint", checkpoint, "--rounds", options.rounds,
             "--peer-checkpoint", options.out / model / "0" / LAST, "-o", name.with_suffix(".json"),
             "-o", name.with_suffix(".md"), "--plot", name.with_suffix(".png"))  # fmt: skip


if __name__ == "__main__":
    main()
