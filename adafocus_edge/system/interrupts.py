"""The only place that installs signal handlers: Ctrl-C, SIGTERM, and SIGHUP for a terminal that closes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Names of the signals that end a run. Windows has no SIGHUP."""


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Provide an event that is set by Ctrl-C, SIGTERM and a terminal that closes; a second signal interrupts at once.

    A signal that is ignored stays ignored. The previous handlers are restored at the end.
    """
    stop = threading.Event()
    before: dict[int, Any] = {}

    def receive(number: int, frame: Any) -> None:
        if stop.is_set() and callable(before[number]):
            before[number](number, frame)
        stop.set()

    for name in ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[int(number)] = signal.signal(number, receive)
    try:
        yield stop
    finally:
        for number_before, handler in before.items():
            signal.signal(number_before, handler)


class DeferredSignals:
    """Defers Ctrl-C, SIGTERM and SIGHUP until :meth:`check`; a second signal acts at once. A context manager.

    An exception that a handler raises inside a destructor, such as that of PyTorch's data loader, would be lost, and
    the run would continue.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._received: int | None = None

    def __enter__(self) -> None:
        for name in ENDING:
            number = getattr(signal, name, signal.SIGTERM)
            handler = signal.getsignal(number)
            if number not in self._before and callable(handler):  # an ignored signal stays ignored
                self._before[number] = signal.signal(number, self._receive)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Call the previous handler of a signal that was received since the beginning, which raises."""
        if self._received is not None:
            self._before[self._received](self._received, None)

    def _receive(self, number: int, frame: object) -> None:
        if self._received is not None:
            self._before[number](number, frame)
        self._received = number


@contextmanager
def note_interrupts() -> Iterator[Callable[[], None]]:
    """Notice Ctrl-C where a library swallows the exception, as TensorRT does while it calls back into Python.

    Yields a function that raises ``KeyboardInterrupt`` if there was a Ctrl-C; it is also called at the end. Outside the
    main thread, which alone receives signals, the function does nothing.
    """
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def check() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield check
        return

    def note(number: int, frame: Any) -> None:
        interrupted.set()
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, before)


def on_termination(handler: Callable[[int, object], None]) -> None:
    """Call a handler on SIGTERM and when the terminal closes, for the rest of the process.

    Args:
        handler: receives the signal's number and the interrupted frame. Under ``nohup``, a terminal that closes is
            still ignored.
    """
    signal.signal(signal.SIGTERM, handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, handler)


def leave_interrupts_to_parent(*, reset_termination: bool = False) -> None:
    """Ignore Ctrl-C in a worker process: it reaches every process of a terminal, and the parent ends its workers.

    Args:
        reset_termination: whether SIGTERM ends the worker at once, without a handler inherited from the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if reset_termination:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Restore the handlers of Ctrl-C, SIGTERM and SIGHUP after a library's start, which replaces some."""
    numbers = [int(number) for name in ENDING if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
