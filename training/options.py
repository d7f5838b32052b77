"""Options of training: names, defaults and choices, their descriptions by group, and the checks of their values.

:mod:`training.compose` makes them of a command line. This module imports neither PyTorch nor Hydra, so help and the
manual can read it anywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adafocus_edge.errors import UsageError
from adafocus_edge.model.defaults import SEED
from adafocus_edge.model.spec import ModelSpec
from training.backbones import BACKBONES
from training.layouts import LAYOUTS

CONF = Path(__file__).parent / "conf"
DATASETS = tuple(LAYOUTS)
PRESETS = tuple(sorted(path.stem for path in (CONF / "preset").glob("*.yaml")))
UNUSED = frozenset(
    "arch k num_classes partial_fcvid_eval partial_ratio ada_reso_skip reso_list random_crop center_crop ada_crop_list "
    "rescale_to policy_input_offset save_meta npb penalty gpus random_patch".split()
)
"""Options that the official code reads and never uses, or that the stage or the data decide; accepted with a note."""
FAMILIES = ("v1", "v2")
"""Generations of AdaFocus that can be trained."""
GLANCE_ARCHES = {"mbv2": "mobilenet_v2", "res50": "resnet50"}
"""The glancer by its name in V2's official option ``glance_arch``."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "family": FAMILIES,
    "glance_arch": ("", *GLANCE_ARCHES),
    "train_stage": (0, 1, 2, 3),
    "stages": ("all",),
    "glancer": tuple(BACKBONES),
    "focuser": tuple(BACKBONES),
    "consensus": ("gru", "fc"),
    "reward": ("random", "prev", "conf"),
    "lr_type": ("cos", "step"),
    "optimizer": ("sgd", "adamw"),
    "fit": ("crop", "squash"),
    "separator": (",", " "),
    "best_by": ("mAP", "top1"),
    "dist_backend": ("nccl", "gloo"),
    "cache": ("off", "ram", "disk"),
    "augment_on": ("auto", "workers", "device"),
    "policy_cache": ("off", "auto", "ram", "disk"),
    "policy_estimator": ("ppo", "expected"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    title: tuple(names.split())
    for title, names in {
        "Family": "family",
        "Data": "dataset data_dir train_list val_list root_path classes separator multi_label",
        "Run": "stages export train_stage pretrain_glancer preset epochs batch_size seed eval_freq best_by",
        "Checkpoints": "resume pretrained_glancer pretrained_focuser glancer_weights focuser_weights evaluate",
        "Model": "glancer focuser num_segments input_size glance_size patch_size action_dim hidden_dim "
        "hidden_state_dim policy_conv with_glancer consensus feature_map_channels continuous fit motion_gap_s",
        "Optimisation": "optimizer backbone_lr fc_lr policy_lr lr_type lr_steps momentum weight_decay clip_grad "
        "dropout freeze_bn freeze_backbones ema amp",
        "Policy (stage 2)": "policy_estimator reward gamma entropy_weight policy_batch ppo_epochs policy_cache "
        "policy_cache_dir policy_views",
        "AdaFocus V2": "lr stn_lr_ratio global_lr_ratio classifier_lr_ratio fc_dropout sample stn_hidden_dim "
        "classifier_dim glance_arch glance_ckpt_path",
        "Augmentation": "dense_sample crop_scales flip colour_jitter mixup",
        "Reading clips": "workers prefetch_factor cache cache_dir cache_frames augment_on",
        "Devices and processes": "device compile multiprocessing_distributed distributed world_size rank dist_url "
        "dist_backend gpu",
    }.items()
}
"""The options by subject, for help; :data:`UNUSED` are in none."""
OWN_OPTIONS: dict[str, frozenset[str]] = {
    "v1": frozenset(
        "train_stage pretrain_glancer stages export backbone_lr fc_lr policy_lr action_dim hidden_state_dim "
        "policy_conv with_glancer consensus freeze_backbones pretrained_glancer pretrained_focuser".split()
    )
    | frozenset(GROUPS["Policy (stage 2)"]),
    "v2": frozenset(GROUPS["AdaFocus V2"]),
}
"""Options that one family has alone, by family."""
EMPTY_MEANS_DEFAULT = frozenset(("train_list", "val_list", "root_path", "classes"))
"""Options whose official default is empty: the data set decides their values."""


