"""Stage 2 beyond the published update: expected reward, several passes, kept features, and what is seen of a policy."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adafocus_edge.errors import TrainingError, UsageError
from tests.conftest import ROOT, edge, one_line_error
from tests.training import helpers
from tests.training.helpers import write_lists
from tests.training.test_stages import SPEC, batch_of, model_of, options
from training.checkpoint import official_layout
from training.compose import compose_options
from training.model import AdaFocus
from training.patch_features import KeptBatch
from training.policy_cache import FOLDER, FeatureStore, Shape
from training.policy_watch import PolicyWatch, collapse_warning, overfit_warning, places_picture
from training.ppo import act, divergence, expected_parts
from training.stages import ClassifierStage, PolicyStage, RandomPatchStage, Stage
from training.train import model_spec, run_composed

FIGHTS = ROOT / "tests" / "fights"
CELLS = SPEC.actions


def kept(stage: PolicyStage, batch: Any) -> KeptBatch:
    """A batch as a cache gives it, in half precision."""
    maps, cells = stage.features_of_every_cell(batch)
    return KeptBatch(maps.half(), cells.half(), batch.target, batch.number, batch.origins, batch.draws, [])


def on_cells(batch: Any, model: AdaFocus) -> Any:
    """The same batch with its random patches at the cells that a cache takes for them."""
    cells = (batch.origins[:, :, 0] * CELLS).long()
    changed = copy.copy(batch)
    changed.origins = model.grid[cells]
    return changed


@pytest.mark.parametrize("with_glancer", [True, False])
@pytest.mark.parametrize("estimator", ["ppo", "expected"])
def test_an_update_on_kept_features_is_that_on_the_clips(estimator: str, with_glancer: bool) -> None:
    given = {"policy_estimator": estimator, "gamma": 0.0, "with_glancer": with_glancer}
    gradients = []
    for from_cache in (False, True):
        model, batch = model_of(with_glancer=with_glancer), batch_of()
        stage = PolicyStage(model, options(2, **given))
        stage.train()
        seen = kept(stage, batch) if from_cache else on_cells(batch, model)
        loss, logits = stage(seen)
        loss.backward()
        parameters = [p.grad.flatten() for p in model.focuser.policy.policy.parameters() if p.grad is not None]
        gradients.append((torch.cat(parameters), logits, float(stage.reward)))
    (live, live_logits, live_reward), (cached, cached_logits, cached_reward) = gradients
    torch.testing.assert_close(cached_logits, live_logits, atol=5e-3, rtol=0)
    assert cached_reward == pytest.approx(live_reward, abs=1e-3)
    assert torch.nn.functional.cosine_similarity(live, cached, dim=0) > 0.99
    assert float(live.norm()) > 0


@pytest.mark.parametrize("with_glancer", [True, False])
@pytest.mark.parametrize("kind", [RandomPatchStage, ClassifierStage])
def test_a_classifier_learns_from_kept_features_as_from_clips(kind: type[Stage], with_glancer: bool) -> None:
    gradients = []
    for from_cache in (False, True):
        model, batch = model_of(with_glancer=with_glancer), batch_of()
        stage = kind(model, options(1, with_glancer=with_glancer, freeze_backbones=True))
        assert [module for module, _ in stage.trained()] == [model.classifier]
        stage.train()
        seen = kept(PolicyStage(model, stage.options), batch) if from_cache else on_cells(batch, model)
        for parameter in model.classifier.parameters():
            parameter.requires_grad_(True)
        loss, logits = stage(seen)
        loss.backward()
        grads = [p.grad.flatten() for p in model.classifier.parameters() if p.grad is not None]
        gradients.append((torch.cat(grads), logits))
    (live, live_logits), (cached, cached_logits) = gradients
    torch.testing.assert_close(cached_logits, live_logits, atol=5e-3, rtol=0)
    assert torch.nn.functional.cosine_similarity(live, cached, dim=0) > 0.99
    assert float(live.norm()) > 0


def test_the_expected_reward_is_the_mean_over_what_each_cell_would_give() -> None:
    model, batch = model_of(), batch_of()
    stage = PolicyStage(model, options(2, policy_estimator="expected", gamma=0.0, entropy_weight=0.0))
    stage.train()
    loss, _ = stage(batch)
    # One clip, one step, one cell at a time, along the cells that the acting policy drew.
    maps = stage.patch_features(batch).feature_maps
    drawn = act(model.policy, maps, batch.draws.T).actions
    sure = torch.empty(3, 4, CELLS)
    with torch.no_grad():
        for number, clip in enumerate(batch.frames):
            state = torch.zeros(1, SPEC.classifier_state)
            for step in range(3):
                frame = clip[step : step + 1]
                _, glance = model.glance(frame)
                after = []
                for cell in range(CELLS):
                    focus = model.focus(frame, model.grid[cell][None])
                    logits, new = model.classifier.step(torch.cat([glance, focus], dim=1), state)
                    sure[step, number, cell] = logits.softmax(dim=1)[0, batch.target[number]]
                    after.append(new)
                state = after[int(drawn[step, number])]
    advantage = sure - sure.mean(dim=2, keepdim=True)
    choice, _ = model.focuser.policy.policy.choices(maps)
    expected = -(choice.probs * advantage / (advantage.std() + 1e-5)).sum(dim=2).mean()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-3)
    chosen = sure.gather(2, drawn[:, :, None]).mean()
    assert float(stage.reward) == pytest.approx(float(chosen - sure.mean()), abs=1e-5)


def test_the_expected_reward_is_what_sampling_gives_on_the_average() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 1, 5, requires_grad=True)
    advantage = torch.randn(1, 1, 5)
    probabilities = scores.softmax(dim=2)
    parts = expected_parts(probabilities, torch.zeros(1, 1), advantage, 0.0)
    (exact,) = torch.autograd.grad(parts.total, scores, retain_graph=True)
    drawn = torch.multinomial(probabilities[0, 0].detach(), 200_000, replacement=True)
    surrogate = -(probabilities.log()[0, 0, drawn] * advantage[0, 0, drawn]).mean()
    (sampled,) = torch.autograd.grad(surrogate, scores)
    torch.testing.assert_close(sampled, exact, atol=5e-3, rtol=0)


def test_several_passes_keep_what_the_old_policy_did() -> None:
    stage, batch = PolicyStage(model_of(), options(2, ppo_epochs=2)), batch_of()
    pair, optimizer = stage.model.focuser.policy, stage.optimizer()
    stage.train()
    before = copy.deepcopy(pair.policy_old.state_dict())
    assert stage.passes == 2
    losses, drawn = [], []
    for _ in range(stage.passes):
        loss, _ = stage(batch)
        assert stage.update is not None
        drawn.append(stage.update.rollout.actions)
        assert all(torch.equal(before[name], value) for name, value in pair.policy_old.state_dict().items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        stage.after_update()
    assert torch.equal(*drawn)
    assert losses[1] != losses[0]  # evaluated again by the policy that the first pass changed
    assert all(
        torch.equal(value, pair.policy_old.state_dict()[name]) for name, value in pair.policy.state_dict().items()
    )
    assert stage.report()["kl"] > 0


def test_nobody_glances_where_the_classifier_sees_patches_alone() -> None:
    model = model_of(with_glancer=False)
    stage = RandomPatchStage(model, options(1, with_glancer=False))
    glances: list[Any] = []
    model.glancer.register_forward_hook(lambda *_: glances.append(1))
    stage(batch_of())
    assert not glances
    RandomPatchStage(model_of(), options(1)).model.glancer.register_forward_hook(lambda *_: glances.append(1))


def test_what_a_policy_does_is_counted() -> None:
    watch = PolicyWatch(4)
    watch.add(2, torch.tensor([[0, 0], [0, 3]]), entropy=1.0)
    watch.add(0, torch.tensor([[1], [1]]), entropy=9.0)  # a batch without a clip
    watch.add(1, torch.tensor([[0], [1]]), entropy=torch.tensor(4.0))
    found = watch.report()
    assert found["entropy"] == pytest.approx(2.0)
    assert found["places"] == [[0.66667, 0.16667], [0.0, 0.16667]]
    assert (round(found["most_used_cell"], 1), found["cells_used"]) == (66.7, 3)
    assert watch.report() == {}
    picture = places_picture(found["places"])
    assert picture.shape == (1, 64, 64)
    assert (picture[0, 0, 0], picture[0, 0, 63], picture[0, 63, 0]) == (255, 64, 0)


def test_the_divergence_is_that_of_the_formula() -> None:
    before, after = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.9, 0.1]]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert float(divergence(before.log(), after.log())) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("share", "entropy", "gain", "warns"),
    [(95, 1.0, 0.0, True), (30, 0.01, 0.0, True), (95, 1.0, 0.2, False), (40, 2.0, 0.0, False)],
)
def test_a_collapsed_policy_is_warned_of_with_what_to_change(
    share: float, entropy: float, gain: float, warns: bool
) -> None:
    chosen = options(2, policy_lr=0.003, batch_size=8, action_dim=9)
    found = {
        "most_used_cell": share, "places": [[0, 0, 0], [0, 0, share / 100], [0, 0, 0]],
        "confidence": 0.3 + gain, "random_confidence": 0.3,
    }  # fmt: skip
    text = collapse_warning({"entropy": entropy}, found, chosen)
    assert (text is not None) == warns
    if text is not None:
        assert f"{share} % of its patches are in one cell (row 2, column 3)" in text
        for word in (
            "policy_batch=64 (now 8)",
            "gamma=0 (now 0.7)",
            "policy_lr=0.001 (now 0.003)",
            "entropy_weight=0.03",
        ):
            assert word in text


@pytest.mark.parametrize(
    ("reward", "gain", "warns"), [(0.05, -0.05, True), (0.05, -0.01, False), (0.05, 0.1, False), (-0.01, -0.05, False)]
)
def test_a_policy_that_fits_the_training_clips_only_is_warned_of(reward: float, gain: float, warns: bool) -> None:
    chosen = options(2, epochs=50, action_dim=9, entropy_weight=0.03)
    found = {"confidence": 0.6 + gain, "random_confidence": 0.6}
    text = overfit_warning({"reward": reward}, found, chosen)
    assert (text is not None) == warns
    if text is not None:
        for word in ("0.050 less confidence than random ones", "epochs (now 50)", "entropy_weight=0.1 (now 0.03)"):
            assert word in text
    assert overfit_warning({"reward": reward}, {}, chosen) is None  # not a policy's figures


def test_features_on_a_disk_are_used_again_by_the_same_run_only(tmp_path: Path) -> None:
    keys, shape = [(0, 0), (0, 1), (1, 0)], Shape(2, (3, 2, 2), (4, 5))
    maps, cells = torch.rand(2, 2, 3, 2, 2), torch.rand(2, 2, 4, 5)
    store = FeatureStore(keys, shape, tmp_path / "c", "one")
    store.put([(0, 0), (1, 0)], maps, cells)
    store.finish(keys, [(0, 0), (1, 0)])
    again = FeatureStore(keys, shape, tmp_path / "c", "one")
    assert again.missing() == []
    there, found_maps, found_cells = again.get([(1, 0), (0, 1)])
    assert there == [0]  # the other one could not be read
    torch.testing.assert_close(found_maps[0], maps[1].half())
    torch.testing.assert_close(found_cells[0], cells[1].half())
    assert FeatureStore(keys, shape, tmp_path / "c", "two").missing() == keys
    with pytest.raises(TrainingError, match="not finite in half precision"):
        store.put([(0, 0)], maps[:1] * 1e9, cells[:1])


# -- the command line -------------------------------------------------------------------------------------------------

TINY = [*helpers.TINY, *"num_segments=2 policy_batch=4 train_stage=2 root_path= epochs=4 device=cpu".split()]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists of real clips, and a checkpoint of stage 1 with random weights, as training writes it."""
    folder = tmp_path_factory.mktemp("policy")
    write_lists(folder)
    composed = compose_options([*TINY, f"data_dir={folder}", "train_list=train.csv", "val_list=val.csv"])
    torch.manual_seed(3)
    model = AdaFocus(model_spec(composed.options, 2))
    with torch.no_grad():
        model.classifier.fc.weight.mul_(20)  # as after training: some patches make it surer than others
    config = {**vars(composed.options), "train_stage": 1}
    content = {**official_layout(model, with_policy=False), "config": config, "class_names": ["fight", "no_fight"]}
    torch.save(content, folder / "stage1.pth.tar")
    return folder


