"""What a live run prints and logs: results on stdout, notices on stderr and in a log file, its status, its summary."""

from __future__ import annotations

import logging
import logging.handlers
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adafocus_edge.errors import UsageError
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import RETRYING, Drops, Event, Message, Notice, ProvisionalResult, Window
from adafocus_edge.live.settings import DEFAULT_KEEP, DEFAULT_ROTATE_MB, Printing
from adafocus_edge.system.addresses import conceal
from adafocus_edge.system.console import console
from adafocus_edge.system.json_lines import to_line
from adafocus_edge.system.log_lines import NOTE, Level, log_format, log_line
from adafocus_edge.system.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

    from adafocus_edge.live.run import LiveRun
    from adafocus_edge.live.status import RunStatus, SourceStatus

MAX_WAITING = 1000
"""Maximum number of messages that wait to be printed or logged."""
WARNED = ("lost", "stalled", "dropping")
"""Kinds of notices that are logged as warnings."""
BACK = ("connected", "reconnected", "ended", "failed")
"""Kinds of notices that end the loss of a source."""
STATUS_S = 1.0
"""How often the status on a terminal is redrawn."""
BAR_WIDTH = 10
"""Length of the bar of a source's confidence on a terminal."""
NAME_WIDTH = 24
"""Maximum length of a source's name on a terminal."""


class Printer(Sink):
    """Prints results on stdout: a line each, as text or as JSON.

    As text, a window of a source that plays in real time is printed only if its label is another one than before, and
    lines have the time of day; of files that are read as fast as possible, every window is printed, with its time in
    the file.

    Args:
        printing: what to print.
        report: is called with one line for each new error.
        on_closed: is called when the reader of stdout has closed it.
        in_real_time: whether the sources play in real time.
    """

    wants: ClassVar[tuple[type, ...]] = (Window, Event, Notice, ProvisionalResult)
    local = True

    def __init__(
        self, printing: Printing, report: Callable[[str], None], on_closed: Callable[[], None],
        *, in_real_time: bool = True,
    ) -> None:  # fmt: skip
        self._printing, self._on_closed, self._in_real_time = printing, on_closed, in_real_time
        self._labels: dict[str, str] = {}  # by source: the label that was printed last
        super().__init__("stdout", MAX_WAITING, report)

    def enqueue(self, message: Message) -> None:
        """Take a message; provisional results only with ``--provisional``."""
        if self._printing.provisional or not isinstance(message, ProvisionalResult):
            super().enqueue(message)

    def process(self, message: Message) -> None:
        """Print one message."""
        if isinstance(message, Notice) and message.kind in ("connected", "ended"):
            return
        try:
            if self._printing.as_json:
                logits = {"logits": self._printing.logits} if isinstance(message, Window) else {}
                print_line(message.to_json(**logits))  # type: ignore[union-attr]
            else:
                self._line(message)
        except BrokenPipeError:
            self._on_closed()

    def idle(self) -> None:
        """End the run if the reader of what it prints has left: as text, there may be nothing to print for hours."""
        if _reader_has_left():
            self._on_closed()

    def _line(self, message: Message) -> None:
        """Print a message as text, unless it repeats the last label of its source."""
        if isinstance(message, Window):
            result = message.result
            best = (message.smoothed or result.top)[0]
            if self._in_real_time and self._labels.get(message.source) == best.label:
                self.idle()
                return
            self._labels[message.source] = best.label
            span = "" if result.start_s is None else f"{result.start_s:.1f} - {result.end_s:.1f} s"
            wall_s, text = message.wall_s, f"{best.label} {best.confidence:.0%}{', cut short' * message.cut}"
        elif isinstance(message, ProvisionalResult):
            best, wall_s, span = message.top[0], message.frame.wall_s, f"{message.frame.time_s:.1f} s"
            text = f"{best.label} {best.confidence:.0%}, provisional"
        elif isinstance(message, Event):
            wall_s, span = message.wall_s, f"{message.start_s if message.end_s is None else message.end_s:.1f} s"
            text = f"event {message.number} {message.kind}: {message.label}, up to {message.peak:.0%}"
        else:
            return
        when = time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(wall_s)) if self._in_real_time else span
        _print_whole(printable(f"{when}  {message.source}  {text}"))


def _reader_has_left() -> bool:
    """Return whether stdout is a pipe whose reader has closed it, or a terminal that is gone."""
    if not hasattr(select, "poll"):  # Windows
        return False
    try:
        polling = select.poll()
        polling.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in polling.poll(0))
    except (OSError, ValueError):  # not a file of the system, or closed
        return False


