"""The archive of events: what is kept of each, what a crash leaves, what is deleted, and what people say of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from adafocus_edge.errors import AdaFocusError, DataError, UsageError
from adafocus_edge.live.event_store import INDEX, EventStore, Filter, StoredEvent
from adafocus_edge.live.messages import Event
from adafocus_edge.live.sinks.event_clips import EventClips
from tests.conftest import ROOT, edge, one_line_error
from tests.support.live_parts import SPEC, WALL_S, live_frame, notice, until
from training.judged_events import judged_clips

FIGHTS = ROOT / "tests" / "fights"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    made = EventStore(tmp_path / "events")
    yield made
    made.close()


def stored(number: int, **more: object) -> StoredEvent:
    made = StoredEvent(f"k{number}", "yard", "fight", WALL_S + number, WALL_S + number + 1, 0.5 + number / 100)
    return replace(made, **more)  # type: ignore[arg-type]


# -- the index ---------------------------------------------------------------------------------------------------------


def test_events_are_found_by_what_they_are(store: EventStore) -> None:
    for number in range(20):
        store.add(stored(number, source="gate" if number % 2 else "yard", label="fall" if number > 15 else "fight"))
    events, total = store.find(Filter(), 8)
    assert [one.key for one in events] == [f"k{number}" for number in range(19, 11, -1)]
    assert total == 20
    older, total = store.find(Filter(), 8, before=events[-1].key)
    assert [one.key for one in older] == [f"k{number}" for number in range(11, 3, -1)]
    assert total == 20
    assert [one.key for one in store.find(Filter(source="gate", label="fall"), 9)[0]] == ["k19", "k17"]
    assert [one.key for one in store.find(Filter(since=WALL_S + 3, until=WALL_S + 4), 9)[0]] == ["k4", "k3"]
    assert store.find(Filter(min_peak=0.675), 9)[1] == 2
    assert store.names() == (["gate", "yard"], ["fall", "fight"])
    # Another process sees it, and what it marks.
    other = EventStore(store.folder)
    assert other.mark("k3", "wrong", "no_fight") == replace(stored(3), source="gate", mark="wrong", correct="no_fight",
                                                            marked=other.get("k3").marked)  # type: ignore[union-attr]  # fmt: skip
    other.close()
    assert [one.key for one in store.find(Filter(mark="any"), 9)[0]] == ["k3"]
    assert store.find(Filter(mark="none"), 99)[1] == 19
    assert store.find(Filter(mark="wrong"), 9)[1] == 1
    assert store.mark("k3", None) is not None
    assert store.find(Filter(mark="any"), 9)[1] == 0
    assert store.mark("nosuch", "right") is None


def test_old_events_go_first_and_marked_ones_last(store: EventStore) -> None:
    for number in range(10):
        clip, picture = store.path(f"k{number}.mp4"), store.path(f"k{number}.jpg")
        clip.write_bytes(b"x" * 90)
        picture.write_bytes(b"x" * 10)
        store.add(stored(number, clip=clip.name, picture=picture.name, bytes=100))
    store.mark("k1", "right")
    store.update("k0", ended=None)  # it still lasts
    assert store.delete_old(None, 500) == 5
    kept = {one.key for one in store.find(Filter(), 99)[0]}
    assert kept == {"k0", "k1", "k7", "k8", "k9"}
    assert {path.stem for path in store.folder.glob("*.mp4")} == {"k0", "k1", "k7", "k8", "k9"}
    assert store.delete_old(None, 500) == 0
    assert store.delete_old(3.5, None, now=WALL_S + 11) == 0  # this run has seen them begin, just now
    later = EventStore(store.folder)
    assert later.delete_old(3.5, None, now=WALL_S + 11) == 2  # k1 and k7
    later.close()
    assert {one.key for one in store.find(Filter(), 99)[0]} == {"k0", "k8", "k9"}
    assert store.delete("k8")
    assert not store.delete("k8")
    assert not store.path("k8.jpg").exists()


def test_a_folder_that_is_no_archive_of_this_version_is_refused(store: EventStore, tmp_path: Path) -> None:
    store.close()
    import sqlite3

    index = sqlite3.connect(store.folder / INDEX)
    index.execute("PRAGMA user_version = 9")
    index.close()
    with pytest.raises(UsageError, match="the archive of a newer version"):
        EventStore(store.folder)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / INDEX).write_bytes(b"not a database at all" * 99)
    with pytest.raises(AdaFocusError, match=r"events\.sqlite: the index of events cannot be used"):
        EventStore(tmp_path / "broken")
    given = ("classify", FIGHTS, "--realtime", "--events", tmp_path / "broken", "-q")
    one_line_error(edge(*given, "--event", "fight"), 1, "the index of events cannot be used")
    one_line_error(edge(*given), 2, "--events: needs --event, which defines the events to keep")
    one_line_error(edge("classify", FIGHTS, "--realtime", "--pre-roll", 3, "-q"), 2, "--pre-roll: needs --events")


# -- clips -------------------------------------------------------------------------------------------------------------


def told(kind: str, frame_s: float, start_s: float, end_s: float | None = None, number: int = 1) -> Event:
    frame = live_frame("camera 0", round(frame_s * 20), frame_s)
    place, key = (64, 64, 96), f"key-{number}"
    wall_s = WALL_S + frame_s
    return Event("camera 0", kind, number, "juggling", start_s, end_s, 0.9, wall_s, frame, place, key)  # type: ignore[arg-type]


def brightness_at(path: Path) -> list[tuple[float, float]]:
    """Time and mean brightness of every frame."""
    with av.open(str(path)) as container:
        return [(float(f.time), float(f.to_ndarray(format="gray").mean())) for f in container.decode(video=0)]


def test_a_clip_begins_before_its_event_and_ends_after_it(store: EventStore) -> None:
    """The frames' brightness is their time, so the clip says what it shows."""
    reported: list[str] = []
    sink = EventClips(store, SPEC, reported.append, window_s=2.0, pre_s=3.0, post_s=2.0, waiting=10_000)
    for index in range(600):  # 20 frames per second
        time_s = index / 20
        shade = round(time_s * 6)
        sink.enqueue(live_frame("camera 0", index, time_s, to_rgb=lambda s=shade: np.full((480, 640, 3), s, np.uint8)))
        if index == 300:
            sink.enqueue(told("start", 15.0, 14.5))
        if index in (200, 320):  # a note, which ends no video
            sink.enqueue(notice("changed", text="decoding is too slow here"))
        if index == 360:
            sink.enqueue(told("end", 18.0, 14.5, 17.5))
    until(lambda: sink.waiting == 0)
    sink.close()
    assert (reported, sink.failed, sink.dropped) == ([], 0, 0)
    event = store.get("key-1")
    assert event is not None
    assert event.clip is not None
    assert event.started == pytest.approx(WALL_S + 14.5)
    assert event.ended == pytest.approx(WALL_S + 17.5)
    assert not event.cut
    shown = brightness_at(store.path(event.clip))
    first_s, last_s = (round(shade) / 6 for _, shade in (shown[0], shown[-1]))
    # From 2 + 3 s before the event to 2 s after it, to the second; 10 frames per second.
    assert 8.0 <= first_s <= 9.6
    assert 19.3 <= last_s <= 21.2
    assert shown[0][0] == 0
    assert event.clip_s == pytest.approx(shown[-1][0], abs=0.11)
    assert event.clip_from == pytest.approx(WALL_S + first_s, abs=0.2)
    assert len(shown) == pytest.approx(10 * (last_s - first_s), abs=3)
    for moment, shade in shown:
        assert shade / 6 == pytest.approx(first_s + moment, abs=0.4)
    assert event.picture is not None
    with Image.open(store.path(event.picture)) as picture:
        assert picture.size == (640, 480)
    assert event.bytes == store.path(event.clip).stat().st_size + store.path(event.picture).stat().st_size


