"""What a benchmark plans to measure, and the statistics of its timings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from adafocus_edge.backends.registry import BACKENDS
from adafocus_edge.benchmark import grid as row_module
from adafocus_edge.benchmark.grid import PEERS, Grid, plan
from adafocus_edge.benchmark.settings import QUICK_CLIPS, QUICK_ROUNDS, BenchmarkOptions
from adafocus_edge.benchmark.stats import distinguishable, front, mcnemar, ratio, summary
from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.errors import UsageError

# -- statistics --------------------------------------------------------------------------------------------------------


def test_a_summary_is_what_is_worked_out_by_hand() -> None:
    found = summary([float(value) for value in range(1, 102)])
    assert (found.median, found.p95, found.p99, found.min, found.rounds) == (51, 96, 100, 1, 101)
    assert found.spread == (96 - 6) / 2
    # 95 % of the medians of 30 lie between the 10th and the 21st of them (binomial table).
    found = summary([float(value) for value in range(1, 31)])
    assert (found.low, found.high) == (10, 21)
    few = summary([3.0, 1.0, 2.0])
    assert (few.low, few.high) == (1, 3)


def test_a_machine_that_slows_down_hurts_both_rows_so_their_ratio_stays() -> None:
    slowing = {round_: 10.0 * (1 + round_ / 10) for round_ in range(20)}
    faster = {round_: value * 0.9 for round_, value in slowing.items()}
    assert ratio(faster, slowing) == (pytest.approx(0.9), pytest.approx(0.9), pytest.approx(0.9))
    assert distinguishable(faster, slowing)
    # Their samples overlap widely: only round by round do they differ.
    assert max(faster.values()) > min(slowing.values())
    noise = np.random.default_rng(0)
    again = {round_: value * noise.normal(1, 0.05) for round_, value in slowing.items()}
    assert not distinguishable(again, slowing)
    assert not distinguishable({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0})  # too few rounds to be sure
    assert not distinguishable({9: 1.0}, {0: 2.0})


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(1.0, 50.0), (2.0, 70.0), (2.0, 60.0), (3.0, 70.0), (4.0, 80.0), (0.5, None)]
    assert front(points) == [True, True, False, False, True, False]


def test_mcnemar_asks_whether_chance_explains_a_difference() -> None:
    assert mcnemar([True] * 9 + [False], [False] * 9 + [True]) == pytest.approx(22 / 1024)
    assert mcnemar([True, False], [True, False]) == 1


# -- the grid ----------------------------------------------------------------------------------------------------------


def test_the_grid_holds_what_can_run_here_and_says_why_not_of_the_rest(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="--streams 4: only the stream schedule"):
        plan({"fights": bundle}, Grid(schedules=("clip",), streams=(1, 4)))
    rows, skipped = plan({"fights": bundle}, Grid(backends=("onnxruntime-cpu",), streams=(1, 4), threads=(1, 2)))
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys)
    own = [row for row in rows if not row.loading.peer]
    # clip, stream, stream x 4 and two orders of exits, for each number of threads.
    assert len(own) == 2 * 5
    assert {row.exit for row in own} == {"", "safe/clip", "safe/coarse-to-fine"}
    assert {row.loading.backend for row in rows if row.loading.peer} == set(PEERS)
    assert [one.what for one in skipped] == ["fights fp16 on onnxruntime-cpu"]  # made for a GPU
    _, skipped = plan({"fights": bundle}, Grid(labelled=False, peers=()))
    assert any(entry.what == "exit safe" and "--data" in entry.why for entry in skipped)
    for asked in (
        Grid(backends=("cuda",)), Grid(variants=("int4",)), Grid(schedules=("both",)), Grid(exits=("half",)),
        Grid(peers=("tsn",)), Grid(streams=(0,)), Grid(segments=(5000,)),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="must be one of|must be from 1 to"):
            plan({"fights": bundle}, asked)


def test_a_quick_benchmark_measures_less_unless_told_how_much() -> None:
    quick = BenchmarkOptions(quick=True)
    assert (quick.number_of_rounds, quick.max_clips, quick.compared_with) == (QUICK_ROUNDS, QUICK_CLIPS, ())
    told = BenchmarkOptions(quick=True, rounds=30, clips=128, peers=("centre-patches",))
    assert (told.number_of_rounds, told.max_clips, told.compared_with) == (30, 128, ("centre-patches",))
    full = BenchmarkOptions()
    assert (full.number_of_rounds, full.max_clips, full.compared_with) == (30, 128, tuple(PEERS))


def test_variants_are_measured_where_they_are_made_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = bundle.manifest.variants["fp32"]
    variants = {"fp32": graphs, "int8-cpu": graphs, "int8-trt": graphs, "fp16": graphs}
    full = replace(bundle, manifest=replace(bundle.manifest, variants=variants))
    monkeypatch.setattr(row_module, "obstacle", lambda backend: None)  # as with a GPU
    rows, skipped = plan({"fights": full}, Grid(peers=(), schedules=("clip",), exits=()))
    found = {backend: [row.loading.variant for row in rows if row.loading.backend == backend] for backend in BACKENDS}
    assert found["onnxruntime-cpu"] == ["fp32", "int8-cpu"]
    assert found["tensorrt"] == ["fp32", "int8-trt", "fp16"]
    assert found["onnxruntime-cuda"] == ["fp32", "fp16"]
    assert found["openvino"] == ["fp32", "int8-cpu"]
    assert len(skipped) == 2 + 1 + 2 + 1 + 2  # of each backend, in the order above and with ONNX Runtime's TensorRT
    rows, _ = plan({"fights": full}, Grid(peers=(), schedules=("clip",), exits=(), variants=("fp16",)))
    assert {row.loading.backend for row in rows} == set(BACKENDS)  # asked for by name
