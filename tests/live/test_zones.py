"""Regions and masks in live runs: what the model, viewers and files see of a source that has them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from adafocus_edge.errors import UsageError
from adafocus_edge.live.messages import LiveFrame, Notice, ProvisionalResult, Window
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions, LiveArguments
from adafocus_edge.live.stream_config import with_zones
from adafocus_edge.media.sources import Source, find_sources
from adafocus_edge.media.zones import Zones
from adafocus_edge.runtime.classifier import Classifier
from tests.backends.test_nvdec import bundle, codec, model  # noqa: F401 - fixtures
from tests.conftest import ROOT, edge, one_line_error
from tests.live.test_live import Kept, classifier_of

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi072.mp4"
LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
RIGHT = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))
MASK = "0,0 0.5,0 0.5,1 0,1"


class Frames(Kept):
    wants = (*Kept.wants, LiveFrame)


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    from adafocus_edge.bundle.store import default_bundle

    with classifier_of(default_bundle()) as made:
        yield made


def seen_of(made: Classifier, source: Source) -> Frames:
    kept = Frames()
    run = LiveRun(made, [source], LiveOptions(CaptureOptions(glimpse_fps=8)), [kept])
    run.run(threading.Event())
    kept.close()
    assert run.errors == {}
    return kept


def logits(kept: Kept) -> np.ndarray:
    windows = kept.of(Window)
    assert windows
    return np.stack([step.logits for window in windows for step in window.result.steps])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of frames, as they are: equal in the left half, and in the right half one stands still."""
    folders = tmp_path_factory.mktemp("moves"), tmp_path_factory.mktemp("rests")
    with av.open(str(FIGHT)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:60]
    for number, frame in enumerate(frames):
        still = frame.copy()
        still[:, frame.shape[1] // 2 :] = frames[0][:, frame.shape[1] // 2 :]
        for folder, picture in zip(folders, (frame, still), strict=True):
            Image.fromarray(picture).save(folder / f"image_{number:05d}.png")
    return folders


def test_what_moves_outside_the_regions_changes_nothing_at_all(classifier: Classifier, pair: Any) -> None:
    moves, rests = (Source("yard", str(folder)) for folder in pair)
    open_moves, open_rests = (logits(seen_of(classifier, source)) for source in (moves, rests))
    assert np.abs(open_moves - open_rests).max() > 0.01  # the right half matters
    region = Zones(regions=(LEFT,))
    kept = [seen_of(classifier, replace(source, zones=region)) for source in (moves, rests)]
    assert np.array_equal(*map(logits, kept))
    # Viewers see the whole picture.
    last = kept[0].of(LiveFrame)[-1].to_rgb()
    assert np.array_equal(last, np.asarray(Image.open(sorted(pair[0].iterdir())[last_index(kept[0])])))
    # A region on the other side lets that motion through, and so does the whole picture as a region.
    other = [logits(seen_of(classifier, replace(one, zones=Zones(regions=(RIGHT,))))) for one in (moves, rests)]
    assert not np.array_equal(*other)
    whole = Zones(regions=(((0, 0), (1, 0), (1, 1), (0, 1)),))
    assert np.array_equal(logits(seen_of(classifier, replace(moves, zones=whole))), open_moves)


def last_index(kept: Kept) -> int:
    return int(kept.of(LiveFrame)[-1].index)


def test_what_is_under_a_mask_changes_nothing_and_is_seen_by_no_one(classifier: Classifier, pair: Any) -> None:
    masked = Zones(masks=(RIGHT,))
    kept = [seen_of(classifier, replace(Source("yard", str(folder)), zones=masked)) for folder in pair]
    assert np.array_equal(*map(logits, kept))
    for frames in zip(*(one.of(LiveFrame) for one in kept), strict=True):
        first, second = (frame.to_rgb() for frame in frames)
        assert np.array_equal(first, second)
        assert not first[:, first.shape[1] // 2 :].any()
        assert first[:, : first.shape[1] // 2].any()
    for look in kept[0].of(ProvisionalResult):
        assert not look.frame.to_rgb()[:, first.shape[1] // 2 :].any()


def pictures_in(path: Path) -> list[np.ndarray]:
    if path.suffix == ".jpg":
        return [np.asarray(Image.open(path).convert("RGB"))]
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_recordings_snapshots_and_clips_of_events_are_masked(tmp_path: Path) -> None:
    def run(*more: object) -> dict[str, list[np.ndarray]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        done = edge(
            "classify", f"yard={FIGHT}", "--event", "no_fight=0.01", "--event", "fight=0.01", "--record",
            folder / "record", "--snapshots", folder / "snapshots", "--events", folder / "events", "-q", *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        files = [path for path in folder.rglob("*") if path.suffix in (".mp4", ".jpg")]
        assert {(path.parent.name, path.suffix) for path in files} == {
            ("record", ".mp4"), ("snapshots", ".jpg"), ("events", ".mp4"), ("events", ".jpg"),
        }  # fmt: skip
        return {str(path): pictures_in(path) for path in files}

    def dark(picture: np.ndarray) -> float:
        """The share of black in the masked half, away from its edges and from what is drawn at the bottom."""
        height, width = picture.shape[:2]
        part = picture[height // 20 : int(height * 0.6), width // 20 : int(width * 0.46)]
        return float((part.max(axis=-1) < 40).mean())

    for pictures in run("--mask", f"yard={MASK}").values():
        assert pictures
        for picture in pictures:
            assert dark(picture) > 0.85  # but for the frame of the patch
    for pictures in run().values():
        assert max(map(dark, pictures)) < 0.5


def test_the_configuration_file_masks_even_sources_that_end(tmp_path: Path) -> None:
    config = tmp_path / "stream.toml"
    table = f'quiet = true\njson = true\n[[source]]\nname = "yard"\naddress = "{FIGHT}"\n'

    def found(text: str) -> str:
        config.write_text(text)
        done = edge("classify", "--config", config, "--glimpse-fps", "8")
        assert done.returncode == 0, done.stderr
        return "\n".join(line.partition('"latency_ms"')[0] for line in done.stdout.splitlines())

    plain = found(table)
    masked = found(table + "masks = [[[0, 0], [1, 0], [1, 1], [0, 1]]]\n")
    by_region = found(table + "regions = [[[0.4, 0.4], [0.7, 0.4], [0.7, 0.7], [0.4, 0.7]]]\n")
    assert len({plain, masked, by_region}) == 3
    config.write_text(table + "masks = [[[0, 0], [1, 0], [1, 1], [0, 1]]]\n")
    done = edge("classify", "--config", config)  # without an option for live runs, too
    assert '"window_model_ms"' in done.stdout  # that of a live run
    config.write_text(table + "paused = true\n")
    one_line_error(
        edge("classify", "--config", config), 2, "no source to classify: every [[source]] of --config is paused"
    )
    config.write_text(table + table[table.index("[[") :])
    one_line_error(edge("classify", "--config", config), 2, "stream.toml: name: two sources are named yard")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('name = "a/b"', "a/b: name: must not contain = or /"),
        ('name = " "', "name: must not be empty"),
        ("masks = [[[0, 0], [1, 0], [1, 1]]]", "name: is missing, which a source with paused, regions or masks needs"),
        ('name = "a"\nmasks = [[[0, 0], [1, 1], [1, 0], [0, 1]]]', "a: masks: mask 1: sides 1 and 3 cross or touch"),
        ('name = "a"\nregions = [[0, 0]]', "a: regions: a polygon must be a list of points"),
        ('name = "a"\nregions = 3', "a: regions: must be a list of polygons"),
        ('name = "a"\npaused = 1', "a: paused: must be true or false"),
        ('name = "a"\nmask = []', "no key 'mask' in [[source]]; it takes name, address, paused, regions, masks"),
    ],
)
def test_wrong_sources_in_a_file_are_refused_in_one_line(table: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / "stream.toml"
    config.write_text(f'[[source]]\naddress = "{FIGHT}"\n{table}\n')
    one_line_error(edge("classify", "--config", config), 2, "stream.toml: ", words)
    config.write_text('mask = ["0,0 1,0 1,1"]\n')
    one_line_error(edge("classify", FIGHT, "--config", config), 2, "give masks in the [[source]] that they are for")


def test_options_name_the_source_that_they_are_for(tmp_path: Path) -> None:
    sources = find_sources([f"yard={FIGHT}", f"gate={FIGHT}"])
    arguments = LiveArguments(region=[MASK], mask=[f"gate={MASK}"])
    made = with_zones(sources, arguments)
    assert [(source.zones.regions, source.zones.masks) for source in made] == [((LEFT,), ()), ((LEFT,), (LEFT,))]
    with pytest.raises(UsageError, match=r"^--mask roof=.*: no source is named 'roof'; the sources are yard, gate$"):
        with_zones(sources, LiveArguments(mask=[f"roof={MASK}"]))
    # Of one that is paused, too.
    config = tmp_path / "stream.toml"
    tables = [f'[[source]]\nname = "{name}"\naddress = "{FIGHT}"\n' for name in ("yard", "gate")]
    config.write_text(tables[0] + tables[1] + "paused = true\n")
    done = edge("classify", "--config", config, "--mask", f"gate={MASK}", "--glimpse-fps", "8", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(UsageError, match=r"^--region yard=0,0: region 1: needs 3 to 64 points"):
        with_zones(sources, LiveArguments(region=["yard=0,0"]))
    one_line_error(
        edge("classify", FIGHT, "--mask", "0,0 1,1 1,0 0,1", "-q"), 2, "--mask 0,0 1,1 1,0 0,1: mask 1: sides 1 and 3"
    )


@pytest.mark.parametrize("copied", [("--record-mode", "copy"), ("--events", "EVENTS", "--events-video", "copy")])
def test_packets_of_a_source_with_masks_are_never_copied(copied: tuple[str, ...], tmp_path: Path) -> None:
    more = [str(tmp_path / "events") if part == "EVENTS" else part for part in copied]
    if "--events" not in more:
        more += ["--record", str(tmp_path / "recorded")]
    done = edge("classify", FIGHT, "--mask", "0,0 1,0 1,1 0,1", "--event", "fight=0.5", *more, "-q")
    one_line_error(done, 2, "its masks cannot be applied to copied packets")
    assert not list(tmp_path.glob("recorded/*"))
    assert not list(tmp_path.glob("events/**/*.mp4"))


def test_a_source_with_masks_is_never_classified_without_them(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="yard: regions and masks need a live run"):
        classifier.classify(Source("yard", str(FIGHT), zones=Zones(masks=(LEFT,))))


@pytest.mark.parametrize("zones", [Zones(masks=(LEFT,)), Zones(regions=(LEFT,))])
def test_frames_on_a_gpu_get_their_regions_and_masks_on_the_cpu_or_are_refused(
    zones: Zones,
    model: Any,  # noqa: F811
    bundle: Any,  # noqa: F811
    codec: Any,  # noqa: F811
    classifier: Classifier,
) -> None:
    source = Source("yard", str(FIGHT), zones=zones)

    def run(decoder: Any) -> tuple[Frames, LiveRun]:
        kept = Frames()
        made = Classifier(model, bundle.classes, top_k=2, decoder=decoder)
        one = LiveRun(made, [source], LiveOptions(CaptureOptions(glimpse_fps=8)), [kept])
        one.run(threading.Event())
        kept.close()
        return kept, one

    kept, _ = run("auto")
    connected = next(notice for notice in kept.of(Notice) if notice.kind == "connected")
    assert connected.text.endswith("; decoded on the CPU: its regions and masks are applied on the CPU")
    assert np.abs(logits(kept) - logits(seen_of(classifier, source))).max() < 1e-4
    kept, failed = run("gpu")
    assert kept.of(Window) == []
    assert str(failed.errors["yard"]) == "its regions and masks are applied on the CPU: remove --decoder gpu"
