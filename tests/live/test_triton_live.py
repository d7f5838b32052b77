"""Live runs on a Triton server: files give what a run here gives, and a lost server is waited for. Structured logs."""

from __future__ import annotations

import json
import threading

import pytest

from adafocus_edge.backends.registry import load_model
from adafocus_edge.backends.triton.address import parse_address
from adafocus_edge.backends.triton.repository import write_repository
from adafocus_edge.backends.triton.runner import find_served
from adafocus_edge.backends.triton.settings import RepositoryOptions
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import ServerLostError
from adafocus_edge.live.messages import Notice, Window
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.classifier import Classifier
from export.fuse import fuse
from tests.conftest import ROOT, edge
from tests.live.test_live import Kept
from tests.support.live_parts import until
from tests.support.streams import HttpStream
from tests.support.triton_server.server import TritonServer, need_triton

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    need_triton()
    path = tmp_path_factory.mktemp("triton") / "repository"
    # On a busy machine, requests that are sent together may arrive milliseconds apart: the server waits longer.
    options = RepositoryOptions(clips=0, streams=4, delay_us=20_000)
    write_repository(read_bundle(default_bundle()), path, options, {"step": fuse})
    return path


@pytest.fixture
def server(repository, tmp_path):
    with TritonServer(repository, tmp_path) as started:
        yield started


def test_windows_of_files_are_those_of_a_run_here(server):
    """Windows that overlap, early exits, and sources that step together: read as fast as possible, none is dropped."""
    options = [
        FIGHT, f"again={FIGHT}", "--overlap", 2, "--glimpse-fps", 6, "--exit-confidence", 0.9, "--json", "--logits",
        "-q",
    ]  # fmt: skip
    here, there = edge("classify", *options), edge("classify", *options, "--engine", server.address)
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    windows = [
        sorted(map(json.loads, done.stdout.splitlines()), key=lambda one: (one["source"], one["start_s"], one["end_s"]))
        for done in (here, there)
    ]
    assert len(windows[0]) == len(windows[1]) > 4
    assert any(window["exited_early"] for window in windows[0])
    for mine, theirs in zip(*windows, strict=True):
        for name in ("source", "start_s", "end_s", "label", "steps_used", "cut"):
            assert mine[name] == theirs[name]
        assert theirs["confidence"] == pytest.approx(mine["confidence"], abs=TOLERANCE)
        for own, other in zip(mine["steps"], theirs["steps"], strict=True):
            assert own["patch"] == other["patch"]
            assert other["logits"] == pytest.approx(own["logits"], abs=TOLERANCE)
    assert max(server.batches("adafocus_step")) > 1


def new_run(model, *sources, retries=None):
    capture = CaptureOptions(glimpse_fps=8.0, realtime=True, retries=retries)
    return LiveRun(Classifier(model, ("fight", "no_fight")), sources, LiveOptions(capture))


def test_a_stream_is_seen_through_a_server_that_goes_and_comes_back(server):
    kept, stop, failed = Kept(), threading.Event(), []
    with HttpStream("ts", [(320, 180)]) as stream, load_model(find_served(parse_address(server.address))) as model:
        run = new_run(model, Source("yard", stream.address, live=True))
        run.listen(kept)

        def work():
            try:
                run.run(stop)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            until(lambda: any(not window.cut for window in kept.of(Window)))
            server.kill()
            until(lambda: any(one.kind == "stalled" for one in kept.of(Notice)))
            assert run.status().alive
            server.start()
            until(lambda: any(one.kind == "resumed" for one in kept.of(Notice)))
            before = len(kept.of(Window))
            until(lambda: any(not window.cut for window in kept.of(Window)[before:]))
        finally:
            stop.set()
            thread.join()
    assert not failed
    stalled, resumed = [one for one in kept.of(Notice) if one.kind in ("stalled", "resumed")]
    assert (stalled.source, resumed.source) == ("yard", "yard")
    assert server.address in stalled.text
    assert "no server answers there" in stalled.text
    assert "retrying in 1 s" in stalled.text
    whole = [window.result.steps for window in kept.of(Window) if not window.cut]
    assert {len(steps) for steps in whole} == {model.spec.segments}  # none goes over the gap


def test_a_server_that_stays_away_ends_the_run_where_retries_are_limited(server):
    kept = Kept()
    with HttpStream("ts", [(320, 180)]) as stream, load_model(find_served(parse_address(server.address))) as model:
        run = new_run(model, Source("yard", stream.address, live=True), retries=1)
        run.listen(kept)
        killer = threading.Thread(target=lambda: (until(lambda: bool(kept.of(Window))), server.kill()))
        killer.start()
        with pytest.raises(ServerLostError, match="no server answers there"):
            run.run(threading.Event(), 60)
        killer.join()
    assert len([one for one in kept.of(Notice) if one.kind == "stalled"]) == 1


def test_the_page_runs_on_the_server_too(server, tmp_path):
    results = tmp_path / "results.jsonl"
    done = edge(
        "serve", FIGHT, "--port", 0, "--duration", 3, "--glimpse-fps", 8, "-o", results, "--engine", server.address,
        "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    windows = [entry for entry in map(json.loads, results.read_text().splitlines()) if "label" in entry]
    assert {window["backend"] for window in windows} == {"triton"}


# -- structured logs ---------------------------------------------------------------------------------------------------


FIELDS = ["time", "level", "source", "event", "message"]


def test_every_line_of_stderr_is_an_object_with_log_format_json(tmp_path):
    log = tmp_path / "run.log"
    with HttpStream("ts", [(320, 180)]) as stream:
        done = edge(
            "classify", f"yard={stream.address}", "gone=rtsp://127.0.0.1:9/x", "--duration", 2, "--retries", 0,
            "--status", 0.5, "--log-format", "json", "--log", log,
        )  # fmt: skip
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(list(line) == FIELDS for line in lines)
    assert {line["level"] for line in lines} == {"info", "error"}
    told = {(line["event"], line["source"]) for line in lines}
    assert {("connected", "yard"), ("failed", "gone"), ("summary", None), ("status", None), ("note", None)} <= told
    assert all(line["time"].endswith("Z") for line in lines)
    kept = [json.loads(line) for line in log.read_text().splitlines()]
    assert {("connected", "yard"), ("failed", "gone")} <= {(line["event"], line["source"]) for line in kept}


def test_errors_of_the_command_line_are_objects_too():
    done = edge("classify", "missing.mp4", "--log-format", "json")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["info", "error"]
    assert "missing.mp4" in lines[-1]["message"]


def test_serve_writes_objects():
    done = edge("serve", FIGHT, "--port", 0, "--duration", 1, "--log-format", "json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(list(line) == FIELDS for line in lines)
    assert any(line["event"] == "serving" and "http://127.0.0.1" in line["message"] for line in lines)
