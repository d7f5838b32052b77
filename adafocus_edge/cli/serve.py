"""`adafocus-edge serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from adafocus_edge.backends.base import CONV_SEARCH
from adafocus_edge.cli.inputs import check_exit, check_threads, choose_decoder, exits_asked, find_inputs, top_count
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
    Quiet,
    ResultsOutput,
    RunBundle,
    ScheduleName,
    Threads,
    Variant,
    VideoTrack,
    with_live_options,
)
from adafocus_edge.cli.outputs import check_targets, say
from adafocus_edge.errors import MissingExtraError
from adafocus_edge.live.settings import LiveArguments

LOCALHOST = "127.0.0.1"


@with_live_options
def serve(
    source: Annotated[
        list[str] | None,
        typer.Option(help="A camera, an address, a file, or NAME=ADDRESS; may be given again. [default: none yet]"),
    ] = None,
    bundle: RunBundle = None,
    host: Annotated[str, typer.Option(help="Where to listen; all but this machine itself needs --token.")] = LOCALHOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for one that is free.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ADAFOCUS_EDGE_TOKEN", show_default=False, help="What visitors must know, 16 or more signs."
        ),
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest file that may be uploaded.")] = 256,
    most_cameras: Annotated[int, typer.Option(min=0, help="Browsers' cameras at a time.")] = 4,
    backend: Backend = BackendName.AUTO,
    variant: Variant = "auto",
    decoder: Decoder = DecoderName.CPU,
    video_track: VideoTrack = None,
    threads: Threads = None,
    conv_search: ConvSearchName = CONV_SEARCH,
    top_k: Annotated[int | None, typer.Option(min=1, help="Classes to show. [default: 5]")] = None,
    exit_confidence: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Stop looking in a window once its best class is this sure.")
    ] = None,
    exit_set: Exit = None,
    output: ResultsOutput = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's address, and --status, as JSON.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    live: LiveArguments,
) -> None:
    """Serve a web page with live sources, uploads and the browser's own camera; an API and metrics, too."""
    del debug, config
    try:
        from adafocus_edge.serve import ServeOptions, check_exposure
    except ModuleNotFoundError as error:
        raise MissingExtraError("`adafocus-edge serve`", "serve", error.name or "starlette") from None
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.bundle.store import check_graph_files, default_bundle, open_bundle
    from adafocus_edge.runtime.classifier import Classifier
    from adafocus_edge.serve.session import serve_live

    options = ServeOptions(host=host, port=port, token=token, max_upload_mb=max_upload_mb, max_cameras=most_cameras)
    check_exposure(options)
    check_threads(threads)
    check_exit(exit_set, exit_confidence, ScheduleName.STREAM)
    if bundle is None:
        bundle = default_bundle()
        say(DEFAULT_MODEL_NOTE, quiet)
    sources = find_inputs(source or [], quiet, video_track)
    check_targets(output, None, bundle, sources, logits=False, as_json=True)
    found = open_bundle(bundle)
    top = top_count(top_k, found)
    found.choose_variant(variant)
    exits_asked(found, exit_set, exit_confidence, live=True)
    check_graph_files(found)
    with load_model(found, variant, backend.value, threads, conv_search=conv_search) as model:
        say(f"backend: {model.backend}, variant: {model.variant}", quiet)
        exits = exits_asked(found, exit_set, exit_confidence, live=True)
        decodes = choose_decoder(decoder, model, quiet)
        classifier = Classifier(model, found.classes, top_k=top, schedule="stream", exits=exits, decoder=decodes)
        serve_live(sources, classifier, live, options, output, as_json=as_json, quiet=quiet)
