"""The archive of events: a folder of clips and pictures, and an SQLite index of them that survives ``kill -9``."""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.system.files import locked
from adafocus_edge.system.retention import check_folder

Mark = Literal["right", "wrong"]
MARKS: tuple[Mark, ...] = ("right", "wrong")
LOG = logging.getLogger("adafocus_edge")
INDEX = "events.sqlite"
VERSION = 1
LOCK = ".writing.lock"
OWN_FILE = re.compile(r"\d{8}-\d{6}-.+-\d+\.(mp4|jpg)")
"""Names of clips and pictures."""
MAX_POST_ROLL_S = 40.0
"""A clip is finished this long after its event."""
BUSY_S = 10.0
"""How long a change waits for one by another process, such as `prepare`."""
_TABLE = """
CREATE TABLE IF NOT EXISTS events (
    key TEXT PRIMARY KEY, source TEXT NOT NULL, label TEXT NOT NULL, started REAL NOT NULL, ended REAL,
    peak REAL NOT NULL, cut INTEGER NOT NULL DEFAULT 0, clip TEXT, clip_from REAL, clip_s REAL, picture TEXT,
    bytes INTEGER NOT NULL DEFAULT 0, mark TEXT, correct TEXT, marked REAL
) STRICT;
CREATE INDEX IF NOT EXISTS events_started ON events (started);
CREATE TABLE IF NOT EXISTS classes (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS doomed (name TEXT PRIMARY KEY) STRICT;
"""


@dataclass(frozen=True)
class StoredEvent:
    """An event in the archive.

    Attributes:
        key: its name, unique and safe in file names and addresses.
        source: its name.
        label: of the class.
        started: when it started, in seconds since 1970.
        ended: when it ended; None while it lasts.
        peak: highest confidence, 0..1.
        cut: whether the run ended before the event did.
        clip: name of its video in the folder; None until there is one, or where it could not be written.
        clip_from: when the video begins, in seconds since 1970.
        clip_s: length of the video so far, in seconds.
        picture: name of its picture in the folder.
        bytes: of both files.
        mark: what a person says of it.
        correct: of an event marked wrong: the class that it is, if that was given.
        marked: when it was marked, in seconds since 1970.
    """

    key: str
    source: str
    label: str
    started: float
    ended: float | None = None
    peak: float = 0.0
    cut: bool = False
    clip: str | None = None
    clip_from: float | None = None
    clip_s: float | None = None
    picture: str | None = None
    bytes: int = 0
    mark: Mark | None = None
    correct: str | None = None
    marked: float | None = None

    def grows(self) -> bool:
        """Return whether the clip may still grow, which it does for a while after the event.

        A clip that ended long ago, or in the future because the system's clock was set back, does not.
        """
        return self.ended is None or abs(time.time() - self.ended) < MAX_POST_ROLL_S

    def label_of(self, classes: tuple[str, ...]) -> str | None:
        """Return the class that a person says this is, or None without a mark.

        A wrong event of two classes is of the other one.
        """
        if self.mark == "right":
            return self.label
        if self.mark == "wrong" and self.correct is None and len(classes) == 2 and self.label in classes:
            return classes[1 - classes.index(self.label)]
        return self.correct if self.mark == "wrong" else None


