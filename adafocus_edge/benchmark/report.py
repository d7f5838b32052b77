"""From measurements to a report: a JSON object of rows, with fronts, ties, and what it all says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.benchmark.grid import CHECKPOINT_PEER, TORCH_PEERS
from adafocus_edge.benchmark.settings import PEERS
from adafocus_edge.benchmark.stats import distinguishable, front, mcnemar, ratio, summary
from adafocus_edge.evaluation.evaluate import exit_figures
from adafocus_edge.evaluation.evidence import few_clips_note, reuse_note
from adafocus_edge.evaluation.metrics import accuracy_curve, wilson_interval
from adafocus_edge.model.exits import exit_steps
from adafocus_edge.model.logits import softmax

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from adafocus_edge.benchmark.grid import Row, Skipped
    from adafocus_edge.benchmark.state import State
    from adafocus_edge.benchmark.timing import Timing
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.model.exits import ExitThresholds

Report = dict[str, Any]
FRONTS = {"on_front": "model_ms", "on_whole_front": "whole_ms", "on_gflops_front": "gflops_per_clip"}
"""A row's flags, each for one cost that accuracy is weighed against."""
BY_CHANCE = 0.05
"""Differences in accuracy that chance makes more often than this are not called differences."""
SAME_MODEL = (*TORCH_PEERS, "openvino")
"""Peers that compute what the model computes."""
WITHIN_POINTS = 1.0
"""Of FP32's accuracy: what the fastest row may lose."""


def assemble(
    header: Report,
    bundles: Mapping[str, Bundle],
    rows: Sequence[Row],
    state: State,
    labels: list[tuple[int, ...]],
    skipped: Iterable[Skipped],
    *,
    multi_label: bool,
) -> Report:
    """Make the report of everything that was measured; rows without a timing are left out."""
    measured = [row for row in rows if state.whole.get(row.key) and row.loading.key in state.told]
    right: dict[int, list[bool]] = {}
    entries = []
    for number, row in enumerate(measured, start=1):
        bundle = bundles[row.loading.bundle]
        entry = _entry(number, row, bundle, state)
        logits = state.logits(row.seen)
        if labels and logits is not None and _judged(row, bundle, random_weights=header["random_weights"]):
            entry |= _accuracy(row, bundle, logits, labels, entry["gflops_per_step"], multi_label)
            steps = _steps(row, bundle, logits)
            found = logits[np.arange(len(steps)), steps].argmax(-1)
            right[number] = [int(label) in of_clip[:1] for label, of_clip in zip(found, labels, strict=True)]
        entries.append(entry)
    times = [_by_round(state.whole[row.key], "model_ms") for row in measured]
    for number, (entry, own) in enumerate(zip(entries, times, strict=True)):
        entry["same_time_as"] = [
            other["id"]
            for place, (other, theirs) in enumerate(zip(entries, times, strict=True))
            if place != number and own.keys() & theirs.keys() and not distinguishable(own, theirs)
        ]
    for name, cost in FRONTS.items():
        for entry, flag in zip(entries, front([_point(e, cost) for e in entries]), strict=True):
            entry[name] = flag
    report = {
        **header,
        "yardstick_ms": summary(list(state.yardstick.values())) if state.yardstick else None,
        "energy_of": next((told["energy_of"] for told in state.told.values() if told["energy_of"]), None),
        "bundles": {name: _about(bundle) for name, bundle in bundles.items()},
        "rows": entries,
        "skipped": [asdict(one) for one in skipped],
    }
    findings = _Findings({entry["id"]: own for entry, own in zip(entries, times, strict=True)}, right)
    report["findings"] = list(findings.of(report))
    return report


def _judged(row: Row, bundle: Bundle, *, random_weights: bool) -> bool:
    """Whether a row's accuracy means anything: not of random weights, nor of a classifier that sees nothing."""
    peer = row.loading.backend
    if peer in TORCH_PEERS:
        return not random_weights
    return peer != "glancer-alone" or bundle.spec.with_glancer


def _about(bundle: Bundle) -> Report:
    spec = bundle.spec
    return {
        "path": str(bundle.path),
        "glancer": spec.glancer,
        "focuser": spec.focuser,
        "patch_size": spec.patch_size,
        "frame_size": spec.frame_size,
        "segments": spec.segments,
        "classes": spec.classes,
        "checkpoint_sha256": bundle.manifest.provenance.checkpoint_sha256,
    }


def _point(entry: Report, cost: str) -> tuple[float, float | None]:
    value = entry.get(cost)
    if value is None or entry["streams"] > 1:
        return float("inf"), None
    return float(value["median"] if isinstance(value, dict) else value), entry.get("top1")


def _by_round(timings: Mapping[int, Timing], what: str) -> dict[int, float]:
    return {round_: getattr(timing, what) for round_, timing in timings.items()}


