"""What verbs are given: sources, threshold sets, numbers; found and checked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.cli.options import DecoderName, ScheduleName
from adafocus_edge.cli.outputs import say, say_notes
from adafocus_edge.errors import UsageError

if TYPE_CHECKING:
    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.backends.nvdec import Choice
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.exits import ExitThresholds


DEFAULT_TOP_K = 5


def top_count(asked: int | None, bundle: Bundle) -> int:
    """Return how many classes to list. Raises ``UsageError`` for more than there are."""
    if asked is not None and asked > bundle.spec.classes:
        raise UsageError(f"--top-k {asked}: the bundle has {bundle.spec.classes} classes")
    return min(asked or DEFAULT_TOP_K, bundle.spec.classes)


def check_exit(exit_set: str | None, exit_confidence: float | None, schedule: ScheduleName) -> None:
    """Check ``--exit`` against the schedule. Raises ``UsageError``."""
    if exit_confidence is not None and exit_set is not None:
        raise UsageError("--exit and --exit-confidence: give one of them")
    if (exit_confidence is not None or exit_set is not None) and schedule is ScheduleName.CLIP:
        raise UsageError("an early exit saves nothing on the clip schedule: use --schedule stream")


def exits_asked(
    bundle: Bundle, exit_set: str | None, exit_confidence: float | None, *, live: bool
) -> ExitThresholds | None:
    """Return the thresholds that were asked for, or None."""
    from adafocus_edge.model.exits import ExitThresholds

    if exit_set is not None:
        return exits_of(bundle, exit_set, live=live)
    return None if exit_confidence is None else ExitThresholds.at(exit_confidence, bundle.spec.segments)


def has_live_exits(bundle: Bundle, name: str) -> bool:
    """Whether a bundle has thresholds for live sources."""
    sets = bundle.manifest.thresholds.get(name.partition("/")[0], ())
    return any(thresholds.order == "live" for thresholds in sets)


def exits_of(bundle: Bundle, name: str, *, live: bool) -> ExitThresholds:
    """Return a threshold set of a bundle for live sources, or for files. Raises ``UsageError``."""
    from adafocus_edge.model.exits import ORDERS, find_exits

    name, _, asked = name.partition("/")
    orders = [order for order in ORDERS if (order == "live") == live and asked in ("", order)]
    if not orders:
        raise UsageError(f"--exit {name}/{asked}: files are seen in the order clip or coarse-to-fine, streams live")
    try:
        return find_exits(bundle.manifest.thresholds, name, orders)
    except KeyError as error:
        raise UsageError(f"{bundle.path}: {error.args[0]}") from None


def check_live(save_video: Path | None, schedule: ScheduleName, profile: str | None) -> None:
    """Check options of live sources against each other. Raises ``UsageError``."""
    if profile is not None:
        raise UsageError(f"--profile {profile} was tuned for clips: a live source takes --backend, --variant, --exit")
    if save_video is not None:
        raise UsageError("--save-video takes files, not live sources: --record writes those")
    if schedule is ScheduleName.CLIP:
        raise UsageError("a live source is seen frame by frame: --schedule clip is for files")


def check_threads(threads: int | None) -> None:
    """Check that the machine has so many processors. Raises ``UsageError``."""
    if threads is not None and threads > (os.cpu_count() or 1):
        raise UsageError(f"--threads {threads}: this machine has {os.cpu_count()} processors")


def choose_decoder(asked: DecoderName, model: LoadedModel, quiet: bool) -> Choice:
    """Return what decodes. Raises ``AdaFocusError`` where the GPU must and cannot."""
    from adafocus_edge.backends.nvdec import send_library_output_to_stderr, usable_decoder

    usable = usable_decoder(asked.value, model, lambda text: say(text, quiet))
    if usable != "cpu":
        send_library_output_to_stderr()
    return usable


def find_inputs(arguments: list[str], quiet: bool, video_track: int | None) -> list[Source]:
    """Find sources, and print what is there and was not taken."""
    from adafocus_edge.media.sources import find_sources, skipped_note

    left_out: list[str] = []
    sources = find_sources(arguments, left_out)
    if left_out:
        say_notes([skipped_note(left_out)], quiet)
    return [replace(source, video_track=video_track) for source in sources]
