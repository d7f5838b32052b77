"""The model that ships with the product: whole, small, described, and used where no bundle is named."""

from __future__ import annotations

import csv
import json

from adafocus_edge.bundle.store import default_bundle, read_bundle
from tests.cli.test_cli import without
from tests.conftest import CLIPS, ROOT, edge

FIGHTS = ROOT / "tests" / "fights"
MAX_BYTES = 25_000_000


def test_it_is_whole_small_and_described() -> None:
    bundle = read_bundle(default_bundle())
    assert bundle.classes == ("fight", "no_fight")
    assert sum(path.stat().st_size for path in default_bundle().rglob("*") if path.is_file()) < MAX_BYTES
    assert list(bundle.manifest.variants) == ["fp32", "fp16"]
    assert bundle.choose_variant() == "fp32"
    card = (default_bundle() / "MODEL_CARD.md").read_text()
    for heading in ("Data", "Licence", "Accuracy", "Must not be used for"):
        assert f"## {heading}" in card


def test_classify_takes_it_without_a_bundle_and_without_pytorch() -> None:
    clip = FIGHTS / "fight" / "fi013.mp4"
    done = without({"torch", "torchvision", "onnx", "cv2"}, "classify", clip, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {guess["label"] for guess in result["top"]} == {"fight", "no_fight"}
    assert result["steps_used"] == read_bundle(default_bundle()).spec.segments
    assert "MODEL_CARD.md" in done.stderr
    assert edge("classify", clip, "--json", "-q").stderr == ""


def test_half_precision_says_the_same() -> None:
    found = {}
    for variant in ("fp32", "fp16"):
        done = edge("classify", FIGHTS / "fight" / "fi013.mp4", "--variant", variant, "--json", "-q", "--logits")
        assert done.returncode == 0, done.stderr
        found[variant] = json.loads(done.stdout)
    pairs = list(zip(found["fp32"]["steps"], found["fp16"]["steps"], strict=True))
    assert [one["patch"] for one, _ in pairs] == [other["patch"] for _, other in pairs]
    errors = [abs(a - b) for one, other in pairs for a, b in zip(one["logits"], other["logits"], strict=True)]
    assert 0 < max(errors) < 2e-2


def test_it_knows_clips_that_it_was_trained_on() -> None:
    # No measure of accuracy (the model card has that), but of the file, the preprocessing and the classes' order.
    done = edge("evaluate", "--data", FIGHTS, "--json", "-q")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["clips"] == 12
    assert found["mAP"] > 95
    assert found["top1"] > 75


def test_both_schedules_agree_on_motion_frames() -> None:
    found = [
        json.loads(edge("classify", CLIPS / "people_1080p.mp4", "--schedule", schedule, "--json", "-q").stdout)
        for schedule in ("clip", "stream")
    ]
    assert [step["patch"] for step in found[0]["steps"]] == [step["patch"] for step in found[1]["steps"]]
    assert abs(found[0]["confidence"] - found[1]["confidence"]) < 1e-4


def test_the_clips_of_the_tests_are_listed() -> None:
    with (FIGHTS / "sources.csv").open() as file:
        listed = {row["video"] for row in csv.DictReader(file)}
    assert listed == {str(path.relative_to(FIGHTS)) for path in FIGHTS.glob("*/*.mp4")}
