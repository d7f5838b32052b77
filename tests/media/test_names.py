"""Names and texts as people, their editors and their disks write them: lists, folders, marks, Unicode forms."""

from __future__ import annotations

import codecs
import json
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from adafocus_edge.bundle.classes import read_classes
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.cli.outputs import video_names
from adafocus_edge.errors import AdaFocusError, BundleError, DataError, SourceError, UsageError
from adafocus_edge.evaluation.dataset import Example, Split, read_data, read_list
from adafocus_edge.live.events import EventRule
from adafocus_edge.media.clip import DEFAULT_FPS
from adafocus_edge.media.frame_folder import FrameFolder, unknown_rate_notes
from adafocus_edge.media.sources import Source, find_sources
from adafocus_edge.system.retention import SafeNames
from calibration.inputs import _read_split
from tests.conftest import edge, one_line_error
from training.checkpoint import read_checkpoint
from training.compose import compose_options
from training.prepare import PrepareOptions, prepare
from training.splits import read_splits, split_notes

COLOURS = {"run": (220, 30, 30), "walk": (30, 220, 30)}
NFC, NFD = (unicodedata.normalize(form, "écharpe") for form in ("NFC", "NFD"))


def video(path: Path, colour: tuple[int, int, int], frames: int = 4) -> Path:
    """Write a video of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi" if path.suffix == ".avi" else "mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def picture(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (grey,) * 3).save(path)
    return path


def put_videos(folder: Path) -> Path:
    for name, colour in COLOURS.items():
        for number in ("001", "002", "003"):
            video(folder / name / f"{number}.mp4", colour)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes whose clips have the same names."""
    return put_videos(tmp_path_factory.mktemp("same") / "V")


