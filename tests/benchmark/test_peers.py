"""The peers that `benchmark` compares a model with: they cost what they should, and compute the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adafocus_edge.backends.registry import load_model
from adafocus_edge.benchmark import grid as row_module
from adafocus_edge.benchmark.grid import Loading, Row
from adafocus_edge.benchmark.peers import gflops_per_step, load_peer
from adafocus_edge.benchmark.timing import Bench, NoiseClip
from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.evaluation.dataset import read_data
from adafocus_edge.evaluation.evaluate import predict_with
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.preprocess import sampled_frames
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.glimpse import see_clip
from export.whole import on_whole_frames
from tests.conftest import ROOT, SMALL, weights_of
from training.model import AdaFocus

FIGHTS = ROOT / "tests" / "fights"


def fight_frames(bundle: Bundle) -> ModelFrame:
    clip = read_data(FIGHTS, bundle.classes).examples[0].open_clip()
    return ModelFrame.of(np.stack([pixels for _, pixels in sampled_frames(clip, bundle.spec)]), bundle.spec)


def test_parts_left_out_cost_what_is_left(bundle: Bundle) -> None:
    graphs = bundle.manifest.variants["fp32"]
    cost = {name: graphs[name].gflops for name in GRAPHS}
    whole = (224 / bundle.spec.patch_size) ** 2 * cost["focuser"]
    assert gflops_per_step(bundle, "onnxruntime-cpu") == pytest.approx(sum(cost.values()))
    assert gflops_per_step(bundle, "random-patches") == pytest.approx(cost["focuser"] + cost["classifier"])
    assert gflops_per_step(bundle, "whole-frames") == pytest.approx(whole + cost["classifier"])
    assert gflops_per_step(bundle, "glancer-alone") == pytest.approx(cost["glancer"] + cost["classifier"])


@pytest.mark.parametrize("peer", ["centre-patches", "random-patches", "glancer-alone", "whole-frames"])
def test_a_peer_made_of_the_models_own_parts_runs(bundle: Bundle, peer: str) -> None:
    frames = fight_frames(bundle)
    with load_model(bundle, "fp32", "onnxruntime-cpu", 2) as model, load_peer(bundle, peer, 2).model as other:
        ours, theirs = (np.concatenate([g.logits for g in see_clip(m, frames)]) for m in (model, other))
        assert ours.shape == theirs.shape
        assert np.isfinite(theirs).all()
        assert np.abs(ours - theirs).max() > 1e-3
        assert other.backend == peer


def test_the_focuser_on_whole_frames_is_its_backbone_on_the_whole_frame(small_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(small_bundle)
    on_whole_frames(bundle.spec, bundle.graph_path("fp32", "focuser"), tmp_path / "whole.onnx")
    model = AdaFocus(replace(SMALL, patch_size=SMALL.frame_size)).eval()
    model.load_state_dict(weights_of(SMALL, 5))
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    origin = np.array([[0.3, 0.9], [1.0, 0.0]], np.float32)
    with torch.inference_mode():
        expected = model.focus(torch.from_numpy(frames), torch.from_numpy(origin)).numpy()
    from adafocus_edge.backends.onnxruntime import OrtSession

    session = OrtSession(tmp_path / "whole.onnx", 2)
    found = session.run({"frame": frames, "origin": origin})["focus"]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_pytorch_peers_compute_the_same_from_the_bundles_checkpoint(small_bundle: Path, small_checkpoint: Path) -> None:
    bundle = read_bundle(small_bundle)
    frames = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
    with load_model(bundle, "fp32", "onnxruntime-cpu", 2) as model:
        expected = predict_with(model)(frames)
    for peer in ("pytorch-eager", f"{row_module.CHECKPOINT_PEER}own"):
        loaded = load_peer(bundle, peer, 2, small_checkpoint)
        found = np.concatenate([glimpse.logits for glimpse in see_clip(loaded.model, frames)])
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert loaded.gflops_per_step == pytest.approx(gflops_per_step(bundle, "onnxruntime-cpu"), rel=1e-3)
    # type: ignore[arg-type, return-value]
    timing = Bench(load_peer(bundle, "pytorch-eager", 2).model, bundle.classes, lambda name: None).time(
        Row(Loading("small", "pytorch-eager", "fp32", 2), "clip", 8), NoiseClip(), parts=True
    )
    assert timing.parts_ms is not None
    assert set(timing.parts_ms) == {"decode", "preprocess", "model", "host"}
