"""A web page and an API for a live run: current and past results, classification of uploads, browser cameras.

The names in ``__all__`` are imported when they are first used: the options need no web server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adafocus_edge.serve.app import create_app
    from adafocus_edge.serve.options import ServeOptions, check_exposure
    from adafocus_edge.serve.server import Server

__all__ = ["ServeOptions", "Server", "check_exposure", "create_app"]
_HOMES = {"ServeOptions": "options", "Server": "server", "check_exposure": "options", "create_app": "app"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
