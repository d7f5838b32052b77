"""The window on the screen, on a real X server without a monitor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adafocus_edge.errors import AdaFocusError, MissingExtraError
from adafocus_edge.live.messages import LiveFrame, Notice, ProvisionalResult
from adafocus_edge.live.sinks.window import Screen
from tests.support.live_parts import SPEC, event, live_frame, look, notice, picture, until, window

ROOT = Path(__file__).parents[2]
pygame = pytest.importorskip("pygame")


@pytest.fixture(scope="module")
def display():
    """A display of 1280 x 800."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs an X server: apt-get install xvfb")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp", "-noreset"]
    with subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL) as server:
        os.close(write)
        with os.fdopen(read) as number:
            name = f":{number.readline().strip()}"
        yield name
        server.terminate()


@pytest.fixture
def told():
    return []


@pytest.fixture
def screen(display, told, monkeypatch):
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    made = Screen(SPEC, told.append)
    yield made
    made.close()
    pygame.display.quit()


def press(key: int) -> None:
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))


def run(screen, folder, *acts) -> None:
    """Run the loop in this thread, the main one, while another one acts; that fails the test if an act does."""
    stop = threading.Event()
    failures = []

    def act():
        try:
            for step in acts:
                step()
        except BaseException as failure:
            failures.append(failure)
        finally:
            stop.set()

    thread = threading.Thread(target=act)
    thread.start()
    screen.loop(stop, folder)
    thread.join()
    if failures:
        raise failures[0]


def drawn(screen, count: int):
    return lambda: until(lambda: screen.handled >= count)


def caption() -> str:
    return "".join(pygame.display.get_caption()[:1])  # empty until there is a window


def test_the_newest_frame_is_shown_with_its_look(screen, tmp_path, told):
    assert screen.wants == (LiveFrame, ProvisionalResult, Notice)
    seen = {}

    def enqueue():
        for index in range(5):
            frame = live_frame(index=index)
            screen.enqueue(frame)
        screen.enqueue(look(frame))
        screen.enqueue(window())
        screen.enqueue(event())

    def keep():
        until(lambda: caption() == "AdaFocus Edge: camera 0")
        time.sleep(0.2)
        seen["picture"] = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)

    enqueue()
    assert screen.waiting == 1
    run(screen, tmp_path, drawn(screen, 1), keep)
    assert (screen.handled, screen.dropped, screen.failed, screen.waiting, told) == (1, 4, 0, 0, [])
    assert seen["picture"].shape == (480, 640, 3)
    colours = np.abs(seen["picture"].astype(int) - (255, 176, 0)).sum(axis=2)
    assert (colours < 10).sum() > 500, "the patch, the label and the bar"
    bright = np.argwhere((seen["picture"][60] == (200, 220, 240)).all(axis=1))
    assert bright.min() == 4 * 8, "the last frame's square"
    assert not pygame.display.get_init()
    screen.enqueue(live_frame())
    assert screen.waiting == 0, "a closed screen takes nothing"


def test_what_was_seen_before_a_loss_is_faded(screen, tmp_path):
    shots = []

    def colours(colour):
        shown = pygame.surfarray.array3d(pygame.display.get_surface()).astype(int)
        return int((np.abs(shown - colour).sum(axis=2) < 10).sum())

    def keep():
        time.sleep(0.3)
        shots.append((colours((255, 176, 0)), colours((150, 154, 160))))

    frame = live_frame()
    screen.enqueue(frame)
    screen.enqueue(look(frame))

    def lose():
        screen.enqueue(notice("lost"))

    def come_back():
        again = live_frame(index=1)
        screen.enqueue(again)
        screen.enqueue(look(again))

    run(screen, tmp_path, drawn(screen, 1), keep, lose, keep, come_back, drawn(screen, 2), keep)
    assert [bright > 500 and grey < 500 for bright, grey in shots] == [True, False, True]
    assert shots[1][0] == 0
    assert shots[1][1] > 500


