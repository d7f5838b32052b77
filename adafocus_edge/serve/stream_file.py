"""The configuration file as it is edited: sources and event rules change, everything else stays, with its comments."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Array, InlineTable, Table

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.live.events import EventRule
from adafocus_edge.live.stream_config import SourceEntry, read_event, read_source
from adafocus_edge.system.files import atomic_write, decode_text, locked, read_own, reason, writable

Kind = Literal["source", "event"]


class StreamDocument:
    """A configuration in TOML.

    Args:
        name: of the file, for errors.
        content: of the file.

    Raises:
        UsageError: it is not TOML in UTF-8.
    """

    def __init__(self, name: str, content: bytes) -> None:
        self._name = name
        try:
            self._document = tomlkit.parse(decode_text(content))
        except (TOMLKitError, ValueError, RecursionError) as error:
            raise UsageError(f"{name}: not TOML ({error})") from None

    @property
    def content(self) -> bytes:
        """The content of the file."""
        return tomlkit.dumps(self._document).encode()

    def sources(self) -> list[SourceEntry]:
        """Return the sources. Raises ``UsageError``."""
        return [read_source(one) for one in self._list("source")]

    def rules(self) -> list[EventRule]:
        """Return the event rules. Raises ``UsageError``."""
        return [read_event(one) for one in self._list("event")]

    def count(self, kind: Kind) -> int:
        """Return the number of entries."""
        return len(self._list(kind))

    def change(self, kind: Kind, number: int | None, values: Mapping[str, Any]) -> None:
        """Change an entry, or add one.

        Args:
            kind: of the entry.
            number: of the entry, from 0; None to add one.
            values: by key; None removes a key. A text becomes a table.
        """
        entries = self._list(kind)
        if number is None:
            if not entries:  # also an empty array, to which no table can be appended
                self._document.pop(kind, None)
                self._document.append(kind, tomlkit.aot())
                entries = self._document[kind]
            table = tomlkit.table() if isinstance(entries, AoT) else tomlkit.inline_table()
            _fill(table, values)
            with _next_comments_at_end(entries):
                if entries and isinstance(entries[-1], Table):
                    entries[-1].value.body.append((None, tomlkit.nl()))
                entries.append(table)
            return
        if not isinstance(entries[number], Mapping):
            entries[number] = tomlkit.inline_table()
        with _next_comments_at_end([entries[number]]):
            _fill(entries[number], values)

    def remove(self, kind: Kind, number: int) -> None:
        """Remove an entry; comments before and after it stay, but not those between its keys."""
        entries = self._list(kind)
        if isinstance(entries, AoT):
            self._document = tomlkit.parse(_without_table(tomlkit.dumps(self._document), kind, number))
            return
        del entries[number]
        if not entries:
            del self._document[kind]

    def _list(self, kind: Kind) -> Any:
        found = self._document.get(kind, [])
        if not isinstance(found, (AoT, Array, list)):
            raise UsageError(f"{self._name}: {kind} takes a list")
        return found


def _fill(table: Table | InlineTable, values: Mapping[str, Any]) -> None:
    present = {str(key).replace("_", "-"): str(key) for key in table}
    for key, value in values.items():
        own = present.get(key, key)
        if value is None:
            table.pop(own, None)
        elif own not in table or table[own] != value:
            table[own] = value


@contextmanager
def _next_comments_at_end(entries: Any) -> Iterator[None]:
    """Keep comments at the end of the last of some tables there: they belong to what follows in the file."""
    last = entries[-1] if entries else None
    ending: list[Any] = []
    if isinstance(last, Table):
        body = last.value.body
        while body and body[-1][0] is None:  # a comment or a blank line
            ending.insert(0, body.pop())
    try:
        yield
    finally:
        if ending:
            entries[-1].value.body.extend(ending)


def _without_table(text: str, kind: str, number: int) -> str:
    """Return a configuration without one table of an array of tables, and with all comments around it."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    headers: list[tuple[int, bool]] = []  # their lines, and whether an entry begins there or a table within one
    since = 0  # the last of them
    for place, line in enumerate(lines):
        if line.lstrip().startswith("[") and _parsed("".join(lines[since:place])) is not None:
            since = place
            ((name, made),) = (_parsed(line) or {"": None}).items()
            if name == kind and made == [{}]:
                headers.append((place, True))
            elif name != kind:
                headers.append((place, False))
    first = [place for place, is_entry in headers if is_entry][number]
    after = end = next((place for place, _ in headers if place > first), len(lines))
    while end > first + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1  # what stands above the next header
    before, rest = lines[:first], lines[end:]
    if before and not before[-1].strip() and rest and end < after and not rest[0].strip():
        del rest[0]
    elif before and before[-1].strip() and rest and rest[0].strip():
        rest.insert(0, "\n")  # a comment on the entry must not become one on the next
    return "".join(before + rest)


def _parsed(text: str) -> dict[str, Any] | None:
    """Return what TOML says, or None if this is not TOML, such as one half of a text or an array of several lines."""
    try:
        return dict(tomlkit.parse(text).unwrap())
    except (TOMLKitError, ValueError, RecursionError):
        return None


@contextmanager
def editing(path: Path) -> Iterator[bytes]:
    """Provide the content of a file while no other server edits it. Raises ``AdaFocusError``."""
    try:
        with locked(path.with_name(f".{path.name}.lock"), wait=True):
            yield content_of(path)
    except OSError as error:
        raise AdaFocusError(f"{path}: cannot be edited ({reason(error)})") from None


def content_of(path: Path) -> bytes:
    """Return the content of a regular file. Raises ``AdaFocusError``."""
    try:
        return read_own(path)
    except OSError as error:
        raise AdaFocusError(f"{path}: cannot be read ({reason(error)})") from None


def write(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all; keep its permissions, and its owner where that is allowed.

    Raises ``AdaFocusError``.
    """
    target = path.resolve()  # a link stays
    with writable(path):
        before = target.stat()
        with atomic_write(target, before.st_mode & 0o777) as file:
            with suppress(OSError):
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(content)
