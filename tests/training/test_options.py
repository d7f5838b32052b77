"""Options of training: the official command lines and defaults, and what is said of wrong ones."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from adafocus_edge.errors import UsageError
from scripts.manual.docstrings import attributes
from tests.conftest import ROOT, edge, one_line_error
from training.compose import compose_options, sweep
from training.options import CHOICES, GROUPS, UNUSED, TrainOptions

COMMON = (
    "dataset=actnet batch_size=64 workers=8 dropout=0.8 lr_type=cos patch_size=128 glance_size=224 eval_freq=5 "
    "consensus=gru hidden_dim=1024"
).split()
OFFICIAL = {
    "glancer": "train_stage=0 backbone_lr=0.01 epochs=15 random_patch=true pretrain_glancer=true "
    "dist_url=tcp://127.0.0.1:8857",
    "focuser": "train_stage=0 backbone_lr=0.01 epochs=15 random_patch=true pretrain_glancer=false "
    "dist_url=tcp://127.0.0.1:8857",
    "stage 1": "train_stage=1 backbone_lr=0.0005 fc_lr=0.05 epochs=50 random_patch=true pretrained_glancer=CKPT "
    "pretrained_focuser=CKPT dist_url=tcp://127.0.0.1:8857",
    "stage 2": "train_stage=2 backbone_lr=0.0005 fc_lr=0.05 epochs=50 random_patch=false action_dim=49 resume=CKPT "
    "multiprocessing_distributed=false distributed=false",
    "stage 3": "train_stage=3 backbone_lr=0.0005 fc_lr=0.005 epochs=10 random_patch=false action_dim=49 resume=CKPT "
    "multiprocessing_distributed=false distributed=false",
    "evaluate": "train_stage=3 backbone_lr=0.0005 fc_lr=0.005 epochs=10 random_patch=false action_dim=49 resume=CKPT "
    "multiprocessing_distributed=false distributed=false evaluate=true",
}
DEFAULTS = (
    "arch=resnet num_segments=16 k=3 dropout=0.5 num_classes=200 evaluate=false eval_freq=5 dense_sample=false "
    "partial_fcvid_eval=false partial_ratio=0.2 ada_reso_skip=false reso_list=224 random_crop=false center_crop=false "
    "ada_crop_list= rescale_to=224 policy_input_offset=0 save_meta=false epochs=50 batch_size=64 backbone_lr=0.01 "
    "fc_lr=0.005 lr_type=cos lr_steps=50-100 momentum=0.9 weight_decay=0.0001 clip_grad=20 npb=true input_size=224 "
    "patch_size=96 glance_size=224 random_patch=false feature_map_channels=1280 action_dim=49 hidden_state_dim=1024 "
    "policy_conv=true hidden_dim=1024 penalty=0.5 consensus=gru reward=random gamma=0.7 policy_lr=0.0003 "
    "with_glancer=true continuous=false pretrain_glancer=true seed=1007 gpus=0 gpu= workers=16 world_size=1 rank=0 "
    "dist_url=tcp://127.0.0.1:8888 dist_backend=nccl multiprocessing_distributed=true distributed= amp=true resume= "
    "pretrained_glancer= pretrained_focuser="
).split()
"""What the official code's configuration says (shared/official.md)."""


@pytest.fixture
def here(tmp_path: Path) -> list[str]:
    (tmp_path / "CKPT").touch()
    return [f"data_dir={tmp_path}"]


@pytest.mark.parametrize("run", OFFICIAL)
def test_the_official_command_lines_are_taken(here: list[str], run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here[0].partition("=")[2])
    composed = compose_options([*COMMON, *here, *OFFICIAL[run].split()])
    options = composed.options
    assert (options.patch_size, options.dropout, options.hidden_dim) == (128, 0.8, 1024)
    assert options.path("train_list").name == "actnet_train_split.txt"
    assert options.evaluate == (run == "evaluate")
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", str(composed.run_dir))


def test_defaults_are_the_official_ones(here: list[str]) -> None:
    given = ["dataset=actnet", *here, "train_stage=0"]
    options = asdict(compose_options([*given, "train_list=", "val_list=", "root_path="]).options)
    assert options == asdict(compose_options([*given, *DEFAULTS]).options)
    assert options["best_by"] == "mAP"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["bach_size=3"], "unknown option 'bach_size': did you mean 'batch_size'?"),
        (["zzz=3"], "unknown option 'zzz'"),
        (["batch_size"], "are written key=value"),
        (["batch_size=many"], "many"),
        (["dataset=kinetics"], "dataset=kinetics: must be one of actnet, custom, fcvid, minik"),
        (["preset=tiny"], "preset=tiny: must be one of edge, official"),
        (["train_stage=4"], "train_stage=4: must be one of 0, 1, 2, 3"),
        (["reward=best"], "reward=best: must be one of random, prev, conf"),
        (["batch_size=0"], "batch_size=0: must be at least 1"),
        (["backbone_lr=-1"], "backbone_lr=-1.0: must be a number of at least 0"),
        (["dropout=1"], "dropout"),
        (["action_dim=-1"], "action_dim=-1: must be a square"),
        (["seed=99999999999999999999"], "seed=99999999999999999999: must be at most 4294967295"),
        (["action_dim=50"], "action_dim=50: must be a square"),
        (["glancer=resnet18"], "feature_map_channels=1280: resnet18 gives 512"),
        (["continuous=true"], "only discrete policies"),
        (["evaluate=true"], "evaluate=true needs resume=CHECKPOINT"),
        (["resume=/nowhere.pth"], "resume=/nowhere.pth: no such checkpoint"),
        (["glancer_weights=/nowhere.pth"], "glancer_weights=/nowhere.pth: must be `imagenet`"),
        (["lr_steps=soon"], "lr_steps=soon"),
        (["best_by=loss"], "best_by=loss: must be one of mAP, top1"),
        (["weight_decay=nan"], "weight_decay=nan"),
        (["seed=-1"], "seed=-1"),
        (["device=mps"], "device=mps: must be auto, cpu, cuda or cuda:N"),
        (["rank=1"], "rank=1: must be below world_size=1"),
        (["data_dir=/nowhere"], "data_dir=/nowhere: no such folder"),
        (["data_dir="], "data_dir= is missing"),
        (["train_stage="], "train_stage= is missing"),
    ],
)
def test_wrong_options_are_told_in_a_line(here: list[str], given: list[str], words: str) -> None:
    with pytest.raises(UsageError) as told:
        compose_options(["dataset=custom", *here, "train_stage=0", *given])
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_values_may_hold_what_hydra_reserves(tmp_path: Path) -> None:
    folder = tmp_path / "my videos, (2024) = {all}"
    folder.mkdir()
    options = compose_options(["dataset=custom", f"data_dir={folder}", "train_stage=0"]).options
    assert options.root == folder


