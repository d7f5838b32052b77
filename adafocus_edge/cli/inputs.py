"""What verbs are given: sources, numbers and decoders; found and checked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adafocus_edge.cli.outputs import say, say_notes
from adafocus_edge.errors import UsageError
from adafocus_edge.runtime.settings import DEFAULT_TOP_K

if TYPE_CHECKING:
    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.media.sources import Source
    from adafocus_edge.runtime.settings import Decoder


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


def find_inputs(arguments: list[str], quiet: bool, video_track: int | None) -> list[Source]:
    """Find sources, and print a note on files that were skipped."""
    from adafocus_edge.media.sources import find_sources, skipped_note

    skipped: list[str] = []
    sources = find_sources(arguments, skipped)
    if skipped:
        say_notes([skipped_note(skipped)], quiet)
    return [replace(source, video_track=video_track) for source in sources]
