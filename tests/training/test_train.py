"""Training from the command line: the whole road, resuming after a kill, several processes, bad data and full disks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, edge, one_line_error
from tests.support.live_parts import until
from tests.support.prefork import run_module
from tests.support.streams import free_port
from tests.training import helpers
from tests.training.helpers import ONE_THREAD, prepare_fights

FIGHTS = ROOT / "tests" / "fights"
TINY = [*helpers.TINY, *"num_segments=4 epochs=2 freeze_bn=false backbone_lr=0.003 fc_lr=0.01".split()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real clips of both classes, prepared with frames."""
    return prepare_fights(tmp_path_factory.mktemp("data") / "prepared", 96)


@pytest.fixture(scope="module")
def road(data: Path) -> Path:
    """Stages 0 to 3, each from the one before."""
    out = data.parent

    def train(name: str, *more: str) -> None:
        done = edge("train", *TINY, f"data_dir={data}", f"hydra.run.dir={out / name}", *more)
        assert done.returncode == 0, done.stderr
        assert (out / name / "last.pth.tar").is_file()

    train("glancer", "train_stage=0")
    train("focuser", "train_stage=0", "pretrain_glancer=false", "workers=2")
    pretrained = [f"pretrained_{part}={out / part / 'last.pth.tar'}" for part in ("glancer", "focuser")]
    train("stage1", "train_stage=1", *pretrained)
    train("stage2", "train_stage=2", f"resume={out / 'stage1' / 'last.pth.tar'}")
    train("stage3", "train_stage=3", f"resume={out / 'stage2' / 'last.pth.tar'}")
    return out