@dataclass
class TrainOptions:
    """The options that ``adafocus-edge train`` takes as ``key=value``.

    Those down to ``policy_input_offset`` have the official code's names and defaults (its ``conf/default.yaml``); an
    empty ``key=`` stands for None. The others are ours. :data:`GROUPS` orders them by subject.

    Attributes:
        family: generation of AdaFocus to train: ``v1`` in four stages, or ``v2`` in one; a config group.
        lr: base learning rate of V2, the focuser's.
        stn_lr_ratio: learning rate of the policy of V2, as a multiple of ``lr``.
        global_lr_ratio: learning rate of the glancer of V2 and its auxiliary head, as a multiple of ``lr``.
        classifier_lr_ratio: learning rate of the classifier of V2, as a multiple of ``lr``.
        fc_dropout: dropout before the auxiliary heads of V2, a probability.
        sample: train V2 to see frames in the published order, coarse to fine, not in time; live windows are in time.
        stn_hidden_dim: size of the recurrent state of V2's policy.
        classifier_dim: width of V2's classifier; 4096 in the official code.
        glance_arch: glancer of V2 under its official name, ``mbv2`` or ``res50``; empty for ``glancer``.
        glance_ckpt_path: official name of ``glancer_weights`` in V2.
        dataset: data set, which decides file names and formats; a config group.
        data_dir: folder of the data set's files.
        train_list: split list, CSV or folder per class to train on, relative to ``data_dir``.
        val_list: split list, CSV or folder per class to validate on, relative to ``data_dir``.
        root_path: folder that the paths in the lists are relative to, itself relative to ``data_dir``.
        train_stage: stage to train: 0 one backbone, 1 focuser and classifier, 2 policy, 3 classifier.
        pretrain_glancer: train the glancer at stage 0; ``false`` trains the focuser.
        batch_size: clips per update, over all processes of one machine.
        workers: processes that read clips, over all processes of one machine; at most one per core is started.
        num_segments: frames per clip.
        dropout: dropout before the classifier's linear layer, a probability.
        epochs: passes over the training clips.
        backbone_lr: learning rate of the backbones.
        fc_lr: learning rate of the classifier.
        policy_lr: learning rate of the policy, for Adam.
        lr_type: learning-rate schedule: cosine, or a tenth at each of ``lr_steps``.
        lr_steps: epochs at which ``lr_type=step`` lowers the learning rate, as ``50-100`` or ``[50,100]``.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD or AdamW.
        clip_grad: max norm of the gradient, 0 for no limit; the official code has the option and never applies it.
        eval_freq: epochs between two validations; the last epoch is always validated.
        amp: compute in half precision with loss scaling, on GPUs only.
        input_size: side of the preprocessed frame, in pixels.
        glance_size: side of the frame that the glancer sees, in pixels.
        patch_size: side of the focuser's patch, in pixels.
        feature_map_channels: channels of the glancer's feature map; decided by ``glancer``.
        action_dim: cells that the policy chooses from, a square number.
        hidden_state_dim: size of the policy's recurrent state.
        hidden_dim: size of the classifier's recurrent state.
        policy_conv: reduce the feature map by a 1 x 1 convolution before the policy.
        with_glancer: give the glancer's features to the classifier, beside the focuser's.
        consensus: how the classifier joins the frames: a GRU, or the mean of their probabilities.
        reward: reward of a patch: confidence beyond a random patch's (``random``), beyond the step before (``prev``),
            or itself (``conf``).
        gamma: discount of later rewards.
        resume: checkpoint of the stage before to start from, or of this stage to continue exactly where it stopped.
        pretrained_glancer: stage-0 checkpoint of the glancer.
        pretrained_focuser: stage-0 checkpoint of the focuser.
        evaluate: evaluate the checkpoint given by ``resume``, and do not train.
        seed: random seed.
        dense_sample: sample frames from a span of 64 at a steady stride, not from all segments of the clip.
        multiprocessing_distributed: start one process per GPU of this machine.
        distributed: ``false`` insists on one process; empty follows from ``world_size``.
        dist_url: address at which processes meet.
        dist_backend: library by which processes on GPUs communicate; on CPUs it is always Gloo.
        world_size: number of machines (with ``multiprocessing_distributed``) or of processes started by hand.
        rank: number of this machine or process, from 0; not needed under ``torchrun``.
        gpu: number of the CUDA device to use, and no other.
        continuous: train a continuous policy; only ``false`` is supported.
        preset: named set of defaults; a config group.
        stages: ``all`` trains glancer, focuser and stages 1, 2 and 3 one after the other, each in a sub-folder of the
            run folder, and resumes where it stopped; empty trains ``train_stage`` alone.
        export: with ``stages=all``, export the finished model to the folder ``bundle`` in the run folder.
        glancer: backbone of the glancer.
        focuser: backbone of the focuser.
        glancer_weights: initial weights of the glancer: ``imagenet`` (torchvision's), ``random``, or a file with
            torchvision's parameter names or of stage 0 with the same backbone.
        focuser_weights: initial weights of the focuser, as ``glancer_weights``; with ``stages=all`` also ``glancer``,
            if both are the same network: no stage 0 of its own, stage 1 starts from the trained glancer's weights.
        classes: file of class names, one per line, relative to ``data_dir``.
        separator: separator of the fields in split lists.
        multi_label: count all labels of a clip in mAP, not only its first.
        best_by: metric that selects the best checkpoint.
        fit: how frames become square: centre crop, or squashed whole.
        motion_gap_s: seconds between the three frames whose luminance makes up one input frame; 0 for colour.
        freeze_bn: keep batch norms of trained backbones in evaluation mode, for small batches.
        freeze_backbones: train the classifier alone at stage 1, not the focuser; ``policy_cache`` then serves stages 1
            and 3, too, with random cells for random patches.
        optimizer: optimiser of backbones and classifier; the official code has ``sgd``.
        mixup: at stages 0 and 1, and for V2, train on pairs of clips that are mixed pixel by pixel, with both classes;
            features that ``policy_cache`` keeps at stage 1 are not mixed.
        ema: decay of a moving average of the trained weights, which validation and checkpoints then see, such as 0.99;
            0 for none. Not at stage 2.
        colour_jitter: max relative change of brightness and contrast in training; none in the official code.
        device: device to train on: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        cache: where decoded frames are kept for later epochs (``disk``: for later runs, too); ``off`` decodes them at
            each epoch, as the official code does. Kept frames have the short side that evaluation resizes to (256 for
            224), or their own if smaller; training crops those, so larger videos are resized once more than with
            ``off``. Frames for which there is no room are decoded at each epoch, which changes no sample.
        cache_dir: folder of ``cache=disk``; empty for ``.frame-cache`` in ``data_dir``. It is never removed.
        cache_frames: max frames of each segment to keep and draw from, evenly spaced; a clip of up to ``num_segments``
            times as many frames is kept whole.
        augment_on: where kept frames are cropped, mirrored and jittered: in the workers, on the model's device, or
            ``auto``, the device if that is a GPU. With ``cache=off``, always in the workers.
        prefetch_factor: batches that each worker prepares ahead.
        compile: compile the backbones by ``torch.compile``, which needs a C++ compiler (CPU) or Triton (GPU).
        flip: mirror half of the clips in training, as the official code does.
        crop_scales: sides of the random crops in training, as shares of the short side: ``1-0.875-0.75-0.66`` or
            ``[1,0.875]``. ``1`` keeps the whole frame; smaller crops may cut off small targets near the border.
        policy_cache: where stage 2 (with ``freeze_backbones`` also 1 and 3) keeps the frozen networks' features of each
            cell, computed once: in memory, on disk (in the run folder, removed at the end), or ``auto``, in
            memory if they fit, else on disk. ``off`` computes them again for each update, as the official code does.
        policy_cache_dir: folder of ``policy_cache=disk`` that stays, so that later runs with the same networks, clips
            and augmentation need not compute the features again; it is never removed, and ``auto`` then uses it.
        policy_views: augmented versions in which ``policy_cache`` keeps each clip, used in turn.
        policy_estimator: estimator of the policy's gradient: PPO, as published, or the expected reward over all cells,
            which has no sampling noise and looks one step ahead (``gamma=0``).
        policy_batch: clips per update at stage 2; 0 for ``batch_size``.
        ppo_epochs: gradient steps per rollout; 1 in the official code.
        entropy_weight: weight of the policy's entropy beside the reward; 0.01 in the official code.
    """

    family: str = "v1"
    dataset: str = ""
    data_dir: str = ""
    train_list: str = ""
    val_list: str = ""
    root_path: str = "frames"
    train_stage: int | None = None
    pretrain_glancer: bool = True
    batch_size: int = 64
    workers: int = 16
    num_segments: int = 16
    dropout: float = 0.5
    epochs: int = 50
    backbone_lr: float = 0.01
    fc_lr: float = 0.005
    policy_lr: float = 0.0003
    lr_type: str = "cos"
    lr_steps: Any = "50-100"
    momentum: float = 0.9
    weight_decay: float = 0.0001
    clip_grad: float = 20.0
    eval_freq: int = 5
    amp: bool = True
    input_size: int = 224
    glance_size: int = 224
    patch_size: int = 96
    feature_map_channels: int = 1280
    action_dim: int = 49
    hidden_state_dim: int = 1024
    hidden_dim: int = 1024
    policy_conv: bool = True
    with_glancer: bool = True
    consensus: str = "gru"
    reward: str = "random"
    gamma: float = 0.7
    resume: str = ""
    pretrained_glancer: str = ""
    pretrained_focuser: str = ""
    evaluate: bool = False
    seed: int = SEED
    dense_sample: bool = False
    multiprocessing_distributed: bool = True
    distributed: bool | None = None
    dist_url: str = "tcp://127.0.0.1:8888"
    dist_backend: str = "nccl"
    world_size: int = 1
    rank: int = 0
    gpu: int | None = None
    continuous: bool = False
    arch: str = "resnet"
    k: int = 3
    num_classes: int = 200
    partial_fcvid_eval: bool = False
    partial_ratio: float = 0.2
    ada_reso_skip: bool = False
    reso_list: Any = 224
    random_crop: bool = False
    center_crop: bool = False
    ada_crop_list: Any = None
    rescale_to: int = 224
    save_meta: bool = False
    npb: bool = True
    penalty: float = 0.5
    gpus: Any = 0
    random_patch: bool = False
    policy_input_offset: int = 0

    preset: str = "official"
    stages: str = ""
    export: bool = False
    glancer: str = "mobilenet_v2"
    focuser: str = "resnet50"
    glancer_weights: str = "imagenet"
    focuser_weights: str = "imagenet"
    classes: str = "classInd.txt"
    separator: str = ","
    multi_label: bool = False
    best_by: str = "top1"
    fit: str = "crop"
    motion_gap_s: float = 0.0
    freeze_bn: bool = False
    freeze_backbones: bool = False
    optimizer: str = "sgd"
    mixup: bool = False
    ema: float = 0.0
    colour_jitter: float = 0.0
    device: str = "auto"
    cache: str = "off"
    cache_dir: str = ""
    cache_frames: int = 16
    augment_on: str = "auto"
    prefetch_factor: int = 2
    compile: bool = False
    flip: bool = True
    crop_scales: Any = "1-0.875-0.75-0.66"
    policy_cache: str = "off"
    policy_cache_dir: str = ""
    policy_views: int = 1
    policy_estimator: str = "ppo"
    policy_batch: int = 0
    ppo_epochs: int = 1
    entropy_weight: float = 0.01
    lr: float = 0.01
    stn_lr_ratio: float = 0.01
    global_lr_ratio: float = 1.0
    classifier_lr_ratio: float = 1.0
    fc_dropout: float = 0.8
    sample: bool = False
    stn_hidden_dim: int = 1024
    classifier_dim: int = 4096
    glance_arch: str = ""
    glance_ckpt_path: str = ""

    @property
    def root(self) -> Path:
        """Return ``data_dir``."""
        return Path(self.data_dir).expanduser()

    def path(self, name: str) -> Path:
        """Return a file of the data set: within ``data_dir``, unless it is absolute."""
        return self.root / Path(getattr(self, name)).expanduser()

    @property
    def stage(self) -> int:
        """Return ``train_stage`` of options that train one."""
        assert self.train_stage is not None
        return self.train_stage

    @property
    def lr_milestones(self) -> tuple[int, ...]:
        """Return ``lr_steps`` as numbers."""
        steps = self.lr_steps if isinstance(self.lr_steps, (list, tuple)) else re.split(r"[-,\s]+", str(self.lr_steps))
        try:
            return tuple(int(step) for step in steps if str(step))
        except ValueError:
            raise UsageError(f"lr_steps={self.lr_steps}: must be epochs, such as 50-100") from None

    @property
    def crop_shares(self) -> tuple[float, ...]:
        """Return ``crop_scales`` as numbers, largest first."""
        given = self.crop_scales
        parts = given if isinstance(given, (list, tuple)) else re.split(r"[-,\s]+", str(given))
        try:
            shares = sorted((float(part) for part in parts if str(part)), reverse=True)
        except (TypeError, ValueError):
            shares = []
        if not shares or not all(0.05 <= share <= 1 for share in shares):
            raise UsageError(f"crop_scales={given}: must be shares of 0.05 to 1, such as 1-0.875-0.75")
        return tuple(shares)


