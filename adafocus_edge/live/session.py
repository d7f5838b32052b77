"""A live run as the command line makes it: options, sources and outputs put together, until the run ends."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from adafocus_edge.errors import AdaFocusError, SourceError, UsageError
from adafocus_edge.live.events import EventRule
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Notice
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import (
    DEFAULT_KEEP,
    DEFAULT_ROLL_S,
    DEFAULT_ROTATE_MB,
    DEFAULT_ROTATE_MINUTES,
    DEFAULT_WAITING,
    FOREVER,
    CameraOptions,
    CaptureOptions,
    LiveArguments,
    Printing,
    RecordMode,
)
from adafocus_edge.live.terminal import NoticeLogger, Printer, run_log, status_shown, summary
from adafocus_edge.model.defaults import DEFAULT_GLIMPSE_FPS
from adafocus_edge.system.interrupts import stop_on_signals
from adafocus_edge.system.memory import limit_malloc_arenas

if TYPE_CHECKING:
    from adafocus_edge.live.event_store import EventStore
    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.classifier import Classifier

__all__ = [
    "Printing",
    "connected",
    "live_options",
    "open_archive",
    "open_sinks",
    "report_missing",
    "run_live",
    "solved_glimpse_fps",
]

NEED_RULES = {"events": "keep", "snapshots": "save", "mqtt_discovery": "announce"}
"""Outputs that are of no use without rules of events, each with what it does with them."""
FRAMES_WAITING = 8
"""Maximum number of frames of each source that wait to be annotated and recorded."""


def live_options(
    arguments: LiveArguments, solved_at: float | None, *, patient: bool, max_guests: int = 0
) -> LiveOptions:
    """Turn arguments into options of a run.

    Args:
        arguments: as given.
        solved_at: glimpses per second that the exit thresholds were solved for, if they are for live sources.
        patient: whether sources that have never connected are retried.
        max_guests: see :class:`LiveOptions`.

    Raises:
        UsageError: two arguments contradict each other, or one cannot be parsed.
    """
    requested = arguments.glimpse_fps
    if requested is not None and solved_at not in (None, requested):
        raise UsageError(
            f"--glimpse-fps {requested:g}: the exit thresholds are for {solved_at:g} glimpses per second: "
            "remove the option"
        )
    if arguments.duration is not None and not math.isfinite(arguments.duration):
        raise UsageError(f"--duration {arguments.duration}: must be a number of seconds")
    capture = CaptureOptions(
        glimpse_fps=requested or solved_at or DEFAULT_GLIMPSE_FPS,
        drop=arguments.drop,
        waiting=arguments.waiting or DEFAULT_WAITING,
        realtime=arguments.realtime,
        loop=arguments.loop,
        retries=_retries(arguments.retries),
        patient=patient or arguments.retries is not None,
        camera=_camera(arguments),
        copy=_records_copies(arguments) or _keeps_copies(arguments),
    )
    rules = tuple(EventRule.parse(text) for text in arguments.event or ())
    check_needed(arguments, rules)
    archive_url = None if arguments.events is None else _public_url(arguments.public_url)
    return LiveOptions(capture, arguments.overlap or 1, arguments.smooth or 1, rules, max_guests, archive_url)


def check_needed(arguments: LiveArguments, rules: Sequence[EventRule]) -> None:
    """Raise ``UsageError`` if an output needs rules of events, and there are none."""
    for name, purpose in NEED_RULES.items():
        if getattr(arguments, name) is not None and not rules:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: needs --event, which defines the events to {purpose}")


def _public_url(address: str | None) -> str:
    """Return the beginning of links: without a slash at its end. Raises ``UsageError``."""
    if address is None:
        return ""
    if not re.fullmatch(r"https?://[^\s?#]+", address):
        raise UsageError(f"--public-url {address}: must be the page's address, such as https://cams.example.com")
    return address.rstrip("/")


def open_archive(stack: ExitStack, arguments: LiveArguments) -> EventStore | None:
    """Open the archive of events that the arguments name; the stack closes it. Raises ``AdaFocusError``."""
    if arguments.events is None:
        for name in ("pre_roll", "post_roll", "events_days", "events_gb", "events_video", "public_url"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')}: needs --events")
        return None
    from adafocus_edge.live.event_store import EventStore

    store = EventStore(arguments.events)
    stack.callback(store.close)
    stack.enter_context(store.writing())
    return store


def _records_copies(arguments: LiveArguments) -> bool:
    """Return whether sources are recorded as they are."""
    return arguments.record is not None and arguments.record_mode == "copy"


def _keeps_copies(arguments: LiveArguments) -> bool:
    """Return whether clips of events are made of the sources' own video."""
    if arguments.events is None:
        return False
    return _records_copies(arguments) if arguments.events_video is None else arguments.events_video == "copy"


