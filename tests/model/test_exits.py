"""Early exit: confidences, orders, thresholds and how they are solved, against numbers worked out by hand."""

import json

import msgspec
import numpy as np
import pytest

from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.evaluate import exit_figures
from adafocus_edge.model.exits import (
    ExitThresholds,
    confidence_of,
    exit_steps,
    find_exits,
    random_exit_top1,
    viewing_order,
)
from calibration.thresholds import SPENT, Goal, solve


def test_confidences():
    logits = np.log(np.array([0.5, 0.25, 0.25], np.float32)) + 2
    assert confidence_of(logits, "probability") == pytest.approx(0.5)
    assert confidence_of(logits, "logit") == pytest.approx(2 + np.log(0.5))
    assert confidence_of(logits, "entropy") == pytest.approx(-1.5 * np.log(2))  # entropy 1.5 bits
    sure, unsure = np.array([9.0, 0, 0], np.float32), np.array([0.1, 0, 0], np.float32)
    for kind in ("probability", "logit", "entropy"):
        assert confidence_of(sure, kind) > confidence_of(unsure, kind)


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [1, 0]), (3, [1, 0, 2]), (4, [2, 0, 3, 1]), (8, [4, 0, 7, 2, 5, 1, 3, 6])],
)
def test_coarse_to_fine_is_middle_ends_halves(count, expected):
    assert viewing_order("coarse-to-fine", count) == expected
    assert viewing_order("clip", count) == list(range(count))


def test_a_clip_stops_where_it_is_sure_first():
    probabilities = np.array([[[0.6, 0.4], [0.9, 0.1], [0.99, 0.01]], [[0.5, 0.5], [0.4, 0.6], [0.3, 0.7]]])
    logits = np.log(probabilities).astype(np.float32)
    thresholds = ExitThresholds("clip", "probability", (None, 0.8, 0.999))
    assert exit_steps(logits, thresholds).tolist() == [1, 2]  # the last step always stops
    assert [thresholds.passes(step, logits[0, step]) for step in range(3)] == [False, True, False]
    figures = exit_figures(logits, np.array([0, 0]), thresholds, 0.5)
    # Right after each step: both (a tie goes to the first), one, one; the clips stop at steps 2 and 3.
    assert figures == {"mean_steps": 2.5, "gflops_per_clip": 1.25, "top1": 50.0, "top1_random_exit": 50.0}


def test_a_random_exit_is_the_expectation():
    right = np.array([[True, True], [False, True], [False, True], [False, False]])
    assert random_exit_top1(right, np.array([0, 0, 0, 1])) == pytest.approx(100 * (0.75 * 0.25 + 0.25 * 0.75))


def clips(count=400, steps=8, classes=4, seed=0):
    """Logits that grow towards the right class at different speeds: some clips are sure at once, some never."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    speed = random.exponential(0.6, count)
    logits = random.normal(0, 0.6, (count, steps, classes)).cumsum(axis=1) / np.arange(1, steps + 1)[:, None]
    logits[np.arange(count), :, labels] += speed[:, None] * np.arange(1, steps + 1)
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("confidence", ["probability", "logit", "entropy"])
@pytest.mark.parametrize("kind", ["steps", "gflops"])
def test_a_budget_is_kept_spent_and_better_than_chance(kind, confidence):
    logits, labels = clips()
    goal = Goal("half", kind, 4.0 if kind == "steps" else 2.0)
    solved = solve(goal, logits, labels, order="clip", confidence=confidence, gflops_per_step=0.5)
    assert SPENT * 4 <= solved.mean_steps <= 4
    assert len(solved.values) == 8
    other, truth = clips(seed=1)  # clips it was not solved on
    figures = exit_figures(other, truth, solved, 0.5)
    assert figures["mean_steps"] == pytest.approx(4, abs=0.8)
    assert figures["top1"] > figures["top1_random_exit"] + 3
    on_its_own = exit_figures(logits, labels, solved, 0.5)
    assert (on_its_own["mean_steps"], on_its_own["top1"]) == (solved.mean_steps, solved.top1)


def test_an_accuracy_is_kept_with_fewer_steps():
    logits, labels = clips()
    right = logits.argmax(axis=2) == labels[:, None]
    full = right[:, -1].mean() * 100
    ask = {"order": "clip", "confidence": "probability", "gflops_per_step": 1.0}
    strict, loose = (solve(Goal("a", "drop", value), logits, labels, **ask) for value in (0.5, 5))
    assert loose.mean_steps < strict.mean_steps < 8
    stops = exit_steps(logits, strict)
    lost = right[:, -1] & ~right[np.arange(len(stops)), stops]
    assert lost.mean() * 100 <= 0.5
    floor = solve(Goal("a", "accuracy", full - 5), logits, labels, **ask)
    assert floor.top1 >= full - 5
    assert floor.mean_steps <= loose.mean_steps
    with pytest.raises(UsageError, match=r"cannot be met: all steps reach"):
        solve(Goal("a", "accuracy", 100.0), logits, labels, **ask)
    with pytest.raises(UsageError, match=r"at most 0.5 steps cannot be met"):
        solve(Goal("a", "steps", 0.5), logits, labels, **ask)


def test_thresholds_survive_json():
    logits, labels = clips(50)
    solved = solve(
        Goal("h", "steps", 3), logits, labels, order="live", confidence="entropy", gflops_per_step=1, glimpse_fps=4
    )
    again = msgspec.json.decode(msgspec.json.encode(solved), type=ExitThresholds)
    assert again == solved
    assert exit_steps(logits, again).tolist() == exit_steps(logits, solved).tolist()
    assert json.loads(msgspec.json.encode(solved))["glimpse_fps"] == 4


def test_one_step_is_all_there_is():
    logits, labels = clips(20, steps=1)
    solved = solve(Goal("a", "steps", 1), logits, labels, order="clip", confidence="logit", gflops_per_step=1)
    assert solved.values == (None,)
    assert exit_steps(logits, solved).tolist() == [0] * 20


@pytest.mark.parametrize(
    "text",
    [
        "half",
        "half=steps",
        "half=steps:x",
        "half=minutes:3",
        "=steps:3",
        "a/b=steps:3",
        "a=steps:-1",
        "a=steps:inf",
        "a=steps:nan",
    ],
)
def test_bad_goals_are_told(text):
    with pytest.raises(UsageError, match="NAME=KIND:VALUE"):
        Goal.parse(text)


def test_sets_are_found_by_name_and_order():
    sets = {"half": (ExitThresholds("clip", "probability", (0.5,)), ExitThresholds("live", "probability", (0.6,)))}
    assert find_exits(sets, "half", ["live"]).values == (0.6,)
    assert find_exits(sets, "half", ["clip", "coarse-to-fine"]).values == (0.5,)
    with pytest.raises(KeyError, match="are for the order clip, live, not for coarse-to-fine"):
        find_exits(sets, "half", ["coarse-to-fine"])
    with pytest.raises(KeyError, match="no exit thresholds 'third'; this bundle has: half"):
        find_exits(sets, "third", ["clip"])
