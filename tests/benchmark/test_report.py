"""A benchmark's report, byte for byte: what other programs read does not change by accident.

``recorded/`` was written by the code before its report became dataclasses. Where a change of the report is wanted,
``ADAFOCUS_EDGE_RECORD=1`` writes it again, and the commit shows what changed.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adafocus_edge.benchmark.compare import read_report
from adafocus_edge.benchmark.files import ReportFiles
from adafocus_edge.benchmark.run import Request, run
from adafocus_edge.benchmark.schema import to_json
from adafocus_edge.benchmark.tables import csv_text, markdown
from adafocus_edge.benchmark.worker import Memory, Opening, Ready
from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.evaluation.dataset import read_data
from tests.benchmark.test_benchmark import COSTS_MS, CPU, FIGHTS, Clock, InProcess, clock
from tests.conftest import ROOT

__all__ = ["clock"]  # a fixture
RECORDED = Path(__file__).with_name("recorded")
PUBLISHED = sorted((ROOT / "benchmarks" / "results").glob("front-*.json"))
"""Reports of older versions."""
MACHINE = {
    "processor": "a processor", "cpu": "a processor", "cpu_flags": ["avx2"], "cores": 2, "usable_cores": 2,
    "governor": None, "virtual": True, "memory": "8.0 GB", "gpu": "none", "system": "Linux", "python": "3.12",
    "versions": {"adafocus-edge": "1"}, "load_average": 0.5,
}  # fmt: skip


class Answering(InProcess):
    """A worker whose logits depend on the clip and on the model only, and whose device draws energy."""

    def __init__(self, opening: Opening, bundle: Bundle, clock: Clock) -> None:
        slower = 1.5 if opening.loading.peer else 1.0
        super().__init__(opening, bundle, clock, {graph: ms * slower for graph, ms in COSTS_MS.items()})
        self.ready = Ready(10.0, 20.0, 0.5 if opening.loading.peer else 0.25, "cpu")
        self._sure = 1.0 if opening.loading.peer else 3.0

    def time(self, row: Any, source: Any, *, parts: bool = False) -> Any:
        return replace(super().time(row, source, parts=parts), joules=0.75)

    def logits(self, frames: Path, clip: int, order: Any) -> np.ndarray:
        steps = np.load(frames, mmap_mode="r").shape[1]
        random = np.random.default_rng((clip, len(order)))
        logits = random.normal(0, 1, (steps, 2)).astype(np.float32)
        logits[:, 0] += self._sure * np.linspace(0, 1, steps, dtype=np.float32)
        return logits

    def memory(self) -> Memory:
        return Memory(50.0, 25.5)


@pytest.fixture
def written(bundle: Bundle, clock: Clock, tmp_path: Path) -> Path:
    """A report's JSON as `benchmark -o` writes it; what differs from machine to machine is the same in each."""
    peers = ("pytorch-eager", "whole-frames", "centre-patches", "pytorch-compile")
    grid = replace(CPU, exits=None, labelled=True, streams=(1, 2), peers=peers)
    request = Request({"fights": bundle}, grid, read_data(FIGHTS, bundle.classes), clips=12, rounds=8)
    report = run(request, opened=lambda opening: Answering(opening, bundle, clock))
    path = tmp_path / "report.json"
    ReportFiles((("json", path),)).write(report)
    found = json.loads(path.read_text())
    found |= {"created": "2026-01-01T00:00:00+00:00", "version": "1", "machine": MACHINE}
    found["bundles"]["fights"] |= {"path": "fights", "checkpoint_sha256": "0"}
    found["data"]["origin"] = "tests/fights"
    # Notes of other parts of the product are not recorded.
    found["findings"] = [text for text in found["findings"] if " ms per clip" in text or "--exit" in text]
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path


def same_as_recorded(name: str, text: str) -> None:
    path = RECORDED / name
    if os.environ.get("ADAFOCUS_EDGE_RECORD"):
        path.write_text(text, newline="")
    with path.open(newline="") as file:
        assert text == file.read()


def test_the_json_is_what_it_was(written: Path) -> None:
    same_as_recorded("report.json", written.read_text())


def test_csv_and_markdown_of_a_report_are_what_they_were(written: Path) -> None:
    report = read_report(written)
    same_as_recorded("report.csv", csv_text(report))
    same_as_recorded("report.md", markdown(report))


def test_a_report_that_is_read_is_written_as_it_was(written: Path) -> None:
    before = written.read_bytes()
    ReportFiles((("json", written),)).write(read_report(written))
    assert written.read_bytes() == before


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_reports_of_older_versions_are_read_with_all_that_is_in_them(path: Path) -> None:
    before = json.loads(path.read_text())
    assert json.dumps(to_json(read_report(path))) == json.dumps(before)
