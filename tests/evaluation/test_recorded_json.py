"""The JSON that programs of users read does not change: it is compared with files that version 0.1.0 wrote.

``recorded/`` holds what `classify --json --logits`, `evaluate --json`, `inspect --json` and `doctor --json` printed,
and the JSON of the objects that are made here, byte for byte. To record the latter again after a deliberate change::

    python -m tests.evaluation.test_recorded_json
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adafocus_edge.doctor import examine, findings_json
from adafocus_edge.evaluation.dataset import Example
from adafocus_edge.evaluation.evaluate import Evaluation, Scored
from adafocus_edge.evaluation.evidence import Verdict
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.runtime.classifier import Guess, Result, Step
from adafocus_edge.system.json_lines import to_line

RECORDED = Path(__file__).parent / "recorded"
FIGHTS = Path(__file__).parents[1] / "fights"


def made_result() -> Result:
    """Return a result with what is hard to print: no times, long and short floats, a label beyond ASCII."""
    first = Guess("fechten, schläge", 3, 0.1234567890123)
    second = Guess("run", 0, 1e-7)
    logits = np.array([1e-7, -0.25, 3.4028235e38, 1.0], np.float32)
    steps = (Step(0, 9, 0.30004999, (0, 96, 128), first, logits), Step(1, 19, None, (12, 0, 128), second, -logits))
    return Result("ü.mp4", 0.0, 10.00005, (first, second), steps, True, 1234.5678, 99.9999, "onnxruntime-cpu", "fp32")


def made_evaluation() -> Evaluation:
    """Return an evaluation with failed clips, several labels, early exit and reused clips."""
    logits = [[[2, 0, 0], [1, 3, 0]], [[0, 2, 0], [0, 1, 0]], [[0, 0, 1], [0, 2, 0]], [[0, 0.5, 0.25], [9, 0, 0]]]
    labels = [(0,), (1, 2), (1,), (0, 1)]
    scored = tuple(
        Scored(Example(f"clip {n}.mp4", Path(f"clip {n}.mp4"), of_clip), np.array(values, np.float32), 1.5 * n, 3.25)
        for n, (values, of_clip) in enumerate(zip(logits, labels, strict=True))
    )
    exits = ExitThresholds("clip", "probability", (0.6, 0.0))
    failed = (("bad.mp4", "bad.mp4: no video in it"),)
    return Evaluation("a.csv", ("x", "y", "z"), scored, failed, True, 1.23456789, exits, {"calibrate": 2, "report": 1})


def made_verdicts() -> list[Verdict]:
    """Return a verdict of each direction."""
    low = Verdict("at most 0.5 points lost", 0.5, 0.123456789, (-1.0, 2.5), 40)
    return [low, replace(low, limit=50.0, found=75.0, interval=(60.0, 90.0), at_most=False)]


MADE: dict[str, Callable[[], list[Any]]] = {
    "result": lambda: [made_result().to_json()],
    "result-logits": lambda: [made_result().to_json(logits=True)],
    "result-untimed": lambda: [replace(made_result(), start_s=None, end_s=None).to_json()],
    "evaluation": lambda: [made_evaluation().to_json()],
    "evaluation-all-steps": lambda: [replace(made_evaluation(), exits=None, multi_label=False, failed=()).to_json()],
    "verdicts": lambda: [verdict.to_json() for verdict in made_verdicts()],
}


def printed(name: str) -> str:
    return "".join(to_line(entry) + "\n" for entry in MADE[name]())


@pytest.mark.parametrize("name", MADE)
def test_an_object_is_printed_byte_for_byte_as_recorded(name: str) -> None:
    assert printed(name) == (RECORDED / f"{name}.jsonl").read_text(encoding="utf-8")


def edge_json(*arguments: object) -> str:
    from tests.conftest import edge

    return str(edge(*arguments).stdout)


def alike(found: Any, recorded: Any, where: str = "") -> None:
    """Check that two JSON values have the same keys in the same order, types and values; floats to 3 digits."""
    assert type(found) is type(recorded), where
    if isinstance(found, dict):
        assert list(found) == list(recorded), where
        for key in found:
            if key not in VOLATILE:
                alike(found[key], recorded[key], f"{where}.{key}")
    elif isinstance(found, list):
        assert len(found) == len(recorded), where
        for number, (one, other) in enumerate(zip(found, recorded, strict=True)):
            alike(one, other, f"{where}[{number}]")
    elif isinstance(found, float):
        assert found == pytest.approx(recorded, rel=1e-3, abs=1e-3), where
    else:
        assert found == recorded, where


VOLATILE = {"latency_ms", "model_ms", "model_ms_per_clip", "read_ms_per_clip", "source", "model", "data"}
"""Times of this machine, and paths of this run."""


def test_classify_prints_the_recorded_object() -> None:
    line = edge_json("classify", FIGHTS / "fight" / "fi013.mp4", "--json", "--logits", "--quiet", "--backend",
                     "onnxruntime-cpu")  # fmt: skip
    recorded = (RECORDED / "classify.jsonl").read_text(encoding="utf-8")
    assert line == json.dumps(json.loads(line), ensure_ascii=False) + "\n"
    alike(json.loads(line), json.loads(recorded))


def test_evaluate_prints_the_recorded_object(tmp_path: Path) -> None:
    for name in ("fight/fi013.mp4", "fight/fi035.mp4", "no_fight/nofi018.mp4", "no_fight/nofi020.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(FIGHTS / name)
    line = edge_json("evaluate", "--data", tmp_path, "--json", "--quiet", "--backend", "onnxruntime-cpu")
    recorded = (RECORDED / "evaluate.json").read_text(encoding="utf-8")
    assert line == json.dumps(json.loads(line), ensure_ascii=False) + "\n"
    alike(json.loads(line), json.loads(recorded))


def test_inspect_prints_the_default_bundle_byte_for_byte_as_recorded() -> None:
    assert edge_json("inspect", "--json") == (RECORDED / "inspect.json").read_text(encoding="utf-8")


def test_doctor_reports_the_recorded_parts_in_their_order() -> None:
    recorded = json.loads((RECORDED / "doctor.json").read_text(encoding="utf-8"))
    found = findings_json(examine())
    assert [list(entry) for entry in found] == [list(entry) for entry in recorded]
    assert [entry["part"] for entry in found] == [entry["part"] for entry in recorded]
    assert {entry["status"] for entry in found} <= {"ok", "missing", "none"}


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    for name in MADE:
        (RECORDED / f"{name}.jsonl").write_text(printed(name), encoding="utf-8")
