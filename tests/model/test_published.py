"""Viewing order and exit thresholds of V2 and Uni-AdaFocus, against what the official code gives."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adafocus_edge.model.exits import confidence_of, exit_steps
from adafocus_edge.model.published import published_order, published_thresholds
from calibration.thresholds import Goal, solve
from tests.conftest import GOLDEN

V2 = GOLDEN / "v2"


def clips(seed: int, count: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the golden file's clips, by its recipe."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    logits = random.standard_normal((count, steps, 10)).astype(np.float32).cumsum(1) * np.float32(0.5)
    gains = np.linspace(0.2, 3, steps)
    for clip, label in enumerate(labels):
        logits[clip, np.arange(steps), label] += gains
    return logits.astype(np.float32), labels


def test_the_order_is_the_official_one() -> None:
    for count, order in json.loads((V2 / "golden_v2_sampling.json").read_text())["order"].items():
        assert published_order(int(count)) == order
    for count in range(1, 100):
        assert sorted(published_order(count)) == list(range(count))


@pytest.mark.parametrize(("kind", "steps"), [("v2", 16), ("uni", 17)])
@pytest.mark.parametrize(("name", "confidence"), [("confidence", "logit"), ("entropy", "entropy")])
def test_thresholds_and_exits_are_the_official_ones(kind: str, steps: int, name: str, confidence: str) -> None:
    with np.load(V2 / "golden_exits.npz") as golden:
        wanted = {
            key.removeprefix(f"{kind}_{name}_"): golden[key] for key in golden if key.startswith(f"{kind}_{name}")
        }
        ratios, costs = golden[f"{kind}_p"], golden[f"{kind}_gflops_at_exits"]
    solving, solving_labels = clips(71, 300, steps)
    judging, labels = clips(72, 200, steps)
    checked, ask = 0, {"order": "clip", "gflops_per_step": 1.0}
    sure, judged = confidence_of(solving, confidence), confidence_of(judging, confidence)  # type: ignore[arg-type]
    for row, ratio in enumerate(ratios):
        counts = 300 * ratio ** np.arange(steps) / (ratio ** np.arange(steps)).sum()
        if np.abs(counts - np.rint(counts))[counts > 0.5].min() < 1e-4:
            continue  # the last digit of a float32 decides how many exit
        checked += 1
        thresholds = published_thresholds(sure, float(ratio))
        assert np.allclose(thresholds, wanted["thresholds"][row], rtol=1e-5, atol=1e-6), ratio
        exits = (judged >= thresholds).argmax(axis=1)
        assert np.bincount(exits, minlength=steps).tolist() == wanted["exits"][row].tolist(), ratio
        top1 = (judging[np.arange(200), exits].argmax(axis=1) == labels).mean() * 100
        assert top1 == pytest.approx(wanted["top1"][row])
        assert costs[exits].mean() == pytest.approx(wanted["gflops"][row], rel=1e-6)
        # As `calibrate --exit-goal NAME=ratio:Q` solves them and `classify` exits by them.
        goal = Goal.parse(f"v2=ratio:{ratio}")
        assert Goal.said("v2", str(goal)) is not None
        solved = solve(goal, solving, solving_labels, confidence=confidence, **ask)  # type: ignore[arg-type]
        assert exit_steps(judging, solved).tolist() == exits.tolist(), ratio
    assert checked > 10
