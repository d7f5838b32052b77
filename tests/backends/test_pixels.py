"""Model frames made on the device, against the CPU's own path: Pillow on frames converted by FFmpeg."""

import dataclasses
import sys

import av
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.device.pixels import PixelMaker
from adafocus_edge.backends.device.runner import DeviceRunner
from adafocus_edge.backends.nvdec import decoded_frames, from_dlpack, make_frames
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.engines import PIXELS_FILE, PIXELS_GRAPH
from adafocus_edge.bundle.store import default_bundle, open_bundle
from adafocus_edge.errors import BackendError, SourceError
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.matrices import Decoded, matrices, resize_weights, rgb_of_yuv
from adafocus_edge.media.nv12 import layout_of
from adafocus_edge.media.orientation import upright
from adafocus_edge.media.preprocess import (
    glimpse_frames,
    model_frame,
    motion_frame,
    preprocess,
    sample_indices,
    sampled_frames,
)
from adafocus_edge.media.video_file import VideoFile
from adafocus_edge.model.logits import softmax
from adafocus_edge.runtime.glimpse import see_clip
from export.pixels import pixels_graph
from tests.conftest import CLIPS, ROOT, SMALL
from tests.support.videos import encode

VIDEOS = ("R6llTwEh07w.mp4", "v_SoccerJuggling_g23_c01.avi", "RATRACE_wave_f_nm_np1_fr_goo_37.avi", "people_1080p.mp4")


def resident(**changes):
    return DeviceRunner(dataclasses.replace(SMALL, **changes), {PIXELS_GRAPH: OrtSession(PIXELS_FILE)}, HostDevice())


def nv12(video):
    """All frames as a GPU's decoder gives them."""
    with video._open() as container:
        return [frame.reformat(format="nv12").to_ndarray() for frame in container.decode(video=0)]


@pytest.mark.parametrize("changes", [{}, {"fit": "squash"}, {"motion_gap_s": 0.2}], ids=["crop", "squash", "motion"])
@pytest.mark.parametrize("name", VIDEOS)
def test_frames_made_on_the_device_equal_the_cpus(name, changes):
    video = VideoFile(str(CLIPS / name))
    where = resident(**changes)
    planes = nv12(video)
    spec = where.spec
    by_rgb = glimpse_frames(
        video, sample_indices(video.frame_count, spec.segments), spec.motion_gap_s,
        lambda pixels: preprocess(pixels, spec.frame_size, spec.fit),
    )  # fmt: skip
    expected = list(by_rgb)
    device = where.device
    made = list(make_frames(lambda n: device.store(planes[n]), video, video.nv12(), where, where.spec.segments))
    assert [number for number, _ in made] == [number for number, _ in expected]
    for (_, frame), (_, wanted) in zip(made, expected, strict=True):
        off = np.abs(np.asarray(frame)[0].astype(int) - wanted)
        assert off.max() <= 1  # the limit of design is 2 on average
        assert off.mean() < 0.02  # measured 0.001 to 0.008: sums in float32 that end near a half
    for (_, frame), (_, wanted) in zip(made, sampled_frames(video, spec), strict=True):
        assert np.abs(np.asarray(frame)[0].astype(int) - wanted).mean() < 1  # motion is scaled from the planes


SPACES = {"bt601": 5, "bt709": 1, "bt2020": 9, "fcc": 4, "smpte240m": 7, "untagged": 2}
"""FFmpeg's numbers (AVColorSpace)."""


def tagged(planes, space, colour_range):
    frame = av.VideoFrame.from_ndarray(planes, format="nv12").reformat(format="yuv420p")
    frame.colorspace, frame.color_range = SPACES[space], colour_range
    return frame


def noise(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)


