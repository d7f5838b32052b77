"""Sources and event rules that change while a run goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from adafocus_edge.bundle.store import default_bundle
from adafocus_edge.errors import UsageError
from adafocus_edge.live.capture import Capture
from adafocus_edge.live.events import EventRule
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Drops, Event, LiveFragment, LiveFrame, Notice, ProvisionalResult, Rules, Window
from adafocus_edge.live.meters import Counters
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.live.sinks.copier import CopyRecorder
from adafocus_edge.live.sinks.mqtt import Discovery, Mqtt
from adafocus_edge.live.sinks.webhook import Webhook
from adafocus_edge.live.source_state import SourceState
from adafocus_edge.live.stream_config import InvalidError, SourceEntry, read_event, read_source, sources_of
from adafocus_edge.media.sources import Source
from adafocus_edge.media.zones import Zones
from adafocus_edge.runtime.classifier import Classifier
from tests.conftest import ROOT
from tests.live.test_live import Kept, beside, classifier_of, until
from tests.support.live_parts import SPEC
from tests.support.streams import HttpStream

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi072.mp4"
CALM = ROOT / "tests" / "fights" / "no_fight" / "nofi018.mp4"
WHOLE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
SURE = EventRule("fight", 0.01)


class Frames(Kept):
    wants = (*Kept.wants, LiveFrame, LiveFragment, Rules, Drops)


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with classifier_of(default_bundle()) as made:
        yield made


@contextmanager
def going(
    made: Classifier, *sources: Source, sinks: tuple[Sink, ...] = (), copy: bool = False, **more: object
) -> Iterator[tuple[Frames, LiveRun]]:
    kept = Frames()
    capture = CaptureOptions(glimpse_fps=8, realtime=True, loop=True, patient=True, copy=copy)
    options = LiveOptions(capture, max_guests=1, **{"spare": 2, **more})  # type: ignore[arg-type]
    run = LiveRun(made, sources, options, [kept, *sinks])
    with beside(run, kept):
        yield kept, run


def windows(kept: Kept, name: str) -> int:
    return sum(window.source == name for window in kept.of(Window))


def test_sources_come_and_go_while_the_others_run_on(classifier: Classifier) -> None:
    yard, gate = Source("yard", str(FIGHT)), Source("gate", str(CALM))
    with going(classifier, yard) as (kept, run):
        until(lambda: windows(kept, "yard"))
        run.add_source(gate)
        until(lambda: windows(kept, "gate"))
        with pytest.raises(UsageError, match="gate: a source of this name exists"):
            run.add_source(gate)
        run.add_source(replace(gate, name="dock"))
        with pytest.raises(UsageError, match="roof: 3 sources are the most that can run now"):
            run.add_source(replace(gate, name="roof"))
        run.remove_source("gate", "removed by a test")
        run.remove_source("nosuch", "is no source")
        assert [source.name for source in run.status().sources] == ["yard", "dock"]
        count = sum(frame.source == "gate" for frame in kept.of(LiveFrame))
        run.add_source(gate)  # there is room again
        until(lambda: len([frame for frame in kept.of(LiveFrame) if frame.source == "gate"]) > count)
        # Its frames are numbered on, so that no client takes a new picture for an old one.
        numbers = [frame.index for frame in kept.of(LiveFrame) if frame.source == "gate"]
        assert numbers == list(range(len(numbers)))
        texts = [notice.text for notice in kept.of(Notice) if notice.source == "gate"]
        assert [text.partition(":")[2].split(",")[0] for text in texts[:3]] == [
            texts[0].partition(":")[2].split(",")[0], " removed by a test", texts[0].partition(":")[2].split(",")[0],
        ]  # fmt: skip
        # Its meters go on from there: nothing is as fast as all frames of before at once, nor dropped by now.
        shown = next(source for source in run.status().sources if source.name == "gate")
        assert shown.reconnects == 0
        assert shown.fps_in < 60
        notices = [notice.kind for notice in kept.of(Notice) if notice.source == "yard"]
        assert notices == ["connected"]


def test_meters_begin_where_the_counters_of_the_source_before_ended() -> None:
    counters = Counters(frames=5000, picked=900, dropped=500, connections=7, openings=3, width=640, height=480)
    with kept_capture(counters) as capture:
        assert capture.counters == Counters(frames=5000, picked=900, dropped=500, openings=3)
        state = SourceState(capture, 1, (), kept=True)
        assert state.drops.update(500, 900, time.monotonic()) is None
        shown = state.status(8, "")
        assert (shown.fps_in, shown.reconnects, shown.width) == (0.0, 0, 0)


@contextmanager
def kept_capture(counters: Counters) -> Iterator[Capture]:
    capture = Capture(Source("yard", str(FIGHT)), SPEC, CaptureOptions(), threading.Condition(), counters=counters)
    yield capture
    capture.close(0.0)


def test_each_recording_of_a_source_that_is_changed_has_its_own_results(classifier: Classifier, tmp_path: Path) -> None:
    sink = CopyRecorder(tmp_path / "video", classifier.model.spec, print)
    with HttpStream("ts", [(320, 240)]) as first, HttpStream("ts", [(256, 144)]) as second:
        cameras = [Source("yard", stream.address, live=True) for stream in (first, second)]
        with going(classifier, cameras[0], sinks=(sink,), copy=True) as (kept, run):
            for number in range(4):
                if number:
                    run.remove_source("yard", "changed")
                    run.add_source(cameras[number % 2])
                    until(lambda: run.newest("yard") is not None)
                seen = len(kept.of(ProvisionalResult))
                until(lambda seen=seen: len(kept.of(ProvisionalResult)) > seen + 16)
    sink.close(20)
    openings: list[int] = []
    for message in kept.messages:
        if isinstance(message, LiveFragment):
            openings[-1:] = dict.fromkeys([*openings[-1:], message.video.opening])
    assert openings == [1, 2, 3, 4], "none of a source before follows"
    files = [path.read_text().splitlines() for path in sorted((tmp_path / "video").glob("*.jsonl"))]
    assert len(files) == 4, "one for each source"
    heads = [json.loads(lines[0]) for lines in files]
    assert [head["width"] for head in heads] == [320, 256, 320, 256]
    for number, lines in enumerate(files):
        at = [line["at"] for line in map(json.loads, lines[1:]) if line.get("provisional")]
        assert len(at) > 8
        assert min(at) >= heads[number]["at"]
        assert max(at) < (heads[number + 1 :] or [{"at": "3"}])[0]["at"]


def test_after_a_mask_is_set_no_frame_without_it_follows(classifier: Classifier) -> None:
    yard = Source("yard", str(FIGHT))

    def set_mask(run: LiveRun) -> None:
        late = Frames()
        run.remove_source("yard", "changed")
        run.listen(late)
        run.add_source(replace(yard, zones=Zones(masks=(WHOLE,))))
        until(lambda: len(late.of(LiveFrame)) > 3)
        run.unlisten(late)
        late.close()
        assert not any(frame.to_rgb().any() for frame in late.of(LiveFrame))
        assert not any(event.frame.to_rgb().any() for event in late.of(Event))

    with going(classifier, yard, rules=(SURE,)) as (kept, run):
        for _ in range(5):
            until(lambda: kept.of(LiveFrame) and kept.of(LiveFrame)[-1].to_rgb().any())
            set_mask(run)
            run.remove_source("yard", "changed")
            run.add_source(yard)


def test_sources_may_change_before_the_run_begins(classifier: Classifier) -> None:
    kept = Frames()
    run = LiveRun(classifier, [Source("yard", str(FIGHT))], LiveOptions(CaptureOptions(glimpse_fps=8), spare=1), [kept])
    run.remove_source("yard", "removed")
    run.add_source(Source("gate", str(CALM)))
    run.run(threading.Event())
    kept.close()
    assert {window.source for window in kept.of(Window)} == {"gate"}


def test_a_source_that_hangs_or_never_comes_is_removed_at_once(classifier: Classifier) -> None:
    with going(classifier, Source("lost", "rtsp://127.0.0.1:9/x", live=True)) as (kept, run):
        until(lambda: "lost" in kept.kinds())
        begun_s = time.monotonic()
        run.remove_source("lost", "removed")
        assert time.monotonic() - begun_s < 10
        assert run.status().sources == []
        assert run.errors == {}


def test_rules_change_while_events_last(classifier: Classifier) -> None:
    with going(classifier, Source("yard", str(FIGHT)), rules=(SURE,)) as (kept, run):
        until(lambda: kept.of(Event))
        run.set_rules([SURE, EventRule("no_fight", 0.01)])
        until(lambda: {event.label for event in kept.of(Event)} == {"fight", "no_fight"})
        assert [event.kind for event in kept.of(Event) if event.label == "fight"] == ["start"]  # it goes on
        run.set_rules([EventRule("no_fight", 0.01)])
        until(lambda: [event.kind for event in kept.of(Event) if event.label == "fight"] == ["start", "end"])
        assert kept.of(Event)[-1].cut
        with pytest.raises(UsageError, match="event dance: unknown class"):
            run.set_rules([EventRule("dance")])
        assert [len(message.rules) for message in kept.of(Rules)] == [2, 1]
        run.add_source(Source("gate", str(CALM)))
        until(lambda: any(event.source == "gate" for event in kept.of(Event)))
        assert {event.label for event in kept.of(Event) if event.source == "gate"} == {"no_fight"}


def test_outputs_follow_the_rules() -> None:
    hook = Webhook("http://127.0.0.1:9/hook", lambda _: None, windows=True)
    hook.enqueue(Rules((SURE,)))
    until(lambda: hook.handled)
    from tests.live.test_sinks import event, notice, window  # messages of a run

    hook.enqueue(window())
    assert hook.waiting == 0
    hook.close(0.2)
    mqtt = Mqtt("mqtt://127.0.0.1:9/edge", lambda _: None, discovery=Discovery("homeassistant", ("juggling",)))
    mqtt.enqueue(notice())
    until(lambda: mqtt.handled == 1)
    before = {topic for topic in mqtt._retained if topic.endswith("/config")}
    mqtt.enqueue(Rules((EventRule("smoking"),)))
    mqtt.enqueue(event(label="smoking"))
    until(lambda: mqtt.handled == 3)
    after = {topic for topic in mqtt._retained if topic.endswith("/config")}
    assert len(before) == len(after) == 1
    assert before.isdisjoint(after)
    mqtt.close(0.2)


def test_entries_of_a_file_are_read_as_they_are_written(tmp_path: Path) -> None:
    for rule in (EventRule("fight"), EventRule("a b", 1e-05, 2.5, 30), EventRule("x", 1, 1e6)):
        assert EventRule.parse(rule.text()) == rule
        table = {"label": rule.label, "threshold": rule.threshold, "for-s": rule.for_s, "cooldown_s": rule.cooldown_s}
        assert read_event(table) == rule
    with pytest.raises(InvalidError) as caught:
        read_event({"label": "fight", "threshold": 2, "for-s": "long", "cooldown-s": -1})
    assert list(caught.value.fields) == ["threshold", "for-s", "cooldown-s"]
    odd = EventRule("fight=0.5,for=2", 0.7)  # a name of a class may look like a rule
    assert EventRule.parse(odd.text()) == odd == read_event({"label": odd.label, "threshold": 0.7})
    assert read_source("yard=0") == SourceEntry("yard=0")
    entries = [read_source(one) for one in ("yard=0", {"name": "gate", "address": "1"}, {"address": "2"})]
    assert [source.name for source in sources_of(entries)] == ["yard", "gate", "camera 2"]
    paused = read_source({"name": "gate", "address": "1", "paused": True})
    assert sources_of([paused]) == []
