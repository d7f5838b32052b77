"""Subscribers of a live run, and the base of sinks: each with a queue and a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Protocol

from adafocus_edge.live.messages import LiveFragment, without_pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    from adafocus_edge.live.messages import Message

MAX_REPORTED = 100
"""Different errors that a sink reports at most."""
POLL_S = 0.2
"""How often a thread that waits for room in a queue checks whether it still should."""
IDLE_S = 1.0
"""How often a sink without messages is called for work that is due."""
RETRY_S = 5.0
"""Pause before a file that could not be written is retried."""
MAX_WAITING_BYTES = 1 << 26
"""Size of the copied video that waits for a sink."""
CLOSE_S = 5.0
"""Time that a sink has at the end to process the messages in its queue."""


class Subscriber(Protocol):
    """An object that a live run sends messages to and shows in its status."""

    name: str
    dropped: int
    failed: int
    handled: int

    @property
    def waiting(self) -> int:
        """Number of messages in the queue."""

    def enqueue(self, message: Message) -> None:
        """Take a message; must not block."""


class OnceReporter:
    """Reports each error the first time only, and at most :data:`MAX_REPORTED` different ones.

    Args:
        name: of the object that has the errors; begins each line.
        report: is called with each line.
    """

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self._name, self._report = name, report
        self._reported: set[str] = set()

    def __call__(self, error: Exception) -> None:
        """Report an error, unless one with the same text has been reported."""
        text = f"{self._name}: {str(error) or type(error).__name__}"
        if text not in self._reported and len(self._reported) < MAX_REPORTED:
            self._reported.add(text)
            self._report(text)


class Sink:
    """Receives messages of a live run and processes them in a thread of its own. Subclasses name the types they want.

    A sink never delays the run: if its queue is full, the message is dropped and counted. Exceptions from ``process``
    are counted, and reported once for each text; the sink continues.

    Args:
        name: shown to users, such as the file or the address that is written to, without any password.
        waiting: maximum number of messages in the queue.
        report: is called with one line for each new error.
    """

    wants: ClassVar[tuple[type, ...]] = ()
    """Types of messages that the sink receives."""
    needs_pixels: ClassVar[bool] = False
    """Whether it needs the pixels of the frames in results and events. If not, none of these is kept in the queue."""
    local: ClassVar[bool] = False
    """Whether only this machine, and no network, limits how fast it is."""
    unit: ClassVar[str] = "messages"
    """What it counts, in words for users."""

    def __init__(self, name: str, waiting: int, report: Callable[[str], None]) -> None:
        self.name = name
        self.offered = 0
        self.dropped = 0
        self.failed = 0
        self.handled = 0
        self.patient_until: threading.Event | None = None  # until it is set, a full queue is waited for
        self._report_once = OnceReporter(name, report)
        self._queue: queue.Queue[Message | None] = queue.Queue(waiting)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"listener {name}", daemon=True)
        self._thread.start()

    def enqueue(self, message: Message) -> None:
        """Take a message, or drop and count it, from any thread; blocks only if ``patient_until`` is given."""
        self._offer(message)

    def _offer(self, message: Message) -> bool:
        """Do what :meth:`enqueue` does; return whether the message was taken."""
        if not isinstance(message, self.wants) or self._stopping.is_set():
            return False
        self.offered += self.count(message)
        queued = message if self.needs_pixels else without_pixels(message)
        while True:
            waits = self.patient_until is not None and not self.patient_until.is_set()
            try:
                self._queue.put(queued, block=waits, timeout=POLL_S)
                return True
            except queue.Full:
                if not waits:
                    self.dropped += self.count(message)
                    return False

    @property
    def waiting(self) -> int:
        """Number of messages in the queue."""
        return self._queue.qsize()

    @property
    def trouble(self) -> str:
        """Why it drops messages, in words for users."""
        return "too slow"

    def count(self, _message: Message, /) -> int:
        """Return how many :attr:`unit` a message holds: it counts as so many in ``handled`` and ``dropped``."""
        return 1

    def process(self, message: Message) -> None:
        """Process one message, in the sink's thread; may block and may raise."""
        raise NotImplementedError

    def idle(self) -> None:
        """Do work that is due; called in the sink's thread every :data:`IDLE_S` while no message arrives."""

    def finish(self) -> None:
        """Finish the output; called in the sink's thread, once, at the end."""

    def close(self, within_s: float = CLOSE_S) -> None:
        """Process the queue, finish, and end the thread. Messages that are not processed in time count as dropped."""
        if not self._stopping.is_set():
            self._stopping.set()
            deadline = time.monotonic() + within_s
            while True:
                try:
                    self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
                    break
                except queue.Full:  # make room for the end
                    with suppress(queue.Empty):
                        self._drop(self._queue.get_nowait())
            self._thread.join(max(0.1, deadline - time.monotonic()))
            if self._thread.is_alive():
                self._drop_waiting()

    def _drop_waiting(self) -> None:
        """Drop and count the queue, so that the thread ends after the message that it is processing."""
        with suppress(queue.Empty):
            while True:
                self._drop(self._queue.get_nowait())
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def _drop(self, message: Message | None) -> None:
        if message is not None:
            self.dropped += self.count(message)

    def _run(self) -> None:
        while True:
            try:
                message = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                self._guarded(self.idle)
                continue
            if message is None:
                break
            self._guarded(self.process, message)
            self.handled += self.count(message)
        self._guarded(self.finish)

    def _guarded(self, work: Callable[..., None], *arguments: Message) -> None:
        try:
            work(*arguments)
        except Exception as error:  # an error of a sink must not end the run
            self.failed += 1
            self._report_once(error)


class FragmentSink(Sink):
    """A sink that receives copied video: whole pieces of it only, and never more waiting than memory allows.

    After a fragment that was dropped, those up to the next key frame are dropped, too: without it, they cannot be
    decoded.
    """

    unit = "frames"

    def __init__(self, name: str, waiting: int, report: Callable[[str], None]) -> None:
        self._waiting_bytes = 0
        self._bytes_lock = threading.Lock()
        self._torn: set[str] = set()  # sources of which a fragment was dropped
        super().__init__(name, waiting, report)

    def count(self, message: Message, /) -> int:
        """Return the number of frames in a fragment."""
        return len(message.shown) if isinstance(message, LiveFragment) else 1

    def enqueue_fragment(self, fragment: LiveFragment) -> None:
        """Take a fragment, or drop and count its frames; see :meth:`Sink.enqueue`."""
        if fragment.is_key:
            self._torn.discard(fragment.source)
        size = len(fragment.data)
        waits = self.patient_until is not None and not self.patient_until.is_set()
        too_much = not waits and self._waiting_bytes > 0 and self._waiting_bytes + size > MAX_WAITING_BYTES
        if fragment.source in self._torn or too_much:
            self.offered += self.count(fragment)
            self.dropped += self.count(fragment)
            self._torn.add(fragment.source)
            return
        self._change_waiting_bytes(size)  # before the thread can take it
        if not self._offer(fragment):
            self._change_waiting_bytes(-size)
            self._torn.add(fragment.source)

    def took_fragment(self, fragment: LiveFragment) -> None:
        """Note that a fragment has left the queue."""
        self._change_waiting_bytes(-len(fragment.data))

    def _change_waiting_bytes(self, change: int) -> None:
        with self._bytes_lock:
            self._waiting_bytes += change
