"""Printing and writing results, and checking beforehand that files can be written."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafocus_edge.cli.process import print_error
from adafocus_edge.errors import AdaFocusError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.classifier import Result


class ResultSink:
    """Prints results and failed sources, writes them to a file, and counts the failures."""

    def __init__(self, as_json: bool, logits: bool, file: Any) -> None:
        self.failed = 0
        self._json = as_json
        self._logits = logits
        self._file = file

    def result(self, result: Result) -> None:
        """Print a result, and write it to the file."""
        entry = result.to_json(logits=self._logits)
        if self._file is not None:
            self._file.write(entry)
        if self._json:
            self._print(entry)
        else:
            from adafocus_edge.runtime.results import print_result
            from adafocus_edge.system.console import console

            print_result(console(), result)

    def failure(self, source: str, error: AdaFocusError, *, reported: bool = False) -> None:
        """Record a source that gives no result; ``reported`` if stderr has the error already."""
        from adafocus_edge.system.addresses import conceal

        entry = {"source": source, "error": conceal(str(error))}
        if self._file is not None:
            self._file.write(entry)
        if self._json:
            self._print(entry)
        if reported:
            self.failed += 1
        else:
            self.complaint(error)

    @staticmethod
    def _print(entry: dict[str, Any]) -> None:
        from adafocus_edge.system.json_lines import to_line

        print(to_line(entry), flush=True)

    def complaint(self, error: AdaFocusError) -> None:
        """Report an error beside a result."""
        self.failed += 1
        print_error(str(error), 1)


def video_names(sources: list[Source]) -> list[str]:
    """Return the names of annotated videos: the sources', with folder and suffix where two would be the same."""
    from adafocus_edge.system.addresses import shown_path
    from adafocus_edge.system.files import folded
    from adafocus_edge.system.retention import safe_name

    forms = []
    for source in sources:
        is_address = "://" in source.address
        path = Path((shown_path(source.address) if is_address else source.address).rstrip("/"))
        name = path.name.replace(".", "-")
        own = [path.stem or "clip", f"{path.parent.name}-{path.stem}", f"{path.parent.name}-{name}"]
        # Addresses may differ only in parts that are not shown; the sources' names differ.
        forms.append([*map(safe_name, (*own, source.name))] if is_address else [*own, own[1]])
    counts = [Counter(map(folded, names)) for names in zip(*forms, strict=True)]
    names = []
    for own in forms:
        alone = (form for form, count in zip(own, counts, strict=True) if count[folded(form)] == 1)
        names.append(next(alone, own[1]) + ".mp4")
    return names


def is_video_file(path: Path) -> bool:
    """Whether a path names a video file rather than a folder."""
    from adafocus_edge.media.encoders import VIDEO_CONTAINERS

    return path.suffix.lower() in VIDEO_CONTAINERS and not path.is_dir()


def _check_video_target(path: Path, sources: list[Source]) -> None:
    from adafocus_edge.media.encoders import VIDEO_CONTAINERS

    one = is_video_file(path)
    if not one and (path.suffix or path.exists()) and not path.is_dir():
        raise UsageError(f"--save-video {path}: must be a folder, or a file named {', '.join(VIDEO_CONTAINERS)}")
    if one and len(sources) > 1:
        raise UsageError(f"--save-video {path}: {len(sources)} sources need a folder, not one file")
    targets = [_real(path if one else path / name) for name in video_names(sources)]
    if len(set(targets)) < len(targets):
        target = next(target for target in targets if targets.count(target) > 1)
        first, second = [source.name for source, own in zip(sources, targets, strict=True) if own == target][:2]
        raise UsageError(
            f"--save-video {path}: {first} and {second} would be written to the same file {target.name}; classify them "
            "separately"
        )
    if set(targets) & _own_files(sources):
        raise UsageError(f"--save-video {path}: would overwrite a source")


