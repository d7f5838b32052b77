"""`adafocus-edge classify`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adafocus_edge.backends.base import CONV_SEARCH
from adafocus_edge.cli.inputs import (
    check_exit,
    check_live,
    check_threads,
    choose_decoder,
    exits_asked,
    find_inputs,
    has_live_exits,
    top_count,
)
from adafocus_edge.cli.options import (
    DEFAULT_MODEL_NOTE,
    Backend,
    BackendName,
    Config,
    ConvSearchName,
    Debug,
    Decoder,
    DecoderName,
    Exit,
    Json,
    Quiet,
    ResultsOutput,
    RunBundle,
    ScheduleName,
    Threads,
    Variant,
    VideoTrack,
    with_live_options,
)
from adafocus_edge.cli.outputs import ResultSink, check_targets, is_video_file, progress_for, say, video_names
from adafocus_edge.cli.process import is_debugging, print_error
from adafocus_edge.errors import AdaFocusError, HasAnEndError, SourceError, UsageError
from adafocus_edge.live.settings import LiveArguments

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.classifier import Classifier


@with_live_options
def classify(
    source: Annotated[
        list[str],
        typer.Argument(help="Videos, folders of videos or of frames, globs, a camera index, or stream addresses."),
    ],
    bundle: RunBundle = None,
    backend: Backend = BackendName.AUTO,
    variant: Variant = "auto",
    schedule: Annotated[ScheduleName, typer.Option(help="Whole clip at once, or frame by frame.")] = ScheduleName.AUTO,
    decoder: Decoder = DecoderName.CPU,
    video_track: VideoTrack = None,
    threads: Threads = None,
    conv_search: ConvSearchName = CONV_SEARCH,
    top_k: Annotated[int | None, typer.Option(min=1, help="Classes to list per clip. [default: 5]")] = None,
    exit_confidence: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Stop a clip once its best class is this sure.")
    ] = None,
    exit_set: Exit = None,
    profile: Annotated[
        str | None, typer.Option(help="A setting that `tune` stored in the bundle: backend, variant, schedule, exit.")
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Add every step's logits to JSON.")] = False,
    output: ResultsOutput = None,
    save_video: Annotated[
        Path | None, typer.Option(help="Write the video with the patch drawn on it; with several sources, a folder.")
    ] = None,
    provisional: Annotated[
        bool, typer.Option("--provisional", help="Tell what is known after every glimpse of a live source, too.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show live sources in a window: q quits, space pauses, s takes a picture.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    live: LiveArguments,
) -> None:
    """Classify videos, folders of frames, cameras and streams."""
    del debug, config
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.bundle.store import check_graph_files, default_bundle, open_bundle
    from adafocus_edge.runtime.classifier import Classifier
    from adafocus_edge.runtime.results import ResultFile

    if bundle is None:
        bundle = default_bundle()
        say(DEFAULT_MODEL_NOTE, quiet)
    found = open_bundle(bundle)
    asked = _Setting(backend, variant, schedule, threads, exit_set)
    asked = asked.checked(found, profile, exit_confidence, quiet)
    backend, variant, schedule, threads, exit_set = astuple(asked)[:5]
    sources = find_inputs(source, quiet, video_track)
    streamed = any(s.live for s in sources)
    only_live = _only_live(live, provisional=provisional, show=show)
    if streamed and exit_set is not None and len(sources) == 1 and sources[0].address.startswith("http"):
        # An address without a live set is tried as a file.
        streamed = has_live_exits(found, exit_set)
    streamed = streamed or only_live is not None
    if streamed:
        check_live(save_video, schedule, profile)
    check_targets(output, save_video, bundle, sources, logits=logits, as_json=as_json)
    top = top_count(top_k, found)
    found.choose_variant(variant)
    exits_asked(found, exit_set, exit_confidence, live=streamed)
    missing = _check_missing(sources, live if streamed else None, output, as_json=as_json, quiet=quiet)
    check_graph_files(found)
    with ExitStack() as stack:
        model = stack.enter_context(load_model(found, variant, backend.value, threads, conv_search=conv_search))
        model = replace(model, spec=replace(model.spec, segments=asked.segments or model.spec.segments))
        if backend is BackendName.AUTO:
            say(f"backend: {model.backend}, variant: {model.variant}", quiet)

        decodes = choose_decoder(decoder, model, quiet)

        def classifier(*, live: bool) -> Classifier:
            return Classifier(
                model, found.classes, top_k=top, schedule=schedule.value,
                exits=exits_asked(found, exit_set, exit_confidence, live=live),
                decoder=decodes, note=lambda text: say(text, quiet),
            )  # fmt: skip

        failed: int | None = None
        if streamed:
            from adafocus_edge.live.session import Printing, run_live

            printing = Printing(as_json, logits, provisional, quiet)
            errors = run_live(sources, classifier(live=True), live, printing, output, show=show)
            failed = _count_failed(errors, only_live, alone=len(sources) == 1)
        if failed is None:
            file = stack.enter_context(ResultFile(output)) if output is not None else None
            sink = ResultSink(as_json, logits, file)
            files = [replace(s, live=False) for s in sources]
            prepared = classifier(live=False)
            prepared.prepare(lambda line: say(line, quiet))
            _run_files(files, missing, prepared, save_video, sink, quiet)
            failed = sink.failed
    if failed:
        raise typer.Exit(1)


def _count_failed(errors: dict[str, AdaFocusError], only_live: str | None, *, alone: bool) -> int | None:
    """Return how many sources of a live run failed, or None where its only one turned out to be a file.

    Raises ``UsageError`` where that file was given an option that is for live sources.
    """
    ends = [error for error in errors.values() if isinstance(error, HasAnEndError)]
    if ends and alone:
        if only_live is not None:
            raise UsageError(f"{ends[0]}: {only_live} is for live sources")
        return None
    for error in ends:
        print_error(f"{error}: download it, or classify it alone", 1)
    return len(errors)


@dataclass(frozen=True)
class _Setting:
    """What runs a model and how: as options say, or a profile of the bundle."""

    backend: BackendName
    variant: str
    schedule: ScheduleName
    threads: int | None
    exit_set: str | None
    segments: int | None = None

    def checked(self, bundle: Bundle, profile: str | None, exit_confidence: float | None, quiet: bool) -> _Setting:
        """Return it, or a profile's setting. Raises ``UsageError`` for what contradicts itself or is not there."""
        check_threads(self.threads)
        check_exit(self.exit_set, exit_confidence, self.schedule)
        if profile is None:
            return self
        if exit_confidence is not None or self != _Setting(BackendName.AUTO, "auto", ScheduleName.AUTO, None, None):
            raise UsageError("--profile decides backend, variant, schedule, threads and exit: leave those out")
        found = bundle.profile(profile)
        known = [name.value for name in BackendName]
        if found.backend not in known:
            raise UsageError(
                f"{bundle.path}: profile {profile!r} wants the backend {found.backend!r}; there are: {known}"
            )
        say(f"profile {profile}: {found.demand}; measured on {found.device}", quiet)
        return _Setting(
            BackendName(found.backend), found.variant, ScheduleName(found.schedule),
            min(found.threads, os.cpu_count() or 1), found.exit or None, found.segments,
        )  # fmt: skip


