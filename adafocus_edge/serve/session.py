"""The work of `adafocus-edge serve`: a live run and the server of its page."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.errors import UsageError
from adafocus_edge.live.run import LiveRun
from adafocus_edge.live.session import connected, live_options, open_archive, open_sinks, solved_glimpse_fps
from adafocus_edge.live.settings import LiveArguments, Printing
from adafocus_edge.live.terminal import print_line, run_log, status_shown
from adafocus_edge.serve.editor import Editor
from adafocus_edge.serve.server import Server
from adafocus_edge.system.interrupts import stop_on_signals
from adafocus_edge.system.memory import limit_malloc_arenas

if TYPE_CHECKING:
    from adafocus_edge.live.stream_config import ConfigFile
    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.classifier import Classifier
    from adafocus_edge.serve import ServeOptions


def serve_live(
    sources: list[Source],
    classifier: Classifier,
    arguments: LiveArguments,
    options: ServeOptions,
    output: Path | None,
    file: ConfigFile | None = None,
    *,
    video_track: int | None = None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run live sources and serve their page until a signal arrives or the duration is over.

    Args:
        sources: to read.
        classifier: of the run.
        arguments: as given.
        options: of the server.
        output: file for results; None for none.
        file: the configuration that the page shows, and changes if ``options.edit`` is set; None for none.
        video_track: the video track to read of sources that are added; None for the one with the main picture.
        as_json: whether the page's address is printed as JSON.
        quiet: only errors on stderr.

    Files are played in real time. A source that cannot be opened at first is retried like one that was lost. A source
    that ends or fails stays on the page.

    Raises:
        AdaFocusError: the options contradict each other, a sink cannot be opened, the port is in use, or the model
            failed.
    """
    limit_malloc_arenas()
    if options.edit and file is None:
        raise UsageError("--edit: needs --config FILE, which the page changes; an empty file will do")
    guests = options.max_cameras + options.max_uploads
    arguments = replace(arguments, realtime=True)
    live = live_options(arguments, solved_glimpse_fps(classifier), patient=True, max_guests=guests)
    spare = options.spare_sources if options.edit else 0
    live = replace(live, spare=spare)
    with ExitStack() as stack:
        log = stack.enter_context(run_log(arguments.log, quiet, arguments.rotate_mb, arguments.keep))
        stop = stack.enter_context(stop_on_signals())
        run = LiveRun(classifier, sources, live, report=log.info)
        archive = open_archive(stack, arguments)
        printing = Printing(quiet=quiet)
        sinks = open_sinks(stack, arguments, classifier, sources, log.warning, output, printing, archive, spare)
        editor = Editor(run, sources, arguments, live.capture, file, allowed=options.edit, video_track=video_track)
        with connected(run, sinks, log), Server(run, options, log.warning, archive, editor) as server:
            log.info(f"serving {server.url} (press Ctrl-C to stop)", extra={"event": "serving"})
            if as_json:
                print_line({"url": server.url})
            with status_shown(run, arguments.status, as_json, quiet):
                run.run(stop, arguments.duration)