@pytest.mark.parametrize("changes", [{}, {"fit": "squash"}, {"motion_gap_s": 0.2}], ids=["crop", "squash", "motion"])
@pytest.mark.parametrize("colour_range", [0, 1, 2], ids=["unknown", "limited", "full"])
@pytest.mark.parametrize("space", list(SPACES))
def test_every_matrix_and_range_gives_the_cpus_colours(space, colour_range, changes):
    where = resident(**changes)
    spec, maker = where.spec, PixelMaker(where)
    for height, width in ((18, 20), (50, 34), (96, 320), (242, 522), (640, 362)):  # noise holds all colours there are
        planes = noise(height, width)
        frame = tagged(planes, space, colour_range)
        layout = layout_of(frame)
        if spec.motion_gap_s:
            made = maker.make([planes, planes[::-1].copy(), planes], layout)
            shown = [upright(tagged(p, space, colour_range)) for p in (planes, planes[::-1], planes)]
            wanted = motion_frame(shown, spec)
        else:
            made, wanted = maker.make([planes], layout), model_frame(upright(frame), spec)
        off = np.abs(np.asarray(made)[0].astype(int) - wanted)
        assert off.max() <= 1, (height, width)
        # Pillow 12 and later resizes tall pictures along their columns first: other values are rounded on the way.
        assert off.mean() < (0.02 if width >= height else 0.3), (height, width)


