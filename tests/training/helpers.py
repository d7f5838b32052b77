"""What tests of training share: options of a tiny model, and real clips prepared with frames."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import ROOT, edge

FIGHTS = ROOT / "tests" / "fights"
TINY = (
    "dataset=custom preset=edge input_size=64 glance_size=64 patch_size=32 action_dim=9 hidden_dim=16 "
    "hidden_state_dim=16 batch_size=4 workers=0 glancer_weights=random focuser_weights=random"
).split()
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def prepare_fights(folder: Path, size: int) -> Path:
    """Prepare real clips of both classes, with frames of this short side, into a folder; return it."""
    done = edge(
        "prepare", FIGHTS, "-o", folder, "--groups", FIGHTS / "sources.csv", "--val-share", 0.3, "--size", size
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def write_lists(folder: Path) -> None:
    """Write ``train.csv`` (8 real clips) and ``val.csv`` (4 others) into a folder."""
    videos = sorted(FIGHTS.glob("*/*.mp4"))
    for name, chosen in (("train", videos[:4] + videos[-4:]), ("val", videos[4:8])):
        rows = [f"{video},{video.parent.name}\n" for video in chosen]
        (folder / f"{name}.csv").write_text("video,class\n" + "".join(rows))
