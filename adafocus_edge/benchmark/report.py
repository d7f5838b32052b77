"""Assemble a report from measurements: rows with accuracy and times, fronts, ties, and findings in words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from adafocus_edge.benchmark.grid import CHECKPOINT_PEER, TORCH_PEERS
from adafocus_edge.benchmark.schema import BundleReport, Report, RowReport
from adafocus_edge.benchmark.settings import PEERS
from adafocus_edge.benchmark.stats import Summary, comparable, distinguishable, front, mcnemar, ratio, summary
from adafocus_edge.evaluation.evaluate import exit_figures
from adafocus_edge.evaluation.evidence import few_clips_note, reuse_note
from adafocus_edge.evaluation.metrics import accuracy_curve, wilson_interval
from adafocus_edge.model.exits import exit_steps
from adafocus_edge.model.logits import softmax

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from adafocus_edge.benchmark.grid import Row
    from adafocus_edge.benchmark.state import State
    from adafocus_edge.benchmark.timing import Timing
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.model.exits import ExitThresholds

BY_CHANCE = 0.05
"""Probability above which a difference in accuracy is attributed to chance."""
WITHIN_POINTS = 1.0
"""Points of FP32's accuracy that the fastest row may lose."""
TOO_FEW_ROUNDS = "too few rounds to be sure"


def assemble(
    header: Report,
    bundles: Mapping[str, Bundle],
    rows: Sequence[Row],
    state: State,
    labels: list[tuple[int, ...]],
    *,
    multi_label: bool,
) -> Report:
    """Return the report of all measurements; rows without a timing are skipped.

    Args:
        header: the report without rows.
        bundles: the measured bundles, by name.
        rows: the settings.
        state: the measurements.
        labels: class ids of the clips; empty for synthetic frames.
        multi_label: whether mAP counts all labels of a clip.
    """
    measured = [row for row in rows if state.whole.get(row.key) and row.loading.key in state.processes]
    times = {number: _by_round(state.whole[row.key], "model_ms") for number, row in enumerate(measured, start=1)}
    right: dict[int, list[bool]] = {}
    entries = []
    for number, row in enumerate(measured, start=1):
        bundle = bundles[row.loading.bundle]
        entry = _entry(number, row, bundle, state)
        logits = state.logits(row.seen)
        if labels and logits is not None and _judged(row, bundle, random_weights=bool(header.random_weights)):
            entry = _with_accuracy(entry, row, bundle, logits, labels, multi_label)
            steps = _steps(row, bundle, logits)
            found = logits[np.arange(len(steps)), steps].argmax(-1)
            right[number] = [int(label) in of_clip[:1] for label, of_clip in zip(found, labels, strict=True)]
        entries.append(replace(entry, same_time_as=_ties(number, times)))
    processes = state.processes.values()
    report = replace(
        header,
        yardstick_ms=summary(list(state.yardstick.values())) if state.yardstick else None,
        energy_of=next((process.energy_of for process in processes if process.energy_of), None),
        bundles={name: _about(bundle) for name, bundle in bundles.items()},
        rows=_with_fronts(entries),
    )
    return replace(report, findings=tuple(_Findings(times, right).of(report)))


def _ties(number: int, times: Mapping[int, Mapping[int, float]]) -> tuple[int, ...]:
    """Return the ids of the rows whose times do not differ significantly from those of one row.

    Of fewer than :data:`MIN_ROUNDS` common rounds, nothing is known.
    """
    own = times[number]
    return tuple(
        other
        for other, theirs in times.items()
        if other != number and comparable(own, theirs) and not distinguishable(own, theirs)
    )


def _with_fronts(entries: Sequence[RowReport]) -> tuple[RowReport, ...]:
    """Return the rows, flagged where they are on a front."""

    def flags(cost: str) -> list[bool]:
        return front([_point(entry, cost) for entry in entries])

    fronts = zip(entries, flags("model_ms"), flags("whole_ms"), flags("gflops_per_clip"), strict=True)
    return tuple(
        replace(entry, on_front=time, on_whole_front=whole, on_gflops_front=gflops)
        for entry, time, whole, gflops in fronts
    )