def listed(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def colour_of(example_path: Path, frames: bool) -> str:
    """Say what a clip shows, by Pillow or by PyAV alone."""
    if frames:
        with Image.open(sorted(example_path.glob("*.jpg"))[0]) as image:
            red, green, _ = image.convert("RGB").getpixel((20, 20))
    else:
        with av.open(str(example_path)) as container:
            red, green, _ = next(container.decode(video=0)).to_ndarray(format="rgb24")[20, 20]
    return "run" if red > green else "walk"


# -- clips of one name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", ["{0}/{1}.mp4", "{0}/{1}", "./{0}/{1}.mp4", "{0}\\{1}.mp4", "V/{0}/{1}.mp4"])
@pytest.mark.parametrize("frames", [True, False])
def test_clips_of_one_name_in_two_folders_keep_their_own_label(
    spelled: str, frames: bool, videos: Path, tmp_path: Path
) -> None:
    lines = [f"{spelled.format(name, number)},{name}" for number in ("001", "002", "003") for name in COLOURS]
    train, val = listed(tmp_path / "train.txt", *lines[:4]), listed(tmp_path / "val.txt", *lines[4:])
    options = PrepareOptions(videos, tmp_path / "out", annotations=(train, val), frames=frames, size=32)
    done = prepare(options)
    assert done.lists == {"custom_train_split.txt": 4, "custom_val_split.txt": 2}
    assert done.missing == 0
    found = []
    for name in done.lists:
        root = tmp_path / "out" / ("frames" if frames else "videos")
        classes = read_classes(tmp_path / "out" / "classInd.txt")
        for example in read_list(tmp_path / "out" / name, root, classes).examples:
            assert colour_of(example.path, frames) == classes[example.labels[0]] == example.path.parent.name
            found.append(example.path)
    assert len(set(found)) == 6


def test_a_bare_name_of_two_videos_is_an_error_that_names_both(videos: Path, tmp_path: Path) -> None:
    for name in ("001", "001.mp4"):
        path = listed(tmp_path / "list.txt", f"{name},run")
        with pytest.raises(DataError, match=r"line 1: .*run/001\.mp4 and .*walk/001\.mp4"):
            prepare(PrepareOptions(videos, tmp_path / "out", annotations=(path,)))


def test_a_bare_name_is_found_wherever_only_one_video_has_it(tmp_path: Path) -> None:
    video(tmp_path / "V" / "deep" / "a.b.mp4", COLOURS["run"])
    video(tmp_path / "V" / "a.mp4", COLOURS["walk"])
    path = listed(tmp_path / "list.txt", "a.b,run", "a,walk")
    done = prepare(PrepareOptions(tmp_path / "V", tmp_path / "out", annotations=(path,), size=32))
    lines = (tmp_path / "out" / "custom_train_split.txt").read_text().splitlines()
    assert lines == ["deep/a.b,4,0", "a,4,1"]
    assert done.missing == 0


def test_a_list_of_other_folders_finds_unique_names_and_says_so(videos: Path, tmp_path: Path) -> None:
    path = listed(tmp_path / "list.txt", "run/001.mp4,run", "jump/001.mp4,jump")
    done = prepare(PrepareOptions(videos, tmp_path / "out", annotations=(path,), size=32))
    assert (done.missing, done.lists["custom_train_split.txt"], done.notes) == (1, 1, [])
    video(tmp_path / "V" / "train" / "one.mp4", COLOURS["run"])
    path = listed(tmp_path / "list.txt", "run/one.mp4,run")
    done = prepare(PrepareOptions(tmp_path / "V", tmp_path / "out2", annotations=(path,), size=32))
    assert done.missing == 0
    assert "run/one.mp4 is" in done.notes[0]


def test_one_name_with_two_suffixes_needs_the_suffix(tmp_path: Path) -> None:
    for suffix, name in ((".avi", "walk"), (".mp4", "run")):
        video(tmp_path / "V" / "x" / f"001{suffix}", COLOURS[name])
    options = PrepareOptions(tmp_path / "V", tmp_path / "out", size=32)
    with pytest.raises(UsageError, match=r"two videos have the name x/001: x/001\.avi and x/001\.mp4"):
        prepare(options)
    path = listed(tmp_path / "list.txt", "x/001,run")
    with pytest.raises(DataError, match=r"x/001\.avi and .*x/001\.mp4"):
        prepare(PrepareOptions(tmp_path / "V", tmp_path / "out", annotations=(path,)))
    with pytest.raises(DataError, match=r"line 1: 'x/001' matches .*x/001\.avi and .*x/001\.mp4: give its suffix"):
        read_list(listed(tmp_path / "split.txt", "x/001,4,0"), tmp_path / "V", ["run"])
    csv = listed(tmp_path / "V" / "clips.csv", "video,class", "x/001,run")
    with pytest.raises(DataError, match=r"line 2: 'x/001' matches"):
        read_data(csv)
    path = listed(tmp_path / "list.txt", "x/001.mp4,run", "x/001.avi,walk")
    prepare(PrepareOptions(tmp_path / "V", tmp_path / "out", annotations=(path,), size=32))
    out = tmp_path / "out"
    for example in read_list(out / "custom_train_split.txt", out / "frames", ("run", "walk")).examples:
        assert colour_of(example.path, frames=True) == ("run", "walk")[example.labels[0]]
    assert len(list((out / "frames").rglob("image_00001.jpg"))) == 2


def test_frames_of_another_video_of_that_name_are_not_taken(tmp_path: Path) -> None:
    for suffix in (".avi", ".mp4"):
        video(tmp_path / "V" / "x" / f"001{suffix}", COLOURS["run"])
    for name, words in (("x/001.mp4", None), ("x/001.avi", r"holds the frames of x/001\.mp4, not of x/001\.avi")):
        path = listed(tmp_path / "list.txt", f"{name},run")
        options = PrepareOptions(tmp_path / "V", tmp_path / "out", annotations=(path,), size=32)
        if words is None:
            prepare(options)
        else:
            with pytest.raises(UsageError, match=words):
                prepare(options)


def test_a_video_beside_a_folder_of_its_name_has_frames_of_its_own(tmp_path: Path) -> None:
    for name in ("a.mp4", "a/b.mp4"):
        video(tmp_path / "V" / "x" / name, COLOURS["run"])
        video(tmp_path / "V" / "y" / name, COLOURS["walk"])
    prepare(PrepareOptions(tmp_path / "V", tmp_path / "out", size=32))
    assert len(list((tmp_path / "out").rglob("image_00001.jpg"))) == 4
    assert len({p.parent for p in (tmp_path / "out").rglob("image_00001.jpg")}) == 4


def test_a_clip_in_both_lists_or_with_two_labels_is_refused(videos: Path, tmp_path: Path) -> None:
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    listed(train, "run/001.mp4,run", "run/002.mp4,run")
    listed(val, "run/001,run")
    options = PrepareOptions(videos, tmp_path / "out", annotations=(train, val))
    with pytest.raises(DataError, match=r"val\.txt, line 1: .*run/001\.mp4 is here for validation.*train\.txt, line 1"):
        prepare(options)
    listed(val, "walk/001.mp4,walk", "walk/001.mp4,run")
    with pytest.raises(DataError, match=r"line 2: .*walk/001\.mp4 is 'run' here, and 'walk' in .*line 1"):
        prepare(options)
    listed(val, "walk/001.mp4,run,walk", "walk/001.mp4,run")
    with pytest.raises(DataError, match=r"is 'run' here, and 'run', 'walk' in .*line 1"):
        prepare(options)
    split = listed(tmp_path / "split.txt", "run/001,4,0", "run/001.mp4,4,1")
    with pytest.raises(DataError, match=r"line 2: .*run/001\.mp4 is 'walk' here, and 'run' in .*line 1"):
        read_list(split, videos, ("run", "walk"))
    csv = listed(tmp_path / "c.csv", "video,class", f"{videos}/run/001.mp4,run", f"{videos}/run/001.mp4,walk")
    with pytest.raises(DataError, match="line 3: .* is 'walk' here"):
        read_data(csv)
    csv = listed(tmp_path / "c.csv", "video,class", f"{videos}/run/001.mp4,run", f"{videos}/run/001.mp4,run")
    assert "lists 1 clips again" in read_data(csv).notes[0]


def test_several_lines_of_a_video_with_several_labels_are_joined(videos: Path, tmp_path: Path) -> None:
    path = listed(tmp_path / "list.txt", "run/001.mp4,run", "run/001.mp4,outdoors")
    done = prepare(PrepareOptions(videos, tmp_path / "out", dataset="fcvid", annotations=(path,), size=32))
    assert "1 videos have the classes of several lines" in done.notes[0]
    assert (tmp_path / "out" / "fcvid_train_split.txt").read_text() == "run/001,4,0,1\n"


def test_groups_of_a_bare_name_that_two_videos_have_are_refused(videos: Path, tmp_path: Path) -> None:
    groups = listed(tmp_path / "groups.csv", "video,source", "001.mp4,a")
    with pytest.raises(DataError, match=r"run/001\.mp4 and .*walk/001\.mp4"):
        prepare(PrepareOptions(videos, tmp_path / "out", groups=groups))
    groups = listed(tmp_path / "groups.csv", "video,source", "run/001.mp4,a", "run/001.mp4,b")
    with pytest.raises(DataError, match=r"line 3: .*run/001\.mp4 is of source 'b' here, and of 'a' above"):
        prepare(PrepareOptions(videos, tmp_path / "out", groups=groups))


def test_training_says_which_clips_are_on_both_sides(videos: Path, tmp_path: Path) -> None:
    listed(videos / "train.txt", "run/001,4,0", "walk/001,4,1")
    listed(videos / "val.txt", "run/002,4,0", "walk/001.mp4,4,1")
    listed(videos / "names.txt", "run", "walk")
    given = f"dataset=custom train_stage=0 data_dir={videos} train_list=train.txt val_list=val.txt classes=names.txt"
    notes = split_notes(*read_splits(compose_options(given.split()).options), 0)
    assert len(notes) == 1
    assert "1 clips to validate are in" in notes[0]
    assert notes[0].endswith("walk/001.mp4")


def test_annotated_videos_of_one_name_have_names_of_their_own() -> None:
    def names(*paths: str) -> list[str]:
        return video_names([Source(path, path) for path in paths])

    assert names("a/x.mp4", "b/y.mp4") == ["x.mp4", "y.mp4"]
    assert names("a/x.mp4", "b/x.mp4", "c/z.mp4") == ["a-x.mp4", "b-x.mp4", "z.mp4"]
    assert names("a/x.mp4", "a/x.avi") == ["a-x-mp4.mp4", "a-x-avi.mp4"]
    assert names("a/x.mp4", "b/X.mp4") == ["a-x.mp4", "b-X.mp4"]  # some disks know no case


def test_two_peers_of_one_name_are_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "last.pth.tar").touch()
    paths = [str(tmp_path / name / "run" / "last.pth.tar") for name in ("a", "b")]
    done = edge("benchmark", "--peer-checkpoint", paths[0], "--peer-checkpoint", paths[1], "-q")
    one_line_error(done, 2, *paths, "run/last.pth.tar")


