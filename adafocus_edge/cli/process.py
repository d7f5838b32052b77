"""The command line as a process: streams, signals, errors in one line, exit codes."""

from __future__ import annotations

import io
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from adafocus_edge.errors import AdaFocusError
from adafocus_edge.system.interrupts import on_termination

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


SIGNALLED = 128
"""Exit status after a signal, as shells have it, less its number."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

_debug = False


def set_debug(value: bool) -> bool:
    """Remember ``--debug``."""
    global _debug  # noqa: PLW0603 - one process runs one command
    _debug = _debug or value
    return value


def is_debugging() -> bool:
    """Whether errors show their tracebacks."""
    return _debug


_ended: list[int] = []
"""Exit statuses of the signals that came."""


def _terminate(number: int, _: object) -> None:
    _ended.append(SIGNALLED + number)
    raise SystemExit(_ended[-1])


class _Stdout(io.TextIOWrapper):
    """Stdout, whose errors name it."""

    @classmethod
    def around(cls, stream: io.TextIOWrapper) -> Self:
        """Return it in place of what Python opened."""
        # Names of files may hold bytes, and tables signs, that the caller's encoding does not know.
        return cls(stream.buffer, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)

    def write(self, text: str) -> int:
        """Write a text."""
        with self._wrap_errors():
            return super().write(text)

    def flush(self) -> None:
        """Write what waits."""
        with self._wrap_errors():
            super().flush()

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = "stdout"
            raise


class _Stderr(_Stdout):
    """Stderr: what cannot be told there, as on a full disk, does not end the work."""

    def write(self, text: str) -> int:
        """Write a text."""
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits."""
        with suppress(OSError):
            super().flush()


def run_command(app: typer.Typer) -> None:
    """Run a command line: every error becomes one line and an exit code."""
    # Unwinds the stack, as Ctrl-C does, so that nothing half-written stays.
    on_termination(_terminate)
    for name, kind in (("stdout", _Stdout), ("stderr", _Stderr)):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123
        elif type(stream) is io.TextIOWrapper:
            setattr(sys, name, kind.around(stream))
    sys.excepthook = _print_traceback
    threading.excepthook = lambda failed: _print_traceback(
        failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback
    )
    status: object = 0
    try:
        status = typer.main.get_command(app).main(prog_name="adafocus-edge", standalone_mode=False)
    except AdaFocusError as error:
        if _debug:
            raise
        status = print_error(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except MemoryError:
        status = print_error("out of memory", 1)
    except OSError as error:
        if _debug:
            raise
        where = error.filename or ("" if _is_here() else "the current folder was deleted: run from another")
        status = print_error(": ".join(str(part) for part in (where, error.strerror or error) if part), 1)
    except Exception as error:
        usage = _usage_text(error)
        if _ended:  # what was interrupted has made another error of it, as libraries do while they are imported
            status = _ended[-1]
        elif usage is not None:
            status = print_error(f"{usage} (see --help)", 2)
        elif _debug:
            raise
        else:
            status = print_error(_unexpected(error), 1)
    if status == INTERRUPTED:  # Typer turns Ctrl-C into this status, too
        print("interrupted", file=sys.stderr)
    _leave(status if isinstance(status, int) else 0)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what ``--debug`` shows, without the secrets of addresses: messages of other libraries quote them."""
    from adafocus_edge.system.addresses import conceal

    print(conceal("".join(traceback.format_exception(kind, error, trace)), *sys.argv[1:]), end="", file=sys.stderr)


def _is_here() -> bool:
    """Whether the current folder is there."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _leave(code: int) -> None:
    """End the process: at once where a capture thread hangs in a decoder, which may crash while Python winds down."""
    stream = sys.modules.get("adafocus_edge.live.capture")
    if stream is not None and any(t.name.startswith(stream.CAPTURE_THREAD) for t in threading.enumerate()):
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def print_error(text: str, status: int) -> int:
    """Print an error as one line."""
    from adafocus_edge.system.console import one_line

    print(f"error: {one_line(text)}", file=sys.stderr)
    return status


def _unexpected(error: Exception) -> str:
    """Say what no one foresaw, and what tight limits on memory and processes do anywhere."""
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return f"a library cannot be loaded ({first or error.name}): memory is short, or it is not installed whole"
    if isinstance(error, RuntimeError) and "start new thread" in first:
        return "no more threads can be started: raise the limit of processes or of memory (ulimit -u, ulimit -v)"
    return f"unexpected {type(error).__name__}: {first} (--debug shows where)"


def _usage_text(error: Exception) -> str | None:
    """Return what Typer says of wrong usage, or None for any other error. No verb at all shows the help."""
    if not hasattr(error, "format_message"):
        return None
    text = str(error.format_message())
    if text.lstrip().startswith("Usage"):
        print(text, file=sys.stderr)
        return "no verb given"
    return " ".join(text.split())