STAGED = frozenset(("v1",))
"""Families that are trained in stages; the others have one."""
RES50_GLANCE = 96
"""Side of the frame that a ResNet-50 glancer of V2 sees, in pixels; a MobileNetV2 sees the whole frame."""
GLANCER = "glancer"
"""Value of ``focuser_weights``: the trained glancer's, in ``stages=all``."""
SET_BY_STAGES_ALL = ("train_stage", "resume", "pretrained_glancer", "pretrained_focuser", "evaluate")
"""Options that ``stages=all`` decides for each stage."""
OPTIONAL = ("train_stage", "stages")
"""Options with choices that may be empty: one of the two is given."""
LARGEST = 2**32 - 1
"""Max value of a whole number among the options, such as a seed."""


def settle_family(options: TrainOptions, given: Collection[str]) -> list[str]:
    """Settle what a family's options say under names of their own; return notes for the user.

    Args:
        options: composed; V2's ``glance_arch``, ``glance_ckpt_path`` and ``stn_hidden_dim`` become the common options.
        given: names of the options that were given.

    Raises ``UsageError`` for an option that another family has alone.
    """
    for family, own in OWN_OPTIONS.items():
        for name in given:
            if family != options.family and name in own:
                raise UsageError(f"{name}=: is for family={family}, not for family={options.family}")
    if options.family in STAGED:
        return []
    if options.glance_arch:
        options.glancer = GLANCE_ARCHES.get(options.glance_arch, options.glancer)
    if options.glance_ckpt_path:
        options.glancer_weights = options.glance_ckpt_path
    if options.glancer in BACKBONES:
        options.feature_map_channels = BACKBONES[options.glancer].dim
    if not options.glance_size:
        options.glance_size = RES50_GLANCE if options.glancer == GLANCE_ARCHES["res50"] else options.input_size
    options.multi_label = options.multi_label or "multi_label" not in given
    return [f"{name}=: accepted, without effect" for name in ("hidden_dim",) if name in given]