def test_a_large_picture_fits_and_a_resized_window_keeps_its_shape(screen, tmp_path):
    sizes = []

    def resize():
        sizes.append(pygame.display.get_window_size())
        pygame.event.post(pygame.event.Event(pygame.WINDOWEXPOSED))
        screen.enqueue(live_frame(index=1, size=(2160, 3840)))

    def snap():
        surface = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        sizes.append(surface.shape)

    screen.enqueue(live_frame(size=(2160, 3840)))
    run(screen, tmp_path, drawn(screen, 1), resize, drawn(screen, 2), snap)
    assert sizes == [(1024, 576), (576, 1024, 3)]


def test_keys_end_the_run(screen, tmp_path):
    for key in (pygame.K_q, pygame.K_ESCAPE):
        one = Screen(SPEC, print)
        stop = threading.Event()
        one.enqueue(live_frame())
        press(key)
        one.loop(stop, tmp_path)
        assert stop.is_set()
    one = Screen(SPEC, print)
    stop = threading.Event()
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    one.loop(stop, tmp_path)
    assert stop.is_set()


def test_close_ends_the_loop_but_not_the_run(screen, tmp_path):
    stop = threading.Event()
    timer = threading.Timer(0.2, screen.close)
    timer.start()
    screen.loop(stop, tmp_path)
    timer.join()
    assert not stop.is_set()


def test_space_holds_the_picture_and_the_run_goes_on(screen, tmp_path):
    def hold():
        press(pygame.K_SPACE)
        until(lambda: caption().endswith(", paused"))
        for index in range(1, 20):
            screen.enqueue(live_frame(index=index))
        time.sleep(0.3)
        assert screen.handled == 1
        assert screen.dropped == 18
        press(pygame.K_SPACE)

    screen.enqueue(live_frame())
    run(screen, tmp_path, drawn(screen, 1), hold, drawn(screen, 2))
    assert screen._shown.index == 19


def test_s_saves_the_picture_in_full_and_says_where(screen, tmp_path):
    folder = tmp_path / "new" / "shots"
    frame = live_frame("rtsp://***@10.0.0.1/a?key=t0ken", 7, 3.0, size=(1080, 1920))

    def save():
        press(pygame.K_s)
        until(lambda: "saved" in caption())

    screen.enqueue(frame)
    screen.enqueue(look(frame))
    run(screen, folder, drawn(screen, 1), save)
    (path,) = folder.iterdir()
    assert path.name.startswith("rtsp_10.0.0.1_a-")
    assert path.name.endswith("-20231114-221323-7.png")
    with Image.open(path) as image:
        assert image.size == (1920, 1080)
        assert (np.abs(np.asarray(image).astype(int) - (255, 176, 0)).sum(axis=2) < 10).sum() > 500


def test_a_picture_that_cannot_be_saved_is_said_in_the_title(screen, tmp_path):
    (tmp_path / "file").touch()

    def save(word):
        def act():
            press(pygame.K_s)
            until(lambda: word in caption())

        return act

    run(
        screen, tmp_path / "file" / "below",
        save("nothing to save yet"), lambda: screen.enqueue(live_frame()), drawn(screen, 1), save("cannot be written"),
    )  # fmt: skip


def test_tab_and_digits_choose_the_source(screen, tmp_path):
    def key(pressed, source):
        def act():
            press(pressed)
            until(lambda: caption() == f"AdaFocus Edge: {source} of 3)")

        return act

    for source in "abc":
        screen.enqueue(live_frame(source))
    run(
        screen, tmp_path, drawn(screen, 1), key(pygame.K_TAB, "b (2"), key(pygame.K_TAB, "c (3"),
        key(pygame.K_TAB, "a (1"), key(pygame.K_3, "c (3"), key(pygame.K_KP_2, "b (2"), key(pygame.K_9, "b (2"),
    )  # fmt: skip
    assert screen.handled >= 3


