"""Files side by side: the same results in the same order as one by one, whatever each of them takes or raises."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from adafocus_edge import AdaFocus
from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.loaded import LoadedModel, open_programs
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.errors import SourceError
from adafocus_edge.media.sources import find_sources
from adafocus_edge.media.video_file import VideoFile
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.system.cpu import limit_cores_of_thread, usable_cores
from adafocus_edge.system.side_by_side import WORKER_THREAD, Shares, side_by_side
from tests.conftest import ROOT, edge

FIGHTS = ROOT / "tests" / "fights"
CLIPS = [str(path) for path in sorted(FIGHTS.rglob("*.mp4"))]


def timeless(line: str) -> dict[str, object]:
    """Return a JSON result without the times it took."""
    return {key: value for key, value in json.loads(line).items() if key not in ("latency_ms", "model_ms")}


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(WORKER_THREAD)]


# -- any function ------------------------------------------------------------------------------------------------------


def test_outcomes_come_in_the_order_of_the_items_though_later_ones_are_done_first():
    last = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert last.wait(10)  # the first item ends after the last one
        if item == 7:
            last.set()
        return item * item

    with side_by_side(range(8), lambda: work, 2, 8) as outcomes:
        assert [(item, outcome()) for item, outcome in outcomes] == [(n, n * n) for n in range(8)]
    assert running() == []


def test_an_item_that_raises_does_so_at_its_turn_and_the_others_go_on():
    with side_by_side([2, 1, 0, -1], lambda: lambda item: 2 // item, 2, 4) as outcomes:
        found = []
        for _, outcome in outcomes:
            try:
                found.append(outcome())
            except ZeroDivisionError:
                found.append("zero")
    assert found == [1, 2, "zero", -2]


def test_a_function_that_cannot_be_prepared_raises_at_the_first_item():
    def prepare() -> None:
        raise SourceError("no model")

    with side_by_side([1, 2, 3], prepare, 2, 4) as outcomes:
        for _, outcome in outcomes:
            with pytest.raises(SourceError, match="no model"):
                outcome()


def test_no_more_items_are_begun_than_the_reader_is_behind():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    with side_by_side(items(), lambda: lambda item: item, 3, 5) as outcomes:
        for read, (_, outcome) in enumerate(outcomes, start=1):
            outcome()
            assert len(taken) <= read + 5
    assert len(taken) == 100


def test_leaving_early_ends_the_threads_and_drops_the_rest():
    done = []
    with side_by_side(range(1000), lambda: done.append, 2, 20) as outcomes:
        next(outcomes)
    assert running() == []
    assert len(done) <= 22


def test_each_thread_counts_its_share_of_the_cores(monkeypatch):
    with side_by_side(range(4), lambda: lambda _: usable_cores(), 2, 4) as outcomes:
        assert {outcome() for _, outcome in outcomes} == {max(1, usable_cores() // 2)}
    before = usable_cores()
    thread = threading.Thread(target=limit_cores_of_thread, args=(1,))
    thread.start()
    thread.join()
    assert usable_cores() == before  # of that thread only


@pytest.mark.parametrize(
    ("items", "workers", "threads", "shares"),
    [
        (100, None, None, Shares(8, 1)),
        (3, None, None, Shares(3, 6)),  # the three workers compute, and five more threads help
        (1, None, None, Shares(1, None)),
        (0, None, None, Shares(1, None)),
        (100, 1, None, Shares(1, None)),
        (100, 4, None, Shares(4, 5)),
        (100, None, 1, Shares(1, 1)),
        (100, None, 4, Shares(4, 1)),
        (100, 2, 4, Shares(2, 3)),
    ],
)  # fmt: skip
def test_cores_are_shared_and_never_taken_twice(items, workers, threads, shares, monkeypatch):
    monkeypatch.setattr("adafocus_edge.system.side_by_side.usable_cores", lambda: 8)
    assert Shares.of(items, workers, threads) == shares


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_folder_gives_the_same_lines_side_by_side_as_one_by_one(small_bundle, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(CLIPS[0]).read_bytes()[:3000])
    sources = [CLIPS[0], tmp_path / "gone.mp4", *CLIPS[1:6], broken, *CLIPS[6:], CLIPS[0]]

    def run(workers: int, *more: object) -> tuple[list[str], str, str]:
        output = tmp_path / f"{workers}.jsonl"
        done = edge(
            "classify",
            *sources,
            "--bundle",
            small_bundle,
            "--json",
            "--logits",
            "--workers",
            workers,
            "-o",
            output,
            *more,
        )
        assert done.returncode == 1
        assert [*map(timeless, output.read_text().splitlines())] == [*map(timeless, done.stdout.splitlines())]
        return done.stdout.splitlines(), done.stderr, output.read_text()

    alone, errors, _ = run(1)
    beside, errors_beside, _ = run(2)
    assert [*map(timeless, beside)] == [*map(timeless, alone)]  # every logit of every step
    assert [json.loads(line)["source"] for line in alone] == [str(source) for source in sources]
    assert errors_beside == errors
    assert errors.count("error: ") == 2
    early = [[*map(timeless, run(workers, "--exit-confidence", "0.2")[0])] for workers in (1, 2)]
    assert early[0] == early[1]


def test_the_default_is_one_worker_per_core_and_threads_limit_it(small_bundle):
    given = ("classify", *CLIPS[:3], "--bundle", small_bundle, "--json", "--quiet")
    expected = [*map(timeless, edge(*given, "--workers", 1).stdout.splitlines())]
    for more in ((), ("--threads", 1), ("--workers", 2, "--threads", 2)):
        done = edge(*given, *more)
        assert (done.returncode, [*map(timeless, done.stdout.splitlines())]) == (0, expected)


def test_more_workers_than_threads_or_processors_are_refused(small_bundle):
    for words, more in (
        ("--workers 2: must be at most 1, the threads that compute", ("--workers", 2, "--threads", 1)),
        ("--workers 9999: must be at most", ("--workers", 9999)),
        ("--workers is for files", ("--workers", 2, "--glimpse-fps", 4)),
    ):
        done = edge("classify", *CLIPS[:3], "--bundle", small_bundle, *more)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr


def test_videos_are_annotated_side_by_side_too(small_bundle, tmp_path):
    for workers in (1, 2):
        done = edge(
            "classify", *CLIPS[:2], "--bundle", small_bundle, "-q", "--workers", workers, "--save-video",
            tmp_path / str(workers),
        )  # fmt: skip
        assert done.returncode == 0
    alone, beside = (sorted((tmp_path / name).iterdir()) for name in "12")
    assert [path.name for path in alone] == [path.name for path in beside]
    for path, other in zip(alone, beside, strict=True):  # the encoder's own threads may choose other bits
        assert VideoFile(str(path)).frame_count == VideoFile(str(other)).frame_count > 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_workers_and_keeps_the_results(number, status, small_bundle, tmp_path):
    output = tmp_path / "results.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", "classify", *CLIPS * 200, "--bundle", str(small_bundle), "--json",
         "--workers", "2", "--output", str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(number)
    printed, told = process.communicate(timeout=60)
    assert process.returncode == status, told[-1500:]
    part = next(tmp_path.glob(".results.jsonl.*.part"))
    lines = part.read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == (CLIPS * 200)[: len(lines)]
    assert 0 <= len(lines) - len(printed.splitlines()) - 1 <= 1  # one may be written and not yet printed
    assert f"results so far are in {part}" in told
    assert "Traceback" not in told


# -- a device, and the Python interface --------------------------------------------------------------------------------


def on_host_device(small_bundle: Path) -> LoadedModel:
    """Return the bundle on the CPU as a device, which refuses a second thread as a GPU does."""
    bundle = read_bundle(small_bundle)

    def path_of(graph: str) -> Path:
        return bundle.graph_path("fp32", graph)

    return open_programs(
        bundle.spec, GRAPHS, lambda graph: OrtSession(path_of(graph), 1), path_of, HostDevice(), backend="host",
        variant="fp32",
    )  # fmt: skip


def test_threads_that_share_a_device_read_side_by_side_and_take_turns_on_it(small_bundle):
    bundle, sources, turn = read_bundle(small_bundle), find_sources(CLIPS), threading.Lock()
    with load_model(bundle, "fp32", "cpu", 1) as model:
        alone = Classifier(model, bundle.classes)
        expected = [alone.classify(source)[0] for source in sources]
    with on_host_device(small_bundle) as model:
        assert not Classifier(model, bundle.classes, schedule="stream").reads_side_by_side
        assert Classifier(model, bundle.classes).reads_side_by_side

        with side_by_side(sources, lambda: Classifier(model, bundle.classes, turn=turn).classify, 3, 9) as outcomes:
            found = [outcome()[0] for _, outcome in outcomes]
    for one, other in zip(found, expected, strict=True):
        assert [step.patch for step in one.steps] == [step.patch for step in other.steps]
        for step, same in zip(one.steps, other.steps, strict=True):
            np.testing.assert_allclose(step.logits, same.logits, atol=1e-4)


def test_the_python_interface_gives_a_list_the_same_results_as_each_file_alone(small_bundle, tmp_path):
    def figures(prediction):
        return dataclasses.replace(prediction.result, latency_ms=0, model_ms=0, step_ms=(), steps=()), [
            (step.patch, step.logits.tolist()) for step in prediction.result.steps
        ]

    with AdaFocus(small_bundle) as model:
        given = CLIPS * 3
        assert [figures(one) for one in model(given)] == [figures(model(path)) for path in given]
        found = model.each([*given, tmp_path / "gone.mp4", *given])
        for _ in given:
            next(found)
        with pytest.raises(SourceError, match="gone"):
            next(found)
    assert running() == []
