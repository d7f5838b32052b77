"""Averaged weights (``ema``) and mixed clips (``mixup``)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import ROOT
from tests.training import helpers
from tests.training.helpers import write_lists
from training.averaging import STATE, WeightAverage
from training.compose import compose_options
from training.datasets import Batch
from training.stages import mix
from training.train import run_composed

FIGHTS = ROOT / "tests" / "fights"


def test_the_average_is_the_formula_and_the_weights_come_back() -> None:
    layer = nn.BatchNorm1d(3)
    average = WeightAverage([layer], 0.5)
    expected, seen = layer.weight.detach().clone(), []
    for number in range(1, 6):
        with torch.no_grad():
            layer.weight.add_(number)
        layer(torch.randn(8, 3))  # changes the running statistics
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        seen.append(layer.running_mean.clone())
    own = {name: value.clone() for name, value in layer.state_dict().items()}
    with average.applied():
        assert torch.allclose(layer.weight, expected)
        assert not torch.equal(layer.running_mean, own["running_mean"])
        assert int(layer.num_batches_tracked) == 5
    assert all(torch.equal(value, own[name]) for name, value in layer.state_dict().items())


def test_without_a_decay_nothing_is_kept() -> None:
    average = WeightAverage([nn.Linear(2, 2)], 0.0)
    average.update()
    with average.applied():
        assert average.state() is None


def test_mixed_clips_are_weighted_means_of_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (3, 2, 4, 4, 3), dtype=torch.uint8, generator=generator)
    target = torch.tensor([4, 5, 6])
    draws = torch.full((3, 2), 0.25)
    batch = Batch(frames, target, torch.arange(3), torch.zeros(3, 2, 2), draws, [])
    mixed, other, share = mix(batch)
    assert share == pytest.approx(math.sin(math.pi / 8) ** 2)
    assert other.tolist() == [6, 4, 5]
    exact = share * frames[1].float() + (1 - share) * frames[0].float()
    assert (mixed.frames[1].float() - exact).abs().max() <= 0.51
    assert torch.equal(batch.frames, frames)
    whole, _, full = mix(Batch(frames, target, target, draws[..., None], torch.ones(3, 2), []))
    assert full == pytest.approx(1)
    assert torch.equal(whole.frames, frames)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    write_lists(folder)
    return folder


def train(lists: Path, run: Path, *more: str) -> dict[str, torch.Tensor]:
    """Train stage 0 in this process; return the checkpoint's weights."""
    given = [
        *helpers.TINY, "num_segments=2", "root_path=", "device=cpu", "train_stage=0", f"data_dir={lists}",
        "train_list=train.csv", "val_list=val.csv", "lr_type=step", "lr_steps=50-100", *more,
    ]  # fmt: skip
    if not any(text.startswith("resume=") for text in more):
        given.append(f"hydra.run.dir={run}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_composed(compose_options(given), quiet=True)
    finally:
        torch.set_num_threads(threads)
    weights: dict[str, torch.Tensor] = torch.load(run / "last.pth.tar", weights_only=True)["model_state_dict"]
    return weights


def test_a_run_with_both_resumes_exactly_and_saves_the_average(lists: Path, tmp_path: Path) -> None:
    both = ["ema=0.9", "mixup=true"]
    whole = train(lists, tmp_path / "whole", *both, "epochs=3")
    train(lists, tmp_path / "part", *both, "epochs=1")
    on = train(lists, tmp_path / "part", *both, "epochs=3", f"resume={tmp_path / 'part' / 'last.pth.tar'}")
    assert all(torch.equal(value, on[name]) for name, value in whole.items())
    plain = train(lists, tmp_path / "plain", "mixup=true", "epochs=3")
    state = torch.load(tmp_path / "whole" / "last.pth.tar", weights_only=True)[STATE]
    raw = torch.load(tmp_path / "plain" / "last.pth.tar", weights_only=True)["model_state_dict"]
    # The same training: what is averaged is what a run without an average saves.
    trained = [name for name in raw if name.startswith("glancer.net.")]
    for name, value in zip(trained, state["weights"], strict=True):
        assert torch.allclose(raw[name].float(), value.float(), atol=1e-6), name
    assert not all(torch.equal(value, plain[name]) for name, value in whole.items())
    unmixed = train(lists, tmp_path / "unmixed", "epochs=3")
    assert not all(torch.equal(value, plain[name]) for name, value in unmixed.items())
