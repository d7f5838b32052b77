"""What models are given from Python: the manual's examples as they stand there, and frames that must be refused."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import adafocus_edge
from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.device.pixels import FrameBuffer
from adafocus_edge.backends.loaded import open_programs
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import AdaFocusError, BackendError, FrameError
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.preprocess import FrameMaker, luminance, model_frame, motion_frame, preprocess
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from adafocus_edge.runtime.lanes import HostLanes, Lanes
from tests.conftest import ROOT, edge, official_spec
from tests.support.streams import need

CLIP = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
MOTION = read_bundle(default_bundle()).spec
RGB = official_spec()
RANDOM = np.random.default_rng(16)
PIXELS = RANDOM.integers(0, 256, (4, 224, 224, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    """The default model, which sees motion."""
    with load_model(read_bundle(default_bundle()), backend="onnxruntime-cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def rgb_model(small_bundle):
    with load_model(read_bundle(small_bundle), backend="onnxruntime-cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def on_device():
    """The default model with its tensors on a device: the CPU's memory."""
    bundle = read_bundle(default_bundle())
    with open_programs(
        bundle.spec, GRAPHS, lambda graph: OrtSession(bundle.graph_path("fp32", graph)),
        lambda graph: bundle.graph_path("fp32", graph), HostDevice(), backend="host", variant="fp32",
    ) as loaded:  # fmt: skip
        yield loaded


# -- independent of our code: ffmpeg decodes, Pillow resizes, ONNX Runtime runs the graphs ------------------------


def decoded() -> tuple[np.ndarray, float]:
    """All pictures of the clip in RGB by ffmpeg's command line, and its frame rate."""
    need("ffmpeg", "ffprobe")
    about = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "stream=width,height,avg_frame_rate", "-of",
         "json", CLIP], capture_output=True, check=True,
    )  # fmt: skip
    (stream,) = json.loads(about.stdout)["streams"]
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", CLIP, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    over, under = map(int, stream["avg_frame_rate"].split("/"))
    return np.frombuffer(raw, np.uint8).reshape(-1, stream["height"], stream["width"], 3), over / under


def motion_by_pillow(pictures: list[np.ndarray]) -> np.ndarray:
    greys = [Image.fromarray(picture).convert("L") for picture in pictures]
    return np.stack([np.asarray(grey.resize((224, 224), Image.Resampling.BILINEAR)) for grey in greys], axis=-1)


def logits_by_onnxruntime(frames: list[np.ndarray]) -> np.ndarray:
    folder = default_bundle() / "fp32"
    glancer, policy, focuser, classifier = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in GRAPHS)
    policy_state, state = (np.zeros((1, 128), np.float32) for _ in "ab")
    for frame in frames:
        feature_map, _ = glancer.run(["feature_map", "glance"], {"frame": frame[None]})
        fed = {"feature_map": feature_map, "policy_state": policy_state}
        origin, policy_state = policy.run(["origin", "policy_state_out"], fed)
        (focus,) = focuser.run(["focus"], {"frame": frame[None], "origin": origin})
        logits, state = classifier.run(["logits", "state_out"], {"focus": focus, "state": state})
    return logits[0]


def examples() -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "reference" / "python.md").read_text(), re.MULTILINE | re.DOTALL
    )


@pytest.fixture(scope="module")
def manual(tmp_path_factory) -> dict[str, Any]:
    """What the manual's first example leaves behind, run as it stands there where ``clip.mp4`` is a clip."""
    (code,) = (one for one in examples() if "clip.mp4" in one)
    folder = tmp_path_factory.mktemp("manual")
    (folder / "clip.mp4").write_bytes(CLIP.read_bytes())
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        exec(code, names)
        names["frames"] = [frame for _, frame in names["sampled_frames"](names["clip"], names["bundle"].spec)]
    return names


def test_the_manuals_example_gives_what_classify_gives(manual, capfd):
    (result,) = map(json.loads, edge("classify", CLIP, "--json", "--logits", "-q").stdout.splitlines())
    np.testing.assert_allclose(manual["glimpse"].logits[0], result["steps"][-1]["logits"], atol=1e-4)
    assert manual["bundle"].classes[manual["confidences"].argmax()] == result["label"]
    assert float(manual["confidences"].max()) == pytest.approx(result["confidence"], abs=1e-4)