def _judged(row: Row, bundle: Bundle, *, random_weights: bool) -> bool:
    """Return whether a row's accuracy is meaningful: not with random weights, nor with a classifier without input."""
    peer = row.loading.backend
    if peer in TORCH_PEERS:
        return not random_weights
    return peer != "glancer-alone" or bundle.spec.with_glancer


def _about(bundle: Bundle) -> BundleReport:
    spec = bundle.spec
    return BundleReport(
        path=str(bundle.path),
        glancer=spec.glancer,
        focuser=spec.focuser,
        patch_size=spec.patch_size,
        frame_size=spec.frame_size,
        segments=spec.segments,
        classes=spec.classes,
        checkpoint_sha256=bundle.manifest.provenance.checkpoint_sha256,
    )


def _point(entry: RowReport, cost: str) -> tuple[float, float | None]:
    value = getattr(entry, cost)
    if value is None or entry.streams > 1:
        return float("inf"), None
    return float(value.median if isinstance(value, Summary) else value), entry.top1


def _by_round(timings: Mapping[int, Timing], what: str) -> dict[int, float]:
    return {round_: getattr(timing, what) for round_, timing in timings.items()}


def _entry(number: int, row: Row, bundle: Bundle, state: State) -> RowReport:
    """Return a row's identity and timings, for all steps and without its relations to other rows."""
    loading, process = row.loading, state.processes[row.loading.key]
    whole, parts = state.whole[row.key], state.parts.get(row.key, {})
    model_ms = summary([timing.model_ms for timing in whole.values()])
    whole_ms = [timing.whole_ms for timing in whole.values() if timing.whole_ms is not None]
    joules = [timing.joules for timing in whole.values() if timing.joules is not None]
    mean_steps = round(float(np.mean([timing.steps for timing in whole.values()])), 4)
    parts_ms, parts_over_whole = _parts(parts, whole)
    return RowReport(
        id=number,
        key=row.key,
        bundle=loading.bundle,
        patch_size=bundle.spec.patch_size,
        backend=loading.backend,
        variant=loading.variant,
        schedule=row.schedule,
        exit=row.exit or None,
        segments=row.segments,
        streams=row.streams,
        threads=loading.threads,
        peer=loading.peer,
        model_ms=model_ms,
        whole_ms=None if row.streams > 1 else summary(whole_ms),
        step_ms=None if row.schedule == "clip" else summary([ms for t in whole.values() for ms in t.step_ms]),
        clips_per_s=round(row.streams * 1e3 / model_ms.median, 3),
        size_mb=None if loading.peer else round(bundle.totals(loading.variant)[0], 3),
        load_ms=round(process.load_ms, 1),
        cold_start_ms=round(process.cold_start_ms, 1),
        host_mb=round(process.host_mb, 1),
        device_mb=process.device_mb,
        joules_per_clip=round(float(np.mean(joules)) / row.streams, 4) if joules else None,
        gflops_per_step=round(process.gflops_per_step, 6),
        mean_steps=mean_steps,
        timed_steps=mean_steps if row.exit else None,
        parts_ms=parts_ms,
        parts_over_whole=parts_over_whole,
        samples_ms=tuple(round(timing.model_ms, 3) for timing in whole.values()),
        gflops_per_clip=round(mean_steps * process.gflops_per_step, 4),
        same_time_as=(),
        on_front=False,
        on_whole_front=False,
        on_gflops_front=False,
    )


def _parts(parts: Mapping[int, Timing], whole: Mapping[int, Timing]) -> tuple[dict[str, Summary] | None, float | None]:
    """Return the times of a row's parts, and the ratio of their sum to the whole time."""
    in_parts = [timing.parts_ms for timing in parts.values() if timing.parts_ms]
    if not in_parts:
        return None, None
    both = sorted(parts.keys() & whole.keys())
    sums = [sum((parts[round_].parts_ms or {}).values()) for round_ in both]
    wholes = [whole[round_].whole_ms or 0.0 for round_ in both]
    over = round(float(np.median(np.array(sums) / np.maximum(wholes, 1e-9))), 4)
    return {part: summary([found[part] for found in in_parts]) for part in in_parts[0]}, over