def _only_live(live: LiveArguments, *, provisional: bool, show: bool) -> str | None:
    """Return the first option given that makes sources live: they are then seen window by window, files too."""
    given = {"provisional": provisional or None, "show": show or None, **asdict(live)}
    name = next((name for name, value in given.items() if value not in (None, False)), None)
    return None if name is None else "--" + name.replace("_", "-")


def _check_missing(
    sources: list[Source], live: LiveArguments | None, output: Path | None, *, as_json: bool, quiet: bool
) -> dict[Source, SourceError]:
    """Report paths that lead nowhere before the model is loaded, and return them; exit where there are no others.

    Where some sources are there, a run goes on with them: a live one has notices of its own for those that are not.
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
    save_video: Path | None,
    sink: ResultSink,
    quiet: bool,
) -> None:
    from adafocus_edge.runtime.annotate import save_annotated
    from adafocus_edge.system.addresses import conceal

    names = dict(zip(sources, video_names(sources), strict=True))
    with progress_for(quiet) as bars:
        clips = bars.add_task("classifying", total=len(sources), visible=len(sources) > 1)
        for source in sources:
            if source in missing:
                sink.failure(source.name, missing[source], said=True)
                bars.advance(clips)
                continue
            try:
                result, clip = classifier.classify(source)
            except AdaFocusError as error:
                sink.failure(source.name, error)
                bars.advance(clips)
                continue
            except Exception as error:  # whatever a strange file sets off, the others go on
                if is_debugging():
                    raise
                said = conceal(str(error), source.address)
                told = SourceError(f"{source.name}: cannot be read (unexpected {type(error).__name__}: {said})")
                sink.failure(source.name, told)
                bars.advance(clips)
                continue
            if clip.track_note:
                say(f"{source.name}: {clip.track_note}", quiet)
            sink.result(result)
            if save_video is not None:
                path = save_video if is_video_file(save_video) else save_video / names[source]
                frames = bars.add_task(f"writing {path.name}", total=clip.frame_count)
                try:
                    for count in save_annotated(clip, result, classifier.model.spec, path):
                        bars.update(frames, completed=count)
                except AdaFocusError as error:
                    sink.complaint(error)
                bars.remove_task(frames)
            bars.advance(clips)
