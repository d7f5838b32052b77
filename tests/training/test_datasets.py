"""Samples for training: which frames, which crops, the same for any number of workers, and broken clips reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adafocus_edge.evaluation.dataset import Example, Split
from adafocus_edge.media.frame_folder import FrameFolder
from adafocus_edge.media.preprocess import luminance, model_frames, motion_indices, sample_indices
from adafocus_edge.media.sources import Source
from tests.conftest import CLIPS, GOLDEN, ROOT, official_spec
from training.augment import CROP_SCALES, augment, crop_box
from training.datasets import VALIDATION, ClipDataset, EpochSampler, collate
from training.sampling import dense_indices, train_indices

FRAMES = ROOT / "export" / "frames"
VIDEO = CLIPS / "v_SoccerJuggling_g23_c01.avi"


def split_of(*examples: Example) -> Split:
    return Split(examples, ("a", "b", "c"), "here")


def test_evaluation_takes_the_official_frames() -> None:
    for case, expected in json.loads((GOLDEN / "golden_sampling.json").read_text()).items():
        frames, segments = map(int, case.split("/"))
        assert [index + 1 for index in sample_indices(frames, segments)] == expected


def test_training_takes_one_random_frame_of_each_segment() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([train_indices(103, 16, random) for _ in range(400)])
    offsets = drawn - np.arange(16) * (103 // 16)
    assert offsets.min() == 0
    assert offsets.max() == 103 // 16 - 1
    assert abs(offsets.mean() - 2.5) < 0.1
    assert train_indices(10, 16, random) == [*range(10), 9, 9, 9, 9, 9, 9]
    assert train_indices(16, 16, random) == list(range(16))


def test_dense_sampling_spans_64_frames() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        indices = dense_indices(300, 16, random)
        assert set(np.diff(indices)) == {4}
        assert 0 <= indices[0] <= 236
    assert dense_indices(300, 16, None) == [118 + 4 * i for i in range(16)]
    assert max(dense_indices(20, 16, random)) < 20


def test_crops_are_the_official_sizes_and_places() -> None:
    random = np.random.default_rng(0)
    boxes = {crop_box(340, 256, 224, random) for _ in range(3000)}
    # int(256 * scale); 224 is 0.875 of it.
    sides = {int(256 * scale) for scale in CROP_SCALES}
    assert sides == {256, 224, 192, 168}
    order = sorted(sides, reverse=True)
    for left, top, width, height in boxes:
        assert {width, height} <= sides
        assert abs(order.index(width) - order.index(height)) <= 1
        assert left + width <= 340
        assert top + height <= 256
        assert left % ((340 - width) // 4) == 0
    sizes = {box[2:] for box in boxes}
    assert len(sizes) == 10
    assert len([box for box in boxes if box[2:] == (168, 192)]) == 13


def test_crops_and_mirroring_are_options() -> None:
    random = np.random.default_rng(0)
    assert {crop_box(340, 256, 224, random, (1.0,))[1:] for _ in range(50)} == {(0, 256, 256)}
    spec = official_spec(segments=2, fit="squash")
    clips = split_of(Example("v", VIDEO, (0,)))
    whole = ClipDataset(clips, spec, seed=7, train=True, flip=False, crop_scales=(1.0,))
    either = ClipDataset(clips, spec, seed=7, train=True, crop_scales=(1.0,))
    mirrored = 0
    for epoch in range(6):
        plain, other = whole[epoch, 0]["frames"], either[epoch, 0]["frames"]
        same, turned = np.array_equal(other, plain), np.array_equal(other, plain[:, :, ::-1])
        assert same or turned
        mirrored += turned
    assert 0 < mirrored < 6


def test_a_crop_is_resized_and_mirrored() -> None:
    image = Image.open(FRAMES / "image_00001.jpg").convert("RGB")
    plain = np.asarray(augment(image, (10, 20, 168, 192), 224, flip=False))
    assert plain.shape == (224, 224, 3)
    assert np.array_equal(np.asarray(augment(image, (10, 20, 168, 192), 224, flip=True)), plain[:, ::-1])
    expected = image.crop((10, 20, 178, 212)).resize((224, 224), Image.Resampling.BILINEAR)
    assert np.abs(plain.astype(int) - np.asarray(expected)).mean() < 1


@pytest.mark.parametrize("changes", [{}, {"fit": "squash", "motion_gap_s": 0.1}])
def test_a_sample_depends_on_seed_epoch_and_clip_alone(changes: dict[str, object]) -> None:
    spec = official_spec(segments=4, **changes)
    clips = split_of(Example("v", VIDEO, (0, 2)), Example("f", FRAMES, (1,), 16))
    one, two = (ClipDataset(clips, spec, seed=7, train=True, colour_jitter=0.3) for _ in range(2))
    other = ClipDataset(clips, spec, seed=8, train=True)
    for key in ((0, 0), (0, 1), (3, 0)):
        first, again = one[key], two[key]
        assert first["frames"].shape == (4, 224, 224, 3)
        for name, value in first.items():
            assert np.array_equal(value, again[name]), name
        assert not np.array_equal(first["origins"], other[key]["origins"])
    assert not np.array_equal(one[0, 0]["frames"], one[1, 0]["frames"])
    # One of a clip's labels is drawn.
    assert {one[epoch, 0]["target"] for epoch in range(12)} == {0, 2}


def test_validation_is_preprocessed_as_the_device_does_it() -> None:
    for changes in ({}, {"fit": "squash", "motion_gap_s": 0.1}):
        spec = official_spec(segments=4, **changes)
        data = ClipDataset(split_of(Example("v", VIDEO, (2, 1))), spec, seed=7, train=False)
        clip = Source("v", str(VIDEO)).open_clip()
        seen = np.stack([p for _, p in model_frames(clip, sample_indices(clip.frame_count, 4), spec)])
        sample = data[VALIDATION, 0]
        assert np.array_equal(sample["frames"], seen)
        assert sample["target"] == 2


def test_motion_frames_are_luminance_then_and_now() -> None:
    clip = FrameFolder(str(FRAMES))
    assert motion_indices(10, 25.0, 0.1) == (6, 8, 10)
    assert motion_indices(1, 25.0, 0.1) == (0, 0, 1)
    assert motion_indices(10, 0.0, 0.001) == (8, 9, 10)
    spec = official_spec(frame_size=64, glance_size=64, patch_size=32, fit="squash", motion_gap_s=0.1)
    frames = dict(model_frames(clip, [1, 10, 11], spec))
    for number, parts in ((1, (0, 0, 1)), (10, (6, 8, 10)), (11, (7, 9, 11))):
        for channel, part in enumerate(parts):
            ((_, rgb),) = clip.select([part], lambda pixels: pixels)
            grey = Image.fromarray(luminance(rgb)).resize((64, 64), Image.Resampling.BILINEAR)
            assert np.array_equal(frames[number][:, :, channel], np.asarray(grey))


def test_a_broken_clip_is_told_and_not_replaced(tmp_path: Path) -> None:
    shutil.copytree(FRAMES, tmp_path / "frames")
    (tmp_path / "frames" / "image_00002.jpg").write_bytes(b"no image")
    clips = split_of(Example("f", tmp_path / "frames", (0,), 16), Example("v", VIDEO, (1,)))
    data = ClipDataset(clips, official_spec(segments=16), seed=0, train=True)
    batch = collate([data[0, 0], data[0, 1]])
    assert not isinstance(batch, list)
    assert batch.number.tolist() == [1]
    assert len(batch.failed) == 1
    assert batch.failed[0][0] == "f"
    assert "image_00002.jpg: not an image" in batch.failed[0][1]
    assert collate([data[0, 0]]) == batch.failed


def test_two_processes_share_each_update() -> None:
    one = EpochSampler(23, 6, seed=1)
    pair = [EpochSampler(23, 3, seed=1, rank=rank, world=2) for rank in range(2)]
    for epoch in (0, 1):
        for sampler in (one, *pair):
            sampler.epoch = epoch
        whole, shares = list(one), [list(sampler) for sampler in pair]
        assert len(whole) == len(one) == 18
        for update in range(3):
            both = shares[0][update * 3 : update * 3 + 3] + shares[1][update * 3 : update * 3 + 3]
            assert sorted(both) == sorted(whole[update * 6 : update * 6 + 6])
    assert len({number for _, number in whole}) == 18
    in_order = [list(EpochSampler(5, 2, seed=None, rank=rank, world=2)) for rank in range(2)]
    assert sorted(number for share in in_order for _, number in share) == [0, 1, 2, 3, 4]
