"""How good predictions are: the official mean average precision, and top-k accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def average_precisions(scores: NDArray[np.floating], positives: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each class's average precision: the mean, over its positives, of the precision at that rank.

    Args:
        scores: [clips, classes], higher is more confident; the official code ranks by softmax probability.
        positives: [clips, classes], True where a clip belongs to a class.

    Returns:
        [classes], 0..1; 0 for a class without positives, as in the official code.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    hit = np.take_along_axis(positives, order, axis=0)
    ranks = np.arange(1, len(scores) + 1)[:, None]
    precision = np.cumsum(hit, axis=0) / ranks
    total: NDArray[np.float64] = (precision * hit).sum(axis=0) / np.maximum(hit.sum(axis=0), 1)
    return total


def mean_average_precision(scores: NDArray[np.floating], positives: NDArray[np.bool_]) -> float:
    """Return the mean of :func:`average_precisions` over all classes, in percent. ``scores`` are probabilities."""
    return float(average_precisions(scores, positives).mean() * 100)


def top_k_accuracy(scores: NDArray[np.floating], labels: NDArray[np.integer], k: int) -> float:
    """Return how often the label is among the k highest scores, in percent.

    Args:
        scores: [clips, classes].
        labels: [clips], the right class of each.
        k: number of classes that count.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(axis=1).mean() * 100)


def accuracy_curve(
    probabilities: NDArray[np.floating], labels: Sequence[tuple[int, ...]], *, multi_label: bool
) -> list[dict[str, float]]:
    """Return top-1 and mAP in percent after each step.

    Args:
        probabilities: [clips, steps, classes].
        labels: class ids of each clip; the first counts for top-1.
        multi_label: whether mAP counts all labels of a clip (FCVID) or its first only (ActivityNet).
    """
    first = np.array([of_clip[0] for of_clip in labels])
    positives = np.zeros(probabilities.shape[::2], bool)
    for row, of_clip in zip(positives, labels, strict=True):
        row[list(of_clip if multi_label else of_clip[:1])] = True
    return [
        {
            "top1": top_k_accuracy(probabilities[:, step], first, 1),
            "mAP": mean_average_precision(probabilities[:, step], positives),
        }
        for step in range(probabilities.shape[1])
    ]


def wilson_interval(hits: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a share, 0..1: 95 % by default, valid for few clips and near 0 and 1."""
    share = hits / count
    centre = share + z * z / (2 * count)
    spread = z * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    scale = 1 + z * z / count
    return (centre - spread) / scale, (centre + spread) / scale
