"""The clips of an archive of events that a person has marked, as examples to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adafocus_edge.errors import DataError, UsageError
from adafocus_edge.live.event_store import INDEX, EventStore
from adafocus_edge.system.timestamps import stamp


@dataclass(frozen=True)
class JudgedClip:
    """A marked event: its clip, the class that it is, and the source and day that it is of."""

    path: Path
    label: str
    group: str


@dataclass(frozen=True)
class Judged:
    """What a person has marked in an archive.

    Attributes:
        clips: oldest first.
        left_out: how many marked events have no finished clip, or are marked wrong without their class.
        classes: of the model that ran last.
    """

    clips: tuple[JudgedClip, ...]
    left_out: int
    classes: tuple[str, ...]


def judged_clips(folder: Path) -> Judged:
    """Return the marked clips of an archive.

    Raises ``UsageError`` if the folder is no archive, ``DataError`` if nothing in it is marked.
    """
    if not (folder / INDEX).is_file():
        raise UsageError(f"{folder}: no archive of events, as --events DIR of a live run makes it")
    store = EventStore(folder)
    try:
        judged, growing, classes = store.judged(), store.marked_growing(), store.classes()
    finally:
        store.close()
    clips = tuple(
        JudgedClip(store.path(event.clip), label, f"{event.source} {stamp(event.started)[:8]}")
        for event, label in judged
        if label is not None and event.clip is not None and store.path(event.clip).is_file()
    )
    if not judged and growing:
        raise DataError(f"{folder}: the clips of the events that are marked are not finished: wait for a minute")
    if not judged:
        raise DataError(f"{folder}: no event with a clip is marked right or wrong: mark some on the page of events")
    if not clips:
        raise DataError(f"{folder}: {len(judged)} events are marked, all wrong without their class or without a clip")
    return Judged(clips, len(judged) - len(clips), classes)
