"""A server whose sources and event rules are those of a file that its page changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions, LiveArguments
from adafocus_edge.live.stream_config import ConfigFile, digest_of, paused_names, sources_of, with_zones
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve import ServeOptions, Server
from adafocus_edge.serve.editor import Editor
from adafocus_edge.serve.stream_file import StreamDocument
from tests.support.served import FIGHT, Answer, ask, get, running

TEXT = f"""# What my cameras see.
glimpse-fps = 4.0   # often enough
loop = true

[[source]]
name = "yard"   # behind the house
address = "{FIGHT}"

[[source]]
name = "dock"
address = "rtsp://operator:s3cret!@127.0.0.1:9/stream1?token=abc"  # the pier
paused = true

[[event]]
label = "fight"
threshold = 0.6  # not too low

[webhooks]  # of another program
left = "alone"
"""


@dataclass
class Set:
    server: Server
    run: LiveRun
    path: Path

    def get(self) -> dict[str, Any]:
        answer = get(self.server, "/api/config")
        assert answer.status == 200
        assert "s3cret" not in answer.body.decode()
        return dict(answer.json)

    def send(self, method: str, place: str, body: dict[str, Any] | None = None, **headers: str) -> Answer:
        """Send a change of the newest version, unless the body has another."""
        version = get(self.server, "/api/config", **headers).json["version"]
        if method == "DELETE":
            return ask(self.server, "DELETE", f"/api/config/{place}?version={version}", **headers)
        answer = ask(
            self.server, method, f"/api/config/{place}", json.dumps({"version": version, **(body or {})}), **headers
        )
        assert "s3cret" not in answer.body.decode("utf-8", "replace")
        return answer

    def states(self) -> dict[str, str]:
        return {source.name: source.state for source in self.run.status().sources}


@contextmanager
def configured(
    made: Classifier, path: Path | None, *, allowed: bool = True, token: str | None = None, **more: Any
) -> Iterator[Set]:
    entries, rules, file = (), (), None
    if path is not None:
        document = StreamDocument(path.name, path.read_bytes())
        entries, rules = tuple(document.sources()), tuple(document.rules())
        file = ConfigFile(path, digest_of(path.read_bytes()), entries, frozenset(more.pop("overridden", ())))
    capture = CaptureOptions(glimpse_fps=4, realtime=True, loop=True, patient=True)
    arguments = LiveArguments(event=[rule.text() for rule in rules], **more)
    sources = with_zones(sources_of(entries), arguments, paused_names(entries))
    run = LiveRun(made, sources, LiveOptions(capture, rules=rules, max_guests=4, spare=4))
    editor = Editor(run, sources, arguments, capture, file, allowed=allowed)
    with running(run), Server(run, ServeOptions(port=0, token=token), editor=editor) as server:
        yield Set(server, run, path or Path())
