"""Labelled clips: every form of --data, and what is said of each kind of bad line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adafocus_edge.errors import DataError, SourceError
from adafocus_edge.evaluation.dataset import read_data, read_list
from tests.conftest import CLIPS, ROOT

CLASSES = ("cartwheel", "juggling", "wave")
FRAMES = ROOT / "export" / "frames"


def test_official_lists_with_commas_hold_up_to_three_labels(tmp_path: Path) -> None:
    shutil.copytree(FRAMES, tmp_path / "v_a")
    (tmp_path / "list.txt").write_text("v_a,16,2,0,2\nv_b,2,1\n\nv_c,300,1\n")
    split = read_list(tmp_path / "list.txt", tmp_path, CLASSES)
    assert [(e.name, e.labels, e.frames) for e in split.examples] == [("v_a", (0, 2), 16), ("v_c", (1,), 300)]
    assert split.left_out == 1
    assert split.notes == (f"{tmp_path / 'list.txt'}: skipped clips of fewer than 3 frames: 1, such as v_b",)
    assert split.examples[0].open_clip().frame_count == 16
    with pytest.raises(SourceError, match="v_c: no such file"):
        split.examples[1].open_clip()
    (tmp_path / "v_a" / "image_00003.jpg").unlink()
    clip = split.examples[0].open_clip()
    assert clip.frame_count == 16  # the later ones keep their numbers
    with pytest.raises(SourceError, match="image_00003.jpg: no such file"):
        list(clip.select([1, 2], lambda pixels: pixels))


def test_lists_with_spaces_take_the_last_two_fields(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("playing harp/a b_000001 300 1\n")
    (found,) = read_list(tmp_path / "list.txt", tmp_path, CLASSES, " ").examples
    assert (found.name, found.frames, found.labels) == ("playing harp/a b_000001", 300, (1,))


@pytest.mark.parametrize("ids", ["1 0", "1 0 2"])
def test_several_classes_after_spaces_are_no_part_of_the_path(tmp_path: Path, ids: str) -> None:
    (tmp_path / "juggling").mkdir()
    (tmp_path / "juggling" / "a b 7.mp4").touch()
    path = tmp_path / "list.txt"
    path.write_text("juggling/a b 7.mp4 60 1\njuggling/a b 7 60 1\n")  # without suffix, the path ends in a number
    assert {one.path for one in read_list(path, tmp_path, CLASSES).examples} == {tmp_path / "juggling" / "a b 7.mp4"}
    path.write_text(f"juggling/a b 7.mp4 60 {ids}\n")
    with pytest.raises(DataError, match=f"list.txt, line 1: .* 60 {ids}' has several classes: put commas between"):
        read_list(path, tmp_path, CLASSES)


def test_a_list_may_name_videos_with_or_without_suffix_and_classes_by_name(tmp_path: Path) -> None:
    clip = CLIPS / "v_SoccerJuggling_g23_c01.avi"
    (tmp_path / "list.txt").write_text(f"{clip.stem},400,1\n{clip.name},400,juggling\n")
    split = read_list(tmp_path / "list.txt", CLIPS, CLASSES)
    assert {example.path for example in split.examples} == {clip}
    assert {example.labels for example in split.examples} == {(1,)}
    # The video says how many frames it has, not the list.
    assert split.examples[0].open_clip().frame_count != 400


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a,16", "line 2: 'a,16' is not `path,frames,class`"),
        ("a,many,1", "line 2: 'many' is not a number of frames"),
        ("a,16,3", "line 2: class id 3 is out of range: there are 3 classes, from 0"),
        ("a,16,-1", "line 2: '-1' is neither a class id"),
        ("a,16,0,1,2,0", "line 2: more than 3 classes"),
        (",16,0", "line 2: ',16,0' is not"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"fine,16,0\n{line}\n")
    with pytest.raises(DataError) as told:
        read_list(path, tmp_path, CLASSES)
    assert str(told.value).startswith(f"{path}, ")
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("content", "words"), [("", "no clips in it"), ("a,2,0\n", "1 have fewer than 3 frames"), (b"\xff\xfe", "UTF-8")]
)
def test_an_empty_or_foreign_list_is_told(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words):
        read_list(path, tmp_path, CLASSES)


def test_a_folder_per_class(tmp_path: Path) -> None:
    for name in ("wave", "juggling"):
        (tmp_path / name).mkdir()
    shutil.copy(CLIPS / "v_SoccerJuggling_g23_c01.avi", tmp_path / "juggling")
    shutil.copytree(FRAMES, tmp_path / "wave" / "one")
    split = read_data(tmp_path)
    assert split.classes == ("juggling", "wave")
    assert [(example.name, example.labels) for example in split.examples] == [
        ("juggling/v_SoccerJuggling_g23_c01.avi", (0,)),
        ("wave/one", (1,)),
    ]
    assert read_data(tmp_path, CLASSES).examples[1].labels == (2,)
    with pytest.raises(DataError, match="unknown class 'juggling'"):
        read_data(tmp_path, ("wave",))


def test_a_folder_and_a_csv_number_their_classes_alike(tmp_path: Path) -> None:
    for name in ("c1", "c2", "c10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    (tmp_path / "c.csv").write_text("video,class\nc1/a.mp4,c1\nc2/a.mp4,c2\nc10/a.mp4,c10\n")
    folder, listed = read_data(tmp_path), read_data(tmp_path / "c.csv")
    assert folder.classes == listed.classes == ("c1", "c10", "c2")
    assert {one.name: one.labels for one in folder.examples} == {one.name: one.labels for one in listed.examples}


def test_a_csv_looks_beside_itself_and_in_videos(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "c.csv").write_text("video,source,class\na.mp4,s,wave\nb.mp4,s,juggling\n")
    split = read_data(tmp_path / "c.csv", CLASSES)
    assert [example.path for example in split.examples] == [tmp_path / "videos" / "a.mp4", tmp_path / "b.mp4"]
    assert [example.labels for example in split.examples] == [(2,), (1,)]
    (tmp_path / "c.csv").write_text("video,class\na.mp4,wave\nb.mp4,dancing\n")
    with pytest.raises(DataError, match="line 3: unknown class 'dancing'"):
        read_data(tmp_path / "c.csv", CLASSES)
    (tmp_path / "c.csv").write_text("file,label\na.mp4,wave\n")
    with pytest.raises(DataError, match="needs the columns `video` and `class`"):
        read_data(tmp_path / "c.csv", CLASSES)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder, CSV or split list"):
        read_data(tmp_path / "nothing")
    (tmp_path / "list.txt").write_text("a,16,0\n")
    with pytest.raises(DataError, match="--frames DIR"):
        read_data(tmp_path / "list.txt", CLASSES)
