"""Classify a folder of clips as a script would that is written by hand for the purpose: peers of ``classify FOLDER``.

Usage: python -m benchmarks.by_hand decord|torchcodec|opencv CLIPS

Every peer takes the default model's frames of each clip (the middle of each of T segments, and the two before it that
show its motion), one file after the other, and prints a JSON line with its label:

- ``decord``, ``torchcodec``: only these frames, by the package's own random access; then ONNX Runtime with its default
  options, all frames of a clip in one batch where the model allows it.
- ``opencv``: every frame, by ``cv2.VideoCapture``; then eager PyTorch as the official code runs a clip. The weights are
  random, as the default model has no checkpoint: this peer's labels mean nothing.

``pip install decord torchcodec opencv-python-headless`` installs what they need; torchcodec needs FFmpeg's libraries.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.media.preprocess import motion_indices, sample_indices
from adafocus_edge.media.sources import find_sources
from adafocus_edge.model.spec import GRAPHS, ModelSpec

Greys = dict[int, NDArray[np.uint8]]
"""Luminance of frames at the model's size, uint8 [S, S], by frame number."""


class Wanted:
    """The frames that a clip is made of.

    Args:
        count: number of frames in the file.
        fps: its frame rate.
        spec: the model's specification.
    """

    def __init__(self, count: int, fps: float, spec: ModelSpec) -> None:
        middles = sample_indices(count, spec.segments)
        self.parts = [motion_indices(index, fps, spec.motion_gap_s) for index in middles]
        self.numbers = sorted({number for part in self.parts for number in part})

    def clip(self, greys: Greys) -> NDArray[np.uint8]:
        """Return the model's frames, uint8 [T, S, S, 3]."""
        return np.stack([np.stack([greys[number] for number in part], axis=-1) for part in self.parts])


def grey(rgb: NDArray[np.uint8], size: int, code: int = cv2.COLOR_RGB2GRAY) -> NDArray[np.uint8]:
    """Return the luminance of a frame at the model's size."""
    return np.asarray(cv2.resize(cv2.cvtColor(rgb, code), (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def with_decord(path: str, spec: ModelSpec) -> NDArray[np.uint8]:
    """Read a clip with decord."""
    import decord

    reader = decord.VideoReader(path)
    wanted = Wanted(len(reader), reader.get_avg_fps(), spec)
    frames = reader.get_batch(wanted.numbers).asnumpy()
    return wanted.clip(dict(zip(wanted.numbers, (grey(frame, spec.frame_size) for frame in frames), strict=True)))


def with_torchcodec(path: str, spec: ModelSpec) -> NDArray[np.uint8]:
    """Read a clip with torchcodec."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC")
    wanted = Wanted(decoder.metadata.num_frames, decoder.metadata.average_fps, spec)
    frames = decoder.get_frames_at(wanted.numbers).data.numpy()
    return wanted.clip(dict(zip(wanted.numbers, (grey(frame, spec.frame_size) for frame in frames), strict=True)))


def with_opencv(path: str, spec: ModelSpec) -> NDArray[np.uint8]:
    """Read every frame of a clip with OpenCV, and keep those that the model sees."""
    capture = cv2.VideoCapture(path)
    wanted = Wanted(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS), spec)
    needed, greys, number = set(wanted.numbers), {}, 0
    while True:
        there, frame = capture.read()
        if not there:
            break
        if number in needed:
            greys[number] = grey(frame, spec.frame_size, cv2.COLOR_BGR2GRAY)
        number += 1
    return wanted.clip(greys)


def in_onnxruntime(spec: ModelSpec, folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """Return a function that runs the model's four graphs on a clip and returns its last logits."""
    import onnxruntime as ort

    sessions = {graph: ort.InferenceSession(folder / f"{graph}.onnx") for graph in GRAPHS}

    def run(graph: str, **feeds: Any) -> dict[str, Any]:
        names = [output.name for output in sessions[graph].get_outputs()]
        return dict(zip(names, sessions[graph].run(names, feeds), strict=True))

    def classify(frames: NDArray[np.uint8]) -> NDArray[Any]:
        seen = run("glancer", frame=frames)
        policy_state = np.zeros((1, spec.policy_state), np.float32)
        origins = []
        for step in range(len(frames)):
            choice = run("policy", feature_map=seen["feature_map"][step : step + 1], policy_state=policy_state)
            policy_state = choice["policy_state_out"]
            origins.append(choice["origin"])
        focus = run("focuser", frame=frames, origin=np.concatenate(origins))["focus"]
        given = {"glance": seen["glance"], "focus": focus} if spec.with_glancer else {"focus": focus}
        state, made = np.zeros((1, spec.classifier_state), np.float32), {}
        for step in range(len(frames)):
            row = {name: value[step : step + 1] for name, value in given.items()}
            made = run("classifier", **row, state=state)
            state = made["state_out"]
        return np.asarray(made["logits"][0])

    return classify


def in_pytorch(spec: ModelSpec) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """Return a function that runs a model of the same shapes, with random weights, in eager PyTorch."""
    import torch

    from training.eager import OfficialWay
    from training.model import AdaFocus

    weights = AdaFocus(spec).state_dict()
    way = OfficialWay(weights, spec.focuser, spec.patch_size, spec.glance_size)
    return lambda frames: way.clip(torch.from_numpy(frames))[1][-1].numpy()


PEERS: dict[str, Callable[[str, ModelSpec], NDArray[np.uint8]]] = {
    "decord": with_decord, "torchcodec": with_torchcodec, "opencv": with_opencv,
}  # fmt: skip


RANDOM_WEIGHTS = ("opencv",)
"""Peers whose labels mean nothing."""


def main(arguments: Sequence[str]) -> None:
    """Classify a folder."""
    name, folder = arguments
    bundle = read_bundle(default_bundle())
    classify = in_pytorch(bundle.spec) if name in RANDOM_WEIGHTS else in_onnxruntime(bundle.spec, bundle.path / "fp32")
    for source in find_sources([folder]):
        logits = classify(PEERS[name](source.address, bundle.spec))
        print(json.dumps({"source": source.name, "label": bundle.classes[int(logits.argmax())]}))


if __name__ == "__main__":
    main(sys.argv[1:])
