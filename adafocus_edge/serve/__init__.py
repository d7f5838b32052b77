"""A web page and an API for a live run: current and past results, classification of uploads, browser cameras."""

from __future__ import annotations

from adafocus_edge.serve.app import create_app
from adafocus_edge.serve.options import ServeOptions, check_exposure
from adafocus_edge.serve.server import Server

__all__ = ["ServeOptions", "Server", "check_exposure", "create_app"]
