"""Kept frames: the same samples as without them, in memory and on disk, and decoded again when damaged."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.dataset import Example, Split
from tests.conftest import CLIPS, ROOT, edge, official_spec, one_line_error
from tests.support.videos import encode
from training import frame_cache, loading
from training.augment import Augmentation, UncroppedClips
from training.datasets import VALIDATION, ClipDataset, Keeping, collate, shrink
from training.distributed import Processes
from training.frame_cache import ClipFrames, FrameStore, disk_store, estimate, memory_store, probe_size
from training.loading import crops_on_device, make_dataset, make_loader, open_cache
from training.options import TrainOptions
from training.sampling import FramePlan, dense_indices, train_indices

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi149.mp4"
COUNTED = CLIPS / "v_SoccerJuggling_g23_c01.avi"
LONG = CLIPS / "R6llTwEh07w.mp4"
FRAMES = ROOT / "export" / "frames"
ONE = Processes(0, 1, 1, torch.device("cpu"))


def split_of(*paths: Path) -> Split:
    return Split(
        tuple(Example(path.name, path, (number,)) for number, path in enumerate(paths)), ("a", "b", "c"), "here"
    )


SPLIT = split_of(FIGHT, FRAMES, LONG)
KINDS: dict[str, dict[str, Any]] = {
    "rgb": {},
    "motion": {"fit": "squash", "motion_gap_s": 0.1},
    "small": {"frame_size": 64, "glance_size": 64, "patch_size": 32},
}


def dataset(kind: str, keeping: Keeping | None, split: Split = SPLIT, **more: Any) -> ClipDataset:
    spec = official_spec(segments=4, **KINDS[kind])
    return ClipDataset(split, spec, **({"seed": 7, "train": True, "colour_jitter": 0.3, "keeping": keeping} | more))


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


@pytest.mark.parametrize("crops", [True, False])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_frames_give_the_samples_of_frames_that_are_decoded_anew(
    kind: str, dense: bool, crops: bool, tmp_path: Path
) -> None:
    anew = dataset(kind, Keeping(6, None), dense=dense, crops=crops)
    stores = [FrameStore(tmp_path, in_memory=in_memory) for in_memory in (True, False)]
    for store in stores:
        kept = dataset(kind, Keeping(6, store), dense=dense, crops=crops)
        for key in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (5, 2)):
            sample = anew[key]
            assert ("frames" in sample) == crops
            assert_same(kept[key], sample)
        assert len(list(tmp_path.iterdir())) == 3
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize("crops", [True, False])
@pytest.mark.parametrize("kind", ["rgb", "motion"])
def test_mirroring_and_crop_scales_are_options_of_samples_with_a_cache_too(
    kind: str, crops: bool, tmp_path: Path
) -> None:
    def of(store: FrameStore | None, **more: Any) -> dict[str, Any]:
        return dataset(kind, Keeping(16, store), split, crops=crops, **more)[epoch, 0]

    split, store, turned, cut = split_of(FIGHT), FrameStore(tmp_path, in_memory=True), 0, 0
    whole: dict[str, Any] = {"crop_scales": (1.0,)}
    for epoch in range(6):
        mirrored, plain = of(store, **whole), of(store, flip=False, **whole)
        for sample, given in ((mirrored, whole), (plain, {"flip": False, **whole})):
            assert_same(sample, of(None, **given))
            if crops:  # this clip needs no resize: as without a cache
                assert_same(sample, dataset(kind, None, split, **given)[epoch, 0])
        if crops:
            turned += not np.array_equal(mirrored["frames"], plain["frames"])
            cut += not np.array_equal(of(store, flip=False)["frames"], plain["frames"])
        else:
            assert not plain["flip"]
            assert plain["box"][3] == 256  # the whole height, of 456 x 256
            turned += bool(mirrored["flip"])
            cut += of(store)["box"][3] < 256
    assert 0 < turned < 6
    assert cut > 0


@pytest.mark.parametrize("kind", ["rgb", "motion"])
def test_clips_that_need_no_resize_are_sampled_as_without_a_cache(kind: str, tmp_path: Path) -> None:
    # 456 x 256 and 340 x 256 pixels are kept as they are, and so few frames all may be drawn.
    kept = dataset(kind, Keeping(16, FrameStore(tmp_path, in_memory=True)), split_of(FIGHT, FRAMES))
    off = dataset(kind, None, split_of(FIGHT, FRAMES))
    for key in ((0, 0), (0, 1), (1, 0), (9, 1)):
        assert_same(kept[key], off[key])


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_the_same_with_and_without_a_cache(kind: str, tmp_path: Path) -> None:
    off = dataset(kind, None, train=False)
    kept = dataset(kind, Keeping(6, FrameStore(tmp_path, in_memory=False)), train=False)
    for _ in range(2):
        for number in range(3):
            assert_same(kept[VALIDATION, number], off[VALIDATION, number])


def test_kept_frames_have_the_short_side_that_evaluation_resizes_to() -> None:
    big = np.zeros((1080, 1920, 3), np.uint8)
    assert shrink(big, 224).shape == (256, 455, 3)
    assert shrink(big[:, :, 0].T, 224).shape == (455, 256)
    small = np.zeros((200, 300, 3), np.uint8)
    assert shrink(small, 224) is small


@pytest.mark.parametrize("dense", [True, False])
def test_what_may_be_drawn_is_what_is_kept(dense: bool) -> None:
    random = np.random.default_rng(0)
    for count in (1, 3, 16, 17, 63, 64, 96, 97, 400, 1001):
        plan = FramePlan(8, dense, most=12)
        drawn = {number for _ in range(600) for number in plan.draw(count, random)}
        assert drawn == set(plan.every(count))
        assert len(drawn) <= 8 * 12
        if count <= 8 * 12:  # any frame that could be drawn without a bound
            draw = dense_indices if dense else train_indices
            one, other = np.random.default_rng(count), np.random.default_rng(count)
            assert plan.draw(count, one) == draw(count, 8, other)


def kept_once(tmp_path: Path) -> tuple[ClipDataset, Path, dict[str, Any]]:
    """A clip on disk: its data set, its file, and a sample of it."""
    data = dataset("rgb", Keeping(6, FrameStore(tmp_path, in_memory=False)))
    sample = data[3, 0]
    (path,) = tmp_path.glob("*.frames")
    return data, path, sample


@pytest.mark.parametrize("damage", ["a pixel", "the head", "cut short", "cut in the head", "empty", "other"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path) -> None:
    data, path, sample = kept_once(tmp_path)
    whole = path.read_bytes()
    changed = bytearray(whole)
    if damage == "a pixel":
        for place in range(len(whole) // 4, len(whole), 300 * 456):  # in every frame
            changed[place] ^= 1
    elif damage == "the head":
        changed[40] ^= 1
    else:
        changed = {
            "cut short": changed[: len(whole) // 3], "cut in the head": changed[:60], "empty": changed[:0],
            "other": bytearray(b"x" * len(whole)),
        }[damage]  # fmt: skip
    path.write_bytes(bytes(changed))
    assert_same(data[3, 0], sample)
    assert path.read_bytes() == whole


def test_a_clip_that_changed_is_decoded_anew(tmp_path: Path) -> None:
    clip, cache = tmp_path / "clip.mp4", tmp_path / "cache"
    cache.mkdir()
    shutil.copy(FIGHT, clip)

    def sample() -> dict[str, Any]:
        return dataset("rgb", Keeping(6, FrameStore(cache, in_memory=False)), split_of(clip))[0, 0]

    before = sample()
    shutil.copy(FIGHT.with_name("fi013.mp4"), clip)
    assert not np.array_equal(sample()["frames"], before["frames"])
    frames = tmp_path / "frames"
    shutil.copytree(FRAMES, frames)
    data = [dataset("rgb", Keeping(6, FrameStore(cache, in_memory=False)), split_of(frames)) for _ in range(2)]
    before = data[0][0, 0]
    for path in frames.glob("image_*.jpg"):
        Image.new("RGB", (340, 256)).save(path)
    assert not np.array_equal(data[1][0, 0]["frames"], before["frames"])


def test_a_full_disk_changes_no_sample_and_is_told(tmp_path: Path) -> None:
    data = dataset("rgb", Keeping(6, FrameStore(tmp_path, in_memory=True)))
    expected = [dataset("rgb", Keeping(6, None))[0, number] for number in (0, 1)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        samples = [data[0, number] for number in (0, 1)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if server := forkserver._forkserver._forkserver_pid:  # one that began meanwhile would keep the limit
            resource.prlimit(server, resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())
    batch = collate(samples)
    assert not isinstance(batch, list)
    (told,) = batch.shortages
    assert "cannot be written (File too large)" in told
    for sample, wanted in zip(samples, expected, strict=True):
        assert np.array_equal(sample["frames"], wanted["frames"])


def test_a_video_that_changes_its_size_is_not_kept_and_sampled_alike(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    shutil.copytree(FRAMES, folder)
    for number in (2, 9):
        path = folder / f"image_{number:05d}.jpg"
        with Image.open(path) as image:
            image.resize((300, 200)).save(path)
    cache = tmp_path / "cache"
    cache.mkdir()
    kept = dataset("motion", Keeping(6, FrameStore(cache, in_memory=True)), split_of(folder))
    anew = dataset("motion", Keeping(6, None), split_of(folder))
    for epoch in range(4):
        assert_same(kept[epoch, 0], anew[epoch, 0])
    assert not list(cache.iterdir())


# -- how much, and where -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_told_beforehand_is_that_of_the_files(kind: str, tmp_path: Path) -> None:
    split = split_of(FIGHT, FRAMES, LONG, COUNTED)
    for train in (True, False):
        folder = tmp_path / str(train)
        folder.mkdir()
        data = dataset(kind, Keeping(6, FrameStore(folder, in_memory=False)), split, train=train)
        told = data.kept_bytes()
        for number in range(len(split.examples)):
            data[0, number]
        found = sum(path.stat().st_size for path in folder.iterdir())
        assert told == pytest.approx(found, rel=0.03)
        assert data.kept_bytes() == 0


def options_of(tmp_path: Path, **more: Any) -> TrainOptions:
    return replace(TrainOptions(data_dir=str(tmp_path), batch_size=2, workers=0, num_segments=4), **more)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_frames_that_do_not_fit_are_decoded_at_each_epoch(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_cache, "SHARED_MEMORY", tmp_path)
    spec, options = official_spec(segments=4), options_of(tmp_path, cache=cache)
    with open_cache(options, (SPLIT, SPLIT), spec, ONE) as (keeping, lines):
        assert keeping is not None
        assert keeping.store is not None
        assert keeping.store.folder.is_relative_to(tmp_path)
        where = "RAM" if cache == "ram" else f"disk in {tmp_path}"
        assert lines[0].startswith("cache: ")
        assert where in lines[0]
        assert "for 6 clips" in lines[0]
        sample = make_dataset(SPLIT, spec, options, keeping, train=True)[0, 2]
    assert bool(list(tmp_path.rglob("*.frames"))) == (cache == "disk"), "memory ends with the run"
    monkeypatch.setattr(loading, "memory_room", lambda: 1_000_000)
    monkeypatch.setattr(loading, "disk_room", lambda _: 1_000_000)
    with open_cache(options, (SPLIT, SPLIT), spec, ONE) as (keeping, lines):
        assert keeping is not None
        assert keeping.store is None
        assert lines[0].startswith(f"note: cache={cache}: 6 clips need ")
        assert "and 1.0 MB of" in lines[0]
        assert "decoded at each epoch" in lines[0]
        assert_same(make_dataset(SPLIT, spec, options, keeping, train=True)[0, 2], sample)


def test_memory_is_left_to_the_features_of_stage_2(tmp_path: Path) -> None:
    spec, options = official_spec(segments=4), options_of(tmp_path, train_stage=2, policy_cache="auto")
    for cache in ("ram", "disk", "off"):
        with open_cache(replace(options, cache=cache), (SPLIT, SPLIT), spec, ONE) as (keeping, lines):
            assert (keeping is None) == (cache == "off")
            assert (keeping is not None and keeping.store is not None) == (cache == "disk")
            assert any("frames are not kept in RAM" in line for line in lines) == (cache == "ram")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = options_of(tmp_path, cache="disk", cache_dir=str(tmp_path / "file" / "inner"))
    with open_cache(options, (SPLIT, SPLIT), official_spec(segments=4), ONE) as (keeping, lines):
        assert keeping is not None
        assert keeping.store is None
        assert "cannot be written (Not a directory): give cache_dir=: clips are decoded at each epoch" in lines[0]


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_a_container_count(version: int, tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    base = tmp_path / ("memory" if version == 1 else ".")
    inner = base / "docker" / "1"
    inner.mkdir(parents=True)
    limit, usage = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    own.write_text("9:name=systemd:/\n4:memory:/docker/1\n" if version == 1 else "0::/docker/1\n")
    freed = "total_inactive_file" if version == 1 else "inactive_file"
    for folder, most in ((inner, "1000"), (inner.parent, "700" if version == 1 else "max")):
        (folder / limit).write_text(f"{most}\n")
        (folder / usage).write_text("300\n")
        (folder / "memory.stat").write_text(f"anon 5\n{freed} 50\n")
    assert frame_cache._cgroup_room(tmp_path, own) == ([750, 450] if version == 1 else [750])
    assert 0 < frame_cache.available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


HELD = """
import sys, time
from pathlib import Path
from training import frame_cache
frame_cache.SHARED_MEMORY = Path(sys.argv[1])
with frame_cache.memory_store() as store:
    (store.folder / "a.frames").write_bytes(b"frames")
    print("held", flush=True)
    time.sleep(600)
