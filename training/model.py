"""The AdaFocus model in PyTorch, with the parameter names of the official code.

Paper: arXiv 2105.03245, section 3; official ``models/gfv_net.py`` and ``models/ppo.py``. Every recurrent part offers
one step at a time (``step``), written as plain matrix products, for the exported graphs and the glimpse loop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from adafocus_edge.bundle.manifest import MEAN, STD
from adafocus_edge.model.spec import ModelSpec
from training.backbones import backbone
from training.geometry import action_grid, crop, patch_corner
from training.models.base import GlimpseModel

ENCODER_CHANNELS = 32
"""Channels of the policy encoder's 1 x 1 convolution."""
ENCODER_WIDTH = 2048
"""Width of the policy encoder's first linear layer when there is no convolution."""


def gru_step(gru: nn.GRU, x: Tensor, state: Tensor) -> Tensor:
    """Advance a one-layer GRU by one step.

    Args:
        gru: module with the weights.
        x: float32 [N, input].
        state: float32 [N, hidden].

    Returns:
        float32 [N, hidden], the new state, which is also the output.
    """
    from_x = F.linear(x, gru.get_parameter("weight_ih_l0"), gru.get_parameter("bias_ih_l0"))
    from_state = F.linear(state, gru.get_parameter("weight_hh_l0"), gru.get_parameter("bias_hh_l0"))
    reset_x, update_x, new_x = from_x.chunk(3, dim=1)
    reset_h, update_h, new_h = from_state.chunk(3, dim=1)
    reset = torch.sigmoid(reset_x + reset_h)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + reset * new_h)
    return new + update * (state - new)


class Glancer(nn.Module):
    """The light network that sees every whole frame."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self._backbone = backbone(spec.glancer)
        self.net = self._backbone.build(spec.classes)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature map and its mean.

        Args:
            frames: normalised float32 [N, 3, G, G].

        Returns:
            float32 [N, dim, G / 32, G / 32] and [N, dim].
        """
        feature_map = self._backbone.features(self.net, frames)
        return feature_map, feature_map.mean(dim=(2, 3))

    def predict(self, frames: Tensor) -> Tensor:
        """Return the backbone's own logits, float32 [N, classes] (stage 0)."""
        logits: Tensor = self.net(frames)
        return logits