def check_targets(
    output: Path | None,
    save_video: Path | None,
    bundle: Path,
    sources: list[Source],
    *,
    logits: bool,
    as_json: bool,
    live: bool,
) -> None:
    """Check that outputs can be written and overwrite no input. Raises ``UsageError``, ``MissingExtraError``."""
    if logits and not as_json and (output is None or output.suffix.lower() == ".csv"):
        raise UsageError("--logits adds to JSON: also give --json, or --output with a file that is not CSV")
    if output is not None:
        _check_output(output, bundle, sources, live=live)
    if save_video is not None:
        _check_video_target(save_video, sources)


def _check_output(path: Path, bundle: Path, sources: list[Source], *, live: bool) -> None:
    from adafocus_edge.media.sources import VIDEO_SUFFIXES
    from adafocus_edge.runtime.parquet import check_parquet, is_parquet

    check_apart(path, bundle, sources)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise UsageError(f"--output {path}: takes results (JSON lines, CSV, Parquet); --save-video writes videos")
    if is_parquet(path):
        if live:
            raise UsageError(
                f"--output {path}: a live source, or an address that may be one, has no end: write JSON lines or CSV"
            )
        check_parquet()
    check_files(path)


def check_apart(output: Path, bundle: Path, sources: list[Source]) -> None:
    """Check that a file or folder of results is no source, and not in the bundle. Raises ``UsageError``."""
    if _real(output) in _own_files(sources) or _real(output).is_relative_to(_real(bundle)):
        raise UsageError(f"--output {output}: would overwrite a source or a file of the bundle")


def _own_files(sources: list[Source]) -> set[Path]:
    return {_real(Path(source.address)) for source in sources}


def _real(path: Path) -> Path:
    """Return where a path leads; opening it reports a circle of links."""
    return Path(os.path.realpath(path))


def check_files(*paths: Path | None) -> None:
    """Check that files can be written, before anything slow starts. Raises ``AdaFocusError``."""
    from adafocus_edge.system.retention import check_file

    for path in paths:
        if path is not None:
            check_file(path)


def say(text: str, quiet: bool) -> None:
    """Print a line on stderr, unless quiet."""
    if not quiet:
        from adafocus_edge.system.addresses import conceal
        from adafocus_edge.system.log_lines import log_line
        from adafocus_edge.system.printable import printable

        print(log_line(printable(conceal(text, *sys.argv[1:]))), file=sys.stderr)


def say_notes(notes: Iterable[str], quiet: bool) -> None:
    """Print notes on stderr, unless quiet."""
    for note in notes:
        say(f"note: {note}", quiet)


LINE_EVERY_S = 60.0
"""Between two lines of progress where there is no terminal."""


class HiddenBars:
    """Progress bars that are not shown. Rich, which draws the others, takes a tenth of a second to import."""

    disable = True

    def add_task(self, description: str, *, total: float | None = None, visible: bool = True) -> Any:
        """Add a bar; return its number."""

    def update(
        self, task: Any, *, completed: float | None = None, total: float | None = None, description: str | None = None
    ) -> None:
        """Set a bar's position, length and text."""

    def advance(self, task: Any) -> None:
        """Move a bar by one."""

    def remove_task(self, task: Any) -> None:
        """Remove a bar."""


def progress_for(quiet: bool) -> AbstractContextManager[Progress | HiddenBars]:
    """Return progress bars on stderr; they are not shown if quiet, or in a file or pipe."""
    if quiet or not sys.stderr.isatty():
        return nullcontext(HiddenBars())
    from adafocus_edge.system.console import progress_bars

    return progress_bars(quiet)


@contextmanager
def show_stages(quiet: bool) -> Iterator[Any]:
    """Yield a function that shows the current stage by a spinner on a terminal, and does nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from adafocus_edge.system.console import console

    with console(stderr=True).status("starting") as status:
        yield lambda stage: status.update(stage + " ...")
