"""One command trains all stages, is killed, resumes, exports, and the bundle classifies a clip."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from adafocus_edge.errors import UsageError
from tests.conftest import ROOT, edge, one_line_error
from tests.training import helpers
from tests.training.helpers import prepare_fights
from training.all_stages import stage_run
from training.compose import STAGE_RUNS, compose_options

FIGHTS = ROOT / "tests" / "fights"
TINY = [
    *helpers.TINY,
    *"num_segments=2 epochs=1 backbone_lr=0.003 fc_lr=0.01 device=cpu freeze_backbones=true stages=all".split(),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_fights(tmp_path_factory.mktemp("data") / "prepared", 72)


def epochs_of(run: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_killed_run_of_all_stages_resumes_and_its_bundle_classifies_a_clip(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "it's a run, (1)"
    given = ["train", *TINY, f"data_dir={data}", "focuser.epochs=3", "export=true", f"hydra.run.dir={run}"]
    with subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", *given], cwd=ROOT, env=os.environ, stderr=subprocess.DEVNULL
    ) as process:
        metrics, deadline = run / "focuser" / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and metrics.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert epochs_of(run / "focuser")[-1] < 3
    finished = (run / "glancer" / "last.pth.tar").stat().st_mtime_ns

    done = edge(*given, "--json")
    assert done.returncode == 0, done.stderr
    assert (run / "glancer" / "last.pth.tar").stat().st_mtime_ns == finished
    assert "glancer (1 of 5): finished, 1 epochs" in done.stderr
    assert "resuming after epoch" in done.stderr
    assert epochs_of(run / "focuser") == [1, 2, 3]
    found = json.loads(done.stdout)
    assert [one["stage"] for one in found["stages"]] == list(STAGE_RUNS)
    assert [one["epochs"] for one in found["stages"]] == [1, 3, 1, 1, 1]
    # The features that stage 1 computed serve stages 2 and 3.
    assert "policy cache: 12 clips computed" in (run / "stage1" / "training.log").read_text()
    for name in ("stage2", "stage3"):
        assert "policy cache: 0 clips computed in 0 s, 12 were kept" in (run / name / "training.log").read_text()

    classified = edge("classify", FIGHTS / "fight" / "fi013.mp4", "--bundle", found["bundle"], "--json")
    assert classified.returncode == 0, classified.stderr
    assert json.loads(classified.stdout)["label"] in ("fight", "no_fight")

    again = edge(*given)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(": finished, ") == 5
    assert "options changed" not in again.stderr
    longer = edge(*given, "stage2.epochs=2")
    one_line_error(longer, 2, "comes from an earlier stage2, which has 1 of 2 epochs", "stage3", "stage2.epochs=1")


def test_each_stage_has_its_defaults_its_options_and_the_checkpoints_before(data: Path, tmp_path: Path) -> None:
    given = ["dataset=custom", "preset=edge", f"data_dir={data}", "stages=all", f"hydra.run.dir={tmp_path}"]
    composed = compose_options([*given, "hidden_dim=32", "stage0.epochs=7", "stage2.epochs=9", "stage2.hidden_dim=64"])
    made = {name: stage_run(composed, name, check=True).composed.options for name in STAGE_RUNS}
    assert [one.epochs for one in made.values()] == [7, 7, 8, 9, 4]
    assert [one.hidden_dim for one in made.values()] == [32, 32, 32, 64, 32]
    assert [one.train_stage for one in made.values()] == [0, 0, 1, 2, 3]
    assert [one.pretrain_glancer for one in made.values()][:2] == [True, False]
    assert all(not one.stages and not one.export for one in made.values())
    for name in ("glancer", "focuser", "stage1", "stage2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pth.tar").touch()
    with pytest.raises(Exception, match="not a PyTorch checkpoint"):
        stage_run(composed, "stage2")  # one that is there is resumed, so it is read
    (tmp_path / "stage2" / "last.pth.tar").unlink()
    assert stage_run(composed, "stage2").composed.options.resume == str(tmp_path / "stage1" / "last.pth.tar")
    (tmp_path / "stage1" / "last.pth.tar").unlink()
    one = stage_run(composed, "stage1").composed.options
    assert one.pretrained_glancer == str(tmp_path / "glancer" / "last.pth.tar")
    assert one.pretrained_focuser == str(tmp_path / "focuser" / "last.pth.tar")
    for name in ("glancer", "focuser"):
        (tmp_path / name / "last.pth.tar").unlink()
    # What is given for all stages counts more than a preset's default for one.
    plain = compose_options([*given, "epochs=5"])
    assert [stage_run(plain, name, check=True).composed.options.epochs for name in ("glancer", "stage2")] == [5, 5]
    official = compose_options([*given[2:], "dataset=custom", "batch_size=8"])
    assert stage_run(official, "stage3", check=True).composed.options.fc_lr == 0.005


def test_the_focuser_can_begin_as_the_trained_glancer(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = ["train", *TINY, f"data_dir={data}", "focuser_weights=glancer", "stage0.epochs=1", f"hydra.run.dir={run}"]
    done = edge(*given, "--json")
    assert done.returncode == 0, done.stderr
    assert [one["stage"] for one in json.loads(done.stdout)["stages"]] == ["glancer", "stage1", "stage2", "stage3"]
    assert "stage3 (4 of 4)" in done.stderr
    assert not (run / "focuser").exists()
    glancer, first = (torch.load(run / name / "last.pth.tar", weights_only=True) for name in ("glancer", "stage1"))
    trained = {
        name.removeprefix("glancer.net."): value
        for name, value in glancer["model_state_dict"].items()
        if name.startswith("glancer.net.") and "classifier" not in name
    }
    assert trained
    for name, value in trained.items():  # freeze_backbones=true: stage 1 leaves them as they were
        assert torch.equal(first["model_state_dict"][f"focuser.net.{name}"], value), name
    again = edge(*given)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(": finished, ") == 4
    assert "options changed" not in again.stderr
    one_line_error(edge(*given, "focuser.epochs=2"), 2, "focuser.epochs=2: focuser_weights=glancer leaves no such run")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["train_stage=1", "focuser_weights=glancer"], "focuser_weights=glancer: is for stages=all"),
        (["stages=all", "focuser_weights=glancer"], "the focuser is a resnet50, the glancer a mobilenet_v2"),
        (["stages=all", "train_stage=1"], "stages=all: sets train_stage of each stage itself"),
        (["stages=all", "resume=X"], "stages=all: sets resume of each stage itself"),
        (["stages=two"], "stages=two: must be one of"),
        (["train_stage=1", "stage1.epochs=3"], "options of a single stage are for stages=all"),
        (["train_stage=1", "export=true"], "export=true: is for stages=all"),
        (["stages=all", "world_size=2"], "stages=all runs on one machine"),
    ],
)
def test_options_that_contradict_all_stages_are_refused(data: Path, given: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compose_options(["dataset=custom", f"data_dir={data}", *given])
