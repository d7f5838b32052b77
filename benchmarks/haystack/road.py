"""Trains and evaluates all models of the table by the command line; finished steps are not repeated."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAST = "last.pth.tar"
V2_ROW = "AdaFocus V2, bundle"
"""Start of the names of V2's rows."""
KEPT_FRAMES = 8
"""Frames of each clip that training keeps in memory."""
NEAR_LISTS = ("train_list=near_train.csv", "val_list=near_val.csv")
BACKBONE = ("num_segments=1", "freeze_bn=false")
"""Options of stage 0: one frame of each clip per epoch, which is as many updates for less work; the batch norms learn,
since with frozen ones the full-size close-ups did not train at all (loss ln 10 after 12 epochs)."""


@dataclass(frozen=True)
class Epochs:
    """Epochs of each run.

    Attributes:
        near: epochs of either backbone on close-ups (stage 0), of the glancer at its own scale.
        glance: epochs of the glancer on whole frames, from there (stage 0). From ImageNet's weights it learns nothing:
            the signs are too small to begin with, and its feature map then does not show the cards.
        seen: epochs of focuser and classifier on whole close-ups (stage 1): random patches seldom show a card, so the
            classifier would learn the signs from a few percent of them only.
        whole: epochs of the focuser on whole frames at full size.
        random: epochs of focuser and classifier on random patches of the clips.
        policy: epochs of the policy (stage 2).
        last: epochs of the classifier on the policy's patches (stage 3).
        joint: epochs of AdaFocus V2, all parts together, from the same two backbones: as many CPU seconds as V1 takes
            from them.
    """

    near: int = 40
    glance: int = 16
    seen: int = 4
    whole: int = 8
    random: int = 12
    policy: int = 40
    last: int = 20
    joint: int = 8


