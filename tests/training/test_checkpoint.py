"""Checkpoints: every official layout is read, what is missing is asked for, and nothing in a file is ever run."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torchvision

from adafocus_edge.errors import CheckpointError, UsageError
from tests.conftest import SMALL, weights_of, write_checkpoint
from training.checkpoint import ModelOptions, backbone_weights, infer_spec, load_model, read_checkpoint
from training.model import AdaFocus

PATCH = ModelOptions(patch_size=SMALL.patch_size, num_segments=SMALL.segments)


def same(model, weights):
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_everything_is_inferred_from_the_shapes(small_checkpoint, small_weights):
    model = load_model(read_checkpoint(small_checkpoint), PATCH)
    assert model.spec == SMALL
    assert same(model, small_weights)


@pytest.mark.parametrize(
    "layout", ["sections", "model_state_dict", "state_dict", "bare", "module.", "old copy only", "without heads"]
)
def test_layouts(layout, small_weights, tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    if layout == "sections":
        write_checkpoint(small_weights, path, scaler={"scale": 65536.0}, best_acc=np.float64(70.5))
    elif layout in ("model_state_dict", "state_dict"):
        torch.save({layout: small_weights, "epoch": 3}, path)
    elif layout == "bare":
        torch.save(small_weights, path)
    elif layout == "module.":
        torch.save({"model_state_dict": {f"module.{name}": value for name, value in small_weights.items()}}, path)
    elif layout == "old copy only":
        torch.save({n: v for n, v in small_weights.items() if ".policy.policy." not in n}, path)
    else:
        heads = ("glancer.net.classifier", "focuser.net.fc")
        torch.save({n: v for n, v in small_weights.items() if not n.startswith(heads) and "critic" not in n}, path)
    model = load_model(read_checkpoint(path), PATCH)
    kept = {n: v for n, v in model.state_dict().items() if "net.classifier" in n or "net.fc" in n or "critic" in n}
    assert same(model, small_weights | kept)


def test_what_train_will_store_is_used(small_weights, tmp_path):
    names = [f"name {number}" for number in range(SMALL.classes)]
    config = {"patch_size": 160, "num_segments": 8, "glance_size": 90}
    path = write_checkpoint(small_weights, tmp_path / "own.pth.tar", config=config, class_names=names)
    checkpoint = read_checkpoint(path)
    assert checkpoint.classes == tuple(names)
    spec = infer_spec(checkpoint, ModelOptions())
    assert (spec.patch_size, spec.segments, spec.glance_size) == (160, 8, 90)
    assert infer_spec(checkpoint, ModelOptions(patch_size=96)).patch_size == 96


def test_patch_size_is_asked_for_by_its_option(small_checkpoint):
    with pytest.raises(UsageError, match="--patch-size"):
        infer_spec(read_checkpoint(small_checkpoint), ModelOptions())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ModelOptions(patch_size=300), "patch_size must be 32 to 224, .* not 300"),
        (ModelOptions(patch_size=96, glance_size=224), "--glance-size must be 65 to 96"),
    ],
)
def test_impossible_options(options, words, small_checkpoint):
    with pytest.raises(UsageError, match=words):
        infer_spec(read_checkpoint(small_checkpoint), options)


def small_model(weights):
    model = AdaFocus(SMALL).eval()
    model.load_state_dict(weights)  # PyTorch's own strict loading
    return model


def logits_of(model):
    """One frame through PyTorch's own modules, without the step-by-step code that graphs are made of."""
    frames = torch.linspace(0, 255, 2 * 224 * 224 * 3).view(2, 224, 224, 3).to(torch.uint8)
    with torch.inference_mode():
        maps, _ = model.glance(frames)
        scores = model.policy.actor(model.policy.state_encoder(maps.flatten(1)))
        seen = model.focus(frames, torch.tensor([[0.25, 0.5], [1.0, 0.0]]))
        return torch.cat([scores, model.classifier(seen[None])[0]], dim=1)


def ddp(model):
    """DataParallel and DistributedDataParallel give the same names; this one needs no processes."""
    return torch.nn.DataParallel(model)


def with_compiled_parts(model):
    model.glancer.net = torch.compile(model.glancer.net)
    model.focuser.policy.policy_old = torch.compile(model.focuser.policy.policy_old)
    model.classifier = torch.compile(model.classifier)
    model.focuser.net.layer1 = ddp(model.focuser.net.layer1)
    return model


