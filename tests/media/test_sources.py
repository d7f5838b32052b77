"""What the arguments of `classify` mean."""

import numpy as np
import pytest
from PIL import Image

from adafocus_edge.errors import SourceError, UsageError
from adafocus_edge.media.frame_folder import FrameFolder
from adafocus_edge.media.sources import find_sources, is_stream, without_password


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith((".jpg", ".png")):
            Image.new("RGB", (40, 30), (int("".join(filter(str.isdecimal, name)) or 0) % 256, 0, 0)).save(folder / name)
        else:
            (folder / name).write_bytes(b"")


def addresses(*arguments):
    return [source.address for source in find_sources([str(argument) for argument in arguments])]


def test_files_folders_and_globs(tmp_path):
    put(tmp_path / "videos", "b10.mp4", "b9.mp4", "a.AVI", "notes.txt", ".hidden.mp4", "poster.jpg")
    put(tmp_path / "videos" / "inner", "c.webm")
    put(tmp_path / "clip one", "image_00001.jpg", "image_00002.jpg")
    put(tmp_path / "set" / "run" / "clip_a", "1.png")
    put(tmp_path / "set" / "run" / "clip_b", "1.png")
    put(tmp_path / "set", "z.mkv")
    assert addresses(tmp_path / "videos") == [
        str(tmp_path / "videos" / name) for name in ("a.AVI", "b9.mp4", "b10.mp4", "inner/c.webm")
    ]
    assert addresses(tmp_path / "clip one") == [str(tmp_path / "clip one")]
    assert addresses(tmp_path / "set") == [str(tmp_path / "set" / n) for n in ("z.mkv", "run/clip_a", "run/clip_b")]
    assert addresses(tmp_path / "videos" / "b*.mp4") == [str(tmp_path / "videos" / n) for n in ("b9.mp4", "b10.mp4")]
    assert addresses(tmp_path / "**" / "*.webm") == [str(tmp_path / "videos" / "inner" / "c.webm")]
    assert addresses(tmp_path / "none*.mp4", tmp_path / "gone.mp4") == [
        str(tmp_path / "none*.mp4"), str(tmp_path / "gone.mp4")
    ]  # fmt: skip


def test_a_cover_picture_does_not_hide_videos(tmp_path):
    put(tmp_path, "cover.jpg")
    put(tmp_path / "season 1", "a.mp4")
    assert addresses(tmp_path) == [str(tmp_path / "season 1" / "a.mp4")]


def test_a_folder_that_is_reached_twice_is_listed_once(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    for number in range(3):
        (tmp_path / f"z{number}").symlink_to(tmp_path / "videos")
    assert addresses(tmp_path) == [str(tmp_path / "videos" / "a.mp4")]


def test_links_that_lead_back_up_are_not_followed(tmp_path):
    put(tmp_path / "videos", "a.mp4")
    (tmp_path / "videos" / "self").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "up").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link").symlink_to(tmp_path / "videos")
    assert addresses(tmp_path / "videos") == [str(tmp_path / "videos" / "a.mp4")]
    assert addresses(tmp_path / "other") == [str(tmp_path / "other" / "link" / "a.mp4")]


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name):
    with pytest.raises(UsageError, match="empty source"):
        find_sources(["a.mp4", name])


def test_frames_are_read_only_a_little_ahead(tmp_path):
    put(tmp_path, *(f"{number}.jpg" for number in range(30)))
    (tmp_path / "29.jpg").write_bytes(b"torn")
    read = FrameFolder(str(tmp_path)).select(range(30), lambda rgb: rgb.shape)
    assert next(read) == (0, (30, 40, 3))
    read.close()
    with pytest.raises(SourceError, match=r"29\.jpg"):
        list(FrameFolder(str(tmp_path)).select(range(30), lambda rgb: rgb.shape))


def test_live_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    camera, stream, file = find_sources(["0", "rtsp://user:secret@10.0.0.1/live", "http://host/clip.mp4?x=1"])
    assert (camera.name, camera.live) == ("camera 0", True)
    assert (stream.name, stream.live) == ("rtsp://***@10.0.0.1/live", True)
    assert stream.address.startswith("rtsp://user:secret@")
    assert not file.live
    (tmp_path / "7").write_bytes(b"")
    assert not find_sources(["7"])[0].live
    assert find_sources(["/dev/video3"])[0].live


@pytest.mark.parametrize(
    ("address", "live"),
    [
        ("http://h/video.mjpg", True),
        ("http://h/stream", True),
        ("https://h/a/b.m3u8", True),
        ("https://h/a.webm#t=1", False),
        ("http://h/live.flv", True),
        ("udp://239.0.0.1:1234", True),
        ("file:///a.mp4", False),
    ],
)
def test_which_addresses_have_no_end(address, live):
    assert is_stream(address) is live


def test_passwords_are_blanked_out():
    assert without_password("rtsp://a:b@c/d") == "rtsp://***@c/d"
    assert without_password("rtsp://admin:p@ss/w@10.0.0.1/x") == "rtsp://***@10.0.0.1/x"
    assert without_password("http://c/d?e=@") == "http://c/d?e=@"
    assert without_password("/home/a@b/c.mp4") == "/home/a@b/c.mp4"


def test_frames_come_in_natural_order(tmp_path):
    put(tmp_path, "image_2.jpg", "image_10.png", "image_1.jpg", "readme.txt")
    clip = FrameFolder(str(tmp_path))
    assert clip.frame_count == 3
    assert clip.duration_s is None
    red = [int(np.round(pixels[0, 0, 0])) for _, pixels in clip.select([0, 1, 2, 2], lambda rgb: rgb)]
    assert red == pytest.approx([1, 2, 10, 10], abs=2)
    assert [index for index, _ in clip.frames()] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_unreadable_frame_is_named(content, tmp_path):
    put(tmp_path, "1.jpg", "2.jpg")
    whole = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(SourceError, match=r"2\.jpg: "):
        list(FrameFolder(str(tmp_path)).select([0, 1], lambda rgb: rgb))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.full((9, 9), 200 * 256 + 7, np.uint16)), 200),
        (Image.new("L", (9, 9), 90), 90),
        (Image.new("RGBA", (9, 9), (70, 70, 70, 40)), 70),
        (Image.new("P", (9, 9)), 0),
        (Image.fromarray(np.zeros((9, 9), np.float32)), None),
    ],
)
def test_images_of_other_kinds(image, expected, tmp_path):
    path = tmp_path / "1.tif"
    image.save(path)
    if expected is None:
        with pytest.raises(SourceError, match=r"1\.tif: an image with 32 bits"):
            list(FrameFolder(str(tmp_path)).select([0], lambda rgb: rgb))
        return
    ((_, pixels),) = FrameFolder(str(tmp_path)).select([0], lambda rgb: rgb)
    assert pixels.shape == (9, 9, 3)
    assert np.all(pixels == expected)


def test_photos_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise
    Image.new("RGB", (40, 30)).save(tmp_path / "1.jpg", exif=exif)
    ((_, pixels),) = FrameFolder(str(tmp_path)).select([0], lambda rgb: rgb)
    assert pixels.shape == (40, 30, 3)


def test_names_with_odd_digits(tmp_path):
    put(tmp_path, "1²2.jpg", "3.jpg")
    assert FrameFolder(str(tmp_path)).frame_count == 2


def test_an_empty_folder_is_told(tmp_path):
    assert addresses(tmp_path) == [str(tmp_path)]
    with pytest.raises(SourceError, match="no videos and no frames"):
        FrameFolder(str(tmp_path))