def test_recordings_of_sources_in_two_unicode_forms_do_not_share_a_name() -> None:
    names = SafeNames()
    found = [names.of(name) for name in (NFC, NFD)]
    assert len({unicodedata.normalize("NFC", name) for name in found}) == 2


# -- marks and encodings -----------------------------------------------------------------------------------------------


def marked(path: Path, text: str) -> Path:
    """Write a file as Windows' editors do."""
    path.write_bytes(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode())
    return path


def test_every_text_that_a_person_writes_may_begin_with_a_mark(tmp_path: Path) -> None:
    clip = video(tmp_path / "V" / "run" / "001.mp4", COLOURS["run"])
    sources = marked(tmp_path / "a.streams", f"# cameras\nfront = {clip}\n")
    assert [(source.name, source.address) for source in find_sources([str(sources)])] == [("front", str(clip))]
    sources = marked(tmp_path / "b.streams", f"{clip}\n")
    assert find_sources([str(sources)])[0].address == str(clip)
    assert read_classes(marked(tmp_path / "classes.txt", "run\nwalk\n")) == ("run", "walk")
    split = read_list(marked(tmp_path / "split.txt", "run/001,4,0\n"), tmp_path / "V", ("run", "walk"))
    assert split.examples[0].path == clip
    csv = marked(tmp_path / "V" / "clips.csv", "video,class\nrun/001.mp4,run\n")
    assert read_data(csv).examples[0].path == clip
    picture(tmp_path / "frames" / "1.png")
    marked(tmp_path / "frames" / "fps.txt", "12.5\n")
    assert FrameFolder(str(tmp_path / "frames")).fps == 12.5
    options = {}
    for name, text in (("l.txt", "run/001.mp4,run\n"), ("m.json", "")):
        database = {"001": {"subset": "training", "annotations": [{"label": "run"}]}}
        path = marked(tmp_path / name, text or json.dumps({"database": database}))
        options[name] = PrepareOptions(tmp_path / "V", tmp_path / f"o_{name}", annotations=(path,), size=32)
        assert prepare(options[name]).lists["custom_train_split.txt"] == 1
    settings = tmp_path / "o_l.txt" / "prepare.json"
    marked(settings, settings.read_text())
    with pytest.raises(UsageError, match="was prepared with size 32"):
        prepare(PrepareOptions(tmp_path / "V", tmp_path / "o_l.txt", annotations=options["l.txt"].annotations, size=48))


