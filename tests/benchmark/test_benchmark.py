"""`benchmark` and `tune`: what is measured, that the parts add up, and that a planted slowdown is found."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.benchmark import grid as row_module
from adafocus_edge.benchmark.compare import Limits, compare
from adafocus_edge.benchmark.energy import EnergyMeter
from adafocus_edge.benchmark.files import ReportFiles
from adafocus_edge.benchmark.grid import Grid, Loading, Row
from adafocus_edge.benchmark.peers import Constant
from adafocus_edge.benchmark.plots import draw, write_page
from adafocus_edge.benchmark.run import Request, run
from adafocus_edge.benchmark.schema import Data, Report, RowReport
from adafocus_edge.benchmark.stats import MIN_ROUNDS, summary
from adafocus_edge.benchmark.tables import csv_text, markdown
from adafocus_edge.benchmark.timing import Bench, NoiseClip
from adafocus_edge.benchmark.tune import Demand, choose
from adafocus_edge.benchmark.worker import Memory, Opening, Ready, Worker
from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.cli.benchmark import _print_benchmark
from adafocus_edge.errors import AdaFocusError, BackendError, SourceError, UsageError
from adafocus_edge.evaluation.dataset import Example, read_data
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.model.spec import GRAPHS, contract
from tests.conftest import ROOT, edge, one_line_error
from tests.support.reports import report_row, report_with, times

FIGHTS = ROOT / "tests" / "fights"
COSTS_MS = {"glancer": 6.0, "policy": 1.0, "focuser": 8.0, "classifier": 0.5}
"""What a scripted graph takes for one frame."""
READING_MS = 10.0


# -- a scripted model, in a time of its own ----------------------------------------------------------------------------


class Clock:
    """Time that passes only in :meth:`take`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.random = np.random.default_rng(0)

    def __call__(self) -> float:
        return self.now

    def take(self, ms: float) -> None:
        """Let time pass, with two percent of noise."""
        self.now += ms / 1e3 * max(0.5, self.random.normal(1, 0.02))


class Scripted(Constant):
    """A graph that takes a while and gives zeros; the classifier's logits name a class."""

    def __init__(self, spec: Any, graph: str, clock: Clock, ms: float) -> None:
        super().__init__(*contract(spec, graph))
        self._graph, self._clock, self._ms = graph, clock, ms

    def run(self, feeds: Any) -> dict[str, Any]:
        rows = len(next(iter(feeds.values())))
        self._clock.take(self._ms * rows)
        made = super().run(feeds)
        if self._graph == "classifier":
            made = {**made, "logits": np.array([[3.0, 0.0]] * rows, np.float32)}
        return made