def _entry(number: int, row: Row, bundle: Bundle, state: State) -> Report:
    """Return a row's identity and all that was timed."""
    loading, told = row.loading, state.told[row.loading.key]
    whole, parts = state.whole[row.key], state.parts.get(row.key, {})
    model_ms = summary([timing.model_ms for timing in whole.values()])
    entry: Report = {
        "id": number,
        "key": row.key,
        "bundle": loading.bundle,
        "patch_size": bundle.spec.patch_size,
        "backend": loading.backend,
        "variant": loading.variant,
        "schedule": row.schedule,
        "exit": row.exit or None,
        "segments": row.segments,
        "streams": row.streams,
        "threads": loading.threads,
        "peer": loading.peer,
        "model_ms": model_ms,
        "whole_ms": None
        if row.streams > 1
        else summary([t.whole_ms for t in whole.values() if t.whole_ms is not None]),
        "step_ms": None if row.schedule == "clip" else summary([ms for t in whole.values() for ms in t.step_ms]),
        "clips_per_s": round(row.streams * 1e3 / model_ms["median"], 3),
        "size_mb": None if loading.peer else round(bundle.totals(loading.variant)[0], 3),
        "load_ms": round(told["load_ms"], 1),
        "cold_start_ms": round(told["cold_start_ms"], 1),
        "host_mb": round(told["host_mb"], 1),
        "device_mb": told["device_mb"],
        "joules_per_clip": None,
        "gflops_per_step": round(told["gflops_per_step"], 6),
        "mean_steps": round(float(np.mean([timing.steps for timing in whole.values()])), 4),
        "parts_ms": None,
        "parts_over_whole": None,
        "samples_ms": [round(timing.model_ms, 3) for timing in whole.values()],
    }
    entry["gflops_per_clip"] = round(entry["mean_steps"] * told["gflops_per_step"], 4)
    joules = [timing.joules for timing in whole.values() if timing.joules is not None]
    if joules:
        entry["joules_per_clip"] = round(float(np.mean(joules)) / row.streams, 4)
    in_parts = [timing.parts_ms for timing in parts.values() if timing.parts_ms]
    if in_parts:
        entry["parts_ms"] = {part: summary([found[part] for found in in_parts]) for part in in_parts[0]}
        both = sorted(parts.keys() & whole.keys())
        sums = [sum((parts[round_].parts_ms or {}).values()) for round_ in both]
        wholes = [whole[round_].whole_ms or 0.0 for round_ in both]
        entry["parts_over_whole"] = round(float(np.median(np.array(sums) / np.maximum(wholes, 1e-9))), 4)
    return entry


def _thresholds(row: Row, bundle: Bundle) -> ExitThresholds | None:
    name, _, order = row.exit.partition("/")
    return next((one for one in bundle.manifest.thresholds.get(name, ()) if one.order == order), None)