def test_the_whole_road_from_videos_to_a_classified_clip(road: Path, data: Path) -> None:
    checkpoint, bundle = road / "stage3" / "last.pth.tar", road / "bundle"
    val = data / "custom_val_split.txt"
    found = {}
    made = edge("export", checkpoint, "-o", bundle)
    assert made.returncode == 0, made.stderr
    for name, model in (("checkpoint", checkpoint), ("bundle", bundle)):
        done = edge(
            "evaluate", model, "--data", val, "--frames", data / "frames", "--json", "-o", road / f"{name}.json",
            "--plot", road / f"{name}.png",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
        assert json.loads((road / f"{name}.json").read_text()) == found[name]
        assert (road / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for one, other in zip(found["bundle"]["predictions"], found["checkpoint"]["predictions"], strict=True):
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=2e-3)
    assert found["bundle"]["clips"] == len(val.read_text().splitlines()) == sum(map(sum, found["bundle"]["confusion"]))
    # The trainer's own validation after the last epoch says the same.
    last = json.loads((road / "stage3" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val"]["top1"] == pytest.approx(found["checkpoint"]["top1"], abs=1e-3)
    # (mAP is not compared: after so little training, ranks hang on the last digits.)

    classified = edge("classify", FIGHTS / "fight", "--bundle", bundle, "--json")
    assert classified.returncode == 0, classified.stderr
    results = [json.loads(line) for line in classified.stdout.splitlines()]
    assert len(results) == 6
    assert {guess["label"] for guess in results[0]["top"]} == {"fight", "no_fight"}


def test_a_run_leaves_its_options_curve_and_checkpoints(road: Path) -> None:
    names = {path.name for path in (road / "stage2").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.pth.tar", "best.pth.tar"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = [json.loads(line) for line in (road / "stage2" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert "reward" in lines[0]["train"]
    assert "preset: edge" in (road / "stage2" / "config.yaml").read_text()


def test_checkpoints_have_the_official_layout(road: Path) -> None:
    stage1, stage3 = (
        torch.load(road / name / "last.pth.tar", weights_only=True) for name in ("stage1", "stage3")
    )  # fmt: skip
    official = {
        "epoch",
        "model_state_dict",
        "glancer",
        "focuser",
        "fc",
        "scaler",
        "policy",
        "acc",
        "best_acc",
        "optimizer",
    }
    assert official <= set(stage1) & set(stage3)
    assert stage1["policy"] is None
    assert not any(name.startswith("policy") for name in stage1["focuser"])
    assert {name.split(".")[0] for name in stage3["focuser"]} == {"net", "policy"}
    assert "gru.weight_ih_l0" in stage3["fc"]
    assert "actor.0.weight" in stage3["policy"]
    for name, weight in stage3["policy"].items():
        assert torch.equal(weight, stage3["model_state_dict"][f"focuser.policy.policy.{name}"])


def test_checkpoints_of_every_stage_are_evaluated_for_what_they_are(road: Path, data: Path) -> None:
    for name, patches, words in (
        ("glancer", "policy", "glancer alone on whole frames"),
        ("focuser", "policy", "focuser alone on whole frames"),
        ("stage1", "centre", "centre patches"),
        ("stage3", "random", "random patches"),
    ):
        done = edge(
            "evaluate", road / name / "last.pth.tar", "--data", data / "custom_val_split.txt", "--frames",
            data / "frames", "--patches", patches, "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert words in json.loads(done.stdout)["ran"]
    more = edge("evaluate", road / "glancer" / "last.pth.tar", "--data", FIGHTS, "--segments", 5, "--json")
    assert more.returncode == 0, more.stderr
    assert len(json.loads(more.stdout)["per_step"]) == 5
    refused = edge("evaluate", road / "stage1" / "last.pth.tar", "--data", FIGHTS)
    one_line_error(refused, 1, "stage-1 checkpoint")
    whole = edge("evaluate", road / "glancer" / "last.pth.tar", "--data", FIGHTS, "--patches", "centre")
    one_line_error(whole, 2, "--patches does not apply")
    swapped = f"pretrained_focuser={road / 'glancer' / 'last.pth.tar'}"
    refused = edge("train", *TINY, f"data_dir={data}", "train_stage=1", swapped)
    one_line_error(refused, 2, "holds a stage-0 glancer, not a focuser", "focuser_weights=")
    one_line_error(edge("export", road / "glancer" / "last.pth.tar", "-o", road / "no"), 1, "stage-0 checkpoint")


def test_evaluating_through_train_says_the_same(road: Path, data: Path) -> None:
    checkpoint = road / "stage3" / "last.pth.tar"
    done = edge("train", *TINY, f"data_dir={data}", "train_stage=3", f"resume={checkpoint}", "evaluate=true")
    assert done.returncode == 0, done.stderr
    last = json.loads((road / "stage3" / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"mAP {last['val']['mAP']:.3f}" in done.stdout
    assert done.stdout.startswith("step   1: top-1")


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model_state_dict"]
    return weights


def written(path: Path) -> bool:
    """Whether a file holds a whole line."""
    return path.exists() and path.read_text().endswith("\n")


def test_a_killed_run_goes_on_to_the_same_weights(road: Path, data: Path, tmp_path: Path) -> None:
    # Stage 1 with dropout: random patches, frames, crops and dropout all have to go on where they were.
    pretrained = [f"pretrained_{part}={road / part / 'last.pth.tar'}" for part in ("glancer", "focuser")]
    given = ["train", *TINY, f"data_dir={data}", "train_stage=1", "epochs=3", *pretrained]
    whole = edge(*given, f"hydra.run.dir={tmp_path / 'whole'}", **ONE_THREAD)
    assert whole.returncode == 0, whole.stderr

    broken = tmp_path / "broken"
    # Workers change nothing: samples draw from numbers of their own.
    command = [sys.executable, "-m", "adafocus_edge", *given, "workers=2", f"hydra.run.dir={broken}"]
    with subprocess.Popen(command, env={**os.environ, **ONE_THREAD}, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not written(broken / "metrics.jsonl") and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    after = json.loads((broken / "metrics.jsonl").read_text().splitlines()[-1])["epoch"]
    assert after < 3
    done = edge(*given, f"resume={broken / 'last.pth.tar'}", **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert f"resuming after epoch {after}" in done.stderr
    expected, found = weights_in(tmp_path / "whole" / "last.pth.tar"), weights_in(broken / "last.pth.tar")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    again = edge(*given, f"resume={broken / 'last.pth.tar'}")
    assert again.returncode == 0
    assert "nothing to do" in again.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux system's way")
def test_nothing_of_a_killed_run_lives_on(data: Path, tmp_path: Path) -> None:
    mark = f"TEST_MARK={tmp_path}".encode()

    def alive() -> int:
        count = 0
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                count += mark in path.read_bytes().split(b"\0")
        return count

    given = ["train", *TINY, f"data_dir={data}", "train_stage=0", "workers=2", f"hydra.run.dir={tmp_path / 'run'}"]
    with subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", *given],
        env={**os.environ, "TEST_MARK": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        until(lambda: alive() >= 5, 120)  # with what tracks resources, what forks, and two workers
        opened = [os.path.realpath(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
        memory = [Path(name) for name in opened if name.startswith("/dev/shm/adafocus-edge-")]
        assert len(memory) == 1, opened
        process.send_signal(signal.SIGKILL)
    until(lambda: not alive(), 120)
    assert not memory[0].exists(), "kept frames stay in memory"


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux system's way")
def test_a_run_killed_at_any_of_its_writes_goes_on_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    given = ["train", *TINY, f"data_dir={data}", "train_stage=0"]

    def run(folder: Path, point: int, *more: str) -> int:
        """Train, and kill that at its so-many-th change of the folder."""
        arguments = [folder, point, tmp_path / f"{folder.name}.log", *given, f"hydra.run.dir={folder}", *more]
        environment = {**os.environ, **ONE_THREAD}
        return run_module(
            "tests.support.dies", [*map(str, arguments)], ROOT, environment, torch=True, timeout_s=300
        ).returncode

    assert run(tmp_path / "whole", 0) == 0
    expected = weights_in(tmp_path / "whole" / "last.pth.tar")
    changes = (tmp_path / "whole.log").read_text().splitlines()
    for share in (0.6, 0.9):
        point = 1 + round(share * (len(changes) - 1))
        broken = tmp_path / f"at-{point}"
        assert run(broken, point) == -signal.SIGKILL
        for checkpoint in broken.glob("*.tar"):
            assert weights_in(checkpoint).keys() == expected.keys()
        if (broken / "metrics.jsonl").exists():
            assert all(json.loads(line)["epoch"] for line in (broken / "metrics.jsonl").read_text().splitlines())
        last = broken / "last.pth.tar"
        assert run(broken, 0, f"resume={last}") == 0
        found = weights_in(last)
        for name, value in expected.items():
            assert torch.equal(value, found[name]), (point, name)
        assert [json.loads(line)["epoch"] for line in (broken / "metrics.jsonl").read_text().splitlines()] == [1, 2]
        assert not list(broken.glob(".*.draft")), "drafts of the killed run"


@pytest.mark.parametrize(("stage", "launcher"), [(1, "torchrun"), (2, "by hand"), (3, "by hand")])
def test_two_processes_give_the_update_of_one_with_both_batches(
    road: Path, data: Path, tmp_path: Path, stage: int, launcher: str
) -> None:
    before = {1: "", 2: "stage1", 3: "stage2"}[stage]
    start = (
        [f"resume={road / before / 'last.pth.tar'}"]
        if before
        else [f"pretrained_{part}={road / part / 'last.pth.tar'}" for part in ("glancer", "focuser")]
    )
    given = [
        "train", *TINY, f"data_dir={data}", f"train_stage={stage}", "epochs=1", "dropout=0", "freeze_bn=true",
        "optimizer=sgd", "policy_cache=off", "policy_batch=0", *start,
    ]  # fmt: skip
    one = edge(*given, "batch_size=8", f"hydra.run.dir={tmp_path / 'one'}", **ONE_THREAD)
    assert one.returncode == 0, one.stderr

    python, environment = [sys.executable, "-m"], {**os.environ, **ONE_THREAD}
    two = [*given, f"hydra.run.dir={tmp_path / 'two'}"]
    if launcher == "torchrun":
        run = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), "-m"]
        commands = [[*python, *run, "adafocus_edge", *two, "batch_size=8"]]
    else:
        shared = ["batch_size=4", "multiprocessing_distributed=false", "world_size=2"]
        port = free_port()
        commands = [
            [*python, "adafocus_edge", *two, *shared, f"rank={rank}", f"dist_url=tcp://127.0.0.1:{port}"]
            for rank in range(2)
        ]
    running = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) for c in commands]
    try:
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:  # what hangs is ended, and heard
        for process in running:
            process.kill()
            print(process.communicate()[1])
    expected, found = weights_in(tmp_path / "one" / "last.pth.tar"), weights_in(tmp_path / "two" / "last.pth.tar")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-6, err_msg=name)
    moments = torch.load(tmp_path / "two" / "last.pth.tar", weights_only=True)["optimizer"]["state"].values()
    kept = [value for entry in moments for value in entry.values() if isinstance(value, torch.Tensor) and value.ndim]
    assert any(bool(value.any()) for value in kept)  # an update was made
    one_line, two_line = (json.loads((tmp_path / n / "metrics.jsonl").read_text()) for n in ("one", "two"))
    for part in ("train", "val"):
        assert two_line[part]["loss"] == pytest.approx(one_line[part]["loss"], rel=1e-4)
        assert two_line[part]["top1"] == pytest.approx(one_line[part]["top1"])


def test_training_reads_videos_directly(data: Path, tmp_path: Path) -> None:
    made = edge("prepare", FIGHTS, "-o", tmp_path / "lists", "--no-frames", "--val-share", 0.3)
    assert made.returncode == 0, made.stderr
    assert not (tmp_path / "lists" / "frames").exists()
    done = edge(
        "train", *TINY, f"data_dir={tmp_path / 'lists'}", "train_stage=0", "epochs=1",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["unreadable_clips"] == 0


def test_broken_frames_are_counted_and_told(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    first = (tmp_path / "data" / "custom_train_split.txt").read_text().split(",")[0]
    folder = tmp_path / "data" / "frames" / first
    for path in folder.iterdir():
        path.unlink()
    done = edge(
        "train", *TINY, f"data_dir={tmp_path / 'data'}", "train_stage=0", "epochs=1", "batch_size=8",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert len(told) == 1
    assert first in told[0]
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["unreadable_clips"] == 1


def test_bad_data_and_options_are_told_in_a_line(data: Path, road: Path, tmp_path: Path) -> None:
    def train(*more: str):
        return edge("train", *TINY, f"data_dir={data}", f"hydra.run.dir={tmp_path / 'run'}", "-q", *more)

    bad = tmp_path / "bad.txt"
    bad.write_text("a,16,0\nb,16,7\n")
    one_line_error(train("train_stage=0", f"train_list={bad}"), 1, "bad.txt, line 2: class id 7 is out of range")
    bad.write_text("")
    one_line_error(train("train_stage=0", f"val_list={bad}"), 1, "bad.txt: no clips in it")
    bad.write_text("a,16,0\nb,16,1\nc,16,1\nd,16,1\n")
    done = train("train_stage=0", f"train_list={bad}")
    assert done.returncode == 1
    *left_out, told = done.stderr.splitlines()
    assert all(line.startswith("skipped: ") for line in left_out)
    assert "not one clip of an epoch can be read" in told
    one_line_error(train("train_stage=0", "batch_size=64"), 2, "batch_size=64: larger than the split")
    one_line_error(train("train_stage=2"), 2, "train_stage=2: needs resume=CHECKPOINT")
    stage1 = f"resume={road / 'stage1' / 'last.pth.tar'}"
    one_line_error(train("train_stage=3", stage1), 2, "stage 3 needs the checkpoint of stage 2")
    other = train("train_stage=2", stage1, "hidden_dim=32")
    one_line_error(other, 1, "does not match the options", "hidden_dim=16, now hidden_dim=32")
    one_line_error(train("train_stage=2", stage1, "patch_size=96"), 2, "patch_size must be 32 to")
    unsaid = [option for option in TINY if not option.startswith("patch_size")]
    done = edge("train", *unsaid, f"data_dir={data}", "train_stage=2", stage1, "input_size=224")
    one_line_error(done, 2, "trained with patch_size=32, now 128")
    one_line_error(train("train_stage=2", "resume=" + str(bad)), 1, "not a PyTorch checkpoint")
    one_line_error(train("train_stage=2", stage1, f"hydra.run.dir={road / 'stage1'}"), 2, "holds a run already")
    one_line_error(train("train_stage=1", f"glancer_weights={bad}"), 1, "bad.txt")
    one_line_error(train("train_stage=0", "device=cuda"), 2, "device=cuda")
    assert not (tmp_path / "run" / "last.pth.tar").exists()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
from adafocus_edge.cli.app import main
sys.argv = ["adafocus-edge", *sys.argv[1:]]
main()
"""


def limited(size: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line where no file may grow beyond a size: what a full disk looks like to a program."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED.format(bytes=size), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_disk_that_is_full_leaves_nothing_half_written(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = limited(
        1_000_000, "train", *TINY, f"data_dir={data}", "train_stage=0", "epochs=1",
        f"hydra.run.dir={run}", "-q",
    )  # fmt: skip
    one_line_error(done, 1, ".pth.tar: cannot be written")
    assert not [path.name for path in run.iterdir() if "pth" in path.name]

    frames = tmp_path / "frames"
    done = limited(2_000, "prepare", FIGHTS, "-o", frames)
    one_line_error(done, 1, "cannot be written", "run again to resume")
    assert not list(frames.rglob("image_*.jpg"))
    assert not list(frames.rglob("*.part"))
    assert not list(frames.rglob("*split.txt"))


def test_interrupting_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = ["train", *TINY, f"data_dir={data}", "train_stage=0", "epochs=500", "workers=2"]
    command = [sys.executable, "-m", "adafocus_edge", *given, f"hydra.run.dir={run}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not written(run / "metrics.jsonl") and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"resume={run / 'last.pth.tar'}" in errors
    assert errors.rstrip().endswith("interrupted")
    assert "Traceback" not in errors
