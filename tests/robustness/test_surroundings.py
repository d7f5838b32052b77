"""What a run may find around it: closed and full outputs, odd names and links, folders that are gone, tight limits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from adafocus_edge.errors import DataError, ShortageError
from adafocus_edge.live.terminal import run_log
from adafocus_edge.media.images import read_image
from adafocus_edge.media.video_file import VideoFile
from adafocus_edge.system import files
from adafocus_edge.system.files import write_text
from tests.conftest import ROOT, edge, one_line_error
from training.loading import fork_server
from training.prepare import PrepareOptions, prepare

FIGHTS = ROOT / "tests" / "fights"
CLIP = FIGHTS / "fight" / "fi013.mp4"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a Linux system's way")


def shell(line: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which ``"$@"`` is the command line with these arguments."""
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-m", "adafocus_edge", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.fixture
def evaluate(tmp_path: Path) -> list[object]:
    """An evaluation of two clips."""
    clips = tmp_path / "clips.csv"
    clips.write_text(f"video,class\n{CLIP},fight\n{FIGHTS}/no_fight/nofi018.mp4,no_fight\n")
    return ["evaluate", "--data", clips, "--quiet"]


# -- outputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("--help",), ("inspect",), ("classify", CLIP, "--json", "--quiet")])
def test_a_full_stdout_is_named(command):
    one_line_error(shell('"$@" > /dev/full', *command), 1, "stdout: No space left on device")


