"""Times of day as results, files and pictures show them: always in UTC."""

from __future__ import annotations

from datetime import datetime, timezone


def iso(wall_s: float) -> str:
    """Return a time, in seconds since 1970, as ISO 8601 in UTC, to the millisecond: ``2023-11-14T22:13:20.000Z``."""
    return _utc(wall_s).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_now() -> str:
    """Return the present time as ISO 8601 in UTC, to the second, as reports hold it: ``2023-11-14T22:13:20+00:00``."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def file_stamp(wall_s: float) -> str:
    """Return a time, in seconds since 1970, as names of files hold it: ``20231114-221320``."""
    return _utc(wall_s).strftime("%Y%m%d-%H%M%S")


def date_and_time(wall_s: float) -> str:
    """Return a time, in seconds since 1970, as pictures show it: ``2023-11-14 22:13:20 UTC``."""
    return _utc(wall_s).strftime("%Y-%m-%d %H:%M:%S UTC")


def time_of_day(wall_s: float) -> str:
    """Return a time, in seconds since 1970, without its date: ``22:13:20 UTC``."""
    return _utc(wall_s).strftime("%H:%M:%S UTC")


def _utc(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, timezone.utc)
