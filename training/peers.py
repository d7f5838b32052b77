"""The PyTorch models that `adafocus-edge benchmark` compares a bundle with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.evaluate import Predict
from adafocus_edge.evaluation.oracle import Oracle
from adafocus_edge.model.defaults import SEED
from adafocus_edge.model.spec import ModelSpec
from training.checkpoint import ModelOptions, read_checkpoint
from training.graphs import torch_model
from training.models.base import GlimpseModel
from training.models.registry import family_of, load_model
from training.options import TrainOptions
from training.predict import load_predictor


def eager(spec: ModelSpec, checkpoint: Path | None, threads: int, device: str = "cpu") -> Predict:
    """Return the official way to run a model, in eager PyTorch.

    Args:
        spec: the model's shapes.
        checkpoint: its weights, or None for random ones.
        threads: threads of PyTorch.
        device: device of PyTorch.

    Raises:
        BackendError: a model that the official code does not have.
    """
    torch.set_num_threads(threads)
    official = family_of(spec).official_way(spec, _model(spec, checkpoint).state_dict())
    for part in vars(official).values():
        if isinstance(part, torch.nn.Module):
            part.to(device)

    def predict(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = official.clip(torch.from_numpy(frames).to(device))[1].cpu().numpy()
        return logits

    return predict


def compiled(spec: ModelSpec, checkpoint: Path | None, threads: int, device: str = "cpu") -> LoadedModel:
    """Return a model whose graphs ``torch.compile`` has compiled; arguments and errors as :func:`eager`."""
    torch.set_num_threads(threads)
    loaded, sessions = torch_model(_model(spec, checkpoint).to(device).eval())
    for session in sessions.values():
        session.compile()
    return loaded


def whole(spec: ModelSpec, checkpoint: Path | None, threads: int) -> tuple[Predict, float]:
    """Return a function that predicts clips with a checkpoint of any stage, and its GFLOPs per frame.

    A stage-0 checkpoint is its backbone on whole frames, with its own classifier.

    Raises:
        UsageError: its input frames differ from the bundle's.
    """
    assert checkpoint is not None
    # Our checkpoints record their settings; official ones are assumed to have the bundle's.
    options = ModelOptions() if read_checkpoint(checkpoint).config else _options(spec)
    found = load_predictor(checkpoint, options, "policy", "clip", threads)
    for name in ("frame_size", "fit", "motion_gap_s", "classes"):
        ours, theirs = getattr(spec, name), getattr(found.spec, name)
        if ours != theirs:
            raise UsageError(f"{checkpoint}: {name} differs: {theirs} in the checkpoint, {ours} in the bundle")
    assert not isinstance(found.predict, Oracle)  # these patches need none
    return found.predict, found.gflops_per_step


def _options(spec: ModelSpec) -> ModelOptions:
    return ModelOptions(patch_size=spec.patch_size, glance_size=spec.glance_size, num_segments=spec.segments)


def _model(spec: ModelSpec, checkpoint: Path | None) -> GlimpseModel:
    if checkpoint is None:
        torch.manual_seed(SEED)
        return family_of(spec).build(spec, TrainOptions()).eval()
    model = load_model(read_checkpoint(checkpoint), _options(spec))
    ours, theirs = ((one.choice, one.focuser, one.classes) for one in (spec, model.spec))
    if ours != theirs:
        family = family_of(spec).name.upper()
        shape = f"AdaFocus {family}, {spec.focuser}, {spec.classes} classes"
        raise UsageError(f"{checkpoint}: is not the checkpoint of the bundle ({shape})")
    return model
