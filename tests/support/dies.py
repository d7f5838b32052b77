"""Runs the command line and kills it, as `kill -9` does, just before its n-th change of anything below a folder.

``python -m tests.support.dies FOLDER N LOG VERB ...``; with N = 0 it lives, and LOG gets a line for each change.
Changes that
libraries in C make (an encoder's writes, an exchange of two folders) are not seen, but those before and after them are.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "shutil.rmtree"}
"""Audit events of the standard library, whose first argument is a path."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def die_at(folder: str, number: int) -> list[str]:
    """Count this process's changes of a folder, and end it at one of them."""
    seen: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and arguments[2] & WRITING and not isinstance(arguments[0], int)
        if (opened or event in CHANGES) and os.fsdecode(arguments[0]).startswith(folder):
            seen.append(f"{event} {os.fsdecode(arguments[0])}")
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return seen


if __name__ == "__main__":
    folder, number, log = sys.argv[1:4]
    del sys.argv[1:4]
    seen = die_at(folder, int(number))
    atexit.register(lambda: Path(log).write_text("".join(f"{line}\n" for line in seen)))
    if graphs := os.environ.get("TEST_EXPORTED"):  # PyTorch's exporter takes long: these stand for what it makes
        import shutil

        from export import exporter

        # type: ignore[assignment]
        exporter.export_graph = lambda _, graph, path: shutil.copy(Path(graphs) / path.name, path)
        exporter._compare = lambda *_, **__: []
    from adafocus_edge.cli.app import main

    main()
