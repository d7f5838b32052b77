"""A file from an HTTP server, in the part that is asked for, as a player reads it."""

from __future__ import annotations

import contextlib
from http.server import BaseHTTPRequestHandler


def send_part(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Answer a request for a file, from the byte that it names to the end."""
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(content[start:])
