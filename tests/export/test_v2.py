"""AdaFocus V2 from an official checkpoint to results: the bundle, both schedules, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adafocus_edge import AdaFocus
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.media.sources import Source
from adafocus_edge.model.published import published_order
from adafocus_edge.runtime.classifier import Classifier
from tests.conftest import ROOT, edge, one_line_error
from tests.serve.test_serve import new_run, quick, running, send
from tests.support.small_v2 import CHECKPOINT, FRAMES, STEPS, small_v2
from tests.training.test_v2 import frames_in
from training.models.v2 import AdaFocusV2


@pytest.fixture(scope="module")
def model() -> AdaFocusV2:
    """The small model."""
    return small_v2()


@pytest.fixture
def checkpoint(v2_bundle: Path) -> Path:
    return v2_bundle.with_name(CHECKPOINT)


@pytest.fixture
def bundle(v2_bundle: Path) -> Path:
    return v2_bundle


def by_steps(model: AdaFocusV2) -> tuple[np.ndarray, np.ndarray]:
    """Logits and corners of the clip, one frame at a time in PyTorch."""
    frames = torch.from_numpy(frames_in(np.array(published_order(STEPS)) + 1))
    policy_state, state = torch.zeros(1, model.spec.policy_state), torch.zeros(1, model.spec.classifier_state)
    logits, corners = [], []
    with torch.inference_mode():
        for frame in frames.split(1):
            feature_map, glance = model.glance(frame)
            origin, policy_state = model.choose(feature_map, policy_state)
            verdict, state = model.classify(glance, model.focus(frame, origin), state)
            logits.append(verdict)
            corners.append(model.corner(origin))
    return torch.cat(logits).numpy(), torch.cat(corners).numpy()


@pytest.mark.parametrize("schedule", ["clip", "stream"])
def test_a_clip_is_seen_in_the_trained_order_and_gives_pytorchs_logits(
    model: AdaFocusV2, bundle: Path, schedule: str
) -> None:
    done = edge("classify", FRAMES, "--bundle", bundle, "--schedule", schedule, "--json", "--logits", "-q")
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    logits, corners = by_steps(model)
    assert [step["frame_index"] for step in steps] == published_order(STEPS)
    found = np.array([step["logits"] for step in steps])
    assert np.abs(found - logits).max() <= 2e-3 * np.abs(logits).max()
    assert np.abs(np.array([step["patch"][:2] for step in steps]) - corners).max() <= 0.02
    assert {step["patch"][2] for step in steps} == {64}


def test_patches_of_points_are_not_cut_to_whole_pixels(model: AdaFocusV2, bundle: Path) -> None:
    _, corners = by_steps(model)
    with AdaFocus(bundle, backend="cpu") as made:
        patches = made(FRAMES).patches
    assert patches.dtype == np.float64
    assert np.abs(patches[:, :2] - corners).max() <= 0.02
    assert set(patches[:, 2]) == {64}


def test_a_bundle_of_v2_has_format_2_and_one_of_v1_stays_as_it_was(bundle: Path, small_bundle: Path) -> None:
    written = json.loads((bundle / "bundle.json").read_text())
    assert written["format_version"] == 2
    assert (written["model"]["choice"], written["model"]["consensus"], written["model"]["order"]) == (
        "point", "max", "frameexit",
    )  # fmt: skip
    first = json.loads((small_bundle / "bundle.json").read_text())
    assert first["format_version"] == 1
    assert not {"choice", "order"} & set(first["model"])
    assert read_bundle(small_bundle).spec.choice == "grid"


def test_a_model_trained_in_time_order_is_exported_so(checkpoint: Path) -> None:
    out = checkpoint.with_name("in-time")
    given = ("--patch-size", 64, "--no-sample", "--frames", FRAMES, "-q")
    assert edge("export", checkpoint, "-o", out, *given).returncode == 0
    done = edge("classify", FRAMES, "--bundle", out, "--json", "-q")
    assert [step["frame_index"] for step in json.loads(done.stdout)["steps"]] == list(range(STEPS))


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("Uni-AdaFocus", ["classifier.global_mlp.layers.0.weight"]),
        ("Uni-AdaFocus-TSM", ["global_CNN.new_fc.weight", "spatial_policy.encoder.0.weight"]),
        ("AdaFocus V2-TSM", ["global_CNN.new_fc.weight", "policy_stn.0.weight"]),
    ],
)
def test_other_families_are_named(tmp_path: Path, family: str, names: list[str]) -> None:
    torch.save({"state_dict": {f"module.{name}": torch.zeros(2, 2) for name in names}}, tmp_path / "c.pth")
    refused = edge("export", tmp_path / "c.pth", "-o", tmp_path / "b", "--patch-size", 96, "-q")
    one_line_error(refused, 1, f"a checkpoint of {family}, which is not supported yet")


def test_what_does_not_fit_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def refused(*options: Any) -> Any:
        return edge("export", checkpoint, "-o", tmp_path / "b", *options, "-q")

    one_line_error(refused(), 2, "give --patch-size")
    one_line_error(refused("--patch-size", 64, "--segments", 8), 2, "layers for 16 steps")
    one_line_error(refused("--patch-size", 64, "--glance-size", 224), 2, "--glance-size must be 65 to 96")
    assert not (tmp_path / "b").exists()


# -- everything that takes a bundle ------------------------------------------------------------------------------------

FIGHTS = ROOT / "tests" / "fights"
CLIP = FIGHTS / "fight" / "fi013.mp4"


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small model in time order for the clips' two classes, with an INT8 and an FP16 variant."""
    folder = tmp_path_factory.mktemp("v2-verbs")
    weights = small_v2(8, 2).state_dict()
    content = {"state_dict": {f"module.{name}": value for name, value in weights.items()}}
    torch.save({**content, "class_names": ["fight", "no_fight"]}, folder / "c.pth")
    bundle = folder / "bundle"
    done = edge("export", folder / "c.pth", "-o", bundle, "--patch-size", 64, "--no-sample", "--fused", "-q")
    assert done.returncode == 0, done.stderr
    given = ("--data", FIGHTS, "--clips", 4, "--samples", 12, "--variants", "int8-cpu,int8-trt,fp16", "--json", "-q")
    calibrated = edge("calibrate", bundle, *given)
    assert calibrated.returncode == 0, calibrated.stderr
    assert {"fp32", "int8-cpu", "int8-trt", "fp16"} == set(read_bundle(bundle).manifest.variants)
    return bundle


