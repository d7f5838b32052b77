"""``--config``: a TOML file with options of a verb, which become its defaults."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adafocus_edge.errors import UsageError
from adafocus_edge.system.addresses import shown_argument
from adafocus_edge.system.files import read_text
from adafocus_edge.system.options import GENERAL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OLD_KEYS = {"most-cameras": "max-cameras"}
"""Keys of older files by what they are called now."""
NOT_IN_FILES = ("config", "help", "install-completion", "show-completion")
TABLES = {"source": ("name", "address"), "event": ("label", "threshold", "for-s", "cooldown-s")}
"""Keys of the tables that a list may hold instead of texts."""


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in a TOML file the defaults of this command; options on the command line override them.

    Raises ``UsageError`` that names the file and the key.
    """
    if path is None:
        return None
    known = _parameters(context)
    values: dict[str, Any] = {}
    for given, value in _read(path).items():
        key = given.replace("_", "-")
        key = OLD_KEYS.get(key, key)
        if key not in known or key in NOT_IN_FILES or isinstance(value, dict):
            close = difflib.get_close_matches(key, known, 1)
            hint = f": did you mean {close[0]}?" if close and close[0] != key else ""
            raise UsageError(f"--config {path}: no option {shown_argument(given)!r}{hint}")
        values[known[key].name] = _value(path, given, key, known[key], value)
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
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
        return [_entry(path, key, entry) for entry in value]
    return value if isinstance(value, bool) else str(value)


def _entry(path: Path, key: str, entry: Any) -> str:
    """Return a ``[[source]]`` or an ``[[event]]`` as it is written on a command line."""
    if not isinstance(entry, dict):
        return str(entry)
    allowed = TABLES.get(key, ())
    entry = {name.replace("_", "-"): value for name, value in entry.items()}
    needed = "address" if key == "source" else "label"
    wrong = next((name for name in entry if name not in allowed), None)
    if wrong is not None or needed not in entry:
        what = f"no key {shown_argument(wrong)!r} in" if wrong is not None else f"{needed} is missing in"
        raise UsageError(f"--config {path}: {what} [[{key}]]; it takes {', '.join(allowed) or 'no table'}")
    if key == "source":
        return f"{entry['name']}={entry['address']}" if "name" in entry else str(entry["address"])
    text = str(entry["label"]) + (f"={entry['threshold']}" if "threshold" in entry else "")
    more = (f",{name}={entry[f'{name}-s']}" for name in ("for", "cooldown") if f"{name}-s" in entry)
    return text + "".join(more)


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
