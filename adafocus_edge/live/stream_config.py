"""The sources and event rules of a configuration file, and the regions and masks of options."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adafocus_edge.errors import UsageError
from adafocus_edge.live.events import EventRule
from adafocus_edge.live.settings import LiveArguments
from adafocus_edge.media.sources import Source, find_sources
from adafocus_edge.media.zones import Polygon, Zones, parse_polygon, polygons_problem, read_polygon
from adafocus_edge.model.spec import class_name
from adafocus_edge.system.addresses import shown_argument

SOURCE_KEYS = ("name", "address", "paused", "regions", "masks")
EVENT_KEYS = ("label", "threshold", "for-s", "cooldown-s")
MAX_NAME = 200


class InvalidError(UsageError):
    """Settings that cannot be used.

    Attributes:
        fields: one line for each field that is wrong, by its key.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.fields = dict(fields)
        super().__init__("; ".join(f"{key}: {text}" for key, text in self.fields.items()))


@dataclass(frozen=True)
class SourceEntry:
    """A source as a configuration file lists it.

    Attributes:
        address: as :func:`find_sources` takes it; without a name it may hold several sources.
        name: of the source, or None.
        paused: whether it is not read for the time being.
        zones: its regions and masks.
    """

    address: str = field(repr=False)
    name: str | None = None
    paused: bool = False
    zones: Zones = field(default_factory=Zones)

    @property
    def argument(self) -> str:
        """The source as a command line names it."""
        return self.address if self.name is None else f"{self.name}={self.address}"


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file as it was read at the start.

    Attributes:
        path: of the file.
        digest: of its content, see :func:`digest_of`.
        entries: its sources.
        overridden: ``source`` and ``event``, if the command line overrides them.
    """

    path: Path
    digest: str
    entries: tuple[SourceEntry, ...] = ()
    overridden: frozenset[str] = frozenset()


def digest_of(content: bytes) -> str:
    """Return what identifies the content of a file."""
    return hashlib.sha256(content).hexdigest()[:32]


def name_problem(name: str) -> str | None:
    """Return what is wrong with the name of a source, or None."""
    if not name.strip() or name != name.strip():
        return "must not be empty, nor begin or end with a space"
    if len(name) > MAX_NAME or not name.isprintable():
        return f"must have at most {MAX_NAME} characters, all printable"
    if "=" in name or "/" in name:
        return "must not contain = or /"
    return None


def read_source(value: Any) -> SourceEntry:
    """Return the source that an entry of ``source`` describes: a text, or a table.

    Raises:
        InvalidError: a field is wrong.
        UsageError: a key is unknown or missing; the message says which.
    """
    if not isinstance(value, Mapping):
        return SourceEntry(str(value))
    table = _table(value, "source", SOURCE_KEYS, "address")
    wrong: dict[str, str] = {}
    name = None if "name" not in table else str(table["name"])
    if name is not None and (problem := name_problem(name)) is not None:
        wrong["name"] = problem
    paused = table.get("paused", False)
    if not isinstance(paused, bool):
        wrong["paused"] = "must be true or false"
    polygons = {}
    for key in ("regions", "masks"):
        try:
            polygons[key] = read_polygons(key, table.get(key, []))
        except UsageError as error:
            wrong[key] = str(error)
    if name is None and (wrong or paused or any(polygons.values())):
        wrong["name"] = "is missing, which a source with paused, regions or masks needs"
    if wrong:
        raise InvalidError(wrong)
    return SourceEntry(str(table["address"]), name, paused, Zones(polygons["regions"], polygons["masks"]))


def read_polygons(key: str, value: Any) -> tuple[Polygon, ...]:
    """Return the polygons of ``regions`` or ``masks``. Raises ``UsageError``."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UsageError("must be a list of polygons, each a list of points [x, y]")
    polygons = tuple(read_polygon(one) for one in value)
    if (problem := polygons_problem(key.removesuffix("s"), polygons)) is not None:
        raise UsageError(problem)
    return polygons


