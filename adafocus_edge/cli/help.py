"""The help of verbs: usage, examples, arguments, and options by panel, in plain text of the terminal's width.

Typer's own panels need Rich, which takes as long to import as all the rest of the command line; these need nothing.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from adafocus_edge.system.options import CAMERAS, GENERAL, INPUT, LIVE, OUTPUT, SINKS

PROGRAM = "adafocus-edge"
MAX_WIDTH = 100
"""Columns of the help on wide terminals: longer lines are hard to read."""
TERM_WIDTH = 24
"""Columns of an option's spellings; longer ones have a line of their own."""
EXAMPLES = "Examples:"
"""The paragraph of a verb's docstring that holds its examples starts with this line."""
PLACEHOLDERS: dict[object, str] = {str: "TEXT", int: "N", float: "NUMBER", Path: "PATH"}

ORDER = {panel: rank for rank, panel in enumerate((INPUT, "", OUTPUT, LIVE, CAMERAS, SINKS, GENERAL))}
"""Ranks of panels; all others have that of the empty one."""
OBVIOUS = ("", "at least 0", "at least 1")
"""Limits that no help needs to state."""

Rows = list[tuple[str, str]]
"""Terms and their descriptions."""


class Verb(TyperCommand):
    """A verb whose help is grouped into panels."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into a formatter."""
        arguments = [one for one in _shown(self, ctx) if is_argument(one)]
        usage = " ".join([f"{ctx.command_path} [OPTIONS]", *map(placeholder, arguments)])
        text, examples = split_help(self.help)
        panels = {"Arguments": [(placeholder(one), described(one)) for one in arguments], **self.panels(ctx)}
        formatter.write(rendered(usage, text, examples, panels, formatter.width))

    def panels(self, ctx: Any) -> dict[str, Rows]:
        """Return the rows of each panel, in the order of the help."""
        panels: dict[str, Rows] = {}
        for option in _shown(self, ctx):
            if not is_argument(option):
                panels.setdefault(panel_of(option), []).append((spellings(option), described(option)))
        return {panel: panels[panel] for panel in ordered(panels)}


class Root(TyperGroup):
    """The program, whose help lists the verbs by what they are for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help into a formatter."""
        panels: dict[str, Rows] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panels.setdefault(command.rich_help_panel or "Commands", []).append((name, summary(command.help)))
        options = [(spellings(one), described(one)) for one in _shown(self, ctx)]
        text, examples = split_help(self.help)
        usage = f"{ctx.command_path} [OPTIONS] VERB [ARGS]..."
        formatter.write(rendered(usage, text, examples, {**panels, "Options": options}, formatter.width))


def _shown(command: Any, ctx: Any) -> list[Any]:
    """Return a command's parameters but the hidden ones."""
    return [one for one in command.get_params(ctx) if not one.hidden]


def ordered(panels: Iterable[str]) -> list[str]:
    """Return panels in the order of the help: inputs first, outputs after the verb's own panels, general ones last."""
    return sorted(panels, key=lambda panel: ORDER.get(panel, ORDER[""]))


def split_help(text: str | None) -> tuple[str, str]:
    """Split a verb's docstring into its description and its examples."""
    paragraphs = [part for part in (text or "").strip().split("\n\n") if part.strip()]
    examples = [part for part in paragraphs if part.startswith(EXAMPLES)]
    others = [part for part in paragraphs if not part.startswith(EXAMPLES)]
    return "\n\n".join(others), textwrap.dedent("\n".join(examples).removeprefix(EXAMPLES)).strip()


def summary(text: str | None) -> str:
    """Return the first line of a verb's docstring."""
    return split_help(text)[0].partition("\n")[0]


def rendered(usage: str, text: str, examples: str, panels: dict[str, Rows], width: int) -> str:
    """Return a whole help."""
    parts = [wrapped(usage, width, heading("Usage:") + " ", " " * 7)]
    parts += [wrapped(paragraph, width) for paragraph in text.split("\n\n") if paragraph]
    if examples:
        parts.append("\n".join([heading(EXAMPLES), *(f"  {line}" for line in examples.splitlines())]))
    column = max((len(term) for rows in panels.values() for term, _ in rows if len(term) <= TERM_WIDTH), default=0)
    parts += ["\n".join([heading(f"{name}:"), *table(rows, column, width)]) for name, rows in panels.items() if rows]
    return "\n\n".join(parts) + "\n"


def table(rows: Rows, column: int, width: int) -> Iterable[str]:
    """Yield the lines of terms with their descriptions beside them, or below terms longer than ``column``.

    A description without a term is a paragraph.
    """
    indent = " " * (2 + column + 2)
    for term, text in rows:
        if not term:
            yield "  " + wrapped(text, width, indent="  ")
            continue
        lines = textwrap.wrap(
            " ".join(text.split()), max(width, 50) - len(indent), break_long_words=False, break_on_hyphens=False
        )
        fits = len(term) <= column
        first = lines.pop(0) if fits and lines else ""
        yield f"  {styled(term)}{' ' * (len(indent) - 2 - len(term))}{first}".rstrip()
        yield from (indent + line for line in lines)