def check_options(options: TrainOptions) -> None:
    """Check every value, and expand ``~`` in paths. Raises ``UsageError`` that names the option and what is allowed."""
    for name, allowed in CHOICES.items():
        value = getattr(options, name)
        if value not in allowed and not (name in OPTIONAL and value in ("", None)):
            raise UsageError(f"{name}={value}: must be one of {', '.join(map(str, allowed))}")
    _check_run(options)
    _check_numbers(options)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise UsageError(f"device={options.device}: must be auto, cpu, cuda or cuda:N")
    if options.continuous:
        raise UsageError("continuous=true: only discrete policies (n x n cells) are supported")
    if options.data_dir == "":
        raise UsageError("data_dir= is missing: the folder that holds frames or videos, split lists and class names")
    if not options.root.is_dir():
        raise UsageError(f"data_dir={options.data_dir}: no such folder")
    if options.evaluate and not options.resume:
        raise UsageError("evaluate=true needs resume=CHECKPOINT")
    check_policy_options(options)
    _check_files(options)


def _check_run(options: TrainOptions) -> None:
    """Check which stages are to be trained."""
    if options.family not in STAGED:
        return
    if options.stages == "all":
        given = [name for name in SET_BY_STAGES_ALL if getattr(options, name) not in (None, "", False)]
        if given:
            raise UsageError(f"stages=all: sets {given[0]} of each stage itself: remove {given[0]}=")
        if options.world_size > 1:
            raise UsageError(
                f"world_size={options.world_size}: stages=all runs on one machine: give train_stage=0 to 3"
            )
        return
    if options.export:
        raise UsageError("export=true: is for stages=all; `adafocus-edge export CHECKPOINT` exports any other run")
    if options.train_stage is None:
        raise UsageError(
            "train_stage= is missing: give 0 (a backbone), 1 (focuser and classifier), 2 (policy) or 3 (classifier), "
            "or stages=all"
        )