def check_record(arguments: LiveArguments, sources: Sequence[Source]) -> None:
    """Raise ``UsageError`` if sources cannot be recorded as asked."""
    mode = arguments.record_mode
    masked = next((source.name for source in sources if source.zones.masks), None)
    if masked is not None and (_records_copies(arguments) or _keeps_copies(arguments)):
        raise UsageError(
            f"{masked}: its masks cannot be applied to copied packets, which would show what they hide: use "
            "--record-mode overlay and --events-video encode, or remove the masks"
        )
    if arguments.record is None:
        if mode is not None:
            raise UsageError(f"--record-mode {mode}: needs --record, the folder to record into")
        return
    if mode is None and str(arguments.record) in get_args(RecordMode):
        name = arguments.record
        raise UsageError(
            f"--record {name}: is read as a folder: give --record DIR --record-mode {name}, or --record-mode as well "
            "if the folder has this name"
        )
    if mode != "copy":
        return
    for source in sources:
        if source.live and "://" not in source.address:
            raise UsageError(
                f"{source.name}: --record-mode copy needs packets, but a camera here delivers decoded pictures: record "
                "it with --record-mode overlay, in a run of its own"
            )
        if os.path.isdir(source.address):
            raise UsageError(f"{source.name}: --record-mode copy needs packets, but this is a folder of frames")


def _retries(text: str | None) -> int | None:
    """Parse ``--retries``; return None for no limit."""
    if text is None or text == FOREVER:
        return None
    if not text.isdecimal():
        raise UsageError(f"--retries {text}: must be a number or `{FOREVER}`")
    return int(text)


def _camera(arguments: LiveArguments) -> CameraOptions:
    width = height = None
    if arguments.camera_size is not None:
        size = re.fullmatch(r"(\d{2,5})x(\d{2,5})", arguments.camera_size)
        if size is None:
            raise UsageError(f"--camera-size {arguments.camera_size}: must be WIDTHxHEIGHT, such as 1280x720")
        width, height = map(int, size.groups())
    return CameraOptions(width, height, arguments.camera_fps, arguments.camera_format)


def open_sinks(
    stack: ExitStack, arguments: LiveArguments, classifier: Classifier, sources: Sequence[Source],
    report: Callable[[str], None], output: Path | None, printing: Printing, archive: EventStore | None = None,
    spare: int = 0,
) -> list[Sink]:  # fmt: skip
    """Open the outputs that the arguments name.

    Args:
        stack: closes them.
        arguments: as given.
        classifier: of the run.
        sources: of the run.
        report: is called with one line for each new error of an output.
        output: file for results; None for none.
        printing: what the results hold.
        archive: of events, or None.
        spare: how many sources may be added to the run.

    Raises:
        UsageError: an output cannot be opened, or two arguments contradict each other.
    """
    spec = classifier.model.spec
    rotate_mb, keep = arguments.rotate_mb or DEFAULT_ROTATE_MB, arguments.keep or DEFAULT_KEEP
    sinks: list[Sink] = []

    def add(sink: Sink) -> None:
        stack.callback(sink.close)
        sinks.append(sink)

    if arguments.webhook_header and arguments.webhook is None:
        raise UsageError("--webhook-header: needs --webhook")
    if output is not None:
        from adafocus_edge.live.sinks.results_file import ResultsFile

        add(ResultsFile(output, report, logits=printing.logits, provisional=printing.provisional, rotate_mb=rotate_mb,
                        keep=keep))  # fmt: skip
    check_record(arguments, sources)
    rotate_s = 60 * (arguments.rotate_minutes or DEFAULT_ROTATE_MINUTES)
    waiting = FRAMES_WAITING * max(1, len(sources) + spare)
    if _records_copies(arguments):
        from adafocus_edge.live.sinks.copier import CopyRecorder

        assert arguments.record is not None
        add(CopyRecorder(arguments.record, spec, report, rotate_mb=rotate_mb, rotate_s=rotate_s, keep=arguments.keep))
    elif arguments.record is not None:
        from adafocus_edge.live.sinks.recorder import Recorder

        add(Recorder(arguments.record, spec, report, rotate_mb=rotate_mb, rotate_s=rotate_s, keep=arguments.keep,
                     waiting=waiting))  # fmt: skip
    if arguments.snapshots is not None:
        from adafocus_edge.live.sinks.snapshots import Snapshots

        add(Snapshots(arguments.snapshots, spec, report))
    if archive is not None:
        from adafocus_edge.live.sinks.event_clips import EventClips

        archive.set_classes(tuple(classifier.classes))
        rate = arguments.glimpse_fps or solved_glimpse_fps(classifier) or DEFAULT_GLIMPSE_FPS
        pre_s, post_s = (
            DEFAULT_ROLL_S if given is None else given for given in (arguments.pre_roll, arguments.post_roll)
        )
        window_s = spec.segments / rate
        # An event is raised this long after the mean rose, and the time of its rule later.
        lag_s = ((arguments.smooth or 1) - 1) * window_s / (arguments.overlap or 1)
        rules = tuple(map(EventRule.parse, arguments.event or ()))
        add(EventClips(archive, spec, report, window_s=window_s, lag_s=lag_s, rules=rules, pre_s=pre_s, post_s=post_s,
                       keep_days=arguments.events_days, keep_gb=arguments.events_gb,
                       copy=_keeps_copies(arguments), waiting=waiting))  # fmt: skip
    if arguments.webhook is not None:
        from adafocus_edge.live.sinks.webhook import Webhook

        headers = arguments.webhook_header or []
        add(Webhook(arguments.webhook, report, windows=not arguments.event, headers=headers))
    if arguments.mqtt is not None:
        from adafocus_edge.live.sinks.mqtt import Discovery, Mqtt

        discovery = None
        if arguments.mqtt_discovery is not None:
            labels = tuple(EventRule.parse(text).label for text in arguments.event or ())
            discovery = Discovery(arguments.mqtt_discovery, labels)
        add(Mqtt(arguments.mqtt, report, discovery=discovery))
    elif arguments.mqtt_discovery is not None:
        raise UsageError("--mqtt-discovery: needs --mqtt")
    return sinks