def test_files_that_were_joined_keep_no_mark_inside(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"".join(codecs.BOM_UTF8 + name + b"\r\n" for name in (b"run", b"walk")))
    assert read_classes(path) == ("run", "walk")


def test_a_configuration_with_a_mark_is_read(tmp_path: Path) -> None:
    config = marked(tmp_path / "serve.toml", "quiet = true\nlabel = 1\n")
    one_line_error(edge("classify", "x.mp4", "--config", config), 2, "no option 'label'")
    config.write_bytes("quiet = true\n".encode("utf-16"))
    one_line_error(edge("classify", "x.mp4", "--config", config), 2, "serve.toml", "save it as UTF-8")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252"])
def test_other_encodings_are_told_in_a_line(encoding: str, tmp_path: Path) -> None:
    files = {}
    for name, text in (
        ("a.streams", "porté = rtsp://h/1\n"),
        ("classes.txt", "écharpe\n"),
        ("split.txt", "é,4,0\n"),
        ("clips.csv", "video,class\né.mp4,run\n"),
        ("frames/fps.txt", "25 é\n"),
        ("list.txt", "é,run\n"),
    ):
        files[name] = tmp_path / name
        files[name].parent.mkdir(exist_ok=True)
        files[name].write_bytes(text.encode(encoding))
    picture(tmp_path / "frames" / "1.png")
    (tmp_path / "V").mkdir()
    annotated = PrepareOptions(tmp_path / "V", tmp_path / "out", annotations=(files["list.txt"],))
    for name, read in (
        ("a.streams", lambda: find_sources([str(files["a.streams"])])),
        ("classes.txt", lambda: read_classes(files["classes.txt"])),
        ("split.txt", lambda: read_list(files["split.txt"], tmp_path, ["run"])),
        ("clips.csv", lambda: read_data(files["clips.csv"])),
        ("fps.txt", lambda: FrameFolder(str(tmp_path / "frames"))),
        ("list.txt", lambda: prepare(annotated)),
    ):
        with pytest.raises(AdaFocusError) as told:
            read()
        assert name in str(told.value)
        assert "save it as UTF-8" in str(told.value)
        assert "\n" not in str(told.value)


