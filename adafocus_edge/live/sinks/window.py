"""The screen: shows a live run in a window on this machine."""

from __future__ import annotations

import os
import sys
import threading
import time
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.errors import AdaFocusError, MissingExtraError
from adafocus_edge.live.listener import CLOSE_S, OnceReporter
from adafocus_edge.live.messages import LiveFrame, Message, Notice, ProvisionalResult, Rules
from adafocus_edge.media.clip import SQUARE
from adafocus_edge.system.files import write_file
from adafocus_edge.system.retention import safe_name
from adafocus_edge.system.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from adafocus_edge.model.spec import ModelSpec

TITLE = "AdaFocus Edge"
REDRAW_S = 1 / 30
"""Minimum time between two pictures, and maximum delay of a key."""
NOTE_S = 4.0
"""How long the title shows the effect of a key."""
FIRST_SIZE = (960, 540)
"""Width and height of the window in pixels, until the first frame."""
SHARE_OF_SCREEN = 0.8
"""Maximum share of the screen's width and height that the window takes when it opens."""
SMALLEST_WIDTH = 640
"""Minimum width of the window in pixels, for small frames."""
BACKGROUND = (12, 14, 18)


class Screen:
    """Shows the newest frame of a source with its latest provisional result, and handles keys.

    Space pauses the picture while the run continues, ``s`` saves it, Tab and 1 to 9 select the source; ``q``, Escape
    and closing the window end the run. It subscribes to a run as :class:`Sink` does, but draws in the thread that calls
    :meth:`loop`, which must be the main thread, as window systems require.

    Args:
        spec: of the model, for the place of a patch in the frame.
        report: is called with one line for each new error.

    Attributes:
        name: shown to users.
        dropped: frames that were never drawn, because a newer one arrived or another source was selected.
        failed: frames that could not be drawn.
        handled: frames that were drawn.

    Raises:
        MissingExtraError: pygame-ce is not installed.
        AdaFocusError: this machine has no screen, or this process may not use it.
    """

    wants: tuple[type, ...] = (LiveFrame, ProvisionalResult, Notice)

    def __init__(self, spec: ModelSpec, report: Callable[[str], None]) -> None:
        self.name = "screen"
        self.dropped = 0
        self.failed = 0
        self.handled = 0
        self._spec = spec
        self._report_once = OnceReporter(self.name, report)
        self._pygame = _open_display()
        self._lock = threading.Lock()
        self._sources: list[str] = []  # in the order of their first frames
        self._frames: dict[str, LiveFrame] = {}
        self._latest: dict[str, ProvisionalResult] = {}
        self._lost: dict[str, Notice] = {}
        self._lost_s: dict[str, float] = {}  # by time.monotonic
        self._undrawn: set[str] = set()
        self._news = threading.Event()
        self._closed = threading.Event()
        self._selected = 0  # index of the source that is shown
        self._paused = False
        self._shown: LiveFrame | None = None
        self._shown_result: ProvisionalResult | None = None
        self._shown_lost: Notice | None = None
        self._rgb: NDArray[np.uint8] | None = None  # the frame that is shown, uint8 [H, W, 3]
        self._note = ""
        self._note_until_s = 0.0

    def enqueue(self, message: Message) -> None:
        """Take a message, from any thread, without blocking; only the newest of each kind is kept per source."""
        if self._closed.is_set() or isinstance(message, Rules):
            return
        with self._lock:
            source = message.source
            if isinstance(message, LiveFrame):
                if source not in self._frames:
                    self._sources.append(source)
                self.dropped += source in self._undrawn
                self._frames[source] = message
                self._undrawn.add(source)
            elif isinstance(message, ProvisionalResult):
                self._latest[source] = message
                if message.frame.captured_s > self._lost_s.get(source, 0.0):
                    self._lost.pop(source, None)
            elif isinstance(message, Notice) and message.kind in ("lost", "ended", "failed"):
                self._lost[source], self._lost_s[source] = message, time.monotonic()
            else:
                return
        self._news.set()

    @property
    def waiting(self) -> int:
        """Number of sources whose newest frame has not been drawn."""
        return len(self._undrawn)

    def close(self, within_s: float = CLOSE_S) -> None:
        """Ask :meth:`loop` to end and close the window, from any thread, without waiting for it."""
        del within_s
        self._closed.set()
        self._news.set()

    def loop(self, stop: threading.Event, snapshot_folder: Path) -> None:
        """Show frames until ``stop`` is set, which ``q``, Escape and closing the window do; call it in the main thread.

        Args:
            stop: ends the run.
            snapshot_folder: where ``s`` saves pictures as PNG; created when needed.

        Raises:
            AdaFocusError: no window can be opened.
        """
        pygame = self._pygame
        try:
            try:
                window = pygame.display.set_mode(FIRST_SIZE, pygame.RESIZABLE)
            except pygame.error as error:
                raise AdaFocusError(f"no window can be opened ({error}): run without --show") from None
            title = ""
            redraw = True
            while not stop.is_set() and not self._closed.is_set():
                began_s = time.monotonic()
                for event in pygame.event.get():
                    if event.type == pygame.QUIT:
                        stop.set()
                    elif event.type == pygame.KEYDOWN:
                        redraw |= self._key(event.key, stop, snapshot_folder)
                    elif event.type in (pygame.WINDOWRESIZED, pygame.WINDOWEXPOSED):
                        redraw = True
                if self._news.is_set() or redraw:
                    self._news.clear()
                    first = self._rgb is None
                    redraw |= self._take()
                    if first and self._rgb is not None:
                        window = pygame.display.set_mode(self._first_size(self._rgb), pygame.RESIZABLE)
                if redraw:
                    self._paint(pygame.display.get_surface() or window)
                    redraw = False
                if (now_title := self._title()) != title:
                    title = now_title
                    pygame.display.set_caption(title)
                took_s = time.monotonic() - began_s
                time.sleep(max(REDRAW_S - took_s, took_s))  # leaves at least half of a core to the model
        finally:
            self._closed.set()
            pygame.display.quit()

    def _key(self, key: int, stop: threading.Event, snapshot_folder: Path) -> bool:
        """Handle a key; return whether the picture may have changed."""
        pygame = self._pygame
        count = len(self._sources)
        if key in (pygame.K_q, pygame.K_ESCAPE):
            stop.set()
        elif key == pygame.K_SPACE:
            self._paused = not self._paused
        elif key == pygame.K_s:
            self._save(snapshot_folder)
        elif key == pygame.K_TAB and count:
            return self._select((self._selected + 1) % count)
        elif pygame.K_1 <= key <= pygame.K_9:
            return self._select(key - pygame.K_1)
        elif pygame.K_KP_1 <= key <= pygame.K_KP_9:
            return self._select(key - pygame.K_KP_1)
        else:
            return False
        return True

    def _select(self, at: int) -> bool:
        if at >= len(self._sources):
            return False
        self._selected = at
        self._paused = False
        return True

    def _take(self) -> bool:
        """Take the newest frame and result of the selected source; return whether they are new."""
        with self._lock:
            if self._paused or not self._sources:
                return False
            source = self._sources[self._selected]
            frame, result, lost = self._frames[source], self._latest.get(source), self._lost.get(source)
            self._undrawn.discard(source)
        if frame is self._shown and result is self._shown_result and lost is self._shown_lost:
            return False
        if frame is not self._shown:
            try:
                self._rgb = frame.to_rgb()
            except Exception as error:  # an error of one frame must not end the run
                self.failed += 1
                self._report_once(error)
                return False
            self.handled += 1
        self._shown, self._shown_result, self._shown_lost = frame, result, lost
        return True

    def _annotated(self, rgb: NDArray[np.uint8], shown: LiveFrame) -> NDArray[np.uint8]:
        from adafocus_edge.live.overlay import annotate_live, shown_time

        notice = self._shown_lost
        lost = "" if notice is None else f"{notice.kind} at {shown_time(notice.wall_s)[11:]}"
        return annotate_live(rgb, self._shown_result, self._spec, shown_time(shown.wall_s), lost)

    def _paint(self, window: Any) -> None:
        """Draw the frame scaled to the window, in its middle."""
        from PIL import Image

        pygame = self._pygame
        window.fill(BACKGROUND)
        if self._rgb is not None and self._shown is not None:
            rgb = self._rgb
            width, height = self._shown_size(rgb)
            scale = min(window.get_width() / width, window.get_height() / height)
            size = max(1, round(width * scale)), max(1, round(height * scale))
            if scale < 1:  # before annotating, which costs less on fewer pixels
                fewer = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
                rgb = np.asarray(Image.fromarray(rgb).resize(fewer, Image.Resampling.BILINEAR, reducing_gap=2.0))
            picture = self._annotated(rgb, self._shown)
            image = pygame.image.frombuffer(picture.tobytes(), (picture.shape[1], picture.shape[0]), "RGB")
            if image.get_size() != size:
                image = pygame.transform.smoothscale(image, size)
            window.blit(image, ((window.get_width() - size[0]) // 2, (window.get_height() - size[1]) // 2))
        pygame.display.flip()

    def _shown_size(self, rgb: NDArray[np.uint8]) -> tuple[int, int]:
        from adafocus_edge.runtime.annotate import shown_size

        return shown_size(rgb.shape[1], rgb.shape[0], self._shown.sample_aspect if self._shown else SQUARE)

    def _first_size(self, rgb: NDArray[np.uint8]) -> tuple[int, int]:
        """Return the size of the window for a frame: the frame's own, unless that is tiny or larger than the screen."""
        width, height = self._shown_size(rgb)
        screen_width, screen_height = self._pygame.display.get_desktop_sizes()[0]
        room = min(SHARE_OF_SCREEN * screen_width / width, SHARE_OF_SCREEN * screen_height / height)
        scale = min(room, max(1.0, SMALLEST_WIDTH / width))
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _save(self, folder: Path) -> None:
        if self._rgb is None or self._shown is None:
            return self._show_note("nothing to save yet")
        from PIL import Image

        from adafocus_edge.runtime.annotate import in_square_pixels

        content = BytesIO()
        drawn = Image.fromarray(self._annotated(self._rgb, self._shown))
        in_square_pixels(drawn, self._shown.sample_aspect).save(content, "PNG")
        base = f"{safe_name(self._shown.source)}-{stamp(self._shown.wall_s)}"
        path = folder / f"{base}-{self._shown.index}.png"
        try:
            write_file(path, content.getvalue())
        except AdaFocusError as error:
            return self._show_note(str(error))
        return self._show_note(f"saved {path.resolve()}")

    def _show_note(self, note: str) -> None:
        self._note = note
        self._note_until_s = time.monotonic() + NOTE_S

    def _title(self) -> str:
        if time.monotonic() < self._note_until_s:
            return f"{TITLE}: {self._note}"
        if not self._sources:
            return f"{TITLE}: waiting for the first frame"
        source = self._sources[self._selected]
        which = f" ({self._selected + 1} of {len(self._sources)})" if len(self._sources) > 1 else ""
        return f"{TITLE}: {source}{which}{', paused' if self._paused else ''}"


def _open_display() -> Any:
    """Return pygame with an open display. Raises ``MissingExtraError`` or ``AdaFocusError``."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # the run has its own handlers
    try:
        import pygame
    except ImportError:
        raise MissingExtraError("showing a window", "show", "pygame-ce") from None
    chosen = os.environ.get("SDL_VIDEODRIVER")
    seats = {"x11": os.environ.get("DISPLAY"), "wayland": os.environ.get("WAYLAND_DISPLAY")}
    try:
        if sys.platform.startswith("linux") and not chosen:
            # Named explicitly, or SDL falls back to a driver without windows. KMSDRM draws on a console.
            os.environ["SDL_VIDEODRIVER"] = ",".join(driver for driver, seat in seats.items() if seat) or "KMSDRM"
        pygame.display.init()
    except pygame.error as error:
        why = str(error) if chosen or any(seats.values()) else "neither DISPLAY nor WAYLAND_DISPLAY is set"
        advice = "run without --show, or use adafocus-edge serve"
        raise AdaFocusError(f"no screen for a window ({why}): {advice}") from None
    finally:
        if not chosen:
            os.environ.pop("SDL_VIDEODRIVER", None)
    return pygame