def run_live(
    sources: list[Source],
    classifier: Classifier,
    arguments: LiveArguments,
    printing: Printing,
    output: Path | None,
    *,
    show: bool = False,
) -> dict[str, AdaFocusError]:
    """Run live sources until a signal, the duration, or the end of all of them; print, log and write the results.

    Args:
        sources: to read.
        classifier: of the run.
        arguments: as given.
        printing: what to print.
        output: file for results; None for none.
        show: whether to show a window on the screen.

    Returns:
        why sources failed, by name.

    Raises:
        AdaFocusError: the arguments contradict each other, an output cannot be opened, or the model failed.
    """
    limit_malloc_arenas()
    options = live_options(arguments, solved_glimpse_fps(classifier), patient=len(sources) > 1)
    with ExitStack() as stack:
        log = stack.enter_context(run_log(arguments.log, printing.quiet, arguments.rotate_mb, arguments.keep))
        stop = stack.enter_context(stop_on_signals())
        run = LiveRun(classifier, sources, options, report=log.info)
        screen = None
        if show:
            from adafocus_edge.live.sinks.window import Screen

            screen = Screen(classifier.model.spec, log.warning)
            stack.callback(screen.close)
        in_real_time = arguments.realtime or any(source.live for source in sources)
        printer = Printer(printing, log.warning, stop.set, in_real_time=in_real_time)
        stack.callback(printer.close)
        archive = open_archive(stack, arguments)
        opened = open_sinks(stack, arguments, classifier, sources, log.warning, output, printing, archive)
        sinks = [printer, *opened]
        if not in_real_time:
            # Files that are read as fast as possible wait for the outputs that can keep up in the long run.
            for sink in sinks:
                if sink.local:
                    sink.patient_until = stop
        with connected(run, sinks, log), status_shown(run, arguments.status, printing.as_json, printing.quiet):
            if screen is None:
                run.run(stop, arguments.duration)
            else:
                run.listen(screen)
                _run_beside(
                    lambda: run.run(stop, arguments.duration),
                    stop,
                    lambda: screen.loop(stop, arguments.snapshots or Path()),
                )
        for name, error in run.unseen.items():  # notices have reported the others
            log.error(str(error), extra={"source": name, "event": "failed"})
        return run.errors


def report_missing(
    missing: dict[str, SourceError], arguments: LiveArguments, printing: Printing, output: Path | None
) -> None:
    """Report sources that do not exist, as a run does, where there is no other source to run.

    Args:
        missing: why each is missing, by name.
        arguments: as given.
        printing: what to print.
        output: file for results; None for none.

    Raises:
        AdaFocusError: an output cannot be written.
    """
    with ExitStack() as stack:
        log = stack.enter_context(run_log(arguments.log, printing.quiet, arguments.rotate_mb, arguments.keep))
        sinks: list[Sink] = [NoticeLogger(log), Printer(printing, log.warning, lambda: None)]
        if output is not None:
            from adafocus_edge.live.sinks.results_file import ResultsFile

            sinks.append(ResultsFile(output, log.warning))
        for sink in sinks:
            stack.callback(sink.close)
            for name, error in missing.items():
                sink.enqueue(Notice(name, "failed", str(error), time.time()))


def solved_glimpse_fps(classifier: Classifier) -> float | None:
    """Return the glimpses per second that the exit thresholds are for; None without thresholds for live sources."""
    return classifier.exits.glimpse_fps if classifier.exits is not None else None


@contextmanager
def connected(run: LiveRun, sinks: Sequence[Sink], log: logging.Logger) -> Iterator[None]:
    """Connect sinks and the log to a run while the block runs; then finish them all, and log the summary."""
    sinks = (*sinks, NoticeLogger(log))
    for sink in sinks:
        run.listen(sink)
    try:
        yield
    finally:
        for sink in sinks:
            sink.close()
    for line in summary(run.status()):
        log.info(line, extra={"event": "summary"})


def _run_beside(work: Callable[[], None], stop: threading.Event, show: Callable[[], None]) -> None:
    """Run the model in a thread of its own while this one, the main thread, shows a window."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=run, name="model")
    thread.start()
    try:
        show()
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