def test_a_frame_rate_that_is_none_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    assert FrameFolder(str(tmp_path)).fps == DEFAULT_FPS
    (tmp_path / "fps.txt").write_text("29,97\n")
    with pytest.raises(SourceError, match=r"fps\.txt: '29,97' is not a frame rate"):
        FrameFolder(str(tmp_path))


# -- what disks add ----------------------------------------------------------------------------------------------------


def addresses(*arguments: object) -> tuple[list[str], str]:
    left_out: list[str] = []
    found = [source.address for source in find_sources([str(argument) for argument in arguments], left_out)]
    return found, " | ".join(left_out)


@pytest.mark.parametrize("inner", ["masks", "@eaDir/image_1.png", "depth/left", "original"])
def test_a_folder_of_frames_is_a_clip_whatever_else_lies_in_it(inner: str, tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "frames" / f"image_{number}.png")
        picture(tmp_path / "frames" / inner / f"thumb_{number}.jpg")
    if inner == "original":
        video(tmp_path / "frames" / inner / "a.mp4", COLOURS["run"])
    found, left_out = addresses(tmp_path / "frames")
    assert found == [str(tmp_path / "frames")]
    assert str(tmp_path / "frames" / inner.partition("/")[0]) in left_out
    assert FrameFolder(found[0]).frame_count == 4


SERVICE = [
    "@eaDir", "@EADIR", "#recycle", "__MACOSX", ".thumbnails", "lost+found", "$RECYCLE.BIN", "System Volume Information"
]  # fmt: skip


