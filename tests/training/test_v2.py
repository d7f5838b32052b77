"""AdaFocus V2 against the official outputs: what it sees and says, one step at a time, and one training step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adafocus_edge.errors import UsageError
from adafocus_edge.media.preprocess import preprocess
from adafocus_edge.model.spec import ModelSpec
from tests.conftest import GOLDEN, ROOT, edge, one_line_error
from tests.golden.v2.weights_v2 import values
from tests.support.streams import free_port
from tests.training.helpers import ONE_THREAD, write_lists
from training.backbones import BACKBONES
from training.compose import compose_options
from training.models.registry import family_of
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


@pytest.mark.parametrize("case", ["v2_actnet128", "v2_res50glance"])
def test_the_peer_of_the_benchmarks_gives_the_golden_outputs(case: str) -> None:
    model, golden = golden_model(case), outputs(case)
    peer = family_of(model.spec).official_way(model.spec, model.state_dict())
    frames = torch.from_numpy(frames_in(golden["order"] + 1))
    origins, logits = peer.clip(frames)
    scale = np.abs(golden["logits"]).max()
    assert np.abs(np.asarray(origins) - golden["actions"]).max() <= 1e-5
    assert np.abs(logits.numpy() - golden["logits"]).max() <= 1e-4 * scale
    peer.reset()
    one_by_one = torch.cat([peer.frame(frame)[1] for frame in frames.split(1)])
    assert (one_by_one - logits).abs().max() <= 1e-4 * scale


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


def test_mixed_clips_cost_their_classes_by_share() -> None:
    model = golden_model("v2_step_small")
    pixels = torch.from_numpy(np.stack([frames_in(range(first, first + 4)) for first in (1, 5, 9)])).float()
    frames = (pixels / 255.0 - model.mean) / model.std
    one, other = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    origins = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))
    both = torch.nn.functional.one_hot(torch.stack([one, other]), 10).float()
    with torch.no_grad():
        first, second = (joint_loss(model, frames, target, origins).loss for target in (one, other))
        mixed = joint_loss(model, frames, torch.lerp(both[1], both[0], 0.3), origins).loss
    assert mixed.item() == pytest.approx(0.3 * first.item() + 0.7 * second.item(), rel=1e-5)
    assert first.item() != pytest.approx(second.item(), rel=1e-3)


# -- the training command ----------------------------------------------------------------------------------------------

FIGHTS = ROOT / "tests" / "fights"
TINY_V2 = (
    "dataset=custom family=v2 glancer=mobilenet_v2 focuser=mobilenet_v2 glancer_weights=random focuser_weights=random "
    "num_segments=3 input_size=64 glance_size=64 patch_size=32 stn_hidden_dim=16 classifier_dim=24 batch_size=4 "
    "lr=0.01 workers=0 device=cpu eval_freq=1 sample=true root_path="
).split()


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v2")
    write_lists(folder)
    return folder


def train_v2(lists: Path, run: Path, *more: str) -> Path:
    given = [*TINY_V2, f"data_dir={lists}", "train_list=train.csv", "val_list=val.csv", *more]
    done = edge("train", *given, *([] if any(m.startswith("resume=") for m in more) else [f"hydra.run.dir={run}"]))
    assert done.returncode == 0, done.stderr
    return run / "last.pth.tar"


def test_a_run_of_v2_resumes_exactly_and_its_checkpoint_is_exported(lists: Path, tmp_path: Path) -> None:
    # A schedule that does not depend on the last epoch.
    steps = ["lr_type=step", "lr_steps=50-100", "mixup=true", "ema=0.5"]
    whole = train_v2(lists, tmp_path / "whole", *steps, "epochs=2")
    part = train_v2(lists, tmp_path / "parts", *steps, "epochs=1")
    train_v2(lists, tmp_path / "parts", *steps, "epochs=2", f"resume={part}")
    first = torch.load(whole, weights_only=True)
    again = torch.load(tmp_path / "parts" / "last.pth.tar", weights_only=True)
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in first["state_dict"].items())
    # The names are those of the official code.
    layout = json.loads((V2 / "layout_v2_actnet128.json").read_text())
    mobile = {name for name in layout if name.startswith("global_CNN.")}
    assert {name.removeprefix("module.") for name in first["state_dict"] if "global_CNN." in name} == mobile
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert {"logits_loss_policy", "focus_loss_random", "origin_spread"} <= set(line["train"])
    first = ("dataset=custom", f"data_dir={lists}", "train_list=train.csv", "val_list=val.csv", "train_stage=3")
    one_line_error(edge("train", *first, f"resume={whole}"), 2, "a checkpoint of AdaFocus V2: give family=v2")
    bundle = tmp_path / "bundle"
    made = edge("export", whole, "-o", bundle)
    assert made.returncode == 0, made.stderr
    val = lists / "val.csv"
    found = {}
    for name, model in (("checkpoint", whole), ("bundle", bundle)):
        done = edge("evaluate", model, "--data", val, "--json")
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    for one, other in zip(found["bundle"]["predictions"], found["checkpoint"]["predictions"], strict=True):
        assert one["confidence"] == pytest.approx(other["confidence"], abs=2e-3)
    assert lines[-1]["val"]["top1"] == pytest.approx(found["checkpoint"]["top1"], abs=1e-3)
    own = ("train", *TINY_V2, f"data_dir={lists}", "train_list=train.csv", "val_list=val.csv")
    evaluated = edge(*own, f"resume={whole}", "evaluate=true")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"mAP {lines[-1]['val']['mAP']:.3f}" in evaluated.stdout


def test_two_processes_give_the_update_of_one_with_both_batches(lists: Path, tmp_path: Path) -> None:
    given = [
        "train", *TINY_V2, f"data_dir={lists}", "train_list=train.csv", "val_list=val.csv", "epochs=1", "dropout=0",
        "fc_dropout=0", "freeze_bn=true", "batch_size=8",
    ]  # fmt: skip
    done = edge(*given, f"hydra.run.dir={tmp_path / 'one'}", **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launch, "--master-port", str(free_port()), "-m", "adafocus_edge", *given]
    two = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'two'}"], check=False, env={**os.environ, **ONE_THREAD},
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    expected, found = (
        torch.load(tmp_path / n / "last.pth.tar", weights_only=True)["state_dict"] for n in ("one", "two")
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6, msg=name)
    one_line, two_line = (json.loads((tmp_path / n / "metrics.jsonl").read_text()) for n in ("one", "two"))
    for part in ("train", "val"):
        assert two_line[part]["loss"] == pytest.approx(one_line[part]["loss"], rel=1e-4)
        assert two_line[part]["top1"] == pytest.approx(one_line[part]["top1"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["family=v2", "train_stage=1"], "train_stage=: is for family=v1"),
        (["family=v1", "train_stage=0", "stn_lr_ratio=1"], "stn_lr_ratio=: is for family=v2"),
        (["family=v3"], "family=v3: must be one of v1, v2"),
        (["family=v2", "glance_arch=res18"], "glance_arch=res18: must be one of"),
    ],
)
def test_options_of_another_family_are_refused(given: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        compose_options(["dataset=custom", f"data_dir={tmp_path}", *given])


def test_official_command_lines_compose(tmp_path: Path) -> None:
    line = (
        "glance_arch=res50 workers=8 num_segments=16 dropout=0.2 fc_dropout=0.2 epochs=50 lr=0.002 lr_type=cos "
        "lr_steps=0-0 batch_size=32 momentum=0.9 weight_decay=1e-4 patch_size=128 global_lr_ratio=0.5 stn_lr_ratio=0.1 "
        "classifier_lr_ratio=5.0 hidden_dim=1024 stn_hidden_dim=2048 sample=true"
    ).split()
    weights = tmp_path / "weights.pth"
    weights.touch()
    composed = compose_options(
        ["dataset=actnet", f"data_dir={tmp_path}", "family=v2", *line, f"glance_ckpt_path={weights}"]
    )
    options = composed.options
    assert (options.glancer, options.focuser, options.glance_size) == ("resnet50", "resnet50", 96)
    assert options.glancer_weights == str(weights)
    assert options.multi_label  # mAP counts all labels on every data set
    assert composed.notes == ["hidden_dim=: accepted, without effect"]
    defaults = compose_options(["dataset=actnet", f"data_dir={tmp_path}", "family=v2"]).options
    assert (defaults.lr, defaults.dropout, defaults.fc_dropout, defaults.stn_hidden_dim) == (0.01, 0.8, 0.8, 1024)
    assert (defaults.glance_size, defaults.sample, defaults.stn_lr_ratio) == (224, False, 0.01)
    edge_v2 = compose_options(["dataset=custom", f"data_dir={tmp_path}", "family=v2", "preset=edge"]).options
    assert (edge_v2.focuser, edge_v2.stn_hidden_dim, edge_v2.sample) == ("mobilenet_v2", 128, False)
