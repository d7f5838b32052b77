"""The two runners of a model, on the host and on a device, are used in the same way and give the same result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from adafocus_edge.backends.base import Runner
from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.device.runner import DeviceRunner
from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, open_bundle
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.glimpse import HostRunner, runner_of
from adafocus_edge.runtime.lanes import HostLanes, Lanes, lanes_of


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    with load_model(open_bundle(default_bundle()), backend="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def resident(model: LoadedModel) -> Iterator[LoadedModel]:
    """The same model with the CPU as a device."""
    programs: dict[str, Any] = {graph: getattr(model, graph) for graph in GRAPHS}
    device = HostDevice()
    runner = DeviceRunner(model.spec, programs, device)
    sessions = {graph: getattr(model, graph) for graph in GRAPHS}
    yield LoadedModel.of(model.spec, sessions, model.backend, model.variant, model.batch, runner)
    runner.release()
    device.close()


def test_a_model_on_a_device_has_its_own_runner_and_one_on_the_host_a_host_runner(
    model: LoadedModel, resident: LoadedModel
) -> None:
    assert isinstance(runner_of(model), HostRunner)
    assert not model.on_device
    assert runner_of(resident) is resident.resident
    assert resident.on_device
    assert isinstance(lanes_of(model, 2), HostLanes)
    assert isinstance(lanes_of(resident, 2), Lanes)


def test_clips_and_steps_of_both_runners_agree(model: LoadedModel, resident: LoadedModel) -> None:
    side = model.spec.frame_size
    frames = np.random.default_rng(7).integers(0, 256, (3, side, side, 3), np.uint8)
    on_host: Runner = runner_of(model)
    on_device: Runner = runner_of(resident)
    clips = [list(runner.see_clip(frames)) for runner in (on_host, on_device)]
    assert [len(clip) for clip in clips] == [3, 3]
    for runner in (on_host, on_device):
        steps = runner.steps(1)
        for _ in range(2):  # the second clip starts with states of zero again
            steps.reset()
            clips.append([steps.see(frames[step : step + 1]) for step in range(3)])
    for clip in clips[1:]:
        for found, expected in zip(clip, clips[0], strict=True):
            assert found.origins.shape == (1, 2)
            np.testing.assert_array_equal(found.origins, expected.origins)
            np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
