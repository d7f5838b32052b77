"""Checks of the source that no linter has: words that read as translated, sizes of modules.

    python scripts/guards.py [FILE or FOLDER ...]

Prints one line per finding, ``file:line: what: hint``, and exits with 1 if there is one. Without arguments it checks
the packages, the manual and the README. Words are searched in comments, docstrings and other strings, and in prose.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED = ("adafocus_edge", "training", "export", "calibration", "benchmarks", "docs", "README.md", "CONTRIBUTING.md")
SUFFIXES = {".py", ".md", ".html", ".js", ".yaml"}
MAX_LINES = 600
"""Of a module."""
MAX_CLI_LINES = 400
"""Of a module of the command line: parse, call the domain, print."""

WORDS = {
    r"tells?|told|telling": "report, log, raise, say which",
    r"fewest": "minimum, min",
    r"anew": "again",
    r"broken off": "interrupted",
    r"by commas": "comma-separated",
    r"nobody|somebody": "no client, another process, a user ...",
    r"what came|what comes of": "name the thing: the result, the frame ...",
    r"what (?:is|was) (?:there|asked(?: for)?)": "name the thing: the existing file, the requested variant ...",
    r"of everything that": "name the thing",
    r"neither .{1,40} is there": "... does not exist",
    r"left out": "skipped",
    r"leave(?:s)? (?:it|them|that|those|this) out|leaves? out": "skip",
    r"(?:is|are|was|were) no (?:video|number|file|folder|picture|image|bundle|checkpoint|address|name)": "is not a ...",
    r"thrown at": "given to",
    r"takes or gives": "signature",
    r"sees nothing of": "does not receive",
    r"made anew": "rebuilt",
    r"the like": "similar",
    r"signs(?= (?:or|long|at|of text))": "characters",
    r"says so": "reports it",
    r"lies in wait|bears? in mind": "plain words",
}
"""Patterns, each with what to write instead."""
PATTERN = re.compile(r"\b(?:" + "|".join(f"(?P<w{i}>{pattern})" for i, pattern in enumerate(WORDS)) + r")\b", re.I)
HINTS = list(WORDS.values())
QUOTED = re.compile(r"``[^`]*``|`[^`]*`")
"""Code in prose, which may name anything."""


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that people read, each with its number: in Python, comments and strings only."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type].startswith("FSTRING"):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def findings(path: Path) -> Iterator[str]:
    """Yield what is wrong with a file."""
    for number, line in prose(path):
        for found in PATTERN.finditer(QUOTED.sub("", line)):
            assert found.lastgroup is not None
            yield f"{number}: {found[0]!r}: {HINTS[int(found.lastgroup[1:])]}"
    if path.suffix == ".py":
        lines = len(path.read_text(encoding="utf-8").splitlines())
        limit = MAX_CLI_LINES if path.parent.name == "cli" else MAX_LINES
        if lines > limit:
            yield f"{lines}: {lines} lines: split it, a module has at most {limit}"


def files(names: list[str]) -> Iterator[Path]:
    """Yield the files to check."""
    for name in names:
        path = ROOT / name
        yield from [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)


def main(arguments: list[str]) -> int:
    """Check files; return the exit code."""
    count = 0
    for path in files(arguments or list(CHECKED)):
        for finding in findings(path):
            print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{finding}")
            count += 1
    if count:
        print(f"{count} findings", file=sys.stderr)
    return int(count > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
