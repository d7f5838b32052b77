"""`adafocus-edge classify`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adafocus_edge.cli.archive import check_archive, run_archive
from adafocus_edge.cli.config import Config, config_entries, config_file, with_config
from adafocus_edge.cli.inputs import choose_decoder, find_inputs, find_model, top_count
from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import (
    HiddenBars,
    ResultSink,
    check_targets,
    is_video_file,
    progress_for,
    say,
    say_notes,
    video_names,
)
from adafocus_edge.cli.process import is_debugging, print_error
from adafocus_edge.errors import AdaFocusError, HasAnEndError, SourceError, UsageError
from adafocus_edge.live.settings import LiveArguments
from adafocus_edge.runtime.archive.settings import ArchiveOptions, ClusterOptions
from adafocus_edge.runtime.settings import ClassifyOptions
from adafocus_edge.system.cpu import check_threads
from adafocus_edge.system.log_lines import set_log_format

if TYPE_CHECKING:
    from rich.progress import Progress

    from adafocus_edge.bundle.manifest import Bundle, Profile
    from adafocus_edge.media.clip import Clip
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.spec import ModelSpec
    from adafocus_edge.runtime.classifier import Classifier, Result

AHEAD = 32
"""Files per worker that may be done before an earlier one is: their results wait for it."""
AHEAD_WITH_CLIPS = 2
"""The same if their clips, which may hold decoded frames, wait, too."""


@with_options
def classify(
    context: typer.Context,
    source: Annotated[
        list[str],
        typer.Argument(
            help="Videos, folders of videos or of frames, globs, camera numbers, or addresses of streams; NAME=SOURCE "
            "names one."
        ),
    ],
    options: ClassifyOptions,
    live: LiveArguments,
    cluster: ClusterOptions,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify videos, folders of frames, cameras and streams.

    Examples:
      adafocus-edge classify clip.mp4 --save-video seen.mp4
      adafocus-edge classify clips/ --json --output results.csv
      adafocus-edge classify rtsp://10.0.0.7/yard --event fight=0.8,for=2
    """
    del debug, config
    from adafocus_edge.backends.registry import load_model, model_threads
    from adafocus_edge.bundle.store import check_graph_files
    from adafocus_edge.runtime.classifier import Classifier
    from adafocus_edge.runtime.exits import requested_exits
    from adafocus_edge.system.side_by_side import Shares

    set_log_format(live.log_format)
    found, setting, profile = _model(options, quiet)
    sources = _sources(source, options, live, context, found.spec, quiet)
    only_live = _only_live(live, options, sources)
    top = top_count(options.top_k, found)
    variant = found.choose_variant(setting.variant)
    archive = ArchiveOptions.of(options.engine, cluster)
    if archive.engine is not None:
        output = check_archive(options, archive, only_live)
        check_graph_files(found, variant)
        if run_archive(sources, found, options, archive, top, output, as_json=as_json, quiet=quiet):
            raise typer.Exit(1)
        return
    check_threads(options.workers, "--workers")
    streamed = only_live is not None or _is_live(sources, found, setting)
    if streamed:
        options.check_live()
    check_targets(
        options.output, options.save_video, found.path, sources, logits=options.logits, as_json=as_json, live=streamed
    )
    requested_exits(found, setting, live=streamed)
    missing = _check_missing(sources, live if streamed else None, options.output, as_json=as_json, quiet=quiet)
    check_graph_files(found, variant)
    shares = Shares.of(1 if streamed else len(sources) - len(missing), options.workers, setting.threads)
    threads = model_threads(setting.backend, shares.threads, setting.threads)
    with ExitStack() as stack:
        model = stack.enter_context(
            load_model(
                found,
                setting.variant,
                setting.backend,
                threads,
                conv_search=options.conv_search,
                device=setting.device,
            )
        )
        if profile is not None:
            model = replace(model, spec=replace(model.spec, segments=profile.segments))
        if setting.backend == "auto":
            say(f"backend: {model.backend}, variant: {model.variant}", quiet)
        decoder = choose_decoder(options.decoder, model, quiet)

        turn = threading.Lock() if model.on_device else None

        def classifier(*, live: bool) -> Classifier:
            return Classifier(
                model, found.classes, top_k=top, schedule=setting.schedule,
                exits=requested_exits(found, setting, live=live),
                decoder=decoder, note=lambda text: say(text, quiet), turn=turn,
            )  # fmt: skip

        failed: int | None = None
        if streamed:
            from adafocus_edge.live.session import Printing, run_live

            printing = Printing(as_json, options.logits, options.provisional, quiet)
            errors = run_live(sources, classifier(live=True), live, printing, options.output, show=options.show)
            failed = _count_failed(errors, only_live, alone=len(sources) == 1)
        if failed is None:
            files = _Files(partial(classifier, live=False), shares.workers, options, as_json=as_json, quiet=quiet)
            failed = files.run(sources, missing)
    if failed:
        raise typer.Exit(1)


