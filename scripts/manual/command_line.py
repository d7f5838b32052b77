"""The command-line reference, from the Typer application itself."""

from __future__ import annotations

import functools
from typing import Any

import typer.main

from adafocus_edge.cli import help as facts
from adafocus_edge.cli.app import app
from scripts.manual.tables import table


@functools.cache
def commands() -> dict[str, Any]:
    """Return the verbs by name, as click has them."""
    root: Any = typer.main.get_command(app)
    return {name: command for name, command in root.commands.items() if not command.hidden}


def options_of(command: Any, *, hidden: bool = True) -> set[str]:
    """Return every spelling of every option of a verb; with ``hidden``, also those missing from its help."""
    spellings = {"-h", "--help"}
    for parameter in command.params:
        if not facts.is_argument(parameter) and (hidden or not parameter.hidden):
            spellings |= {*parameter.opts, *parameter.secondary_opts}
    return spellings


def root_options() -> set[str]:
    """Return the options that stand before any verb."""
    return options_of(typer.main.get_command(app))


def reference() -> str:
    """Return the chapter of each verb: usage, arguments, and options by panel."""
    return "\n\n".join(_chapter(name, command) for name, command in commands().items())


def verbs() -> str:
    """Return a table of all verbs."""
    rows = ((f"[`{name}`](#{name})", facts.summary(command.help)) for name, command in commands().items())
    return table(("verb", "does"), rows)


def _chapter(name: str, command: Any) -> str:
    arguments = [one for one in command.params if facts.is_argument(one)]
    options = [one for one in command.params if not facts.is_argument(one) and not one.hidden]
    usage = " ".join([facts.PROGRAM, name, "[OPTIONS]", *map(facts.placeholder, arguments)])
    text, examples = facts.split_help(command.help)
    parts = [f"## {name}", f"```\n{usage}\n```", text, f"```shell\n{examples}\n```" if examples else ""]
    if arguments:
        rows = ((f"`{facts.placeholder(one)}`", facts.default(one), one.help) for one in arguments)
        parts.append(table(("argument", "default", "description"), rows))
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(facts.panel_of(option), []).append(option)
    for panel in facts.ordered(panels):
        parts.append(f"**{panel}**")
        parts.append(table(("option", "value", "default", "description"), map(_row, panels[panel])))
    return "\n\n".join(part for part in parts if part)


def _row(option: Any) -> tuple[str, str, str, str]:
    spellings = ", ".join(f"`{one}`" for one in [*option.opts, *option.secondary_opts])
    notes = [option.help or "", *(["May be repeated."] if option.multiple else [])]
    named = [f"`{one}`" for one in facts.variables(option)]
    notes += [f"Environment: {', '.join(named)}."] if named else []
    notes += ["**Required.**"] if option.required else []
    return spellings, _values(option), _default(option), " ".join(note for note in notes if note)


def _values(option: Any) -> str:
    """Return what an option takes: nothing for a switch, its choices, or the placeholder with its limits."""
    if option.is_flag:
        return ""
    if chosen := facts.choices(option):
        return ", ".join(f"`{one}`" for one in chosen)
    return ", ".join(part for part in (facts.metavar(option), facts.limits(option)) if part)


def _default(option: Any) -> str:
    """Return a default: in words as it is, a value as code."""
    found = facts.default(option)
    return found if isinstance(getattr(option, "show_default", None), str) else f"`{found}`" if found else ""