def test_the_manuals_example_prints_the_label_and_the_confidence(tmp_path):
    (code,) = (one for one in examples() if "clip.mp4" in one)
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    label, confidence = done.stdout.split()
    assert label == "fight"
    assert 0.5 <= float(confidence) <= 1


def test_the_packages_own_example_runs_and_prints_the_label(tmp_path):
    code = textwrap.dedent(adafocus_edge.__doc__.partition("Example::")[2])
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "fight\n"


def test_the_manuals_frames_are_those_of_ffmpeg_and_pillow(manual):
    pictures, fps = decoded()
    gap = round(fps * 0.1)
    middles = [int(len(pictures) / 8 * (part + 0.5)) for part in range(8)]
    wanted = [motion_by_pillow([pictures[max(0, at - back * gap)] for back in (2, 1, 0)]) for at in middles]
    assert len(manual["frames"]) == 8
    for frame, one in zip(manual["frames"], wanted, strict=True):
        off = np.abs(frame.astype(int) - one)  # the product scales the planes, here RGB is scaled
        assert off.mean() <= 1
        assert np.percentile(off, 99) <= 3
    np.testing.assert_allclose(manual["glimpse"].logits[0], logits_by_onnxruntime(wanted), atol=0.05)


def test_the_manuals_pictures_with_time_stamps_are_the_ones_of_their_times(manual):
    (code,) = (one for one in examples() if "FrameMaker" in one)
    pictures, _ = decoded()
    # Uneven times, at which the nearest pictures are found by hand: 0.5 looks at 0.31 and 0.42, 1.0 at 0.8 and 0.88.
    times = [0.0, 0.12, 0.31, 0.42, 0.5, 0.61, 0.8, 0.88, 1.0]
    given = list(zip(pictures, times, strict=False))
    names = {**manual, "pictures": given}
    exec(code, names)
    at = dict(zip(times, pictures, strict=False))
    looks = [(0.0, 0.0, 0.0), (0.31, 0.42, 0.5), (0.8, 0.88, 1.0)]
    wanted = [motion_by_pillow([at[time_s] for time_s in look]) for look in looks]
    assert np.array_equal(names["frame"], wanted[-1])
    np.testing.assert_allclose(names["glimpse"].logits[0], logits_by_onnxruntime(wanted), atol=1e-4)


def test_the_manuals_lanes_run_on_model_frames(manual, model):
    (code,) = (one for one in examples() if "Lanes" in one)
    first, second, third = manual["frames"][:3]
    names = {"model": model, "frame": first, "other": second, "another": third}
    exec(code, names)
    assert list(names["seen"]) == [names["yard"]]
    expected = logits_by_onnxruntime([np.asarray(second), np.asarray(third)])
    np.testing.assert_allclose(names["seen"][names["yard"]].logits[0], expected, atol=1e-4)


# -- what must be refused ------------------------------------------------------------------------------------------


def everywhere(loaded, frame):
    """Every way to give a model a frame."""
    lanes = Lanes(loaded, 1)
    lane = lanes.join()
    ways = [
        lambda: GlimpseStream(loaded).see([frame]),
        lambda: list(see_clip(loaded, [frame, frame])),
        lambda: lanes.step({lane: frame}),
    ]
    if loaded.resident is None:
        shared = HostLanes(loaded)
        ways.append(lambda: shared.step({shared.join(): frame}))
    return ways


@pytest.mark.parametrize("where", ["model", "on_device"])
def test_a_model_of_motion_refuses_plain_arrays_and_names_the_fix(where, request):
    loaded = request.getfixturevalue(where)
    for way in everywhere(loaded, PIXELS[0]):
        with pytest.raises(FrameError, match=r"may be RGB, .* takes motion frames .* FrameMaker, motion_frame"):
            way()
    for stacked in (PIXELS, list(PIXELS), tuple(PIXELS)):
        with pytest.raises(FrameError, match="may be RGB"):
            list(see_clip(loaded, stacked))
    frame = motion_frame(list(PIXELS[:3]), MOTION)
    for way in everywhere(loaded, frame):
        way()


