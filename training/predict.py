"""Prediction of clips by a checkpoint of any stage, for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from adafocus_edge.errors import CheckpointError, UsageError
from adafocus_edge.evaluation.evaluate import Predict, gflops_per_step, graphs_used, predict_at
from adafocus_edge.evaluation.oracle import Oracle
from adafocus_edge.evaluation.settings import Patches
from adafocus_edge.model.spec import ModelSpec
from training.checkpoint import Checkpoint, ModelOptions, load_part, read_checkpoint
from training.graphs import count_gflops, torch_model
from training.lineage import untrained_notes
from training.model import AdaFocus
from training.models.registry import load_model
from training.options import TrainOptions
from training.settings import setting_warnings, settings_of
from training.stages import BackboneStage
from training.train import model_spec


@dataclass(frozen=True)
class Predictor:
    """A checkpoint, ready to predict.

    Attributes:
        predict: returns the logits after each step, of one clip's frames (for the oracle, its label, too).
        spec: the model's shapes.
        classes: class names, or None where the checkpoint has none.
        gflops_per_step: multiply-adds per frame in units of 1e9.
        what: description of what was loaded.
        notes: notes for the user, a line each.
    """

    predict: Predict | Oracle
    spec: ModelSpec
    classes: tuple[str, ...] | None
    gflops_per_step: float
    what: str
    notes: tuple[str, ...] = ()


def load_predictor(
    path: Path, options: ModelOptions, patches: Patches, schedule: str, threads: int | None = None
) -> Predictor:
    """Load a checkpoint of any stage.

    A stage-0 checkpoint is its backbone alone on whole frames; one of stage 1 has no policy, so it takes centre or
    random patches.

    Raises ``CheckpointError`` or ``UsageError``.
    """
    checkpoint = read_checkpoint(path)
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if checkpoint.stage == 0:
        if patches != "policy":
            raise UsageError(f"{path}: a stage-0 checkpoint takes whole frames: --patches does not apply")
        return _backbone_alone(checkpoint, options, device)
    model = load_model(checkpoint, options, without_policy=patches != "policy").to(device)
    costs = {graph: count_gflops(model, graph) for graph in graphs_used(model.spec, patches)}
    gflops = gflops_per_step(costs, model.spec, patches)
    loaded, _ = torch_model(model)
    return Predictor(
        predict_at(loaded, patches, schedule),
        model.spec,
        checkpoint.classes,
        gflops,
        f"checkpoint, {patches} patches",
        (
            *checkpoint.notes,
            *setting_warnings(settings_of(checkpoint, options, model.spec), model.spec),
            *(note for note in untrained_notes(checkpoint) if patches == "policy" or "its policy" not in note),
        ),
    )


def _backbone_alone(checkpoint: Checkpoint, asked: ModelOptions, device: torch.device) -> Predictor:
    """Return the predictor of a stage-0 checkpoint; ``asked`` may change the number of frames, which are averaged."""
    known = {f.name for f in fields(TrainOptions)}
    try:
        options = TrainOptions(**{k: v for k, v in checkpoint.config.items() if k in known})
        options.num_segments = asked.num_segments or options.num_segments
        spec = model_spec(options, len(checkpoint.classes or ()))
    except (TypeError, KeyError, UsageError) as error:
        raise CheckpointError(f"{checkpoint.path}: its options cannot be read ({error})") from None
    model = AdaFocus(spec)
    part = "glancer" if options.pretrain_glancer else "focuser"
    load_part(model, checkpoint, f"{part}.net.", "checkpoint")
    stage = BackboneStage(model.to(device), options)
    stage.train(False)

    def predict(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            means: NDArray[np.float32] = stage.running_means(torch.from_numpy(frames)[None].to(device))[0].cpu().numpy()
        return means

    with FlopCounterMode(display=False) as counter:
        predict(np.zeros((1, spec.frame_size, spec.frame_size, 3), np.uint8))
    gflops = int(counter.get_total_flops()) / 2 / 1e9
    return Predictor(predict, spec, checkpoint.classes, gflops, f"{part} alone on whole frames")