class Reading(NoiseClip):
    """A clip that takes a while to be read; the frames are black."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, indices: Any, convert: Any) -> Iterator[tuple[int, Any]]:
        for index in indices:
            self._clock.take(READING_MS / 8)
            yield index, convert(np.zeros((64, 64, 3), np.uint8))


def scripted(bundle: Bundle, clock: Clock, costs: dict[str, float]) -> LoadedModel:
    sessions = {graph: Scripted(bundle.spec, graph, clock, costs[graph]) for graph in GRAPHS}
    return LoadedModel.of(bundle.spec, sessions, "onnxruntime-cpu", "fp32", 4)


class InProcess:
    """A worker that runs here."""

    def __init__(self, opening: Opening, bundle: Bundle, clock: Clock, costs: dict[str, float]) -> None:
        def exits_of(name: str) -> ExitThresholds:
            return bundle.manifest.thresholds[name.partition("/")[0]][0]

        self._clock = clock
        self._bench = Bench(scripted(bundle, clock, costs), bundle.classes, exits_of)
        self.ready = Ready(10.0, 20.0, 0.25, "")
        self.cold_start_ms = 100.0
        self.asked = 0

    def time(self, row: Row, source: Any, *, parts: bool = False) -> Any:
        self.asked += 1
        return self._bench.time(row, Reading(self._clock), parts=parts)

    def logits(self, frames: Path, clip: int, order: Any) -> np.ndarray:
        return self._bench.logits(np.load(frames, mmap_mode="r")[clip], order)

    def memory(self) -> Memory:
        return Memory(50.0, None)

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


CPU = Grid(backends=("onnxruntime-cpu",), peers=(), threads=(2,), exits=(), labelled=False)


def report_of(bundle: Bundle, clock: Clock, **slower: float) -> Report:
    """Benchmark the scripted model, some of whose graphs take longer."""
    costs = {graph: ms * slower.get(graph, 1.0) for graph, ms in COSTS_MS.items()}
    return run(
        Request({"fights": bundle}, CPU, rounds=20), opened=lambda opening: InProcess(opening, bundle, clock, costs)
    )


def test_the_parts_are_what_each_graph_takes_and_add_up_to_the_whole(bundle: Bundle, clock: Clock) -> None:
    report = report_of(bundle, clock)
    assert len(report.rows) == 2
    for row in report.rows:
        assert row.parts_ms is not None
        parts = {part: entry.median for part, entry in row.parts_ms.items()}
        assert parts["glance"] == pytest.approx(8 * COSTS_MS["glancer"], rel=0.03)
        assert parts["policy"] == pytest.approx(8 * COSTS_MS["policy"], rel=0.03)
        assert parts["focus"] == pytest.approx(8 * COSTS_MS["focuser"], rel=0.03)
        assert parts["classify"] == pytest.approx(8 * COSTS_MS["classifier"], rel=0.03)
        # The default model reads three frames for each glimpse, some of them twice.
        assert parts["decode"] >= READING_MS
        assert parts["host"] == pytest.approx(0, abs=0.5)
        assert row.parts_over_whole == pytest.approx(1, abs=0.05)
        assert row.model_ms.median == pytest.approx(8 * sum(COSTS_MS.values()), rel=0.03)
        assert row.gflops_per_clip == pytest.approx(8 * 0.25)
        assert row.clips_per_s == pytest.approx(1e3 / row.model_ms.median, rel=1e-3)
    clip, stream = report.rows
    assert clip.step_ms is None
    assert stream.step_ms is not None
    assert stream.step_ms.rounds == 8 * 20
    # The same graphs run as often on both schedules here: their times do not differ.
    assert clip.same_time_as == (stream.id,)


def test_few_rounds_decide_nothing_about_equal_times(bundle: Bundle, clock: Clock) -> None:
    def opened(opening: Opening) -> InProcess:
        slower = 1.5 if opening.loading.peer else 1.0
        return InProcess(opening, bundle, clock, {graph: ms * slower for graph, ms in COSTS_MS.items()})

    request = Request({"fights": bundle}, replace(CPU, peers=("centre-patches",)), rounds=MIN_ROUNDS - 1)
    report = run(request, opened=opened)
    assert [row.same_time_as for row in report.rows] == [()] * 3
    (sentence,) = report.findings
    assert re.search(r"without a policy: 1\.[45]\d times \(too few rounds to be sure\) slower than FP32's", sentence)
    assert f"fewer than {MIN_ROUNDS} rounds" in markdown(report)
    report = run(replace(request, rounds=MIN_ROUNDS), opened=opened)
    assert [row.same_time_as for row in report.rows] == [(2,), (1,), ()]
    assert "too few rounds" not in report.findings[0]
    assert "fewer than" not in markdown(report)


@pytest.mark.parametrize(("rounds", "expected"), [(3, 1), (9, 4), (20, 10)])
def test_the_timed_clips_are_spread_over_all_classes_however_few_the_rounds(
    bundle: Bundle, clock: Clock, rounds: int, expected: int
) -> None:
    timed: list[Example] = []

    class Noting(InProcess):
        def time(self, row: Row, source: Any, *, parts: bool = False) -> Any:
            if row.schedule == "clip" and not parts:
                timed.append(source)
            return super().time(row, source, parts=parts)

    grid = replace(CPU, labelled=True)
    request = Request({"fights": bundle}, grid, read_data(FIGHTS, bundle.classes), rounds=rounds, warm_up=0)
    run(request, opened=lambda opening: Noting(opening, bundle, clock, COSTS_MS))
    assert len(timed) == rounds
    labels = [example.labels[0] for example in timed]
    assert min(labels.count(0), labels.count(1)) >= expected
    assert len({example.name for example in timed}) == min(rounds, 12)


def test_early_exit_gives_the_steps_of_the_timed_runs_beside_those_of_all_clips(bundle: Bundle, clock: Clock) -> None:
    class Unsure(InProcess):
        """Its timed clips all stop early, and those that accuracy is measured on never do."""

        def logits(self, frames: Path, clip: int, order: Any) -> np.ndarray:
            return np.zeros((8, 2), np.float32)

    grid = replace(CPU, exits=None, labelled=True, schedules=("clip",))
    request = Request({"fights": bundle}, grid, read_data(FIGHTS, bundle.classes), clips=4, rounds=2)
    report = run(request, opened=lambda opening: Unsure(opening, bundle, clock, COSTS_MS))
    plain, early, _ = report.rows
    assert (early.exit, early.mean_steps) == ("safe/clip", 8)
    assert early.timed_steps is not None
    assert early.timed_steps < 3
    assert plain.timed_steps is None
    said = f"takes 8.0 of 8 steps ({early.timed_steps:.1f} in the timed runs)"
    assert any(said in sentence for sentence in report.findings)
    assert f"| 8.0 (timed {early.timed_steps:.1f}) |" in markdown(report)


def test_two_runs_of_a_row_differ_by_less_than_their_own_spread(bundle: Bundle, clock: Clock) -> None:
    for ours, theirs in zip(report_of(bundle, clock).rows, report_of(bundle, clock).rows, strict=True):
        for what in ("model_ms", "whole_ms"):
            one, other = getattr(ours, what), getattr(theirs, what)
            assert abs(one.median - other.median) < min(one.spread, other.spread)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_planted_slowdown_of_one_part_is_found_and_a_run_against_itself_is_not(
    bundle: Bundle, clock: Clock, graph: str
) -> None:
    before = report_of(bundle, clock)
    assert compare(before, before, Limits()).worse == ()
    assert compare(report_of(bundle, clock), before, Limits()).worse == ()
    found = compare(report_of(bundle, clock, **{graph: 1.2}), before, Limits()).worse
    part = {"glancer": "glance", "focuser": "focus", "classifier": "classify"}.get(graph, graph)
    assert {sentence.partition(": ")[2].partition(" takes")[0] for sentence in found} >= {part}
    assert not any("classify" in sentence for sentence in found if part != "classify")
    # A limit above it finds nothing; getting faster is no worsening.
    assert compare(report_of(bundle, clock, **{graph: 1.2}), before, Limits(slowdown=0.5)).worse == ()
    assert compare(report_of(bundle, clock, **{graph: 0.8}), before, Limits()).worse == ()


def test_a_machine_that_slowed_down_as_a_whole_is_no_worsening(bundle: Bundle, clock: Clock) -> None:
    before = report_of(bundle, clock)
    slow = dict.fromkeys(COSTS_MS, 1.2)
    after = report_of(bundle, clock, **slow)
    assert compare(after, before, Limits()).worse
    before, after = (replace(report, yardstick_ms=summary([ms] * 20)) for report, ms in ((before, 50.0), (after, 60.0)))
    found = compare(after, before, Limits())
    assert found.worse == ()
    assert any("1.20 times" in note for note in found.notes)


def test_lost_accuracy_is_found_on_the_same_clips_only(bundle: Bundle, clock: Clock) -> None:
    measured = report_of(bundle, clock)
    rows = tuple(replace(row, top1=80.0) for row in measured.rows)
    old = replace(measured, rows=rows, data=Data(chosen="these", clips=10, origin="x"))
    new = replace(old, rows=(replace(rows[0], top1=78.0), *rows[1:]))
    found = compare(new, old, Limits())
    assert len(found.worse) == 1
    assert "top-1 fell from 80.00 % to 78.00 %" in found.worse[0]
    assert compare(new, old, Limits(accuracy_drop=2.0)).worse == ()
    new = replace(new, data=Data(chosen="others", clips=10, origin="x"))
    found = compare(new, old, Limits())
    assert found.worse == ()
    assert any("different clips" in note for note in found.notes)
    new = replace(new, rows=tuple(replace(row, key="another") for row in new.rows))
    with pytest.raises(UsageError, match="share no row"):
        compare(new, old, Limits())


def test_settings_that_fail_or_cannot_run_any_more_are_findings_and_others_a_note() -> None:
    def row(number: int, backend: str, **more: Any) -> RowReport:
        return report_row(number, times(10.0), backend=backend, **more)

    kept, failed, gone = row(1, "onnxruntime-cpu"), row(2, "onnxruntime-cpu"), row(3, "openvino")
    peer, other = row(4, "centre-patches", peer=True), row(5, "tensorrt")
    old = report_with(kept, failed, gone, peer, other)
    skipped = (
        row_module.Skipped(failed.key, "no memory"), row_module.Skipped("openvino", "is not installed"),
        row_module.Skipped("b centre-patches", "the bundle has no FP32 graphs"),
    )  # fmt: skip
    new = replace(report_with(kept), skipped=skipped)
    found = compare(new, old, Limits())
    assert found.rows == 1
    assert found.worse == tuple(
        f"{row.key}: cannot be measured any more ({one.why})"
        for row, one in zip((failed, gone, peer), skipped, strict=True)
    )
    assert found.notes == ("1 rows of the old report were not measured again",)
    assert compare(replace(new, skipped=()), old, Limits()).worse == ()
    assert len(compare(replace(new, rows=()), old, Limits()).worse) == 3  # nothing can be measured


def test_a_run_that_was_broken_off_goes_on_where_it_stopped(bundle: Bundle, clock: Clock, tmp_path: Path) -> None:
    split = read_data(FIGHTS, bundle.classes)
    grid = replace(CPU, labelled=True)
    request = Request({"fights": bundle}, grid, split, clips=3, rounds=6, parts_every=2, state=tmp_path / "state")
    workers: list[Any] = []

    def opened(opening: Opening, after: int | None = None) -> Any:
        worker = InProcess(opening, bundle, clock, COSTS_MS)
        workers.append(worker)
        if after is not None:
            timing = worker.time

            def interrupted(row: Row, source: Any, *, parts: bool = False) -> Any:
                if worker.asked == after:
                    raise KeyboardInterrupt
                return timing(row, source, parts=parts)

            worker.time = interrupted  # type: ignore[method-assign]
        return worker

    with pytest.raises(KeyboardInterrupt):
        run(request, opened=lambda opening: opened(opening, 12))
    with (tmp_path / "state" / "rounds.jsonl").open("a") as file:
        file.write('["whole", "cut sho')  # as a killed run leaves it
    report = run(request, opened=opened)
    # 2 rows: 4 to warm up, then 12 whole runs and 6 in parts; of these, 8 were done.
    assert workers[1].asked == 4 + 18 - 8
    assert [row.model_ms.rounds for row in report.rows] == [6, 6]
    again = run(request, opened=opened)
    assert len(workers) == 2  # nothing was left to do
    assert [row.model_ms for row in again.rows] == [row.model_ms for row in report.rows]
    # Another seed is another measurement.
    run(replace(request, seed=2), opened=opened)
    assert workers[2].asked == 4 + 18
    assert report.data is not None
    assert report.data.clips == 3
    share = [example.labels[0] == 0 for example in (split.examples[i] for i in chosen_by(request, split))]
    assert report.rows[0].top1 == pytest.approx(100 * np.mean(share), abs=1e-3)  # the script says class 0


def chosen_by(request: Request, split: Any) -> list[int]:
    return sorted(np.random.default_rng(request.seed).permutation(len(split.examples))[: request.clips])


def test_a_model_that_fails_is_left_out_with_the_reason_and_the_others_go_on(bundle: Bundle, clock: Clock) -> None:
    class Broken(InProcess):
        def time(self, row: Row, source: Any, *, parts: bool = False) -> Any:
            if self.asked == 9:
                raise BackendError("the device is gone")
            return super().time(row, source, parts=parts)

    def opened(opening: Opening) -> Any:
        if opening.loading.threads == 1:
            return Broken(opening, bundle, clock, COSTS_MS)
        return InProcess(opening, bundle, clock, COSTS_MS)

    grid = replace(CPU, threads=(1, 2))
    report = run(Request({"fights": bundle}, grid, rounds=6), opened=opened)
    assert {row.threads for row in report.rows} == {2}
    assert {entry.why for entry in report.skipped} >= {"the device is gone"}

    def refused(opening: Opening) -> Any:
        raise BackendError("no memory")

    report = run(Request({"fights": bundle}, grid, rounds=6), opened=refused)
    assert report.rows == ()
    assert {entry.why for entry in report.skipped} >= {"no memory"}


def test_where_no_clip_can_be_read_it_says_so(bundle: Bundle, clock: Clock, tmp_path: Path) -> None:
    for name in bundle.classes:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(b"no video")
    split = read_data(tmp_path, bundle.classes)
    with pytest.raises(AdaFocusError, match="none of the 2 clips can be read"):
        run(
            Request({"fights": bundle}, replace(CPU, labelled=True), split),
            opened=lambda opening: InProcess(opening, bundle, clock, COSTS_MS),
        )


# -- real processes ----------------------------------------------------------------------------------------------------


def opening(bundle: Bundle, backend: str = "onnxruntime-cpu") -> Opening:
    loading = Loading("fights", backend, "fp32", 1)
    return Opening(loading, bundle.path, None, Row(loading, "clip", 8), NoiseClip())


def test_a_process_loads_runs_and_ends(bundle: Bundle) -> None:
    asked = opening(bundle)
    worker = Worker(asked)
    try:
        assert worker.cold_start_ms > worker.ready.load_ms + worker.ready.first_ms > 0
        timing = worker.time(asked.row, asked.source, parts=True)
        assert set(timing.parts_ms or {}) == {"decode", "preprocess", "glance", "policy", "focus", "classify", "host"}
        many = worker.time(replace(asked.row, schedule="stream", streams=3), asked.source)
        assert (many.steps, len(many.step_ms), many.whole_ms) == (8, 8, None)
        early = worker.time(replace(asked.row, schedule="stream", exit="safe/clip"), asked.source)
        assert 1 <= early.steps <= 8
        assert worker.memory().host_mb > 20
        with pytest.raises(SourceError, match="no such file"):
            worker.time(asked.row, Example("x", Path("/none.mp4"), (0,)))
        worker._process.kill()
        with pytest.raises(BackendError, match="ended by itself"):
            worker.time(asked.row, asked.source)
    finally:
        worker.close()
    assert not worker._process.is_alive()


def test_what_cannot_be_loaded_is_told(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="cannot run here"):
        Worker(opening(bundle, "tensorrt"))


def test_energy_is_counted_from_the_processors_counters(tmp_path: Path) -> None:
    zone = tmp_path / "sys" / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (zone / "energy_uj").write_text("900000\n")
    with EnergyMeter(tmp_path) as meter:
        assert meter.of == "cpu"
        assert meter.joules() == 0
        (zone / "energy_uj").write_text("950000\n")
        assert meter.joules() == pytest.approx(0.05)
        (zone / "energy_uj").write_text("10000\n")  # the counter started again at zero
        assert meter.joules() == pytest.approx(0.11)
    with EnergyMeter(tmp_path / "nothing") as meter:
        assert meter.joules() is None


def test_a_jetsons_rails_are_added_up(tmp_path: Path) -> None:
    chip = tmp_path / "sys" / "class" / "hwmon" / "hwmon0"
    chip.mkdir(parents=True)
    for name, value in (("name", "ina3221"), ("in1_label", "VDD_IN"), ("in1_input", "5000"), ("curr1_input", "2000")):
        (chip / name).write_text(f"{value}\n")
    with EnergyMeter(tmp_path) as meter:
        assert meter.of == "module"
        began, before = time.monotonic(), meter.joules()
        while (meter.joules() or 0.0) - (before or 0.0) < 0.5:  # at 10 watts
            assert time.monotonic() - began < 30
            time.sleep(0.01)
        assert time.monotonic() - began >= 0.04


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that one quick run writes."""
    folder = tmp_path_factory.mktemp("made")
    done = edge(
        "benchmark", bundle.path, "--data", FIGHTS, "--quick", "--backends", "cpu", "--peers", "centre-patches",
        "-o", folder / "new.json", "-o", folder / "rows.csv", "-o", folder / "report.md", "-o", folder / "page.html",
        "--plot", folder / "front.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "accuracy against latency" in done.stdout
    return folder


def test_a_quick_benchmark_agrees_with_evaluate_and_with_classify(bundle: Bundle, made: Path) -> None:
    report = json.loads((made / "new.json").read_text())
    done = edge("evaluate", bundle.path, "--data", FIGHTS, "--exit", "safe", "--json")
    expected = json.loads(done.stdout)
    rows = {(row["backend"], row["schedule"], row["exit"]): row for row in report["rows"]}
    assert len(rows) == 5
    assert report["data"]["clips"] == expected["clips"]
    for schedule in ("clip", "stream"):
        row = rows["onnxruntime-cpu", schedule, None]
        assert row["top1"] == expected["top1"]
        assert row["mAP"] == expected["mAP"]
        assert row["per_step_top1"] == [step["top1"] for step in expected["per_step"]]
        assert row["gflops_per_clip"] == pytest.approx(expected["gflops_per_clip"], abs=1e-3)
        assert row["model_ms"]["rounds"] == 3
    early = rows["onnxruntime-cpu", "clip", "safe/clip"]
    for name, value in expected["exit"].items():
        assert early[name] == pytest.approx(value, abs=1e-3)
    assert report["machine"]["usable_cores"] >= 1
    assert not (made / ".new.json.parts").exists()
    assert any("centre" in sentence for sentence in report["findings"])
    assert {row["backend"] for row in report["rows"] if row["peer"]} == {"centre-patches"}
    assert rows["onnxruntime-cpu", "clip", None]["parts_over_whole"] > 0


def test_every_output_is_there_and_needs_nothing_else(made: Path) -> None:
    report = json.loads((made / "new.json").read_text())
    with (made / "rows.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == [str(row["id"]) for row in report["rows"]]
    assert float(found[0]["model_ms_median"]) == report["rows"][0]["model_ms"]["median"]
    assert float(found[0]["focus_ms"]) > 0
    assert [row["model_ms"] for row in found] == [""] * len(found)  # the part of models that are in one piece
    text = (made / "report.md").read_text()
    assert text.count("\n|") >= 2 * len(report["rows"])
    page = (made / "page.html").read_text()
    assert page.count("<svg") == 5
    for outside in ("<script", "<link", "src=", "@import"):
        assert outside not in page
    assert (made / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_without_accuracy_is_drawn_too(bundle: Bundle, clock: Clock, tmp_path: Path) -> None:
    report = report_of(bundle, clock)
    draw(report, tmp_path / "bars.png")
    write_page(report, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<svg") == 1
    assert "latency only" in markdown(report)
    assert csv_text(report).startswith("id,bundle,backend")


def test_names_with_dollars_are_drawn_as_they_are(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "top1": 50.0, "top1_interval_95": (40.0, 60.0), "per_step_top1": (40.0, 50.0),
        "parts_ms": {"decode": times(1.0)},
    }  # fmt: skip
    rows = [
        report_row(number, times(10.0), bundle=name, **more)
        for number, name in enumerate(("$5_{ and $6", "other"), start=1)
    ]
    report = report_with(*rows, data=Data(origin="of $5_{ and $6", clips=2, chosen=""))
    draw(report, tmp_path / "front.png")
    write_page(report, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<svg") == 5


def test_what_is_drawn_is_written_last(tmp_path: Path) -> None:
    (tmp_path / "front.png").mkdir()
    files = ReportFiles.named([tmp_path / "front.png", tmp_path / "rows.csv", tmp_path / "new.json"], None)
    with pytest.raises(AdaFocusError, match=r"front\.png"):
        files.write(report_with(report_row(1, times(10.0), parts_ms={"decode": times(1.0)})))
    assert {path.name for path in tmp_path.iterdir()} == {"front.png", "rows.csv", "new.json"}


def test_a_report_overwrites_no_input(bundle: Bundle, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("video,class\n")
    (tmp_path / "link.csv").symlink_to(labels)
    weights = tmp_path / "weights.json"
    weights.touch()
    for output, source in (
        (labels, labels), (tmp_path / "link.csv", labels), (weights, weights),
        (bundle.path / "bundle.json", bundle.path), (bundle.path / "new" / "report.md", bundle.path),
    ):  # fmt: skip
        done = edge("benchmark", bundle.path, "--data", labels, "--peer-checkpoint", weights, "-o", output)
        one_line_error(done, 2, f"{output}: is an input or lies in one ({source})")
    assert labels.read_text() == "video,class\n"
    ReportFiles.named([tmp_path / "new" / "report.csv", Path("/dev/stdout")], None).check((labels, bundle.path, None))


def test_what_is_missing_is_told_as_it_is_typed(
    bundle: Bundle, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "pip install 'adafocus-edge[openvino]'"
    skipped = (row_module.Skipped("[odd] openvino", command),)
    _print_benchmark(replace(report_of(bundle, clock), skipped=skipped), as_json=False)
    printed = capsys.readouterr().out
    assert command in printed
    assert "[odd] openvino" in printed


def test_compare_ends_with_1_where_something_got_worse(made: Path, tmp_path: Path) -> None:
    same = edge("benchmark", "--from", made / "new.json", "--compare", made / "new.json")
    assert same.returncode == 0, same.stderr
    assert "0 findings" in same.stderr
    slow = json.loads((made / "new.json").read_text())
    for row in slow["rows"]:
        row["model_ms"] = {name: value * (1 if name == "rounds" else 1.5) for name, value in row["model_ms"].items()}
        row["model_ms"]["low"] = row["model_ms"]["high"]
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    worse = edge(
        "benchmark", "--from", tmp_path / "slow.json", "--compare", made / "new.json", "--json", tmp_path / "c"
    )
    assert worse.returncode == 1
    assert worse.stderr.count("error: worse: ") >= 1
    assert json.loads((tmp_path / "c").read_text())["compared"]["worse"]


def test_tune_stores_a_profile_that_classify_uses(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "tuned"
    arguments = ["--data", FIGHTS, "--clips", 6, "--rounds", 2, "--threads", 1]
    done = edge("tune", bundle.path, "-o", target, "--min-accuracy", 1, "--name", "fast", *arguments)
    assert done.returncode == 0, done.stderr
    profile = read_bundle(target).profile("fast")
    assert profile.threads == 1
    assert profile.clips == 6
    clip = next(FIGHTS.glob("*/*.mp4"))
    done = edge("classify", clip, "--bundle", target, "--profile", "fast", "--json")
    assert done.returncode == 0, done.stderr
    assert "profile fast: top-1 at least 1 %" in done.stderr
    result = json.loads(done.stdout)
    assert (result["backend"], result["variant"]) == (profile.backend, profile.variant)
    assert result["steps_used"] <= profile.segments
    assert "fast" in edge("inspect", target).stdout
    one_line_error(
        edge("classify", clip, "--bundle", target, "--profile", "fast", "--threads", 1), 2, "omit those options"
    )
    one_line_error(edge("classify", clip, "--bundle", target, "--profile", "slow"), 2, "no profile 'slow'", "fast")
    again = edge("tune", target, "--min-accuracy", 1, "--name", "fast", *arguments)
    one_line_error(again, 2, "has a profile 'fast' already", "--force")
    one_line_error(
        edge("tune", target, "--max-latency-ms", 0.001, "--quiet", *arguments), 1,
        "no setting meets the demand", "the fastest",
    )  # fmt: skip
    assert set(read_bundle(target).manifest.profiles) == {"fast"}


def test_what_tune_chooses() -> None:
    def row(number: int, ms: float, top1: float, **more: Any) -> RowReport:
        return report_row(number, times(ms, ms * 1.1, ms * 2), top1=top1, **more)

    report = report_with(
        row(1, 10, 70), row(2, 20, 80), row(3, 30, 80), row(4, 40, 90), row(5, 1, 99, peer=True),
        row(6, 1, 99, streams=8),
    )  # fmt: skip
    assert choose(report, Demand(max_latency_ms=35)).id == 2  # as accurate as row 3, and faster
    assert choose(report, Demand(min_accuracy=75)).id == 2
    assert choose(report, Demand(max_latency_ms=50, min_accuracy=85)).id == 4
    assert choose(report, Demand(max_latency_ms=21, percentile="median")).id == 2
    assert choose(report, Demand(max_latency_ms=21)).id == 1  # the 95th percentile of row 2 is 22
    with pytest.raises(AdaFocusError, match="the most accurate: 44.0 ms, 90.0 %"):
        choose(report, Demand(min_accuracy=95))
    with pytest.raises(AdaFocusError, match="no setting was measured"):
        choose(report, Demand(min_accuracy=95, latency="step"))
    with pytest.raises(UsageError, match="no limit is given"):
        Demand()


def test_what_cannot_be_benchmarked_is_told_in_a_line(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"rows": []}')
    one_line_error(edge("benchmark", bundle.path, "--backends", "abacus"), 2, "--backends abacus", "onnxruntime-cpu")
    one_line_error(edge("benchmark", bundle.path, "--segments", "8,x"), 2, "--segments 8,x", "whole numbers")
    one_line_error(
        edge("benchmark", bundle.path, "--compare", tmp_path / "none.json"), 2, "none.json", "cannot be read"
    )
    one_line_error(edge("benchmark", bundle.path, "--compare", tmp_path / "bad.json"), 2, "bad.json", "not a report")
    one_line_error(edge("benchmark", bundle.path, "--from", tmp_path / "bad.json"), 2, "remove the bundle")
    one_line_error(edge("benchmark", bundle.path, "--plot", tmp_path / "a.svg"), 2, "name it *.png")
    one_line_error(edge("benchmark", bundle.path, "--checkpoint", tmp_path / "none"), 1, "no such checkpoint file")
    one_line_error(edge("benchmark", bundle.path, "--data", tmp_path / "none"), 1, "no such folder")
    one_line_error(edge("benchmark", tmp_path), 1, "bundle.json")
    one_line_error(edge("tune", bundle.path, "--data", FIGHTS), 2, "--max-latency-ms, --min-accuracy")
    one_line_error(edge("tune", bundle.path, "--min-accuracy", 50), 2, "--data is missing")
    one_line_error(edge("tune", "--data", FIGHTS, "--min-accuracy", 50), 2, "--output is missing")