def print_line(entry: dict[str, Any]) -> None:
    """Print one line of JSON."""
    _print_whole(to_line(entry))


def _print_whole(line: str) -> None:
    """Print a line in a single write, since other threads print, too.

    ``print`` by itself only borrows ``sys.stdout``, and crashes if the status on a terminal ends meanwhile, which
    replaces it.
    """
    print(line + "\n", end="", flush=True, file=sys.stdout)


# -- the log -----------------------------------------------------------------------------------------------------------


class NoticeLogger(Sink):
    """Logs notices of sources and reports of drops; further attempts at a lost source only if they fail otherwise."""

    wants: ClassVar[tuple[type, ...]] = (Notice, Drops)

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lost: dict[str, str] = {}  # by source: why it is lost
        super().__init__("notices", MAX_WAITING, log.warning)

    def process(self, message: Message) -> None:
        """Log one message."""
        assert isinstance(message, (Notice, Drops))
        if message.kind == "lost":
            reason = message.text.partition(RETRYING)[0]
            if self._lost.get(message.source) == reason:
                return
            self._lost[message.source] = reason
        elif message.kind in BACK:
            self._lost.pop(message.source, None)
        level = (
            logging.ERROR if message.kind == "failed" else logging.WARNING if message.kind in WARNED else logging.INFO
        )
        self._log.log(level, message.text, extra={"source": message.source, "event": message.kind})


class _OneLineFormatter(logging.Formatter):
    """Formats each message as one line, without the secrets of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(conceal(super().format(record), *sys.argv[1:]))


class _JsonFormatter(_OneLineFormatter):
    """Formats each message as a line of JSON, with the source and the event that it was logged with."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return record_line(record, super().format(record))


def record_line(record: logging.LogRecord, text: str) -> str:
    """Return the line of stderr of a record whose text is given."""
    level: Level = (
        "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
    )
    return log_line(text, level, event=getattr(record, "event", NOTE), source=getattr(record, "source", None))


