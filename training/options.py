"""Options of training: the official names and defaults, composed by Hydra, checked once."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adafocus_edge.errors import UsageError
from training.backbones import BACKBONES
from training.layouts import LAYOUTS

CONF = Path(__file__).parent / "conf"
DATASETS = tuple(LAYOUTS)
PRESETS = tuple(sorted(path.stem for path in (CONF / "preset").glob("*.yaml")))
UNUSED = frozenset(
    "arch k num_classes partial_fcvid_eval partial_ratio ada_reso_skip reso_list random_crop center_crop ada_crop_list "
    "rescale_to policy_input_offset save_meta npb penalty gpus random_patch".split()
)
"""Options that the official code takes and never uses, or that the stage or the data decide; accepted with a note."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "train_stage": (0, 1, 2, 3),
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
        "Data": "dataset data_dir train_list val_list root_path classes separator multi_label",
        "Run": "train_stage pretrain_glancer preset epochs batch_size seed eval_freq best_by",
        "Checkpoints": "resume pretrained_glancer pretrained_focuser glancer_weights focuser_weights evaluate",
        "Model": "glancer focuser num_segments input_size glance_size patch_size action_dim hidden_dim "
        "hidden_state_dim policy_conv with_glancer consensus feature_map_channels continuous fit motion_gap_s",
        "Optimisation": "optimizer backbone_lr fc_lr policy_lr lr_type lr_steps momentum weight_decay clip_grad "
        "dropout freeze_bn amp",
        "Policy (stage 2)": "policy_estimator reward gamma entropy_weight policy_batch ppo_epochs policy_cache "
        "policy_views",
        "Augmentation": "dense_sample crop_scales flip colour_jitter",
        "Reading clips": "workers prefetch_factor cache cache_dir cache_frames augment_on",
        "Devices and processes": "device compile multiprocessing_distributed distributed world_size rank dist_url "
        "dist_backend gpu",
    }.items()
}
"""The options by subject, for help; :data:`UNUSED` are in none."""
EMPTY_MEANS_DEFAULT = frozenset(("train_list", "val_list", "root_path", "classes"))
"""The official defaults of these are empty: the data set says what they are."""


