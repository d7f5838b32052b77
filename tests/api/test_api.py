"""`from adafocus_edge import AdaFocus`: the same results as the command line, from whatever holds the video."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from adafocus_edge import AdaFocus
from adafocus_edge.errors import BundleError, FrameError, SourceError, UsageError
from adafocus_edge.live import window_queue
from adafocus_edge.live.messages import Notice, Window
from adafocus_edge.runtime.classifier import Guess, Result
from adafocus_edge.runtime.prediction import SeenFrame
from tests.conftest import ROOT, edge
from tests.training.helpers import TINY, prepare_fights

CLIPS = ROOT / "tests" / "fights" / "fight"
CLIP = CLIPS / "fi149.mp4"
FPS = 30000 / 1001


@pytest.fixture(scope="module")
def model() -> Iterator[AdaFocus]:
    with AdaFocus(backend="cpu", threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    with av.open(str(CLIP)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_manuals_two_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    shutil.copy(CLIP, tmp_path / "holiday.mp4")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("fight 0.6")


def test_a_file_gives_what_the_command_line_gives(model: AdaFocus) -> None:
    found = model(str(CLIP))
    done = edge("classify", CLIP, "--json", "--backend", "cpu", "--threads", 1, "-q")
    wanted = json.loads(done.stdout)
    for name in ("latency_ms", "model_ms"):
        wanted.pop(name)
    assert {name: value for name, value in found.to_dict().items() if name in wanted} == wanted
    assert (found.label, found.confidence) == (wanted["label"], pytest.approx(wanted["confidence"], abs=1e-6))
    assert found.patches.tolist() == [step["patch"] for step in wanted["steps"]]
    assert [round(time, 4) for time in found.times if time is not None] == [s["time_s"] for s in wanted["steps"]]
    assert json.loads(found.to_json()) == found.to_dict()
    assert str(found).startswith(f"{CLIP}: fight ")


@pytest.mark.parametrize("kind", ["arrays", "one array", "Pillow", "tensors", "channels first", "pairs", "times"])
def test_frames_of_any_kind_give_what_their_file_gives(model: AdaFocus, frames: list[np.ndarray], kind: str) -> None:
    import torch

    given: dict[str, Any] = {"fps": FPS}
    clip: Any = frames
    if kind == "one array":
        clip = np.stack(frames)
    elif kind == "Pillow":
        clip = [Image.fromarray(frame) for frame in frames]
    elif kind == "tensors":
        clip = [torch.from_numpy(frame) for frame in frames]
    elif kind == "channels first":
        clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    elif kind == "pairs":
        clip, given = ((frame, number / FPS) for number, frame in enumerate(frames)), {}
    elif kind == "times":
        given = {"times": [10 + number / FPS for number in range(len(frames))]}
    found, of_file = model(clip, **given), model(str(CLIP))
    # Frames are RGB; of a file, a model that sees motion reads the luminance, which differs by less than a grey level.
    np.testing.assert_allclose(found.logits, of_file.logits, atol=0.1)
    assert np.array_equal(found.logits, model(frames, fps=FPS).logits)
    assert found.steps[0].time_s == pytest.approx(model(str(CLIP)).steps[0].time_s)


def test_lists_and_folders_and_patterns(model: AdaFocus) -> None:
    found = model([CLIP, str(CLIPS / "fi013.mp4")])
    assert [one.source for one in found] == [str(CLIP), str(CLIPS / "fi013.mp4")]
    assert [one.source for one in model.each(CLIPS)] == [one.source for one in model([f"{CLIPS}/*.mp4"])]
    assert len(list(model.each(CLIPS))) == 6


def test_a_result_can_be_drawn_and_saved(model: AdaFocus, frames: list[np.ndarray], tmp_path: Path) -> None:
    for found in (model(str(CLIP)), model(frames, fps=FPS)):
        sheet = found.plot(tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as written:
            assert sheet.size == written.size
        assert sheet.width == 4 * 320
        with av.open(str(found.save(tmp_path / "seen.mp4"))) as container:
            assert sum(1 for _ in container.decode(video=0)) == len(frames)
    height, width = frames[0].shape[:2]
    boxes = found.boxes(height, width)
    assert boxes.shape == (8, 4)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= -1e-6).all()
    assert (boxes <= [width + 1e-6, height + 1e-6] * 2).all()
    for name in ("none/sheet.png", "sheet.nosuch", "sheet"):
        with pytest.raises(SourceError, match="cannot be written"):
            found.plot(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seen.mp4", "sheet.png"]


def test_frames_come_with_what_was_seen_and_a_callback_draws_them(model: AdaFocus, tmp_path: Path) -> None:
    found = model(str(CLIP))
    seen = list(found.frames())
    with av.open(str(CLIP)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [one.index for one in seen] == list(range(len(plain)))
    assert all(np.array_equal(one.pixels, frame) for one, frame in zip(seen, plain, strict=True))
    changes = [one for one, before in zip(seen[1:], seen, strict=False) if one.step is not before.step]
    assert [one.index for one in changes] == [step.frame_index for step in found.steps[1:]]
    height, width = plain[0].shape[:2]
    assert np.allclose([one.box for one in (seen[0], *changes)], found.boxes(height, width))
    assert seen[-1].time_s == pytest.approx((len(plain) - 1) / FPS, abs=1e-3)
    drawn: list[int] = []

    def dark(one: SeenFrame) -> np.ndarray:
        drawn.append(one.index)
        return np.zeros_like(one.pixels)

    with av.open(str(found.save(tmp_path / "dark.mp4", dark))) as container:
        assert all(frame.to_ndarray(format="gray").max() < 20 for frame in container.decode(video=0))
    assert drawn == list(range(len(plain)))


def test_live_windows_of_a_file_and_of_frames(model: AdaFocus, frames: list[np.ndarray]) -> None:
    windows = list(model.stream(str(CLIP), glimpse_fps=8))
    assert [len(window.steps) for window in windows] == [8]
    assert not windows[0].cut
    pairs = ((frame, number / FPS) for number, frame in enumerate(frames))
    (pushed,) = model.stream(pairs, glimpse_fps=8)
    assert len(pushed.steps) == 8
    with pytest.raises(SourceError, match="live source cannot be read again"):
        pushed.plot()


def test_a_file_waits_for_a_slow_caller(model: AdaFocus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_queue, "WINDOWS_WAITING", 1)
    found = []
    for window in model.stream([str(CLIPS / name) for name in ("fi013.mp4", "fi035.mp4", "fi149.mp4")], glimpse_fps=30):
        time.sleep(0.3)
        found.append(window)
    quick = list(model.stream([str(CLIPS / name) for name in ("fi013.mp4", "fi035.mp4", "fi149.mp4")], glimpse_fps=30))
    assert sorted((one.source, one.start_s) for one in found) == sorted((one.source, one.start_s) for one in quick)
    assert len(found) > 6


def test_windows_that_are_dropped_and_sources_that_fail_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    windows, waiting = window_queue.WindowQueue(None), window_queue.WINDOWS_WAITING
    result = Result("a", 0.0, 1.0, (Guess("fight", 0, 0.9),), (), False, 1.0, 1.0, "b", "v")
    for number in range(waiting + 3):
        windows.enqueue(Window(str(number), result, None, 0.0, cut=False))
    windows.enqueue(Notice("gate", "lost", "gate: lost: retrying in 2 s", 0.0))
    windows.end()
    assert [window.source for window in windows] == [str(number) for number in range(3, waiting + 3)]
    assert windows.dropped == 3
    assert [one.message for one in caplog.records] == [
        "the caller of stream is too slow: the oldest windows are dropped", "gate: lost: retrying in 2 s",
    ]  # fmt: skip


def test_leaving_a_stream_ends_its_threads(model: AdaFocus) -> None:
    before = {thread.name for thread in threading.enumerate()}
    for window in model.stream(str(CLIP), glimpse_fps=8, loop=True):
        assert window.label
        break
    left = {thread.name for thread in threading.enumerate()} - before
    assert "adafocus stream" not in left


def test_early_exit(model: AdaFocus) -> None:
    with AdaFocus(backend="cpu", exit_confidence=0.5, top_k=1) as sure:
        found = sure(str(CLIP))
        assert found.exited_early
        assert len(found.steps) < len(model(str(CLIP)).steps)
        assert len(found.top) == 1
    with pytest.raises(UsageError, match="no exit thresholds 'none-such'"):
        AdaFocus(exit="none-such")


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("/nosuch.mp4", SourceError, "no such file"),
        ("rtsp://10.0.0.7/x", UsageError, "has no end: use model.stream"),
        (str(CLIPS), UsageError, r"holds 6 videos: pass a list"),
        (3.5, UsageError, "a float: give a path"),
        (np.zeros((2, 3)), FrameError, "a clip is uint8"),
        ([], FrameError, "no frames"),
        ([np.zeros((4, 4, 3), np.uint8)], FrameError, "sees motion: pass fps="),
        ([(np.zeros((4, 4, 3), np.float32), 0.0)], FrameError, "uint8"),
        ([(np.zeros((4, 4, 3), np.uint8), 1.0), (np.zeros((4, 4, 3), np.uint8), 1.0)], FrameError, "times must rise"),
    ],
)
def test_what_cannot_be_classified_is_refused(model: AdaFocus, source: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model(source)


def test_what_does_not_fit_a_source_is_refused(model: AdaFocus, frames: list[np.ndarray]) -> None:
    with pytest.raises(UsageError, match="fps and times are for frames"):
        model(str(CLIP), fps=10)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="no source"):
        next(model.stream([]))
    with pytest.raises(UsageError, match="a float: give"):
        next(model.stream(3.5))
    with pytest.raises(FrameError, match="give pairs of a frame and its time"):
        next(model.stream(iter(frames)))
    with pytest.raises(FrameError, match="give pairs of a frame and its time"):
        model([(frames[0], 0.0), frames[1]])


@pytest.mark.parametrize("kind", ["arrays", "pairs", "tensors", "Pillow"])
def test_an_iterator_may_reuse_the_memory_of_its_frames(model: AdaFocus, frames: list[np.ndarray], kind: str) -> None:
    import torch

    buffer = np.empty_like(frames[0])
    tensor, image = torch.from_numpy(buffer), Image.fromarray(buffer)

    def reusing() -> Iterator[Any]:
        for number, frame in enumerate(frames):
            buffer[:] = frame
            image.paste(Image.fromarray(frame))
            yield {"arrays": buffer, "pairs": (buffer, number / FPS), "tensors": tensor, "Pillow": image}[kind]

    found = model(reusing(), fps=None if kind == "pairs" else FPS)
    assert np.array_equal(found.logits, model(frames, fps=FPS).logits)


def test_a_source_is_not_overwritten(model: AdaFocus, frames: list[np.ndarray], tmp_path: Path) -> None:
    video = Path(shutil.copy(CLIP, tmp_path / "plain.mp4"))
    link = tmp_path / "link.mp4"
    link.symlink_to(video)
    found = model(video)
    for path in (video, link, tmp_path / "." / "plain.mp4"):
        with pytest.raises(SourceError, match=r"\.mp4: would overwrite the source"):
            found.save(path)
        with pytest.raises(SourceError, match=r"\.mp4: would overwrite the source"):
            found.plot(path)
    assert video.read_bytes() == CLIP.read_bytes()
    for name in ("x.webm", "x.gif", "noext"):
        with pytest.raises(SourceError, match=rf"{name}: cannot be written: name it \*\.mp4, \*\.mov, \*\.mkv"):
            found.save(tmp_path / name)
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "fps.txt").write_text("30\n")
    for number in range(3):
        Image.fromarray(frames[number]).save(folder / f"{number}.png", compress_level=1)
    with pytest.raises(SourceError, match=r"1\.png: would be a frame of the source"):
        model(folder).plot(folder / "1.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "link.mp4", "plain.mp4"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fps": "30"}, "frames: fps='30': must be a number"),
        ({"times": ["a", "b", "c"]}, "frames: time='a': must be a number"),
        ({"times": [0.0, None, 1.0]}, "frames: time=None: must be a number"),
        ({"times": 5}, "frames: times=5: give the time of each frame"),
        ({"times": iter([0.0, 1.0])}, "frames: 2 times for 3 frames"),
    ],
)
def test_rates_and_times_that_are_no_numbers_are_refused(
    model: AdaFocus, frames: list[np.ndarray], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(FrameError, match=words):
        model(frames[:3], **given)


def test_times_may_come_from_an_iterator_and_pairs_need_them(model: AdaFocus, frames: list[np.ndarray]) -> None:
    times = [number / FPS for number in range(len(frames))]
    assert np.array_equal(model(frames, times=iter(times)).logits, model(frames, times=times).logits)
    with pytest.raises(FrameError, match="frames: time=None: must be a number"):
        model([(frames[0], None), (frames[1], 0.1)])
    with pytest.raises(FrameError, match="frames: time=None: must be a number"):
        next(model.stream(iter([(frames[0], None)])))
    with pytest.raises(UsageError, match="glimpse_fps='2': must be above 0"):
        next(model.stream(iter([(frames[0], 0.0)]), glimpse_fps="2"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 0}, "--threads 0: must be a whole number, at least 1"),
        ({"threads": -1}, "--threads -1: must be a whole number"),
        ({"threads": "2"}, "--threads 2: must be a whole number"),
        ({"top_k": 1.5}, "top_k=1.5: must be a whole number"),
        ({"top_k": "3"}, "top_k='3': must be a whole number"),
        ({"exit_confidence": "0.5"}, "exit_confidence='0.5': must be 0 to 1"),
    ],
)
def test_options_that_are_no_such_numbers_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        AdaFocus(**options)


def test_the_rate_of_a_folder_of_frames(
    model: AdaFocus, frames: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stamps = [round(1614863201 + number / FPS, 4) for number in range(len(frames))]
    for stamp, frame in zip(stamps, frames, strict=True):
        Image.fromarray(frame).save(tmp_path / f"{stamp:.4f}.png", compress_level=1)
    wanted = model(frames, times=stamps).logits
    assert np.array_equal(model(tmp_path).logits, wanted)
    assert not caplog.messages
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / f"{number}.png")
    assert np.array_equal(model(tmp_path).logits, model(frames, fps=25).logits)
    assert caplog.messages == [
        f"{tmp_path}: no fps.txt with the frame rate: 25 frames per second assumed, and this model sees motion"
    ]
    done = edge("classify", tmp_path, "--backend", "cpu")
    assert f"note: {caplog.messages[0]}" in done.stderr
    split = tmp_path.with_name("split.csv")
    split.write_text(f"video,class\n{tmp_path},fight\n")
    assert caplog.messages[0] in model.evaluate(split)["notes"]


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        AdaFocus(tmp_path / "nosuch")


def test_closing_twice_and_evaluating(model: AdaFocus) -> None:
    found = model.evaluate(ROOT / "tests" / "fights")
    assert found["clips"] == 12
    assert 0 <= found["top1"] <= 100
    other = AdaFocus(backend="cpu")
    other.close()
    other.close()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(patches=("polcy",)), "--patches polcy: 'polcy' must be one of policy, centre, random, oracle"),
        (dict(patches="policy"), "--patches 'policy': must be a tuple of names"),
        (dict(schedule="streem"), "--schedule streem: must be one of auto, clip, stream"),
        (dict(segments=0), "--segments 0: must be at least 1"),
    ],
)
def test_an_evaluation_refuses_what_it_does_not_know(model: AdaFocus, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model.evaluate(ROOT / "tests" / "fights", **wrong)


def test_an_evaluation_writes_its_files_and_stops_as_the_model_does(tmp_path: Path) -> None:
    clip = tmp_path / "fi149.mp4"
    shutil.copy(CLIP, clip)
    (tmp_path / "list.txt").write_text("fi149.mp4,60,0\n")
    (tmp_path / "classes.txt").write_text("fight\nno_fight\n")
    given: dict[str, Any] = {"frames": str(tmp_path), "classes": str(tmp_path / "classes.txt")}
    files = {"output": str(tmp_path / "found.json"), "plot": str(tmp_path / "found.png")}
    with AdaFocus(backend="cpu", exit="half") as model:
        found = model.evaluate(tmp_path / "list.txt", **given, **files)
        assert found["ran"] == "onnxruntime-cpu, fp32, clip schedule, policy patches, exit half/clip"
        assert 1 <= found["exit"]["mean_steps"] <= model.spec.segments
        assert json.loads((tmp_path / "found.json").read_text("utf-8")) == found
        with Image.open(tmp_path / "found.png") as drawn:
            assert drawn.width > 300
        whole = model.evaluate(tmp_path / "list.txt", **given, exit_set=None)
        assert "exit" not in whole
        for wrong in (tmp_path / "list.txt", clip, model.bundle.path / "found.json"):
            with pytest.raises(UsageError, match="--output .*: is an input or lies in one"):
                model.evaluate(tmp_path / "list.txt", **given, output=wrong)
    assert clip.read_bytes() == CLIP.read_bytes()


def test_training_exporting_and_benchmarking(tmp_path: Path) -> None:
    data = prepare_fights(tmp_path / "data", 72)
    run = AdaFocus.train(
        *TINY, f"hydra.run.dir={tmp_path / 'run'}", data_dir=data, num_segments=2, epochs=1, device="cpu", stages="all",
        export=True, freeze_bn=False,
    )  # fmt: skip
    assert run == tmp_path / "run"
    bundle = AdaFocus.export(run / "stage3" / "last.pth.tar", tmp_path / "bundle")
    with AdaFocus(bundle, backend="cpu") as model, AdaFocus(run / "bundle", backend="cpu") as exported:
        assert np.array_equal(model(str(CLIP)).logits, exported(str(CLIP)).logits)
        report = model.benchmark(
            ROOT / "tests" / "fights", backends=("onnxruntime-cpu",), quick=True, peers=(), threads=(1,)
        )
    assert {row.schedule for row in report.rows} == {"clip", "stream"}
    assert report.data is not None
    with pytest.raises(UsageError, match="unknown option"):
        AdaFocus.train("dataset=custom", nosuch=1)


def test_calibrating_writes_a_variant_that_can_be_loaded(model: AdaFocus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="output: the default model is read-only"):
        model.calibrate(ROOT / "tests" / "fights")
    found = model.calibrate(
        ROOT / "tests" / "fights", tmp_path / "calibrated", variants=("int8-cpu",), clips=4, samples=8, method="minmax",
        max_accuracy_drop=100.0, exit_goal="fast=steps:4", plot=str(tmp_path / "costs.png"),
    )  # fmt: skip
    with Image.open(tmp_path / "costs.png") as drawn:
        assert drawn.width > 300
    for wrong, words in (
        (dict(share=5), "--share 5: must be at most 0.9"),
        (dict(clips=1), "--clips 1: must be at least 4"),
        (dict(method="minmx"), "--method minmx: must be one of auto, minmax, entropy, percentile"),
    ):
        with pytest.raises(UsageError, match=words):
            model.calibrate(ROOT / "tests" / "fights", tmp_path / "more", **wrong)
    assert found["exits"]["fast"][0]["goal"] == "at most 4 steps"
    with AdaFocus(found["bundle"], variant="int8-cpu", exit="fast") as fast:
        assert fast(CLIP).variant == "int8-cpu"
