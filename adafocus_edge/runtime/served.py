"""The model of a run that a Triton server computes: what `--engine triton://...` finds in place of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adafocus_edge.backends.base import CONV_SEARCH
from adafocus_edge.backends.triton.address import is_address, parse_address
from adafocus_edge.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from adafocus_edge.backends.triton.served import ServedBundle
    from adafocus_edge.runtime.settings import GraphOptions


def served_model(options: GraphOptions, bundle: Path | None) -> ServedBundle | None:
    """Return the model that a run's engine serves, or None if the run computes on this machine.

    Args:
        options: of the run.
        bundle: whose model the server must serve; None for any.

    Raises:
        UsageError: options contradict the engine, or the server serves another model.
        BackendError: no server answers, or it does not serve the model.
        MissingExtraError: Triton's client is not installed.
    """
    if options.engine is None or not is_address(options.engine):
        return None
    given = {name: getattr(options, name, None) for name in ("backend", "threads", "device", "profile", "conv_search")}
    for name, value in given.items():
        if value not in (None, "auto", CONV_SEARCH):
            option = name.replace("_", "-")
            raise UsageError(
                f"--{option}: is for models that run here; with --engine {options.engine} the server decides"
            )
    from adafocus_edge.backends.triton.runner import find_served
    from adafocus_edge.bundle.store import open_bundle

    own = None if bundle is None else open_bundle(bundle)
    return find_served(parse_address(options.engine), own, options.variant)
