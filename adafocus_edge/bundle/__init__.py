"""The bundle on disk: its manifest, its variants, and the engines beside its graphs.

The names in ``__all__`` are imported when they are first used: the table of variants needs neither NumPy nor msgspec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle as Bundle
    from adafocus_edge.bundle.store import default_bundle as default_bundle
    from adafocus_edge.bundle.store import read_bundle as read_bundle

__all__ = ["Bundle", "default_bundle", "read_bundle"]
_HOMES = {"Bundle": "manifest", "default_bundle": "store", "read_bundle": "store"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
