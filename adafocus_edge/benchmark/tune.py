"""Tuning: find the setting that meets a demand on this device, and store it in the bundle as a named profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.backends.registry import find_backend
from adafocus_edge.benchmark.measure import measure_settings
from adafocus_edge.benchmark.settings import Latency, Percentile, TuneOptions
from adafocus_edge.bundle.manifest import Profile
from adafocus_edge.bundle.store import bundle_lock, copied_bundle, default_bundle, read_bundle, update_bundle
from adafocus_edge.errors import AdaFocusError, BundleError, UsageError
from adafocus_edge.evaluation.dataset import check_data
from adafocus_edge.evaluation.evidence import Verdict, few_clips_note, reuse_note
from adafocus_edge.system.timestamps import iso_now

if TYPE_CHECKING:
    from adafocus_edge.benchmark.run import Progress
    from adafocus_edge.benchmark.schema import Report, RowReport
    from adafocus_edge.benchmark.stats import Summary
    from adafocus_edge.bundle.manifest import Bundle, Manifest

NO_LIMIT = float("inf")


@dataclass(frozen=True)
class Demand:
    """The limits that a setting must meet; at least one of the first two is given.

    Attributes:
        max_latency_ms: max latency, or None for any.
        min_accuracy: min top-1 accuracy in percent, or None for any.
        latency: the latency that is limited.
        percentile: the percentile of that latency.
    """

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    latency: Latency = "model"
    percentile: Percentile = "p95"

    def __post_init__(self) -> None:
        if self.max_latency_ms is None and self.min_accuracy is None:
            raise UsageError("no limit is given: give --max-latency-ms, --min-accuracy, or both")

    def __str__(self) -> str:
        words = []
        if self.max_latency_ms is not None:
            words.append(f"{self.percentile} of the {_OF[self.latency]} at most {self.max_latency_ms:g} ms")
        if self.min_accuracy is not None:
            words.append(f"top-1 at least {self.min_accuracy:g} %")
        return ", ".join(words)

    def latency_of(self, row: RowReport) -> float:
        """Return a row's latency, or infinity if it has no such latency."""
        times: Summary | None = getattr(row, f"{self.latency}_ms")
        return NO_LIMIT if times is None else float(getattr(times, self.percentile))

    def met_by(self, row: RowReport) -> bool:
        """Return whether a row meets the demand."""
        fast = self.max_latency_ms is None or self.latency_of(row) <= self.max_latency_ms
        return fast and (self.min_accuracy is None or row.accuracy >= self.min_accuracy)


_OF = {"model": "model time per clip", "whole": "end-to-end time per clip", "step": "time per glimpse"}


def _own_rows(report: Report) -> list[RowReport]:
    """Return the rows of the model itself, one stream each, whose accuracy was measured."""
    return [row for row in report.rows if not row.peer and row.streams == 1 and row.top1 is not None]


def choose(report: Report, demand: Demand) -> RowReport:
    """Return the row to use: the fastest that meets the demand if it limits the accuracy, else the most accurate.

    Raises ``AdaFocusError`` with the fastest and the most accurate row if none meets the demand.
    """
    rows = [row for row in _own_rows(report) if demand.latency_of(row) < NO_LIMIT]
    if not rows:
        raise AdaFocusError("no setting was measured: " + "; ".join(one.why for one in report.skipped[:2]))
    meeting = [row for row in rows if demand.met_by(row)]
    if meeting and demand.min_accuracy is not None:
        return min(meeting, key=lambda row: (demand.latency_of(row), -row.accuracy))
    if meeting:
        return max(meeting, key=lambda row: (row.accuracy, -demand.latency_of(row)))
    fastest = min(rows, key=demand.latency_of)
    best = max(rows, key=lambda row: (row.accuracy, -demand.latency_of(row)))
    raise AdaFocusError(
        f"no setting meets the demand ({demand}); "
        f"the fastest: {demand.latency_of(fastest):.1f} ms, {fastest.accuracy:.1f} % ({fastest.key}); "
        f"the most accurate: {demand.latency_of(best):.1f} ms, {best.accuracy:.1f} % ({best.key})"
    )