def _model(options: ClassifyOptions, quiet: bool) -> tuple[Bundle, ClassifyOptions, Profile | None]:
    """Return the bundle to run, the options with those of its profile, and the profile."""
    from adafocus_edge.runtime.profiles import apply_profile

    found = find_model(options, options.bundle, quiet)
    setting, profile = apply_profile(options, found)
    if profile is not None:
        say(f"profile {options.profile}: {profile.demand}; measured on {profile.device}", quiet)
    return found, setting, profile


def _sources(
    given: list[str],
    options: ClassifyOptions,
    live: LiveArguments,
    context: typer.Context,
    spec: ModelSpec,
    quiet: bool,
) -> list[Source]:
    """Return the sources with what ``--config`` and the options say of them. Raises ``UsageError`` if none is left."""
    from adafocus_edge.live.stream_config import paused_names, with_zones
    from adafocus_edge.media.frame_folder import unknown_rate_notes

    file = config_file(context)
    sources = with_config(find_inputs(given, quiet, options.video_track, options.decode), file)
    if not sources:
        raise UsageError("no source to classify: every [[source]] of --config is paused")
    say_notes(unknown_rate_notes([one.address for one in sources], spec.motion_gap_s), quiet)
    return with_zones(sources, live, paused_names(config_entries(file)))


def _only_live(live: LiveArguments, options: ClassifyOptions, sources: list[Source]) -> str | None:
    """Return what was given that is for live sources only; with it, files are seen window by window too."""
    given = {"provisional": options.provisional, "show": options.show, **asdict(live), "log_format": None}
    name = next((name for name, value in given.items() if value not in (None, False)), None)
    if name is not None:
        return "--" + name.replace("_", "-")
    return "a source with regions or masks" if any(source.zones for source in sources) else None


def _is_live(sources: list[Source], bundle: Bundle, options: ClassifyOptions) -> bool:
    """Whether any source is live. An address without thresholds for live sources is tried as a file."""
    from adafocus_edge.runtime.exits import has_live_exits

    if options.exit_set is not None and len(sources) == 1 and sources[0].address.startswith("http"):
        return sources[0].live and has_live_exits(bundle, options.exit_set)
    return any(source.live for source in sources)


def _count_failed(errors: dict[str, AdaFocusError], only_live: str | None, *, alone: bool) -> int | None:
    """Return how many sources of a live run failed, or None where its only one turned out to be a file.

    Raises ``UsageError`` where that file was given an option for live sources.
    """
    ends = [error for error in errors.values() if isinstance(error, HasAnEndError)]
    if ends and alone:
        if only_live is not None:
            raise UsageError(f"{ends[0]}: {only_live} is for live sources")
        return None
    for error in ends:
        print_error(f"{error}: download it, or classify it alone", 1)
    return len(errors)


def _check_missing(
    sources: list[Source], live: LiveArguments | None, output: Path | None, *, as_json: bool, quiet: bool
) -> dict[Source, SourceError]:
    """Report missing paths before the model is loaded, and return them; exit where all sources are missing.

    A live run reports those that are missing by its own notices.
    """
    missing = {source: error for source in sources if (error := source.missing()) is not None}
    if not missing or not all(source in missing for source in sources):
        for source in sources if live is None else ():
            if source in missing:
                print_error(str(missing[source]), 1)
        return missing
    if live is not None:
        from adafocus_edge.live.session import Printing, report_missing

        named = {source.name: error for source, error in missing.items()}
        report_missing(named, live, Printing(as_json, quiet=quiet), output)
        raise typer.Exit(1)
    from adafocus_edge.runtime.results import ResultFile

    with ExitStack() as stack:
        sink = ResultSink(as_json, logits=False, file=stack.enter_context(ResultFile(output)) if output else None)
        for source in sources:
            sink.failure(source.name, missing[source])
    raise typer.Exit(1)


