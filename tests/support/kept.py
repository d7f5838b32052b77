"""An archive of events that holds real clips and pictures, as tests of its API and its page share it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from adafocus_edge.live.event_store import EventStore, StoredEvent
from adafocus_edge.serve import Server
from tests.conftest import ROOT
from tests.support.live_parts import WALL_S
from tests.support.served import ODD_NAME

CLIP = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
PICTURE = next((ROOT / "tests" / "golden" / "actnet96").glob("*.jpg"))
COUNT = 40


@dataclass
class Kept:
    server: Server
    store: EventStore

    def key(self, number: int) -> str:
        return f"20231114-2213{number:02d}-é 1-fight-{number}".replace(" ", "_")


def fill(kept: Kept) -> None:
    """Put events into the archive: real clips, of two sources, one of a name that does harm unless it is escaped."""
    for number in range(COUNT):
        clip, picture = kept.store.path(f"e{number}.mp4"), kept.store.path(f"e{number}.jpg")
        shutil.copy(CLIP, clip)
        shutil.copy(PICTURE, picture)
        kept.store.add(
            StoredEvent(
                kept.key(number), ODD_NAME if number % 2 else "gate", "fight", WALL_S + number,
                None if number == COUNT - 1 else WALL_S + number + 5, 0.6 + number / 100, clip=clip.name, clip_s=2.0,
                clip_from=WALL_S, picture=picture.name, bytes=clip.stat().st_size + picture.stat().st_size,
            )
        )  # fmt: skip
