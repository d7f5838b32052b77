"""Terminal output by Rich: a console without control codes, tables in one style, progress bars."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adafocus_edge.system.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment


STYLE: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
"""Style of every table."""


class SafeConsole(Console):
    """A console that prints control codes as escapes instead of sending them: names may hold some."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments to print."""
        for piece in super().render(renderable, options):
            text = piece.text
            if piece.control or text == "\n" or text.isprintable():
                yield piece
            else:
                yield piece._replace(text="\n".join(map(printable, text.split("\n"))))


def console(width: int = 160, *, stderr: bool = False) -> Console:
    """Return a console; in a pipe, it prints without colours and wraps at ``width`` characters."""
    plain = SafeConsole(highlight=False, stderr=stderr)
    return plain if plain.is_terminal else SafeConsole(highlight=False, stderr=stderr, width=width)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """Provide progress bars on stderr, shown only on a terminal and unless ``quiet``."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
        # Results on the same terminal are printed above the bars; in a file or a pipe, they are written unchanged.
        redirect_stdout=sys.stdout.isatty(),
    ) as bars:
        yield bars