@dataclass
class TrainOptions:
    """Everything that ``adafocus-edge train`` takes as ``key=value``.

    Those down to ``policy_input_offset`` have the official code's names and defaults (its ``conf/default.yaml``); an
    empty ``key=`` stands for None. The others are ours.

    Attributes:
        dataset: ``actnet``, ``fcvid``, ``minik`` or ``custom``; a config group with file names and formats.
        data_dir: the folder that the data set's files lie in.
        train_list: split list, CSV or folder per class to train on, within ``data_dir`` unless it is absolute.
        val_list: the same, to evaluate on.
        root_path: what the lists' paths are relative to, within ``data_dir``.
        train_stage: 0 a backbone alone, 1 focuser and classifier, 2 policy, 3 classifier.
        pretrain_glancer: at stage 0: train the glancer (else the focuser).
        batch_size: clips per update, over all processes of one machine.
        workers: processes that read clips, over all processes of one machine; at most one per core is started.
        num_segments: frames per clip.
        dropout: before the classifier's linear layer.
        epochs: how often every clip is seen.
        backbone_lr: learning rate of backbones.
        fc_lr: learning rate of the classifier.
        policy_lr: learning rate of the policy (Adam).
        lr_type: ``cos``, or ``step``: a tenth at each of ``lr_steps``.
        lr_steps: epochs, as ``50-100`` or ``[50,100]``.
        clip_grad: largest norm of the gradient; the official code has the option and never applies it.
        eval_freq: evaluate every so many epochs, and after the last one.
        amp: half precision with loss scaling, on a GPU.
        resume: checkpoint of the stage before; or of this stage, to go on exactly where it stopped.
        pretrained_glancer: checkpoint of stage 0 for the glancer.
        pretrained_focuser: checkpoint of stage 0 for the focuser.
        evaluate: only evaluate the checkpoint given by ``resume``.
        multiprocessing_distributed: one process per GPU of this machine.
        distributed: empty to follow from ``world_size``; ``false`` to insist on one process.
        world_size: machines (with ``multiprocessing_distributed``), or processes that were started by hand.
        rank: of this machine or process. Under ``torchrun`` none of these is needed.
        continuous: a continuous policy; only ``false`` is supported.
        preset: ``official`` or ``edge``; a config group.
        glancer: backbone of the glancer.
        focuser: backbone of the focuser.
        glancer_weights: ``imagenet`` (torchvision's), ``random``, or a file: of torchvision's parameter names, or a
            stage-0 checkpoint of the same backbone (one may serve both parts).
        focuser_weights: the same for the focuser.
        classes: file of class names within ``data_dir``; one per line.
        separator: of the lists.
        multi_label: whether mAP counts all labels of a clip.
        best_by: ``mAP`` or ``top1``: what decides which checkpoint is the best.
        fit: how frames become square, see :class:`ModelSpec`.
        motion_gap_s: see :class:`ModelSpec`.
        freeze_bn: keep the batch norms of trained backbones in evaluation mode: for small batches.
        optimizer: ``sgd``, as in the official code, or ``adamw``.
        colour_jitter: largest relative change of brightness and contrast in training; the official code has none.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        cache: where decoded frames are kept for later epochs: ``ram``, ``disk`` (for later runs, too), or ``off``, as
            in the official code. Kept frames have the short side that evaluation resizes to (256 for 224), or their own
            if it is smaller; training crops those, so larger videos are resized once more than with ``off``. Where
            frames do not fit, they are decoded at each epoch, which changes no sample.
        cache_dir: folder of ``cache=disk``; by default ``.frame-cache`` within ``data_dir``. Nothing removes it.
        cache_frames: frames of each segment that are kept and may be drawn, evenly spaced; all of a clip of no more
            than ``num_segments`` times as many frames.
        augment_on: where kept frames are cropped, mirrored and jittered: ``workers``, ``device`` (where the model
            computes), or ``auto``: on a GPU. With ``cache=off``, always in the workers.
        prefetch_factor: batches that each worker prepares ahead.
        compile: compile the backbones by ``torch.compile``, which needs a C++ compiler (CPU) or Triton (GPU).
        flip: mirror half of the clips in training, as the official code does.
        crop_scales: sides of the random crops in training as shares of the short side, as ``1-0.875-0.75-0.66`` or
            ``[1,0.875]``; ``1`` keeps the whole frame. Crops cut small targets near the border away.
        policy_cache: at stage 2, where the frozen networks' features of every cell are kept, so that they are computed
            once: ``ram``, ``disk`` (in the run's folder, removed at its end), ``auto``: memory if they fit, else disk;
            ``off``, as in the official code, computes them anew for each update. See :mod:`training.policy_cache`.
        policy_views: with the cache: in how many augmented versions each clip is kept, used in turn.
        policy_estimator: ``ppo``, as published, or ``expected``: the expected reward over all cells, without sampling
            noise; it looks one step ahead (``gamma=0``).
        policy_batch: clips per update at stage 2; 0 for ``batch_size``.
        ppo_epochs: gradient steps per rollout; 1 in the official code.
        entropy_weight: how much an even policy is worth beside the reward; 0.01 in the official code.
    """

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
    seed: int = 1007
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
    optimizer: str = "sgd"
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
    policy_views: int = 1
    policy_estimator: str = "ppo"
    policy_batch: int = 0
    ppo_epochs: int = 1
    entropy_weight: float = 0.01

    @property
    def root(self) -> Path:
        """Return ``data_dir``."""
        return Path(self.data_dir).expanduser()

    def path(self, name: str) -> Path:
        """Return a file of the data set: within ``data_dir``, unless it is absolute."""
        return self.root / Path(getattr(self, name)).expanduser()

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


@dataclass
class Composed:
    """A composed configuration.

    Attributes:
        options: checked.
        run_dir: Hydra's output folder, ``outputs/YYYY-MM-DD/HH-MM-SS`` unless ``hydra.run.dir`` says otherwise.
        chose_run_dir: whether it was given.
        notes: for the user: options that are accepted and unused.
        given: the options that were given, as they were written.
    """

    options: TrainOptions
    run_dir: Path
    chose_run_dir: bool
    notes: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)


def compose_options(overrides: Sequence[str]) -> Composed:
    """Compose the configuration from defaults, the config groups ``dataset`` and ``preset``, and ``key=value``.

    Raises ``UsageError``: no ``key=value``, an unknown key (the nearest known one is named), a value of the wrong type
    or outside its choices, or options that contradict each other.
    """
    known = {f.name: f for f in fields(TrainOptions)}
    given = [_normalise(override, known) for override in overrides]
    given = [text for text in given if text.rstrip("=") not in EMPTY_MEANS_DEFAULT]
    keys = [text.partition("=")[0] for text in given]
    for group, allowed in (("dataset", DATASETS), ("preset", PRESETS)):
        for key, text in zip(keys, given, strict=True):
            value = text.partition("=")[2]
            if key == group and value not in allowed:
                raise UsageError(f"{group}={value}: must be one of {', '.join(allowed)}")
    if "dataset" not in keys:
        raise UsageError(f"dataset= is missing: give one of {', '.join(DATASETS)}")
    store = ConfigStore.instance()
    store.store(name="schema", node=TrainOptions)
    for name, layout in LAYOUTS.items():
        store.store(group="dataset", name=name, node={"dataset": name, **asdict(layout)}, package="_global_")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=given, return_hydra_config=True)
            run_dir = Path(str(config.hydra.run.dir))
            values = {name: config[name] for name in known}
            chosen = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainOptions), values))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(f"options: {' '.join(str(error.__cause__ or error).split())[:300]}") from None
    assert isinstance(chosen, TrainOptions)
    notes = [f"{key}=: accepted, and of no effect here" for key in keys if key in UNUSED]
    if chosen.continuous:
        raise UsageError("continuous=true: only discrete policies (n x n cells) are supported")
    _check(chosen)
    return Composed(chosen, run_dir, any(key == "hydra.run.dir" for key in keys), notes, list(overrides))


