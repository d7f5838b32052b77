"""Decoding on the GPU with a stand-in for its library on the CPU (tests/support/nvcodec_on_cpu.py)."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import av
import numpy as np
import pytest

import adafocus_edge.live.capture as capturing
from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.device.pixels import FrameBuffer
from adafocus_edge.backends.gpu_frames import DeviceFrame, FrameStore, UnmadeFrame
from adafocus_edge.backends.loaded import open_programs
from adafocus_edge.backends.nvdec import usable_decoder
from adafocus_edge.backends.nvdec_stream import MAX_FAILURES, Decoding, StreamDecoder, sequence_parameters
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.engines import PIXELS_FILE, PIXELS_GRAPH
from adafocus_edge.bundle.store import default_bundle, open_bundle
from adafocus_edge.errors import BackendError, SourceError, UsageError
from adafocus_edge.live import readers
from adafocus_edge.live.messages import LiveFrame, Notice, ProvisionalResult, Window
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.media.sources import find_sources
from adafocus_edge.media.video_file import VideoFile
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.system.backoff import Backoff
from tests.conftest import CLIPS, ROOT, edge
from tests.live.test_live import Kept, running, until
from tests.support import nvcodec_on_cpu
from tests.support.streams import RtspServer
from tests.support.videos import encode, ffmpeg, mux_fields, rotate_clockwise


class Frames(Kept):
    """Keeps every captured frame, too."""

    wants: ClassVar[tuple[type, ...]] = (*Kept.wants, LiveFrame)


FIGHTS = sorted((ROOT / "tests" / "fights").glob("*/*.mp4"))
CLIP = CLIPS / "R6llTwEh07w.mp4"


@pytest.fixture
def codec(monkeypatch):
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", nvcodec_on_cpu)
    nvcodec_on_cpu.made.clear()
    return nvcodec_on_cpu


@pytest.fixture(scope="module")
def bundle():
    return open_bundle(default_bundle())


@pytest.fixture
def model(bundle):
    """The default model on the CPU under a GPU's rules."""

    def path_of(graph):
        return PIXELS_FILE if graph == PIXELS_GRAPH else bundle.graph_path(bundle.choose_variant("auto"), graph)

    with open_programs(
        bundle.spec, (*GRAPHS, PIXELS_GRAPH), lambda graph: OrtSession(path_of(graph), 2), path_of, HostDevice(),
        backend="host", variant="fp32",
    ) as made:  # fmt: skip
        yield made


@pytest.fixture(scope="module")
def plain(bundle):
    with load_model(bundle, backend="onnxruntime-cpu", threads=2) as made:
        yield made


def classifier(model, bundle, decoder="cpu", **more):
    return Classifier(model, bundle.classes, top_k=2, decoder=decoder, **more)


def seen(result):
    return [(step.frame_index, step.patch) for step in result.steps]


def same(found, wanted):
    assert seen(found) == seen(wanted)
    assert found.top[0].label == wanted.top[0].label
    assert abs(found.top[0].confidence - wanted.top[0].confidence) < 0.005


def nearly_the_same(found, wanted):
    """The CPU scales the luminance of motion frames in one step, the GPU's graph does not: a choice may tip over."""
    (frames, patches), (wanted_frames, wanted_patches) = (zip(*seen(one), strict=True) for one in (found, wanted))
    assert frames == wanted_frames
    assert sum(one != other for one, other in zip(patches, wanted_patches, strict=True)) <= 1
    assert found.top[0].label == wanted.top[0].label
    assert abs(found.top[0].confidence - wanted.top[0].confidence) < 0.05


# -- which decoder -----------------------------------------------------------------------------------------------------


def test_auto_decodes_on_the_cpu_where_the_gpu_cannot_and_says_why_in_one_line(model, plain, codec, monkeypatch):
    notes: list[str] = []
    assert usable_decoder("auto", model, notes.append) == "auto"
    assert usable_decoder("gpu", model, notes.append) == "gpu"
    assert usable_decoder("cpu", plain, notes.append) == "cpu"
    assert notes == []
    assert usable_decoder("auto", plain, notes.append) == "cpu"
    with pytest.raises(UsageError, match="--decoder gpu needs a backend on an NVIDIA GPU"):
        usable_decoder("gpu", plain, notes.append)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    assert usable_decoder("auto", model, notes.append) == "cpu"
    with pytest.raises(BackendError, match="PyNvVideoCodec cannot be loaded .*adafocus-edge\\[nvdec\\]"):
        usable_decoder("gpu", model, notes.append)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", codec)
    monkeypatch.setattr(model.resident, "programs", {g: p for g, p in model.resident.programs.items() if g in GRAPHS})
    assert usable_decoder("auto", model, notes.append) == "cpu"
    assert [note.split(":")[0] for note in notes] == ["decoding on the CPU"] * 3
    assert not any("\n" in note for note in notes)
    assert "does not run on an NVIDIA GPU" in notes[0]
    assert "cannot be loaded" in notes[1]
    assert "no graph that makes model frames" in notes[2]