"""


def test_memory_of_a_killed_run_is_freed_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_cache, "SHARED_MEMORY", tmp_path)
    command = [sys.executable, "-c", HELD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        (left,) = tmp_path.iterdir()
        with memory_store() as store:  # beside a run that lives
            assert left.is_dir()
            assert store.folder != left
        process.kill()
        process.wait()
    assert (left / "a.frames").exists()
    with memory_store() as store:
        assert list(tmp_path.iterdir()) == [store.folder]
    assert not list(tmp_path.iterdir())


def test_drafts_of_a_killed_run_are_removed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / ".a.frames.xyz.draft").write_bytes(b"half")
    (tmp_path / "a.frames").write_bytes(b"whole")
    with disk_store(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["a.frames"]


# -- augmentation on the device ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_the_device_crops_as_pillow_does(fit: Any) -> None:
    random = np.random.default_rng(3)
    real = np.stack([np.asarray(Image.open(FRAMES / f"image_{n:05d}.jpg").convert("RGB")) for n in (1, 8)])
    small = np.stack([np.asarray(Image.fromarray(frame).resize((110, 90))) for frame in real])
    clips = [real, small, random.integers(0, 256, (2, 301, 205, 3), np.uint8)]
    flips = set()
    for jitter in (0.0, 0.3) * 8:
        drawn = [Augmentation.draw(random, jitter) for _ in clips]
        flips |= {one.flip for one in drawn}
        boxes = [a.box(clip.shape[2], clip.shape[1], 224, fit) for a, clip in zip(drawn, clips, strict=True)]
        uncropped = UncroppedClips(
            torch.from_numpy(np.concatenate([clip.ravel() for clip in clips])),
            [clip.shape for clip in clips],
            torch.tensor(boxes, dtype=torch.float64),
            torch.tensor([a.flip for a in drawn]),
            torch.from_numpy(np.stack([a.levels for a in drawn])),
        )
        found = uncropped.crop(224).numpy()
        assert found.shape == (3, 2, 224, 224, 3)
        # Noise shows where Pillow takes the other axis first, as it does of some sizes; pictures hardly do.
        for clip, seen, a, most in zip(clips, found, drawn, (0.1, 0.1, 0.5), strict=True):
            expected = np.stack([a.apply(frame, 224, fit) for frame in clip])
            difference = np.abs(seen.astype(int) - expected)
            assert difference.mean() < most
            assert difference.max() <= 4
    assert flips == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_same_whoever_crops_it(kind: str) -> None:
    keeping = Keeping(6, None)
    here, there = (collate([dataset(kind, keeping, crops=c)[2, n] for n in range(3)]) for c in (True, False))
    assert not isinstance(here, list)
    assert not isinstance(there, list)
    assert there.uncropped is not None
    size = here.frames.shape[2]
    moved = there.to(torch.device("cpu"), size)
    assert moved.uncropped is None
    assert (moved.frames.int() - here.frames.int()).abs().float().mean() < 0.1
    for name in ("target", "number", "origins", "draws"):
        assert torch.equal(getattr(moved, name), getattr(here, name))


def test_who_crops(tmp_path: Path) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not crops_on_device(options_of(tmp_path, cache="ram"), cpu)
    assert crops_on_device(options_of(tmp_path, cache="ram"), gpu)
    assert not crops_on_device(options_of(tmp_path), gpu)
    assert not crops_on_device(options_of(tmp_path, cache="disk", augment_on="workers"), gpu)
    assert crops_on_device(options_of(tmp_path, cache="disk", augment_on="device"), cpu)
    with pytest.raises(UsageError, match="augment_on=device: needs cache=ram or cache=disk"):
        crops_on_device(options_of(tmp_path, augment_on="device"), gpu)


# -- workers -----------------------------------------------------------------------------------------------------------


class Tracing(ClipDataset):
    """Returns the process that made a sample, and the cores it may use, instead of the clip's number."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        from adafocus_edge.system.cpu import usable_cores

        return {**super().__getitem__(key), "number": os.getpid() * 10 + usable_cores()}