def notes_on(report: Report, row: RowReport, demand: Demand) -> list[str]:
    """Return notes on how far a chosen row's accuracy can be trusted, a line each: few clips, clips used before.

    Args:
        report: the benchmark's report.
        row: the chosen row; see :func:`choose`.
        demand: the demand that it meets.
    """
    clips, reused = (0, None) if report.data is None else (report.data.clips, report.data.reused)
    low, high = row.interval
    found = [few_clips_note((low, high), clips)]
    if demand.min_accuracy is not None:
        goal = f"top-1 at least {demand.min_accuracy:g} %"
        verdict = Verdict(goal, demand.min_accuracy, row.accuracy, (low, high), clips, at_most=False)
        if not verdict.conclusive:
            found.append(
                f"too few clips to decide whether {goal} holds: {row.accuracy:.1f} % ({low:.1f} to {high:.1f})"
            )
    else:
        faster = [one for one in _own_rows(report) if demand.latency_of(one) < demand.latency_of(row)]
        near = [one for one in faster if one.interval[1] >= low]
        if near:
            best = min(near, key=demand.latency_of)
            found.append(
                f"too few clips to distinguish its accuracy from that of faster settings, such as {best.key}: "
                f"{demand.latency_of(best):.1f} ms, {best.accuracy:.1f} %"
            )
    found.append(reuse_note((reused or {}).get(row.bundle, {}), clips))
    return [note for note in found if note is not None]


def profile_of(report: Report, row: RowReport, demand: Demand) -> Profile:
    """Return a row as a profile."""
    gpu = report.machine.gpu if find_backend(row.backend).on_gpu else ""
    return Profile(
        backend=row.backend,
        variant=row.variant,
        schedule=row.schedule,
        segments=row.segments,
        threads=row.threads,
        exit=row.exit or "",
        device=gpu or report.machine.processor,
        demand=str(demand),
        latency_ms=round(demand.latency_of(row), 3),
        top1=row.accuracy,
        clips=0 if report.data is None else report.data.clips,
        notes=tuple(notes_on(report, row, demand)),
        created=iso_now(),
    )


@dataclass(frozen=True)
class Tuned:
    """A stored profile.

    Attributes:
        bundle: the folder that holds it.
        name: of the profile.
        profile: what was stored.
        row: the row of the report that it was made of.
    """

    bundle: Path
    name: str
    profile: Profile
    row: RowReport


def tune(bundle: Path | None, options: TuneOptions, log: Callable[[str], None], progress: Progress) -> Tuned:
    """Measure a bundle's settings, and store the one that meets the demand as a profile of the bundle or of its copy.

    Args:
        bundle: path, or None for the default model, which is not written to: ``options.output`` must be given then.
        options: see :class:`TuneOptions`.
        log: called with lines for the user.
        progress: called with the name of a step, and how much of it is done.

    Raises:
        UsageError: the demand is empty, the profile exists already, or there is nowhere to write.
        AdaFocusError: no setting meets the demand.
        BundleError: the bundle cannot be written, or its variant was replaced meanwhile.
    """
    demand = Demand(options.max_latency_ms, options.min_accuracy, options.latency, options.percentile)
    if bundle is None and options.output is None:
        raise UsageError("--output is missing: the default model is read-only; give a folder for a copy of it")
    check_data(options.labelled, options.frames)
    found = read_bundle(bundle or default_bundle())
    if options.output is not None:
        found = copied_bundle(found, options.output)
    _check_free(found.manifest, found, options)
    with bundle_lock(found.path):  # a bundle that cannot be written is reported before anything is measured
        pass
    report = measure_settings(found.path, options, log, progress)
    row = choose(report, demand)
    profile = profile_of(report, row, demand)
    for note in profile.notes:
        log(f"note: {note}")
    _store(found, profile, options)
    return Tuned(found.path, options.name, profile, row)


def _check_free(manifest: Manifest, bundle: Bundle, options: TuneOptions) -> None:
    if options.name in manifest.profiles and not options.force:
        raise UsageError(
            f"{bundle.path}: has a profile {options.name!r} already; give another --name, or --force to replace it"
        )


def _store(bundle: Bundle, profile: Profile, options: TuneOptions) -> None:
    def add(manifest: Manifest) -> Manifest:
        _check_free(manifest, bundle, options)  # again: measuring took a while
        if manifest.variants.get(profile.variant) != bundle.manifest.variants[profile.variant]:
            raise BundleError(f"{bundle.path}: its variant {profile.variant} was replaced meanwhile: tune again")
        return replace(manifest, profiles={**manifest.profiles, options.name: profile})

    update_bundle(bundle.path, add)