class _StderrHandler(logging.Handler):
    """Writes to the present ``sys.stderr``, which a status line on a terminal replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with suppress(OSError, ValueError):
            print(record_line(record, self.format(record)), file=sys.stderr, flush=True)


@contextmanager
def run_log(path: Path | None, quiet: bool, rotate_mb: float | None, keep: int | None) -> Iterator[logging.Logger]:
    """Yield the logger of a run, which writes to stderr and to a rotating file with times.

    Args:
        path: of the file; None for none.
        quiet: whether stderr shows errors only.
        rotate_mb: maximum size of the file in megabytes; None for the default.
        keep: number of rotated files that are kept; None for the default.

    Raises:
        UsageError: the file cannot be written.
    """
    log = logging.Logger("adafocus-edge", logging.INFO)
    stderr = _StderrHandler(logging.ERROR if quiet else logging.INFO)
    stderr.setFormatter(_OneLineFormatter("%(message)s"))
    log.addHandler(stderr)
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
        form = _OneLineFormatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        if log_format() == "json":
            form = _JsonFormatter("%(message)s")
        form.converter = time.gmtime
        file.setFormatter(form)
        log.addHandler(file)
    try:
        yield log
    finally:
        for handler in log.handlers:
            with suppress(OSError):  # a full disk
                handler.close()


# -- the status --------------------------------------------------------------------------------------------------------


def status_line(status: RunStatus) -> str:
    """Return the status of a run as one line for people."""
    return " | ".join([*(_source_text(source) for source in status.sources), *_rest_of(status)])


def _rest_of(status: RunStatus) -> list[str]:
    """Return outputs that dropped messages, and the readings of the device."""
    parts = [f"{one.name}: {one.dropped} dropped" for one in status.listeners if one.dropped]
    sensors = status.sensors
    parts += [f"{sensors.temperature_c:.0f} °C"] if sensors.temperature_c is not None else []
    parts += [f"{sensors.power_w:.1f} W"] if sensors.power_w is not None else []
    return parts


def _source_text(source: SourceStatus) -> str:
    latency = source.latency_ms
    percentiles = (latency.p50, latency.p95, latency.p99)
    shown = "-" if latency.p50 is None else "/".join(f"{value:.0f}" for value in percentiles)
    name = source.name if source.state == "running" else f"{source.name}: {source.state}"
    return (
        f"{name}  {source.fps_in:.1f} fps in, {source.fps_glimpsed:.1f} glimpsed, "
        f"{source.dropped} dropped, {source.waiting} waiting, latency {shown} ms"
        + (f", last frame {source.last_frame_age_s:.0f} s ago" if source.stale else "")
    )


@contextmanager
def status_shown(run: LiveRun, every_s: float | None, as_json: bool, quiet: bool) -> Iterator[None]:
    """Show the status of a run while the block runs.

    Args:
        run: the run.
        every_s: print the status this often; None for a line per source at the bottom of a terminal instead, if there
            is one.
        as_json: whether to print it as JSON on stdout, instead of as text on stderr.
        quiet: whether to leave the terminal alone.
    """
    over = threading.Event()
    if every_s is not None:
        shown = _printed_status(run, every_s, as_json, over)
    elif not quiet and sys.stderr.isatty() and log_format() == "text":
        shown = _drawn_status(run, over)
    else:
        yield
        return
    with shown as show:
        thread = threading.Thread(target=show, name="status", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(STATUS_S)


@contextmanager
def _printed_status(
    run: LiveRun, every_s: float, as_json: bool, over: threading.Event
) -> Iterator[Callable[[], None]]:  # fmt: skip
    """Yield a function that prints the status again and again until ``over`` is set."""

    def show() -> None:
        while not over.wait(min(every_s, threading.TIMEOUT_MAX)):
            with suppress(OSError, ValueError):
                if as_json:
                    print_line({"status": run.status().to_json()})
                else:
                    line = log_line(printable(status_line(run.status())), event="status")
                    print(line, file=sys.stderr, flush=True)

    yield show


@contextmanager
def _drawn_status(run: LiveRun, over: threading.Event) -> Iterator[Callable[[], None]]:
    """Yield a function that redraws a line per source at the bottom of the terminal until ``over`` is set."""
    from rich.live import Live

    terminal = console(stderr=True)
    with Live(console=terminal, transient=True, redirect_stdout=sys.stdout.isatty(), auto_refresh=False) as live:

        def show() -> None:
            while not over.wait(STATUS_S):
                live.update(_status_table(run.status(), run.latest, terminal.height - 1), refresh=True)

        yield show


def _status_table(status: RunStatus, latest: Callable[[str], ProvisionalResult | None], max_rows: int) -> Table:
    """Return a line per source: its name, its label, how sure that is, and how it keeps up; then outputs and sensors.

    Args:
        status: of the run.
        latest: returns the newest provisional result of a source.
        max_rows: lines that the terminal has room for.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True, overflow="ellipsis")
    table.columns[0].max_width = NAME_WIDTH
    rest = _rest_of(status)
    shown = status.sources[: max(1, max_rows - 1 - bool(rest))]
    for source in shown:
        look = latest(source.name)
        style = "dim" if source.stale or source.state != "running" else ""
        label = bar = ""
        if look is not None:
            best = look.top[0]
            label, bar = f"{best.label} {best.confidence:.0%}", "█" * max(1, round(best.confidence * BAR_WIDTH))
        cells = (source.name, label, bar, _figures(source))
        table.add_row(*(Text(printable(cell), style=style) for cell in cells))
    if len(shown) < len(status.sources):
        rest = [f"and {len(status.sources) - len(shown)} more sources", *rest]
    if rest:
        table.add_row("", "", "", Text(printable(" | ".join(rest)), style="dim"))
    return table


def _figures(source: SourceStatus) -> str:
    """Return how a source keeps up, or why it does not run."""
    if source.state != "running":
        text = source.text.removeprefix(f"{source.name}: ")
        return f"{source.state}: {text}" if text else source.state
    latency = "" if source.latency_ms.p50 is None else f", {source.latency_ms.p50:.0f} ms"
    late = f", last frame {source.last_frame_age_s:.0f} s ago" if source.stale else ""
    return f"{source.fps_in:.1f} fps, {source.fps_glimpsed:.1f} glimpsed, {source.dropped} dropped{latency}{late}"


def summary(status: RunStatus) -> list[str]:
    """Return the summary of a run: a line per source, and one per output with drops or failures."""
    lines = []
    for source in status.sources:
        if not source.frames:
            continue  # its error has been reported
        latency = source.latency_ms
        shown = (
            ""
            if latency.p50 is None
            else f", latency p50 {latency.p50:.0f}, p95 {latency.p95:.0f}, p99 {latency.p99:.0f} ms"
        )
        lines.append(
            f"{source.name}: {source.frames} frames, {source.glimpses} glimpses, {source.windows} windows, "
            f"{source.dropped} dropped, {source.damaged} damaged, {source.reconnects} reconnections{shown}"
        )
    for one in status.listeners:
        if one.dropped or one.failed:
            lines.append(f"{one.name}: {one.dropped} messages dropped, {one.failed} failed")
    return lines