def _steps(row: Row, bundle: Bundle, logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the step, from 0, after which each clip ends."""
    thresholds = _thresholds(row, bundle)
    if thresholds is None:
        return np.full(len(logits), logits.shape[1] - 1)
    return exit_steps(logits, thresholds)


def _accuracy(
    row: Row,
    bundle: Bundle,
    logits: NDArray[np.float32],
    labels: list[tuple[int, ...]],
    gflops_per_step: float,
    multi_label: bool,
) -> Report:
    first = np.array([of_clip[0] for of_clip in labels])
    probabilities = softmax(logits)
    curve = accuracy_curve(probabilities, labels, multi_label=multi_label)
    steps = _steps(row, bundle, logits)
    final = probabilities[np.arange(len(steps)), steps]
    right = int((final.argmax(-1) == first).sum())
    low, high = wilson_interval(right, len(first))
    found: Report = {
        "top1": round(100 * right / len(first), 4),
        "top1_interval_95": [round(100 * low, 2), round(100 * high, 2)],
        "mAP": round(accuracy_curve(final[:, None], labels, multi_label=multi_label)[0]["mAP"], 4),
        "per_step_top1": [round(step["top1"], 4) for step in curve],
    }
    if (thresholds := _thresholds(row, bundle)) is not None:
        figures = exit_figures(logits, first, thresholds, gflops_per_step)
        found |= {name: figures[name] for name in ("mean_steps", "gflops_per_clip", "top1_random_exit")}
    return found


# -- what it says ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Findings:
    """What a reader would want to be told, one sentence each: what pays on this device, and what does not.

    Attributes:
        times: milliseconds in the model, by row and round.
        right: whether each clip is right, by row.
    """

    times: Mapping[int, Mapping[int, float]]
    right: Mapping[int, Sequence[bool]]

    def of(self, report: Report) -> Iterable[str]:
        """Yield the sentences."""
        for name, about in report["bundles"].items():
            rows = [row for row in report["rows"] if row["bundle"] == name and row["streams"] == 1]
            own = [row for row in rows if not row["peer"] and row["segments"] == about["segments"]]
            plain = [row for row in own if row["variant"] == "fp32" and row["schedule"] == "clip"]
            if not plain:
                continue
            # Peers run on the GPU where the model does.
            reference = max(plain, key=lambda row: (row["backend"] != "onnxruntime-cpu", row["threads"]))
            sentences = [self._of_peer(row, reference) for row in rows if row["peer"]]
            sentences += [self._of_exit(row, reference) for row in own if row["exit"] and _alike(row, reference)]
            if "top1" in reference:
                sentences.append(self._of_fastest(rows, reference))
                clips = report["data"]["clips"]
                reused = report["data"].get("reused", {}).get(name, {})
                notes = (few_clips_note(reference["top1_interval_95"], clips), reuse_note(reused, clips))
                sentences += [note for note in notes if note is not None]
            yield from (f"{name}: {sentence}." for sentence in sentences)

    def _of_peer(self, peer: Report, reference: Report) -> str:
        text = (
            f"{_called(peer)}: {self._faster(peer, reference)} FP32's {reference['model_ms']['median']:.1f} ms per clip"
        )
        if peer["id"] not in self.right or reference["id"] not in self.right:
            return text
        text += self._accuracies(peer, reference)
        if peer["backend"] in SAME_MODEL:
            return text
        gflops, ours = peer["gflops_per_clip"], reference["gflops_per_clip"]
        text += f", {gflops:.1f} GFLOPs against {ours:.1f}"
        if gflops < ours:
            what = "AdaFocus does" if peer["backend"].startswith(CHECKPOINT_PEER) else "the policy's patches do"
            if peer["top1"] >= reference["top1"] - WITHIN_POINTS:
                text += f": here {what} not pay"
            elif self._by_chance(peer, reference):
                text += ": too few clips to say whether the policy's patches pay"
        return text

    def _of_exit(self, row: Report, reference: Report) -> str:
        """Say what early exit gains against all steps of the clip schedule, which batches what it sees."""
        text = (
            f"--exit {row['exit']} takes {row['mean_steps']:.1f} of {row['segments']} steps: "
            f"{self._faster(row, reference)} all steps"
        )
        if "top1" in row and "top1" in reference:
            text += self._accuracies(row, reference)
        if row["model_ms"]["median"] >= reference["model_ms"]["median"]:
            text += ": stopping early does not pay, one frame at a time costs more than it saves"
        return text

    def _of_fastest(self, rows: list[Report], reference: Report) -> str:
        """Say which row within a point of FP32's accuracy is the fastest, and how it compares with eager PyTorch."""
        near = [r for r in rows if not r["peer"] and r.get("top1", -1.0) >= reference["top1"] - WITHIN_POINTS]
        best = min(near, key=lambda row: row["model_ms"]["median"])
        text = (
            f"the fastest setting within {WITHIN_POINTS:g} point of FP32's {reference['top1']:.1f} % is row "
            f"{best['id']} ({_called(best)}): {best['model_ms']['median']:.1f} ms per clip, top-1 {best['top1']:.1f} %"
        )
        eager = next((row for row in rows if row["backend"] == "pytorch-eager"), None)
        if eager is not None:
            middle, low, high = ratio(self.times[eager["id"]], self.times[best["id"]])
            text += f", {middle:.1f} times ({low:.1f} to {high:.1f}) faster than {PEERS['pytorch-eager']}"
        return text

    def _accuracies(self, row: Report, reference: Report) -> str:
        text = f", top-1 {row['top1']:.1f} % against {reference['top1']:.1f} %"
        differ = row["top1"] != reference["top1"]
        return text + (
            " (chance alone may explain the difference)" if differ and self._by_chance(row, reference) else ""
        )

    def _by_chance(self, row: Report, reference: Report) -> bool:
        return mcnemar(self.right[row["id"]], self.right[reference["id"]]) > BY_CHANCE

    def _faster(self, row: Report, reference: Report) -> str:
        ours, theirs = self.times[row["id"]], self.times[reference["id"]]
        middle, low, high = ratio(theirs, ours)
        if not distinguishable(ours, theirs):
            return "takes as long as"
        if middle >= 1:
            return f"{middle:.2f} times ({low:.2f} to {high:.2f}) faster than"
        return f"{1 / middle:.2f} times ({1 / high:.2f} to {1 / low:.2f}) slower than"


def _alike(row: Report, reference: Report) -> bool:
    return all(row[name] == reference[name] for name in ("backend", "variant", "threads"))


def _called(row: Report) -> str:
    if row["backend"] in PEERS:
        return PEERS[row["backend"]]
    if row["peer"]:
        return f"the checkpoint {row['backend'].removeprefix(CHECKPOINT_PEER)}, by PyTorch"
    exit_ = f", --exit {row['exit']}" if row["exit"] else ""
    return f"{row['backend']}, {row['variant']}, {row['schedule']} schedule, {row['threads']} threads{exit_}"
