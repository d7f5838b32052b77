"""Logits and probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adafocus_edge.errors import BackendError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities of logits, float32 [..., C], over their last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities


def check_logits(logits: NDArray[np.float32]) -> None:
    """Check that logits of any shape are finite. Raises ``BackendError``: their best class would mean nothing."""
    if not np.isfinite(logits).all():
        raise BackendError(
            "the model's outputs are not finite numbers: use --variant fp32 if this variant overflows, or export a "
            "checkpoint whose training has not diverged"
        )
