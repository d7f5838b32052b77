"""Model frames made on the device, against the CPU's own path: Pillow on frames converted by FFmpeg."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from adafocus_edge.backends.memory import HostDevice
from adafocus_edge.backends.ort import OrtSession
from adafocus_edge.backends.resident import Resident
from adafocus_edge.engines import PIXELS_FILE, PIXELS_GRAPH
from adafocus_edge.errors import BackendError, SourceError
from adafocus_edge.nvdec import decoded_frames, from_dlpack, make_frames
from adafocus_edge.pixels import Decoded, PixelMaker, matrices, resize_weights, rgb_of_yuv
from adafocus_edge.preprocess import preprocess, sampled_frames
from adafocus_edge.video import VideoFile
from export.pixels import pixels_graph
from tests.conftest import CLIPS, SMALL
from tests.videos import encode

VIDEOS = ("R6llTwEh07w.mp4", "v_SoccerJuggling_g23_c01.avi", "RATRACE_wave_f_nm_np1_fr_goo_37.avi", "people_1080p.mp4")


def resident(**changes):
    return Resident(dataclasses.replace(SMALL, **changes), {PIXELS_GRAPH: OrtSession(PIXELS_FILE)}, HostDevice())


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
    expected = list(sampled_frames(video, where.spec))
    device = where.device
    made = list(make_frames(lambda n: device.store(planes[n]), video, video.nv12(), where))
    assert [number for number, _ in made] == [number for number, _ in expected]
    for (_, frame), (_, wanted) in zip(made, expected, strict=True):
        off = np.abs(np.asarray(frame)[0].astype(int) - wanted)
        assert off.mean() < 1.0  # the limit of design is 2; measured 0.4 to 0.5
        assert np.percentile(off, 99) <= 3


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("full_range", [False, True])
def test_tagged_colours_are_converted_by_their_tags(matrix, full_range):
    import av

    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (20, 20, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
    frame.colorspace, frame.color_range = {"bt601": 5, "bt709": 1}[matrix], 2 if full_range else 1
    where = resident()
    planes = frame.reformat(format="nv12").to_ndarray()
    made = np.asarray(PixelMaker(where).make([planes], Decoded(320, 320, matrix, full_range)))[0]
    wanted = preprocess(Image.fromarray(frame.to_ndarray(format="rgb24")), 224)
    other = np.asarray(PixelMaker(where).make([planes], Decoded(320, 320, "bt2020", full_range)))[0]
    assert np.abs(made.astype(int) - wanted).mean() < 1.5
    assert np.abs(other.astype(int) - wanted).mean() > 1.5


def test_the_resize_is_pillows():
    random = np.random.default_rng(1)
    for source, target in ((340, 224), (1080, 256), (100, 224), (224, 224), (5, 64)):
        column = random.integers(0, 256, (source, 1), dtype=np.uint8)
        resized = np.asarray(Image.fromarray(column.repeat(4, 1)).resize((4, target), Image.Resampling.BILINEAR))
        assert np.abs(resize_weights(source, target) @ column[:, 0] - resized[:, 0]).max() <= 0.51


def test_colours_go_there_and_back():
    to_rgb, offset = rgb_of_yuv("bt709", full_range=False)
    assert np.allclose(to_rgb @ [16, 128, 128] + offset, 0)
    assert np.allclose(to_rgb @ [235, 128, 128] + offset, 255)


def test_the_shipped_graph_is_the_one_that_is_written():
    assert onnx.load_model(PIXELS_FILE).SerializeToString() == pixels_graph().SerializeToString()


def test_what_is_not_nv12_is_refused(tmp_path):
    with pytest.raises(ValueError, match="even sides"):
        Decoded(241, 320)
    with pytest.raises(ValueError, match="unknown colour matrix"):
        Decoded(240, 320, "xyz")
    assert set(matrices(Decoded(240, 320), SMALL)) == {"rows", "columns", "colour", "offset"}
    odd = encode(tmp_path / "odd.avi", frames=4, codec="ffv1", pix_fmt="yuv444p", size=(64, 64))
    with pytest.raises(SourceError, match="is not decoded on the GPU: leave out --decoder gpu"):
        VideoFile(str(odd)).nv12()


def test_only_a_gpu_decodes_and_only_with_its_library():
    video = VideoFile(str(CLIPS / VIDEOS[0]))
    with pytest.raises(BackendError, match="needs a backend on an NVIDIA GPU"):
        next(decoded_frames(video, resident()))
    where = resident()
    where.device.kind = "cuda"
    with pytest.raises((BackendError, SourceError), match="PyNvVideoCodec cannot be loaded|cannot decode it"):
        next(decoded_frames(video, where))
    with pytest.raises(BackendError, match="no graph that makes model frames"):
        PixelMaker(Resident(SMALL, {}, HostDevice()))


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
    with pytest.raises(BackendError, match="lies on DLPack's device 1, not on cuda"):
        from_dlpack(tensor, device)
