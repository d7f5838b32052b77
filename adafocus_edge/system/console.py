"""What a terminal is shown: text that cannot command it, tables of one style, progress bars."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adafocus_edge.system.addresses import conceal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment


STYLE: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
"""How every table looks."""


class SafeConsole(Console):
    """A console that shows codes which a terminal obeys, rather than to send them: names may hold some."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield what is printed, piece by piece."""
        for piece in super().render(renderable, options):
            text = piece.text
            if piece.control or text == "\n" or text.isprintable():
                yield piece
            else:
                yield piece._replace(text="\n".join(map(printable, text.split("\n"))))


def console(width: int = 160, *, stderr: bool = False) -> Console:
    """Return a console; in a pipe it neither colours nor wraps, but at a width."""
    plain = SafeConsole(highlight=False, stderr=stderr)
    return plain if plain.is_terminal else SafeConsole(highlight=False, stderr=stderr, width=width)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """Give progress bars on stderr: seen on a terminal, and not if quiet."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
        # Results that share the terminal go above the bars; into a file or a pipe they go as they are.
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:
        yield bars


def printable(text: str) -> str:
    """Return a text as one line: a file's name may hold line breaks and codes that a terminal obeys."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


LONGEST_ERROR = 1000
"""Characters of an error: a line of a damaged list that it quotes may hold megabytes."""


def one_line(text: str) -> str:
    """Return an error as one line of bearable length, without secrets: where it is too long, its middle is left out."""
    text = conceal(text, *sys.argv[1:])
    if len(text) > LONGEST_ERROR:
        text = f"{text[: LONGEST_ERROR * 2 // 3]} [...] {text[-LONGEST_ERROR // 3 :]}"
    return printable(text)