def exact(planes, space, full_range, spec):
    """The same frame by ITU-T H.273 in floats, resized by Pillow in floats: no rounding but the last."""
    red, blue = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[space]
    height = len(planes) * 2 // 3
    luma = planes[:height] / 255.0 if full_range else (planes[:height] - 16.0) / 219
    chroma = (planes[height:].reshape(height // 2, -1, 2) - 128.0) / (255 if full_range else 224)
    blueness, redness = chroma.repeat(2, 0).repeat(2, 1).transpose(2, 0, 1)
    r, b = luma + 2 * (1 - red) * redness, luma + 2 * (1 - blue) * blueness
    g = (luma - red * r - blue * b) / (1 - red - blue)
    size = (spec.frame_size, spec.frame_size)
    floats = [Image.fromarray((255 * np.clip(part, 0, 1)).astype(np.float32)) for part in (r, g, b)]
    resized = [np.asarray(part.resize(size, Image.Resampling.BILINEAR)) for part in floats]
    return np.round(np.stack(resized, axis=-1))


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("space", ["bt601", "bt709", "bt2020"])
def test_both_paths_are_near_the_standards_colours(space, full_range):
    where = resident(fit="squash")
    planes = nv12(VideoFile(str(CLIPS / VIDEOS[0])))[7]
    frame = tagged(planes, space, 2 if full_range else 1)
    by_cpu = model_frame(upright(frame), where.spec).astype(int)
    by_graph = np.asarray(PixelMaker(where).make([planes], layout_of(frame)))[0].astype(int)
    wanted = exact(planes, space, full_range, where.spec)
    for found in (by_cpu, by_graph):  # FFmpeg cuts fractions off: 1, 1.5 and 1 level darker, half a level less if full
        assert np.abs(found - wanted).mean() < (1.3 if not full_range else 0.8)
        assert np.percentile(np.abs(found - wanted), 99) <= 3
    another = exact(planes, {"bt601": "bt2020", "bt709": "bt601", "bt2020": "bt601"}[space], full_range, where.spec)
    assert np.std(by_graph - another) > 1.5 * np.std(by_graph - wanted)


@pytest.mark.parametrize("siting", [0, 1, 2, 3])
def test_chroma_counts_for_two_by_two_pixels_wherever_it_was_sampled(siting, tmp_path):
    video = VideoFile(str(encode(tmp_path / "sited.mp4", frames=30, options={"x264-params": f"chromaloc={siting}"})))
    where = resident()
    planes = nv12(video)
    made = make_frames(lambda n: where.device.store(planes[n]), video, video.nv12(), where, where.spec.segments)
    for (_, frame), (_, wanted) in zip(made, sampled_frames(video, where.spec), strict=True):
        assert np.abs(np.asarray(frame)[0].astype(int) - wanted).max() <= 1


def test_the_default_model_sees_the_same_in_both():
    """Bounds what `--decoder gpu` changes: measured 0 of 96 patches, and 0.0013 of confidence."""
    bundle = open_bundle(default_bundle())
    clips = sorted((ROOT / "tests" / "fights").glob("*/*.mp4"))
    assert len(clips) == 12
    first_moved, off = 0, []
    with load_model(bundle, backend="onnxruntime-cpu") as model:
        where = DeviceRunner(model.spec, {PIXELS_GRAPH: OrtSession(PIXELS_FILE)}, HostDevice())
        for path in clips:
            video = VideoFile(str(path))
            planes = nv12(video)
            made = make_frames(
                lambda n, p=planes: where.device.store(p[n]), video, video.nv12(), where, where.spec.segments
            )
            by_graph = [ModelFrame.of(np.asarray(frame)[0], model.spec) for _, frame in made]
            seen = [list(see_clip(model, frames)) for frames in (
                [frame for _, frame in sampled_frames(video, model.spec)], by_graph
            )]  # fmt: skip
            first_moved += not np.array_equal(seen[0][0].origins, seen[1][0].origins)
            by_cpu, by_gpu = (softmax(glimpses[-1].logits[0]) for glimpses in seen)
            off.append(np.abs(by_cpu - by_gpu).max())
            assert by_cpu.argmax() == by_gpu.argmax()
    assert first_moved == 0
    assert max(off) < 0.005


def test_the_resize_is_pillows():
    random = np.random.default_rng(1)
    for source, target in ((340, 224), (1080, 256), (100, 224), (224, 224), (5, 64)):
        column = random.integers(0, 256, (source, 1), dtype=np.uint8)
        resized = np.asarray(Image.fromarray(column.repeat(4, 1)).resize((4, target), Image.Resampling.BILINEAR))
        assert np.abs(resize_weights(source, target) @ column[:, 0] - resized[:, 0]).max() <= 0.51


def test_black_and_white_are_where_the_range_puts_them():
    to_rgb, black = rgb_of_yuv("bt709", full_range=False)
    assert black == 16
    assert np.allclose(to_rgb @ [235 - 16, 0, 0], 255)
    assert np.allclose(rgb_of_yuv("bt2020", full_range=True)[0] @ [255, 0, 0], 255)


def test_the_shipped_graph_is_the_one_that_is_written():
    assert onnx.load_model(PIXELS_FILE).SerializeToString() == pixels_graph().SerializeToString()


def test_what_is_not_nv12_is_refused(tmp_path):
    with pytest.raises(ValueError, match="even width and height"):
        Decoded(241, 320)
    with pytest.raises(ValueError, match="unknown colour matrix"):
        Decoded(240, 320, "xyz")
    assert set(matrices(Decoded(240, 320), SMALL)) == {"rows", "columns", "black", "luma_gain", "chroma_gain", "mix"}
    odd = encode(tmp_path / "odd.avi", frames=4, codec="ffv1", pix_fmt="yuv444p", size=(64, 64))
    with pytest.raises(SourceError, match="is not decoded on the GPU"):
        VideoFile(str(odd)).nv12()


def test_frames_are_made_only_with_the_library_and_the_graph(monkeypatch):
    video = VideoFile(str(CLIPS / VIDEOS[0]))
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(BackendError, match="PyNvVideoCodec cannot be loaded"):
        next(decoded_frames(video, resident(), 8))
    with pytest.raises(BackendError, match="no graph that makes model frames"):
        PixelMaker(DeviceRunner(SMALL, {}, HostDevice()))


def test_tensors_are_taken_from_dlpack_where_they_lie():
    device = HostDevice()
    tensor = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    buffer = from_dlpack(tensor, device)
    assert buffer.address == tensor.data_ptr()
    assert np.array_equal(np.asarray(buffer), tensor.numpy())
    assert np.array_equal(np.asarray(from_dlpack(tensor[1:], device)), tensor.numpy()[1:])
    with pytest.raises(BackendError, match="gaps between its rows"):
        from_dlpack(tensor[:, :3], device)
    with pytest.raises(BackendError, match="8-bit"):
        from_dlpack(tensor.to(torch.int16), device)
    device.kind = "cuda"
    with pytest.raises(BackendError, match="on DLPack device 1, expected cuda"):
        from_dlpack(tensor, device)
