"""`adafocus-edge classify`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adafocus_edge.cli.config import Config
from adafocus_edge.cli.inputs import choose_decoder, find_inputs, find_model, top_count
from adafocus_edge.cli.options import Debug, Json, Quiet, with_options
from adafocus_edge.cli.outputs import ResultSink, check_targets, is_video_file, progress_for, say, video_names
from adafocus_edge.cli.process import is_debugging, print_error
from adafocus_edge.errors import AdaFocusError, HasAnEndError, SourceError, UsageError
from adafocus_edge.live.settings import LiveArguments
from adafocus_edge.runtime.settings import ClassifyOptions
from adafocus_edge.system.log_lines import set_log_format

if TYPE_CHECKING:
    from rich.progress import Progress

    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.classifier import Classifier


@with_options
def classify(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Videos, folders of videos or of frames, globs, camera numbers, or addresses of streams; NAME=SOURCE "
            "names one."
        ),
    ],
    options: ClassifyOptions,
    live: LiveArguments,
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
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.bundle.store import check_graph_files
    from adafocus_edge.runtime.classifier import Classifier
    from adafocus_edge.runtime.exits import requested_exits
    from adafocus_edge.runtime.profiles import apply_profile

    set_log_format(live.log_format)
    found = find_model(options, options.bundle, quiet)
    setting, profile = apply_profile(options, found)
    if profile is not None:
        say(f"profile {options.profile}: {profile.demand}; measured on {profile.device}", quiet)
    sources = find_inputs(source, quiet, options.video_track)
    only_live = _only_live(live, options)
    streamed = only_live is not None or _is_live(sources, found, setting)
    if streamed:
        options.check_live()
    check_targets(
        options.output, options.save_video, found.path, sources, logits=options.logits, as_json=as_json, live=streamed
    )
    top = top_count(options.top_k, found)
    found.choose_variant(setting.variant)
    requested_exits(found, setting, live=streamed)
    missing = _check_missing(sources, live if streamed else None, options.output, as_json=as_json, quiet=quiet)
    check_graph_files(found)
    with ExitStack() as stack:
        model = stack.enter_context(
            load_model(found, setting.variant, setting.backend, setting.threads, conv_search=options.conv_search)
        )
        if profile is not None:
            model = replace(model, spec=replace(model.spec, segments=profile.segments))
        if setting.backend == "auto":
            say(f"backend: {model.backend}, variant: {model.variant}", quiet)
        decoder = choose_decoder(options.decoder, model, quiet)

        def classifier(*, live: bool) -> Classifier:
            return Classifier(
                model, found.classes, top_k=top, schedule=setting.schedule,
                exits=requested_exits(found, setting, live=live),
                decoder=decoder, note=lambda text: say(text, quiet),
            )  # fmt: skip

        failed: int | None = None
        if streamed:
            from adafocus_edge.live.session import Printing, run_live

            printing = Printing(as_json, options.logits, options.provisional, quiet)
            errors = run_live(sources, classifier(live=True), live, printing, options.output, show=options.show)
            failed = _count_failed(errors, only_live, alone=len(sources) == 1)
        if failed is None:
            failed = _run_files(sources, missing, classifier(live=False), options, as_json=as_json, quiet=quiet)
    if failed:
        raise typer.Exit(1)


def _only_live(live: LiveArguments, options: ClassifyOptions) -> str | None:
    """Return the first option given that is for live sources; with one, files are seen window by window too."""
    given = {"provisional": options.provisional, "show": options.show, **asdict(live), "log_format": None}
    name = next((name for name, value in given.items() if value not in (None, False)), None)
    return None if name is None else "--" + name.replace("_", "-")


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


def _run_files(
    sources: list[Source],
    missing: dict[Source, SourceError],
    classifier: Classifier,
    options: ClassifyOptions,
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    """Classify files one by one, and return how many failed; a failure of one does not stop the others."""
    from adafocus_edge.runtime.results import ResultFile

    names = dict(zip(sources, video_names(sources), strict=True))
    with ExitStack() as stack:
        file = stack.enter_context(ResultFile(options.output)) if options.output is not None else None
        sink = ResultSink(as_json, options.logits, file)
        classifier.prepare(lambda line: say(line, quiet))
        bars = stack.enter_context(progress_for(quiet))
        clips = bars.add_task("classifying", total=len(sources), visible=len(sources) > 1)
        for source in sources:
            if source in missing:
                sink.failure(source.name, missing[source], reported=True)
            else:
                _run_file(replace(source, live=False), names[source], classifier, options.save_video, sink, bars, quiet)
            bars.advance(clips)
    return sink.failed


def _run_file(
    source: Source,
    video_name: str,
    classifier: Classifier,
    save_video: Path | None,
    sink: ResultSink,
    bars: Progress,
    quiet: bool,
) -> None:
    """Classify a file, print its result or its error, and write the annotated video if there is to be one."""
    from adafocus_edge.runtime.annotate import save_annotated
    from adafocus_edge.system.addresses import conceal

    try:
        result, clip = classifier.classify(source)
    except AdaFocusError as error:
        sink.failure(source.name, error)
        return
    except Exception as error:  # a damaged file may raise anything; the others must still run
        if is_debugging():
            raise
        reason = conceal(str(error), source.address)
        kind = type(error).__name__
        sink.failure(source.name, SourceError(f"{source.name}: cannot be read (unexpected {kind}: {reason})"))
        return
    if clip.track_note:
        say(f"{source.name}: {clip.track_note}", quiet)
    sink.result(result)
    if save_video is None:
        return
    path = save_video if is_video_file(save_video) else save_video / video_name
    frames = bars.add_task(f"writing {path.name}", total=clip.frame_count)
    try:
        for count in save_annotated(clip, result, classifier.model.spec, path):
            bars.update(frames, completed=count)
    except AdaFocusError as error:
        sink.complaint(error)
    bars.remove_task(frames)
