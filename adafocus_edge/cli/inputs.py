"""What verbs are given: sources, numbers and decoders; found and checked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adafocus_edge.cli.options import DEFAULT_MODEL_NOTE
from adafocus_edge.cli.outputs import say, say_notes
from adafocus_edge.errors import UsageError
from adafocus_edge.runtime.settings import DEFAULT_TOP_K

if TYPE_CHECKING:
    from pathlib import Path

    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.media.decode_modes import DecodeMode
    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.settings import Decoder, GraphOptions


def find_model(options: GraphOptions, bundle: Path | None, quiet: bool) -> Bundle:
    """Return the model of a run: that of a bundle, the default one, or one that the engine of the run serves.

    Its graphs are yet to be checked. Raises ``AdaFocusError``.
    """
    from adafocus_edge.bundle.store import default_bundle, open_bundle
    from adafocus_edge.runtime.served import served_model

    if (served := served_model(options, bundle)) is not None:
        return served
    if bundle is None:
        say(DEFAULT_MODEL_NOTE, quiet)
    return open_bundle(bundle or default_bundle())


def top_count(requested: int | None, bundle: Bundle) -> int:
    """Return how many classes to list. Raises ``UsageError`` for more than the bundle has."""
    if requested is not None and requested > bundle.spec.classes:
        raise UsageError(
            f"--top-k {requested}: must be at most {bundle.spec.classes}: the bundle has {bundle.spec.classes} classes"
        )
    return min(requested or DEFAULT_TOP_K, bundle.spec.classes)


def choose_decoder(requested: Decoder, model: LoadedModel, quiet: bool) -> Decoder:
    """Return the decoder to use. Raises ``AdaFocusError`` for ``gpu`` where the GPU cannot decode."""
    from adafocus_edge.backends.nvdec import send_library_output_to_stderr, usable_decoder

    usable = usable_decoder(requested, model, lambda text: say(text, quiet))
    if usable != "cpu":
        send_library_output_to_stderr()
    return usable


def find_inputs(
    arguments: list[str], quiet: bool, video_track: int | None, decode: DecodeMode = "exact"
) -> list[Source]:
    """Find sources, and print a note on files that were skipped."""
    from adafocus_edge.media.sources import find_sources, skipped_note

    skipped: list[str] = []
    sources = find_sources(arguments, skipped)
    if skipped:
        say_notes([skipped_note(skipped)], quiet)
    return [replace(source, video_track=video_track, decode=decode) for source in sources]
