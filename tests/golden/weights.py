"""Deterministic weights for a state-dict layout: the same name and shape always give the same values."""

import zlib

import numpy as np


def values(name: str, shape, seed: int = 0) -> np.ndarray:
    """Return float32 weights for one state-dict entry (int64 zeros for BN counters)."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    n = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1.0 + 0.2 * np.abs(n)
    if name.endswith("running_mean"):
        return 0.1 * n
    if len(shape) == 1:
        is_norm_scale = name.endswith("weight")
        return (1.0 + 0.1 * n) if is_norm_scale else 0.05 * n
    fan_in = int(np.prod(shape[1:]))
    gain = 1.0 if "gru" in name else 2.0
    w = n * np.sqrt(gain / fan_in)
    if name.endswith("actor.0.weight"):
        w *= 12.0
    return w.astype(np.float32)
