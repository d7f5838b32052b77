"""A live run as the command line makes it: sources, sinks, what is printed and logged, and how it ends."""

from __future__ import annotations

import logging
import logging.handlers
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adafocus_edge.errors import AdaFocusError, SourceError, UsageError
from adafocus_edge.live.events import EventRule
from adafocus_edge.live.messages import Drops, Event, Message, Notice, ProvisionalResult, Sink, Window, to_line
from adafocus_edge.live.run import LiveOptions, LiveRun, RunStatus
from adafocus_edge.live.settings import (
    DEFAULT_GLIMPSE_FPS,
    DEFAULT_KEEP,
    DEFAULT_ROTATE_MB,
    DEFAULT_ROTATE_MINUTES,
    DEFAULT_WAITING,
    FOREVER,
    CameraOptions,
    CaptureOptions,
    LiveArguments,
)
from adafocus_edge.runtime.results import print_result
from adafocus_edge.system.addresses import conceal
from adafocus_edge.system.console import console, printable
from adafocus_edge.system.interrupts import stop_on_signals
from adafocus_edge.system.memory import limit_malloc_arenas

if TYPE_CHECKING:
    from rich.console import Console

    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.classifier import Classifier

MAX_WAITING = 1000
"""Results that may wait for a slow sink."""
FRAMES_WAITING = 8
"""Frames of each source that may wait to be drawn on and recorded."""
WARNED = ("lost", "stalled", "dropping")
"""Kinds of notices that are warnings."""
STATUS_S = 1.0
"""How often the status on a terminal is drawn anew."""


@dataclass(frozen=True)
class Printing:
    """What is printed: JSON lines instead of tables, logits in them, provisional results, nothing on stderr."""

    as_json: bool = False
    logits: bool = False
    provisional: bool = False
    quiet: bool = False


def live_options(
    arguments: LiveArguments, solved_at: float | None, *, patient: bool, max_guests: int = 0
) -> LiveOptions:
    """Turn arguments into options.

    Args:
        arguments: as given.
        solved_at: glimpses per second that the exit thresholds are for, if they are for live sources.
        patient: whether sources that were never there are tried again.
        max_guests: see :class:`LiveOptions`.

    Raises:
        UsageError: two of them contradict each other, or one cannot be read.
    """
    asked = arguments.glimpse_fps
    if asked is not None and solved_at not in (None, asked):
        raise UsageError(f"--glimpse-fps {asked:g}: the thresholds are for {solved_at:g} glimpses per second")
    if arguments.duration is not None and not math.isfinite(arguments.duration):
        raise UsageError(f"--duration {arguments.duration}: a number of seconds")
    retries: int | None = None
    if arguments.retries is not None and arguments.retries != FOREVER:
        if not arguments.retries.isdecimal():
            raise UsageError(f"--retries {arguments.retries}: a number, or `{FOREVER}`")
        retries = int(arguments.retries)
    capture = CaptureOptions(
        glimpse_fps=asked or solved_at or DEFAULT_GLIMPSE_FPS,
        drop=arguments.drop,
        waiting=arguments.waiting or DEFAULT_WAITING,
        realtime=arguments.realtime,
        loop=arguments.loop,
        retries=retries,
        patient=patient or arguments.retries is not None,
        camera=_camera(arguments),
    )
    rules = tuple(EventRule.parse(text) for text in arguments.event or ())
    return LiveOptions(capture, arguments.overlap or 1, arguments.smooth or 1, rules, max_guests)


def _camera(arguments: LiveArguments) -> CameraOptions:
    width = height = None
    if arguments.camera_size is not None:
        size = re.fullmatch(r"(\d{2,5})x(\d{2,5})", arguments.camera_size)
        if size is None:
            raise UsageError(f"--camera-size {arguments.camera_size}: WIDTHxHEIGHT, such as 1280x720")
        width, height = map(int, size.groups())
    return CameraOptions(width, height, arguments.camera_fps, arguments.camera_format)


