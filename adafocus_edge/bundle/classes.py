"""Class names: reading them from a file, and comparing two lists of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adafocus_edge.errors import AdaFocusError, BundleError, UsageError
from adafocus_edge.model.spec import class_name
from adafocus_edge.system.files import read_text, reason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_lines(path: Path, kind: str, missing: str, error: type[AdaFocusError]) -> list[str]:
    """Return the lines of a text file, without white space around them.

    Args:
        path: of the file.
        kind: what it must be, such as ``list of class names``, for errors.
        missing: what to call it if it does not exist, such as ``class file``.
        error: what to raise for a file that is missing, unreadable or not in UTF-8.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise error(f"{path}: no such {missing}") from None
    except (OSError, UnicodeError) as why:
        raise error(f"{path}: not a {kind} in UTF-8 ({reason(why)})") from None
    return [line.strip() for line in text.splitlines()]


def read_classes(path: Path) -> tuple[str, ...]:
    """Read distinct class names, one per line, in UTF-8; empty lines at the end do not count.

    Raises ``BundleError``, also if two lines name the same class.
    """
    names = class_lines(path)
    check_distinct(names, str(path))
    return names


def check_distinct(
    names: Sequence[str], origin: str, error: type[AdaFocusError] = BundleError, unit: str = "lines"
) -> None:
    """Check that no two classes have the same name.

    Args:
        names: as :func:`class_name` returns them.
        origin: where they were read from; the error begins with it.
        error: what to raise.
        unit: what the names are where they were read, counted from 1.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if (before := first.setdefault(name, number)) != number:
            raise error(f"{origin}: {unit} {before} and {number} both name the class {name!r}: give each its own name")


def class_lines(path: Path) -> tuple[str, ...]:
    """Read class names, one per line, which may repeat. Raises ``BundleError``."""
    text = "\n".join(read_lines(path, "list of class names", "class file", BundleError)).rstrip()
    names = tuple(class_name(line) for line in text.splitlines())
    if not names:
        raise BundleError(f"{path}: it contains no class names")
    for number, name in enumerate(names, start=1):
        if not name:
            raise BundleError(f"{path}: line {number} is empty; each line must hold one class name")
    return names


def same_classes(own: Sequence[str], given: Sequence[str]) -> bool:
    """Return whether two lists hold the same class names in the same order, in any Unicode form."""
    return [*map(class_name, own)] == [*map(class_name, given)]


def first_difference(own: Sequence[str], given: Sequence[str]) -> str:
    """Describe the first difference between two lists of class names."""
    for number, (before, now) in enumerate(zip(own, given, strict=False)):
        if not same_classes([before], [now]):
            return f"class {number} was {before!r}, and is now {now!r}"
    return f"there were {len(own)} classes, and are now {len(given)}"


def check_class_order(own: Sequence[str] | None, given: Sequence[str], where: str) -> None:
    """Raise ``UsageError`` if a file lists a model's own classes in another order: every label would be wrong."""
    if own and not same_classes(own, given) and same_classes(sorted(own), sorted(given)):
        raise UsageError(f"{where}: it lists the model's own classes in another order ({first_difference(own, given)})")


def check_classes(names: Sequence[str], count: int, origin: str) -> None:
    """Check that there are as many class names as the model has classes, each of which fits on one line.

    Raises ``BundleError`` that begins with ``origin``.
    """
    if len(names) != count:
        raise BundleError(f"{origin}: it names {len(names)} classes, but the model has {count}")
    for number, name in enumerate(names):
        if not name.strip() or name != name.strip() or len(name.splitlines()) != 1:
            raise BundleError(f"{origin}: class {number} is named {name!r}: it must be one line of text")
