"""Evaluating a model on labelled clips: the figures against numbers worked out by hand, and the real thing."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.cli.tables import patches_table
from adafocus_edge.errors import BackendError, UsageError
from adafocus_edge.evaluation.dataset import Example, Split
from adafocus_edge.evaluation.evaluate import (
    Evaluation,
    Scored,
    evaluate,
    gflops_per_step,
    predict_at,
    predict_with,
    with_patches,
)
from adafocus_edge.evaluation.metrics import wilson_interval
from adafocus_edge.evaluation.oracle import Oracle, cell_origins
from adafocus_edge.evaluation.plot import draw_calibration, draw_evaluation, draw_patches
from adafocus_edge.evaluation.run import evaluate_model
from adafocus_edge.evaluation.settings import EvaluateOptions, Patches
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.model.logits import softmax
from adafocus_edge.runtime.glimpse import see_clip
from tests.conftest import CLIPS, ROOT, SMALL, edge, one_line_error, weights_of, write_checkpoint
from tests.support.diverged import copy_diverged
from training.geometry import action_grid


def found(multi_label: bool = False) -> Evaluation:
    """Three clips, two steps, three classes."""
    logits = np.log(
        np.array(
            [
                [[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]],
                [[0.1, 0.8, 0.1], [0.2, 0.7, 0.1]],
                [[0.3, 0.3, 0.4], [0.5, 0.3, 0.2]],
            ],
            np.float32,
        )
    )
    labels = ((0,), (1, 2), (2,))
    scored = tuple(
        Scored(Example(f"clip {i}", Path("x"), label), values, 1.0 + i, 10.0 + i)
        for i, (label, values) in enumerate(zip(labels, logits, strict=True))
    )
    return Evaluation("here", ("a", "b", "c"), scored, (("bad", "broken"),), multi_label, 1.5)


def test_figures_are_those_worked_out_by_hand() -> None:
    entry = found().to_json()
    assert entry["top1"] == pytest.approx(200 / 3, abs=1e-3)
    assert entry["per_step"][0]["top1"] == pytest.approx(200 / 3, abs=1e-3)  # clips 1 and 2 after one step
    assert entry["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    # a: its clip ranks 1st; b: 1st; c: its clip ranks 1st of 0.1, 0.1, 0.2.
    assert entry["mAP"] == pytest.approx(100)
    assert entry["top5"] == 100
    assert (entry["clips"], entry["gflops_per_clip"], entry["model_ms_per_clip"]) == (3, 1.5, 11.0)
    assert entry["failed"] == [{"clip": "bad", "error": "broken"}]
    # By all labels, class c has clips 1 and 2 at ranks 1 and (after clip 0, a tie) 3: (1 + 2 / 3) / 2.
    assert found(multi_label=True).to_json()["mAP"] == pytest.approx(100 * (2 + 5 / 6) / 3, abs=1e-3)


def test_wilsons_interval() -> None:
    # Worked out by the formula for 8 of 10: centre (0.8 + 0.19207) / 1.38415.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(10, 10)[1] == pytest.approx(1)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    draw_evaluation(found(), "a model", tmp_path / "plots" / "p.png")
    assert (tmp_path / "plots" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_names_with_dollars_are_drawn_as_they_are(tmp_path: Path) -> None:
    name = "$5_{ and $6"
    draw_evaluation(replace(found(), classes=(name, "b$", "c")), name, tmp_path / "one.png")
    figures = {"gflops_per_clip": 1.0, "top1": 50.0, "top1_interval_95": (40.0, 60.0)}
    draw_patches({"policy": figures}, name, tmp_path / "two.png")
    draw_calibration(replace(read_bundle(default_bundle()), path=tmp_path / name), tmp_path / "three.png")
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "two.png", "three.png"}


def test_fixed_patches_replace_the_policys(small_bundle: Path) -> None:
    bundle = read_bundle(small_bundle)
    frames = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    with load_model(bundle, "fp32", "onnxruntime-cpu") as model:
        centre = np.concatenate([g.origins for g in see_clip(with_patches(model, "centre"), frames)])
        assert (centre == 0.5).all()
        one, two = (
            np.concatenate([g.origins for g in see_clip(with_patches(model, "random", 3), frames)]) for _ in "ab"
        )
        assert np.array_equal(one, two)
        assert len(np.unique(one)) == 16
        assert with_patches(model, "policy") is model
        for unknown in ("polcy", "oracle"):
            with pytest.raises(UsageError, match=f"'{unknown}': must be policy, centre or random"):
                with_patches(model, unknown)  # type: ignore[arg-type]
        clip, stream = (predict_with(model, schedule)(frames) for schedule in ("clip", "stream"))
        np.testing.assert_allclose(clip, stream, atol=1e-4)


def test_the_oracle_takes_the_cell_after_which_the_right_class_is_surest(small_bundle: Path) -> None:
    assert np.array_equal(cell_origins(5), action_grid(5).numpy())
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    with load_model(read_bundle(small_bundle), "fp32", "onnxruntime-cpu") as model:
        found = Oracle(model)(frames, 2)
        # By hand: every cell of every frame, one run each.
        state = np.zeros((1, SMALL.classifier_state), np.float32)
        for step in range(3):
            tried = []
            for origin in cell_origins(5):
                focus = model.focuser.run({"frame": frames[step : step + 1], "origin": origin[None]})["focus"]
                verdict = model.classifier.run({"focus": focus, "state": state})
                tried.append((softmax(verdict["logits"])[0, 2], verdict))
            best = max(tried, key=lambda one: one[0])[1]
            np.testing.assert_allclose(found[step], best["logits"][0], atol=1e-4)
            state = best["state_out"]
        costs = {"glancer": 1.0, "policy": 2.0, "focuser": 3.0, "classifier": 4.0}
        assert gflops_per_step(costs, SMALL, "policy") == 10
        assert gflops_per_step(costs, SMALL, "centre") == 7  # this classifier sees patches only
        assert gflops_per_step(costs, SMALL, "oracle") == 25 * 7


def test_several_kinds_of_patches_are_one_table(small_bundle: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    videos = sorted(CLIPS.glob("v_*.avi"))
    rows = "".join(f"{video},activity {number}\n" for number, video in enumerate(videos))
    (tmp_path / "data.csv").write_text(f"video,class\n{rows}")
    given = ["--data", tmp_path / "data.csv", "--patches", "policy,centre, oracle", "--segments", 2]
    done = edge("evaluate", small_bundle, *given, "--json", "-q", "--plot", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["patches"]
    assert list(found) == ["policy", "centre", "oracle"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert found["oracle"]["gflops_per_clip"] > 20 * found["centre"]["gflops_per_clip"]
    sure = {name: [p["confidence"] for p in one["predictions"]] for name, one in found.items()}
    assert sure["policy"] != sure["centre"]
    one = edge("evaluate", small_bundle, *given[:3], "centre", "--segments", 2, "--json", "-q")
    assert json.loads(one.stdout)["predictions"] == found["centre"]["predictions"]
    table = edge(
        "evaluate",
        small_checkpoint,
        *given,
        "--patch-size",
        160,
        "--classes",
        small_checkpoint.with_name("classInd.txt"),
        "-q",
    )
    assert table.returncode == 0, table.stderr
    assert [line.split()[0] for line in table.stdout.splitlines() if "%" in line and " to " in line] == list(found)
    one_line_error(
        edge("evaluate", small_bundle, *given[:3], "best", "-q"), 2, "'best' must be one of policy, centre, random"
    )


def test_the_table_of_several_kinds_of_patches_has_the_figures_of_early_exit() -> None:
    every = replace(found(), exits=ExitThresholds("clip", "probability", (0.5, 0.0)))
    entry = {"model": "m", "data": "d", "patches": {"policy": every.to_json(), "centre": every.to_json()}}
    table = patches_table(entry)
    # Clips 0 and 1 are sure after the first step, and clip 0 wrong: 1.33 steps, of which one clip is right.
    assert (table.columns[-1].header, [*table.columns[-1].cells]) == ("early exit", ["33.33 % after 1.33"] * 2)
    for one in entry["patches"].values():
        del one["exit"]
    assert patches_table(entry).columns[-1].header == "clips"


def test_the_order_of_classes_is_noted_for_a_model_without_names(small_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("c1", "c2", "c3", "c4", "c5", "c6", "c10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.avi").symlink_to(CLIPS / "v_SoccerJuggling_g23_c01.avi")
    (tmp_path / "classes.txt").write_text("c1\nc2\nc3\nc4\nc5\nc6\nc10\n")
    asked = EvaluateOptions(data=tmp_path, patches=("centre",), patch_size=160, segments=1)
    lines: list[str] = []

    def notes(options: EvaluateOptions) -> list[str]:
        lines.clear()
        done = evaluate_model(small_checkpoint, options, lines.append, lambda _: nullcontext(lambda _: None))
        return [note for note in done.to_json()["notes"] if "class names" in note]

    (note,) = notes(asked)
    assert note == (
        "the model has no class names: assumed the data's, sorted (0 = 'c1', 1 = 'c10', 2 = 'c2', 3 = 'c3', ...); "
        "give --classes FILE to be sure"
    )
    assert f"note: {note}" in lines
    assert notes(replace(asked, classes=tmp_path / "classes.txt")) == []


def test_clips_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    video = CLIPS / "v_SoccerJuggling_g23_c01.avi"
    split = Split((Example("v", video, (1,)), Example("gone", tmp_path / "gone.mp4", (0,))), ("a", "b"), "here")
    done: list[int] = []
    result = evaluate(
        lambda frames: np.zeros((len(frames), 2), np.float32), SMALL, split, gflops_per_clip=1.0, progress=done.append
    )
    assert [s.example.name for s in result.scored] == ["v"]
    assert result.failed[0][0] == "gone"
    assert done == [1, 2]


@pytest.mark.parametrize("kind", ["policy", "oracle"])
def test_outputs_that_are_not_numbers_end_the_evaluation(small_bundle: Path, tmp_path: Path, kind: Patches) -> None:
    bundle = read_bundle(copy_diverged(small_bundle, tmp_path / "bundle"))
    split = Split((Example("v", CLIPS / "v_SoccerJuggling_g23_c01.avi", (1,)),), bundle.classes, "here")
    with (
        load_model(bundle, backend="onnxruntime-cpu") as model,
        pytest.raises(BackendError, match="the model's outputs are not finite numbers"),
    ):
        evaluate(predict_at(model, kind), bundle.spec, split, gflops_per_clip=1.0)


def test_a_bundle_is_evaluated_from_the_command_line(small_bundle: Path, tmp_path: Path) -> None:
    videos = sorted(CLIPS.glob("v_*.avi"))
    rows = "".join(f"{video},activity {number}\n" for number, video in enumerate(videos))
    (tmp_path / "data.csv").write_text(f"video,class\n{rows}{tmp_path / 'gone.mp4'},activity 3\n")
    done = edge("evaluate", small_bundle, "--data", tmp_path / "data.csv", "--json", "--schedule", "stream")
    assert done.returncode == 1  # one clip is missing
    assert "skipped: " in done.stderr
    entry = json.loads(done.stdout)
    assert entry["clips"] == len(videos)
    assert "stream schedule" in entry["ran"]
    classified = edge("classify", *videos, "--bundle", small_bundle, "--json", "--quiet")
    labels = [json.loads(line)["label"] for line in classified.stdout.splitlines()]
    assert [p["label"] for p in entry["predictions"]] == labels
    table = edge("evaluate", small_bundle, "--data", tmp_path / "data.csv", "-q")
    assert "after each glimpse" in table.stdout
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(f"video,class\n{videos[0]},dancing\n")
    one_line_error(
        edge("evaluate", small_bundle, "--data", wrong, "-q"), 1, "wrong.csv, line 2: unknown class 'dancing'"
    )
    one_line_error(edge("evaluate", small_bundle, "-q"), 2, "--data is missing")
    one_line_error(edge("evaluate", tmp_path / "none", "--data", wrong, "-q"), 2, "no such bundle or checkpoint")
    one_line_error(edge("evaluate", small_bundle, "--data", wrong, "--plot", "p.jpg"), 2, "name it *.png")


def test_weights_stored_in_half_precision(tmp_path: Path) -> None:
    weights = weights_of(SMALL, seed=9)
    checkpoint = write_checkpoint(weights, tmp_path / "c.pth.tar", config={"fit": "squash", "motion_gap_s": 0.1})
    sizes, logits = {}, {}
    for name, more in (("full", []), ("half", ["--half-weights"])):
        done = edge("export", checkpoint, "-o", tmp_path / name, "--patch-size", 160, "--segments", 8, *more)
        assert done.returncode == 0, done.stderr
        bundle = read_bundle(tmp_path / name)
        assert (bundle.spec.fit, bundle.spec.motion_gap_s) == ("squash", 0.1)
        sizes[name] = sum(info.size_bytes for info in bundle.manifest.variants["fp32"].values())
        video = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
        run = edge("classify", video, "--bundle", tmp_path / name, "--json", "--logits", "-q")
        logits[name] = np.array([step["logits"] for step in json.loads(run.stdout)["steps"]])
    report = read_bundle(tmp_path / "half").manifest.reports["parity"]["half_weights"]
    assert 0 < report["largest_error"] < 0.02 * report["largest_value"]
    assert sizes["half"] < 0.52 * sizes["full"]
    assert 0 < np.abs(logits["half"] - logits["full"]).max() < 0.02 * np.abs(logits["full"]).max()
    huge = {**weights, "classifier.fc.weight": torch.full_like(weights["classifier.fc.weight"], 1e5)}
    checkpoint = write_checkpoint(huge, tmp_path / "huge.pth.tar")
    done = edge("export", checkpoint, "-o", tmp_path / "no", "--patch-size", 160, "--half-weights")
    one_line_error(done, 1, "too large for half precision")
