"""The command-line reference, from the Typer application itself."""

from __future__ import annotations

import functools
import re
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main

from adafocus_edge.cli.app import app
from scripts.manual.tables import table

PROGRAM = "adafocus-edge"
DEFAULT_NOTE = re.compile(r"\[default: (.*?)\]")
"""What a help text says of a default that is worked out when the verb runs."""
KINDS: dict[object, str] = {str: "text", int: "integer", float: "number", Path: "path"}


@functools.cache
def commands() -> dict[str, Any]:
    """Return the verbs by name, as click has them."""
    root: Any = typer.main.get_command(app)
    return {name: command for name, command in root.commands.items() if not command.hidden}


def options_of(command: Any, *, hidden: bool = True) -> set[str]:
    """Return every spelling of every option of a verb; with ``hidden``, also of those that its help leaves out."""
    spellings = {"--help"}
    for parameter in command.params:
        if not is_argument(parameter) and (hidden or not parameter.hidden):
            spellings |= {*parameter.opts, *parameter.secondary_opts}
    return spellings


def root_options() -> set[str]:
    """Return the options that stand before any verb."""
    return options_of(typer.main.get_command(app))


def is_argument(parameter: Any) -> bool:
    """Return whether a parameter is given by its place."""
    return bool(parameter.param_type_name == "argument")


def reference() -> str:
    """Return the chapter of each verb: usage, arguments, and options by panel."""
    return "\n\n".join(_chapter(name, command) for name, command in commands().items())


def verbs() -> str:
    """Return a table of all verbs."""
    rows = (
        (f"[`{name}`](#{name})", (command.help or "").strip().split("\n\n")[0]) for name, command in commands().items()
    )
    return table(("verb", "does"), rows)


def _chapter(name: str, command: Any) -> str:
    arguments = [one for one in command.params if is_argument(one)]
    options = [one for one in command.params if not is_argument(one) and not one.hidden]
    usage = " ".join([PROGRAM, name, "[OPTIONS]", *map(_placeholder, arguments)])
    parts = [f"## {name}", f"```\n{usage}\n```", (command.help or "").strip()]
    if arguments:
        parts.append(table(("argument", "description"), ((f"`{_placeholder(one)}`", one.help) for one in arguments)))
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(getattr(option, "rich_help_panel", None) or "", []).append(option)
    for panel, members in panels.items():
        if panel:
            parts.append(f"**{panel}**")
        parts.append(table(("option", "value", "default", "description"), map(_row, members)))
    return "\n\n".join(part for part in parts if part)


def _placeholder(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    if argument.nargs == -1 and not name.rstrip("]").endswith("..."):
        name += "..."
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _row(option: Any) -> tuple[str, str, str, str]:
    spellings = ", ".join(f"`{one}`" for one in [*option.opts, *option.secondary_opts])
    variables = option.envvar if isinstance(option.envvar, (list, tuple)) else [option.envvar]
    named = [f"`{one}`" for one in variables if one]
    notes = [DEFAULT_NOTE.sub("", option.help or "").strip(), *(["May be repeated."] if option.multiple else [])]
    notes += [f"Environment: {', '.join(named)}."] if named else []
    if option.required:
        notes.append("**Required.**")
    return spellings, _values(option), _default(option), " ".join(note for note in notes if note)


def _values(option: Any) -> str:
    """Return what an option takes: nothing for a switch, its choices, or the type with its limits."""
    if option.is_flag:
        return ""
    if chosen := _choices(option.type_descriptor.annotation):
        return ", ".join(f"`{one}`" for one in chosen)
    limits = ""
    if option.min is not None and option.max is not None:
        limits = f", {option.min:g} to {option.max:g}"
    elif option.min is not None:
        limits = f", min {option.min:g}"
    elif option.max is not None:
        limits = f", max {option.max:g}"
    word = option.metavar.lower() if option.metavar else _kind(option.type_descriptor.annotation)
    return f"{word}{limits}"


def _kind(annotation: Any) -> str:
    """Return the word for a type, for one value of a list."""
    inner = get_args(annotation)
    return _kind(inner[0]) if inner else KINDS.get(annotation, str(getattr(annotation, "__name__", annotation)).lower())


def _choices(annotation: Any) -> list[object]:
    """Return the values of an enum or a Literal, also of a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [one.value for one in annotation]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [one for inner in get_args(annotation) for one in _choices(inner)]


def _default(option: Any) -> str:
    value = option.default
    if note := DEFAULT_NOTE.search(option.help or ""):
        return note[1]
    if value is None or callable(value) or value in ((), [], ""):
        return ""
    if option.is_flag:
        if option.secondary_opts:
            return f"`{option.opts[0] if value else option.secondary_opts[0]}`"
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(f"`{getattr(one, 'value', one)}`" for one in value)
    return f"`{getattr(value, 'value', value)}`"
