"""`adafocus-edge tune`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adafocus_edge.cli.measure import GridChoice, Measurement
from adafocus_edge.cli.options import (
    Backends,
    ClipCount,
    Debug,
    Exits,
    Json,
    LabelledData,
    Quiet,
    Rounds,
    Seed,
    SplitFrames,
    ThreadCounts,
    Variants,
)
from adafocus_edge.cli.outputs import say_notes
from adafocus_edge.errors import BundleError, UsageError

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Manifest


class LatencyName(str, Enum):
    """Values of ``tune --latency``."""

    MODEL = "model"
    WHOLE = "whole"
    STEP = "step"


class PercentileName(str, Enum):
    """Values of ``tune --percentile``."""

    MEDIAN = "median"
    P95 = "p95"
    P99 = "p99"


def tune(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Folder of the bundle; the profile is stored in it. [default: the default model, with -o]"),
    ] = None,
    data: LabelledData = None,
    max_latency_ms: Annotated[float | None, typer.Option(min=0.0, help="At most this; the most accurate wins.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, help="At least this top-1 in percent; the fastest wins.")
    ] = None,
    latency: Annotated[
        LatencyName, typer.Option(help="Of a clip in the model, of the whole from file to result, or of a glimpse.")
    ] = LatencyName.MODEL,
    percentile: Annotated[PercentileName, typer.Option(help="Which of the latencies counts.")] = PercentileName.P95,
    name: Annotated[str, typer.Option(help="Of the profile.")] = "tuned",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the bundle there first, and store it in the copy.")
    ] = None,
    frames: SplitFrames = None,
    backends: Backends = None,
    variants: Variants = None,
    exits: Exits = None,
    segments: Annotated[
        str | None, typer.Option(help="Frames per clip, by commas. [default: the model's, half, a quarter]")
    ] = None,
    threads: ThreadCounts = None,
    rounds: Rounds = 20,
    clips: ClipCount = 128,
    seed: Seed = 1007,
    force: Annotated[bool, typer.Option("--force", help="Replace a profile of that name.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the setting that meets a demand on this device, and store it as a profile for `classify --profile`."""
    del debug
    from adafocus_edge.benchmark.schema import to_json
    from adafocus_edge.benchmark.tune import Demand, choose, profile_of
    from adafocus_edge.bundle.store import bundle_lock, copied_bundle, default_bundle, read_bundle, update_bundle
    from adafocus_edge.evaluation.dataset import check_data

    demand = Demand(max_latency_ms, min_accuracy, latency.value, percentile.value)
    if data is None:
        raise UsageError("--data is missing: labelled clips, best such that neither training nor calibration saw")
    if bundle is None and output is None:
        raise UsageError("--output is missing: the default model itself is not written to")
    if not name or not name.isprintable() or "/" in name:
        raise UsageError(f"--name {name!r}: a word without /")
    check_data(data, frames)
    found = read_bundle(bundle or default_bundle())
    if output is not None:
        found = copied_bundle(found, output)

    def check_free(manifest: Manifest) -> None:
        if name in manifest.profiles and not force:
            raise UsageError(f"{found.path}: has a profile {name!r} already; give another --name, or --force")

    check_free(found.manifest)
    with bundle_lock(found.path):  # where it cannot be written, this is told before anything is measured
        pass
    own = found.spec.segments
    wanted = segments or ",".join(map(str, dict.fromkeys((own, max(1, own // 2), max(1, own // 4)))))
    grid = GridChoice(backends, variants, "clip,stream", exits, wanted, "1", threads, "none")
    asked = Measurement(data, frames, None, (), multi_label=False, json_file=None, quiet=quiet)
    report = asked.run([found.path], grid, rounds, clips, seed)
    row = choose(report, demand)
    profile = profile_of(report, row, demand)
    say_notes(profile.notes, quiet)

    def store(manifest: Manifest) -> Manifest:
        check_free(manifest)  # as it is now: measuring took a while
        if manifest.variants.get(profile.variant) != found.manifest.variants[profile.variant]:
            raise BundleError(f"{found.path}: its variant {profile.variant} was replaced meanwhile: tune again")
        return replace(manifest, profiles={**manifest.profiles, name: profile})

    update_bundle(found.path, store)
    if as_json:
        typer.echo(json.dumps({"bundle": str(found.path), "profile": name, **asdict(profile), "row": to_json(row)}))
        return
    low, high = row.interval
    typer.echo(
        f"{found.path}: profile {name!r}: {row.key.partition(' ')[2]}: {percentile.value} "
        f"{profile.latency_ms:.1f} ms, top-1 {profile.top1:.1f} % ({low:.0f} to {high:.0f}) on {profile.clips} clips\n"
        f"use it: adafocus-edge classify VIDEO --bundle {found.path} --profile {name}"
    )