def read_event(value: Any) -> EventRule:
    """Return the rule that an entry of ``event`` describes: a text, or a table. Raises ``UsageError``."""
    if not isinstance(value, Mapping):
        return EventRule.parse(str(value))
    table = _table(value, "event", EVENT_KEYS, "label")
    label = class_name(str(table["label"]))
    numbers: dict[str, float] = {}
    wrong = {} if label else {"label": "must not be empty"}
    for key in EVENT_KEYS[1:]:
        if key in table:
            name = key.replace("-", "_")
            try:
                numbers[name] = float(table[key])
                EventRule(label, **{name: numbers[name]})
            except (TypeError, ValueError):
                wrong[key] = f"must be a number, not {table[key]!r}"
            except UsageError as error:
                wrong[key] = str(error)
    if wrong:
        raise InvalidError(wrong)
    return EventRule(label, **numbers)


def _table(value: Mapping[str, Any], kind: str, allowed: Sequence[str], needed: str) -> dict[str, Any]:
    """Return a table by its keys with dashes. Raises ``UsageError`` if a key is unknown or missing."""
    table = {str(key).replace("_", "-"): one for key, one in value.items()}
    wrong = next((key for key in table if key not in allowed), None)
    if wrong is not None or needed not in table:
        what = f"no key {shown_argument(wrong)!r} in" if wrong is not None else f"{needed} is missing in"
        raise UsageError(f"{what} [[{kind}]]; it takes {', '.join(allowed)}")
    return table


def sources_of(entries: Sequence[SourceEntry], skipped: list[str] | None = None) -> list[Source]:
    """Return the sources that entries list, without those that are paused. Raises ``UsageError``."""
    return with_entries(find_sources([entry.argument for entry in entries], skipped), entries)


def with_entries(sources: Sequence[Source], entries: Sequence[SourceEntry]) -> list[Source]:
    """Return the sources that were found for entries with the entries' regions and masks, and without paused ones.

    Raises ``UsageError`` if an entry has the name of another source, which would get its masks, or be paused with it.
    """
    named = {entry.name: entry for entry in entries if entry.name is not None}
    check_names([source.name for source in sources], named)
    return [
        replace(source, zones=named[source.name].zones) if source.name in named else source
        for source in sources
        if source.name not in named or not named[source.name].paused
    ]


def check_names(names: Sequence[str], checked: Collection[str | None]) -> None:
    """Raise ``InvalidError`` if two of the sources have the same name, and it is one of those to check."""
    if (twice := next((name for name in names if name in checked and names.count(name) > 1), None)) is not None:
        raise InvalidError({"name": f"two sources are named {twice}"})


def paused_names(entries: Sequence[SourceEntry]) -> list[str]:
    """Return the names of the entries that are paused."""
    return [entry.name for entry in entries if entry.paused and entry.name is not None]


def zones_for(name: str, arguments: LiveArguments) -> Zones:
    """Return the regions and masks that ``--region`` and ``--mask`` have for a source. Raises ``UsageError``."""
    given = [zones for _, of, zones in _given_zones(arguments) if of in (None, name)]
    return sum(given, Zones())


def option_naming(name: str, arguments: LiveArguments) -> str | None:
    """Return ``--region`` or ``--mask`` if it names a source, else None."""
    return next((text.partition(" ")[0] for text, of, _ in _given_zones(arguments) if of == name), None)


def with_zones(sources: Sequence[Source], arguments: LiveArguments, paused: Collection[str] = ()) -> list[Source]:
    """Return sources with the regions and masks of ``--region`` and ``--mask`` added.

    Args:
        sources: to add them to.
        arguments: as given.
        paused: names of sources that are not read for the time being, which the options may name, too.

    Raises:
        UsageError: a polygon cannot be used, or there is no source of a name.
    """
    known = {*paused, *(source.name for source in sources)}
    for text, name, _ in _given_zones(arguments):
        if name is not None and name not in known:
            names = ", ".join(source.name for source in sources) or "none"
            raise UsageError(f"{text}: no source is named {name!r}; the sources are {names}")
    return [replace(source, zones=source.zones + zones_for(source.name, arguments)) for source in sources]


def _given_zones(arguments: LiveArguments) -> Iterator[tuple[str, str | None, Zones]]:
    """Yield each ``--region`` and ``--mask``: as given, the source that it names or None, and its zones.

    Raises ``UsageError``.
    """
    for kind in ("region", "mask"):
        for text in getattr(arguments, kind) or ():
            name, equals, polygon = text.rpartition("=")
            try:
                yield f"--{kind} {text}", name if equals else None, Zones(**{f"{kind}s": (parse_polygon(polygon),)})
            except UsageError as error:
                raise UsageError(f"--{kind} {text}: {error}") from None