def _check_numbers(options: TrainOptions) -> None:
    """Check the ranges of numbers, and numbers that depend on each other."""
    for name in (
        "batch_size", "num_segments", "epochs", "eval_freq", "world_size", "hidden_dim", "hidden_state_dim",
        "cache_frames", "prefetch_factor", "policy_views", "ppo_epochs", "stn_hidden_dim", "classifier_dim",
    ):  # fmt: skip
        if getattr(options, name) < 1:
            raise UsageError(f"{name}={getattr(options, name)}: must be at least 1")
    for name in (
        "backbone_lr", "fc_lr", "policy_lr", "momentum", "weight_decay", "clip_grad", "workers", "gamma", "seed",
        "colour_jitter", "rank", "policy_batch", "entropy_weight", "lr", "stn_lr_ratio", "global_lr_ratio",
        "classifier_lr_ratio",
    ):  # fmt: skip
        if not 0 <= getattr(options, name) < float("inf"):
            raise UsageError(f"{name}={getattr(options, name)}: must be a number of at least 0")
    for name, value in asdict(options).items():
        if isinstance(value, int) and value > LARGEST:
            raise UsageError(f"{name}={value}: must be at most {LARGEST}")
    if options.colour_jitter > 1:
        raise UsageError(f"colour_jitter={options.colour_jitter}: must be at most 1")
    if options.gpu is not None and options.gpu < 0:
        raise UsageError(f"gpu={options.gpu}: must be the number of a CUDA device")
    if options.rank >= options.world_size:
        raise UsageError(f"rank={options.rank}: must be below world_size={options.world_size}")
    for name in ("dropout", "fc_dropout", "ema"):
        if not 0 <= getattr(options, name) < 1:
            raise UsageError(f"{name}={getattr(options, name)}: must be at least 0 and below 1")
    root = math.isqrt(max(0, options.action_dim))
    if root < 2 or root * root != options.action_dim:
        raise UsageError(f"action_dim={options.action_dim}: must be a square, such as 25, 36 or 49")
    if options.feature_map_channels != BACKBONES[options.glancer].dim:
        raise UsageError(
            f"feature_map_channels={options.feature_map_channels}: {options.glancer} gives "
            f"{BACKBONES[options.glancer].dim}"
        )
    options.lr_milestones  # noqa: B018 - reported now rather than after an hour
    options.crop_shares  # noqa: B018 - the same