class ActorCritic(nn.Module):
    """The policy: chooses the next patch from the glancer's feature maps so far (official ``ActorCritic``)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        cells = spec.feature_map_size**2
        if spec.policy_conv:
            self.state_encoder = nn.Sequential(
                nn.Conv2d(spec.glance_dim, ENCODER_CHANNELS, 1, bias=False),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(ENCODER_CHANNELS * cells, spec.policy_state),
                nn.ReLU(),
            )
        else:
            self.state_encoder = nn.Sequential(
                nn.Linear(spec.glance_dim * cells, ENCODER_WIDTH),
                nn.ReLU(),
                nn.Linear(ENCODER_WIDTH, spec.policy_state),
                nn.ReLU(),
            )
        self.policy_conv = spec.policy_conv
        self.gru = nn.GRU(spec.policy_state, spec.policy_state)
        self.actor = nn.Sequential(nn.Linear(spec.policy_state, spec.actions), nn.Softmax(dim=-1))
        self.critic = nn.Sequential(nn.Linear(spec.policy_state, 1))

    def step(self, feature_map: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Score the cells for one frame.

        Args:
            feature_map: float32 [N, dim, h, w].
            state: float32 [N, H], zeros at a clip's start.

        Returns:
            float32 [N, cells], the scores before the softmax, and the new state [N, H].
        """
        encoded = self.state_encoder(feature_map if self.policy_conv else feature_map.flatten(1))
        state = gru_step(self.gru, encoded, state)
        return self.actor[0](state), state

    def evaluate(self, feature_maps: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the actions of whole clips.

        Args:
            feature_maps: float32 [T, N, dim, h, w].
            actions: int64 [T, N].

        Returns:
            float32 [T, N] each: log probability of the action, value of the state, entropy of the policy.
        """
        choice, values = self.choices(feature_maps)
        log_probs, entropy = choice.log_prob(actions), choice.entropy()  # type: ignore[no-untyped-call]
        return log_probs, values, entropy

    def choices(self, feature_maps: Tensor) -> tuple[Categorical, Tensor]:
        """Return the distribution over the cells in each step of whole clips, and the value of each state.

        Args:
            feature_maps: float32 [T, N, dim, h, w].

        Returns:
            a distribution of batch shape [T, N] over the cells, and float32 [T, N].
        """
        steps, clips = feature_maps.shape[:2]
        flat = feature_maps.flatten(0, 1)
        encoded = self.state_encoder(flat if self.policy_conv else flat.flatten(1))
        states, _ = self.gru(encoded.view(steps, clips, -1))
        return Categorical(self.actor(states)), self.critic(states).squeeze(-1)


class PolicyPair(nn.Module):
    """The two copies of the policy that the official checkpoints hold: the old one acts, the new one learns."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.policy = ActorCritic(spec)
        self.policy_old = ActorCritic(spec)
        self.policy_old.load_state_dict(self.policy.state_dict())


class Focuser(nn.Module):
    """The strong network that sees one patch per frame, with the policy that chooses it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self._backbone = backbone(spec.focuser)
        self.net = self._backbone.build(spec.classes)
        self.policy = PolicyPair(spec)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the pooled feature, float32 [N, dim], of normalised patches, float32 [N, 3, P, P]."""
        return self._backbone.features(self.net, patches).mean(dim=(2, 3))

    def predict(self, frames: Tensor) -> Tensor:
        """Return the backbone's own logits, float32 [N, classes] (stage 0)."""
        logits: Tensor = self.net(frames)
        return logits


class RecurrentClassifier(nn.Module):
    """Joins the frames' features with a GRU and returns logits at every step (``consensus=gru``)."""

    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__()
        inputs = spec.focus_dim + (spec.glance_dim if spec.with_glancer else 0)
        self.gru = nn.GRU(inputs, spec.classifier_state, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(spec.classifier_state, spec.classes)

    def forward(self, features: Tensor) -> Tensor:
        """Classify whole clips' features, float32 [N, T, inputs]; return logits after each step, [N, T, C]."""
        states, _ = self.gru(features)
        logits: Tensor = self.fc(self.dropout(states))
        return logits

    def step(self, feature: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Classify one frame's feature, float32 [N, inputs]; return logits [N, C] and the new state [N, H]."""
        state = gru_step(self.gru, feature, state)
        return self.fc(self.dropout(state)), state


class MeanClassifier(nn.Module):
    """Averages per-frame probabilities (``consensus=fc``); its "logits" are the logarithm of that mean.

    The state holds the sum of the probabilities so far and, as its last value, the number of frames.
    """

    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__()
        inputs = spec.focus_dim + (spec.glance_dim if spec.with_glancer else 0)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, spec.classes)

    def forward(self, features: Tensor) -> Tensor:
        """Classify whole clips' features, [N, T, inputs]; return log-probabilities after each step, [N, T, C]."""
        totals = torch.softmax(self.fc(self.dropout(features)), dim=2).cumsum(dim=1)
        counts = torch.arange(1, features.shape[1] + 1, device=features.device)
        return torch.log(totals / counts.view(1, -1, 1))

    def step(self, feature: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Classify one frame's feature, [N, inputs]; return log-probabilities [N, C] and the state [N, C + 1]."""
        probabilities = torch.softmax(self.fc(self.dropout(feature)), dim=1)
        total = state[:, :-1] + probabilities
        count = state[:, -1:] + 1.0
        return torch.log(total / count), torch.cat([total, count], dim=1)


class AdaFocus(GlimpseModel):
    """Glancer, focuser (with its policy) and classifier, under the official parameter names."""

    std: Tensor
    grid: Tensor
    glance_pixels: Tensor

    def __init__(self, spec: ModelSpec, dropout: float = 0.5) -> None:
        super().__init__()
        self.spec = spec
        self.glancer = Glancer(spec)
        self.focuser = Focuser(spec)
        self.classifier: RecurrentClassifier | MeanClassifier = (
            RecurrentClassifier(spec, dropout) if spec.consensus == "gru" else MeanClassifier(spec, dropout)
        )
        # Not persistent: checkpoints have the official names only.
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("grid", action_grid(spec.grid), persistent=False)
        # The pixels that PyTorch's nearest mode takes, computed by it: the resize is then two exact gathers.
        pixels = torch.arange(spec.frame_size, dtype=torch.float32).view(1, 1, -1)
        taken = F.interpolate(pixels, spec.glance_size, mode="nearest").flatten().long()
        self.register_buffer("glance_pixels", taken, persistent=False)

    def compile_backbones(self, backend: str = "inductor") -> None:
        """Compile the backbones with PyTorch at their first run; the names of their parameters do not change."""
        for part in (self.glancer, self.focuser):
            part.compile(backend=backend)
            part.net.compile(backend=backend)  # stage 0 runs this alone

    @torch.no_grad()
    def add_to_logits(self, biases: Tensor) -> None:
        """Add a number per class to the classifier's logits (``consensus=fc``: to each frame's), float [C]."""
        self.classifier.fc.bias.add_(biases)

    @property
    def policy(self) -> ActorCritic:
        """Return the copy of the policy that acts. After an update, both copies are equal."""
        return self.focuser.policy.policy_old

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return normalised float32 [N, 3, H, W] of RGB pixels 0..255, float32 [N, H, W, 3]."""
        return (pixels.permute(0, 3, 1, 2) / 255.0 - self.mean) / self.std

    def glance(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Run the glancer on whole frames, uint8 [N, S, S, 3]; return ``feature_map`` and ``glance``."""
        # The cast comes first: TensorRT takes uint8 as a network's input, and nothing but a cast may use it.
        seen: tuple[Tensor, Tensor] = self.glancer(self.normalise(self.shrink(frames.float())))
        return seen

    def shrink(self, frames: Tensor) -> Tensor:
        """Resize frames to the glance size by nearest neighbour, as the official code does (channels last)."""
        if self.spec.glance_size == self.spec.frame_size:
            return frames
        return frames.index_select(1, self.glance_pixels).index_select(2, self.glance_pixels)

    def choose(self, feature_map: Tensor, policy_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pick a patch per frame by the best-scoring cell; return ``origin``, ``action``, ``policy_state_out``."""
        scores, policy_state = self.policy.step(feature_map, policy_state)
        action = scores.argmax(dim=1)
        return self.grid[action], action, policy_state

    def focus(self, frames: Tensor, origin: Tensor) -> Tensor:
        """Run the focuser on one patch per frame; return ``focus``."""
        corner = patch_corner(origin, self.spec.frame_size, self.spec.patch_size)
        features: Tensor = self.focuser(self.normalise(crop(frames.float(), corner, self.spec.patch_size)))
        return features

    def classify(self, glance: Tensor | None, focus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Classify one frame's features and those before; return ``logits`` and ``state_out``."""
        feature = torch.cat([glance, focus], dim=1) if glance is not None else focus
        return self.classifier.step(feature, state)