def test_the_command_line_says_which_decoder_it_takes():
    done = edge("classify", CLIP, "--backend", "onnxruntime-cpu", "--decoder", "auto", "--json")
    assert done.returncode == 0
    assert "decoding on the CPU: the model does not run on an NVIDIA GPU" in done.stderr
    assert json.loads(done.stdout)["steps_used"] == 8
    for more in ([], ["--provisional"]):
        refused = edge("classify", CLIP, "--backend", "onnxruntime-cpu", "--decoder", "gpu", *more)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1] == "error: --decoder gpu needs a backend on an NVIDIA GPU"


def test_what_the_library_prints_does_not_get_between_json_lines():
    code = """
import ctypes, sys
from adafocus_edge.backends.nvdec import send_library_output_to_stderr
print("before")
send_library_output_to_stderr()
libc = ctypes.CDLL(None)
libc.printf(b"Decode Error occurred for picture 3\\n")
libc.fflush(None)
print('{"label": "é"}')
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.stdout == 'before\n{"label": "é"}\n'
    assert done.stderr == "Decode Error occurred for picture 3\n"


# -- files -------------------------------------------------------------------------------------------------------------


def test_files_decoded_on_the_gpu_give_what_the_cpu_gives(model, plain, bundle, codec):
    notes: list[str] = []
    by_gpu, by_cpu = classifier(model, bundle, "auto", note=notes.append), classifier(plain, bundle)
    for source in find_sources([str(path) for path in FIGHTS[:4]]):
        same(by_gpu.classify(source)[0], by_cpu.classify(source)[0])
    assert notes == []


def turned(path):
    rotate_clockwise(encode(path / "turned.mp4"))
    return path / "turned.mp4", "rotation or mirror flag"


def ten_bits(path):
    return encode(path / "deep.mkv", pix_fmt="yuv420p10le"), "yuv420p10le of 320 x 240 is not decoded on the GPU"


def odd(path):
    return encode(path / "odd.mkv", size=(321, 241), pix_fmt="yuv444p", codec="ffv1"), "the codec ffv1"


def fields(path):
    return mux_fields(path / "fields.mkv", "F" + "TB" * 40), "may hold fields"


def interlaced(path):
    ffmpeg("-i", CLIP, "-t", 4, "-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-top", 1, path / "lines.ts")
    return path / "lines.ts", "interlaced"


def another_track(path):
    ffmpeg("-i", CLIP, "-i", encode(path / "small.mp4", size=(64, 64)), "-map", 0, "-map", 1, "-c", "copy",
           path / "two.mkv")  # fmt: skip
    return path / "two.mkv", "another of its video tracks"


def strange_colours(path):
    ffmpeg("-i", CLIP, "-t", 4, "-c:v", "libx264", "-x264-params", "colormatrix=bt2020c", path / "colours.mp4")
    return path / "colours.mp4", "colour matrix"


@pytest.mark.parametrize("make", [turned, ten_bits, odd, fields, interlaced, another_track])
def test_what_the_gpu_would_show_otherwise_is_decoded_on_the_cpu(make, model, plain, bundle, codec, tmp_path):
    path, reason = make(tmp_path)
    (source,) = find_sources([str(path)])
    source = replace(source, video_track=1 if make is another_track else None)
    notes: list[str] = []
    found, _ = classifier(model, bundle, "auto", note=notes.append).classify(source)
    wanted, _ = classifier(plain, bundle).classify(source)
    assert seen(found) == seen(wanted)
    assert np.abs(found.steps[-1].logits - wanted.steps[-1].logits).max() < 1e-4
    assert len(notes) == 1
    assert f"{path}: decoded on the CPU: " in notes[0]
    assert reason in notes[0]
    with pytest.raises(SourceError, match=f"{reason}.*: remove --decoder gpu"):
        classifier(model, bundle, "gpu").classify(source)


def test_colours_that_even_ffmpeg_does_not_convert_are_not_converted_on_the_gpu(tmp_path):
    path, reason = strange_colours(tmp_path)
    with pytest.raises(SourceError, match=reason):
        VideoFile(str(path)).nv12()


@pytest.mark.parametrize("fails_at", [0, 5])
def test_a_decoder_that_fails_half_way_leaves_the_rest_to_the_cpu(fails_at, model, plain, bundle, codec, monkeypatch):
    calls: list[int] = []
    read = codec.SimpleDecoder.__getitem__

    def failing(self, index):
        calls.append(index)
        if len(calls) > fails_at:
            raise codec.PyNvVCException(f"cannot read {FIGHTS[0]}\nmore")
        return read(self, index)

    monkeypatch.setattr(codec.SimpleDecoder, "__getitem__", failing)
    notes: list[str] = []
    (source,) = find_sources([str(FIGHTS[0])])
    same(
        classifier(model, bundle, "auto", note=notes.append).classify(source)[0],
        classifier(plain, bundle).classify(source)[0],
    )
    assert notes == [f"{FIGHTS[0]}: decoded on the CPU: the GPU cannot decode it (cannot read {FIGHTS[0]})"]
    calls.clear()
    with pytest.raises(SourceError, match="the GPU cannot decode it"):
        classifier(model, bundle, "gpu").classify(source)


def test_a_decoder_that_counts_other_frames_is_not_used(model, bundle, codec, monkeypatch):
    monkeypatch.setattr(codec.SimpleDecoder, "__len__", lambda self: 7)
    (source,) = find_sources([str(FIGHTS[0])])
    with pytest.raises(SourceError, match="counts 7 frames, the CPU's"):
        classifier(model, bundle, "gpu").classify(source)


# -- live --------------------------------------------------------------------------------------------------------------


def decoding(store, notes=None, damaged=None, *, strict=False):
    heard, bad = [] if notes is None else notes, [] if damaged is None else damaged
    return Decoding(store, "x", strict=strict, note=heard.append, damaged=lambda: bad.append(1))


def codecs(path):
    yield FIGHTS[0]  # B-frames
    yield encode(path / "plain.mp4", options={"bf": "0", "x264-params": "keyint=30"})
    yield encode(path / "stream.ts", options={"bf": "2", "x264-params": "keyint=30"})
    yield encode(path / "full.mp4", pix_fmt="yuvj420p")
    yield encode(path / "second.mp4", codec="libx265", options={"x265-params": "log-level=none:keyint=20"})
    yield encode(path / "second.ts", codec="libx265", options={"x265-params": "log-level=none:keyint=20"})


@pytest.mark.parametrize("number", range(6))
def test_every_frame_is_the_one_that_the_cpu_decodes(number, model, codec, tmp_path):
    path = list(codecs(tmp_path))[number]
    notes: list[str] = []
    store = FrameStore(model.resident)
    found = list(decoding(store, notes, strict=True).file_pictures(VideoFile(str(path))))
    wanted = list(VideoFile(str(path)).frames())
    assert [index for index, _ in found] == [index for index, _ in wanted]
    assert all(isinstance(picture.to_rgb, DeviceFrame) for _, picture in found)
    for (_, picture), (_, rgb) in zip(found, wanted, strict=True):  # all are still there: none was written to again
        assert (picture.height, picture.width) == rgb.shape[:2]
        assert np.array_equal(picture.to_rgb(), rgb)
    assert notes == ["decoded on the GPU"]
    assert len(codec.made) == 1
    assert (codec.made[0].latency is codec.DisplayDecodeLatencyType.LOW) == (number == 1)  # no B-frames


def live(model, bundle, decoder, paths, **more):
    kept = Frames()
    run = LiveRun(
        classifier(model, bundle, decoder), find_sources([str(p) for p in paths]), LiveOptions(**more), [kept]
    )
    run.run(threading.Event())
    kept.close()
    return kept, run


@pytest.mark.parametrize("overlap", [1, 2])
def test_live_runs_see_the_same_with_either_decoder(overlap, model, plain, bundle, codec):
    paths = FIGHTS[:2]
    options = {"capture": CaptureOptions(glimpse_fps=12), "overlap": overlap}
    by_gpu, run = live(model, bundle, "gpu", paths, **options)
    by_cpu, _ = live(plain, bundle, "cpu", paths, **options)
    uploaded, _ = live(model, bundle, "cpu", paths, **options)
    for name in (str(path) for path in paths):
        wanted = [window.result for window in by_cpu.of(Window) if window.source == name]
        assert wanted
        for kept, exact in ((by_gpu, False), (uploaded, True)):
            found = [window.result for window in kept.of(Window) if window.source == name]
            for one, other in zip(found, wanted, strict=True):
                (same if exact else nearly_the_same)(one, other)
                if exact:
                    assert np.abs(one.steps[-1].logits - other.steps[-1].logits).max() < 1e-4
    assert run.errors == {}
    assert all("decoded on the GPU" in notice.text for notice in by_gpu.of(Notice) if notice.kind == "connected")
    frames = by_gpu.of(LiveFrame)
    assert all(isinstance(frame.to_rgb, DeviceFrame) for frame in frames)
    assert {type(look.frame.to_rgb) for look in by_gpu.of(ProvisionalResult)} == {DeviceFrame}


def test_nothing_of_a_run_is_left_in_the_gpus_memory(model, bundle, codec):
    kept, run = live(model, bundle, "gpu", FIGHTS[:1], capture=CaptureOptions(glimpse_fps=4))
    store = weakref.ref(run._on_device.store)
    device = run._on_device.store._device
    last = kept.of(LiveFrame)[-1]
    planes = [weakref.ref(frame.to_rgb.planes.owner) for frame in kept.of(LiveFrame)[:-1]]
    kept.messages.clear()
    del kept, run
    gc.collect()
    assert store() is not None
    assert last.to_rgb().shape[2] == 3  # a picture outlives its run
    del last
    gc.collect()
    assert store() is None
    assert not any(one() is not None for one in planes)
    with pytest.raises(BackendError, match="closed"):
        device.empty((1,), np.uint8)


def test_sources_bring_their_frames_to_the_model_in_their_own_threads(model, bundle, codec, monkeypatch):
    """The uploads of the next step pass while the model computes; what was decoded on the GPU is made by the model."""
    taken: list[Any] = []
    threads_of: Counter[str] = Counter()
    take, upload = capturing.Capture.take, FrameStore.upload

    def taking(self):
        prepared = take(self)
        taken.append(prepared.pixels if prepared else None)
        return prepared

    def uploading(self, pixels):
        threads_of[threading.current_thread().name.split()[0]] += 1
        return upload(self, pixels)

    monkeypatch.setattr(capturing.Capture, "take", taking)
    monkeypatch.setattr(FrameStore, "upload", uploading)
    for decoder, kind in (("cpu", FrameBuffer), ("gpu", UnmadeFrame)):
        taken.clear()
        live(model, bundle, decoder, FIGHTS[:1])
        assert {type(pixels) for pixels in taken if pixels is not None} == {kind}
    assert set(threads_of) == {"capture", threading.main_thread().name}  # the latter's is a blank frame, beforehand
    assert threads_of[threading.main_thread().name] == 2


@pytest.mark.parametrize(("make", "reason"), [
    (lambda path: encode(path / "old.avi", codec="mpeg4"), "mpeg4 streams are not decoded on the GPU"),
    (lambda path: turned(path)[0], "rotation or mirror flag"),
    (lambda path: ten_bits(path)[0], "yuv420p10le of 320 x 240"),
    (lambda path: fields(path)[0], "its frames cannot be found by their times|may hold fields"),
])  # fmt: skip
def test_live_sources_that_the_gpu_cannot_decode_say_so_when_they_connect(make, reason, model, bundle, codec, tmp_path):
    import re

    path = make(tmp_path)
    kept, run = live(model, bundle, "auto", [path])
    (connected,) = [notice for notice in kept.of(Notice) if notice.kind == "connected"]
    assert re.search(f"; decoded on the CPU: .*({reason})", connected.text)
    assert run.errors == {}
    assert kept.of(Window)
    kept, run = live(model, bundle, "gpu", [path])
    assert kept.of(Window) == []
    assert re.search(f"({reason}).*: remove --decoder gpu", str(run.errors[str(path)]))


def packets_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            yield stream, packet


def test_a_decoder_that_fails_begins_anew_at_the_next_key_frame_and_not_for_ever(model, codec, tmp_path):
    path = encode(tmp_path / "keys.ts", options={"bf": "0", "x264-params": "keyint=10:scenecut=0"})
    notes: list[str] = []
    damaged: list[int] = []
    decoder, shown, failed_at = None, [], {35, 55, 75}
    for number, (stream, packet) in enumerate(packets_of(path)):
        decoder = decoder or StreamDecoder(stream, decoding(FrameStore(model.resident), notes, damaged))
        if number in failed_at:
            codec.made[-1].fails = 1
        try:
            shown += [(number, type(picture.to_rgb) is DeviceFrame) for _, picture in decoder.decode(packet)]
        except av.error.FFmpegError:
            assert number >= 75
    assert [number for number in range(30, 60) if number not in dict(shown)] == [*range(35, 40), *range(55, 60)]
    assert len(damaged) == MAX_FAILURES
    assert all(on_gpu == (number < 75) for number, on_gpu in shown)
    assert shown[-1][0] >= 119
    assert notes[-1] == "decoded on the CPU: the GPU cannot decode it (cuvidParseVideoData failed)"
    assert len(codec.made) == 3


def test_damaged_packets_are_counted_and_the_run_goes_on(model, bundle, codec, tmp_path, monkeypatch):
    decode = codec.PyNvDecoder.Decode
    calls: list[int] = []

    def failing(self, packet):
        calls.append(packet.bsl)
        if len(calls) == 20:
            self.fails = 1
        return decode(self, packet)

    monkeypatch.setattr(codec.PyNvDecoder, "Decode", failing)
    path = encode(tmp_path / "keys.mp4", options={"x264-params": "keyint=10:scenecut=0"})
    kept, run = live(model, bundle, "auto", [path], capture=CaptureOptions(glimpse_fps=8))
    (status,) = run.status().sources
    assert status.damaged == 1
    assert 100 < status.frames < 120
    assert kept.of(Window)


def test_frames_out_of_order_get_a_decoder_that_waits_for_them(model, codec, tmp_path):
    path = encode(tmp_path / "order.ts", options={"bf": "2", "x264-params": "keyint=20:scenecut=0"})
    times, decoder = [], None
    for number, (stream, packet) in enumerate(packets_of(path)):
        decoder = decoder or StreamDecoder(stream, decoding(FrameStore(model.resident)))
        if number == 30:  # as if the stream had not said so, and frames came in the order in which they are decoded
            decoder._low_latency, decoder._newest, decoder._reorders = True, times[-1] + 10**6, False
        times += [time for time, _ in decoder.decode(packet)]
    assert times == sorted(times)
    assert len(codec.made) == 2
    assert codec.made[1].latency is codec.DisplayDecodeLatencyType.NATIVE
    assert decoder._reorders
    assert 95 <= len(times) < 120


def test_parameters_are_found_before_the_first_picture():
    unit = b"\0\0\0\1"
    sps, pps, picture = b"\x67abc", b"\x68d", b"\x65" + bytes(8)
    assert sequence_parameters(unit + sps + unit + pps + unit + picture, "h264") == b"\0\0\1" + sps
    assert sequence_parameters(unit + picture + unit + sps, "h264") == b""
    assert sequence_parameters(unit + b"\x40\1v" + unit + b"\x42\1s" + unit + b"\x26\1p", "hevc") == b"\0\0\1\x42\1s"
    assert sequence_parameters(b"", "h264") == b""


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(Backoff, "FIRST_S", 0.2)
    monkeypatch.setattr(Backoff, "MAX_S", 0.4)
    monkeypatch.setattr(readers, "SILENCE_S", 3.0)


def test_a_camera_that_changes_its_size_and_comes_back_is_decoded_on_the_gpu_all_along(model, bundle, codec, soon):
    frames_kept = Frames()
    with (
        RtspServer(sizes=((320, 240), (640, 360))) as server,
        running(classifier(model, bundle, "gpu"), [server.address], LiveOptions(CaptureOptions(glimpse_fps=8))) as (
            kept,
            run,
        ),
    ):
        run.listen(frames_kept)
        until(lambda: run.status().sources[0].glimpses >= 8)
        server.switch()
        until(lambda: any("now 640 x 360" in notice.text for notice in kept.of(Notice)))
        glimpses = run.status().sources[0].glimpses
        until(lambda: run.status().sources[0].glimpses >= glimpses + 8)
        server.kill()
        until(lambda: "lost" in kept.kinds())
        server.restart()
        until(lambda: "reconnected" in kept.kinds())
        glimpses = run.status().sources[0].glimpses
        until(lambda: run.status().sources[0].glimpses >= glimpses + 4)
        frames = frames_kept.of(LiveFrame)
        assert len(frames) > 50
        assert all(isinstance(frame.to_rgb, DeviceFrame) for frame in frames)
        sizes = {frame.to_rgb().shape for frame in frames[:: max(1, len(frames) // 50)]}
        assert sizes == {(240, 320, 3), (360, 640, 3)}
        assert all(frame.to_rgb().std() > 10 for frame in frames[:: max(1, len(frames) // 20)])
    frames_kept.close()
    texts = [notice.text for notice in kept.of(Notice) if notice.kind in ("connected", "reconnected")]
    assert len(texts) == 2
    assert all("; decoded on the GPU" in text for text in texts)
    assert len(codec.made) >= 3
    assert run.errors == {}


def test_what_the_gpu_refuses_at_its_first_packet_is_decoded_on_the_cpu_from_there(model, codec, tmp_path, monkeypatch):
    """NVDEC checks codec, size and level as it sees the first packet, which the CPU has decoded by then."""
    decode = codec.PyNvDecoder.Decode

    def refuse(self, packet):
        self.fails = 1
        return decode(self, packet)

    monkeypatch.setattr(codec.PyNvDecoder, "Decode", refuse)
    path = encode(tmp_path / "one group.mp4", frames=60, options={"bf": "0", "x264-params": "keyint=250"})
    notes: list[str] = []
    decoder, shown = None, 0
    for stream, packet in packets_of(path):
        decoder = decoder or StreamDecoder(stream, decoding(FrameStore(model.resident), notes))
        shown += len(list(decoder.decode(packet)))
    assert shown == 60
    assert notes[-1].startswith("decoded on the CPU: ")
    with pytest.raises(BackendError, match="remove --decoder gpu"):
        strict = None
        for stream, packet in packets_of(path):
            strict = strict or StreamDecoder(stream, decoding(FrameStore(model.resident), strict=True))
            list(strict.decode(packet))


def test_a_stream_whose_key_frames_show_nothing_alone_is_decoded_on_the_cpu(model, codec, tmp_path):
    """Gradual refresh has no key frames but at its beginning, which who joins late has missed."""
    options = {"bf": "0", "x264-params": "intra-refresh=1:keyint=20"}
    path = encode(tmp_path / "refresh.ts", frames=120, options=options)
    notes: list[str] = []
    decoder, shown = None, 0
    for number, (stream, packet) in enumerate(packets_of(path)):
        if number < 30:
            continue
        decoder = decoder or StreamDecoder(stream, decoding(FrameStore(model.resident), notes))
        with suppress(av.error.FFmpegError):
            shown += len(list(decoder.decode(packet)))
    assert shown > 20
    assert notes == ["decoded on the CPU: its key frames cannot be decoded on their own"]
    assert codec.made == []


def test_failures_that_lie_far_apart_do_not_add_up(model, codec, tmp_path):
    path = encode(tmp_path / "long.ts", frames=300, options={"bf": "0", "x264-params": "keyint=10:scenecut=0"})
    notes: list[str] = []
    decoder = None
    for number, (stream, packet) in enumerate(packets_of(path)):
        decoder = decoder or StreamDecoder(stream, decoding(FrameStore(model.resident), notes, strict=True))
        if number in (25, 145, 265):
            codec.made[-1].fails = 1
        list(decoder.decode(packet))
    assert set(notes) == {"decoded on the GPU"}
    assert len(codec.made) == 4


def test_a_damaged_packet_before_the_first_picture_is_no_reason_to_leave_the_gpu(model, codec, tmp_path):
    """With B-frames the decoder gives its first picture some packets later."""
    path = encode(tmp_path / "b.ts", frames=60, options={"bf": "2", "x264-params": "keyint=10:scenecut=0"})
    notes: list[str] = []
    decoder, shown = None, []
    for number, (stream, packet) in enumerate(packets_of(path)):
        decoder = decoder or StreamDecoder(stream, decoding(FrameStore(model.resident), notes))
        if number == 1:
            assert shown == []
            codec.made[-1].fails = 1
        shown += list(decoder.decode(packet))
    assert set(notes) == {"decoded on the GPU"}
    assert len(codec.made) == 2
    assert len(shown) >= 45
