"""What the server needs of a live run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from adafocus_edge.live.listener import Sink
    from adafocus_edge.live.messages import LiveFrame, ProvisionalResult
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.spec import ModelSpec
    from adafocus_edge.runtime.classifier import Result


class Status(Protocol):
    """How a run is doing."""

    def to_json(self) -> dict[str, Any]:
        """Return it as ``GET /api/status`` gives it."""


class Feed(Protocol):
    """A source whose frames are pushed."""

    def push(self, to_rgb: Callable[[], NDArray[Any]], width: int, height: int) -> None:
        """Give a frame; ``to_rgb`` makes RGB uint8 [H, W, 3] of it, in any thread."""

    def close(self) -> None:
        """End the source."""


class Run(Protocol):
    """A live run: sources that are watched, and what was seen of them; see ``stream.LiveRun``."""

    @property
    def spec(self) -> ModelSpec:
        """Shapes of the model."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the logits."""

    @property
    def backend(self) -> str:
        """That runs the model."""

    @property
    def variant(self) -> str:
        """Of the model."""

    @property
    def glimpse_fps(self) -> float:
        """Glimpses of each source per second."""

    def status(self) -> Status:
        """Say how the run is doing."""

    def newest(self, name: str) -> LiveFrame | None:
        """Return the newest frame of a source."""

    def latest(self, name: str) -> ProvisionalResult | None:
        """Return the newest look at a source."""

    def listen(self, listener: Sink) -> None:
        """Tell a listener what happens from now on."""

    def unlisten(self, listener: Sink) -> None:
        """Tell it no more."""

    def open_feed(self, name: str) -> Feed:
        """Add a source whose frames are pushed. Raises ``UsageError`` where there is no room."""

    def submit_clip(self, source: Source, cancel: threading.Event | None = None) -> Future[Result]:
        """Classify a source that ends, beside the live ones; the future may raise ``SourceError``."""
