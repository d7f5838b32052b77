"""A small AdaFocus V2: its model with deterministic weights, its checkpoint and its bundle."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.conftest import GOLDEN, edge
from tests.golden.v2.weights_v2 import values
from tests.training.test_v2 import v2_spec
from training.models.v2 import AdaFocusV2

FRAMES = GOLDEN / "v2" / "frames"
STEPS = 16
PATCH_SIZE = 64
CHECKPOINT = "ckpt.best.pth.tar"


def small_v2(steps: int = STEPS, classes: int = 7) -> AdaFocusV2:
    """Return the model."""
    made = AdaFocusV2(v2_spec("resnet18", "resnet18", 96, PATCH_SIZE, steps, 32, classes), 0.0, 0.0)
    state = {name: torch.as_tensor(values(name, tuple(v.shape), 3)) for name, v in made.state_dict().items()}
    made.load_state_dict(state)
    return made.eval()


def make_small_v2(folder: Path) -> None:
    """Write its checkpoint, and export it by the command line with its joined step."""
    state = {f"module.{name}": value for name, value in small_v2().state_dict().items()}
    torch.save({"state_dict": state}, folder / CHECKPOINT)
    done = edge(
        "export", folder / CHECKPOINT, "-o", folder / "bundle", "--patch-size", PATCH_SIZE, "--frames", FRAMES,
        "--fused", "--json", "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {(row["what"], row["batch"]): row for row in json.loads(done.stdout)["rows"]}
    assert rows["loop, stream schedule", 1]["same_actions"]
    assert rows["joined step", 1]["max_error"] < 1e-4 * max(1.0, rows["joined step", 1]["scale"])
