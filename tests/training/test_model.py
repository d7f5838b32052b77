"""The PyTorch model against the official outputs, and against an independent model of the official way."""

import numpy as np
import pytest
import torch
from PIL import Image

from adafocus_edge.errors import TrainingError
from adafocus_edge.media.preprocess import preprocess
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip
from tests.conftest import GOLDEN, GOLDEN_CASES, official_spec, weights_of
from training.checkpoint import ModelOptions, load_model, read_checkpoint
from training.eager import OfficialWay
from training.failures import wrap_memory_errors
from training.geometry import action_grid, crop, patch_corner
from training.graphs import torch_model
from training.model import AdaFocus, gru_step
from training.options import TrainOptions


def frames_of(folder, count=16, size=224):
    paths = sorted(folder.glob("image_*.jpg"))[:count]
    return np.stack([preprocess(Image.open(path).convert("RGB"), size) for path in paths])


def cells_of(origins, grid):
    """The cells that lie at these origins."""
    return [int(y * grid + x) for y, x in np.rint(np.concatenate(origins) * (grid - 1))]


def test_golden_logits_and_actions(golden, golden_checkpoint, golden_outputs, golden_frames):
    patch_size = GOLDEN_CASES[golden][1]
    model = load_model(read_checkpoint(golden_checkpoint), ModelOptions(patch_size=patch_size))
    wrapped, sessions = torch_model(model, record=True)
    glimpses = list(see_clip(wrapped, frames_of(golden_frames)))
    logits = np.concatenate([glimpse.logits for glimpse in glimpses])
    assert np.abs(logits - golden_outputs["logits"]).max() <= 1e-4
    assert cells_of([glimpse.origins for glimpse in glimpses], 7) == golden_outputs["actions"].tolist()
    glances = np.concatenate([out["glance"] for _, out in sessions["glancer"].recorded[:2]])
    assert np.abs(glances - golden_outputs["glance_vec"]).max() <= 1e-4


def test_the_peer_of_the_benchmarks_gives_the_golden_outputs(golden, golden_checkpoint, golden_outputs, golden_frames):
    weights = read_checkpoint(golden_checkpoint).weights
    peer = OfficialWay(weights, "resnet50", GOLDEN_CASES[golden][1])
    actions, logits = peer.clip(torch.from_numpy(frames_of(golden_frames)))
    assert actions == golden_outputs["actions"].tolist()
    assert np.abs(logits.numpy() - golden_outputs["logits"]).max() <= 1e-4