def wrapped(text: str, width: int, first: str = "", indent: str = "") -> str:
    """Wrap a paragraph; ``first`` stands before it, on a line that is as much shorter as ``indent`` is long."""
    lines = textwrap.wrap(" ".join(text.split()), width - len(indent), break_long_words=False, break_on_hyphens=False)
    return first + f"\n{indent}".join(lines)


def heading(text: str) -> str:
    """Return a heading, bold on terminals."""
    return typer.style(text, bold=True) if _has_style() else text


def styled(term: str) -> str:
    """Return a term, coloured on terminals."""
    return typer.style(term, fg=typer.colors.CYAN) if _has_style() else term


def _has_style() -> bool:
    """Whether escape codes may be used; Click removes them where output does not go to a terminal."""
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


# -- facts about parameters, for the help and for the manual ----------------------------------------------------------


def is_argument(parameter: Any) -> bool:
    """Return whether a parameter is given by its position."""
    return bool(parameter.param_type_name == "argument")


def panel_of(option: Any) -> str:
    """Return the panel that an option is in."""
    return getattr(option, "rich_help_panel", None) or GENERAL


def spellings(option: Any) -> str:
    """Return how an option is written, short forms first, with the placeholder of its value."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += " / " + ", ".join(option.secondary_opts)
    return names if option.is_flag else f"{names} {metavar(option)}"


def placeholder(argument: Any) -> str:
    """Return an argument's place in the usage line."""
    name = argument.metavar or argument.name.upper()
    if argument.nargs == -1 and not name.rstrip("]").endswith("..."):
        name += "..."
    return name if argument.required or name.startswith("[") else f"[{name}]"


def described(parameter: Any) -> str:
    """Return the help of a parameter, with its choices, its limits and its default."""
    facts = [f"choices: {', '.join(map(str, found))}"] if (found := choices(parameter)) else []
    facts += [limits(parameter)] if limits(parameter) not in OBVIOUS else []
    facts += [f"default: {default(parameter)}"] if default(parameter) else []
    facts += [f"env: {', '.join(variables(parameter))}"] if variables(parameter) else []
    if not is_argument(parameter):
        facts += ["repeatable"] if parameter.multiple else []
        facts += ["required"] if parameter.required else []
    return " ".join([parameter.help or "", *([f"[{'; '.join(facts)}]"] if facts else [])])


def metavar(option: Any) -> str:
    """Return the placeholder of an option's value."""
    if option.metavar:
        return str(option.metavar)
    name = str(option.name).upper().replace("_", "-")
    return PLACEHOLDERS.get(_inner(annotation_of(option)), name)


def choices(parameter: Any) -> list[object]:
    """Return the values that a parameter may have, or nothing if it is not one of a few."""
    return _literals(annotation_of(parameter))


def limits(parameter: Any) -> str:
    """Return the range of a number in words, or nothing."""
    kind = getattr(parameter, "type", parameter)
    lowest, highest = getattr(kind, "min", None), getattr(kind, "max", None)
    if lowest is not None and highest is not None:
        return f"{lowest:.9g} to {highest:.9g}"
    if lowest is not None:
        return f"at least {lowest:.9g}"
    return f"at most {highest:.9g}" if highest is not None else ""


def default(parameter: Any) -> str:
    """Return the default in words, or nothing where leaving the parameter out has no effect."""
    shown, value = getattr(parameter, "show_default", True), parameter.default
    if isinstance(shown, str):
        return shown
    if value is None or shown is False or callable(value) or value in ((), [], ""):
        return ""
    if getattr(parameter, "is_flag", False):
        if not parameter.secondary_opts:
            return ""
        return str((parameter.opts if value else parameter.secondary_opts)[0])
    return f"{value:g}" if isinstance(value, float) else str(value)


def variables(parameter: Any) -> list[str]:
    """Return the environment variables that set a parameter, too."""
    given = parameter.envvar
    return [name for name in (given if isinstance(given, (list, tuple)) else [given]) if name]


def annotation_of(parameter: Any) -> Any:
    """Return the Python type of a parameter; Typer before 0.27 keeps a type of Click's instead."""
    if (descriptor := getattr(parameter, "type_descriptor", None)) is not None:
        return descriptor.annotation
    kind = parameter.type
    if chosen := getattr(kind, "choices", None):
        return Literal[tuple(getattr(one, "value", one) for one in chosen)]
    names = {"integer": int, "integer range": int, "float": float, "float range": float, "text": str}
    return names.get(kind.name, Path)


def _inner(annotation: Any) -> Any:
    """Return the type of one value of a list or of an optional value."""
    inner = [one for one in get_args(annotation) if one is not type(None)]
    return _inner(inner[0]) if inner and get_origin(annotation) is not Literal else annotation


def _literals(annotation: Any) -> list[object]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for inner in get_args(annotation) for value in _literals(inner)]