def test_an_event_that_outlives_its_source_or_its_run_is_cut(store: EventStore) -> None:
    sink = EventClips(store, SPEC, lambda _: None, window_s=1.0, waiting=10_000)
    for index in range(100):
        sink.enqueue(live_frame("camera 0", index, index / 20))
        if index == 80:
            sink.enqueue(told("start", 4.0, 3.5))
    sink.close(60)
    event = store.get("key-1")
    assert event is not None
    assert event.cut
    assert event.clip is not None
    assert len(brightness_at(store.path(event.clip))) >= 40


def test_no_event_is_lost_where_frames_are(store: EventStore) -> None:
    def slow() -> np.ndarray:
        time.sleep(0.02)
        return np.zeros((48, 64, 3), np.uint8)

    sink = EventClips(store, SPEC, lambda _: None, window_s=1.0, waiting=2)
    for index in range(200):
        sink.enqueue(live_frame("camera 0", index, index / 10, to_rgb=slow))
        if index % 20 == 10:
            number = index // 20 + 1
            sink.enqueue(told("start", index / 10, index / 10, number=number))
            sink.enqueue(told("end", index / 10 + 0.5, index / 10, index / 10 + 0.4, number=number))
    sink.close(60)
    assert sink.dropped > 50
    events, total = store.find(Filter(), 99)
    assert total == 10
    assert not any(one.cut for one in events)


