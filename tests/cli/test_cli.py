"""The command line as a user meets it: golden results, files written, errors in one line."""

import contextlib
import csv
import http.server
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.live.capture import Capture
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.media.preprocess import sample_indices
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.parquet import result_schema
from tests.conftest import CLIPS, GOLDEN, GOLDEN_CASES, ROOT, SMALL, edge, one_line_error
from tests.support.ranges import send_part
from tests.training.test_model import frames_of
from training.eager import OfficialWay

CLIP = CLIPS / "R6llTwEh07w.mp4"
VERBS = ("prepare", "train", "evaluate", "export", "inspect", "doctor", "classify", "serve")


def results(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def corner(action, grid, free):
    return [int(np.floor(np.float32(n / (grid - 1)) * np.float32(free))) for n in divmod(action, grid)]


@pytest.mark.parametrize("schedule", ["clip", "stream"])
def test_golden_outputs_come_out_of_classify(schedule, golden, golden_bundle, golden_outputs, golden_frames):
    done = edge(
        "classify", golden_frames, "--bundle", golden_bundle, "--json", "--logits", "--schedule", schedule,
        "--backend", "onnxruntime-cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = results(done)
    logits = np.array([step["logits"] for step in result["steps"]], np.float32)
    assert np.abs(logits - golden_outputs["logits"]).max() <= 2e-3
    size = GOLDEN_CASES[golden][1]
    expected = [[*corner(action, 7, 224 - size), size] for action in golden_outputs["actions"].tolist()]
    assert [step["patch"] for step in result["steps"]] == expected
    assert [step["frame_index"] for step in result["steps"]] == list(range(16))
    assert result["class_id"] == int(golden_outputs["logits"][-1].argmax())


@pytest.mark.parametrize("schedule", ["clip", "stream"])
def test_another_model_gives_what_the_official_way_gives(schedule, small_bundle, small_weights, tmp_path):
    """A model unlike the golden ones, on a folder of more frames than it samples, of another size."""
    sources = sorted((GOLDEN / "actnet96").glob("*.jpg"))
    for number in range(1, 28):
        with Image.open(sources[number % 16]) as image:
            image.resize((480, 360)).save(tmp_path / f"image_{number:05d}.jpg", quality=95)
    wanted = [f"image_{index + 1:05d}.jpg" for index in sample_indices(27, SMALL.segments)]
    (tmp_path / "sampled").mkdir()
    for name in wanted:
        shutil.copy(tmp_path / name, tmp_path / "sampled")
    peer = OfficialWay(small_weights, SMALL.focuser, SMALL.patch_size, SMALL.glance_size)
    actions, expected = peer.clip(torch.from_numpy(frames_of(tmp_path / "sampled")))
    shutil.rmtree(tmp_path / "sampled")

    done = edge("classify", tmp_path, "--bundle", small_bundle, "--json", "--logits", "--schedule", schedule)
    (result,) = results(done)
    logits = np.array([step["logits"] for step in result["steps"]], np.float32)
    assert np.abs(logits - expected.numpy()).max() <= 2e-3
    assert [s["patch"] for s in result["steps"]] == [[*corner(a, 5, 64), 160] for a in actions]
    assert [f"image_{s['frame_index'] + 1:05d}.jpg" for s in result["steps"]] == wanted


def test_the_json_is_the_documented_one(small_bundle):
    done = edge("classify", CLIP, "--bundle", small_bundle, "--json", "--top-k", 3)
    assert done.returncode == 0, done.stderr
    (result,) = results(done)
    assert list(result) == [
        "source", "start_s", "end_s", "label", "class_id", "confidence", "top", "steps", "steps_used", "exited_early",
        "latency_ms", "model_ms", "backend", "variant",
    ]  # fmt: skip
    assert result["source"] == str(CLIP)
    assert (result["start_s"], result["end_s"]) == (0.0, pytest.approx(10.1, abs=0.05))
    assert result["label"] == f"activity {result['class_id']}" == result["top"][0]["label"]
    assert len(result["top"]) == 3
    assert result["top"] == sorted(result["top"], key=lambda guess: -guess["confidence"])
    assert result["steps_used"] == 8 == len(result["steps"])
    assert (result["exited_early"], result["backend"], result["variant"]) == (False, "onnxruntime-cpu", "fp32")
    step = result["steps"][3]
    assert (step["step"], step["frame_index"]) == (3, 132)
    assert step["time_s"] == pytest.approx(132 / 30, abs=1e-3)
    assert list(step) == ["step", "frame_index", "time_s", "patch", "label", "class_id", "confidence"]
    assert 0 < result["model_ms"] <= result["latency_ms"]


def test_a_short_clip_repeats_its_last_frame(small_bundle, tmp_path):
    for number in (1, 2, 3):
        shutil.copy(GOLDEN / "actnet96" / f"image_{number:05d}.jpg", tmp_path)
    (result,) = results(edge("classify", tmp_path, "--bundle", small_bundle, "--json"))
    assert [step["frame_index"] for step in result["steps"]] == [0, 1, 2, 2, 2, 2, 2, 2]
    assert result["start_s"] is None
    assert result["steps"][0]["time_s"] is None


def test_people_see_a_table(small_bundle):
    done = edge("classify", CLIP, "--bundle", small_bundle)
    assert done.returncode == 0
    assert done.stderr == "backend: onnxruntime-cpu, variant: fp32\n"
    for text in (str(CLIP), "0.0 - 10.1 s", "activity ", "%", "8 glimpses", "ms"):
        assert text in done.stdout
    assert edge("classify", CLIP, "--bundle", small_bundle, "--quiet").stderr == ""


def test_one_bad_file_does_not_stop_the_others(small_bundle, tmp_path):
    shutil.copy(CLIP, tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_text("no video")
    shutil.copytree(GOLDEN / "actnet96", tmp_path / "c")
    (tmp_path / "c" / "image_00004.jpg").write_bytes(b"torn")
    shutil.copy(CLIPS / "v_SoccerJuggling_g23_c01.avi", tmp_path / "d.avi")
    output = tmp_path / "results.jsonl"
    done = edge(
        "classify", tmp_path, tmp_path / "gone.mp4", "--bundle", small_bundle, "--json", "--quiet", "--output", output
    )  # fmt: skip
    assert done.returncode == 1
    found = results(done)
    assert found == [json.loads(line) for line in output.read_text().splitlines()]
    by_name = {Path(entry["source"]).name: entry for entry in found}
    assert list(by_name) == ["a.mp4", "b.mp4", "d.avi", "c", "gone.mp4"]
    assert "label" in by_name["a.mp4"]
    assert "label" in by_name["d.avi"]
    assert "not a video" in by_name["b.mp4"]["error"]
    assert "image_00004.jpg" in by_name["c"]["error"]
    assert "no such file" in by_name["gone.mp4"]["error"]
    assert [line.startswith("error: ") for line in done.stderr.splitlines()] == [True] * 3


def test_results_are_written_as_csv(small_bundle, tmp_path):
    output = tmp_path / "new" / "results.csv"
    done = edge("classify", CLIP, tmp_path / "gone.mp4", "--bundle", small_bundle, "-o", output, "--quiet")
    assert done.returncode == 1
    with output.open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert good["label"].startswith("activity ")
    assert float(good["confidence"]) > 0
    assert good["error"] == ""
    assert "no such file" in bad["error"]
    assert [path.name for path in output.parent.iterdir()] == ["results.csv"]


def test_results_are_written_as_parquet(small_bundle, tmp_path):
    output = tmp_path / "new" / "results.parquet"
    given = ("classify", CLIP, tmp_path / "gone.mp4", "--bundle", small_bundle, "-o", output, "--json", "--logits")
    done = edge(*given, "--quiet")
    assert done.returncode == 1
    assert [path.name for path in output.parent.iterdir()] == ["results.parquet"]
    table = parquet.read_table(output)
    assert table.schema.equals(result_schema())
    good, bad = table.to_pylist()
    (printed, refused) = results(done)
    assert good.pop("error") is None
    assert good == printed
    assert set(printed) | {"error"} == set(table.column_names)
    assert (bad["source"], bad["error"]) == (refused["source"], refused["error"])
    assert all(value is None for key, value in bad.items() if key not in ("source", "error"))
    live = edge("classify", "rtsp://127.0.0.1:9/x", "-o", tmp_path / "x.parquet", "--quiet")
    one_line_error(live, 2, "has no end: write JSON lines or CSV")
    assert not (tmp_path / "x.parquet").exists()


def test_the_annotated_video_shows_the_patch(small_bundle, tmp_path):
    output = tmp_path / "seen.mp4"
    done = edge("classify", CLIP, "--bundle", small_bundle, "--json", "--save-video", output)
    assert done.returncode == 0, done.stderr
    (result,) = results(done)
    with av.open(str(output)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == pytest.approx(30)
    with av.open(str(CLIP)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == len(plain) == 303
    scale = frames[0].shape[0] / plain[0].shape[0]  # narrow videos are enlarged
    for step in result["steps"]:
        y, x, size = step["patch"]
        shown = frames[step["frame_index"] + 1].astype(int)
        left, top = round((x + 58) * scale), round((y + 16) * scale)  # the centre crop's corner in a 340 x 256 frame
        edge_colour = shown[top + 2 : top + round(size * scale) - 40 : 7, left : left + 2].mean(axis=(0, 1))
        assert np.abs(edge_colour - (255, 176, 0)).max() < 60, step
    assert not list(tmp_path.glob(".*"))


def test_many_sources_are_annotated_into_a_folder(small_bundle, tmp_path):
    sources = (CLIPS / "v_SoccerJuggling_g23_c01.avi", GOLDEN / "actnet96")
    done = edge("classify", *sources, "--bundle", small_bundle, "--save-video", tmp_path / "out", "-q")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "actnet96.mp4",
        "v_SoccerJuggling_g23_c01.mp4",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Missing argument"),
        (("gone.mp4", "-q"), 1, "gone.mp4: no such file"),
        (("gone.mp4", "--bundle", "none"), 1, "none: no such bundle"),
        (("gone.mp4", "--bundle", "BUNDLE"), 1, "gone.mp4: no such file"),
        (("none*.mp4", "--bundle", "BUNDLE"), 1, "none*.mp4: no such file"),
        (("gone.mp4", "--bundle", "BUNDLE", "--backend", "abacus"), 2, "abacus"),
        (("gone.mp4", "--bundle", "BUNDLE", "--variant", "int3"), 2, "no variant 'int3'"),
        (("gone.mp4", "--bundle", "BUNDLE", "--exit-confidence", "7"), 2, "exit-confidence"),
        (("", "--bundle", "BUNDLE"), 2, "empty source"),
        (("gone.mp4", "--bundle", "BUNDLE", "--output", "."), 2, "is a folder"),
        (("x.mp4", "--bundle", "BUNDLE", "--output", "x.mp4"), 2, "would overwrite a source"),
        (("x.mp4", "--bundle", "BUNDLE", "--output", "y.mp4"), 2, "--save-video writes videos"),
        (("x.mp4", "--bundle", "BUNDLE", "--threads", "5000"), 2, "processors"),
        (("gone.mp4", "--bundle", "BUNDLE", "--logits"), 2, "--logits adds to JSON"),
        (("gone.mp4", "--bundle", "BUNDLE", "--logits", "-o", "a.csv"), 2, "--logits adds to JSON"),
        (("two\nlines.mp4", "--bundle", "BUNDLE"), 1, "two\\nlines.mp4: no such file"),
        (("gone.mp4", "--bundle", "BUNDLE", "--top-k", "8"), 2, "has 7 classes"),
        (("gone.mp4", "--bundle", "BUNDLE", "--duration", "3"), 1, "gone.mp4: no such file"),
        (("0", "--bundle", "BUNDLE", "--schedule", "clip"), 2, "frame by frame"),
        (("gone.mp4", "--bundle", "BUNDLE", "--save-video", "a.gif"), 2, ".mp4"),
        (("a.mp4", "b.mp4", "--bundle", "BUNDLE", "--save-video", "a.mp4"), 2, "need a folder"),
        (("a/x.mp4", "c/a/x.mp4", "--bundle", "BUNDLE", "--save-video", "out"), 2, "the same file"),
        (("x.mp4", "--bundle", "BUNDLE", "--save-video", "x.mp4"), 2, "overwrite a source"),
        (("0", "x.mp4", "--bundle", "BUNDLE", "--schedule", "clip"), 2, "frame by frame"),
        (("0", "--bundle", "BUNDLE", "--save-video", "x.mp4"), 2, "--record writes those"),
        (("97", "--bundle", "BUNDLE"), 1, "camera 97: cannot open the camera"),
        (("http://127.0.0.1:9/a.mp4", "--bundle", "BUNDLE"), 1, "http://127.0.0.1:9/a.mp4: not a video"),
        (("rtsp://u:secret@127.0.0.1:9/x", "--bundle", "BUNDLE"), 1, "rtsp://***@127.0.0.1:9/x: cannot be read"),
    ],
)
def test_wrong_use_is_told_in_one_line(arguments, code, words, small_bundle, tmp_path):
    arguments = [str(small_bundle) if argument == "BUNDLE" else argument for argument in arguments]
    done = edge("classify", *arguments, cwd=tmp_path)
    one_line_error(done, code, words)
    assert "secret" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_cuda_gives_the_golden_outputs(golden, golden_bundle, golden_outputs, golden_frames):
    done = edge(
        "classify", golden_frames, "--bundle", golden_bundle, "--json", "--logits", "--backend", "onnxruntime-cuda"
    )
    assert done.returncode == 0, done.stderr
    (result,) = results(done)
    logits = np.array([step["logits"] for step in result["steps"]], np.float32)
    assert np.abs(logits - golden_outputs["logits"]).max() <= 2e-3


def test_a_backend_that_cannot_run_is_told(small_bundle):
    from adafocus_edge.backends.onnxruntime import cuda_obstacle

    if cuda_obstacle() is None:
        pytest.skip("it can run here")
    done = edge("classify", CLIP, "--bundle", small_bundle, "--backend", "onnxruntime-cuda")
    one_line_error(done, 1, "onnxruntime-cuda cannot run here", "use --backend onnxruntime-cpu")


def test_debug_shows_where(small_bundle):
    done = edge("classify", CLIP, "--bundle", small_bundle, "--variant", "int3", "--debug")
    assert "Traceback" in done.stderr


def test_doctor_tells_what_can_run():
    done = edge("doctor")
    assert done.returncode == 0, done.stderr
    for text in ("onnxruntime-cpu", "onnxruntime-cuda", "video decoding", "processor", "h264"):
        assert text in done.stdout
    found = {finding["part"]: finding for finding in json.loads(edge("doctor", "--json").stdout)}
    assert found["onnxruntime-cpu"]["status"] == "ok"
    assert found["train, export: PyTorch"]["status"] == "ok"


def test_results_reach_stdout_while_bars_are_on_the_terminal(small_bundle, tmp_path):
    """Progress bars are drawn on a terminal only; results that go elsewhere must not be drawn with them."""
    terminal, theirs = pty.openpty()
    output = tmp_path / "out.jsonl"
    with output.open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "adafocus_edge", "classify", str(GOLDEN / "actnet96"), str(GOLDEN / "actnet96"),
             "--bundle", str(small_bundle), "--json"],
            stdout=out, stderr=theirs, check=False,
        )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    assert done.returncode == 0
    assert len(output.read_text().splitlines()) == 2
    assert b"classifying" in shown
    assert b"steps_used" not in shown


def test_results_go_to_devices_and_through_links(small_bundle, tmp_path):
    arguments = ("classify", GOLDEN / "actnet96", "--bundle", small_bundle, "--quiet", "--output")
    assert edge(*arguments, "/dev/null").returncode == 0
    assert not Path("/dev/null").is_file()
    (tmp_path / "real.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert edge(*arguments, tmp_path / "link.jsonl").returncode == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert "label" in json.loads((tmp_path / "real.jsonl").read_text())


def test_strange_names_and_a_plain_terminal(small_bundle, tmp_path):
    """A name that is no UTF-8, an output that knows only ASCII: still one object per clip that JSON reads."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(GOLDEN / "actnet96", folder)
    arguments = ("classify", folder, "--bundle", small_bundle, "--output", tmp_path / "r.jsonl")
    done = edge(*arguments, "--json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert os.fsencode(results(done)[0]["source"]) == os.fsencode(folder)
    assert json.loads((tmp_path / "r.jsonl").read_text()) == results(done)[0]
    assert edge(*arguments, PYTHONIOENCODING="ascii").returncode == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_without_buffers_every_line_is_written_at_once(stream):
    """``PYTHONUNBUFFERED`` is set in many containers; a log would have all lines when the process ends."""
    script = (
        "import os, sys, typer\n"
        "from adafocus_edge.cli.process import run_command\n"
        "app = typer.Typer()\n"
        f"app.command()(lambda: (print('a line', file=sys.{stream}), os._exit(3)))\n"
        "run_command(app)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONUNBUFFERED": "1"}, capture_output=True, text=True,
        cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, getattr(done, stream)) == (3, "a line\n"), done


def test_two_runs_with_one_output_do_not_mix(small_bundle, tmp_path):
    command = [
        sys.executable, "-m", "adafocus_edge", "classify", str(CLIPS / "v_SoccerJuggling_g23_c01.avi"), "--bundle",
        str(small_bundle), "--quiet", "--output", str(tmp_path / "r.jsonl"), "--save-video", str(tmp_path / "seen"),
    ]  # fmt: skip
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    for process in both:
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*.mp4")] == ["v_SoccerJuggling_g23_c01.mp4"]
    with av.open(str(tmp_path / "seen" / "v_SoccerJuggling_g23_c01.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 240


def test_an_interrupted_run_keeps_the_results_of_the_last_one(small_bundle, tmp_path):
    output = tmp_path / "results.jsonl"
    output.write_text("of yesterday\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", "classify", *[str(GOLDEN / "actnet96")] * 500, "--bundle",
         str(small_bundle), "--json", "--output", str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    part = next(tmp_path.glob(".results.jsonl.*.part"))
    assert told.splitlines()[-2:] == [f"results so far are in {part}", "interrupted"]
    assert output.read_text() == "of yesterday\n"
    lines = part.read_text().splitlines()
    assert all("label" in json.loads(line) for line in lines)
    assert lines


class Camera(http.server.BaseHTTPRequestHandler):
    """An MJPEG camera: frames of a clip at 25 per second, without end; and a clip as a file, in parts."""

    def do_GET(self):
        if self.path in ("/clip.mp4", "/clip?id=7"):
            return send_part(self, CLIP.read_bytes())
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        pictures = [path.read_bytes() for path in sorted((GOLDEN / "actnet96").glob("*.jpg"))]
        try:
            for number in range(25 * 60):
                if number == 30 and self.path == "/stalls":
                    time.sleep(60)
                if number == 30 and self.path == "/ends":
                    return None
                picture = pictures[number % 16]
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                self.wfile.write(b"Content-Length: %d\r\n\r\n" % len(picture) + picture + b"\r\n")
                time.sleep(0.04)
        except OSError:
            pass  # the viewer has gone

    def log_message(self, *_):
        pass


@pytest.fixture
def camera():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_stream_gives_a_result_per_window(small_bundle, camera):
    done = edge(
        "classify", camera + "/live", "--bundle", small_bundle, "--json", "--glimpse-fps", 8, "--duration", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = results(done)
    assert len(found) >= 3
    for before, after in pairwise(found):
        assert before["steps_used"] == SMALL.segments
        assert before["start_s"] < before["end_s"] < after["start_s"]
    assert found[-1]["end_s"] <= 5
    indices = [step["frame_index"] for result in found for step in result["steps"]]
    assert indices == sorted(indices)
    assert indices[-1] > len(indices)  # the camera is faster than the glimpses


def test_a_model_of_motion_sees_what_came_before_in_a_stream(camera):
    done = edge("classify", camera + "/live", "--json", "--quiet", "--glimpse-fps", 8, "--duration", 4)
    assert done.returncode == 0, done.stderr
    segments = read_bundle(default_bundle()).spec.segments
    assert results(done)[0]["steps_used"] == segments
    seen, spec = [], read_bundle(default_bundle()).spec
    capture = Capture(
        Source("live", camera + "/live", live=True), spec, CaptureOptions(), threading.Condition(), seen.append
    )  # fmt: skip
    capture.start()
    try:
        time.sleep(2)
        parts, _ = capture._waiting[-1]
        for gaps, part in zip((2, 1, 0), parts, strict=True):
            assert abs(parts[-1].captured_s - gaps * spec.motion_gap_s - part.captured_s) < 0.05
        assert {part.index for part in parts} < {frame.index for frame in seen}
    finally:
        capture.close(within_s=12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stream_runs_until_told(number, small_bundle, camera):
    process = subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", "classify", camera + "/live", "--bundle", str(small_bundle),
         "--json", "--quiet", "--glimpse-fps", "8"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    first = json.loads(process.stdout.readline())
    assert first["steps_used"] == SMALL.segments
    process.send_signal(number)
    rest, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert told == ""
    assert all(json.loads(line)["steps_used"] <= SMALL.segments for line in rest.splitlines())


def test_a_stream_that_stalls_still_ends_when_told(small_bundle, camera):
    process = subprocess.Popen(
        [sys.executable, "-m", "adafocus_edge", "classify", camera + "/stalls", "--bundle", str(small_bundle),
         "--json", "--quiet", "--glimpse-fps", "5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=8)
    assert (process.returncode, errors) == (0, "")
    assert 1 <= sum(json.loads(line)["steps_used"] for line in told.splitlines()) <= 8


def test_a_stream_that_breaks_off_gives_its_last_window(small_bundle, camera):
    done = edge(
        "classify", camera + "/ends", "--bundle", small_bundle, "--json", "-q", "--glimpse-fps", 10, "--retries", 0
    )  # fmt: skip
    one_line_error(done, 1, "/ends: cannot be read")
    *found, failure = results(done)
    assert "cannot be read" in failure["error"]
    assert [result["steps_used"] for result in found][:-1] == [SMALL.segments] * (len(found) - 1)
    assert 1 <= found[-1]["steps_used"] <= SMALL.segments
    assert found[-1]["latency_ms"] < 3000


@pytest.mark.parametrize("path", ["/clip.mp4", "/clip?id=7"])
def test_an_address_of_a_file_is_a_clip(path, small_bundle, camera):
    """Whether the address looks like one or not."""
    (remote,) = results(edge("classify", camera + path, "--bundle", small_bundle, "--json", "--logits"))
    (local,) = results(edge("classify", CLIP, "--bundle", small_bundle, "--json", "--logits"))
    assert remote["steps"] == local["steps"]


def test_help_is_instant_and_needs_nothing_heavy():
    heavy = ("torch", "torchvision", "onnxruntime", "tensorrt", "cv2", "av", "onnx", "numpy", "rich")
    code = (
        "import sys, adafocus_edge\n"
        "import adafocus_edge.cli.app as cli\n"
        "sys.argv = ['adafocus-edge', *sys.argv[1:]]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    for arguments in (["--help"], *([verb, "--help"] for verb in VERBS)):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]", arguments


BARE = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name.partition('.')[0])
sys.meta_path.insert(0, Blocked())
sys.argv = ['adafocus-edge', *sys.argv[1:]]
import adafocus_edge.cli.app
adafocus_edge.cli.app.main()
"""


def without(packages, *arguments):
    """Run the command line in a Python that lacks some packages."""
    code = BARE.format(blocked=packages)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_a_device_classifies_without_pytorch(small_bundle):
    device = {"torch", "torchvision", "onnx", "onnxscript", "cv2"}
    done = without(device, "classify", CLIP, "--bundle", small_bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps_used"] == 8
    assert without(device, "inspect", small_bundle).returncode == 0
    assert without(device, "doctor").returncode == 0


def test_a_verb_that_needs_more_names_the_extra(small_checkpoint, tmp_path):
    done = without({"torch"}, "export", small_checkpoint, "-o", tmp_path / "b", "--patch-size", 96)
    one_line_error(done, 1, "`adafocus-edge export`", "'torch'", "pip install 'adafocus-edge[export]'")


def test_training_and_plots_name_their_extras(small_bundle, tmp_path):
    for blocked in ("torch", "hydra"):
        done = without({blocked}, "train", "dataset=custom", "train_stage=0")
        one_line_error(done, 1, "`adafocus-edge train`", f"'{blocked}'", "pip install 'adafocus-edge[train]'")
    (tmp_path / "a").mkdir()
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / "a" / name).symlink_to(CLIP)
    (tmp_path / "a").rename(tmp_path / "activity 0")
    plot = tmp_path / "p.png"
    done = without({"torch", "matplotlib"}, "evaluate", small_bundle, "--data", tmp_path, "--plot", plot, "-q")
    one_line_error(done, 1, "pip install 'adafocus-edge[plot]'")
    done = without({"torch"}, "prepare", tmp_path, "-o", tmp_path / "out", "--size", 32)
    assert done.returncode == 0, done.stderr


def test_a_camera_without_opencv_is_told(small_bundle):
    one_line_error(without({"cv2"}, "classify", "0", "--bundle", small_bundle), 1, "opencv-python-headless")


def test_a_package_of_the_same_name_is_noticed(small_checkpoint, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").touch()
    done = edge("export", small_checkpoint, "-o", tmp_path / "b", "--patch-size", 96, cwd=tmp_path, PYTHONPATH=tmp_path)
    one_line_error(done, 1, str(tmp_path / "export"), "comes first on Python's path")


def test_the_version_is_shown():
    assert edge("--version").stdout.startswith("adafocus-edge 0.")


def test_a_line_of_a_damaged_list_does_not_fill_the_screen(tmp_path):
    (tmp_path / "list.txt").write_text("a" * 1_000_000)
    arguments = ["evaluate", "--data", tmp_path / "list.txt", "--frames", tmp_path, "--quiet"]
    done = edge(*arguments)
    one_line_error(done, 1, "list.txt, line 1", "[...]", "is not `path frames class`")
    assert len(done.stderr) < 1200