@dataclass(frozen=True)
class _Seen:
    """A file's result, and what the rest of the run needs of its clip."""

    result: Result
    note: str
    clip: Clip | None


class _Files:
    """Classifies files side by side, and prints the results in the order of the files.

    Args:
        classifier: makes one; each thread has its own, of one model.
        workers: files under way at a time, at most.
        options: of the run.
        as_json: print JSON lines.
        quiet: print only errors on stderr.
    """

    def __init__(
        self,
        classifier: Callable[[], Classifier],
        workers: int,
        options: ClassifyOptions,
        *,
        as_json: bool,
        quiet: bool,
    ) -> None:
        self._make = classifier  # of one more thread
        self._first = classifier()
        self._workers = workers if self._first.reads_side_by_side else 1
        self._options = options
        self._as_json = as_json
        self._quiet = quiet

    def run(self, sources: list[Source], missing: dict[Source, SourceError]) -> int:
        """Return how many files failed; a failure of one does not stop the others."""
        from adafocus_edge.runtime.results import ResultFile
        from adafocus_edge.system.side_by_side import side_by_side

        options, names = self._options, dict(zip(sources, video_names(sources), strict=True))
        ahead = self._workers * (AHEAD if options.save_video is None else AHEAD_WITH_CLIPS)
        present = [source for source in sources if source not in missing]
        with ExitStack() as stack:
            file = stack.enter_context(ResultFile(options.output)) if options.output is not None else None
            sink = ResultSink(self._as_json, options.logits, file)
            self._first.prepare(lambda line: say(line, self._quiet))
            bars = stack.enter_context(progress_for(self._quiet))
            clips = bars.add_task("classifying", total=len(sources), visible=len(sources) > 1)
            outcomes = stack.enter_context(side_by_side(present, self._prepare, self._workers, ahead))
            for source in sources:
                if source in missing:
                    sink.failure(source.name, missing[source], reported=True)
                else:
                    _, outcome = next(outcomes)
                    seen = self._report(source, outcome, sink)
                    if seen is not None and seen.clip is not None:
                        self._save(seen.clip, seen.result, names[source], sink, bars)
                bars.advance(clips)
        return sink.failed

    def _prepare(self) -> Callable[[Source], _Seen]:
        classifier = self._first if self._workers == 1 else self._make()  # the first one is prepared
        keeps_clip = self._options.save_video is not None

        def classify(source: Source) -> _Seen:
            result, clip = classifier.classify(replace(source, live=False))
            return _Seen(result, clip.track_note, clip if keeps_clip else None)

        return classify

    def _report(self, source: Source, outcome: Callable[[], _Seen], sink: ResultSink) -> _Seen | None:
        """Print a file's result and return it, or print its error."""
        from adafocus_edge.system.addresses import conceal

        try:
            seen = outcome()
        except AdaFocusError as error:
            sink.failure(source.name, error)
            return None
        except Exception as error:  # a damaged file may raise anything; the others must still run
            if is_debugging():
                raise
            reason = conceal(str(error), source.address)
            kind = type(error).__name__
            sink.failure(source.name, SourceError(f"{source.name}: cannot be read (unexpected {kind}: {reason})"))
            return None
        if seen.note:
            say(f"{source.name}: {seen.note}", self._quiet)
        sink.result(seen.result)
        return seen

    def _save(self, clip: Clip, result: Result, video_name: str, sink: ResultSink, bars: Progress | HiddenBars) -> None:
        """Write the annotated video of a clip."""
        from adafocus_edge.runtime.annotate import save_annotated

        save_video = self._options.save_video
        assert save_video is not None
        path = save_video if is_video_file(save_video) else save_video / video_name
        frames = bars.add_task(f"writing {path.name}", total=clip.frame_count)
        try:
            for count in save_annotated(clip, result, self._first.model.spec, path):
                bars.update(frames, completed=count)
        except AdaFocusError as error:
            sink.complaint(error)
        bars.remove_task(frames)
