"""Text for terminals and logs: one line, without control codes and secrets."""

from __future__ import annotations

import sys

from adafocus_edge.system.addresses import conceal


def printable(text: str) -> str:
    """Return a text as one line with escapes for unprintable characters.

    The name of a file may hold line breaks and terminal control codes.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


LONGEST_ERROR = 1000
"""Maximum length of an error in characters: it may quote a line of a damaged list, which may hold megabytes."""


def one_line(text: str) -> str:
    """Return an error as one line, without secrets; the middle of an error that is too long is cut out."""
    text = conceal(text, *sys.argv[1:])
    if len(text) > LONGEST_ERROR:
        text = f"{text[: LONGEST_ERROR * 2 // 3]} [...] {text[-LONGEST_ERROR // 3 :]}"
    return printable(text)