def test_a_rule_that_waits_has_its_clip_from_the_beginning(store: EventStore) -> None:
    sink = EventClips(store, SPEC, lambda _: None, window_s=2.0, lag_s=20.0, pre_s=3.0, waiting=10_000)
    for index in range(700):
        sink.enqueue(live_frame("camera 0", index, index / 20, to_rgb=lambda: np.zeros((48, 64, 3), np.uint8)))
    sink.enqueue(told("start", 34.9, 15.0))
    sink.close(60)
    event = store.get("key-1")
    assert event is not None
    assert event.clip_from is not None
    assert 8.5 <= event.clip_from - WALL_S <= 10.1


def test_two_runs_do_not_write_to_one_archive(store: EventStore) -> None:
    other = EventStore(store.folder)
    store.add(stored(1, ended=None, clip_from=WALL_S - 8.0, clip_s=12.0))
    with store.writing():
        event = store.get("k1")
        assert event is not None
        assert (event.ended, event.cut) == (WALL_S + 4.0, True)
        with (
            pytest.raises(UsageError, match="another run writes to this archive: give another --events"),
            other.writing(),
        ):
            pass
    with other.writing():
        pass
    other.close()


def test_clips_of_no_event_are_kept_and_told(store: EventStore, caplog: pytest.LogCaptureFixture) -> None:
    """They are all that is left where the index was lost, or is an older one."""
    keys = [f"20231114-22132{number}-yard-fight-a1b2c3-{number}" for number in (1, 2)]
    names = [f"{key}.{kind}" for key in keys for kind in ("mp4", "jpg")]
    for name in (*names, "holiday.mp4"):
        store.path(name).write_bytes(b"the only copy")
    store.add(stored(1, key=keys[0], clip=names[0], picture=names[1]))
    with store.writing():
        pass
    assert [one.getMessage() for one in caplog.records] == [
        f"{store.folder}: 2 clips and pictures are of no event in events.sqlite: they are kept"
    ]
    store.close()
    for path in store.folder.glob(f"{INDEX}*"):
        path.unlink()
    fresh = EventStore(store.folder)
    with fresh.writing():
        fresh.delete_old(1.0, 1.0)
    fresh.close()
    assert {path.name for path in store.folder.iterdir()} >= {*names, "holiday.mp4"}


