"""Videos whose pixels are not square: what is written keeps their shape, and pictures are shown in it."""

from fractions import Fraction

import pytest
from PIL import Image

from adafocus_edge.live.messages import LiveFrame
from adafocus_edge.media.video_file import VideoFile
from adafocus_edge.runtime.annotate import shown_size
from adafocus_edge.serve.pictures import encode as encode_picture
from tests.conftest import edge
from tests.support.streams import need
from tests.support.videos import ffmpeg, ffprobe, set_matrix


@pytest.fixture
def wide(tmp_path):
    """PAL, 16:9, whose pixels are wider than tall."""
    need("ffmpeg")
    path = tmp_path / "wide.mp4"
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=size=720x576:rate=10:duration=3", "-vf", "setsar=64/45", "-c:v", "libx264", path
    )
    return path


def shape(path):
    return ffprobe(path, "stream=width,height,sample_aspect_ratio")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_annotated_videos_keep_the_shape_of_pixels(wide, suffix, tmp_path):
    written = tmp_path / f"seen.{suffix}"
    done = edge("classify", wide, "--save-video", written)
    assert done.returncode == 0, done.stderr
    assert shape(written) == shape(wide) == ["720,576,64:45"]


def test_recordings_keep_the_shape_of_pixels(wide, tmp_path):
    done = edge("classify", wide, "--record", tmp_path / "rec", "--drop", "never", "--glimpse-fps", 4)
    assert done.returncode == 0, done.stderr
    recordings = sorted((tmp_path / "rec").glob("*.mp4"))
    assert [shape(path) for path in recordings] == [["720,576,64:45"]]


def test_a_turned_video_has_turned_pixels(wide, tmp_path):
    set_matrix(wide, 0, 1, -1, 0)
    assert VideoFile(str(wide)).sample_aspect == Fraction(45, 64)
    written = tmp_path / "seen.mp4"
    assert edge("classify", wide, "--save-video", written).returncode == 0
    assert shape(written) == ["576,720,45:64"]


def test_square_pixels_stay_square(tmp_path):
    need("ffmpeg")
    path = tmp_path / "square.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=480x270:rate=10:duration=2", "-c:v", "libx264", path)
    written = tmp_path / "seen.mp4"
    assert edge("classify", path, "--save-video", written).returncode == 0
    assert shape(written)[0].rpartition(",")[2] in ("1:1", "N/A")


def test_pictures_on_the_page_are_shown_in_shape(tmp_path):
    import io

    import numpy as np

    rgb = np.zeros((576, 720, 3), np.uint8)
    frame = LiveFrame("a", 0, 0.0, 0.0, 0.0, lambda: rgb, Fraction(64, 45))
    assert Image.open(io.BytesIO(encode_picture(frame, 4096))).size == (1024, 576)
    assert Image.open(io.BytesIO(encode_picture(frame, 640))).size == (640, 360)


@pytest.mark.parametrize(
    ("aspect", "expected"), [(Fraction(1), (720, 576)), (Fraction(64, 45), (1024, 576)), (Fraction(45, 64), (720, 819))]
)
def test_one_side_grows_and_none_shrinks(aspect, expected):
    assert shown_size(720, 576, aspect) == expected