def test_what_stderr_cannot_take_ends_nothing():
    done = shell('"$@" 2> /dev/full', "classify", CLIP, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["source"] == str(CLIP)


def test_files_are_written_though_nobody_reads_stdout(evaluate, tmp_path):
    done = shell('"$@" | true', *evaluate, "--plot", tmp_path / "curve.png")
    assert done.stderr == ""
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_results_are_shown_though_a_file_cannot_be_written(evaluate, tmp_path):
    done = edge(*evaluate, "--json", "--output", "/dev/full")
    one_line_error(done, 1, "/dev/full: cannot be written")
    assert json.loads(done.stdout)["clips"] == 2
    (tmp_path / "folder.json").mkdir()  # what can be known before is reported before
    one_line_error(edge(*evaluate, "--json", "--output", tmp_path / "folder.json"), 2, "folder.json: is a folder")


@pytest.mark.parametrize(
    ("to", "live"),
    [("| cat >", ()), (">", ()), (">", ("--realtime", "--duration", "1.9"))],
    ids=["pipe", "file", "live"],
)
def test_stdout_by_its_name_is_the_same_stdout(to, live, tmp_path):
    file = tmp_path / "all.txt"
    done = shell(f'"$@" {to} {file}', "classify", CLIP, "--quiet", "--output", "/dev/stdout", *live)
    assert done.stderr == ""
    lines = file.read_text().splitlines()
    assert any(line.startswith("{") and "steps_used" in json.loads(line) for line in lines)
    assert any(line and not line.startswith("{") for line in lines)  # the text for people


def test_links_and_pipes_are_not_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "content"
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write_text(tmp_path / "pipe", "content")
    assert (tmp_path / "pipe").is_fifo()
    reader.join()
    assert read == ["content"]


def test_a_full_log_ends_nothing():
    with run_log(Path("/dev/full"), True, None, None) as log:
        log.warning("of no room")


def test_a_file_where_a_folder_of_videos_should_be_is_wrong_use(tmp_path):
    (tmp_path / "file").touch()
    one_line_error(
        edge("classify", CLIP, "--quiet", "--save-video", tmp_path / "file"),
        2,
        "must be a folder, or a file named .mp4",
    )


# -- names and places --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("classify", "x.mp4", "--quiet", "--output", "r.jsonl"), ("train", "dataset=custom", "data_dir=x")]
)
def test_a_current_folder_that_is_gone_is_told(command, tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell(f'cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec "$@"', *command)
    one_line_error(done, 1, "the current folder was deleted: run from another")


def test_links_in_a_circle_are_told(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    done = edge("classify", CLIP, "--quiet", "--output", tmp_path / "circle")
    one_line_error(done, 1, "circle: cannot be written (Too many levels of symbolic links)")


def test_a_name_that_is_too_long_is_told():
    done = edge("classify", "a" * 300, "--quiet")
    one_line_error(done, 1, "a: File name too long")


@pytest.mark.parametrize(("name", "words"), [(b"b\xff", "is not UTF-8"), (b"b\nc", "a line break")])
@pytest.mark.parametrize("of", ["class", "video"])
def test_names_that_no_list_can_hold_are_told_before_the_work(of, name, words, tmp_path):
    (tmp_path / "videos" / "other").mkdir(parents=True)
    folder, file = (name, b"clip") if of == "class" else (b"fight", name)
    os.mkdir(os.fsencode(tmp_path / "videos") + b"/" + folder)  # noqa: PTH102 - its name is bytes
    for place in (b"other/one", b"other/two", folder + b"/one", folder + b"/" + file):
        os.symlink(CLIP, os.fsencode(tmp_path / "videos") + b"/" + place + b".mp4")  # noqa: PTH211
    with pytest.raises(DataError, match=words):
        prepare(PrepareOptions(tmp_path / "videos", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_plots_need_no_window_toolkit():
    code = "from adafocus_edge.evaluation.plot import new_figure; new_figure(1, 1)"
    environment = {**os.environ, "MPLBACKEND": "of_another_world"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


# -- limits ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    handle = os.open("/dev/null", os.O_RDONLY)
    os.close(handle)
    resource.setrlimit(resource.RLIMIT_NOFILE, (handle, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_the_machine_lacks_is_no_fault_of_a_video(tmp_path):
    """It must not be left out of a data set, as a damaged one is."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "image.png")
    clip = VideoFile(str(CLIP))
    with no_more_files(), pytest.raises(ShortageError, match=r"fi013.mp4: .*short of .*\(Too many open files\)"):
        clip = VideoFile(str(CLIP))
    with no_more_files(), pytest.raises(ShortageError, match="image.png"):
        read_image(tmp_path / "image.png")
    with pytest.raises(ShortageError, match="Resource temporarily unavailable"):  # for want of a decoder's threads
        clip.reading_error(av.error.BlockingIOError(11, "Resource temporarily unavailable"))


def test_a_batch_that_finds_no_shared_memory_ends_a_training():
    """It was lost between a worker and the trainer, which waited for it for ever."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.lost_batch"],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"workers=1: .*unable to resize file .*use fewer workers", done.stdout)


# -- signals -----------------------------------------------------------------------------------------------------------

INTERRUPTED_IMPORT = """
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from adafocus_edge.__main__ import main
main()
"""
SWALLOWED = """
import os, signal, sys
import adafocus_edge.bundle.store

def swallows(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit:
        raise ImportError("initialization failed") from None

adafocus_edge.bundle.store.read_bundle = swallows
from adafocus_edge.cli.app import main
sys.argv = ["adafocus-edge", "inspect"]
main()
"""


@pytest.mark.parametrize(
    ("code", "status", "told"), [(INTERRUPTED_IMPORT, 130, "interrupted\n"), (SWALLOWED, 143, "")], ids=["int", "term"]
)
def test_a_signal_while_something_is_imported_is_told_as_one(code, status, told):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, told)


def test_ctrl_c_is_not_for_the_workers_of_a_training():
    """Those that were still importing PyTorch told of it at length."""
    fork_server()
    status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read_text()  # type: ignore[attr-defined]
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:"))
    assert int(blocked.split()[1], 16) & 1 << (signal.SIGINT - 1)


def test_a_terminal_that_closes_ends_a_run_as_it_should(tmp_path):
    """Else recordings and results would have no end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", "classify", str(CLIP), "--loop", "--quiet", "--json", "--record",
         str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - whatever ours is
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
    (video,) = tmp_path.glob("*.mp4")
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 0


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_a_source_that_gave_nothing_in_time_is_told():
    one_line_error(edge("classify", CLIP, "--realtime", "--duration", 0, "--quiet"), 1, "no frame received")


@pytest.mark.parametrize(
    "command",
    [
        ("classify", CLIP, "--smooth", 10**20),
        ("prepare", FIGHTS, "-o", "nowhere", "--size", 10**20),
        ("prepare", FIGHTS, "-o", "nowhere", "--fps", "inf"),
        ("evaluate", "--data", FIGHTS, "--segments", 10**20),
    ],
)
def test_numbers_beyond_all_bounds_are_wrong_use(command):
    one_line_error(edge(*command, "--quiet"), 2, command[-2], "less than or equal to")


def test_a_status_that_never_comes_is_no_error():
    done = edge("classify", CLIP, "--duration", 0.3, "--realtime", "--status", "inf")
    assert "Traceback" not in done.stderr


def test_a_draft_that_is_taken_away_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes that start at once, one tidies up before the other has locked its new folder."""
    made: list[Path] = []
    mkdtemp = files.tempfile.mkdtemp

    def taken_away(*arguments: Any) -> str:
        folder = mkdtemp(*arguments)
        made.append(Path(folder))
        if len(made) == 1:
            files.remove_left(tmp_path, "work-", "")
        return folder

    monkeypatch.setattr(files.tempfile, "mkdtemp", taken_away)
    with files.draft_folder(tmp_path, "work-", "") as folder:
        (folder / "clips").write_text("there")
    assert len(made) == 2
    assert list(tmp_path.iterdir()) == []