def test_a_bundle_of_v2_is_inspected_evaluated_and_benchmarked(two_classes: Path) -> None:
    inspected = edge("inspect", two_classes, "--json")
    assert inspected.returncode == 0, inspected.stderr
    kinds = "policy,random,centre,oracle"
    done = edge("evaluate", two_classes, "--data", FIGHTS, "--patches", kinds, "--json", "-q")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["patches"]
    assert set(found) == set(kinds.split(","))
    assert all(one["clips"] == 12 for one in found.values())
    measured = edge("benchmark", two_classes, "--data", FIGHTS, "--quick", "--rounds", 1, "--json", "-q")
    assert measured.returncode == 0, measured.stderr
    assert {row["variant"] for row in json.loads(measured.stdout)["rows"]} >= {"fp32", "int8-cpu"}


def test_a_bundle_of_v2_is_tuned_and_its_engines_are_built(two_classes: Path, tmp_path: Path) -> None:
    given = ("--data", FIGHTS, "--max-latency-ms", 1e6, "--rounds", 1, "--variants", "fp32,int8-cpu", "--exits", "none")
    tuned = edge("tune", two_classes, *given, "--json", "-q")
    assert tuned.returncode == 0, tuned.stderr
    built = edge("build", two_classes, "-o", tmp_path / "built", "--json", "-q")
    assert built.returncode == 0, built.stderr
    assert "step" in built.stdout


@pytest.mark.parametrize("variant", ["fp32", "int8-cpu", "fp16"])
def test_a_bundle_of_v2_runs_live(two_classes: Path, variant: str) -> None:
    given = ("--bundle", two_classes, "--variant", variant, "--realtime", "--glimpse-fps", 8, "--json", "-q")
    done = edge("classify", CLIP, *given)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    patches = [step["patch"] for result in results for step in result.get("steps", ())]
    assert patches
    assert all(0 <= y <= 160 and 0 <= x <= 160 and side == 64 for y, x, side in patches)


def test_a_bundle_of_v2_is_served(two_classes: Path) -> None:
    found = read_bundle(two_classes)
    with load_model(found, "auto", "onnxruntime-cpu", 1) as model:
        classifier = Classifier(model, found.classes, top_k=2, schedule="stream")
        expected, _ = classifier.classify(Source("x", str(CLIP)))
        run = new_run(classifier)
        with running(run), quick(classifier, run) as server:
            answer = send(server, CLIP.read_bytes(), "clip.mp4")
    assert answer.status == 200, answer.body
    assert answer.json["label"] == expected.top[0].label
    patches = np.array([step["patch"] for step in answer.json["steps"]])
    assert np.abs(patches - np.array([step.patch for step in expected.steps])).max() <= 0.02


def test_a_trained_order_is_not_replaced_by_another(bundle: Path) -> None:
    given = ("--data", FIGHTS, "--variants", "none", "--orders", "clip,coarse-to-fine", "-q")
    one_line_error(edge("calibrate", bundle, *given), 2, "--orders coarse-to-fine", "an order of its own")