def test_a_deletion_that_was_interrupted_is_finished_by_the_next_run(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = store.path("20231114-221321-yard-fight-a1b2c3-1.mp4")
    clip.write_bytes(b"to be deleted")
    store.add(stored(1, clip=clip.name))

    def killed(*_: object, **__: object) -> None:
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        assert store.delete("k1")
    assert clip.exists()
    with store.writing():
        assert not clip.exists()


def test_files_with_which_a_killed_run_was_not_done(store: EventStore) -> None:
    store.add(stored(1, ended=None, clip="k1.mp4"))  # announced, and never written
    store.path("k1.jpg").write_bytes(b"written, and not yet named")
    with store.writing():
        event = store.get("k1")
    assert event is not None
    assert (event.clip, event.picture) == (None, "k1.jpg")


def test_a_clock_that_is_set_changes_neither_length_nor_age(store: EventStore) -> None:
    sink = EventClips(store, SPEC, lambda _: None, window_s=1.0, keep_days=30)
    sink.enqueue(told("start", 3.0, 2.5))
    sink.enqueue(replace(told("end", 6.0, 2.5, 5.25), wall_s=WALL_S - 3600.0))
    sink.close(60)
    event = store.get("key-1")
    assert event is not None
    assert event.ended is not None
    assert event.ended - event.started == pytest.approx(2.75)
    # It is dated 2023, and this run has just seen it: the clock was wrong then.
    assert store.delete_old(30 * 86400.0, None) == 0
    assert store.get("key-1") is not None


def test_two_events_never_share_a_key(store: EventStore) -> None:
    store.add(stored(1, label="fight"))
    store.mark("k1", "right")
    with pytest.raises(AdaFocusError, match="UNIQUE"):
        store.add(stored(1, label="fall"))
    kept = store.get("k1")
    assert kept is not None
    assert (kept.label, kept.mark) == ("fight", "right")


def test_names_of_any_bytes_are_kept(store: EventStore) -> None:
    store.set_classes(("fight", "a\udcffb"))
    store.add(stored(1, source="yard \udcff"))
    assert store.find(Filter(source="yard \udcff"), 9)[1] == 1
    assert store.names()[0] == ["yard \\udcff"]


def test_what_cannot_be_written_is_reported_and_the_run_goes_on(store: EventStore) -> None:
    reported: list[str] = []
    sink = EventClips(store, SPEC, reported.append, window_s=1.0, waiting=10_000)
    store.path("key-1.mp4").mkdir()
    for index in range(60):
        sink.enqueue(live_frame("camera 0", index, index / 20))
    sink.enqueue(told("start", 3.0, 2.5))
    sink.enqueue(told("start", 3.0, 2.5, number=2))
    sink.close(60)
    assert [line.partition("events cannot be written")[2] for line in reported] == [" (File exists)"]
    assert sink.failed == 1
    one, two = store.get("key-1"), store.get("key-2")
    assert one is not None
    assert one.clip is None
    assert two is not None
    assert two.clip is not None


def test_kill_9_loses_no_event(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    command = [
        sys.executable, "-m", "adafocus_edge", "classify", f"yard={FIGHTS / 'fight' / 'fi013.mp4'}", "--realtime",
        "--loop", "--glimpse-fps", "8", "--event", "fight=0.3", "--events", folder, "--json", "-q",
    ]  # fmt: skip
    run = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert run.stdout is not None
        for line in run.stdout:
            if '"event": "start"' in line:
                break
        assert '"clip": "/api/archive/' in line
        store = EventStore(folder)
        until(lambda: any((one.clip_s or 0) > 2 for one in store.find(Filter(), 1)[0]), 60)
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    (event,), total = store.find(Filter(), 9)
    assert total == 1
    assert event.clip is not None
    assert event.picture is not None
    frames = brightness_at(store.path(event.clip))
    assert frames[-1][0] == pytest.approx(event.clip_s, abs=1.2)
    assert store.close_abandoned() in (0, 1)
    again = store.get(event.key)
    assert again is not None
    assert again.ended is not None
    # The next run goes on with the same archive.
    done = edge(*command[3:-2], "--duration", 6, "-q")
    assert done.returncode == 0, done.stderr
    assert store.find(Filter(), 9)[1] > 1
    assert all(one.ended is not None for one in store.find(Filter(), 9)[0])
    store.close()


# -- what people say ---------------------------------------------------------------------------------------------------


def test_marked_clips_become_training_data(store: EventStore, tmp_path: Path) -> None:
    store.set_classes(("fight", "no_fight"))
    videos = sorted(FIGHTS.glob("*/*.mp4"))
    for number, video in enumerate(videos):
        path = store.path(f"k{number}.mp4")
        path.write_bytes(video.read_bytes())
        day = 86400 * (number % 4)
        store.add(stored(number, started=WALL_S + day, ended=WALL_S + day + 2, clip=path.name, clip_s=2.0))
        store.mark(f"k{number}", "right" if video.parent.name == "fight" else "wrong")
    store.add(stored(90))
    store.mark("k90", "right")  # without a clip
    store.add(stored(91, clip="k1.mp4", clip_s=2.0))  # not marked
    judged = judged_clips(store.folder)
    assert {clip.path.name: clip.label for clip in judged.clips} == {
        f"k{number}.mp4": video.parent.name for number, video in enumerate(videos)
    }
    assert judged.left_out == 0  # the one without a clip is not offered for judging either
    out = tmp_path / "data"
    done = edge("prepare", store.folder, "-o", out, "--from-events", "--no-frames", "--val-share", 0.3, "--json")
    assert done.returncode == 0, done.stderr
    lists = {path.name: path.read_text() for path in out.glob("*.txt")}
    names = [line for text in lists.values() for line in text.splitlines() if line.startswith("k")]
    assert len(names) == len(videos)
    assert (out / "videos").resolve() == store.folder.resolve()
    one_line_error(edge("prepare", tmp_path, "-o", out, "--from-events"), 2, "no archive of events")
    empty = EventStore(tmp_path / "empty")
    empty.close()
    one_line_error(edge("prepare", empty.folder, "-o", out, "--from-events"), 1, "no event with a clip is marked")


def test_a_marked_clip_is_taken_when_it_is_finished_whatever_the_clock_says(store: EventStore) -> None:
    store.set_classes(("fight", "no_fight"))
    video = next(FIGHTS.glob("fight/*.mp4")).read_bytes()
    for number, after_s in enumerate((-1.0, 86400.0), 1):  # just now; by a clock that was a day ahead
        path = store.path(f"k{number}.mp4")
        path.write_bytes(video)
        now = time.time() + after_s
        store.add(stored(number, started=now - 3, ended=now, clip=path.name, clip_s=2.0))
    store.mark("k1", "right")
    with pytest.raises(DataError, match="the clips of the events that are marked are not finished: wait"):
        judged_clips(store.folder)
    store.mark("k2", "right")
    assert [clip.path.name for clip in judged_clips(store.folder).clips] == ["k2.mp4"]


def test_the_class_of_a_marked_event() -> None:
    two, three = ("fight", "no_fight"), ("fight", "fall", "walk")
    right, wrong = stored(0, mark="right"), stored(0, mark="wrong")
    assert right.label_of(two) == right.label_of(three) == "fight"
    assert wrong.label_of(two) == "no_fight"
    assert wrong.label_of(three) is None
    assert replace(wrong, correct="walk").label_of(three) == "walk"
    assert stored(0).label_of(two) is None


def test_old_events_are_deleted_while_a_run_goes_on(store: EventStore) -> None:
    earlier = EventStore(store.folder)
    earlier.add(stored(1, started=time.time() - 3 * 86400, ended=time.time() - 3 * 86400 + 1))
    earlier.close()
    sink = EventClips(store, SPEC, lambda _: None, window_s=1.0, keep_days=2)
    sink.enqueue(live_frame("camera 0", 1, 0.0))
    until(lambda: store.get("k1") is None)
    sink.close()
    with pytest.raises(UsageError, match="keep_gb of events must be more than 0"):
        EventClips(store, SPEC, lambda _: None, window_s=1.0, keep_gb=0)
