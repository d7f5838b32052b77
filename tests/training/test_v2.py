"""AdaFocus V2 against the official outputs: what it sees and says, one step at a time, and one training step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adafocus_edge.media.preprocess import preprocess
from adafocus_edge.model.spec import ModelSpec
from tests.conftest import GOLDEN
from tests.golden.v2.weights_v2 import values
from training.backbones import BACKBONES
from training.models.v2 import AdaFocusV2, bilinear_crop, v2_weights
from training.models.v2_loss import Rates, joint_loss, optimizer

V2 = GOLDEN / "v2"


def v2_spec(glancer: str, focuser: str, glance: int, patch: int, steps: int, state: int, classes: int) -> ModelSpec:
    dims = BACKBONES[glancer].dim, BACKBONES[focuser].dim
    return ModelSpec(
        glancer, focuser, *dims, 224, glance, patch, 0, steps, state, 4097, classes, "max", choice="point",
        order="frameexit",
    )  # fmt: skip


CASES = {
    "v2_actnet128": (11, v2_spec("mobilenet_v2", "resnet50", 224, 128, 16, 2048, 200)),
    "v2_res50glance": (13, v2_spec("resnet50", "resnet50", 96, 128, 16, 256, 20)),
    "v2_step_small": (15, v2_spec("resnet18", "resnet18", 96, 64, 4, 128, 10)),
}


def golden_model(case: str) -> AdaFocusV2:
    """The model of a golden case, with its weights from an official state dict."""
    seed, shape = CASES[case]
    layout = json.loads((V2 / f"layout_{case}.json").read_text())
    state = {f"module.{n}": torch.as_tensor(values(n, tuple(size), seed)) for n, size in layout.items()}
    model = AdaFocusV2(shape, 0.0, 0.0)
    model.load_state_dict(v2_weights(state))
    return model.eval()


def outputs(case: str) -> dict[str, np.ndarray]:
    with np.load(V2 / f"golden_{case}.npz") as found:
        return dict(found)


def frames_in(numbers: Any) -> np.ndarray:
    """Frames by their numbers from 1, preprocessed: uint8 [N, 224, 224, 3]."""
    paths = [V2 / "frames" / f"image_{int(number):05d}.jpg" for number in numbers]
    return np.stack([preprocess(Image.open(path).convert("RGB"), 224) for path in paths])


@pytest.mark.parametrize("case", ["v2_actnet128", "v2_res50glance"])
def test_golden_outputs_by_single_steps(case: str) -> None:
    model, golden = golden_model(case), outputs(case)
    frames = torch.from_numpy(frames_in(golden["order"] + 1))
    policy_state = torch.zeros(1, model.spec.policy_state)
    state = torch.zeros(1, model.spec.classifier_state)
    logits, origins, glances = [], [], []
    with torch.inference_mode():
        for frame in frames.split(1):
            feature_map, glance = model.glance(frame)
            origin, policy_state = model.choose(feature_map, policy_state)
            verdict, state = model.classify(glance, model.focus(frame, origin), state)
            logits.append(verdict)
            origins.append(origin)
            glances.append(glance)
    scale = np.abs(golden["logits"]).max()
    assert np.abs(torch.cat(glances[:2]).numpy() - golden["glance_vec"]).max() <= 1e-4
    assert np.abs(torch.cat(origins).numpy() - golden["actions"]).max() <= 1e-5
    assert np.abs(model.corner(torch.cat(origins)).numpy() - golden["corners"]).max() <= 1e-3
    assert np.abs(torch.cat(logits).numpy() - golden["logits"]).max() <= 1e-4 * scale
    assert state[0, -1] == 16


def test_whole_clips_give_what_single_steps_give() -> None:
    model, golden = golden_model("v2_res50glance"), outputs("v2_res50glance")
    frames = torch.from_numpy(frames_in(golden["order"] + 1))
    with torch.inference_mode():
        feature_maps, glances = model.glance(frames)
        origins = model.policy_stn(feature_maps, 16)
        focuses = model.focus(frames, origins)
        logits = model.classifier(torch.cat([glances, focuses], dim=1))[0]
    assert np.abs(logits.numpy() - golden["logits"]).max() <= 1e-4 * np.abs(golden["logits"]).max()


def test_a_bilinear_crop_is_what_grid_sample_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(8, 40, 40, 3, generator=generator, dtype=torch.float64)
    corner = torch.rand(8, 2, generator=generator, dtype=torch.float64) * 24
    corner[0], corner[1] = 0.0, 24.0  # the frame's own corners: nothing beyond it may count
    corner.requires_grad_(True)
    mine = bilinear_crop(frames, corner, 16)
    # An affine grid of the official form: scale P / S, shift -1 + (2 * corner + P) / S.
    shift = -1 + (2 * corner + 16) / 40
    scale = torch.full((8,), 16 / 40, dtype=torch.float64)
    nothing = torch.zeros(8, dtype=torch.float64)
    theta = torch.stack([scale, nothing, shift[:, 1], nothing, scale, shift[:, 0]], dim=1).view(8, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, [8, 3, 16, 16], align_corners=False)
    theirs = torch.nn.functional.grid_sample(frames.permute(0, 3, 1, 2), grid, align_corners=False)
    assert torch.allclose(mine.permute(0, 3, 1, 2), theirs, atol=1e-9)
    weights = torch.rand(8, 3, 16, 16, generator=generator, dtype=torch.float64)
    (mine_slope,) = torch.autograd.grad((mine.permute(0, 3, 1, 2) * weights)[2:].sum(), corner)
    corner2 = corner.detach().clone().requires_grad_(True)
    shift = -1 + (2 * corner2 + 16) / 40
    theta = torch.stack([scale, nothing, shift[:, 1], nothing, scale, shift[:, 0]], dim=1).view(8, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, [8, 3, 16, 16], align_corners=False)
    again = torch.nn.functional.grid_sample(frames.permute(0, 3, 1, 2), grid, align_corners=False)
    (their_slope,) = torch.autograd.grad((again * weights)[2:].sum(), corner2)
    assert torch.allclose(mine_slope, their_slope, atol=1e-7)


def test_one_training_step_equals_the_official_one() -> None:
    """In float64: the policy's gradient through pixels is ill-conditioned."""
    model, golden = golden_model("v2_step_small").double().train(), outputs("v2_step_small")
    pixels = torch.from_numpy(np.stack([frames_in(clip) for clip in golden["clips"]])).float()
    frames = ((pixels / 255.0 - model.mean.float()) / model.std.float()).double()
    target = torch.from_numpy(golden["target"])
    before = {name: value.clone() for name, value in model.named_parameters()}
    steps = optimizer(model, Rates(0.1, 0.5, 5.0), 0.002)
    found = joint_loss(model, frames, target, torch.from_numpy(golden["rand_0"]).double())
    found.loss.backward()
    assert found.loss.item() == pytest.approx(float(golden["loss"]), rel=1e-6)
    parts = [part.item() for own in found.parts for part in own]
    assert parts == pytest.approx(list(golden["parts"]), rel=1e-6)
    assert np.abs(found.origins.detach().numpy() - golden["actions"]).max() <= 1e-9
    for logits, key in zip(found.logits, ("logits_1", "logits_2"), strict=True):
        assert np.abs(logits.detach().flatten(0, 1).numpy() - golden[key]).max() <= 1e-6
    gradients = {name: value.grad for name, value in model.named_parameters()}
    for name, norm in zip(golden["names"], golden["grad_norms"], strict=True):
        grad = gradients[str(name)]
        if np.isnan(norm):
            assert grad is None, name
        else:
            assert grad is not None, name
            assert grad.norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-5), name
    steps.step()
    for name, norm in zip(golden["names"], golden["change_norms"], strict=True):
        change = (dict(model.named_parameters())[str(name)] - before[str(name)]).norm().item()
        assert change == pytest.approx(norm, rel=1e-6, abs=1e-8), name
    state = model.state_dict()
    for name, norm in zip(golden["bn_names"], golden["bn_norms"], strict=True):
        assert state[str(name)].norm().item() == pytest.approx(norm, rel=1e-6), name
    for counter in golden["counters"]:
        name, batches = str(counter).split("=")
        assert state[name] == int(batches), name
