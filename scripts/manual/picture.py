"""Draw docs/assets/glimpses.png: where the default model looked in a real clip, and its confidence after each glimpse.

    python -m scripts.manual.picture [VIDEO] [-o docs/assets/glimpses.png]

Everything in it comes from `adafocus-edge classify VIDEO --json`: frames by their number, patches, confidences.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CLIP = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
MODEL_SIDE = 224
"""Side of the frame that patches are measured in: the default model squashes frames to a square of it."""
INK, WARM, GREY = "#1f2933", "#d9480f", "#7b8794"


def classified(video: Path) -> dict[str, Any]:
    """Return the result that the command line prints for a video."""
    command = [sys.executable, "-m", "adafocus_edge", "classify", str(video), "--json", "--quiet"]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout))


def pictures(video: Path, numbers: list[int]) -> list[Image.Image]:
    """Return the frames of a video that have these numbers."""
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]  # type: ignore[no-untyped-call]
    return [frames[number] for number in numbers]


def draw(result: dict[str, Any], frames: list[Image.Image], output: Path, label: str) -> None:
    """Draw the frames with their patches, and beside them the confidence in ``label``."""
    steps = result["steps"]
    shares = [one["confidence"] if one["label"] == label else 1 - one["confidence"] for one in steps]
    figure = plt.figure(figsize=(12, 2.9), dpi=100, facecolor="white")
    columns = (len(steps) + 1) // 2
    halves = figure.add_gridspec(1, 2, width_ratios=(2.1, 1), wspace=0.14)
    grid = halves[0].subgridspec(2, columns, hspace=0.2, wspace=0.04)
    for number, (step, frame) in enumerate(zip(steps, frames, strict=True)):
        axes = figure.add_subplot(grid[number // columns, number % columns])
        _draw_frame(axes, frame, step["patch"])
        axes.set_title(f"glimpse {number + 1}, {step['time_s']:.1f} s", fontsize=9, color=INK, pad=3)
    axes = figure.add_subplot(halves[1])
    at = np.arange(len(steps)) + 1
    axes.plot(at, shares, color=WARM, linewidth=2, marker="o", markersize=5)
    for x, share in zip(at, shares, strict=True):
        offset = (10, -3) if share < 0.85 else (0, -14)
        axes.annotate(
            f"{100 * share:.0f}", (x, share), offset, textcoords="offset points", ha="center", fontsize=9, color=INK
        )
    axes.set(xlim=(0.6, len(steps) + 0.4), ylim=(0, 1.08), xticks=at, yticks=[0, 0.5, 1])
    axes.set_yticklabels(["0", "50", "100"], fontsize=8, color=GREY)
    axes.set_title(f"confidence in {label!r}, %, after each glimpse", fontsize=9, color=INK, pad=3)
    axes.axhline(0.5, color=GREY, linewidth=0.6, linestyle=":")
    axes.tick_params(axis="x", labelsize=8, labelcolor=GREY, color=GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(output, bbox_inches="tight", pad_inches=0.08)
    plt.close(figure)
    Image.open(output).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(output, optimize=True)


def _draw_frame(axes: Any, frame: Image.Image, patch: list[float]) -> None:
    """Draw a frame, darker outside of its patch (``[y, x, side]`` on the model's square)."""
    wide, high = frame.width / MODEL_SIDE, frame.height / MODEL_SIDE
    top, left, side = patch
    box = (left * wide, top * high, (left + side) * wide, (top + side) * high)
    pixels = np.asarray(frame).astype(np.float32)
    inside = np.zeros(pixels.shape[:2], bool)
    inside[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
    pixels[~inside] *= 0.45
    axes.imshow(pixels.astype(np.uint8), interpolation="lanczos")
    axes.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, edgecolor=WARM, linewidth=1.8))
    axes.set_axis_off()


def main() -> None:
    """Classify the clip and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, nargs="?", default=CLIP)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "assets" / "glimpses.png")
    options = parser.parse_args()
    result = classified(options.video)
    frames = pictures(options.video, [step["frame_index"] for step in result["steps"]])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(result, frames, options.output, result["label"])
    print(f"{options.output}: {options.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
