"""Names of the backends, as ``--backend`` takes them."""

from __future__ import annotations

from typing import Literal, get_args

BackendChoice = Literal[
    "auto", "cpu", "cuda", "onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"
]
"""``auto``, the backends, and their aliases."""
ALIASES = {"cpu": "onnxruntime-cpu", "cuda": "onnxruntime-cuda"}
"""Backends by their aliases."""
BACKENDS = tuple(name for name in get_args(BackendChoice) if name != "auto" and name not in ALIASES)
"""Names of all backends."""


def canonical_backend(name: str) -> str:
    """Return the backend that a name or an alias stands for; ``auto`` and unknown names stand for themselves."""
    return ALIASES.get(name, name)
