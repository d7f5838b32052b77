"""Metrics against the official numbers and by hand."""

import numpy as np
import pytest

from adafocus_edge.evaluation.metrics import average_precisions, mean_average_precision, top_k_accuracy
from adafocus_edge.model.logits import softmax
from tests.conftest import GOLDEN


def test_official_mean_average_precision():
    golden = np.load(GOLDEN / "golden_map.npz")
    scores = softmax(golden["scores"])
    positives = golden["labels"][:, None] == np.arange(scores.shape[1])
    assert mean_average_precision(scores, positives) == pytest.approx(float(golden["mean_ap"]), abs=1e-3)
    assert average_precisions(scores, positives) * 100 == pytest.approx(golden["ap"], abs=1e-3)


def test_average_precision_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.9], [0.7, 0.2], [0.6, 0.3]])
    positives = np.array([[True, False], [False, False], [True, False], [False, False]])
    assert average_precisions(scores, positives) == pytest.approx([(1 / 1 + 2 / 3) / 2, 0.0])


def test_top_k_accuracy_by_hand():
    scores = np.array([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
    labels = np.array([2, 0, 0])
    assert top_k_accuracy(scores, labels, 1) == pytest.approx(100 / 3)
    assert top_k_accuracy(scores, labels, 2) == pytest.approx(200 / 3)
    assert top_k_accuracy(scores, labels, 3) == 100
