"""The exit thresholds of a run, from a bundle's sets or from a confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adafocus_edge.errors import UsageError
from adafocus_edge.model.exits import ORDERS, ExitThresholds, find_exits

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.runtime.settings import RunOptions


def requested_exits(bundle: Bundle, options: RunOptions, *, live: bool) -> ExitThresholds | None:
    """Return the thresholds that the options name, or None for no early exit. Raises ``UsageError``."""
    if options.exit_set is not None:
        return exits_named(bundle, options.exit_set, live=live)
    if options.exit_confidence is None:
        return None
    return ExitThresholds.at(options.exit_confidence, bundle.spec.segments)


def has_live_exits(bundle: Bundle, name: str) -> bool:
    """Whether a bundle's threshold set has thresholds for live sources."""
    sets = bundle.manifest.thresholds.get(name.partition("/")[0], ())
    return any(thresholds.order == "live" for thresholds in sets)


def exits_named(bundle: Bundle, name: str, *, live: bool) -> ExitThresholds:
    """Return a bundle's thresholds by ``SET`` or ``SET/ORDER``, for live sources or for files.

    Raises ``UsageError`` for an unknown set, or an order that does not suit the source.
    """
    name, _, asked = name.partition("/")
    orders = [order for order in ORDERS if (order == "live") == live and asked in ("", order)]
    if not orders:
        raise UsageError(
            f"--exit {name}/{asked}: files are seen in the order clip or coarse-to-fine, live sources in the order live"
        )
    try:
        return find_exits(bundle.manifest.thresholds, name, orders)
    except KeyError as error:
        raise UsageError(f"{bundle.name}: {error.args[0]}") from None