@dataclass(frozen=True)
class Road:
    """One model, from clips to a bundle.

    Attributes:
        data: folder of clips, as :mod:`benchmarks.haystack.clips` writes it.
        out: folder for runs.
        weights: file of ImageNet weights of MobileNetV2, or ``imagenet`` for torchvision's, or ``random``.
        frame: side of the frames, pixels.
        glance: side of the glances, pixels.
        patch: side of the patches, pixels.
        segments: glimpses per clip.
        cells: cells that the policy chooses from; enough that some patch holds a whole card.
        near: side of the close-ups in the focuser's input, pixels.
        batch: clips per update, except for the policy.
        epochs: epochs of each run.
        workers: processes that read clips.
        seed: random seed.
        more: more options of every training run.
    """

    data: Path
    out: Path
    weights: str
    frame: int
    glance: int
    patch: int
    segments: int
    cells: int
    near: int
    batch: int = 16
    epochs: Epochs = Epochs()
    workers: int = 2
    seed: int = 1007
    more: tuple[str, ...] = ()

    def glimpses(self) -> dict[str, Any]:
        """Train, export and evaluate the model; return the evaluations by name."""
        glancer = self._glancer()
        stages = self._stages(glancer, self._near())
        if not self.bundle.exists():
            edge("export", stages[-1], "-o", self.bundle)
        found = {f"glancer alone (whole frames at {self.glance})": self.evaluate(glancer)}
        for name, model, patches in (
            ("stage 1", stages[0], "random,centre"),
            ("stage 2", stages[1], "policy,random,centre"),
            ("stage 3", stages[2], "policy,random,centre"),
            ("bundle", self.bundle, "policy,random,centre,oracle"),
        ):
            several = self.evaluate(model, patches)
            found |= {f"{name}, {one} patches": figures for one, figures in several["patches"].items()}
        return found

    def second_generation(self) -> dict[str, Any]:
        """Train, export and evaluate AdaFocus V2 from the same two backbones; return the evaluations by name."""
        checkpoint = self._train(
            "v2", "family=v2", *self._sizes(self.frame, self.glance, self.patch), f"epochs={self.epochs.joint}",
            f"glancer_weights={self._glancer()}", f"focuser_weights={self._near()}",
        )  # fmt: skip
        if not self.v2_bundle.exists():
            edge("export", checkpoint, "-o", self.v2_bundle)
        several = self.evaluate(self.v2_bundle, "policy,random,centre,oracle")
        return {f"{V2_ROW}, {one} patches": figures for one, figures in several["patches"].items()}

    def whole_frames(self) -> dict[str, Any]:
        """Train and evaluate the focuser on whole frames at full size."""
        return {f"whole frames at {self.frame}": self.evaluate(self._whole(self.frame))}

    @property
    def bundle(self) -> Path:
        """Return the folder of the exported model."""
        return self.out / "bundle"

    @property
    def v2_bundle(self) -> Path:
        """Return the folder of the exported model of AdaFocus V2."""
        return self.out / "v2-bundle"

    def seconds(self) -> dict[str, int]:
        """Return the seconds that each training run took."""
        return {path.stem: int(path.read_text()) for path in sorted(self.out.glob("*.seconds"))}

    def _near(self) -> Path:
        """Train the focuser on close-ups (stage 0)."""
        return self._train(
            "focuser", "train_stage=0", "pretrain_glancer=false", *self._shape(self.near, self.near, self.near),
            *NEAR_LISTS, f"epochs={self.epochs.near}", f"focuser_weights={self.weights}", *BACKBONE,
        )  # fmt: skip

    def _glancer(self) -> Path:
        """Train the glancer on close-ups at the scale of its glances, then on whole frames (stage 0)."""
        side = round(self.near * self.glance / self.frame)
        near = self._train(
            "glancer-near", "train_stage=0", "pretrain_glancer=true", *self._shape(side, side, side), *NEAR_LISTS,
            f"epochs={self.epochs.near}", f"glancer_weights={self.weights}", *BACKBONE,
        )  # fmt: skip
        return self._train(
            "glancer", "train_stage=0", "pretrain_glancer=true", *self._shape(self.frame, self.glance, self.patch),
            f"epochs={self.epochs.glance}", f"pretrained_glancer={near}", *BACKBONE,
        )  # fmt: skip

    def _whole(self, side: int) -> Path:
        """Train the focuser of close-ups on whole frames of this side (stage 0)."""
        return self._train(
            f"whole{side}", "train_stage=0", "pretrain_glancer=false", *self._shape(side, side, min(self.patch, side)),
            f"epochs={self.epochs.whole}", f"pretrained_focuser={self._near()}", *BACKBONE,
        )  # fmt: skip

    def _stages(self, glancer: Path, focuser: Path) -> list[Path]:
        shape = self._shape(self.frame, self.glance, self.patch)
        rates = ["backbone_lr=0.0001", "fc_lr=0.003"]
        seen = self._train(
            "stage1-near", "train_stage=1", *self._shape(self.near, self.near, self.near), f"epochs={self.epochs.seen}",
            *NEAR_LISTS, f"pretrained_glancer={glancer}", f"pretrained_focuser={focuser}", *rates,
        )  # fmt: skip
        first = self._train(
            "stage1", "train_stage=1", *shape, f"epochs={self.epochs.seen + self.epochs.random}", f"resume={seen}",
            *rates,
        )  # fmt: skip
        # Both stages take the features of all cells from the same files.
        kept = ["freeze_backbones=true", "policy_cache=disk", f"policy_cache_dir={self.out / 'features'}"]
        second = self._train(
            "stage2", "train_stage=2", *shape, f"epochs={self.epochs.policy}", f"eval_freq={self._every()}",
            f"resume={first}", *kept,
        )  # fmt: skip
        third = self._train("stage3", "train_stage=3", *shape, f"epochs={self.epochs.last}", f"resume={second}", *kept)
        return [first, second, third]

    def _every(self) -> int:
        return max(1, self.epochs.policy // 25)

    def _sizes(self, frame: int, glance: int, patch: int) -> list[str]:
        return [f"input_size={frame}", f"glance_size={glance}", f"patch_size={patch}"]

    def _shape(self, frame: int, glance: int, patch: int) -> list[str]:
        return [*self._sizes(frame, glance, patch), f"action_dim={self.cells}"]

    def _train(self, name: str, *options: str) -> Path:
        """Train or resume a run, unless it is finished; return its last checkpoint."""
        run = self.out / name
        last, mark = run / LAST, self.out / f"{name}.seconds"
        if mark.exists():
            return last
        given = [
            "dataset=custom", "preset=edge", f"data_dir={self.data}", "train_list=train.csv", "val_list=val.csv",
            f"num_segments={self.segments}", "motion_gap_s=0", "crop_scales=1", f"batch_size={self.batch}",
            f"workers={self.workers}", f"seed={self.seed}", "eval_freq=1000", *self.more, *options,
        ]  # fmt: skip
        by_name = {option.partition("=")[0]: option for option in given}
        if last.exists():
            by_name["resume"] = f"resume={last}"
        else:
            by_name["hydra.run.dir"] = f"hydra.run.dir={run}"
        segments = int(by_name["num_segments"].partition("=")[2])
        by_name.setdefault("cache_frames", f"cache_frames={max(1, KEPT_FRAMES // segments)}")
        before = time.monotonic()
        edge("train", *by_name.values())
        mark.write_text(f"{time.monotonic() - before:.0f}\n")
        return last

    def evaluate(self, model: Path, patches: str | None = None) -> dict[str, Any]:
        """Evaluate a checkpoint or a bundle on the validation clips, or read an earlier evaluation."""
        name = model.name if model.is_dir() else model.parent.name
        path = self.out / f"{name}.json"
        if not path.exists():
            asked = ["--segments", self.segments] if patches is None else ["--patches", patches]
            edge("evaluate", model, "--data", self.data / "val.csv", *asked, "-q", "-o", path)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def edge(*arguments: object) -> None:
    """Run a verb of the command line with this program's output."""
    command: Sequence[str] = [sys.executable, "-m", "adafocus_edge", *map(str, arguments)]
    subprocess.run(command, check=True)
