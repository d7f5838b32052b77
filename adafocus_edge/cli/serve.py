"""`adafocus-edge serve`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from adafocus_edge.cli.config import Config, config_entries, config_file, with_config
from adafocus_edge.cli.inputs import choose_decoder, find_inputs, find_model, top_count
from adafocus_edge.cli.options import Debug, Quiet, with_options
from adafocus_edge.cli.outputs import check_targets, say
from adafocus_edge.errors import MissingExtraError
from adafocus_edge.live.settings import LiveArguments
from adafocus_edge.runtime.settings import RunOptions
from adafocus_edge.serve.options import ServeOptions, check_exposure
from adafocus_edge.system.log_lines import set_log_format
from adafocus_edge.system.options import OUTPUT, Option


@with_options
def serve(
    context: typer.Context,
    serving: ServeOptions,
    options: RunOptions,
    live: LiveArguments,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            help="Cameras, addresses of streams, or files; NAME=SOURCE names one. Without a source, the page takes "
            "uploads and browser cameras only.",
            show_default=False,
        ),
    ] = None,
    old_sources: Annotated[list[str] | None, typer.Option("--source", hidden=True)] = None,
    old_max_cameras: Annotated[int | None, typer.Option("--most-cameras", min=0, hidden=True)] = None,
    config: Config = None,
    as_json: Annotated[bool, Option("Print the page's address, and --status, as JSON.", OUTPUT, ("--json",))] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve a web page with live sources, uploads and the browser's own camera, an API, and metrics.

    `--source SOURCE` is deprecated, but still accepted.

    Examples:
      adafocus-edge serve 0 yard=rtsp://10.0.0.7/yard
      adafocus-edge serve clips/*.mp4 --host 0.0.0.0 --token "$TOKEN"
    """
    del debug, config
    set_log_format(live.log_format)
    try:
        from adafocus_edge.serve.session import serve_live
    except ModuleNotFoundError as error:
        raise MissingExtraError("`adafocus-edge serve`", "serve", error.name or "starlette") from None
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.bundle.store import check_graph_files
    from adafocus_edge.live.stream_config import paused_names, with_zones
    from adafocus_edge.runtime.classifier import Classifier
    from adafocus_edge.runtime.exits import requested_exits

    if old_max_cameras is not None:
        serving = replace(serving, max_cameras=old_max_cameras)
    check_exposure(serving)
    found = find_model(options, options.bundle, quiet)
    file = config_file(context)
    sources = find_inputs(_all_sources(context, source or [], old_sources or []), quiet, options.video_track)
    sources = with_zones(with_config(sources, file), live, paused_names(config_entries(file)))
    check_targets(options.output, None, found.path, sources, logits=False, as_json=True, live=True)
    top = top_count(options.top_k, found)
    variant = found.choose_variant(options.variant)
    exits = requested_exits(found, options, live=True)
    check_graph_files(found, variant)
    with load_model(
        found, options.variant, options.backend, options.threads,
        conv_search=options.conv_search, device=options.device,
    ) as model:  # fmt: skip
        say(f"backend: {model.backend}, variant: {model.variant}", quiet)
        decoder = choose_decoder(options.decoder, model, quiet)
        classifier = Classifier(model, found.classes, top_k=top, schedule="stream", exits=exits, decoder=decoder)
        serve_live(
            sources, classifier, live, serving, options.output, file, video_track=options.video_track, as_json=as_json,
            quiet=quiet,
        )  # fmt: skip


def _all_sources(context: typer.Context, given: list[str], by_option: list[str]) -> list[str]:
    """Return the sources by position and by ``--source``, which overrides those of a configuration file."""
    origin = context.get_parameter_source("source")
    if by_option and origin is not None and origin.name == "DEFAULT_MAP":
        return by_option
    return [*given, *by_option]
