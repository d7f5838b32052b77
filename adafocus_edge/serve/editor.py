"""Changes of sources and event rules while they run: checked, written to the configuration file, and applied."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.live.events import EventRule, check_rules
from adafocus_edge.live.session import check_needed, check_record
from adafocus_edge.live.stream_config import (
    ConfigFile,
    InvalidError,
    SourceEntry,
    check_names,
    digest_of,
    name_problem,
    option_naming,
    paused_names,
    read_polygons,
    sources_of,
    with_zones,
    zones_for,
)
from adafocus_edge.media.sources import LIVE_SCHEMES
from adafocus_edge.media.zones import Zones
from adafocus_edge.serve.stream_file import Kind, StreamDocument, content_of, editing, write
from adafocus_edge.system.addresses import BLANK, login_of, without_password

if TYPE_CHECKING:
    from adafocus_edge.live.messages import LiveFrame
    from adafocus_edge.live.settings import CaptureOptions, LiveArguments
    from adafocus_edge.media.sources import Source
    from adafocus_edge.media.zones import Polygon
    from adafocus_edge.serve import schemas
    from adafocus_edge.serve.run import Run

SCHEMES = LIVE_SCHEMES | {"http", "https"}
"""Schemes of addresses that may be added. Local files may not: whoever has the token could read them."""
CAMERA = re.compile(r"\d{1,4}|/dev/video\d{1,4}")
MAX_ADDRESS = 2048
NO_FILE = "start the server with --config FILE and --edit to change sources and rules here; an empty file will do"
NO_EDIT = "start the server with --edit to change sources and rules here"
OVERRIDDEN = "given on the command line, which overrides the file: remove {} there to change them here"


class ForbiddenError(AdaFocusError):
    """Nothing may be changed; the message says why."""


class ConflictError(AdaFocusError):
    """The file has changed since the client read it."""


class MissingError(AdaFocusError):
    """There is no entry of this number."""


@dataclass(frozen=True)
class Listed:
    """The state of the configuration.

    Attributes:
        version: of the file, to be sent with changes; empty without a file.
        entries: the sources of the file, or those of the command line.
        rules: the event rules in effect.
        problem: why the file cannot be used as it is, or None.
        changed: whether the file is no longer the one in effect.
    """

    version: str
    entries: tuple[SourceEntry, ...]
    rules: tuple[EventRule, ...]
    problem: str | None = None
    changed: bool = False


class Editor:
    """Changes the sources and event rules of a run, in its configuration file and in effect. Safe from any thread.

    Args:
        run: the run.
        sources: that it was started with.
        arguments: that it was started with.
        capture: how sources are read.
        file: its configuration, or None.
        allowed: whether changes are allowed.
        video_track: that is read of all sources.
    """

    def __init__(
        self,
        run: Run,
        sources: Sequence[Source],
        arguments: LiveArguments,
        capture: CaptureOptions,
        file: ConfigFile | None,
        *,
        allowed: bool,
        video_track: int | None = None,
    ) -> None:
        self._run, self._arguments, self._capture = run, arguments, capture
        self._file, self._allowed, self._video_track = file, allowed, video_track
        self._lock = threading.RLock()
        self._digest = "" if file is None else file.digest  # of the content in effect
        self._running = {source.name: source for source in sources}
        self._rules = tuple(map(EventRule.parse, arguments.event or ()))
        self._given = tuple(SourceEntry(source.address, source.name, zones=source.zones) for source in sources)

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def file_name(self) -> str | None:
        """Name of the configuration file, without its folder."""
        return None if self._file is None else self._file.path.name

    def refusal(self, kind: Kind) -> str | None:
        """Return why sources or rules cannot be changed, or None."""
        if self._file is None:
            return NO_FILE
        if not self._allowed:
            return NO_EDIT
        if kind in self._file.overridden:
            return OVERRIDDEN.format("them" if kind == "source" else "--event")
        return None

    def state(self) -> Listed:
        """Return the configuration as it is in the file. Raises ``AdaFocusError`` if that cannot be read."""
        with self._lock:
            if self._file is None:
                return Listed("", self._given, self._rules)
            try:
                content = content_of(self._file.path)
                document = StreamDocument(self._file.path.name, content)
                entries, rules = tuple(document.sources()), tuple(document.rules())
            except AdaFocusError as error:
                return Listed("", self._given, self._rules, str(error), changed=True)
            version = digest_of(content)
            if "source" in self._file.overridden:
                entries = self._given
            changed = version != self._digest
            return Listed(version, entries, self._rules if "event" in self._file.overridden else rules, None, changed)

    def running(self, entry: SourceEntry) -> list[str]:
        """Return the names of the sources of an entry that are in effect."""
        with self._lock:
            return [name for name in _names_of(entry) if name in self._running]

    # -- changing -----------------------------------------------------------------------------------------------------

    def change_source(self, number: int | None, asked: schemas.SourceChange) -> None:
        """Change a source, or add one if ``number`` is None.

        Raises:
            InvalidError: fields are wrong.
            AdaFocusError: it is not allowed, the file has changed or cannot be written, or there is no such entry.
        """

        def change(document: StreamDocument) -> None:
            entries = document.sources()
            before = None if number is None else _at(entries, number)
            others = [name for place, entry in enumerate(entries) if place != number for name in _names_of(entry)]
            if before is not None:
                self._check_not_named(before, asked.name.strip())
            made = self._checked(asked.name, asked.address, asked.regions, asked.masks, before, others)
            values: dict[str, Any] = {"name": made.name, "address": made.address}
            values["paused"] = True if asked.paused else None
            for key in ("regions", "masks"):
                values[key] = [[list(point) for point in one] for one in getattr(made.zones, key)] or None
            document.change("source", number, values)

        self._edit("source", asked.version, change)

    def change_rule(self, number: int | None, asked: schemas.EventChange) -> None:
        """Change an event rule, or add one if ``number`` is None. Raises as :meth:`change_source`."""

        def change(document: StreamDocument) -> None:
            if number is not None:
                _at(document.rules(), number)
            if asked.label not in self._run.classes:
                raise InvalidError({"label": f"{asked.label}: is not a class of the model"})
            values = {"threshold": asked.threshold, "for-s": asked.for_s, "cooldown-s": asked.cooldown_s}
            document.change("event", number, {"label": asked.label, **values})
            document.rules()  # checks it, as the command line does

        self._edit("event", asked.version, change)

    def remove(self, kind: Kind, number: int, version: str) -> None:
        """Remove a source or an event rule. Raises as :meth:`change_source`."""

        def change(document: StreamDocument) -> None:
            if not 0 <= number < document.count(kind):
                raise MissingError(f"{number}: no such entry")
            if kind == "source":
                self._check_not_named(document.sources()[number], None)
            document.remove(kind, number)

        self._edit(kind, version, change)

    def reload(self) -> None:
        """Use the sources and event rules of the file as it is now. Raises ``AdaFocusError``."""
        with self._lock:
            file = self._permitted(None)
            content = content_of(file.path)
            sources, rules = self._wanted(StreamDocument(file.path.name, content))
            self._apply(digest_of(content), sources, rules)

    def still(self, asked: schemas.SourceTest) -> LiveFrame:
        """Return a frame of a source, with the masks that the file has for it. Raises as :meth:`change_source`."""
        from adafocus_edge.live.still import still_of

        with self._lock:
            file = self._permitted("source")
            before = None
            if asked.number is not None:
                before = _at(StreamDocument(file.path.name, content_of(file.path)).sources(), asked.number)
            name = asked.name if name_problem(asked.name) is None else "source"
            made = self._checked(name, asked.address, [], [], before, ())
            source = replace(sources_of([made])[0], video_track=self._video_track)
            names = [name] if before is None else _names_of(before) or [name]
            hidden = [Zones() if before is None else before.zones]
            hidden += [zones_for(one, self._arguments) for one in names]
            same = [one for one in self._running.values() if one.address == source.address]
            hidden += [one.zones for one in same]
        # A camera can often be opened only once.
        frame = next((found for one in same if (found := self._run.newest(one.name)) is not None), None)
        if frame is None:
            frame = still_of(source, self._run.spec, self._capture)
        for zones in hidden:
            frame = replace(frame, to_rgb=zones.masked(frame.to_rgb))
        return frame

    # -- parts --------------------------------------------------------------------------------------------------------

    def _permitted(self, kind: Kind | None) -> ConfigFile:
        reason = self.refusal(kind) if kind is not None else NO_EDIT if not self._allowed else None
        if self._file is None or reason is not None:
            raise ForbiddenError(reason or NO_FILE)
        return self._file

    def _edit(self, kind: Kind, version: str, change: Callable[[StreamDocument], None]) -> None:
        with self._lock:
            file = self._permitted(kind)
            with editing(file.path) as content:
                digest = digest_of(content)
                if digest != self._digest:
                    raise ConflictError(f"{file.path.name} was changed on disk: load it first, then change it here")
                if version != digest:
                    raise ConflictError("the settings were changed meanwhile: look at them again, then repeat")
                document = StreamDocument(file.path.name, content)
                change(document)
                changed = document.content
                # What was written must be what a new start reads.
                sources, rules = self._wanted(StreamDocument(file.path.name, changed))
                write(file.path, changed)
            self._apply(digest_of(changed), sources, rules)

    def _wanted(self, document: StreamDocument) -> tuple[list[Source], tuple[EventRule, ...]]:
        """Return the sources and rules of a configuration. Raises ``UsageError`` if they cannot be used."""
        assert self._file is not None
        sources, rules = list(self._running.values()), self._rules
        entries = document.sources()
        if "source" not in self._file.overridden:
            sources = [replace(source, video_track=self._video_track) for source in sources_of(entries)]
            names = [source.name for source in sources]
            check_names(names, names)
            sources = with_zones(sources, self._arguments, paused_names(entries))
            check_record(self._arguments, sources)
            if len(sources) > self._run.max_sources:
                raise UsageError(f"{self._run.max_sources} sources are the most that can run now: restart to add more")
        if "event" not in self._file.overridden:
            rules = tuple(document.rules())
            check_rules(rules, self._run.classes)
            check_needed(self._arguments, rules)
        return sources, rules

    def _apply(self, digest: str, sources: Sequence[Source], rules: tuple[EventRule, ...]) -> None:
        """Bring sources and rules into effect; sources that stay as they are go on. Raises ``AdaFocusError``."""
        self._digest = digest
        wanted = {source.name: source for source in sources}
        try:
            for name, source in list(self._running.items()):
                if wanted.get(name) != source:
                    self._run.remove_source(name, "changed on the page" if name in wanted else "removed on the page")
                    del self._running[name]
            for name, source in wanted.items():
                if name not in self._running:
                    self._run.add_source(source)
                    self._running[name] = source
            if rules != self._rules:
                self._run.set_rules(rules)
                self._rules = rules
        except AdaFocusError as error:
            self._digest = ""  # what is in effect is not what the file says: loading it tries again
            raise AdaFocusError(f"saved, but not in effect: {error}") from error

    def _check_not_named(self, entry: SourceEntry, name: str | None) -> None:
        """Raise ``InvalidError`` if ``--region`` or ``--mask`` is for a source that would lose it with its name."""
        for before in _names_of(entry):
            if before != name and (option := option_naming(before, self._arguments)) is not None:
                what = "removed" if name is None else "renamed"
                text = f"{before} cannot be {what}: {option} {before}=... names it: remove that option first"
                raise InvalidError({"name": text})

    def _checked(
        self, name: str, address: str | None, regions: Any, masks: Any, before: SourceEntry | None,
        others: Sequence[str],
    ) -> SourceEntry:  # fmt: skip
        """Return a source as a client describes it. Raises ``InvalidError`` with a line for each wrong field."""
        wrong: dict[str, str] = {}
        name = name.strip()
        if (problem := name_problem(name)) is not None:
            wrong["name"] = problem
        elif name in others:
            wrong["name"] = "is the name of another source"
        whole = ""
        try:
            whole = _address(address, before)
        except UsageError as error:
            wrong["address"] = str(error)
        polygons: dict[str, tuple[Polygon, ...]] = {"regions": (), "masks": ()}
        for key, value in (("regions", regions), ("masks", masks)):
            try:
                polygons[key] = read_polygons(key, value)
            except UsageError as error:
                wrong[key] = str(error)
        if wrong:
            raise InvalidError(wrong)
        return SourceEntry(whole, name, zones=Zones(**polygons))


def _at(entries: Sequence[Any], number: int) -> Any:
    if not 0 <= number < len(entries):
        raise MissingError(f"{number}: no such entry")
    return entries[number]


def _names_of(entry: SourceEntry) -> list[str]:
    """Return the names of the sources of an entry, also of one that is paused or cannot be used."""
    if entry.name is not None:
        return [entry.name]
    try:
        return [source.name for source in sources_of([entry])]
    except UsageError:
        return []


def _address(given: str | None, before: SourceEntry | None) -> str:
    """Return the address that a client gives, with the secrets of the previous one where it shows ``***``.

    Raises ``UsageError``.
    """
    shown = None if before is None else without_password(before.address)
    given = None if given is None else given.strip()
    if before is not None and given in (None, shown):
        return before.address
    if not given:
        raise UsageError("must not be empty")
    if len(given) > MAX_ADDRESS or not given.isprintable():
        raise UsageError(f"must have at most {MAX_ADDRESS} characters, all printable")
    if before is not None and shown is not None and BLANK in given:
        given = _with_login(given, before.address, shown)
    if BLANK in given:
        raise UsageError(f"replace {BLANK} by what it stands for: it is kept only if nothing before the path changes")
    scheme, separator, rest = given.partition("://")
    if not CAMERA.fullmatch(given) and not (separator and scheme.lower() in SCHEMES and rest):
        raise UsageError(
            "must be a camera, such as 0 or /dev/video0, or a stream, such as rtsp://...; files can only be added in "
            "the configuration file"
        )
    if not sources_of([SourceEntry(given)])[0].live:
        raise UsageError("is the address of a video file, not of a stream")
    return given


def _with_login(given: str, before: str, shown: str) -> str:
    """Return an address with user and password of the previous one, if scheme, host and port are the same.

    They must not be sent to another host.
    """
    mark = f"://{BLANK}@"
    scheme, separator, rest = shown.partition(mark)
    start = scheme + mark + re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not separator or not re.match(rf"{re.escape(start)}(?=[/?#]|$)", given):
        return given
    return f"{scheme}://{login_of(before)}{given[len(scheme + mark) :]}"