def test_a_frame_that_cannot_be_decoded_is_told_once(screen, tmp_path, told):
    def broken():
        raise ValueError("no picture")

    def enqueue():
        for index in range(5):
            screen.enqueue(live_frame(index=index, to_rgb=broken))
            until(lambda count=index + 1: screen.failed == count)

    run(screen, tmp_path, enqueue, lambda: screen.enqueue(live_frame()), drawn(screen, 1))
    assert told == ["screen: no picture"]


SCRIPT = """
import sys, threading, time
from pathlib import Path
from adafocus_edge.live.sinks.window import Screen
from tests.support.live_parts import SPEC, live_frame, look
screen = Screen(SPEC, print)
stop = threading.Event()
def run():
    index = 0
    while not stop.is_set():
        frame = live_frame(("gate", "yard")[index % 2], index, index / 20)
        screen.enqueue(frame)
        screen.enqueue(look(frame, index // 2 % 16))
        index += 1
        time.sleep(0.02)
thread = threading.Thread(target=run)
thread.start()
screen.loop(stop, Path(sys.argv[1]))
thread.join()
print("ended", screen.handled > 1)
"""


def test_real_keys_from_the_x_server(display, tmp_path):
    if shutil.which("xdotool") is None:
        pytest.skip("needs xdotool: apt-get install xdotool")
    shown = {**os.environ, "DISPLAY": display}

    def xdo(*arguments):
        return subprocess.run(
            ["xdotool", *arguments], env=shown, capture_output=True, text=True, check=False, timeout=60
        )

    def windows():
        return xdo("search", "--pid", str(process.pid)).stdout.split()

    def title():
        return "".join(xdo("getwindowname", one).stdout for one in windows())

    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path], cwd=ROOT, env=shown, stdout=subprocess.PIPE)
    try:
        until(lambda: "gate" in title())
        (one,) = windows()
        xdo("windowfocus", one)
        until(lambda: xdo("getwindowfocus").stdout.split() == [one])
        xdo("windowsize", one, "900", "500")
        xdo("key", "Tab")
        until(lambda: "yard" in title())
        xdo("key", "s")
        until(lambda: "saved" in title())
        if keep := os.environ.get("ADAFOCUS_EDGE_KEEP_SHOT"):  # for a look at it
            time.sleep(0.5)
            subprocess.run(["import", "-window", "root", keep], env=shown, check=True)
        xdo("key", "Escape")
        assert process.communicate(timeout=30)[0] == b"ended True\n"
    finally:
        process.kill()
        process.communicate()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("yard-")


TRY = """
from adafocus_edge.live.sinks.window import Screen
try:
    Screen(None, print)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_a_screen_the_reason_is_said():
    plain = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    for more, text in (
        ({}, "neither DISPLAY nor WAYLAND_DISPLAY is set"),
        ({"DISPLAY": ":9999"}, "x11 not available"),
        ({"SDL_VIDEODRIVER": "nonsense"}, "nonsense not available"),
    ):
        command = [sys.executable, "-c", TRY]
        done = subprocess.run(command, cwd=ROOT, env=plain | more, capture_output=True, text=True, check=True)
        assert done.stdout == (
            f"AdaFocusError no screen for a window ({text}): run without --show, or use adafocus-edge serve\n"
        )
        assert done.stderr == ""


def test_without_pygame_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(MissingExtraError, match=r"pygame-ce.*adafocus-edge\[show\]"):
        Screen(SPEC, print)


def test_a_window_that_cannot_open_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    one = Screen(SPEC, print)
    pygame.display.quit()  # as when the X server goes away meanwhile
    monkeypatch.setenv("SDL_VIDEODRIVER", "nonsense")
    with pytest.raises(AdaFocusError, match="no window can be opened"):
        one.loop(threading.Event(), tmp_path)
    assert picture().shape == (480, 640, 3)
