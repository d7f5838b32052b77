"""Signals that end a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C, SIGTERM and a terminal that closes set; the second one interrupts at once."""
    stop = threading.Event()
    before: dict[int, Any] = {}

    def receive(number: int, frame: Any) -> None:
        if stop.is_set() and callable(before[number]):
            before[number](number, frame)
        stop.set()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[int(number)] = signal.signal(number, receive)
    try:
        yield stop
    finally:
        for number_before, handler in before.items():
            signal.signal(number_before, handler)