@dataclass(frozen=True)
class Filter:
    """Which events to list; None for all.

    Attributes:
        source: name of the source.
        label: of the class.
        since: earliest start, in seconds since 1970.
        until: latest start.
        min_peak: lowest peak confidence.
        mark: ``right``, ``wrong``, ``any`` of them, or ``none``.
    """

    source: str | None = None
    label: str | None = None
    since: float | None = None
    until: float | None = None
    min_peak: float | None = None
    mark: Mark | Literal["any", "none"] | None = None

    def where(self) -> tuple[str, list[Any]]:
        """Return the condition in SQL, and its values."""
        conditions, values = ["1"], []
        for condition, value in (
            ("source = ?", self.source),
            ("label = ?", self.label),
            ("started >= ?", self.since),
            ("started <= ?", self.until),
            ("peak >= ?", self.min_peak),
            ("mark = ?", self.mark if self.mark in MARKS else None),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        if self.mark in ("any", "none"):
            conditions.append("mark IS NOT NULL" if self.mark == "any" else "mark IS NULL")
        return " AND ".join(conditions), values


class EventStore:
    """The archive in a folder; safe to use from several threads, and to read from several processes.

    Args:
        folder: of the clips, the pictures and the index; created if necessary.

    Raises:
        UsageError: ``folder`` is a file, or holds the archive of a newer version.
        AdaFocusError: it cannot be written, or its index is damaged.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder, "events")
        self.folder = folder
        self._added_s: dict[str, float] = {}  # events of this run, by ``time.monotonic``
        self._lock = threading.Lock()
        with self._told():
            self._index = sqlite3.connect(folder / INDEX, BUSY_S, isolation_level=None, check_same_thread=False)
            self._index.row_factory = sqlite3.Row
            # Each change is on the disk before the call returns; readers do not wait for writers.
            self._index.execute("PRAGMA journal_mode = WAL")
            self._index.execute("PRAGMA synchronous = FULL")
            (version,) = self._index.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise UsageError(f"{folder}: the archive of a newer version of AdaFocus Edge")
            self._index.executescript(f"{_TABLE} PRAGMA user_version = {VERSION};")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one run that writes to the archive; end what a killed run left open.

        Raises ``UsageError`` if another run writes to it, ``AdaFocusError``.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / LOCK))
            except BlockingIOError:
                raise UsageError(f"{self.folder}: another run writes to this archive: give another --events") from None
            self._finish_deletions()
            self._settle_files()
            self.close_abandoned()
            if strays := self._strays():
                LOG.warning(
                    "%s: %d clips and pictures are of no event in %s: they are kept", self.folder, strays, INDEX
                )
            yield

    def close(self) -> None:
        """Close the index; may be called again."""
        with self._lock:
            self._index.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Report errors of SQLite as ours: a full disk as ``OSError`` would be, all others with the file's name."""
        try:
            yield
        except sqlite3.Error as error:
            raise AdaFocusError(f"{self.folder / INDEX}: the index of events cannot be used ({error})") from None

    def _change(self, statement: str, *values: object) -> int:
        with self._lock, self._told():
            return self._index.execute(statement, tuple(map(_storable, values))).rowcount

    def _rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        with self._lock, self._told():
            return self._index.execute(statement, tuple(map(_storable, values))).fetchall()

    def _finish_deletions(self) -> None:
        """Delete the files of deleted events that are still there: a run was killed in between, or could not."""
        self._unlink([row["name"] for row in self._rows("SELECT name FROM doomed")])

    def _settle_files(self) -> None:
        """Name the pictures, and forget the clips, with which a killed run was not done."""
        for row in self._rows("SELECT key, clip, picture FROM events WHERE ended IS NULL"):
            files = {"clip": row["clip"], "picture": row["picture"] or f"{row['key']}.jpg"}
            there = {part: name if name and self.path(name).is_file() else None for part, name in files.items()}
            self.update(row["key"], **there)

    def _strays(self) -> int:
        """Count clips and pictures that no event names.

        They may be the only copies: of an index that was lost, or replaced by an older one. Nothing deletes them.
        """
        rows = self._rows("SELECT clip, picture FROM events")
        named = {name for row in rows for name in (row["clip"], row["picture"])}
        return sum(
            OWN_FILE.fullmatch(path.name) is not None and path.name not in named for path in self.folder.iterdir()
        )

    # -- what a run writes --------------------------------------------------------------------------------------------

    def close_abandoned(self) -> int:
        """End the events that are still open, as far as their clips show them; return how many there were.

        Only the run that writes may call this.
        """
        ended = "max(started, coalesce(clip_from + clip_s, started))"
        return self._change(f"UPDATE events SET ended = {ended}, cut = 1 WHERE ended IS NULL")

    def set_classes(self, names: tuple[str, ...]) -> None:
        """Keep the names of the model's classes, from which a person chooses the correct one."""
        with self._transaction():
            self._index.execute("DELETE FROM classes")
            self._index.executemany("INSERT INTO classes VALUES (?, ?)", enumerate(map(_storable, names)))

    def add(self, event: StoredEvent) -> None:
        """Add an event that starts. Raises ``AdaFocusError``, also if there is one of the same key."""
        names = list(StoredEvent.__dataclass_fields__)
        values = [getattr(event, name) for name in names]
        marks = ", ".join("?" * len(names))
        self._change(f"INSERT INTO events ({', '.join(names)}) VALUES ({marks})", *values)
        self._added_s[event.key] = time.monotonic()

    def update(self, key: str, **changes: object) -> None:
        """Change fields of an event, such as ``ended``; one that was deleted meanwhile stays deleted."""
        assert set(changes) <= set(StoredEvent.__dataclass_fields__)
        names = ", ".join(f"{name} = ?" for name in changes)
        self._change(f"UPDATE events SET {names} WHERE key = ?", *changes.values(), key)

    def end(self, key: str, lasted_s: float, peak: float, *, cut: bool) -> None:
        """End an event so long after its start: the system's clock may have been set meanwhile."""
        self._change("UPDATE events SET ended = started + ?, peak = ?, cut = ? WHERE key = ?", lasted_s, peak, cut, key)

    def delete_old(self, max_age_s: float | None, max_bytes: float | None, now: float | None = None) -> int:
        """Delete events that are too old, marked or not, then those beyond the size: unmarked ones first.

        Events that last are kept. Those of this run are as old as the run has seen: the system's clock may have been
        set meanwhile. Returns how many were deleted.
        """
        doomed: list[str] = []
        if max_age_s is not None:
            limit = (time.time() if now is None else now) - max_age_s
            too_old = self._rows("SELECT key FROM events WHERE started < ? AND ended IS NOT NULL", limit)
            limit_s = time.monotonic() - max_age_s
            doomed = [row["key"] for row in too_old if self._added_s.get(row["key"], float("-inf")) < limit_s]
            self._delete(doomed)
        if max_bytes is None:
            return len(doomed)
        ((total,),) = self._rows("SELECT coalesce(sum(bytes), 0) FROM events")
        over = []
        order = "mark IS NOT NULL, started, key"
        for row in self._rows(f"SELECT key, bytes FROM events WHERE ended IS NOT NULL ORDER BY {order}"):
            if total <= max_bytes:
                break
            total -= row["bytes"]
            over.append(row["key"])
        self._delete(over)
        return len(doomed) + len(over)

    # -- what people and programs ask for -----------------------------------------------------------------------------

    def find(self, asked: Filter, limit: int, before: str | None = None) -> tuple[list[StoredEvent], int]:
        """Return events, newest first, and how many match in all.

        Args:
            asked: which events.
            limit: max number of events.
            before: key of an event: only those that started before it, for the next page.

        Raises ``KeyError`` if there is no event ``before``.
        """
        if before is not None and self.get(before) is None:
            raise KeyError(before)
        where, values = asked.where()
        ((total,),) = self._rows(f"SELECT count(*) FROM events WHERE {where}", *values)
        if before is not None:
            where += " AND (started, key) < (SELECT started, key FROM events WHERE key = ?)"
            values.append(before)
        rows = self._rows(f"SELECT * FROM events WHERE {where} ORDER BY started DESC, key DESC LIMIT ?", *values, limit)
        return [_event(row) for row in rows], total

    def get(self, key: str) -> StoredEvent | None:
        """Return an event by its key."""
        rows = self._rows("SELECT * FROM events WHERE key = ?", key)
        return _event(rows[0]) if rows else None

    def names(self) -> tuple[list[str], list[str]]:
        """Return the sources and the labels that occur, sorted."""
        sources = self._rows("SELECT DISTINCT source FROM events ORDER BY source")
        labels = self._rows("SELECT DISTINCT label FROM events ORDER BY label")
        return [row[0] for row in sources], [row[0] for row in labels]

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes of the model that ran last."""
        return tuple(row["name"] for row in self._rows("SELECT name FROM classes ORDER BY id"))

    def judged(self) -> list[tuple[StoredEvent, str | None]]:
        """Return the marked events with a finished clip, oldest first, each with its class; None where unknown."""
        classes = self.classes()
        return [(event, event.label_of(classes)) for event in self._marked() if not event.grows()]

    def marked_growing(self) -> int:
        """Return how many marked events have a clip that still grows."""
        return sum(event.grows() for event in self._marked())

    def _marked(self) -> list[StoredEvent]:
        """Return the marked events with a clip, oldest first."""
        where = "mark IS NOT NULL AND clip_s IS NOT NULL"
        return [_event(row) for row in self._rows(f"SELECT * FROM events WHERE {where} ORDER BY started, key")]

    def mark(self, key: str, mark: Mark | None, correct: str | None = None) -> StoredEvent | None:
        """Keep what a person says of an event, or forget it; return the event, or None if there is none.

        Args:
            key: of the event.
            mark: ``right``, ``wrong``, or None to forget.
            correct: with ``wrong``: the class that it is.
        """
        now = None if mark is None else time.time()
        self.update(key, mark=mark, correct=correct if mark == "wrong" else None, marked=now)
        return self.get(key)

    def delete(self, key: str) -> bool:
        """Delete an event and its files; return whether there was one."""
        return self._delete([key]) > 0

    def path(self, name: str) -> Path:
        """Return the path of a file of an event."""
        return self.folder / name

    def _delete(self, keys: list[str]) -> int:
        deleted = 0
        for key in keys:
            event = self.get(key)
            if event is None:
                continue
            names = [name for name in (event.clip, event.picture) if name is not None]
            # A row without files would be a broken link; files without a row would stay for ever.
            with self._transaction():
                self._index.executemany("INSERT OR IGNORE INTO doomed VALUES (?)", [(name,) for name in names])
                deleted += self._index.execute("DELETE FROM events WHERE key = ?", (_storable(key),)).rowcount
            self._added_s.pop(key, None)
            self._unlink(names)
        return deleted

    def _unlink(self, names: list[str]) -> None:
        """Delete files, and remember no longer that they are to be deleted; one that cannot be is tried again later."""
        for name in names:
            try:
                self.path(name).unlink(missing_ok=True)
            except OSError:
                continue
            self._change("DELETE FROM doomed WHERE name = ?", name)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Change all or nothing."""
        with self._lock, self._told():
            self._index.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._index.execute("ROLLBACK")
                raise
            self._index.execute("COMMIT")


def _storable(value: object) -> object:
    """Return text in a form that UTF-8 can encode: names of sources may hold other bytes."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _event(row: sqlite3.Row) -> StoredEvent:
    return replace(StoredEvent(**dict(row)), cut=bool(row["cut"]))
