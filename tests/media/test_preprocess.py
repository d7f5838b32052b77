"""Preprocessing and sampling against the official outputs and torchvision."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from adafocus_edge.media.preprocess import CropWindow, preprocess, sample_indices
from tests.conftest import GOLDEN


def picture() -> Image.Image:
    return Image.open(GOLDEN / "actnet96" / "image_00001.jpg").convert("RGB")


def test_pixels_equal_the_official_ones(golden_outputs, golden_frames):
    for number, expected in enumerate(golden_outputs["inputs"], start=1):
        image = Image.open(golden_frames / f"image_{number:05d}.jpg").convert("RGB")
        assert np.array_equal(preprocess(image, 224), expected)


@pytest.mark.parametrize("size", [(340, 256), (256, 340), (1920, 1080), (1080, 1920), (317, 541), (64, 48), (1, 1)])
@pytest.mark.parametrize("target", [224, 160])
def test_pixels_equal_torchvision(size, target):
    image = picture().resize(size)
    official = transforms.Compose([transforms.Resize(target * 256 // 224), transforms.CenterCrop(target)])
    assert np.array_equal(preprocess(image, target), np.asarray(official(image)))


@pytest.mark.parametrize("size", [(6000, 60), (60, 6000)])
def test_a_long_strip_is_within_one_grey_level(size):
    image = picture().resize(size)
    official = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)
    assert np.abs(preprocess(image, 224).astype(int) - np.asarray(official)).max() <= 1


def test_a_very_long_strip_needs_little_memory():
    code = (
        "import resource\n"
        "from PIL import Image\n"
        "from adafocus_edge.media.preprocess import preprocess\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "assert preprocess(Image.new('RGB', (8000, 3)), 224).shape == (224, 224, 3)\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # KiB; the whole resized strip would take 520 MB


def test_window_maps_back_to_the_source():
    window = CropWindow.of(height=1080, width=1920, size=224)
    assert (window.resized_height, window.resized_width, window.top, window.left) == (256, 455, 16, 116)
    top, left, bottom, right = window.source_box(0, 0, 224, 224)
    assert top == pytest.approx(16 * 1080 / 256)
    assert bottom - top == pytest.approx(224 * 1080 / 256)
    assert left == pytest.approx(116 * 1920 / 455)
    assert right - left == pytest.approx(224 * 1920 / 455)


def test_sampling_equals_the_official_frame_numbers():
    for case, expected in json.loads((GOLDEN / "golden_sampling.json").read_text()).items():
        frames, segments = map(int, case.split("/"))
        assert [index + 1 for index in sample_indices(frames, segments)] == expected, case


@pytest.mark.parametrize("frames", [1, 2, 3, 15, 16, 17, 99, 100_003])
def test_samples_rise_and_exist(frames):
    indices = sample_indices(frames, 16)
    assert len(indices) == 16
    assert indices == sorted(indices)
    assert indices[-1] < frames
