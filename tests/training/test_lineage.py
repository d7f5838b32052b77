"""What training starts from: every stage takes the checkpoint it needs, and names the one it wants."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from adafocus_edge.errors import AdaFocusError, CheckpointError, UsageError
from tests.conftest import ROOT, edge, one_line_error
from training.checkpoint import official_layout, read_checkpoint, save_checkpoint
from training.compose import compose_options
from training.distributed import Processes
from training.lineage import changed_options, possible_stages, untrained
from training.model import AdaFocus
from training.train import Trainer, model_spec

TINY = (
    "dataset=custom preset=edge input_size=64 glance_size=64 patch_size=32 action_dim=9 hidden_dim=16 "
    "hidden_state_dim=16 num_segments=4 batch_size=1 epochs=2 workers=0 glancer_weights=random focuser_weights=random "
    "device=cpu"
).split()
CLASSES = ["fight", "no_fight"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists and classes; the frames are read by no test here."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "frames").mkdir()
    (folder / "classInd.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "custom_train_split.txt").write_text("a,16,0\nb,16,1\n")
    (folder / "custom_val_split.txt").write_text("c,16,0\nd,16,1\n")
    return folder


def options_of(data: Path, *more: str) -> Any:
    return compose_options([*TINY, f"data_dir={data}", *more])


def trained_model(options: Any, *, trained: bool = True) -> AdaFocus:
    torch.manual_seed(1)
    model = AdaFocus(model_spec(options, 2))
    if trained:
        with torch.no_grad():  # what no initialisation gives
            for part in (model.classifier, model.focuser.policy):
                for parameter in part.parameters():
                    parameter.mul_(3)
    return model


def own(data: Path, path: Path, stage: int, *more: str, classes: list[str] = CLASSES, trained: bool = True) -> Path:
    """A checkpoint as `adafocus-edge train` writes it, after no training at all."""
    options = options_of(data, f"train_stage={stage}", "resume=", *more).options
    model = trained_model(options, trained=trained)
    content = official_layout(model, with_policy=stage >= 2)
    save_checkpoint({**content, "config": asdict(options), "class_names": classes, "epoch": 1}, path)
    return path


def official(data: Path, path: Path, stage: int, *, trained: bool = True, batches: tuple[int, int] = (9, 9)) -> Path:
    """A checkpoint in the official layout, which says nothing of its stage."""
    model = trained_model(options_of(data, "train_stage=1").options, trained=trained)
    for part, count in zip((model.glancer, model.focuser), batches, strict=True):
        for name, buffer in part.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.fill_(count)
    save_checkpoint({**official_layout(model, with_policy=stage >= 2), "epoch": 1, "acc": 50.0}, path)
    return path


def start(data: Path, *more: str) -> None:
    """Do all that a run does before its first batch."""
    Trainer(options_of(data, *more), Processes(0, 1, 1, torch.device("cpu")), quiet=False)


REFUSED = [
    # stage, of the checkpoint, more options, the checkpoint that is wanted instead
    (1, 0, "", "stage 1 starts from two stage-0 checkpoints, pretrained_glancer=CKPT pretrained_focuser=CKPT"),
    (2, 0, "", "stage 2 needs the checkpoint of stage 1, with a trained glancer, focuser and classifier"),
    (3, 0, "", "stage 3 needs the checkpoint of stage 2"),
    (3, 1, "", "stage 3 needs the checkpoint of stage 2"),
    (1, 0, "evaluate=true", "train_stage=1 evaluates a stage-1 checkpoint"),
    (2, 1, "evaluate=true", "train_stage=2 evaluates a stage-2 checkpoint"),
    (3, 0, "evaluate=true", "train_stage=3 evaluates a stage-3 checkpoint"),
    (3, 1, "evaluate=true", "train_stage=3 evaluates a stage-3 checkpoint"),
    (0, 0, "pretrain_glancer=false", "holds a stage-0 glancer"),
]


@pytest.mark.parametrize(("stage", "of", "more", "words"), REFUSED)
def test_a_checkpoint_of_an_earlier_stage_is_refused_and_the_right_one_named(
    stage: int, of: int, more: str, words: str, data: Path, tmp_path: Path
) -> None:
    path = own(data, tmp_path / "c.pth", of)
    with pytest.raises(UsageError, match=re.escape(words)) as refused:
        start(data, f"train_stage={stage}", f"resume={path}", *more.split())
    assert f"resume={path}: " in str(refused.value)
    assert of == stage or f"a stage-{of} checkpoint" in str(refused.value)


@pytest.mark.parametrize(
    ("stage", "of", "note"),
    [(1, 1, None), (2, 1, None), (2, 2, None), (3, 2, None), (3, 3, None), (2, 3, "a new one is trained"),
     (1, 3, "its policy is not used"), (0, 2, "continues a stage-0 run only")],
)  # fmt: skip
def test_the_right_checkpoint_is_taken_and_a_later_one_with_a_note(
    stage: int, of: int, note: str | None, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(data, f"train_stage={stage}", f"resume={own(data, tmp_path / 'c.pth', of)}")
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [] if note is None else note in notes[0]


def test_the_reported_command_fails_in_one_line(data: Path, tmp_path: Path) -> None:
    path = own(data, tmp_path / "stage0.pth.tar", 0)
    done = edge("train", *TINY, f"data_dir={data}", "train_stage=2", f"resume={path}", cwd=tmp_path)
    one_line_error(done, 2, str(path), "a stage-0 checkpoint", "needs the checkpoint of stage 1")
    assert not (tmp_path / "outputs").exists()


def test_official_checkpoints_are_told_apart_by_what_they_contain(data: Path, tmp_path: Path) -> None:
    from training.checkpoint import read_checkpoint

    def stages(path: Path) -> tuple[int, ...]:
        return possible_stages(read_checkpoint(path))

    assert stages(official(data, tmp_path / "a", 1)) == (1,)
    assert stages(official(data, tmp_path / "b", 2)) == (2, 3)
    # The official code stores all parts at stage 0, too: one backbone was trained, the classifier was not.
    assert stages(official(data, tmp_path / "c", 1, trained=False, batches=(9, 0))) == (0,)
    assert stages(official(data, tmp_path / "d", 1, trained=False, batches=(0, 9))) == (0,)
    alone = torch.load(tmp_path / "c", weights_only=True)["glancer"]
    torch.save({"glancer": alone}, tmp_path / "e")
    assert stages(tmp_path / "e") == (0,)
    for name in ("c", "e"):
        with pytest.raises(AdaFocusError, match=r"a stage-0 checkpoint by what it contains .* needs the checkpoint of"):
            start(data, "train_stage=2", f"resume={tmp_path / name}")
    refused = edge("export", tmp_path / "c", "-o", tmp_path / "bundle", "--patch-size", 32)
    one_line_error(refused, 1, "a stage-0 checkpoint by what it contains")


@pytest.mark.parametrize("hidden", [1, 16, 256])
def test_a_classifier_is_called_untrained_until_one_step_of_pytorchs_own_optimiser(hidden: int) -> None:
    """PyTorch draws a GRU's weights from within 1 / sqrt(hidden), which any training leaves."""
    gru = torch.nn.GRU(64, hidden)
    names = {f"classifier.gru.{name}": value for name, value in gru.state_dict().items()}
    assert untrained(names) == ("classifier",)
    optimiser = torch.optim.SGD(gru.parameters(), lr=0.05)
    gru(torch.randn(4, 32, 64))[0].square().sum().neg().backward()
    optimiser.step()
    assert untrained({f"classifier.gru.{name}": value for name, value in gru.state_dict().items()}) == ()


