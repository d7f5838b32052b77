"""Time stamps, all of them in UTC: of reports, of live messages, of file names."""

from __future__ import annotations

from datetime import datetime, timezone


def iso_now() -> str:
    """Return the current time as ISO 8601, to the second: ``2026-05-17T08:30:00+00:00``."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def iso(wall_s: float) -> str:
    """Return a time, in seconds since 1970, as ISO 8601, to the millisecond: ``2026-05-17T08:30:00.000Z``."""
    return datetime.fromtimestamp(wall_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def stamp(wall_s: float) -> str:
    """Return a time, in seconds since 1970, as file names contain it: ``YYYYmmdd-HHMMSS``."""
    return datetime.fromtimestamp(wall_s, timezone.utc).strftime("%Y%m%d-%H%M%S")
