"""A calibration's report, byte for byte: what other programs read in `bundle.json` does not change by accident.

``recorded/`` was written by the code before its report became dataclasses. Where a change of the report is wanted,
``ADAFOCUS_EDGE_RECORD=1`` writes it again, and the commit shows what changed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import numpy as np

from calibration.compare import Run, compare
from calibration.variants import Kept, Quantization

RECORDED = Path(__file__).with_name("recorded")


def runs() -> tuple[Run, Run, np.ndarray]:
    """Return a variant's run, the float model's, and the labels, all made up."""
    random = np.random.default_rng(7)
    logits = random.integers(-8, 8, (6, 4, 3)).astype(np.float32)
    patches = random.integers(0, 97, (6, 4, 2))
    changed, moved = logits.copy(), patches.copy()
    changed[1:3, -1] = [[0, 9, 0], [9, 0, 0]]
    changed[4, 2, 1] = np.nan
    moved[2, 0] += 8
    return Run(changed, moved), Run(logits, patches), random.integers(0, 3, 6)


def test_the_json_of_a_quantization_is_what_it_was() -> None:
    found = compare(*runs())
    kept = (Kept("glancer", "conv_1", "the stem"), Kept("focuser", "all", "2.00 points were lost", 0.25, 0.125))
    made = Quantization("minmax", {"minmax": found, "entropy": found}, {"glancer": found}, kept, found, True)
    text = json.dumps(msgspec.to_builtins(made), indent=1) + "\n"
    path = RECORDED / "quantization.json"
    if os.environ.get("ADAFOCUS_EDGE_RECORD"):
        path.write_text(text)
    assert text == path.read_text()