WRAPPED = {
    "compiled": torch.compile,
    "parallel of compiled": lambda model: ddp(torch.compile(model)),
    "compiled of parallel": lambda model: torch.compile(ddp(model)),
    "parallel twice": lambda model: ddp(ddp(model)),
    "parts compiled and parallel": with_compiled_parts,
    "all of it": lambda model: ddp(torch.compile(ddp(with_compiled_parts(model)))),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "parallel of averaged of compiled": lambda model: ddp(torch.optim.swa_utils.AveragedModel(torch.compile(model))),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_of_a_model_do_not_change_its_logits(how, small_weights, tmp_path):
    state = WRAPPED[how](small_model(small_weights)).state_dict()
    assert not set(small_weights) <= set(state), "PyTorch gave other names"
    torch.save({"model_state_dict": state, "epoch": torch.tensor(3)}, tmp_path / "c.pth")
    found = load_model(read_checkpoint(tmp_path / "c.pth"), PATCH)
    assert torch.equal(logits_of(found), logits_of(small_model(small_weights)))
    assert same(found, small_weights)


def test_sections_of_wrapped_parts_are_read(small_weights, tmp_path):
    model = with_compiled_parts(small_model(small_weights))
    parts = {"glancer": ddp(model.glancer), "focuser": torch.compile(model.focuser), "fc": ddp(model.classifier)}
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"policy": None}, tmp_path / "c.pth")
    assert same(load_model(read_checkpoint(tmp_path / "c.pth"), PATCH), small_weights)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "ema", "state_dict_ema", "module"])
def test_a_state_dict_is_found_under_the_usual_keys(key, small_weights, tmp_path):
    torch.save({key: small_weights, "epoch": 3, "config": {}}, tmp_path / "c.pth")
    assert same(load_model(read_checkpoint(tmp_path / "c.pth"), PATCH), small_weights)
    torch.save({"checkpoint": 1, "model": {key: small_weights}}, tmp_path / "c.pth")
    assert same(load_model(read_checkpoint(tmp_path / "c.pth"), PATCH), small_weights)


def test_a_lightning_modules_own_prefix_is_taken_off(small_weights, tmp_path):
    state = {f"model._orig_mod.{name}": value for name, value in small_weights.items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.5"}, tmp_path / "c.pth")
    assert same(load_model(read_checkpoint(tmp_path / "c.pth"), PATCH), small_weights)


def test_averaged_weights_beside_others_are_not_used_and_that_is_noted(small_weights, tmp_path):
    averaged = {name: torch.zeros_like(value) for name, value in small_weights.items()}
    torch.save({"ema": averaged, "model": small_weights}, tmp_path / "c.pth")
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    assert same(load_model(checkpoint, PATCH), small_weights)
    assert "averaged weights ('ema') are not used" in checkpoint.notes[0]


def test_batch_norms_without_counters_load_as_in_pytorch(small_weights, tmp_path):
    old = {name: value for name, value in small_weights.items() if not name.endswith("num_batches_tracked")}
    torch.save({"model_state_dict": {f"module.{name}": value for name, value in old.items()}}, tmp_path / "c.pth")
    found = load_model(read_checkpoint(tmp_path / "c.pth"), PATCH)
    assert torch.equal(logits_of(found), logits_of(small_model(old)))


def test_two_parameters_with_one_plain_name_are_refused_and_both_named(small_weights, tmp_path):
    twice = {**small_weights, "module._orig_mod.glancer.net.features.0.0.weight": torch.zeros(32, 3, 3, 3)}
    torch.save({"model_state_dict": twice}, tmp_path / "c.pth")
    names = "'glancer.net.features.0.0.weight' and 'module._orig_mod.glancer.net.features.0.0.weight' both stand for"
    with pytest.raises(CheckpointError, match=names):
        read_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("counters", [True, False])
def test_backbone_weights_of_wrapped_networks_load_into_torchvisions_own(counters, tmp_path):
    torch.manual_seed(3)
    net = torchvision.models.resnet18(num_classes=5)
    state = ddp(torch.compile(net)).state_dict()
    state = {name: value for name, value in state.items() if counters or not name.endswith("num_batches_tracked")}
    torch.save({"net": state}, tmp_path / "w.pth")
    found = torchvision.models.resnet18(num_classes=9)
    backbone_weights(found, "resnet18", str(tmp_path / "w.pth"), "focuser_weights")
    for name, value in net.state_dict().items():
        assert name.startswith("fc.") or torch.equal(found.state_dict()[name], value)


def test_the_first_blocks_of_a_deeper_network_are_not_taken_for_a_smaller_one(tmp_path):
    torch.save(torchvision.models.resnet34(num_classes=2).state_dict(), tmp_path / "w.pth")
    net = torchvision.models.resnet18(num_classes=2)
    with pytest.raises(CheckpointError, match="holds a resnet34, the options name resnet18"):
        backbone_weights(net, "resnet18", str(tmp_path / "w.pth"), "focuser_weights")


def without(weights, *prefixes):
    return {name: value for name, value in weights.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "focuser.policy"), "a stage-1 checkpoint"),
        (lambda w: without(w, "focuser", "classifier"), "holds no focuser"),
        (lambda w: without(w, "glancer"), "holds no glancer"),
        (lambda w: without(w, "focuser.net.layer4.1"), "not a known backbone"),
        (lambda w: without(w, "focuser.net.layer4.1.bn2.weight"), "lacks 'focuser.net.layer4.1.bn2.weight'"),
        (lambda w: w | {"focuser.net.conv1.weight": torch.zeros(64, 3, 3, 3)}, r"shape \[64, 3, 3, 3\], but"),
        (lambda w: w | {"focuser.surprise": torch.zeros(1)}, "'focuser.surprise', which is not part"),
        (lambda w: w | {"focuser.policy.policy_old.actor.0.weight": torch.zeros(2, 64)}, "2 actions"),
        (lambda w: w | {"classifier.gru.weight_ih_l0": torch.zeros(288, 700)}, "takes 700 features"),
        (lambda w: {"other": torch.zeros(1)}, "holds no glancer"),
        (lambda w: {}, "no model weights"),
    ],
)
def test_other_checkpoints_are_explained(change, words, small_weights, tmp_path):
    torch.save(change(dict(small_weights)), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=words) as told:
        load_model(read_checkpoint(tmp_path / "c.pth"), PATCH)
    assert "\n" not in str(told.value)