def test_no_data_set_is_told() -> None:
    with pytest.raises(UsageError, match="dataset= is missing"):
        compose_options(["train_stage=0"])


def test_presets_and_what_is_given_come_on_top_of_each_other(here: list[str]) -> None:
    options = compose_options(["dataset=minik", *here, "train_stage=1", "preset=edge", "hidden_dim=64"]).options
    assert (options.focuser, options.hidden_dim, options.hidden_state_dim) == ("mobilenet_v2", 64, 128)
    assert (options.separator, options.classes) == (" ", "minik_classInd.txt")
    assert options.lr_milestones == (50, 100)


def test_unused_options_are_accepted_with_a_note(here: list[str]) -> None:
    composed = compose_options(["dataset=custom", *here, "train_stage=0", "penalty=0.3"])
    assert composed.notes == ["penalty=: accepted, without effect"]


def test_every_option_is_described_and_has_one_subject() -> None:
    names = [field.name for field in fields(TrainOptions) if field.name not in UNUSED]
    grouped = [name for group in GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(names)
    described = attributes(TrainOptions)
    assert sorted(described) == sorted(names)
    assert set(CHOICES) <= set(names)


def test_options_are_read_without_hydra_and_pytorch() -> None:
    code = "import sys, training.options; sys.exit('|'.join({'hydra', 'omegaconf', 'torch'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("+epochs=3", "+epochs=3: the option exists: write epochs=3"),
        ("+trial=3", "'trial' is neither an option nor a config group: --config-dir DIR names"),
        ("~epochs", "~epochs: an option cannot be removed"),
        ("epochs=3,4", "epochs=3,4: several values need --multirun"),
        ("--config-dir=X", "unknown option"),
    ],
)
def test_what_hydra_means_otherwise_is_refused_in_a_line(here: list[str], given: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        compose_options(["dataset=custom", *here, "train_stage=0", given])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_own_config_files_are_taken_as_hydra_takes_them(here: list[str], tmp_path: Path) -> None:
    own = tmp_path / "it's mine"
    for name, text in (
        ("preset/mine", "defaults:\n  - edge\nepochs: 3\n"),
        ("trial/long", "epochs: 400\n"),
        ("trial/wrong", "epoch: 400\n"),
    ):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    given = ["dataset=custom", *here, "train_stage=0"]
    options = compose_options([*given, "preset=mine"], own).options
    assert (options.preset, options.focuser, options.epochs) == ("mine", "mobilenet_v2", 3)
    assert compose_options([*given, "preset=mine", "+trial=long", "++batch_size=3"], own).options.epochs == 400
    with pytest.raises(UsageError, match="Key 'epoch' not in 'TrainOptions'"):
        compose_options([*given, "+trial=wrong"], own)
    with pytest.raises(UsageError, match="preset=mine: must be one of edge, official"):
        compose_options([*given, "preset=mine"])
    with pytest.raises(UsageError, match="has no folder trials/"):
        compose_options([*given, "+trials=long"], own)


def test_a_sweep_is_a_run_for_each_combination(here: list[str]) -> None:
    folder = here[0].partition("=")[2]
    runs = sweep(["dataset=custom", *here, "stages=all", "seed=1,2", "stage1.epochs=3,4", f"hydra.sweep.dir={folder}"])
    made = [compose_options(run) for run in runs]
    assert [(one.options.seed, one.of_stages["stage1"]) for one in made] == [
        (1, ["epochs=3"]), (1, ["epochs=4"]), (2, ["epochs=3"]), (2, ["epochs=4"]),
    ]  # fmt: skip
    assert [str(one.run_dir) for one in made] == [f"{folder}/{number}" for number in range(4)]
    assert re.fullmatch(
        r"multirun/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d/0", str(compose_options(sweep(runs[0][:-1])[0]).run_dir)
    )
    with pytest.raises(UsageError, match=r"with --multirun give hydra\.sweep\.dir="):
        sweep(["seed=1,2", "hydra.run.dir=x"])


def test_cfg_job_prints_the_composed_options(here: list[str]) -> None:
    done = edge("train", "dataset=custom", *here, "train_stage=1", "preset=edge", "epochs=3", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    found = compose_options(["dataset=custom", *here, "train_stage=1", "preset=edge", "epochs=3"]).options
    assert yaml.safe_load(done.stdout) == asdict(found)
    one_line_error(edge("train", "dataset=custom", *here, "--cfg", "hydra"), 2, "--cfg hydra: must be job")