def _thresholds(row: Row, bundle: Bundle) -> ExitThresholds | None:
    name, _, order = row.exit.partition("/")
    return next((one for one in bundle.manifest.thresholds.get(name, ()) if one.order == order), None)


def _steps(row: Row, bundle: Bundle, logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the step, from 0, after which each clip ends."""
    thresholds = _thresholds(row, bundle)
    if thresholds is None:
        return np.full(len(logits), logits.shape[1] - 1)
    return exit_steps(logits, thresholds)


def _with_accuracy(
    entry: RowReport,
    row: Row,
    bundle: Bundle,
    logits: NDArray[np.float32],
    labels: list[tuple[int, ...]],
    multi_label: bool,
) -> RowReport:
    """Return a row with its accuracy, and with the steps that its thresholds take on these clips."""
    first = np.array([of_clip[0] for of_clip in labels])
    probabilities = softmax(logits)
    curve = accuracy_curve(probabilities, labels, multi_label=multi_label)
    steps = _steps(row, bundle, logits)
    final = probabilities[np.arange(len(steps)), steps]
    right = int((final.argmax(-1) == first).sum())
    low, high = wilson_interval(right, len(first))
    entry = replace(
        entry,
        top1=round(100 * right / len(first), 4),
        top1_interval_95=(round(100 * low, 2), round(100 * high, 2)),
        mAP=round(accuracy_curve(final[:, None], labels, multi_label=multi_label)[0]["mAP"], 4),
        per_step_top1=tuple(round(step["top1"], 4) for step in curve),
    )
    if (thresholds := _thresholds(row, bundle)) is None:
        return entry
    figures = exit_figures(logits, first, thresholds, entry.gflops_per_step or 0.0)
    return replace(
        entry,
        mean_steps=figures["mean_steps"],
        gflops_per_clip=figures["gflops_per_clip"],
        top1_random_exit=figures["top1_random_exit"],
    )


# -- findings ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Findings:
    """Writes the findings, a sentence each: which settings pay on this device, and which do not.

    Attributes:
        times: milliseconds in the model, by row and round.
        right: whether each clip is classified correctly, by row.
    """

    times: Mapping[int, Mapping[int, float]]
    right: Mapping[int, Sequence[bool]]

    def of(self, report: Report) -> Iterable[str]:
        """Yield the sentences."""
        for name, about in (report.bundles or {}).items():
            rows = [row for row in report.rows if row.bundle == name and row.streams == 1]
            own = [row for row in rows if not row.peer and row.segments == about.segments]
            plain = [row for row in own if row.variant == "fp32" and row.schedule == "clip"]
            if not plain:
                continue
            # Peers run on the GPU if the model does.
            reference = max(plain, key=lambda row: (row.backend != "onnxruntime-cpu", row.threads))
            sentences = [self._of_peer(row, reference) for row in rows if row.peer]
            sentences += [self._of_exit(row, reference) for row in own if row.exit and _alike(row, reference)]
            if reference.top1 is not None and report.data is not None:
                sentences.append(self._of_fastest(rows, reference))
                clips = report.data.clips
                reused = (report.data.reused or {}).get(name, {})
                notes = (few_clips_note(reference.interval, clips), reuse_note(reused, clips))
                sentences += [note for note in notes if note is not None]
            yield from (f"{name}: {sentence}." for sentence in sentences)

    def _of_peer(self, peer: RowReport, reference: RowReport) -> str:
        text = f"{_called(peer)}: {self._faster(peer, reference)} FP32's {reference.model_ms.median:.1f} ms per clip"
        if peer.id not in self.right or reference.id not in self.right:
            return text
        text += self._accuracies(peer, reference)
        if peer.backend in TORCH_PEERS:
            return text
        gflops, ours = peer.gflops_per_clip, reference.gflops_per_clip
        text += f", {gflops:.1f} GFLOPs against {ours:.1f}"
        if gflops < ours:
            what = "AdaFocus does" if peer.backend.startswith(CHECKPOINT_PEER) else "the policy's patches do"
            if peer.accuracy >= reference.accuracy - WITHIN_POINTS:
                text += f": here {what} not pay"
            elif self._by_chance(peer, reference):
                text += ": too few clips to decide whether the policy's patches pay"
        return text

    def _of_exit(self, row: RowReport, reference: RowReport) -> str:
        """Compare early exit with all steps of the clip schedule, which batches its frames."""
        steps = f"--exit {row.exit} takes {row.mean_steps:.1f} of {row.segments} steps"
        if row.timed_steps is not None:
            steps += f" ({row.timed_steps:.1f} in the timed runs)"
        text = f"{steps}: {self._faster(row, reference)} all steps"
        if row.top1 is not None and reference.top1 is not None:
            text += self._accuracies(row, reference)
        enough = comparable(self.times[row.id], self.times[reference.id])
        if enough and row.model_ms.median >= reference.model_ms.median:
            text += ": early exit does not pay, as processing few frames at a time costs more than it saves"
        return text

    def _of_fastest(self, rows: list[RowReport], reference: RowReport) -> str:
        """Name the fastest row within a point of FP32's accuracy, and compare it with eager PyTorch."""
        near = [r for r in rows if not r.peer and r.top1 is not None and r.top1 >= reference.accuracy - WITHIN_POINTS]
        best = min(near, key=lambda row: row.model_ms.median)
        text = (
            f"the fastest setting within {WITHIN_POINTS:g} point of FP32's {reference.accuracy:.1f} % is row "
            f"{best.id} ({_called(best)}): {best.model_ms.median:.1f} ms per clip, top-1 {best.accuracy:.1f} %"
        )
        eager = next((row for row in rows if row.backend == "pytorch-eager"), None)
        if eager is not None:
            ours, theirs = self.times[best.id], self.times[eager.id]
            middle, low, high = ratio(theirs, ours)
            sure = f"{low:.1f} to {high:.1f}" if comparable(ours, theirs) else TOO_FEW_ROUNDS
            text += f", {middle:.1f} times ({sure}) faster than {PEERS['pytorch-eager']}"
        return text

    def _accuracies(self, row: RowReport, reference: RowReport) -> str:
        text = f", top-1 {row.accuracy:.1f} % against {reference.accuracy:.1f} %"
        differ = row.accuracy != reference.accuracy
        return text + (" (the difference may be due to chance)" if differ and self._by_chance(row, reference) else "")

    def _by_chance(self, row: RowReport, reference: RowReport) -> bool:
        return mcnemar(self.right[row.id], self.right[reference.id]) > BY_CHANCE

    def _faster(self, row: RowReport, reference: RowReport) -> str:
        ours, theirs = self.times[row.id], self.times[reference.id]
        middle, low, high = ratio(theirs, ours)
        enough = comparable(ours, theirs)
        if enough and not distinguishable(ours, theirs):
            return "takes as long as"
        word = "faster"
        if middle < 1:
            middle, low, high, word = 1 / middle, 1 / high, 1 / low, "slower"
        sure = f"{low:.2f} to {high:.2f}" if enough else TOO_FEW_ROUNDS
        return f"{middle:.2f} times ({sure}) {word} than"


def _alike(row: RowReport, reference: RowReport) -> bool:
    return all(getattr(row, name) == getattr(reference, name) for name in ("backend", "variant", "threads"))


def _called(row: RowReport) -> str:
    if row.backend in PEERS:
        return PEERS[row.backend]
    if row.peer:
        return f"the checkpoint {row.backend.removeprefix(CHECKPOINT_PEER)} in PyTorch"
    exit_ = f", --exit {row.exit}" if row.exit else ""
    return f"{row.backend}, {row.variant}, {row.schedule} schedule, {row.threads} threads{exit_}"