def test_frames_made_for_another_model_are_refused(model, rgb_model):
    colour = model_frame(PIXELS[0], RGB)
    for way in everywhere(model, colour):
        with pytest.raises(FrameError, match=r"made for RGB frames \(fit crop\), but this model takes motion"):
            way()
    for way in everywhere(rgb_model, motion_frame(list(PIXELS[:3]), MOTION)):
        with pytest.raises(FrameError, match=r"made for motion frames .* but this model takes RGB"):
            way()
    slower = motion_frame(list(PIXELS[:3]), official_spec(motion_gap_s=0.5, fit="squash"))
    with pytest.raises(FrameError, match=r"1 s before, 0.5 s before and now"):
        GlimpseStream(model).see([slower])
    with pytest.raises(FrameError, match="an unknown model"):
        GlimpseStream(model).see([PIXELS[0].view(ModelFrame)])


def test_a_model_of_rgb_takes_plain_arrays_and_its_own_frames(rgb_model):
    pixels = preprocess(PIXELS[0], 224)
    found = [GlimpseStream(rgb_model).see(frames).logits for frames in ([pixels], pixels[None], (pixels,))]
    found.append(GlimpseStream(rgb_model).see([model_frame(PIXELS[0], RGB)]).logits)
    found.append(GlimpseStream(rgb_model).see([model_frame(Image.fromarray(PIXELS[0]), RGB)]).logits)
    assert all(np.array_equal(one, found[0]) for one in found)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (PIXELS[0] / np.float32(255), "float32 .* multiply 0..1 by 255"),
        (PIXELS[0].astype(np.int64), "int64 .* convert it to uint8"),
        (PIXELS[0].transpose(2, 0, 1), "channels must come last"),
        (np.zeros((224, 224, 4), np.uint8), "alpha"),
        (np.zeros((224, 224), np.uint8), r"takes uint8 \[224, 224, 3\]"),
        (
            np.zeros((256, 256, 3), np.uint8),
            r"takes uint8 \[224, 224, 3\]: make it with adafocus_edge.media.preprocess",
        ),
        (PIXELS[:1], "one frame of each clip"),
        (Image.fromarray(PIXELS[0]), "PIL image .* make one with adafocus_edge.media.preprocess"),
        (torch.from_numpy(PIXELS[0]), "torch Tensor"),
        (PIXELS[0].tolist(), "a list: "),
        (None, "NoneType"),
    ],
    ids=["float", "int64", "chw", "rgba", "grey", "size", "batch", "pil", "torch", "list", "none"],
)
def test_what_is_no_frame_is_refused_in_one_line(frame, words, rgb_model):
    for way in everywhere(rgb_model, frame):
        with pytest.raises(FrameError, match=words) as caught:
            way()
        assert len(str(caught.value).splitlines()) == 1


def test_a_wrong_number_of_frames_is_refused(rgb_model, on_device):
    with pytest.raises(FrameError, match="2 frames for 1 clips"):
        GlimpseStream(rgb_model).see(PIXELS[:2])
    with pytest.raises(FrameError, match="1 frames for 2 clips"):
        GlimpseStream(on_device, 2).see([motion_frame(list(PIXELS[:3]), MOTION)])
    for frames in (PIXELS[0], "frames", 7):
        with pytest.raises(FrameError, match="frame"):
            GlimpseStream(rgb_model).see(frames)


def test_sessions_refuse_other_types_than_their_graphs(model, on_device):
    for session in (model.glancer, on_device.glancer):
        with pytest.raises(BackendError, match=r"frame.*uint8|uint8"):
            session.run({"frame": PIXELS[:1].astype(np.float32)})