def test_an_untrained_classifier_is_noted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(data, "train_stage=2", f"resume={official(data, tmp_path / 'c.pth', 1, trained=False)}")
    assert "note: " in (text := capsys.readouterr().err)
    assert "its classifier looks untrained" in text


def test_shapes_that_differ_are_refused_by_the_options_names(data: Path, tmp_path: Path) -> None:
    path = own(data, tmp_path / "c.pth", 2)
    for option, before in (
        ("hidden_dim=32", "hidden_dim=16"), ("hidden_state_dim=8", "hidden_state_dim=16"), ("action_dim=16",
        "action_dim=9"), ("policy_conv=false", "policy_conv=true"), ("focuser=resnet18", "focuser=mobilenet_v2"),
        ("consensus=fc", "consensus=gru"), ("with_glancer=true", "with_glancer=false"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=f"trained with .*{before}, now {option}"):
            start(data, "train_stage=3", f"resume={path}", option)
    # A new policy may have another shape.
    start(data, "train_stage=2", f"resume={own(data, tmp_path / 'd.pth', 1)}", "action_dim=16")


def test_the_first_blocks_of_a_deeper_backbone_are_not_taken(data: Path, tmp_path: Path) -> None:
    deep = ["focuser=resnet34", "with_glancer=true"]
    path = own(data, tmp_path / "c.pth", 0, "pretrain_glancer=false", *deep)
    with pytest.raises(CheckpointError, match="its focuser is a resnet34, the options name focuser=resnet18"):
        start(data, "train_stage=1", f"pretrained_focuser={path}", "focuser=resnet18", "with_glancer=true")


def test_class_names_must_be_those_of_before(data: Path, tmp_path: Path) -> None:
    for classes, words in (
        (CLASSES[::-1], "class 0 was 'no_fight', and is now 'fight'"),
        (["fight", "calm"], "class 1 was 'calm', and is now 'no_fight'"),
    ):
        path = own(data, tmp_path / "c.pth", 2, classes=classes)
        with pytest.raises(UsageError, match=f"trained on other classes .{words}"):
            start(data, "train_stage=3", f"resume={path}")
    three = tmp_path / "three"
    three.mkdir()
    (three / "frames").mkdir()
    for file in data.glob("*.txt"):
        (three / file.name).write_text(file.read_text())
    (three / "classInd.txt").write_text("fight\nno_fight\nother\n")
    with pytest.raises(CheckpointError, match="its classifier knows 2 classes, the data set has 3"):
        start(three, "train_stage=2", f"resume={own(data, tmp_path / 'c.pth', 1)}")


def test_what_the_weights_do_not_tell_is_noted_by_name_even_where_it_was_given(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(data, tmp_path / "c.pth", 1)
    start(data, "train_stage=2", f"resume={path}", "patch_size=48", "num_segments=2", "fit=crop", "motion_gap_s=0")
    notes = capsys.readouterr().err
    for words in ("patch_size=32, now patch_size=48", "num_segments=4, now num_segments=2", "fit=squash, now fit=crop",
                  "motion_gap_s=0.1, now motion_gap_s=0"):  # fmt: skip
        assert f"note: resume={path}: trained with {words}" in notes
    glancer = own(data, tmp_path / "g.pth", 0)
    start(data, "train_stage=1", f"pretrained_glancer={glancer}", "motion_gap_s=0.2", "patch_size=48")
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: pretrained")]
    assert note.endswith("trained with motion_gap_s=0.1, now motion_gap_s=0.2")


def test_a_backbone_that_saw_no_training_is_noted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = official(data, tmp_path / "localcnn.pth.tar", 1, trained=False, batches=(0, 9))
    start(data, "train_stage=1", f"pretrained_glancer={path}", f"pretrained_focuser={path}")
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert f"pretrained_glancer={path}: its glancer saw no training batch" in note
    start(data, "train_stage=1", f"pretrained_focuser={path}")
    assert "it keeps the weights of glancer_weights=random" in capsys.readouterr().err


def test_a_stage_1_checkpoint_is_evaluated_by_the_command_in_the_message(data: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    for number, name in enumerate(CLASSES):
        source = sorted((ROOT / "tests" / "fights" / name).glob("*.mp4"))[number]
        (clips / name).mkdir(parents=True)
        (clips / name / source.name).write_bytes(source.read_bytes())
    path = official(data, tmp_path / "128checkpoint.pth.tar", 1)
    refused = edge("evaluate", path, "--data", clips, "--patch-size", 32, "-q")
    one_line_error(refused, 1, "a stage-1 checkpoint")
    (command,) = re.findall(r"`adafocus-edge (.*?)`", refused.stderr)
    assert "--patches random --patch-size 32" in command
    done = edge(*command.replace("DATA", str(clips)).split(), "--json")
    assert done.returncode == 0, done.stderr
    assert '"clips":2' in done.stdout.replace(" ", "")


def test_only_options_that_change_samples_or_weights_are_reported_when_a_run_goes_on(
    data: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(own(data, tmp_path / "last.pth.tar", 1, "cache=ram"))
    same = options_of(data, "train_stage=1", "cache=disk", "cache_dir=/tmp", "prefetch_factor=4", "workers=3").options
    assert changed_options(checkpoint, same) == []
    other = options_of(data, "train_stage=1", "cache=off", "cache_frames=4", "augment_on=workers").options
    assert changed_options(checkpoint, other) == [
        "cache ram -> off", "cache_frames 16 -> 4", "augment_on auto -> workers",
    ]  # fmt: skip
    checkpoint = read_checkpoint(own(data, tmp_path / "last.pth.tar", 2, "policy_cache=ram"))
    assert changed_options(checkpoint, options_of(data, "train_stage=2", "policy_cache=disk").options) == []
    other = options_of(
        data, "train_stage=2", "policy_cache=off", "flip=false", "crop_scales=1", "entropy_weight=1"
    ).options
    changed = changed_options(checkpoint, other)
    assert changed[0] == "flip True -> False"
    assert changed[1].startswith("crop_scales ")
    assert {"policy_cache ram -> off", "entropy_weight 0.03 -> 1.0"} == set(changed[2:])
