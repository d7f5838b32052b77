"""Preparing data: frames as the official extraction names them, splits, annotation files, and resuming after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adafocus_edge.errors import DataError, UsageError
from adafocus_edge.media.frame_folder import FrameFolder
from adafocus_edge.media.video_file import VideoFile
from tests.conftest import CLIPS, ROOT, edge
from training.prepare import PrepareOptions, prepare
from training.split import split_groups

FIGHTS = ROOT / "tests" / "fights"


def video_fps(name: str) -> float:
    return VideoFile(str(FIGHTS / f"{name}.mp4")).fps


def test_own_videos_become_frames_lists_and_classes(tmp_path: Path) -> None:
    done = prepare(PrepareOptions(FIGHTS, tmp_path, groups=FIGHTS / "sources.csv", val_share=0.3, size=64))
    assert done.broken == []
    assert (tmp_path / "classInd.txt").read_text() == "fight\nno_fight\n"
    train, val = (tmp_path / f"custom_{part}_split.txt" for part in ("train", "val"))
    lines = [line.split(",") for path in (train, val) for line in path.read_text().splitlines()]
    assert len(lines) == 12
    for name, frames, label in lines:
        assert name.startswith(("fight/", "no_fight/")[int(label)])
        found = sorted(path.name for path in (tmp_path / "frames" / name).glob("image_*.jpg"))
        assert FrameFolder(str(tmp_path / "frames" / name)).fps == pytest.approx(video_fps(name), rel=1e-4)
        assert found == [f"image_{number + 1:05d}.jpg" for number in range(int(frames))]
        assert int(frames) == VideoFile(str(FIGHTS / f"{name}.mp4")).frame_count
        with Image.open(tmp_path / "frames" / name / found[0]) as image:
            assert min(image.size) == 64
    sources = dict(line.split(",") for line in (FIGHTS / "sources.csv").read_text().splitlines()[1:])
    sides = [{sources[line.split(",")[0] + ".mp4"] for line in path.read_text().splitlines()} for path in (train, val)]
    assert not sides[0] & sides[1]
    assert sides[1]


def test_frames_of_a_video_that_was_replaced_are_extracted_again(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    videos = [tmp_path / "in" / "a" / f"{name}.mp4" for name in "xy"]
    for video in videos:
        shutil.copy(FIGHTS / "fight" / "fi013.mp4", video)
    options = PrepareOptions(tmp_path / "in", tmp_path / "out", size=32)
    prepare(options)
    x, y = (tmp_path / "out" / "frames" / "a" / name for name in "xy")
    before = x.stat().st_ino, y.stat().st_ino
    prepare(options)
    assert (x.stat().st_ino, y.stat().st_ino) == before
    shutil.copy(FIGHTS / "fight" / "fi149.mp4", videos[0])
    (y / "source.txt").write_text("a/y.mp4\n")  # as earlier versions wrote it
    os.utime(videos[1], ns=(1, 1))
    done = prepare(options)
    assert done.broken == []
    count = VideoFile(str(videos[0])).frame_count
    assert len(list(x.glob("image_*.jpg"))) == count
    with Image.open(x / "image_00001.jpg") as image:
        first = np.asarray(image, np.float32)
    shown = next(pixels for _, pixels in VideoFile(str(videos[0])).frames())
    small = Image.fromarray(shown).resize((first.shape[1], first.shape[0]), Image.Resampling.BILINEAR)
    assert np.abs(first - np.asarray(small, np.float32)).mean() < 8
    assert y.stat().st_ino == before[1]
    assert sorted(path.name for path in (tmp_path / "out" / "frames" / "a").iterdir()) == ["x", "y"]


def test_the_split_is_the_seeds_and_keeps_groups_and_shares() -> None:
    labels = [name for name in "abc" for _ in range(20)]
    groups = [[number, 59 - number] for number in range(30)]
    chosen = split_groups(groups, labels, 0.25, seed=3)
    assert chosen == split_groups(groups, labels, 0.25, seed=3)
    assert chosen != split_groups(groups, labels, 0.25, seed=4)
    for group in groups:
        assert len(chosen & set(group)) in (0, 2)
    assert all(3 <= count <= 5 for count in Counter(labels[clip] for clip in chosen).values())


def test_frames_come_at_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    clip = CLIPS / "v_SoccerJuggling_g23_c01.avi"
    for name in "xy":
        shutil.copy(clip, tmp_path / "in" / "a" / f"{name}.avi")
    done = prepare(PrepareOptions(tmp_path / "in", tmp_path / "out", fps=5, size=48))
    assert done.frames == pytest.approx((VideoFile(str(clip)).duration_s or 0) * 10, abs=2)
    assert FrameFolder(str(tmp_path / "out" / "frames" / "a" / "x")).fps == 5


def test_a_second_run_keeps_what_is_there_and_does_not_mix_settings(tmp_path: Path) -> None:
    options = PrepareOptions(FIGHTS, tmp_path, size=48)
    first = prepare(options)
    frame = next((tmp_path / "frames").rglob("image_00001.jpg"))
    before = frame.stat().st_mtime_ns
    assert prepare(options).to_json() == first.to_json()
    assert frame.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="was prepared with size 48"):
        prepare(PrepareOptions(FIGHTS, tmp_path, size=64))


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "adafocus_edge", "prepare", str(FIGHTS), "-o", str(out), "--size", "512"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("frames/*/[!.]*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (out / "custom_train_split.txt").exists()
    whole = set(out.glob("frames/*/[!.]*"))
    done = edge("prepare", FIGHTS, "-o", out, "--size", 512, "--json")
    assert done.returncode == 0, done.stderr
    assert not list(out.rglob("*.part"))
    assert len(list(out.glob("frames/*/*"))) == 12
    assert whole <= set(out.glob("frames/*/*"))
    assert json.loads(done.stdout)["frames"] == len(list(out.rglob("image_*.jpg")))


def test_broken_videos_are_left_out_and_listed_at_the_end(tmp_path: Path) -> None:
    shutil.copytree(FIGHTS / "fight", tmp_path / "in" / "fight")
    broken = tmp_path / "in" / "fight" / "fi013.mp4"
    broken.write_bytes(broken.read_bytes()[:4000])
    (tmp_path / "in" / "fight" / "notes.mp4").write_text("no video")
    done = edge("prepare", tmp_path / "in", "-o", tmp_path / "out", "--size", 48)
    assert done.returncode == 1
    assert "2 broken videos skipped" in done.stdout
    told = done.stderr.splitlines()
    assert len(told) == 2
    assert "fight/fi013.mp4" in told[0]
    assert "fight/notes.mp4" in told[1]
    lists = "".join((tmp_path / "out" / f"custom_{part}_split.txt").read_text() for part in ("train", "val"))
    assert len(lists.splitlines()) == 5


def test_activitynet_annotations(tmp_path: Path) -> None:
    videos = {"v_one": "v_SoccerJuggling_g23_c01.avi", "two": "v_SoccerJuggling_g23_c01.avi"}
    (tmp_path / "in").mkdir()
    for stem, file in videos.items():
        shutil.copy(CLIPS / file, tmp_path / "in" / f"{stem}.avi")
    segment = [0.0, 1.0]

    def video(subset: str, *labels: str) -> dict[str, object]:
        return {"subset": subset, "annotations": [{"label": label, "segment": segment} for label in labels]}

    database = {
        "one": video("training", "Juggling", "Archery", "Juggling"),
        "two": video("validation", "Juggling"),
        "gone": video("training", "Zumba"),
        "three": video("testing"),
    }
    (tmp_path / "activity_net.json").write_text(json.dumps({"database": database}))
    options = PrepareOptions(
        tmp_path / "in", tmp_path / "out", dataset="actnet", annotations=(tmp_path / "activity_net.json",), size=48
    )
    done = prepare(options)
    assert done.missing == 1
    # All classes that are annotated, so that ids stay when more videos come.
    assert (tmp_path / "out" / "classInd.txt").read_text() == "Archery\nJuggling\nZumba\n"
    (train,) = (tmp_path / "out" / "actnet_train_split.txt").read_text().splitlines()
    name, frames, *labels = train.split(",")
    assert (name, labels) == ("v_one", ["0", "1"])
    assert len(list((tmp_path / "out" / "frames" / name).glob("image_*.jpg"))) == int(frames)
    assert (tmp_path / "out" / "actnet_val_split.txt").read_text().startswith("two,")
    (tmp_path / "activity_net.json").write_text("{}")
    with pytest.raises(DataError, match="not ActivityNet's annotation JSON"):
        prepare(options)


def test_kinetics_and_plain_annotations(tmp_path: Path) -> None:
    (tmp_path / "in" / "juggling soccer ball").mkdir(parents=True)
    for name in ("abc_000010_000020", "def"):
        shutil.copy(CLIPS / "v_SoccerJuggling_g23_c01.avi", tmp_path / "in" / "juggling soccer ball" / f"{name}.avi")
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(header + "juggling soccer ball,abc,10,20,train\n")
    (tmp_path / "val.csv").write_text(header + "juggling soccer ball,def,1,11,validate\n")
    files = (tmp_path / "train.csv", tmp_path / "val.csv")
    prepare(PrepareOptions(tmp_path / "in", tmp_path / "k", dataset="minik", annotations=files, frames=False))
    line = (tmp_path / "k" / "mini_train_videofolder.txt").read_text().rstrip()
    assert line.rsplit(maxsplit=2)[0] == "juggling soccer ball/abc_000010_000020.avi"
    assert (tmp_path / "k" / "minik_classInd.txt").read_text() == "juggling soccer ball\n"
    assert (tmp_path / "k" / "videos" / "juggling soccer ball").is_dir()

    (tmp_path / "train.txt").write_text("abc_000010_000020.avi\tball\tsport\n")
    (tmp_path / "val.txt").write_text("def\tsport\n")
    files = (tmp_path / "train.txt", tmp_path / "val.txt")
    prepare(PrepareOptions(tmp_path / "in", tmp_path / "f", dataset="fcvid", annotations=files, size=48))
    train, val = ((tmp_path / "f" / f"fcvid_{part}_split.txt").read_text().split(",") for part in ("train", "val"))
    assert [part.strip() for part in train[2:]] == ["0", "1"]
    assert [part.strip() for part in val[2:]] == ["1"]


def test_what_cannot_be_prepared_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder of videos"):
        prepare(PrepareOptions(tmp_path / "nothing", tmp_path / "out"))
    with pytest.raises(UsageError, match="--dataset actnet needs --annotations"):
        prepare(PrepareOptions(FIGHTS, tmp_path / "out", dataset="actnet"))
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="no sub-folders"):
        prepare(PrepareOptions(tmp_path / "in", tmp_path / "out"))
    shutil.copytree(FIGHTS, tmp_path / "few" / "one", ignore=shutil.ignore_patterns("no_fight", "*.csv"))
    with pytest.raises(DataError, match="no row for 6 of the videos"):
        prepare(PrepareOptions(tmp_path / "few", tmp_path / "out", groups=FIGHTS / "sources.csv"))
    (tmp_path / "groups.csv").write_text("video,source\n" + "".join(f"{p.name},s\n" for p in FIGHTS.glob("*/*.mp4")))
    with pytest.raises(DataError, match="too few clips or sources"):
        prepare(PrepareOptions(tmp_path / "few", tmp_path / "out", groups=tmp_path / "groups.csv"))
    for suffix in (".mp4", ".avi"):
        (tmp_path / "in" / "a").mkdir(exist_ok=True)
        shutil.copy(FIGHTS / "fight" / "fi013.mp4", tmp_path / "in" / "a" / f"x{suffix}")
    with pytest.raises(UsageError, match="two videos have the name a/x"):
        prepare(PrepareOptions(tmp_path / "in", tmp_path / "out"))
