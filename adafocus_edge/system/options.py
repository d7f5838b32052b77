"""Options of requests: how a dataclass field is given on a command line, without knowing the command line.

A field of a request is annotated with :class:`Option`; its type and its default stand in the dataclass only. The
command line generates its options from them (``adafocus_edge.cli.options``): a new option is a new field, and its
effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from adafocus_edge.errors import UsageError

INPUT = "Input"
MODEL = "Model"
EXIT = "Early exit"
OUTPUT = "Output"
LIVE = "Live sources"
CAMERAS = "Cameras"
SINKS = "Events and recording"
SERVER = "Server"
GENERAL = "General"
NONE = "none"
"""The comma-separated list that holds nothing."""


@dataclass(frozen=True)
class Option:
    """How one field is given on a command line.

    Attributes:
        help: one or two sentences that start with a verb and name the object.
        panel: group in the help.
        names: spellings such as ``--output`` and ``-o``; empty for ``--`` and the field's name.
        default: the default in words, where it is chosen at run time.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        metavar: placeholder of the value in the help; empty for one that follows from the type.
        read: makes the field's value of the option's spelling and the value given, and raises ``UsageError``.
        accepts: type of the values on the command line, where ``read`` is given.
        variable: environment variable that also sets it.
    """

    help: str
    panel: str = GENERAL
    names: tuple[str, ...] = ()
    default: str = ""
    minimum: float | None = None
    maximum: float | None = None
    metavar: str = ""
    read: Callable[[str, Any], Any] | None = None
    accepts: Any = str
    variable: str = ""


def option_of(hint: Any) -> Option | None:
    """Return the option that a field's type hint carries, or None."""
    return next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Option)), None)


def is_whole(value: object) -> bool:
    """Whether a value from Python code is a whole number, of Python's or NumPy's."""
    return isinstance(value, Integral)


def is_real(value: object) -> bool:
    """Whether a value from Python code is a real number, of Python's or NumPy's."""
    return isinstance(value, Real)


def check_limits(request: Any) -> None:
    """Check numbers and choices of a request against the types and limits of their options, as the command line does.

    Raises ``UsageError`` that names the option.
    """
    for name, hint in get_type_hints(type(request), include_extras=True).items():
        option = option_of(hint)
        value = getattr(request, name)
        if option is None:
            continue
        spelling = (option.names or (f"--{name.replace('_', '-')}",))[0]
        known = _choices(hint.__origin__)
        if known and value not in known:
            raise UsageError(f"{spelling} {value}: must be one of {', '.join(map(str, known))}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if option.minimum is not None and not value >= option.minimum:
            raise UsageError(f"{spelling} {value:g}: must be at least {option.minimum:g}")
        if option.maximum is not None and not value <= option.maximum:
            raise UsageError(f"{spelling} {value:g}: must be at most {option.maximum:g}")


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the values that a type allows by name, or none if it is no ``Literal``."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def read_names(option: str, text: str) -> tuple[str, ...]:
    """Return comma-separated names without repetitions; ``none`` gives no names.

    Raises ``UsageError`` for a list without names.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"{option} is empty: give comma-separated names, or {NONE}")
    return () if names == (NONE,) else names


def read_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return comma-separated whole numbers without repetitions. Raises ``UsageError`` for anything else."""
    names = read_names(option, text)
    if not names or not all(name.isascii() and name.isdecimal() for name in names):
        raise UsageError(f"{option} {text}: must be comma-separated whole numbers")
    return tuple(map(int, names))


def check_names(option: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Check that names are known, and not one text. Raises ``UsageError`` that names the option."""
    if isinstance(names, str):
        raise UsageError(f"{option} {names!r}: must be a tuple of names, such as ({known[0]!r},)")
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {','.join(map(str, names))}: {name!r} must be one of {', '.join(known)}")


def reader_of(known: Sequence[str]) -> Callable[[str, str], tuple[str, ...]]:
    """Return a reader of comma-separated names that raises ``UsageError`` for a name outside ``known``."""

    def read(option: str, text: str) -> tuple[str, ...]:
        names = read_names(option, text)
        check_names(option, names, known)
        return names

    return read