def _check_files(options: TrainOptions) -> None:
    """Check that the files of weights exist."""
    for name in ("resume", "pretrained_glancer", "pretrained_focuser"):
        value = str(Path(getattr(options, name)).expanduser()) if getattr(options, name) else ""
        setattr(options, name, value)
        if value and not Path(value).is_file():
            raise UsageError(f"{name}={value}: no such checkpoint")
    for name in ("glancer_weights", "focuser_weights"):
        value = getattr(options, name)
        if name == "focuser_weights" and value == GLANCER:
            if options.stages != "all":
                raise UsageError("focuser_weights=glancer: is for stages=all: give a stage-0 checkpoint")
            if options.focuser != options.glancer:
                raise UsageError(
                    f"focuser_weights=glancer: the focuser is a {options.focuser}, the glancer a {options.glancer}"
                )
            continue
        if value not in ("imagenet", "random") and not Path(value).is_file():
            raise UsageError(f"{name}={value}: must be `imagenet`, `random` or an existing file")


def check_policy_options(options: TrainOptions) -> None:
    """Check the options of stage 2. Raises ``UsageError`` for options that contradict each other."""
    if options.policy_estimator == "expected":
        if options.gamma:
            raise UsageError(
                f"gamma={options.gamma}: policy_estimator=expected looks one step ahead: give gamma=0, or "
                "policy_estimator=ppo"
            )
        if options.ppo_epochs > 1:
            raise UsageError(f"ppo_epochs={options.ppo_epochs}: is for policy_estimator=ppo: give ppo_epochs=1")
    if options.policy_views > 1 and options.policy_cache == "off":
        raise UsageError(f"policy_views={options.policy_views}: is for policy_cache=auto, ram or disk")
    if options.policy_cache_dir and options.policy_cache not in ("auto", "disk"):
        raise UsageError(f"policy_cache_dir={options.policy_cache_dir}: is for policy_cache=auto or disk")


