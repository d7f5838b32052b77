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
"""Exit status after a signal, less the signal's number, as shells define it."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells define it."""

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
"""Exit statuses of the signals received."""


def _terminate(number: int, _: object) -> None:
    _ended.append(SIGNALLED + number)
    raise SystemExit(_ended[-1])


class _Stdout(io.TextIOWrapper):
    """Stdout whose errors name it."""

    @classmethod
    def around(cls, stream: io.TextIOWrapper) -> Self:
        """Wrap the stream that Python opened."""
        # File names may hold bytes, and tables characters, that the caller's encoding does not have.
        return cls(
            stream.buffer, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering,
            write_through=stream.write_through,  # with PYTHONUNBUFFERED, instead of by line
        )  # fmt: skip

    def write(self, text: str) -> int:
        """Write a text."""
        with self._wrap_errors():
            return super().write(text)

    def flush(self) -> None:
        """Write buffered text."""
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
    """Stderr that drops what it cannot write, as on a full disk: the work must not end for that."""

    def write(self, text: str) -> int:
        """Write a text."""
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write buffered text."""
        with suppress(OSError):
            super().flush()


def run_command(app: typer.Typer) -> None:
    """Run a command line: every error becomes one line and an exit code."""
    # Unwind the stack, as Ctrl-C does, so that no half-written file remains.
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
    except SystemExit as left:
        if not _ended:
            raise
        status = left.code
    except MemoryError:
        status = print_error("out of memory", 1)
    except OSError as error:
        if _debug:
            raise
        where = error.filename or ("" if _is_here() else "the current folder was deleted: run from another")
        status = print_error(": ".join(str(part) for part in (where, error.strerror or error) if part), 1)
    except Exception as error:
        usage = _usage_text(error)
        if _ended:  # interrupted libraries raise other errors, for instance during their import
            status = _ended[-1]
        elif usage is not None:
            status = print_error(f"{usage} (see --help)", 2)
        elif _debug:
            raise
        else:
            status = print_error(_unexpected(error), 1)
    if status == INTERRUPTED:  # Typer also turns Ctrl-C into this status
        print("interrupted", file=sys.stderr)
    _leave(status if isinstance(status, int) else 0)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback without the secrets of addresses, which messages of other libraries quote."""
    from adafocus_edge.system.addresses import conceal

    print(conceal("".join(traceback.format_exception(kind, error, trace)), *sys.argv[1:]), end="", file=sys.stderr)


def _is_here() -> bool:
    """Whether the current folder exists."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _leave(code: int) -> None:
    """Exit; at once where a thread is or was just in a decoder, which may crash while Python shuts down."""
    live, files = (sys.modules.get(f"adafocus_edge.{name}") for name in ("live.capture", "system.side_by_side"))
    decoding = (*([live.CAPTURE_THREAD] if live else []), *([files.WORKER_THREAD] if files else []))
    stopped = files is not None and (bool(_ended) or code == INTERRUPTED)  # with files under way
    if stopped or any(thread.name.startswith(decoding) for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def print_error(text: str, status: int) -> int:
    """Print an error as one line."""
    from adafocus_edge.system.log_lines import log_line
    from adafocus_edge.system.printable import one_line

    print(log_line(one_line(text), "error"), file=sys.stderr)
    return status


def _unexpected(error: Exception) -> str:
    """Describe an unexpected error; limits on memory and processes can cause one anywhere."""
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return f"a library cannot be loaded ({first or error.name}): memory is short, or its installation is incomplete"
    if isinstance(error, RuntimeError) and "start new thread" in first:
        return "no more threads can be started: raise the limit of processes or of memory (ulimit -u, ulimit -v)"
    return f"unexpected {type(error).__name__}: {first} (--debug shows where)"


def _usage_text(error: Exception) -> str | None:
    """Return Typer's message on wrong usage, or None for any other error. Without a verb, print the help."""
    if not hasattr(error, "format_message"):
        return None
    if type(error).__name__ == "NoArgsIsHelpError":  # Typer does not export it
        typer.echo(error.ctx.get_help(), err=True)  # type: ignore[attr-defined]
        return "no verb given"
    return " ".join(str(error.format_message()).split())