class Runs:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def malicious(tmp_path):
    marker = tmp_path / "was run"
    return marker, [
        Runs(os.system, f"touch '{marker}'"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(exec, f"open({str(marker)!r}, 'w')"),
        Runs(os.mkdir, str(marker)),
    ]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("form", ["zip", "plain pickle", "hidden in optimizer"])
def test_nothing_in_a_checkpoint_is_run(number, form, tmp_path, small_weights):
    marker, attacks = malicious(tmp_path)
    path = tmp_path / "evil.pth.tar"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"glancer": attacks[number]}))
    elif form == "zip":
        torch.save({"glancer": attacks[number]}, path)
    else:
        write_checkpoint(small_weights, path, optimizer={"state": [attacks[number]]})
    with pytest.raises(
        CheckpointError, match=r"refused: loading it would run '\w+\.\w+'|not a PyTorch checkpoint"
    ) as e:
        read_checkpoint(path)
    assert not marker.exists()
    assert "\n" not in str(e.value)


def test_a_refusal_names_what_would_run(tmp_path):
    torch.save({"x": Runs(os.system, "true")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"'posix\.system'.*nothing was run"):
        read_checkpoint(tmp_path / "evil.pth")


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "cut", "zip of other things", "a list"])
def test_files_that_are_no_checkpoints(kind, tmp_path, small_checkpoint):
    path = tmp_path / "c.pth.tar"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("hello\n")
    elif kind == "cut":
        path.write_bytes(small_checkpoint.read_bytes()[:1_000_000])
    elif kind == "zip of other things":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.txt", "hello")
    elif kind == "a list":
        torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="c.pth.tar: ") as told:
        read_checkpoint(path)
    assert "\n" not in str(told.value)


def test_damaged_weights_are_found(small_checkpoint, tmp_path):
    content = bytearray(small_checkpoint.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 1000] = bytes(1000)
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged: the checksum of its entry"):
        read_checkpoint(tmp_path / "c.pth")


def test_two_copies_of_the_policy_may_differ(small_weights, tmp_path):
    """Then the section decides, as in the official code, which loads it into both."""
    other = weights_of(SMALL, seed=9)
    content = {
        "model_state_dict": small_weights,
        "policy": {n.removeprefix("focuser.policy.policy."): v for n, v in other.items() if ".policy.policy." in n},
    }
    torch.save(content, tmp_path / "c.pth")
    model = load_model(read_checkpoint(tmp_path / "c.pth"), PATCH)
    assert torch.equal(model.policy.actor[0].weight, other["focuser.policy.policy.actor.0.weight"])


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: torch.zeros(1).expand(10**9, tensor.shape[1]),
    ],
    ids=["sparse", "meta", "complex", "expanded"],
)
def test_tensors_that_are_not_plain_are_refused(change, tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"fc": {"fc.weight": change(torch.zeros(7, 512))}}, path)
    with pytest.raises(CheckpointError, match="'classifier.fc.weight' is not a plain dense tensor"):
        read_checkpoint(path)