def train(folder: Path, run: Path, *more: str, resume: Path | None = None) -> dict[str, torch.Tensor]:
    """Train stage 2 in this process; return the weights."""
    given = [*TINY, f"data_dir={folder}", "train_list=train.csv", "val_list=val.csv", *more]
    given += [f"resume={resume or folder / 'stage1.pth.tar'}", *([] if resume else [f"hydra.run.dir={run}"])]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # whose sums are the same each time
    try:
        run_composed(compose_options(given), quiet=True)
    finally:
        torch.set_num_threads(threads)
    weights: dict[str, torch.Tensor] = torch.load(run / "last.pth.tar", weights_only=True)["model_state_dict"]
    return weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_memory_disk_and_a_break_give_the_same_weights(start: Path, tmp_path: Path) -> None:
    more = ["policy_views=2"]
    whole = train(start, tmp_path / "ram", *more, "policy_cache=ram")
    assert not same(whole, train(start, tmp_path / "seed", *more, "seed=5", "policy_cache=ram"))
    train(start, tmp_path / "disk", *more, "policy_cache=disk", "epochs=2")
    assert not (tmp_path / "disk" / FOLDER).exists()  # a finished run leaves nothing
    on = train(start, tmp_path / "disk", *more, "policy_cache=disk", resume=tmp_path / "disk" / "last.pth.tar")
    assert same(whole, on)
    lines = [json.loads(line) for line in (tmp_path / "disk" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {"entropy", "reward", "advantage", "kl", "most_used_cell", "cells_used", "places"} <= set(line["train"])
        assert {"confidence", "random_confidence", "random_top1", "most_used_cell", "places"} <= set(line["val"])
    assert sum(map(sum, lines[0]["val"]["places"])) == pytest.approx(1, abs=1e-3)


def test_frames_kept_on_a_disk_give_the_same_features(start: Path, tmp_path: Path) -> None:
    frames = ["cache=disk", f"cache_dir={tmp_path / 'frames'}"]
    decoded = train(start, tmp_path / "ram", "epochs=1")
    for run in ("kept", "read"):
        assert same(decoded, train(start, tmp_path / run, *frames, "epochs=1"))
        assert len(list((tmp_path / "frames").glob("*.frames"))) == 12


def test_a_cache_that_was_broken_off_is_completed(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(start, tmp_path / "whole", "policy_cache=ram", "policy_views=2")
    looked: list[int] = []
    look = PolicyStage.features_of_every_cell

    def interrupted(stage: PolicyStage, batch: Any) -> Any:
        looked.append(len(batch.target))
        if len(looked) == 3:
            raise KeyboardInterrupt
        return look(stage, batch)

    monkeypatch.setattr(PolicyStage, "features_of_every_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(start, tmp_path / "disk", "policy_cache=disk", "policy_views=2")
    assert (tmp_path / "disk" / FOLDER / "train" / "features").exists()
    found = train(start, tmp_path / "disk", "policy_cache=disk", "policy_views=2")
    assert looked == [4] * (2 + 1 + 3)  # five batches of clips in all, the third one twice
    assert same(whole, found)


def test_a_cache_in_a_folder_of_its_own_serves_later_runs(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [f"policy_cache_dir={tmp_path / 'features'}", "epochs=2"]
    whole = train(start, tmp_path / "whole", "policy_cache=ram", "epochs=2")
    assert same(whole, train(start, tmp_path / "first", *kept))
    log = (tmp_path / "first" / "training.log").read_text()
    assert f"in {tmp_path / 'features'}" in log
    assert "policy cache: 12 clips computed" in log
    with monkeypatch.context() as patched:

        def fail(stage: PolicyStage, batch: Any) -> Any:
            raise AssertionError("features are computed again")

        patched.setattr(PolicyStage, "features_of_every_cell", fail)
        assert same(whole, train(start, tmp_path / "second", *kept))
        other = train(start, tmp_path / "third", *kept, "entropy_weight=3")  # decides no feature
    assert not same(whole, other)
    train(start, tmp_path / "fourth", *kept, "policy_views=2")  # other features: of a folder of their own
    assert len(list((tmp_path / "features").glob("train-*"))) == 2
    assert len(list((tmp_path / "features").glob("val-*"))) == 2


def test_the_places_are_a_picture_in_tensorboard(start: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(start, tmp_path / "run", "epochs=1", "policy_estimator=ppo")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert {"train/places", "val/places"} <= set(events.Tags()["images"])
    scalars = set(events.Tags()["scalars"])
    assert {"train/entropy", "train/value_loss", "train/kl", "train/most_used_cell", "val/confidence"} <= scalars


def test_a_run_without_the_cache_learns_the_same_way(start: Path, tmp_path: Path) -> None:
    off = train(start, tmp_path / "off", "policy_cache=off", "epochs=1", "policy_estimator=expected")
    ram = train(start, tmp_path / "ram", "policy_cache=ram", "epochs=1", "policy_estimator=expected")
    name = "focuser.policy.policy.actor.0.weight"
    before = AdaFocus(SPEC).state_dict()
    assert name in before
    # Adam's first steps have the size of the learning rate whatever the gradient: their directions agree.
    assert float((off[name] - ram[name]).abs().mean()) < 2e-4


def test_what_a_cache_takes_is_said_and_workers_change_nothing(start: Path, tmp_path: Path) -> None:
    given = [*TINY, f"data_dir={start}", "train_list=train.csv", "val_list=val.csv", "epochs=2"]
    done = edge(
        "train", *given, "workers=2", f"resume={start / 'stage1.pth.tar'}", f"hydra.run.dir={tmp_path / 'two'}",
        OMP_NUM_THREADS=1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # 12 clips, 2 frames: maps of 1280 x 2 x 2 and 9 cells of 1280, 2 bytes each.
    size = 12 * 2 * (1280 * 4 + 9 * 1280) * 2 / 1e6
    assert f"policy cache: 8 + 4 clips, 2 frames of 9 patches each: {size:,.0f} MB of memory" in done.stderr
    assert "12 clips computed in" in done.stderr
    assert "random patches: top-1" in done.stderr
    alone = train(start, tmp_path / "alone", "epochs=2")
    assert same(alone, torch.load(tmp_path / "two" / "last.pth.tar", weights_only=True)["model_state_dict"])


def test_a_broken_clip_is_left_out_of_the_cache(start: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = (start / "train.csv").read_text() + f"{tmp_path / 'broken.mp4'},fight\n"
    (tmp_path / "train.csv").write_text(rows)
    (tmp_path / "val.csv").write_text((start / "val.csv").read_text())
    done = edge(
        "train", *TINY, f"data_dir={tmp_path}", "train_list=train.csv", "val_list=val.csv", "epochs=2",
        f"resume={start / 'stage1.pth.tar'}", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped: ") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["unreadable_clips"] for line in lines] == [1, 1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["policy_estimator=expected", "gamma=0.5"], "policy_estimator=expected looks one step ahead: give gamma=0"),
        (["policy_estimator=expected", "ppo_epochs=2"], "ppo_epochs=2: is for policy_estimator=ppo"),
        (["policy_cache=off", "policy_views=3"], "policy_views=3: is for policy_cache=auto, ram or disk"),
        (["policy_cache=ram", "policy_cache_dir=x"], "policy_cache_dir=x: is for policy_cache=auto or disk"),
        (["policy_cache=tape"], "policy_cache=tape: must be one of off, auto, ram, disk"),
        (["policy_estimator=best"], "policy_estimator=best: must be one of ppo, expected"),
        (["ppo_epochs=0"], "ppo_epochs=0: must be at least 1"),
        (["crop_scales=2"], "crop_scales=2: must be shares of 0.05 to 1"),
        (["crop_scales=big"], "crop_scales=big: must be shares"),
        (["entropy_weight=-1"], "entropy_weight=-1.0: must be a number of at least 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path: Path, given: list[str], words: str) -> None:
    with pytest.raises(UsageError) as told:
        compose_options(["dataset=custom", "preset=edge", f"data_dir={tmp_path}", "train_stage=2", *given])
    assert words in str(told.value)


def test_the_presets_train_the_policy_as_published_and_as_measured_best(tmp_path: Path) -> None:
    common = ["dataset=custom", f"data_dir={tmp_path}", "train_stage=2"]
    official, ours = (compose_options([*common, f"preset={name}"]).options for name in ("official", "edge"))
    assert (official.policy_cache, official.policy_estimator, official.ppo_epochs) == ("off", "ppo", 1)
    assert (official.entropy_weight, official.gamma, official.policy_batch) == (0.01, 0.7, 0)
    assert official.crop_shares == (1.0, 0.875, 0.75, 0.66)
    assert official.flip
    assert (ours.policy_cache, ours.policy_estimator, ours.gamma) == ("auto", "expected", 0)
    assert compose_options([*common, "crop_scales=[1,0.9]"]).options.crop_shares == (1.0, 0.9)


def test_a_cache_that_cannot_be_is_refused_in_a_line(start: Path, tmp_path: Path) -> None:
    given = [*TINY, f"data_dir={start}", "train_list=train.csv", "val_list=val.csv", "world_size=2", "policy_cache=ram"]
    given += ["multiprocessing_distributed=false", f"resume={start / 'stage1.pth.tar'}", "dist_url=tcp://127.0.0.1:1"]
    assert "policy_cache=ram" in given
    refused = edge("train", *given, f"hydra.run.dir={tmp_path / 'no'}", "policy_batch=0", "distributed=false")
    one_line_error(refused, 2, "world_size and the GPUs give 2 processes")