def test_tensors_on_a_device_are_checked_too(on_device):
    device = on_device.resident.device
    plain = device.store(PIXELS[:1])
    with pytest.raises(FrameError, match="Buffer uint8 .* may be RGB"):
        GlimpseStream(on_device).see([plain])
    frame = motion_frame(list(PIXELS[:3]), MOTION)
    stored = FrameBuffer.of(device.store(np.asarray(frame)[None]), MOTION)
    assert np.array_equal(GlimpseStream(on_device).see([stored]).logits, GlimpseStream(on_device).see([frame]).logits)
    with pytest.raises(FrameError, match="float32"):
        GlimpseStream(on_device).see([device.store(PIXELS[:1].astype(np.float32))])


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (PIXELS[0] / 255, "float64 .* multiply"),
        (PIXELS[0].astype(np.uint16), "uint16 .* convert it to uint8"),
        (PIXELS[0].transpose(2, 0, 1), r"transpose\(1, 2, 0\)"),
        (np.zeros((9, 9, 4), np.uint8), "alpha"),
        (np.zeros((9, 9, 1), np.uint8), r"picture\[..., 0\]"),
        (np.zeros((9, 9, 2), np.uint8), r"a picture is \[H, W, 3\]"),
        (PIXELS, "one picture at a time"),
        (np.zeros((0, 9, 3), np.uint8), "empty"),
        (np.zeros(9, np.uint8), r"a picture is \[H, W, 3\]"),
        (Image.new("RGBA", (9, 9)), r"RGBA, 9 x 9\): use image.convert"),
        (Image.new("P", (9, 9)), "convert"),
        ("a.jpg", "a str: give a PIL image"),
        (torch.zeros(9, 9, 3), "torch Tensor"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_line(picture, words):
    makers = (
        lambda: preprocess(picture, 224),
        lambda: model_frame(picture, RGB),
        lambda: motion_frame([picture] * 3, MOTION),
        lambda: FrameMaker(MOTION).add(picture, 0.0),
        lambda: luminance(picture),
    )
    for make in makers:
        with pytest.raises(FrameError, match=words) as caught:
            make()
        assert len(str(caught.value).splitlines()) == 1


def test_pictures_are_taken_as_pil_images_and_as_arrays():
    image = Image.fromarray(PIXELS[0]).resize((500, 300))
    pixels = np.asarray(image)
    resized = np.asarray(image.resize((426, 256), Image.Resampling.BILINEAR))[16:240, 101:325]
    assert np.array_equal(preprocess(pixels, 224), resized)
    assert np.array_equal(preprocess(image, 224), resized)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    assert np.array_equal(preprocess(bgr[..., ::-1], 224), resized)
    grey = image.convert("L")
    wanted = np.asarray(grey.resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(preprocess(np.asarray(grey), 224, "squash"), wanted)
    in_colour = model_frame(grey, official_spec(fit="squash"))
    assert np.array_equal(in_colour, np.stack([wanted] * 3, axis=-1))
    assert (in_colour.kind, motion_frame([image] * 3, MOTION).kind) == ("rgb", "motion")


def test_makers_are_for_models_of_their_kind():
    with pytest.raises(FrameError, match=r"sees motion: .* 0.1 s apart: use FrameMaker"):
        model_frame(PIXELS[0], MOTION)
    with pytest.raises(FrameError, match="sees RGB, not motion: use model_frame"):
        motion_frame(list(PIXELS[:3]), RGB)
    with pytest.raises(FrameError, match="made from 3 pictures, not 4"):
        motion_frame(list(PIXELS), MOTION)
    maker = FrameMaker(MOTION)
    maker.add(PIXELS[0], 1.0)
    for time_s in (1.0, 0.5, float("nan")):
        with pytest.raises(FrameError, match="times must rise"):
            maker.add(PIXELS[0], time_s)
    assert np.array_equal(FrameMaker(RGB).add(PIXELS[0], 0.0), model_frame(PIXELS[0], RGB))


def test_a_maker_forgets_what_no_frame_looks_back_at():
    maker = FrameMaker(MOTION)
    for number in range(200):
        maker.add(PIXELS[number % 4], number / 30)
    assert len(maker._planes) <= 8


def test_parts_of_a_frame_know_what_they_are_and_computed_ones_do_not():
    clip = ModelFrame.of(PIXELS, MOTION)
    assert np.shares_memory(clip, PIXELS)
    assert {part.kind for part in (clip[0], clip[1:3], clip[[2, 0]])} == {"motion"}
    for plain in (np.stack([clip[0]]), clip[0] + 1, pickle.loads(pickle.dumps(clip[0])), np.ascontiguousarray(clip[0])):
        assert getattr(plain, "motion_gap_s", None) is None
    assert isinstance(clip.mean(), float)
    with pytest.raises(FrameError, match="float64"):
        ModelFrame.of(PIXELS / 2, MOTION)
    with pytest.raises(ValueError, match="frame"):  # as Python's own checks do
        ModelFrame.of(PIXELS[..., 0], MOTION)
    assert issubclass(FrameError, AdaFocusError)
