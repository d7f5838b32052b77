"""A web page and an API for a live run: what is seen now, what was seen, and files and cameras to look at as well."""

from __future__ import annotations

from adafocus_edge.serve.app import create_app
from adafocus_edge.serve.options import ServeOptions, check_exposure
from adafocus_edge.serve.server import Server

__all__ = ["ServeOptions", "Server", "check_exposure", "create_app"]
