"""Take the manual's pictures of the page: a real server, real streams, and Chromium.

    python -m scripts.manual.screenshots [-o docs/assets]

Needs [serve], playwright (of [dev]) and Chromium. Streams are clips of `tests/fights`, played in real time.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parent.parent.parent
FIGHTS = ROOT / "tests" / "fights"
STREAMS = {
    "entrance": "fight/fi072.mp4", "yard": "no_fight/nofi018.mp4", "gate": "fight/fi013.mp4",
    "lobby": "no_fight/nofi096.mp4", "bus": "fight/fi100.mp4",
}  # fmt: skip
SEEN_S = 100
"""How long the streams run before the pictures are taken, so that the charts are full."""
COLOURS = 256


@contextmanager
def served(events: Path) -> Iterator[str]:
    """Run a server with an archive of events; yield its address."""
    streams = [f"{name}={FIGHTS / path}" for name, path in STREAMS.items()]
    rules = ["--event", "fight=0.8", "--events", str(events), "--pre-roll", "1", "--post-roll", "1"]
    command = [sys.executable, "-m", "adafocus_edge", "serve", *streams, "--loop", "--overlap", "2", *rules]
    with subprocess.Popen([*command, "--port", "0", "--json", "--quiet"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())["url"]
        finally:
            server.terminate()


@contextmanager
def opened(chromium: Browser, address: str, width: int, height: int, scheme: str) -> Iterator[Page]:
    """Open a page."""
    size = {"width": width, "height": height}
    context = chromium.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


def take(page: Page, path: Path) -> None:
    """Write a picture of a page."""
    page.wait_for_timeout(2000)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    print(path)


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "assets")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="The browser's path.")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as events,
        served(Path(events)) as address,
        sync_playwright() as tool,
        tool.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"]) as chromium,
    ):
        with opened(chromium, address, 1440, 900, "dark") as page:
            page.wait_for_timeout(1000 * SEEN_S)
            page.set_input_files("#file", str(FIGHTS / "fight" / "fi013.mp4"))
            page.wait_for_selector(".upload .steps button")
            chart = page.locator(".chart:visible").first.bounding_box()
            assert chart is not None
            page.mouse.move(chart["x"] + 0.8 * chart["width"], chart["y"] + chart["height"] / 2)
            take(page, options.output / "serve-desktop.png")
        with opened(chromium, address, 390, 844, "light") as page:
            take(page, options.output / "serve-phone.png")
        with opened(chromium, f"{address}events", 1280, 800, "light") as page:
            page.locator("#archive .open").nth(1).click()
            page.get_by_role("button", name="Right").click()
            page.keyboard.press("Escape")
            take(page, options.output / "events.png")


if __name__ == "__main__":
    main()
