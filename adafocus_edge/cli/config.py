"""``--config``: a TOML file with options of a verb, which become its defaults."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from adafocus_edge.errors import UsageError
from adafocus_edge.system.addresses import shown_argument
from adafocus_edge.system.files import decode_text, read_whole
from adafocus_edge.system.options import GENERAL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from adafocus_edge.live.stream_config import ConfigFile, SourceEntry
    from adafocus_edge.media.sources import Source

T = TypeVar("T")

OLD_KEYS = {"most-cameras": "max-cameras"}
"""Keys of older files by what they are called now."""
NOT_IN_FILES = ("config", "help", "install-completion", "show-completion")
IN_SOURCES = ("region", "mask")
"""Options that a file gives with each source."""
META = "adafocus_edge.config"


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in a TOML file the defaults of this command; options on the command line override them.

    Raises ``UsageError`` that names the file and the key.
    """
    if path is None:
        return None
    from adafocus_edge.live.stream_config import ConfigFile, digest_of, read_source

    known = _parameters(context)
    values: dict[str, Any] = {}
    content, options = _read(path)
    entries: tuple[SourceEntry, ...] = ()
    for given, value in options.items():
        key = given.replace("_", "-")
        key = OLD_KEYS.get(key, key)
        if key in IN_SOURCES:
            raise UsageError(f"--config {path}: no option {given!r}: give {key}s in the [[source]] that they are for")
        if key not in known or key in NOT_IN_FILES or isinstance(value, dict):
            close = difflib.get_close_matches(key, known, 1)
            hint = f": did you mean {close[0]}?" if close and close[0] != key else ""
            raise UsageError(f"--config {path}: no option {shown_argument(given)!r}{hint}")
        if key == "source" and isinstance(value, list):
            entries = tuple(_entry(path, read_source, one) for one in value)
            value = [entry.argument for entry in entries]  # noqa: PLW2901
        values[known[key].name] = _value(path, given, key, known[key], value)
    context.default_map = {**(context.default_map or {}), **values}
    context.meta[META] = ConfigFile(path, digest_of(content), entries)
    return path


def config_file(context: typer.Context) -> ConfigFile | None:
    """Return the configuration file of a command, with the lists that its command line overrides."""
    file: ConfigFile | None = context.meta.get(META)
    if file is None:
        return None
    by_option = context.params.get("old_sources")
    origins = {name: context.get_parameter_source(name) for name in ("source", "event")}
    given = {name for name, origin in origins.items() if origin is not None and "DEFAULT" not in origin.name}
    return replace(file, overridden=frozenset(given | ({"source"} if by_option else set())))


def config_entries(file: ConfigFile | None) -> tuple[SourceEntry, ...]:
    """Return the sources of a configuration file, unless the command line overrides them."""
    return () if file is None or "source" in file.overridden else file.entries


def with_config(sources: list[Source], file: ConfigFile | None) -> list[Source]:
    """Return the sources that were found as a configuration file has them: without paused ones, with masks.

    Raises ``UsageError`` if two of them have the same name.
    """
    from adafocus_edge.live.stream_config import with_entries

    if file is None:
        return sources
    try:
        return with_entries(sources, config_entries(file))
    except UsageError as error:
        raise UsageError(f"--config {file.path}: {error}") from None


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the content of a file, and the options in it."""
    try:
        content = read_whole(path)
        return content, tomllib.loads(decode_text(content))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # bad TOML; numbers too long for Python
        raise UsageError(f"--config {path}: not TOML ({error})") from None


def _parameters(context: typer.Context) -> dict[str, Any]:
    """Return the command's parameters by their keys; arguments override hidden options of the same name."""
    known: dict[str, Any] = {}
    for parameter in sorted(context.command.params, key=lambda one: not getattr(one, "hidden", False)):
        for name in (*parameter.opts, *parameter.secondary_opts):
            known[name.lstrip("-")] = parameter
    return known


def _value(path: Path, given: str, key: str, parameter: Any, value: Any) -> Any:
    """Return a value as the command line would have it."""
    many = parameter.multiple or parameter.nargs == -1
    if isinstance(value, list) != many:
        raise UsageError(f"--config {path}: {given} takes {'a list' if many else 'one value'}")
    if isinstance(value, bool) and not getattr(parameter, "is_flag", False):
        raise UsageError(f"--config {path}: {given} takes a value, not {str(value).lower()}")
    if isinstance(value, list):
        from adafocus_edge.live.stream_config import read_event

        tables = any(isinstance(one, dict) for one in value)
        if tables and key != "event":
            raise UsageError(f"--config {path}: {given} takes no table")
        return [_entry(path, read_event, one).text() if isinstance(one, dict) else str(one) for one in value]
    return value if isinstance(value, bool) else str(value)


def _entry(path: Path, read: Callable[[Any], T], entry: Any) -> T:
    """Read an entry of a list. Raises ``UsageError`` that names the file."""
    from adafocus_edge.live.stream_config import InvalidError

    try:
        return read(entry)
    except UsageError as error:
        name = entry.get("name", entry.get("label")) if isinstance(entry, dict) else None
        where = f"{shown_argument(str(name))}: " if isinstance(error, InvalidError) and name is not None else ""
        raise UsageError(f"--config {path}: {where}{error}") from None


Config = Annotated[
    Path | None,
    typer.Option(
        is_eager=True,
        callback=read_config,
        help="Read options from this TOML file; its keys are named as the options here.",
        metavar="FILE",
        rich_help_panel=GENERAL,
    ),
]
