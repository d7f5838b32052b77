"""The command line. A verb imports what it needs when it runs: help is instant, and a device needs no PyTorch."""

from __future__ import annotations

import importlib
import importlib.util
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adafocus_edge import __version__
from adafocus_edge.errors import AdaFocusError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from adafocus_edge.classify import Classifier, Result
    from adafocus_edge.sources import Source

app = typer.Typer(
    name="adafocus-edge",
    help="Take an AdaFocus video model from a checkpoint to a device: export it, look into it, run it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


class BackendName(str, Enum):
    """Values of ``--backend``."""

    AUTO = "auto"
    CPU = "onnxruntime-cpu"
    CUDA = "onnxruntime-cuda"


class ScheduleName(str, Enum):
    """Values of ``--schedule``."""

    AUTO = "auto"
    CLIP = "clip"
    STREAM = "stream"


INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

_debug = False


def _set_debug(value: bool) -> bool:
    global _debug  # noqa: PLW0603 - one process runs one command
    _debug = _debug or value
    return value


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"adafocus-edge {__version__}")
        raise typer.Exit


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug)]


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    del version


@app.command("export")
def export_verb(
    checkpoint: Annotated[Path, typer.Argument(help="An official AdaFocus checkpoint (.pth.tar), or one of `train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    patch_size: Annotated[int | None, typer.Option(help="Side of the focuser's patch in pixels, such as 128.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class names, one per line (classInd.txt).")] = None,
    segments: Annotated[int | None, typer.Option(help="Frames per clip. [default: 16]")] = None,
    glance_size: Annotated[
        int | None, typer.Option(help="Side of the glancer's frame. [default: from the weights]")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the preprocessed frame. [default: 224]")] = None,
    fused: Annotated[bool, typer.Option("--fused", help="Also write step.onnx, the four graphs joined.")] = False,
    frames: Annotated[str | None, typer.Option(help="Video or folder of frames to compare the graphs on.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint to a bundle of four ONNX graphs, and compare them with PyTorch."""
    del debug
    exporter = reach("export.exporter", "export", "export")
    options = exporter.ExportOptions(
        model=exporter.ModelOptions(
            patch_size=patch_size, glance_size=glance_size, input_size=input_size, num_segments=segments
        ),
        classes=classes,
        fused=fused,
        frames=frames,
        replace=force,
    )
    with _stages(quiet) as progress:
        made = exporter.export(checkpoint, output, options, progress)
    for note in made.notes:
        _say(f"note: {note}", quiet)
    if as_json:
        typer.echo(json.dumps({"bundle": str(output), **made.bundle.manifest.reports["parity"]}))
        return
    from adafocus_edge.report import console, parity_table, variant_totals

    megabytes, gflops = variant_totals(made.bundle, "fp32")
    clip = gflops * made.bundle.model.segments
    console().print(parity_table(made.bundle.manifest.reports["parity"]["rows"]))
    console().print(f"{output}: {megabytes:.1f} MB, {gflops:.2f} GFLOPs per frame, {clip:.1f} per clip")


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is in a bundle, after checking every hash in it."""
    del debug
    from adafocus_edge.bundle import encode_manifest, read_bundle
    from adafocus_edge.report import bundle_tables, console, variant_totals

    found = read_bundle(bundle)
    if as_json:
        manifest = json.loads(encode_manifest(found.manifest))
        totals = {}
        for variant in found.manifest.variants:
            megabytes, gflops = variant_totals(found, variant)
            totals[variant] = {
                "size_mb": round(megabytes, 3),
                "gflops_per_step": round(gflops, 6),
                "gflops_per_clip": round(gflops * found.model.segments, 6),
            }
        typer.echo(json.dumps({**manifest, "classes": list(found.classes), "totals": totals}, indent=2))
        return
    for table in bundle_tables(found):
        console().print(table)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine can run, what is missing, and the command that adds it."""
    del debug
    from adafocus_edge.doctor import examine, findings_json, findings_table
    from adafocus_edge.report import console

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings_json(findings), indent=2))
    else:
        console().print(findings_table(findings))


@app.command()
def classify(
    source: Annotated[
        list[str],
        typer.Argument(help="Videos, folders of videos or of frames, globs, a camera index, or stream addresses."),
    ],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle to run.")] = None,
    backend: Annotated[BackendName, typer.Option(help="What runs the graphs.")] = BackendName.AUTO,
    variant: Annotated[str, typer.Option(help="Which of the bundle's variants.")] = "auto",
    schedule: Annotated[ScheduleName, typer.Option(help="Whole clip at once, or frame by frame.")] = ScheduleName.AUTO,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: usable cores]")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to list per clip.")] = 5,
    exit_confidence: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Stop a clip once its best class is this sure.")
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Add every step's logits to JSON.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write results here: .jsonl, .csv.")
    ] = None,
    save_video: Annotated[
        Path | None, typer.Option(help="Write the video with the patch drawn on it; with several sources, a folder.")
    ] = None,
    glimpse_fps: Annotated[float, typer.Option(min=0.01, help="Glimpses per second of a live source.")] = 2.0,
    duration: Annotated[float | None, typer.Option(min=0.0, help="Seconds to run on a live source.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify videos, folders of frames, a camera or a stream."""
    del debug
    if bundle is None:
        raise UsageError(
            "no --bundle given, and there is no default model yet: make a bundle with `adafocus-edge export`"
        )
    from adafocus_edge.backends.load import load_model
    from adafocus_edge.bundle import read_bundle
    from adafocus_edge.classify import Classifier
    from adafocus_edge.report import ResultFile
    from adafocus_edge.sources import find_sources

    sources = find_sources(source)
    live = [s for s in sources if s.live]
    if live and len(sources) > 1:
        raise UsageError("a live source runs alone for now: name one camera or stream, or only files")
    if live and save_video is not None:
        raise UsageError("--save-video takes files, not live sources")
    if save_video is not None:
        _check_video_target(save_video, sources)
    found = read_bundle(bundle)
    with ExitStack() as stack:
        model = stack.enter_context(load_model(found, variant, backend.value, threads))
        if backend is BackendName.AUTO:
            _say(f"backend: {model.backend}, variant: {model.variant}", quiet)
        classifier = Classifier(
            model, found.classes, top_k=top_k, schedule=schedule.value, exit_confidence=exit_confidence
        )
        file = ResultFile(output, logits=logits) if output is not None else None
        if file is not None:
            stack.callback(file.close)
        sink = _Sink(as_json, logits, file)
        if live:
            _run_live(live[0], classifier, glimpse_fps, duration, sink)
        else:
            _run_files(sources, classifier, save_video, sink, quiet)
    if sink.failed:
        raise typer.Exit(1)


class _Sink:
    """Where results and failed sources go."""

    def __init__(self, as_json: bool, logits: bool, file: Any) -> None:
        self.failed = 0
        self._json = as_json
        self._logits = logits
        self._file = file

    def result(self, result: Result) -> None:
        entry = result.to_json(logits=self._logits)
        if self._file is not None:
            self._file.write(entry)
        if self._json:
            print(json.dumps(entry, ensure_ascii=False), flush=True)
        else:
            from adafocus_edge.report import console, print_result

            print_result(console(), result)

    def failure(self, source: str, error: AdaFocusError) -> None:
        self.failed += 1
        entry = {"source": source, "error": str(error)}
        if self._file is not None:
            self._file.write(entry)
        if self._json:
            print(json.dumps(entry, ensure_ascii=False), flush=True)
        print(f"error: {error}", file=sys.stderr)


def _run_files(
    sources: list[Source], classifier: Classifier, save_video: Path | None, sink: _Sink, quiet: bool
) -> None:
    from adafocus_edge.render import save_annotated

    with _counter("classifying", len(sources), quiet) as advance:
        for source in sources:
            try:
                result, clip = classifier.classify(source)
                sink.result(result)
                if save_video is not None:
                    path = save_video if save_video.suffix else save_video / f"{_stem(source)}.mp4"
                    with _counter(f"writing {path.name}", clip.frame_count, quiet) as written:
                        save_annotated(clip, result, classifier.model.spec.frame_size, path, written)
            except AdaFocusError as error:
                sink.failure(source.name, error)
            advance()


def _run_live(
    source: Source, classifier: Classifier, glimpse_fps: float, duration_s: float | None, sink: _Sink
) -> None:
    from adafocus_edge.stream import windows

    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for result in windows(source, classifier, glimpse_fps, duration_s, stop):
            sink.result(result)
    except AdaFocusError as error:
        sink.failure(source.name, error)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stem(source: Source) -> str:
    return Path(source.address.rstrip("/")).stem or "clip"


def _check_video_target(path: Path, sources: list[Source]) -> None:
    if path.suffix:
        if path.suffix.lower() not in (".mp4", ".mov", ".mkv"):
            raise UsageError(f"{path}: annotated videos are written as .mp4, .mov or .mkv")
        if len(sources) > 1:
            raise UsageError(f"--save-video {path}: {len(sources)} sources need a folder, not one file")
    targets = {(path if path.suffix else path / f"{_stem(s)}.mp4").resolve(): s for s in sources}
    if len(targets) < len(sources):
        raise UsageError(f"--save-video {path}: two of the sources have the same file name")
    for target in targets:
        if any(target == Path(source.address).resolve() for source in sources):
            raise UsageError(f"--save-video {path}: would overwrite a source")


def reach(module: str, verb: str, extra: str) -> Any:
    """Import a module of another of our packages, and make sure that it is ours.

    The packages' names are general (``export``, ``training``), so a folder of that name where the user stands could
    come first. Raises ``AdaFocusError`` that names what shadows ours, or ``MissingExtraError``.
    """
    package = module.partition(".")[0]
    ours = Path(__file__).resolve().parent.parent / package
    spec = importlib.util.find_spec(package)
    where = spec and (spec.origin or next(iter(spec.submodule_search_locations or []), None))
    found = None
    if where:
        found = Path(where).resolve()
        found = found.parent if found.name == "__init__.py" else found
    if found != ours:
        raise AdaFocusError(
            f"`adafocus-edge {verb}` needs the package {package!r} in {ours.parent}, but "
            + (
                f"{found} comes first on Python's path: run from another folder, or rename that"
                if found
                else "it is gone"
            )
        )
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"`adafocus-edge {verb}`", extra, error.name or module) from None


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr)


@contextmanager
def _counter(what: str, total: int, quiet: bool) -> Iterator[Any]:
    """Give a function that advances a progress bar: shown on a terminal, for more than one thing, unless quiet."""
    if quiet or total < 2 or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done=None: bar.update(task, completed=done) if done is not None else bar.advance(task)


@contextmanager
def _stages(quiet: bool) -> Iterator[Any]:
    """Give a function that shows what is being done: a spinner on a terminal, nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda stage: status.update(stage + " ...")


def main() -> None:
    """Run the command line: every error becomes one line and an exit code."""
    command = typer.main.get_command(app)
    try:
        status = command.main(prog_name="adafocus-edge", standalone_mode=False)
    except AdaFocusError as error:
        if _debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        status = error.exit_code
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; there is nobody to tell
        status = 1
    except Exception as error:
        if hasattr(error, "format_message"):  # Click's own errors: wrong usage
            text = error.format_message()
            print(text if text.startswith("Usage") else f"error: {text} (see --help)", file=sys.stderr)
            status = getattr(error, "exit_code", 2)
        elif _debug:
            raise
        else:
            first = (str(error).splitlines() or [""])[0]
            print(f"error: unexpected {type(error).__name__}: {first} (--debug shows where)", file=sys.stderr)
            status = 1
    if status == INTERRUPTED:  # Typer turns Ctrl-C into this status, too
        print("interrupted", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
