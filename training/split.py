"""Divides clips into training and validation by groups, such as the sources that they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def split_groups(groups: Sequence[Sequence[int]], labels: Sequence[str], share: float, seed: int) -> set[int]:
    """Choose whole groups of clips to validate on, at most each class's share of clips, rounded up.

    Args:
        groups: indices of the clips, by group.
        labels: class of each clip.
        share: share to validate on, 0..1.
        seed: random seed; the same seed gives the same split.

    Returns:
        Indices of the chosen clips.
    """
    # At least one clip of each class remains for training.
    most = {label: min(int(np.ceil(count * share)), count - 1) for label, count in Counter(labels).items()}
    taken: Counter[str] = Counter()
    chosen: set[int] = set()
    for number in np.random.default_rng(seed).permutation(len(groups)):
        adds = Counter(labels[clip] for clip in groups[number])
        if all(taken[label] + count <= most[label] for label, count in adds.items()):
            taken += adds
            chosen.update(groups[number])
    return chosen
