"""What a live run prints for people: on a terminal, a line per source that is redrawn; in a pipe, a line per change."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from adafocus_edge.live.messages import Drops, Notice, Window
from adafocus_edge.live.settings import Printing
from adafocus_edge.live.terminal import NoticeLogger, Printer
from adafocus_edge.runtime.classifier import Guess, Result, Step
from tests.conftest import ROOT, edge
from tests.support.streams import command, need

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi072.mp4"
CALM = ROOT / "tests" / "fights" / "no_fight" / "nofi018.mp4"
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}"
CHANGE = re.compile(rf"{TIME}  (\w+)  (fight|no_fight) \d+%(, cut short)?")
EVENT = re.compile(rf"{TIME}  (\w+)  event \d+ (start|end): fight, up to \d+%")
COLUMNS = 100


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video in which a fight is followed by none."""
    need("ffmpeg")
    made = tmp_path_factory.mktemp("changing") / "changing.mp4"
    parts = ["-i", str(FIGHT), "-i", str(CALM), "-filter_complex", "concat=n=2:v=1:a=0,fps=30"]
    subprocess.run([str(command("ffmpeg")), "-nostdin", "-v", "error", *parts, str(made)], check=True, timeout=60)
    return made


def live(video: Path, *more: object) -> list[str]:
    """Words of a run of two sources in real time."""
    words = [f"both={video}", f"calm={CALM}", "--realtime", "--loop", "--glimpse-fps", 4, "--overlap", 4]
    return ["classify", *map(str, words), "--event", "fight=0.7", *map(str, more)]


def test_a_pipe_gets_one_short_line_per_change(changing: Path) -> None:
    done = edge(*live(changing, "--duration", 14))
    assert done.returncode == 0, done.stderr
    labels: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        found = CHANGE.fullmatch(line)
        assert found or EVENT.fullmatch(line), line
        if found:
            labels.setdefault(found[1], []).append(found[2])
    assert {"fight", "no_fight"} == set(labels["both"])
    for changes in labels.values():
        assert all(one != other for one, other in pairwise(changes))
    assert "event 1 start: fight" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_every_window_of_a_file_is_printed_as_a_line_with_its_time_in_the_file() -> None:
    done = edge("classify", f"clip={FIGHT}", "--glimpse-fps", 8)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 3
    assert all(re.fullmatch(r"\d+\.\d - \d+\.\d s  clip  fight \d+%(, cut short)?", line) for line in lines), lines


def test_json_has_every_window(changing: Path) -> None:
    done = edge(*live(changing, "--duration", 8, "--json"))
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("{") for line in done.stdout.splitlines())
    assert (
        sum('"source":"calm"' in line.replace(": ", ":") and "steps" in line for line in done.stdout.splitlines()) >= 3
    )


def on_a_terminal(words: list[str], rows: int = 30) -> str:
    """Run the command line on a terminal; return everything that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-m", "adafocus_edge", *words]
    with subprocess.Popen(started, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end was closed
                break
            if not part:
                break
            written += part
        assert process.wait(60) == 0, written.decode()
    os.close(ours)
    return written.decode()


def pieces(written: str) -> list[str]:
    """Return the lines of a terminal's output in the order in which they were written, without control codes."""
    return [piece.rstrip() for piece in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", written)) if piece]


def screen(written: str, rows: int = 30) -> list[str]:
    """Return the lines that a terminal shows at the end: carriage returns, line feeds, cursor up and erased lines."""
    lines, row, column = [""], 0, 0
    for code in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if code == "\r":
            column = 0
        elif code == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif code.startswith("\x1b"):
            if code.endswith("A"):
                row -= int(code[2:-1] or 1)
            elif code == "\x1b[2K":
                lines[row] = ""
        else:
            lines[row] = lines[row].ljust(column)[:column] + code + lines[row][column + len(code) :]
            column += len(code)
    return lines


def test_a_terminal_gets_a_line_per_source_that_is_redrawn_and_a_line_per_change(changing: Path) -> None:
    written = on_a_terminal(live(changing, "--duration", 12))
    rows = [line for line in pieces(written) if " fps, " in line]
    for name in ("both", "calm"):
        found = [
            row for row in rows if re.match(rf"{name} +\S+ \d+% +█+ +\d+\.\d fps, \d\.\d glimpsed, \d+ dropped", row)
        ]
        assert len(found) >= 3, rows
    shown = screen(written)
    assert max(map(len, rows)) <= COLUMNS
    assert not [line for line in shown if " fps, " in line], shown  # what was redrawn is gone at the end
    changes = [found for line in shown if (found := CHANGE.fullmatch(line.rstrip()))]
    assert {found[1] for found in changes} == {"both", "calm"}
    assert "glimpses, " in shown[-2]  # the summary


def test_more_sources_than_lines_are_counted(tmp_path: Path) -> None:
    words = [f"s{number}={CALM}" for number in range(5)]
    written = on_a_terminal(["classify", *words, "--realtime", "--duration", "4"], rows=5)
    assert "and 2 more sources" in written


# -- the parts ---------------------------------------------------------------------------------------------------------


def window(label: str, wall_s: float, smoothed: str | None = None) -> Window:
    guess, other = Guess(label, 0, 0.75), None if smoothed is None else (Guess(smoothed, 1, 0.5),)
    step = Step(0, 0, 0.0, (0, 0, 1), guess, np.zeros(1, np.float32))
    result = Result("yard", 1.0, 2.0, (guess,), (step,), False, 1.0, 1.0, "b", "v", (1.0,))
    return Window("yard", result, other, wall_s, False)


def test_a_label_is_printed_when_it_changes_and_a_smoothed_one_counts(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(Printing(), print, lambda: None)
    for number, (label, smoothed) in enumerate([("a", None), ("a", None), ("b", "a"), ("b", "b"), ("a", None)]):
        printer.enqueue(window(label, 1_790_000_000.0 + number, smoothed))
    printer.close()
    assert [line.split("  ")[1:] for line in capsys.readouterr().out.splitlines()] == [
        ["yard", "a 75%"], ["yard", "b 50%"], ["yard", "a 75%"]
    ]  # fmt: skip


def test_a_lost_source_is_logged_once_per_reason_and_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("test_terminal")
    logger = NoticeLogger(log)
    with caplog.at_level(logging.INFO, "test_terminal"):
        for message in (
            Notice("gate", "lost", "gate: no answer; retrying in 1 s", 0.0),
            Notice("gate", "lost", "gate: no answer; retrying in 2 s", 0.0),
            Notice("yard", "lost", "yard: no answer; retrying in 1 s", 0.0),
            Notice("gate", "lost", "gate: Connection refused; retrying in 4 s", 0.0),
            Drops("gate", "dropping", "gate: frames are dropped", 0.0),
            Notice("gate", "lost", "gate: Connection refused; retrying in 8 s", 0.0),
            Notice("gate", "reconnected", "gate: connected again", 0.0),
            Notice("gate", "lost", "gate: Connection refused; retrying in 1 s", 0.0),
        ):
            logger.enqueue(message)
        logger.close()
    assert caplog.messages == [
        "gate: no answer; retrying in 1 s",
        "yard: no answer; retrying in 1 s",
        "gate: Connection refused; retrying in 4 s",
        "gate: frames are dropped",
        "gate: connected again",
        "gate: Connection refused; retrying in 1 s",
    ]
