"""The interface of a live run that the server uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from adafocus_edge.live.events import EventRule
    from adafocus_edge.live.listener import Sink
    from adafocus_edge.live.messages import LiveFrame, ProvisionalResult
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.spec import ModelSpec
    from adafocus_edge.runtime.classifier import Result


class Status(Protocol):
    """The state of a run."""

    @property
    def alive(self) -> bool:
        """Whether the model's loop runs."""

    @property
    def stalled_s(self) -> float:
        """Time since the model's loop last moved, in seconds."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields of :class:`~adafocus_edge.serve.schemas.Status` that the run knows."""


class Feed(Protocol):
    """A source whose frames are pushed."""

    def push(self, to_rgb: Callable[[], NDArray[Any]], width: int, height: int) -> None:
        """Add a frame; ``to_rgb`` returns it as RGB uint8 [H, W, 3] and may be called in any thread."""

    def close(self) -> None:
        """End the source."""


class Run(Protocol):
    """A live run, as :class:`adafocus_edge.live.run.LiveRun` implements it."""

    @property
    def spec(self) -> ModelSpec:
        """Shapes of the model."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""

    @property
    def backend(self) -> str:
        """Name of the backend that runs the model."""

    @property
    def variant(self) -> str:
        """Name of the model's variant."""

    @property
    def glimpse_fps(self) -> float:
        """Glimpses per second and source."""

    def status(self) -> Status:
        """Return the state of the run."""

    def newest(self, name: str) -> LiveFrame | None:
        """Return the newest frame of a source."""

    def latest(self, name: str) -> ProvisionalResult | None:
        """Return the newest provisional result of a source."""

    def listen(self, listener: Sink) -> None:
        """Send all further messages to a listener."""

    def unlisten(self, listener: Sink) -> None:
        """Stop sending messages to a listener."""

    def open_feed(self, name: str) -> Feed:
        """Add a source whose frames are pushed. Raises ``UsageError`` if the run has no room for it."""

    @property
    def max_sources(self) -> int:
        """Maximum number of sources, without browser cameras."""

    def add_source(self, source: Source) -> None:
        """Add a source while the others run. Raises ``UsageError``."""

    def remove_source(self, name: str, reason: str) -> None:
        """End a source while the others run; return once it is gone. Raises ``AdaFocusError``."""

    def set_rules(self, rules: Sequence[EventRule]) -> None:
        """Use other rules for events. Raises ``UsageError``."""

    def submit_clip(self, source: Source, cancel: threading.Event | None = None) -> Future[Result]:
        """Classify a finite source while the live ones run; the future may raise ``SourceError``."""
