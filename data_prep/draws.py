"""Random numbers that are hashes of what they are drawn for: batches, restarts and engines change nothing."""

import numpy as np


def uniforms(seed: int, *keys: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1) for each tuple of broadcast keys: splitmix64 (Steele et al., OOPSLA 2014) of seed and keys."""
    state = _mix(np.asarray(seed, dtype=np.uint64))
    for key in keys:
        state = _mix(state ^ np.asarray(key).astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(state ^ (state >> np.uint64(31)))