def _normalise(override: str, known: dict[str, Any]) -> str:
    """Check a ``key=value``, and write what Hydra's grammar would not take (spaces, ...) as it wants it."""
    key, sign, value = override.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"{override!r}: options of train are written key=value")
    if key not in known and not key.lstrip("+~").startswith("hydra."):
        near = difflib.get_close_matches(key, known, 1, 0.5)
        raise UsageError(f"unknown option {key!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    if not value and key in known and known[key].default is None:
        return f"{key}=null"
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{quoted}'"
    return override


LARGEST = 2**32 - 1
"""Of any whole number among the options, such as a seed."""


def _check(options: TrainOptions) -> None:
    if options.train_stage is None:
        raise UsageError("train_stage= is missing: 0 a backbone, 1 focuser and classifier, 2 policy, 3 classifier")
    for name, allowed in CHOICES.items():
        if getattr(options, name) not in allowed:
            raise UsageError(f"{name}={getattr(options, name)}: must be one of {', '.join(map(str, allowed))}")
    for name in (
        "batch_size", "num_segments", "epochs", "eval_freq", "world_size", "hidden_dim", "hidden_state_dim",
        "cache_frames", "prefetch_factor", "policy_views", "ppo_epochs",
    ):  # fmt: skip
        if getattr(options, name) < 1:
            raise UsageError(f"{name}={getattr(options, name)}: must be at least 1")
    for name in (
        "backbone_lr", "fc_lr", "policy_lr", "momentum", "weight_decay", "clip_grad", "workers", "gamma", "seed",
        "colour_jitter", "rank", "policy_batch", "entropy_weight",
    ):  # fmt: skip
        if not 0 <= getattr(options, name) < float("inf"):
            raise UsageError(f"{name}={getattr(options, name)}: must be a number that is not negative")
    for name, value in asdict(options).items():
        if isinstance(value, int) and value > LARGEST:
            raise UsageError(f"{name}={value}: must be at most {LARGEST}")
    if options.colour_jitter > 1:
        raise UsageError(f"colour_jitter={options.colour_jitter}: must be at most 1")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise UsageError(f"device={options.device}: must be auto, cpu, cuda or cuda:N")
    if options.gpu is not None and options.gpu < 0:
        raise UsageError(f"gpu={options.gpu}: must be the number of a CUDA device")
    if options.rank >= options.world_size:
        raise UsageError(f"rank={options.rank}: must be below world_size={options.world_size}")
    if not 0 <= options.dropout < 1:
        raise UsageError(f"dropout={options.dropout}: must be at least 0 and below 1")
    if options.data_dir == "":
        raise UsageError("data_dir= is missing: the folder that holds frames or videos, split lists and class names")
    if not options.root.is_dir():
        raise UsageError(f"data_dir={options.data_dir}: no such folder")
    root = math.isqrt(max(0, options.action_dim))
    if root < 2 or root * root != options.action_dim:
        raise UsageError(f"action_dim={options.action_dim}: must be a square, such as 25, 36 or 49")
    if options.feature_map_channels != BACKBONES[options.glancer].dim:
        raise UsageError(
            f"feature_map_channels={options.feature_map_channels}: {options.glancer} gives "
            f"{BACKBONES[options.glancer].dim}"
        )
    if options.evaluate and not options.resume:
        raise UsageError("evaluate=true needs resume=CHECKPOINT")
    options.lr_milestones  # noqa: B018 - told now rather than after an hour
    options.crop_shares  # noqa: B018 - the same
    check_policy_options(options)
    for name in ("resume", "pretrained_glancer", "pretrained_focuser"):
        value = str(Path(getattr(options, name)).expanduser()) if getattr(options, name) else ""
        setattr(options, name, value)
        if value and not Path(value).is_file():
            raise UsageError(f"{name}={value}: no such checkpoint")
    for name in ("glancer_weights", "focuser_weights"):
        value = getattr(options, name)
        if value not in ("imagenet", "random") and not Path(value).is_file():
            raise UsageError(f"{name}={value}: neither `imagenet`, `random`, nor a file")


def check_policy_options(options: TrainOptions) -> None:
    """Check what stage 2 is asked for. Raises ``UsageError`` for options that contradict each other."""
    if options.policy_estimator == "expected":
        if options.gamma:
            raise UsageError(
                f"gamma={options.gamma}: policy_estimator=expected looks one step ahead: give gamma=0, or "
                "policy_estimator=ppo"
            )
        if options.ppo_epochs > 1:
            raise UsageError(f"ppo_epochs={options.ppo_epochs}: is for policy_estimator=ppo")
    if options.policy_views > 1 and options.policy_cache == "off":
        raise UsageError(f"policy_views={options.policy_views}: is for policy_cache=auto, ram or disk")
