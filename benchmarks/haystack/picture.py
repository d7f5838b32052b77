"""Draws the patches of the exported model's policy, and counts how often they held the yellow card."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.evaluation.dataset import read_data
from adafocus_edge.media.preprocess import sampled_frames
from adafocus_edge.runtime.glimpse import patch_of, see_clip

SHOWN_CLIPS = 6
CELLS = 7
"""Cells per side in which the patches of a model without a grid are counted."""
CELL_PIXELS = 224
"""Side of a frame in the picture, in pixels."""
FOUND, MISSED = (80, 255, 80), (255, 80, 80)


def read_truth(path: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """Read the centres of the yellow cards, (x, y) in pixels of the clip, by clip and frame."""
    with path.open(encoding="utf-8", newline="") as file:
        return {(row["clip"], int(row["frame"])): (float(row["x"]), float(row["y"])) for row in csv.DictReader(file)}


def draw_looks(bundle: Path, data: Path, size: int, picture: Path) -> dict[str, Any]:
    """Draw the glimpses of some validation clips, with frames of side ``size``; return figures over all clips.

    Returns:
        ``found``: percent of patches that hold the yellow card's centre, over frames with a card; ``by_chance``: the
        mean of this over all cells; ``most_used_cell``: percent; ``cells_used``; ``places``: shares, rows of the grid.
        Patches between pixels count for the nearest cell of a grid of :data:`CELLS`.
    """
    truth, model_of = read_truth(data / "truth.csv"), read_bundle(bundle)
    spec, shown = model_of.spec, []
    grid = spec.grid or CELLS
    counts = np.zeros((grid, grid), np.int64)
    hits, chances = [], []
    corners = np.floor(np.arange(grid) / (grid - 1) * (spec.frame_size - spec.patch_size))
    with load_model(model_of, "fp32", "onnxruntime-cpu") as model:
        for example in read_data(data / "val.csv").examples:
            sampled = list(sampled_frames(example.open_clip(), spec))
            frames = np.stack([pixels for _, pixels in sampled])
            row = []
            for (number, _), frame, glimpse in zip(sampled, frames, see_clip(model, frames), strict=True):
                y, x, side = patch_of(spec, glimpse.origins[0])
                counts[tuple(np.round(glimpse.origins[0] * (grid - 1)).astype(int))] += 1
                place = truth.get((Path(example.path).stem, number))
                hit = None
                if place is not None:
                    scale = spec.frame_size / size
                    card_x, card_y = place[0] * scale, place[1] * scale
                    hit = bool(x <= card_x < x + side and y <= card_y < y + side)
                    inside = [(corners <= at) & (at < corners + side) for at in (card_y, card_x)]
                    hits.append(hit)
                    chances.append(float(np.outer(*inside).mean()))
                row.append(_marked(frame, (x, y, side), hit))
            if len(shown) < SHOWN_CLIPS:
                shown.append(np.concatenate(row, axis=1))
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(shown)).quantize(128).save(picture, optimize=True)
    shares = counts / counts.sum()
    return {
        "found": round(float(np.mean(hits) * 100), 1),
        "by_chance": round(float(np.mean(chances) * 100), 1),
        "most_used_cell": round(float(shares.max() * 100), 1),
        "cells_used": int((counts > 0).sum()),
        "places": np.round(shares, 4).tolist(),
    }


def _marked(frame: np.ndarray, patch: tuple[int, int, int], hit: bool | None) -> np.ndarray:
    """Draw a patch into a frame: green if it holds the card, red if it misses it, white if the frame shows none."""
    scale = CELL_PIXELS / len(frame)
    image = Image.fromarray(frame).resize((CELL_PIXELS, CELL_PIXELS))
    x, y, side = (round(value * scale) for value in patch)
    colour = (255, 255, 255) if hit is None else FOUND if hit else MISSED
    ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), outline=colour, width=3)
    return np.asarray(image)