class Printer(Sink):
    """Prints results to stdout, as tables or as JSON lines. One that nobody reads any more ends the run."""

    wants: ClassVar[tuple[type, ...]] = (Window, Event, Notice, ProvisionalResult)
    local = True

    def __init__(self, printing: Printing, tell: Callable[[str], None], gone: Callable[[], None]) -> None:
        self._printing, self._gone = printing, gone
        self._console: Console | None = None if printing.as_json else console()
        super().__init__("stdout", MAX_WAITING, tell)

    def enqueue(self, message: Message) -> None:
        """Take a message; provisional results only where they were asked for."""
        if self._printing.provisional or not isinstance(message, ProvisionalResult):
            super().enqueue(message)

    def process(self, message: Message) -> None:
        """Print one."""
        if isinstance(message, Notice) and message.kind in ("connected", "ended"):
            return
        try:
            if self._console is None:
                logits = {"logits": self._printing.logits} if isinstance(message, Window) else {}
                print_line(message.to_json(**logits))  # type: ignore[union-attr]
            elif isinstance(message, Window):
                print_result(self._console, message.result, message.smoothed)
            elif isinstance(message, ProvisionalResult):
                best = message.top[0]
                self._line(f"{message.source}  {message.frame.time_s:.1f} s  {best.label} {best.confidence:.0%}")
            elif isinstance(message, Event):
                told = f"event {message.number} {message.kind}: {message.label}, up to {message.peak:.0%}"
                at_s = message.start_s if message.end_s is None else message.end_s
                self._line(f"{message.source}  {at_s:.1f} s  {told}")
        except (BrokenPipeError, SystemExit):  # the latter is what rich makes of it
            self._gone()

    def _line(self, text: str) -> None:
        assert self._console is not None
        self._console.print(printable(text), markup=False, soft_wrap=True)


def print_line(entry: dict[str, Any]) -> None:
    """Print one line of JSON; in one piece, for other threads print, too."""
    print(to_line(entry) + "\n", end="", flush=True)


class NoticeTeller(Sink):
    """Says on stderr and in the log what happens to sources, and what is dropped."""

    wants: ClassVar[tuple[type, ...]] = (Notice, Drops)

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        super().__init__("notices", MAX_WAITING, log.warning)

    def process(self, message: Message) -> None:
        """Say one."""
        assert isinstance(message, (Notice, Drops))
        level = (
            logging.ERROR if message.kind == "failed" else logging.WARNING if message.kind in WARNED else logging.INFO
        )
        self._log.log(level, message.text)


class _Lines(logging.Formatter):
    """One line a message, whatever it holds, without the secrets of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(conceal(super().format(record), *sys.argv[1:]))


class _ToStderr(logging.Handler):
    """Writes to what stderr is at the time: a status line on a terminal moves out of the way."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        begin = "error: " if record.levelno >= logging.ERROR else ""
        with suppress(OSError, ValueError):
            print(begin + self.format(record), file=sys.stderr, flush=True)