@pytest.mark.parametrize("name", SERVICE)
def test_folders_of_disks_and_systems_are_skipped_unless_they_are_named(name: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for label in ("run", "walk"):
        video(root / label / "a.mp4", COLOURS[label])
        (root / label / "._a.mp4").write_bytes(b"AppleDouble")
        video(root / label / name / "old.mp4", COLOURS[label])
        picture(root / label / "frames" / "1.png")
        picture(root / label / "frames" / name / "1.png")
    video(root / name / "gone.mp4", COLOURS["run"])
    mine = [str(root / label / clip) for label in ("run", "walk") for clip in ("a.mp4", "frames")]
    assert addresses(root)[0] == mine
    assert addresses(root / "*")[0] == mine
    assert addresses(root / name)[0] == [str(root / name / "gone.mp4")]
    split = read_data(root)
    assert split.classes == ("run", "walk")
    assert [str(example.path) for example in split.examples] == mine
    path = listed(tmp_path / "list.txt", "run/a,run", "walk/a,walk", "old,run")
    done = prepare(PrepareOptions(root, tmp_path / "out", annotations=(path,), size=32))
    assert (sum(done.lists.values()), done.missing) == (2, 1)
    if not name.startswith("."):
        assert name in " ".join(done.notes)
        assert name in " ".join(split.notes)


def test_videos_without_labels_beside_a_service_folder_are_still_without_labels(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4", COLOURS["run"])
    video(tmp_path / "@eaDir" / "b.mp4", COLOURS["run"])
    split, labelled = _read_split(tmp_path, read_bundle(default_bundle()), None)
    assert not labelled
    assert [example.path for example in split.examples] == [tmp_path / "a.mp4"]
    assert "@eaDir" in split.notes[0]


def test_pictures_beside_videos_and_in_class_folders_are_left_out_and_said(tmp_path: Path) -> None:
    for label in ("run", "walk"):
        for number in range(3):
            picture(tmp_path / label / f"still_{number}.png")
            picture(tmp_path / label / "clip" / f"{number}.png")
    video(tmp_path / "stray.mp4", COLOURS["run"])
    split = read_data(tmp_path)
    assert [example.name for example in split.examples] == ["run/clip", "walk/clip"]
    assert "stray.mp4 (not in the folder of a class)" in split.notes[0]
    assert "run/still_0.png (1 of 3 images" in split.notes[0]
    video(tmp_path / "run" / "a.mp4", COLOURS["run"])
    found, left_out = addresses(tmp_path / "run")
    assert found == [str(tmp_path / "run" / name) for name in ("a.mp4", "clip")]
    assert "still_0.png" in left_out


def test_frames_that_lie_in_a_class_folder_itself_are_named_in_the_error(tmp_path: Path) -> None:
    picture(tmp_path / "run" / "1.png")
    with pytest.raises(DataError, match=r"no clips in it \(skipped: .*run/1\.png"):
        read_data(tmp_path)


def test_folders_of_frames_are_no_videos_to_prepare_and_said(tmp_path: Path) -> None:
    for clip in ("a", "b"):
        video(tmp_path / "V" / "run" / f"{clip}.mp4", COLOURS["run"])
    picture(tmp_path / "V" / "run" / "c" / "1.png")
    done = prepare(PrepareOptions(tmp_path / "V", tmp_path / "out", size=32))
    assert sum(done.lists.values()) == 2
    assert "skipped: 1 folders of frames, such as " in done.notes[0]


def test_a_cover_does_not_hide_clips_of_frames(tmp_path: Path) -> None:
    picture(tmp_path / "cover.jpg")
    for name in ("one", "two"):
        picture(tmp_path / name / "1.png")
    assert addresses(tmp_path)[0] == [str(tmp_path / name) for name in ("one", "two")]


def test_what_is_left_out_is_one_line_on_stderr(tmp_path: Path) -> None:
    for number in range(4):
        for name in ("", "masks", "depth", "a", "b"):
            picture(tmp_path / "frames" / name / f"{number}.png", 20 * number)
    done = edge("classify", tmp_path / "frames", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["source"] == str(tmp_path / "frames")
    (line,) = (line for line in done.stderr.splitlines() if "skipped: " in line)
    assert line.endswith("and 1 more")
    assert "skipped: " not in edge("classify", tmp_path / "frames", "--json", "--quiet").stderr


@pytest.mark.parametrize(
    "names",
    [
        ("1614863201.05", "1614863201.1", "1614863201.25", "1614863201.5", "1614863201.75", "1614863202.0"),
        ("9.5", "10", "10.25", "10.3"),
        ("cam1_0.9", "cam1_0.95", "cam1_1.05", "cam1_1.1"),
        ("0,05", "0,1", "0,25"),
        ("1.1", "1.2", "1.10", "1.11", "1.110"),  # two numbers: 1.1 and 1.10 would be one
        ("image_1", "image_2.5", "image_10"),
        ("a_1.05", "a_1.5", "b_1.1"),
        ("2024.01.05", "2024.01.25", "2024.02.1"),
    ],
)
def test_frames_named_by_time_stamps_are_in_the_order_of_time(names: tuple[str, ...], tmp_path: Path) -> None:
    for place in np.random.default_rng(3).permutation(len(names)):
        picture(tmp_path / f"{names[place]}.png", 30 * int(place))
    (tmp_path / "fps.txt").write_text("8\n")
    seen = [int(pixels[0, 0, 0]) for _, pixels in FrameFolder(str(tmp_path)).frames()]
    assert seen == [30 * place for place in range(len(names))]


def test_unix_times_in_names_are_the_times_of_frames(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"cam1_{1614863201 + number / 60:.4f}.png")
    clip = FrameFolder(str(tmp_path))
    assert clip.time_s(4) == pytest.approx(4 / 60, abs=1e-4)
    assert clip.duration_s == pytest.approx(5 / 60, abs=1e-4)
    assert clip.fps == pytest.approx(60, rel=1e-2)
    assert not clip.is_constant_rate
    (tmp_path / "fps.txt").write_text("30\n")
    assert (FrameFolder(str(tmp_path)).fps, FrameFolder(str(tmp_path)).time_s(4)) == (30, None)


@pytest.mark.parametrize(
    "names", [("1.1", "1.2"), ("image_1", "image_2"), ("1614863201.1",), ("1614863201", "1614863202")]
)
def test_other_names_are_no_times(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        picture(tmp_path / f"{name}.png")
    clip = FrameFolder(str(tmp_path))
    assert (clip.time_s(0), clip.fps, clip.duration_s) == (None, DEFAULT_FPS, None)


def test_a_rate_that_is_not_known_is_noted_where_a_model_needs_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        for number in range(2):
            stem = f"{1614863201 + number / 60:.4f}" if name == "e" else f"image_{number}"
            picture(tmp_path / name / f"{stem}.png")
    (tmp_path / "b" / "fps.txt").write_text("60\n")
    (tmp_path / "c" / "times.txt").write_text("0\n0.1\n")
    (tmp_path / "d" / "fps.txt").write_text("0\n")
    (tmp_path / "file.mp4").write_bytes(b"")
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "gone"]
    note = "no fps.txt with the frame rate: 25 frames per second assumed, and this model sees motion"
    assert unknown_rate_notes(paths, 0.1) == [f"{tmp_path / 'a'} (and 1 more): {note}"]
    assert unknown_rate_notes(paths, 0) == unknown_rate_notes(paths[1:3], 0.1) == []
    split = Split((Example("a", tmp_path / "a", (0,)),), ("x", "y"), "here")
    assert split_notes(split, split, 0.1) == [f"{tmp_path / 'a'}: {note}"]


# -- one class in two Unicode forms ------------------------------------------------------------------------------------


def test_class_names_in_two_unicode_forms_are_one(tmp_path: Path) -> None:
    assert NFC != NFD
    for folder, clip in ((NFD, "a"), (NFC, "b"), ("run", "c")):
        video(tmp_path / "data" / folder / f"{clip}.mp4", COLOURS["run"])
    split = read_data(tmp_path / "data")
    assert set(split.classes) == {NFC, "run"}
    found = {example.path.stem: split.classes[example.labels[0]] for example in split.examples}
    assert found == {"a": NFC, "b": NFC, "c": "run"}
    for form in (NFC, NFD):
        classes = read_classes(listed(tmp_path / "classes.txt", "run", form))
        assert classes == ("run", NFC)
        assert read_data(tmp_path / "data", ("run", form)).classes == classes
        csv = listed(tmp_path / "c.csv", "video,class", f"a.mp4,{NFD}", f"b.mp4,{NFC}")
        assert [example.labels for example in read_data(csv, ("run", form)).examples] == [(1,), (1,)]
        path = listed(tmp_path / "split.txt", f"a,4,{NFD}", f"b,4,{NFC}")
        assert [example.labels for example in read_list(path, tmp_path, ("run", form)).examples] == [(1,), (1,)]
        assert EventRule.parse(f"{form}=0.5,for=1").label == NFC
    assert read_data(csv).classes == (NFC,)
    torch.save({"model_state_dict": {"x": torch.zeros(1)}, "class_names": ["run", NFD]}, tmp_path / "c.pth.tar")
    assert read_checkpoint(tmp_path / "c.pth.tar").classes == ("run", NFC)


def test_one_class_twice_in_a_list_is_refused_by_name(tmp_path: Path) -> None:
    path = listed(tmp_path / "classes.txt", NFC, "run", NFD)
    with pytest.raises(BundleError, match=f"lines 1 and 3 both name the class '{NFC}'"):
        read_classes(path)
    (tmp_path / "data" / "run").mkdir(parents=True)
    with pytest.raises(DataError, match="class names: entries 1 and 2 both name the class 'run'"):
        read_data(tmp_path / "data", ("run", "run"))


def test_prepare_joins_two_unicode_forms_of_a_class_and_of_a_file(tmp_path: Path) -> None:
    for folder, clip in ((NFD, "a"), (NFC, "b"), (NFC, "c"), ("run", "d"), ("run", NFD)):
        video(tmp_path / "V" / folder / f"{clip}.mp4", COLOURS["run"])
    done = prepare(PrepareOptions(tmp_path / "V", tmp_path / "own", size=32))
    assert (done.classes, sum(done.lists.values())) == (2, 5)
    assert (tmp_path / "own" / "classInd.txt").read_text(encoding="utf-8") == f"run\n{NFC}\n"
    path = listed(tmp_path / "list.txt", f"{NFC}/b,{NFD}", f"run/{NFC}.mp4,run")
    listed(tmp_path / "out.txt", "run", NFD)
    (tmp_path / "out").mkdir()
    listed(tmp_path / "out" / "classInd.txt", "run", NFD)
    prepare(PrepareOptions(tmp_path / "V", tmp_path / "out", annotations=(path,), size=32))
    split = read_list(tmp_path / "out" / "custom_train_split.txt", tmp_path / "out" / "frames", ("run", NFC))
    assert [example.labels for example in split.examples] == [(1,), (0,)]
    assert all(example.open_clip().frame_count == 4 for example in split.examples)
    # Named in one form, there in the other.
    path = listed(tmp_path / "split.txt", f"run/{NFC},4,0", f"run/{NFC}.mp4,4,0")
    assert {e.path for e in read_list(path, tmp_path / "V", ("run",)).examples} == {tmp_path / "V/run" / f"{NFD}.mp4"}
