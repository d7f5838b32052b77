"""Profiles of a bundle: settings that `tune` stored, in place of options."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from adafocus_edge.backends.registry import BACKENDS
from adafocus_edge.errors import UsageError
from adafocus_edge.runtime.settings import ClassifyOptions

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle, Profile

DECIDED = ("backend", "variant", "schedule", "threads", "exit_set", "exit_confidence")
"""Options that a profile sets."""


def apply_profile(options: ClassifyOptions, bundle: Bundle) -> tuple[ClassifyOptions, Profile | None]:
    """Return the options with those that their profile sets, and the profile; or the same options, and None.

    Raises ``UsageError`` for an unknown profile, for options that it sets, and for a backend that is not known.
    """
    if options.profile is None:
        return options, None
    defaults = ClassifyOptions()
    if any(getattr(options, name) != getattr(defaults, name) for name in DECIDED):
        raise UsageError(
            f"--profile {options.profile}: it sets backend, variant, schedule, threads and exit; omit those options"
        )
    profile = bundle.profile(options.profile)
    if profile.backend not in BACKENDS:
        raise UsageError(
            f"{bundle.path}: profile {options.profile!r} needs the backend {profile.backend!r}, which must be one of "
            f"{', '.join(BACKENDS)}"
        )
    settings = {
        "backend": profile.backend, "variant": profile.variant, "schedule": profile.schedule,
        "threads": min(profile.threads, os.cpu_count() or 1), "exit_set": profile.exit or None,
    }  # fmt: skip
    return replace(options, **settings), profile  # type: ignore[arg-type]