@contextmanager
def run_log(path: Path | None, quiet: bool, rotate_mb: float | None, keep: int | None) -> Iterator[logging.Logger]:
    """Give the run's logger: to stderr (only errors if quiet), and with times to a file that rotates.

    Raises ``UsageError`` if the file cannot be written.
    """
    log = logging.Logger("adafocus-edge", logging.INFO)
    shown = _ToStderr(logging.ERROR if quiet else logging.INFO)
    shown.setFormatter(_Lines("%(message)s"))
    log.addHandler(shown)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = logging.handlers.RotatingFileHandler(
                path, maxBytes=int((rotate_mb or DEFAULT_ROTATE_MB) * 1e6), backupCount=keep or DEFAULT_KEEP,
                encoding="utf-8", errors="backslashreplace",
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"--log {path}: cannot be written ({error.strerror})") from None
        setattr(file, "handleError", lambda _: None)  # noqa: B010 - a full disk must not fill stderr
        form = _Lines("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        form.converter = time.gmtime
        file.setFormatter(form)
        log.addHandler(file)
    try:
        yield log
    finally:
        for handler in log.handlers:
            with suppress(OSError):  # a full disk
                handler.close()


def open_sinks(
    stack: ExitStack, arguments: LiveArguments, classifier: Classifier, sources: int, tell: Callable[[str], None],
    output: Path | None, printing: Printing,
) -> list[Sink]:  # fmt: skip
    """Open every sink that was asked for; ``stack`` closes them. Raises ``UsageError`` if one cannot be opened."""
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

        add(ResultsFile(output, tell, logits=printing.logits, provisional=printing.provisional, rotate_mb=rotate_mb,
                        keep=keep))  # fmt: skip
    if arguments.record is not None:
        from adafocus_edge.live.sinks.recorder import Recorder

        rotate_s = 60 * (arguments.rotate_minutes or DEFAULT_ROTATE_MINUTES)
        waiting = FRAMES_WAITING * max(1, sources)
        add(Recorder(arguments.record, spec, tell, rotate_mb=rotate_mb, rotate_s=rotate_s, keep=arguments.keep,
                     waiting=waiting))  # fmt: skip
    if arguments.snapshots is not None:
        from adafocus_edge.live.sinks.snapshots import Snapshots

        if not arguments.event:
            raise UsageError("--snapshots: needs --event, which says what is one")
        add(Snapshots(arguments.snapshots, spec, tell))
    if arguments.webhook is not None:
        from adafocus_edge.live.sinks.webhook import Webhook

        headers = arguments.webhook_header or []
        add(Webhook(arguments.webhook, tell, windows=not arguments.event, headers=headers))
    if arguments.mqtt is not None:
        from adafocus_edge.live.sinks.mqtt import Mqtt

        add(Mqtt(arguments.mqtt, tell))
    return sinks


def status_line(status: RunStatus) -> str:
    """Return one line for people."""
    parts = []
    for source in status.sources:
        latency = source["latency_ms"]
        told = f"{source['name']}: {source['state']}" if source["state"] != "running" else source["name"]
        shown = "-" if latency["p50"] is None else "/".join(f"{latency[p]:.0f}" for p in ("p50", "p95", "p99"))
        parts.append(
            f"{told}  {source['fps_in']:.1f} fps in, {source['fps_glimpsed']:.1f} glimpsed, "
            f"{source['dropped']} dropped, {source['waiting']} waiting, latency {shown} ms"
            + (f", last frame {source['last_frame_age_s']:.0f} s ago" if source["stale"] else "")
        )
    parts += [f"{sink['name']}: {sink['dropped']} dropped" for sink in status.listeners if sink["dropped"]]
    sensors = status.sensors
    parts += [f"{sensors['temperature_c']:.0f} °C"] if sensors.get("temperature_c") is not None else []
    parts += [f"{sensors['power_w']:.1f} W"] if sensors.get("power_w") is not None else []
    return " | ".join(parts)


@contextmanager
def status_shown(run: LiveRun, every_s: float | None, as_json: bool, quiet: bool) -> Iterator[None]:
    """Show how the run is going: a line at the bottom of a terminal, and every so many seconds where asked for."""
    over = threading.Event()
    with ExitStack() as stack:
        threads = []
        if every_s is not None:

            def tell() -> None:
                while not over.wait(min(every_s, threading.TIMEOUT_MAX)):
                    with suppress(OSError, ValueError):
                        if as_json:
                            print_line({"status": run.status().to_json()})
                        else:
                            print(printable(status_line(run.status())), file=sys.stderr, flush=True)

            threads.append(threading.Thread(target=tell, name="status", daemon=True))
        elif not quiet and sys.stderr.isatty():
            from rich.live import Live
            from rich.text import Text

            live = Live(console=console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty(),
                        auto_refresh=False)  # fmt: skip
            stack.enter_context(live)

            def draw() -> None:
                while not over.wait(STATUS_S):
                    live.update(Text(printable(status_line(run.status())), style="dim"), refresh=True)

            threads.append(threading.Thread(target=draw, name="status", daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join(STATUS_S)


def summary(status: RunStatus) -> list[str]:
    """Return what a run comes to, a line per source and one per sink that lost something."""
    lines = []
    for source in status.sources:
        if not source["frames"]:
            continue  # its error says it all
        latency = source["latency_ms"]
        shown = (
            ""
            if latency["p50"] is None
            else f", latency p50 {latency['p50']:.0f}, p95 {latency['p95']:.0f}, p99 {latency['p99']:.0f} ms"
        )
        lines.append(
            f"{source['name']}: {source['frames']} frames, {source['glimpses']} glimpses, {source['windows']} windows, "
            f"{source['dropped']} dropped, {source['damaged']} damaged, {source['reconnects']} reconnections{shown}"
        )
    for sink in status.listeners:
        if sink["dropped"] or sink["failed"]:
            lines.append(f"{sink['name']}: {sink['dropped']} messages dropped, {sink['failed']} failed")
    return lines


def run_live(
    sources: list[Source],
    classifier: Classifier,
    arguments: LiveArguments,
    printing: Printing,
    output: Path | None,
    *,
    show: bool = False,
) -> dict[str, AdaFocusError]:
    """Run live sources until told, for a time, or until all have ended; print, log and write as asked.

    Returns:
        why sources failed, by their names.

    Raises:
        AdaFocusError: the options contradict each other, a sink cannot be opened, or the model failed.
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
        printer = Printer(printing, log.warning, stop.set)
        stack.callback(printer.close)
        sinks = [printer, *open_sinks(stack, arguments, classifier, len(sources), log.warning, output, printing)]
        if not arguments.realtime and not any(source.live for source in sources):
            # What is read as fast as possible waits for the outputs that can keep up with it in the end.
            for sink in sinks:
                if sink.local:
                    sink.patient_until = stop
        with reported(run, sinks, log), status_shown(run, arguments.status, printing.as_json, printing.quiet):
            if screen is None:
                run.run(stop, arguments.duration)
            else:
                run.listen(screen)
                _beside(
                    lambda: run.run(stop, arguments.duration),
                    stop,
                    lambda: screen.loop(stop, arguments.snapshots or Path()),
                )
        for error in run.unseen.values():  # of the others a notice has told
            log.error(str(error))
        return run.errors


def report_missing(
    missing: dict[str, SourceError], arguments: LiveArguments, printing: Printing, output: Path | None
) -> None:
    """Report sources that are not there, by their names, as a run does, where there is nothing else to run.

    Raises ``UsageError`` or ``AdaFocusError`` if an output cannot be written.
    """
    with ExitStack() as stack:
        log = stack.enter_context(run_log(arguments.log, printing.quiet, arguments.rotate_mb, arguments.keep))
        listeners: list[Sink] = [NoticeTeller(log), Printer(printing, log.warning, lambda: None)]
        if output is not None:
            from adafocus_edge.live.sinks.results_file import ResultsFile

            listeners.append(ResultsFile(output, log.warning))
        for listener in listeners:
            stack.callback(listener.close)
            for name, error in missing.items():
                listener.enqueue(Notice(name, "failed", str(error), time.time()))


def solved_glimpse_fps(classifier: Classifier) -> float | None:
    """Return the glimpses per second that the exit thresholds are for; None where they are for none."""
    return classifier.exits.glimpse_fps if classifier.exits is not None else None


@contextmanager
def reported(run: LiveRun, sinks: Sequence[Sink], log: logging.Logger) -> Iterator[None]:
    """Let sinks and the log be told; at the end finish them all, and say what the run comes to."""
    notices = NoticeTeller(log)
    for listener in (*sinks, notices):
        run.listen(listener)
    try:
        yield
    finally:
        for listener in (*sinks, notices):
            listener.close()
    for line in summary(run.status()):
        log.info(line)


def _beside(work: Callable[[], None], stop: threading.Event, shown: Callable[[], None]) -> None:
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
        shown()
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
