"""Results beside a recording: subtitles for players, and JSON lines from which the patch can be drawn later."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from adafocus_edge.live.messages import Event, ProvisionalResult, Window
from adafocus_edge.system.files import append_whole
from adafocus_edge.system.json_lines import to_line
from adafocus_edge.system.timestamps import iso

if TYPE_CHECKING:
    from pathlib import Path

    from adafocus_edge.live.messages import CopiedVideo
    from adafocus_edge.model.spec import ModelSpec

Result = ProvisionalResult | Window | Event

SUBTITLES, RECORDS = ".vtt", ".jsonl"
"""Endings of both files."""
MAX_CUE_S = 2.0
"""A subtitle is shown until the next one, at most for this long."""
MIN_CUE_S = 0.001
"""Subtitles with the same start are not allowed."""


class ResultTrack:
    """The results of one recording. Both files are whole after every call.

    Args:
        recording: the MP4 file beside which they lie.
        source: its name.
        video: that is recorded.
        wall_s: when the recording begins, in seconds since 1970.
        spec: of the model, for the place of a patch in the picture.
    """

    def __init__(self, recording: Path, source: str, video: CopiedVideo, wall_s: float, spec: ModelSpec) -> None:
        self._subtitles, self._records = recording.with_suffix(SUBTITLES), recording.with_suffix(RECORDS)
        self._cue: tuple[float, str] | None = None
        self._new = [
            {
                "recording": recording.name,
                "source": source,
                "at": iso(wall_s),
                "codec": video.codec,
                "width": video.width,
                "height": video.height,
                "frame_size": spec.frame_size,
                "fit": spec.fit,
            }
        ]

    def add(self, results: list[tuple[Result, float]]) -> None:
        """Append results, each with its time in the recording in seconds, in order. Raises ``OSError``."""
        entries: list[dict[str, Any]] = [
            {**result.to_json(), "media_s": round(media_s, 4)} for result, media_s in results
        ]
        self._append_records(entries)
        cues = []
        for result, media_s in results:
            if isinstance(result, ProvisionalResult):
                cues += self._next_cue(media_s)
                best = result.top[0]
                self._cue = media_s, f"{best.label} {best.confidence:.0%}"
        self._append_subtitles(cues)

    def close(self) -> None:
        """Write the last subtitle; further results may follow. Raises ``OSError``."""
        self._append_records([])
        self._append_subtitles(self._next_cue(None))

    def _next_cue(self, next_s: float | None) -> list[str]:
        """Return the cue that waits, which ends when the next one begins."""
        if self._cue is None:
            return []
        (begins_s, text), self._cue = self._cue, None
        ends_s = begins_s + MAX_CUE_S if next_s is None else min(next_s, begins_s + MAX_CUE_S)
        ends_s = max(ends_s, begins_s + MIN_CUE_S)
        return [f"{_shown(begins_s)} --> {_shown(ends_s)}\n{_escaped(text)}\n\n"]

    def _append_records(self, entries: list[dict[str, Any]]) -> None:
        lines = [to_line(entry) + "\n" for entry in self._new + entries]
        if lines:
            _append(self._records, "".join(lines))
        self._new = []

    def _append_subtitles(self, cues: list[str]) -> None:
        begin = "" if self._subtitles.exists() else "WEBVTT\n\n"
        if begin or cues:
            _append(self._subtitles, begin + "".join(cues))


def _append(path: Path, text: str) -> None:
    with path.open("ab", buffering=0) as file:
        # Characters that UTF-8 cannot encode (odd bytes of a file's name) become escapes that JSON decodes.
        append_whole(file, text.encode(errors="backslashreplace"), os.fstat(file.fileno()).st_size)


def _shown(seconds: float) -> str:
    """Return a time as WebVTT has it: ``01:02:03.456``."""
    milliseconds = max(0, round(seconds * 1000))
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


def _escaped(text: str) -> str:
    """Return text without what WebVTT reads as markup, and without the arrow of its times."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