def model_spec(options: TrainOptions, classes: int) -> ModelSpec:
    """Return the shapes of a V1 model. Raises ``UsageError`` if the options' sizes do not fit together."""
    return family_spec(
        options,
        classes,
        grid=math.isqrt(options.action_dim),
        policy_state=options.hidden_state_dim,
        classifier_state=options.hidden_dim if options.consensus == "gru" else classes + 1,
        consensus=options.consensus,
        with_glancer=options.with_glancer,
        policy_conv=options.policy_conv,
    )


def family_spec(options: TrainOptions, classes: int, **of_family: Any) -> ModelSpec:
    """Return the shapes of a model from the options that all families have and from ``of_family``, fields of its own.

    Raises ``UsageError`` if its sizes do not fit together.
    """
    try:
        return ModelSpec(
            glancer=options.glancer,
            focuser=options.focuser,
            glance_dim=BACKBONES[options.glancer].dim,
            focus_dim=BACKBONES[options.focuser].dim,
            frame_size=options.input_size,
            glance_size=options.glance_size,
            patch_size=options.patch_size,
            segments=options.num_segments,
            classes=classes,
            fit=options.fit,  # type: ignore[arg-type]
            motion_gap_s=options.motion_gap_s,
            **of_family,
        )
    except ValueError as error:
        raise UsageError(f"options: {error}") from None
