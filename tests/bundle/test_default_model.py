"""The model that ships with the product: whole, small, described, and used where no bundle is named."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adafocus_edge.bundle import store
from adafocus_edge.bundle.store import (
    SETTLED_NS,
    check_graph_files,
    default_bundle,
    open_bundle,
    read_bundle,
)
from adafocus_edge.bundle.variants import REFERENCE
from adafocus_edge.cli.app import app
from adafocus_edge.errors import BundleError
from tests.cli.test_cli import without
from tests.conftest import CLIPS, ROOT, edge

FIGHTS = ROOT / "tests" / "fights"
MAX_BYTES = 25_000_000


def test_it_is_whole_small_and_described() -> None:
    bundle = read_bundle(default_bundle())
    assert bundle.classes == ("fight", "no_fight")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:  # as a wheel is
        for path in default_bundle().rglob("*"):
            if path.is_file():
                archive.write(path)
    assert packed.tell() < MAX_BYTES
    assert list(bundle.manifest.variants) == ["fp32", "fp16", "int8-cpu"]
    assert set(bundle.manifest.thresholds) == {"half", "safe"}
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


def test_a_run_reads_each_file_of_its_bundle_once_to_hash_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`classify` checks a bundle when it opens it and again once graphs are loaded; both hash each file once."""
    path = tmp_path / "bundle"
    shutil.copytree(default_bundle(), path)
    time.sleep(2 * SETTLED_NS / 1e9)  # a file that has just changed is hashed again
    hashed: Counter[str] = Counter()
    read = store._read_digest

    def counted(file: Path) -> object:
        hashed[file.relative_to(path).as_posix()] += 1
        return read(file)

    monkeypatch.setattr(store, "_read_digest", counted)
    clip = FIGHTS / "fight" / "fi013.mp4"
    done = CliRunner().invoke(app, ["classify", str(clip), "--bundle", str(path), "--backend", "onnxruntime-cpu"])
    assert done.exit_code == 0, done.output
    bundle = open_bundle(path)
    files = {info.file for info in bundle.manifest.variants[REFERENCE].values()}  # the others are not run
    assert hashed == Counter({"classes.txt", *files})

    graph = bundle.graph_path(REFERENCE, "policy")
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"policy\.onnx: changed since the bundle was made"):
        check_graph_files(bundle, REFERENCE)
    assert hashed[graph.relative_to(path).as_posix()] == 2