SHAPES = {
    "patch 160, 5 x 5": dict(patch_size=160, grid=5, classes=51),
    "patch 192, 6 x 6": dict(patch_size=192, grid=6, classes=3),
    "patch 100, 8 x 8": dict(patch_size=100, grid=8, focuser="resnet18", focus_dim=512),
    "patch 224": dict(patch_size=224, focuser="resnet34", focus_dim=512),
    "mobile focuser, small states": dict(
        focuser="mobilenet_v2", focus_dim=1280, policy_state=96, classifier_state=160, grid=2
    ),
    "small glance": dict(glance_size=96, focuser="resnet18", focus_dim=512),
    "odd glance": dict(glance_size=150, focuser="resnet18", focus_dim=512),
    "large glance": dict(glance_size=256, focuser="resnet18", focus_dim=512, policy_state=64),
    "flat policy": dict(policy_conv=False, policy_state=64, focuser="resnet18", focus_dim=512),
    "without glancer": dict(with_glancer=False, focuser="resnet18", focus_dim=512),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_equal_the_official_way(shape):
    spec = official_spec(**SHAPES[shape])
    weights = weights_of(spec, seed=3)
    model = AdaFocus(spec)
    model.load_state_dict(weights)
    frames = frames_of(GOLDEN / "actnet96", count=5)
    actions, expected = OfficialWay(weights, spec.focuser, spec.patch_size, spec.glance_size).clip(
        torch.from_numpy(frames)
    )
    glimpses = list(see_clip(torch_model(model.eval())[0], frames))
    logits = np.concatenate([glimpse.logits for glimpse in glimpses])
    assert cells_of([glimpse.origins for glimpse in glimpses], spec.grid) == actions
    assert np.abs(logits - expected.numpy()).max() <= 1e-4 * max(1.0, float(expected.abs().max()))


def test_mean_consensus_averages_probabilities():
    spec = official_spec(
        focuser="resnet18", focus_dim=512, consensus="fc", classes=9, classifier_state=10, policy_state=32
    )
    model = AdaFocus(spec)
    model.load_state_dict(weights_of(spec, seed=4))
    wrapped, sessions = torch_model(model.eval(), record=True)
    glimpses = list(see_clip(wrapped, frames_of(GOLDEN / "actnet96", count=4)))
    recorded = sessions["classifier"].recorded
    features = torch.cat([torch.from_numpy(np.concatenate([f["glance"], f["focus"]], axis=1)) for f, _ in recorded])
    mean = torch.softmax(model.classifier.fc(features), dim=1).mean(dim=0)  # over time, as the official classifier
    assert np.allclose(glimpses[-1].logits[0], torch.log(mean).detach().numpy(), atol=1e-5)


def test_schedules_agree(small_weights):
    from tests.conftest import SMALL

    model = AdaFocus(SMALL)
    model.load_state_dict(small_weights)
    wrapped, _ = torch_model(model.eval())
    frames = frames_of(GOLDEN / "actnet96", count=6)
    stream = GlimpseStream(wrapped)
    for step, glimpse in enumerate(see_clip(wrapped, frames)):
        live = stream.see(frames[step : step + 1])
        assert np.array_equal(live.origins, glimpse.origins)
        assert np.abs(live.logits - glimpse.logits).max() <= 1e-4


@pytest.mark.parametrize("layers", [(5, 7), (64, 64)])
def test_gru_step_equals_pytorch(layers):
    torch.manual_seed(0)
    gru = torch.nn.GRU(*layers)
    x, state = torch.randn(3, layers[0]), torch.randn(3, layers[1])
    with torch.no_grad():
        assert torch.allclose(gru_step(gru, x, state), gru(x[None], state[None])[0][0], atol=1e-6)


@pytest.mark.parametrize("side", [2, 5, 6, 7, 8, 11])
@pytest.mark.parametrize("patch_size", [96, 100, 128, 160, 192, 223, 224])
def test_corners_are_the_official_ones(side, patch_size):
    grid = action_grid(side)
    table = torch.Tensor([[row / (side - 1), column / (side - 1)] for row in range(side) for column in range(side)])
    assert torch.equal(grid, table)
    expected = torch.floor(table * (224 - patch_size)).int()
    assert torch.equal(patch_corner(grid, 224, patch_size).int(), expected)
    assert int(expected.max()) + patch_size <= 224


def test_crop_cuts_out_what_slicing_does():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8))
    corner = torch.tensor([[0, 0], [8, 3], [7, 8]])
    cut = crop(frames, corner, 32)
    for n, (y, x) in enumerate(corner.tolist()):
        assert torch.equal(cut[n], frames[n, y : y + 32, x : x + 32])


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match="patch_size must be 32 to 224, .* not 300"):
        official_spec(patch_size=300)
    with pytest.raises(ValueError, match="1 x 1"):
        official_spec(grid=1)
    with pytest.raises(ValueError, match="known: mobilenet_v2"):
        AdaFocus(official_spec(focuser="vgg11"))


def test_compiled_backbones_give_the_same_under_the_same_names():
    spec = official_spec(frame_size=64, glance_size=64, patch_size=32, focuser="resnet18", focus_dim=512, classes=3)
    model = AdaFocus(spec).eval()
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    origin = torch.tensor([[0.0, 0.5], [1.0, 0.2]])
    names = list(model.state_dict())

    def outputs():
        with torch.no_grad():
            whole = model.normalise(frames.float())
            assert whole.is_contiguous(memory_format=torch.channels_last), "as convolutions want it"
            return [*model.glance(frames), model.focus(frames, origin), model.focuser.predict(whole)]

    expected = outputs()
    model.compile_backbones(backend="eager")
    for found, wanted in zip(outputs(), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert list(model.state_dict()) == names


def test_what_cannot_be_compiled_is_told_in_a_line():
    with (
        pytest.raises(
            TrainingError, match="compile=true: the backbones cannot be compiled here .no compiler.: install"
        ),
        wrap_memory_errors(TrainOptions(compile=True)),
    ):
        raise torch._dynamo.exc.TorchDynamoException("no compiler\nand much more")