@pytest.mark.parametrize("train", [True, False])
def test_workers_live_across_epochs_and_use_a_core_each(train: bool, tmp_path: Path) -> None:
    spec = official_spec(segments=4, **KINDS["small"])
    data = Tracing(split_of(FRAMES, FIGHT, FRAMES, FIGHT), spec, seed=7, train=train)
    batches = make_loader(data, options_of(tmp_path, workers=2, batch_size=1), ONE, train=train)
    seen = Counter(int(batch.number) for _ in range(3) for batch in batches)
    assert len(seen) == batches.num_workers
    assert sum(seen.values()) == 12
    assert {number % 10 for number in seen} == {1}
    assert os.getpid() not in {number // 10 for number in seen}


@pytest.mark.parametrize("cache", ["off", "ram", "disk"])
def test_batches_are_the_same_whatever_the_workers(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_cache, "SHARED_MEMORY", tmp_path)
    spec = official_spec(segments=4, **KINDS["small"])
    found = []
    for workers in (0, 2):
        options = options_of(tmp_path, workers=workers, cache=cache, colour_jitter=0.2)
        with open_cache(options, (SPLIT, SPLIT), spec, ONE) as (keeping, _):
            data = make_dataset(SPLIT, spec, options, keeping, train=True)
            batches = make_loader(data, options, ONE, train=True)
            for epoch in (0, 1, 2):
                batches.sampler.epoch = epoch  # type: ignore[union-attr]
                found.append([batch.frames for batch in batches])
    for one, other in zip(found[:3], found[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(found[0][0], found[1][0])


def test_a_clip_is_decoded_in_the_first_epoch_only(tmp_path: Path) -> None:
    clip = encode(tmp_path / "clip.mp4", frames=20)
    cache = tmp_path / "cache"
    cache.mkdir()
    data = dataset("small", Keeping(6, FrameStore(cache, in_memory=True)), split_of(clip))
    assert "failed" not in data[0, 0]
    clip.unlink()
    assert "failed" not in data[1, 0]
    new_run = dataset("small", Keeping(6, FrameStore(cache, in_memory=True)), split_of(clip))
    assert "no such file" in new_run[0, 0]["failed"][1]


def test_wrong_options_of_the_loader_are_told_in_a_line(tmp_path: Path) -> None:
    for given, words in (
        ("cache=gpu", "cache=gpu: must be one of off, ram, disk"),
        ("cache_frames=0", "cache_frames=0: must be at least 1"),
        ("augment_on=gpu", "augment_on=gpu: must be one of auto, workers, device"),
        ("prefetch_factor=0", "prefetch_factor=0: must be at least 1"),
    ):
        done = edge("train", "dataset=custom", f"data_dir={tmp_path}", "train_stage=0", given)
        one_line_error(done, 2, words)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "ts", "avi"])
def test_the_size_is_told_of_containers_that_list_key_frames_only(suffix: str, tmp_path: Path) -> None:
    codec = "libvpx" if suffix == "webm" else "libx264"
    path = encode(tmp_path / f"clip.{suffix}", frames=90, codec=codec)
    count, width, height = probe_size(Example(path.name, path, (0,)))
    assert 80 <= count <= 100
    assert width * height > 0


def test_clips_of_unknown_length_count_as_the_others() -> None:
    examples = [Example(str(number), Path(str(number)), (0,)) for number in range(4)]
    assert estimate(examples, lambda example: 0 if example.name in "01" else 30) == 120
    assert estimate(examples, lambda _: 0) == 0


def test_frames_are_kept_only_as_long_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 1 << 30
    monkeypatch.setattr(frame_cache, "available_memory", lambda: free)
    store = FrameStore(tmp_path, in_memory=True)
    clip = ClipFrames(1, [0], [[0]], [np.zeros((64, 64, 3), np.uint8)])
    store.keep("one.frames", clip)
    free = (1 << 30) // 10
    store.keep("two.frames", clip)
    assert "no room is left for more frames" in store.shortage
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.frames"]


def test_workers_that_write_at_the_end_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_cache, "SHARED_MEMORY", tmp_path)
    clip = ClipFrames(1, [0], [[0]], [np.zeros((640, 640, 3), np.uint8)])
    over = threading.Event()

    def write(store: FrameStore) -> None:
        number = 0
        while not over.is_set() and not store.shortage:
            store.keep(f"{threading.get_ident()}-{number}.frames", clip)
            number += 1

    with frame_cache.memory_store() as store:
        threads = [threading.Thread(target=write, args=(replace(store),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(list(store.folder.iterdir())) < 20:
            pass
    for thread in threads:
        thread.join(20)  # what is gone ends their writing
    over.set()
    assert list(tmp_path.iterdir()) == []
